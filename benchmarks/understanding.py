"""What it costs to know where the time went: `python -m benchmarks.understanding [--rounds N]`.

Of `fit`: the stopwatch, the heartbeat file and the watch for second compilations, which are always there, against a
stopwatch that does nothing. Of a step of about 3 ms: the transforms that record, which are asked for; and of the update
alone, without forward and backward, the processor's time, which other programs of a busy machine do not add to.
"""

import argparse
import datetime
import platform
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np

import fntrain as ft
from benchmarks._measure import interleaved, table
from benchmarks.guards import Steps
from fntrain.run.goodput import Meter

STEPS, UPDATES = 400, 5


class Still(Meter):
    """A stopwatch without a clock."""

    def to(self, phase: int) -> int:
        """Nothing."""
        return 0


def fits(meter: type[Meter]) -> Callable[[], None]:
    """A run of many short steps, one a dispatch, whose loop is all that there is to measure."""
    task = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b[:, 0]), ft.optimizers.sgd(0.01))
    state = ft.init_state(task, {"w": np.zeros(8, np.float32)})
    data = np.random.default_rng(0).normal(size=(STEPS * 8, 8)).astype(np.float32)

    def run() -> None:
        with mock.patch("fntrain.run.fit.Meter", meter):
            given: Any = dict(epochs=1, batch_size=8, steps_per_call=1, progress=False)
            jax.block_until_ready(ft.fit(task, state, data, **given).state.params)

    run()
    return run


class Updates:
    """A contender: an optimizer's updates of the wide network, and the processor time that they took."""

    def __init__(self, tx: ft.Transform):
        steps = Steps(tx, "wide")
        self.params, self.state = steps.state.params, tx.init(steps.state.params)
        self.grads = jax.tree.map(lambda x: 0.01 * x + 0.001, self.params)

        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return jax.tree.map(lambda p, u: p + u, params, updates), state

        self.update = jax.jit(update, donate_argnums=(0, 1))

    def __call__(self) -> float:
        began = time.process_time()
        for _ in range(UPDATES):
            self.params, self.state = self.update(self.params, self.state, self.grads)
        jax.block_until_ready(self.params)
        return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    print(
        f"{datetime.date.today()}, {platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"medians of {arguments.rounds} interleaved rounds\n"
    )
    rows = []
    loops = {"a stopwatch that stands still": fits(Still), "as it is": fits(Meter)}
    medians = interleaved(loops, rounds=arguments.rounds)
    base = medians["a stopwatch that stands still"]
    for name, seconds in medians.items():
        rows.append(["fit, a step", name, f"{seconds / STEPS * 1e6:.1f}", f"{seconds / base:.3f}"])
    adamw = ft.optimizers.adamw(1e-3)
    watched = ft.chain(adamw, ft.transforms.record_updates())
    for model in ("tall", "wide"):
        steps = {"adamw": Steps(adamw, model), "with record_updates": Steps(watched, model)}
        medians = interleaved(steps, rounds=arguments.rounds)
        for name, seconds in medians.items():
            each = seconds / steps[name].steps
            ratio = f"{seconds / medians['adamw']:.3f}"
            rows.append([f"train_step, {model}", name, f"{each * 1e6:.1f}", ratio])
    alone = {"adamw": Updates(adamw), "with record_updates": Updates(watched)}
    medians = interleaved(alone, rounds=5 * arguments.rounds, timed=True)
    for name, seconds in medians.items():
        ratio = f"{seconds / medians['adamw']:.3f}"
        rows.append(["an update alone, processor's time", name, f"{seconds / UPDATES * 1e6:.1f}", ratio])
    print(table(rows, ["what", "how", "µs a step", "ratio"]))


if __name__ == "__main__":
    main()
