"""Callbacks that write down what a run measures."""

import os
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..._check import ConfigError
from ..history import History
from ..progress import number_text, reading_order
from ..writers import CSVWriter, JSONLWriter, _Writer
from ._protocol import LoopContext


class _FileLogger:
    """One row an epoch into a file."""

    adds_logs = False
    writer_type: type[_Writer]

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser()
        self.writer_type(self.path)  # a directory is refused here, not in the first epoch
        self._writer: Any = None

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start the file anew; when resuming, go on after the epochs that are done."""
        self.close()
        if jax.process_index() != 0:
            return
        if not ctx.resumed:
            self.path.unlink(missing_ok=True)
        self._writer = self.writer_type(self.path)
        self._writer.truncate(after_epoch=ctx.epoch - 1)

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Write the epoch's row."""
        if self._writer is not None:
            self._writer.write(ctx.logs)

    def on_fit_end(self, ctx: LoopContext) -> None:
        """Close the file."""
        del ctx
        self.close()

    def close(self) -> None:
        """Close the file; it is whole after every row."""
        if self._writer is not None:
            self._writer.close()


class CSVLogger(_FileLogger):
    """Write each epoch's row to a CSV file.

    A new run starts the file anew; a resumed one drops the rows of epochs that it runs again. Columns that
    callbacks after this one add are not in it, so put it last. See `fntrain.loop.writers` for the format.

    Args:
      path: the file.

    Raises:
      ConfigError: if `path` is a directory.

    Examples:
      >>> import fntrain as ft, tempfile, pathlib
      >>> ft.callbacks.CSVLogger(pathlib.Path(tempfile.mkdtemp(), "log.csv")).path.name
      'log.csv'
    """

    writer_type = CSVWriter


class JSONLogger(_FileLogger):
    """Write each epoch's row to a file of JSON lines; NaN and infinity are `null`.

    A new run starts the file anew; a resumed one drops the rows of epochs that it runs again. Columns that
    callbacks after this one add are not in it, so put it last.

    Args:
      path: the file.

    Raises:
      ConfigError: if `path` is a directory.

    Examples:
      >>> import fntrain as ft, tempfile, pathlib
      >>> ft.callbacks.JSONLogger(pathlib.Path(tempfile.mkdtemp(), "log.jsonl")).path.name
      'log.jsonl'
    """

    writer_type = JSONLWriter


class TensorBoardLogger:
    """Write scalars for TensorBoard: each epoch's row, and running means of the epoch under `running/`.

    Steps are the run's steps. An entry that is a dict gives one scalar a key, `name/key`; arrays and text are
    left out. Histograms come from a `GradientStats(histograms=True)` that stands before this one. In a directory
    that holds events already, those of steps that the run has not reached yet are marked as replaced.

    Args:
      directory: where the event files go; made if need be.

    Raises:
      ConfigError: if tensorboardX is not installed, or `directory` is a file.
    """

    adds_logs = False
    _numbers = count()  # tensorboardX names files by the second: two within one would overwrite each other

    def __init__(self, directory: str | os.PathLike[str]):
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "event files are written by tensorboardX, which is not installed: "
                '`pip install "fntrain[tensorboard]"`'
            ) from error
        self.directory = Path(directory).expanduser()
        if self.directory.exists() and not self.directory.is_dir():
            raise ConfigError(f"`directory` must be a directory, and {self.directory} is a file")
        self._writer: Any = None

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Open an event file."""
        from tensorboardX import SummaryWriter

        self.close()
        if jax.process_index() != 0:
            return
        self._writer = SummaryWriter(
            str(self.directory),
            # The row of an epoch that ended here was written by the run before, unless it is still to end.
            purge_step=ctx.step + (ctx.epoch_step == 0),
            filename_suffix=f".{os.getpid()}.{next(self._numbers)}",
        )

    def on_log(self, ctx: LoopContext) -> None:
        """Write the running means."""
        if self._writer is None:
            return
        self._write(ctx.logs, "running/", ctx.logs.get("step", ctx.step))

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Write the epoch's row."""
        if self._writer is None:
            return
        self._write(ctx.logs, "", ctx.step)
        for name, drawn in ctx.histograms.items():
            self._writer.add_histogram_raw(
                name,
                min=drawn.edges[0],
                max=drawn.edges[-1],
                num=int(drawn.counts.sum()),
                sum=drawn.sum,
                sum_squares=drawn.sum_of_squares,
                bucket_limits=drawn.edges[1:].tolist(),
                bucket_counts=drawn.counts.tolist(),
                global_step=ctx.step,
            )
        self._writer.flush()

    def on_fit_end(self, ctx: LoopContext) -> None:
        """Close the event file."""
        del ctx
        self.close()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, logs: Mapping[str, Any], prefix: str, step: int) -> None:
        for name, value in logs.items():
            if isinstance(value, Mapping):
                self._write(value, f"{prefix}{name}/", step)
            elif name not in ("epoch", "step") and isinstance(value, int | float | np.number):
                self._writer.add_scalar(f"{prefix}{name}", float(value), step)


class MetricLogger:
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
        self.history = History(ctx.history.rows())

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Record the epoch's row."""
        self.history.append(ctx.logs)
        if self.write is not None and jax.process_index() == 0:
            names = [
                n for n, x in ctx.logs.items() if isinstance(x, int | float) and n not in ("epoch", "step")
            ]
            values = [f"{name} {number_text(ctx.logs[name])}" for name in sorted(names, key=reading_order)]
            self.write("  ".join([f"epoch {ctx.epoch}", *values]))
