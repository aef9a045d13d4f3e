"""MetricLogger: one line an epoch."""

from collections.abc import Callable
from typing import Any

import jax

from .._core.errors import ConfigError
from .._core.made import Made
from ..run.context import LoopContext
from ..run.history import History
from ..show.text import is_end, reading_order, value_text
from ..step.task import COLUMNS


class MetricLogger(Made):
    """Record every metric of training and validation, one row an epoch; on request, say them too.

    Args:
      write: called with one line of text an epoch, `print` for example; None records only.

    Attributes:
      history: a `History` of the run so far; a resumed run has the epochs before in it.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.25))
      >>> state = ft.init_state(task, {"w": np.float32(0)})
      >>> logger = ft.callbacks.MetricLogger(print)
      >>> data = np.ones(4, np.float32)
      >>> _ = ft.fit(task, state, data, epochs=2, validation_data=data, callbacks=[logger], progress=False)
      epoch 1  loss 1.000  val_loss 0.2500  learning_rate 0.2500
      epoch 2  loss 0.2500  val_loss 0.06250  learning_rate 0.2500
      >>> logger.history["val_loss"]
      [0.25, 0.0625]
    """

    adds_logs = False

    def __init__(self, write: Callable[[str], Any] | None = None):
        if write is not None and not callable(write):
            raise ConfigError(f"`write` must be a function of a line of text such as `print`, got {write!r}")
        self.write = write
        self.history = History()

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start from the epochs that are done."""
        self.history: History = History(ctx.history.rows())

    def on_validation_end(self, ctx: LoopContext) -> None:
        """Record the row of a validation inside an epoch."""
        if ctx.validated:
            self.on_epoch_end(ctx)

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Record the epoch's row."""
        self.history.append(ctx.logs)
        if self.write is not None and jax.process_index() == 0:
            names = [n for n, x in ctx.logs.items() if isinstance(x, int | float) and n not in COLUMNS]
            names = [name for name in sorted(names, key=reading_order) if not is_end(name, ctx.logs)]
            values = [f"{name} {value_text(name, ctx.logs)}" for name in names]
            where = f"epoch {ctx.epoch}" + (f", step {ctx.step}" if ctx.validated else "")
            self.write("  ".join([where, *values]))
