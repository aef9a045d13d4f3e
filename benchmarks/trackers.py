"""What it costs to be watched: `python -m benchmarks.trackers [--rounds N]`.

Whole fits of 300 steps of about 3 ms, logged every 100 steps, with nobody who watches and with each tracker; a
tracker's run is begun and ended in each fit, and timed with it. Beside that, what one log takes of the loop's thread.
"""

import argparse
import datetime
import platform
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fntrain as ft
from benchmarks._measure import interleaved, table
from fntrain.callbacks import LivePlot, MLflow, TensorBoard, WandB

WIDTH, ROWS, STEPS, LOG_EVERY = 256, 64, 300, 100


def loss_fn(params, batch, ctx):
    x = batch
    for kernel in params:
        x = jnp.tanh(x @ kernel)
    return ft.losses.mse(x, batch)


TASK = ft.Task(loss_fn, ft.optimizers.adamw(1e-3))
PARAMS = [np.eye(WIDTH, dtype=np.float32)] * 4
DATA = np.random.default_rng(0).normal(size=(ROWS * STEPS, WIDTH)).astype(np.float32)


class Clock:
    """Stands in the list before and after a watcher, and counts how long its `on_log` and `on_epoch_end` took."""

    adds_logs = False

    def __init__(self):
        self.began, self.spent, self.calls = 0.0, 0.0, 0

    def start(self) -> Any:
        return _Events(lambda: setattr(self, "began", time.perf_counter()))

    def stop(self) -> Any:
        def stop():
            self.spent, self.calls = self.spent + time.perf_counter() - self.began, self.calls + 1

        return _Events(stop)


class _Events:
    adds_logs = False

    def __init__(self, do):
        self.on_log = self.on_epoch_end = lambda ctx: do()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(
        f"{datetime.date.today()}, {platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"medians of {rounds} interleaved rounds\n"
    )
    where = tempfile.mkdtemp()
    watchers: dict[str, Any] = {
        "nobody": None,
        "LivePlot": LivePlot(show=lambda text: None),
        "TensorBoard": TensorBoard(f"{where}/board"),
        "MLflow, SQLite": MLflow(f"sqlite:///{where}/mlflow.db"),
        "W&B, offline": WandB(f"{where}/wandb"),
    }
    clocks = {name: Clock() for name in watchers}

    def fit(name: str) -> float:
        clock, watcher = clocks[name], watchers[name]
        callbacks = [] if watcher is None else [clock.start(), watcher, clock.stop()]
        state = ft.init_state(TASK, PARAMS)
        began = time.perf_counter()
        ft.fit(
            TASK,
            state,
            DATA,
            epochs=1,
            batch_size=ROWS,
            callbacks=callbacks,
            progress=False,
            log_every=LOG_EVERY,
        )
        return time.perf_counter() - began

    times = interleaved(
        {name: (lambda name=name: fit(name)) for name in watchers}, rounds=rounds, warmup=1, timed=True
    )
    rows = [
        [
            name,
            f"{1e3 * times[name] / STEPS:.2f}",
            f"{times[name] / times['nobody']:.2f}",
            f"{1e3 * clock.spent / clock.calls:.2f}" if clock.calls else "",
            f"{100 * clock.spent / clock.calls / (LOG_EVERY * 3e-3):.2f} %" if clock.calls else "",
        ]
        for name, clock in clocks.items()
    ]
    header = [
        "watched by",
        "ms a step",
        "whole fit / nobody's",
        "ms a log, of the loop",
        "of 100 steps of 3 ms",
    ]
    print(table(rows, header))


if __name__ == "__main__":
    main()
