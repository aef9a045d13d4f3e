"""What guards cost on good steps, and what their notes cost: `python -m benchmarks.guards [--rounds N]`.

Whole train steps, dispatched one by one. The notes of a bad step are made in the branch that skips it; that branch is
never taken here, so the question is what its being there costs.
"""

import argparse
import datetime
import itertools
import platform
from typing import Any
from unittest import mock

import jax
import numpy as np

import fntrain as ft
from benchmarks._measure import interleaved, table
from fntrain import demo
from fntrain.transforms import notes

MODELS = {
    # name: (widths, batch, steps a round)
    "digits": ((64, 64, 32, 10), 32, 40),
    "tall": ((64, 64, 32, 10), 6144, 2),
    "wide": ((256, 512, 512, 512, 10), 128, 2),
}


def loss_fn(params, batch, ctx):
    return ft.losses.cross_entropy(demo.apply(params, batch["image"]), batch["label"])


class Steps:
    """A contender: train steps on one batch, with a state of their own."""

    def __init__(self, tx: ft.Transform, model: str, notes: bool = True):
        widths, rows, self.steps = MODELS[model]
        rng = np.random.default_rng(0)
        layers = [
            {
                "kernel": (rng.normal(size=s) / np.sqrt(s[0])).astype(np.float32),
                "bias": np.zeros(s[1], np.float32),
            }
            for s in itertools.pairwise(widths)
        ]
        image, label = rng.normal(size=(rows, widths[0])), rng.integers(0, widths[-1], rows)
        self.batch = jax.device_put({"image": image.astype(np.float32), "label": label.astype(np.int32)})
        # Another loss function for each, so that the two versions of a guard are two programs.
        self.task = ft.Task(lambda *x: loss_fn(*x), tx)
        self.state = ft.init_state(self.task, {"layers": layers})
        if notes:
            self()
        else:
            with mock.patch.object(notes, "note", lambda step, loss, grads, params: self._nothing(grads)):
                self()

    @staticmethod
    def _nothing(grads: Any) -> jax.Array:
        return notes.nothing(len(jax.tree.leaves(grads)))

    def __call__(self) -> None:
        for _ in range(self.steps):
            self.state, metrics = ft.train_step(self.task, self.state, self.batch)
        jax.block_until_ready((self.state.params, metrics))


def contenders(model: str) -> dict[str, Steps]:
    adamw = ft.optimizers.adamw(1e-3)
    return {
        "adamw": Steps(adamw, model),
        "skip_nonfinite(adamw)": Steps(ft.skip_nonfinite(adamw), model),
        "the same without its notes": Steps(ft.skip_nonfinite(adamw), model, notes=False),
        "skip_spikes(adamw)": Steps(ft.skip_spikes(adamw), model),
        "dynamic_loss_scale(adamw)": Steps(ft.dynamic_loss_scale(adamw), model),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=151)
    arguments = parser.parse_args()
    print(
        f"{datetime.date.today()}, {platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"medians of {arguments.rounds} interleaved rounds\n"
    )
    rows = []
    for model in ("digits", "wide"):
        runs = contenders(model)
        medians = interleaved(runs, rounds=arguments.rounds)
        base = medians["adamw"]
        for name, seconds in medians.items():
            each = seconds / runs[name].steps
            rows.append([model, name, f"{each * 1e6:.1f}", f"{seconds / base:.3f}"])
    print(table(rows, ["model", "optimizer", "µs a step", "ratio to adamw"]))


if __name__ == "__main__":
    main()
