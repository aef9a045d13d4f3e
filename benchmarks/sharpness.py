"""The edge of stability, seen through `tools.curvature`: `python -m benchmarks.sharpness [--steps N]`.

Gradient descent without momentum, on all of the data at once, makes the loss ever steeper until its sharpness is
2 / rate, where it should diverge; there it stays, the loss rises in many of its steps and falls over all of them
(Cohen et al., *Gradient descent on neural networks typically occurs at the edge of stability*, 2021). The network is a
tanh MLP of some thousand parameters on digits, with the mean of squares for a loss.
"""

import argparse
import datetime
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

import fntrain as ft
from benchmarks._measure import table

WIDTH, ROWS, MEASURED = 32, 200, 40  # how often the sharpness is looked at
RATES = (1.5, 1.0, 0.75, 0.5, 0.05)


def loss_fn(p: Any, batch: Any, ctx: Any) -> Any:
    x, y = batch
    hidden = jnp.tanh(jnp.tanh(x @ p["first"]) @ p["second"])
    return ft.losses.mse(hidden @ p["out"], y)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Some of the digits, and which each is as a row of zeros and a one."""
    x, y = datasets.load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(y))[:ROWS]
    return (x[chosen] / 16 - 0.3).astype(np.float32), np.eye(10, dtype=np.float32)[y[chosen]]


def init_params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {
        "first": (64, WIDTH, 1 / 16),
        "second": (WIDTH, WIDTH, 0.5 * WIDTH**-0.5),
        "out": (WIDTH, 10, 0.04),
    }
    return {k: (scale * rng.normal(size=(m, n))).astype(np.float32) for k, (m, n, scale) in shapes.items()}


def descent(rate: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The sharpness before each stretch of the run and at its end, and the loss of each step."""
    task, batch = ft.Task(loss_fn, ft.optimizers.sgd(rate)), digits()
    state = ft.init_state(task, init_params())

    @jax.jit
    def stretch(state: ft.TrainState) -> Any:
        def step(state: ft.TrainState, _: None) -> Any:
            state, metrics = ft.train_step(task, state, batch)
            return state, ft.compute_metrics(task, metrics)["loss"]

        return jax.lax.scan(step, state, length=steps // MEASURED)

    sharpness, losses = [ft.tools.curvature(task, state, batch).sharpness], []
    for _ in range(MEASURED):
        state, lost = stretch(state)
        losses.append(np.asarray(lost))
        sharpness.append(ft.tools.curvature(task, state, batch).sharpness)
    return np.array(sharpness), np.concatenate(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    steps = parser.parse_args().steps
    size = sum(x.size for x in init_params().values())
    print(
        f"{datetime.date.today()}, {platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}: {size} "
        f"parameters, {ROWS} digits, {steps} steps of all of them, sharpness at every {steps // MEASURED}th\n"
    )
    rows = []
    for rate in RATES:
        began = time.process_time()
        sharpness, losses = descent(rate, steps)
        share, late = sharpness * rate / 2, sharpness[-len(sharpness) // 4 :] * rate / 2
        there = np.flatnonzero(share >= 1)
        rose = np.mean(np.diff(losses[-steps // 4 :]) > 0)
        rows.append(
            [
                f"{rate:g}",
                f"{2 / rate:.3g}",
                f"{sharpness[0]:.3g}",
                str(there[0] * (steps // MEASURED)) if len(there) else "never",
                f"{np.median(late):.3f}",
                f"{late.min():.3f} to {late.max():.3f}",
                f"{rose:.0%}",
                f"{losses[0]:.4f} to {losses[-1]:.2g}",
                f"{time.process_time() - began:.0f}",
            ]
        )
    header = ["rate", "2 / rate", "sharpness at first", "reaches 2 / rate at step"]
    header += [
        "sharpness · rate / 2, median of the last quarter",
        "from … to",
        "steps there in which the loss rises",
    ]
    print(table(rows, [*header, "loss", "CPU s"]))


if __name__ == "__main__":
    main()
