"""TensorBoardLogger: scalars, histograms and text for TensorBoard."""

import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import jax

from .._core import check
from .._core.errors import ConfigError
from .._core.lenient import Lenient
from ..run.context import LoopContext
from ..show.text import is_number
from ..step.task import COLUMNS


class TensorBoardLogger:
    """Write scalars for TensorBoard: each epoch's row, and running means of the epoch under `running/`.

    Steps are the run's steps. An entry that is a dict gives one scalar a key, `name/key`; arrays and text are
    left out. Histograms come from a `GradientStats(histograms=True)` that stands before this one. In a directory
    that holds events already, those of steps that the run has not reached yet are marked as replaced. A disk that is
    full is warned of, and ends no run.

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
        self.directory: Path = check.path("directory", directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise ConfigError(f"`directory` must be a directory, and {self.directory} is a file")
        self._writer: Any = None
        self._lenient = Lenient(str(self.directory))

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Open an event file."""
        from tensorboardX import SummaryWriter

        self.close()
        if jax.process_index() != 0:
            return
        self._lenient = Lenient(str(self.directory))
        with self._lenient:
            self._writer = SummaryWriter(
                str(self.directory),
                # The row of an epoch that ended here was written by the run before, unless it is still to end.
                purge_step=ctx.step + (ctx.epoch_step == 0 or ctx.history.last.get("step") == ctx.step),
                filename_suffix=f".{os.getpid()}.{next(self._numbers)}",
            )

    def on_log(self, ctx: LoopContext) -> None:
        """Write the running means."""
        if self._writer is None:
            return
        with self._lenient:
            self._write(ctx.logs, "running/", ctx.logs.get("step", ctx.step))

    def on_validation_end(self, ctx: LoopContext) -> None:
        """Write what a validation inside an epoch measured."""
        if self._writer is not None:
            with self._lenient:
                self._write(
                    {name: ctx.logs[name] for name in ctx.logs if name in ctx.validated}, "", ctx.step
                )

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Write the epoch's row."""
        if self._writer is None:
            return
        with self._lenient:
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
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._lenient:
                writer.close()

    def _write(self, logs: Mapping[str, Any], prefix: str, step: int) -> None:
        for name, value in logs.items():
            value = jax.device_get(value) if isinstance(value, jax.Array) else value
            if isinstance(value, Mapping):
                self._write(value, f"{prefix}{name}/", step)
            elif name not in COLUMNS and is_number(value):
                self._writer.add_scalar(f"{prefix}{name}", float(value), step)
