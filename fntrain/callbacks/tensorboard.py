"""TensorBoardLogger: scalars, histograms and text for TensorBoard."""

import json
import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import jax

from .._core import check
from .._core.errors import ConfigError
from .._core.lenient import Lenient
from .._core.made import Made
from ..run.context import LoopContext
from ..run.tracking import THROUGHPUT, configuration, since
from ..show.text import is_end, is_number
from ..step.task import COLUMNS


class TensorBoardLogger(Made):
    """Write scalars for TensorBoard: each epoch's row, and running means of the epoch under `running/`.

    How fast the run is stands beside them, under `throughput/`.

    Steps are the run's steps. An entry that is a dict gives one scalar a key, `name/key`; arrays and text are
    left out. A value with an interval (`metrics.bootstrap`) is drawn with its band, under Custom scalars. Histograms
    come from a `GradientStats(histograms=True)` that stands before this one, text and images from `Samples`. In a
    directory that holds events already, those of steps that the run has not reached yet are marked as replaced. A disk
    that is full is warned of, and ends no run. It is a Tracker too (`fntrain.protocols.Tracker`).

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
        """Open an event file, and write what the run is."""
        self.close()
        if jax.process_index() != 0:
            return
        self._lenient, self._has_bands = Lenient(str(self.directory)), False
        with self._lenient:
            self._opened(since(ctx))
        self.config(configuration(ctx))

    def _opened(self, since: int | None = None) -> Any:
        """The event file, opened if need be: what others hold of the steps from `since` on is replaced."""
        from tensorboardX import SummaryWriter

        if self._writer is None:
            suffix = f".{os.getpid()}.{next(self._numbers)}"
            self._writer = SummaryWriter(str(self.directory), purge_step=since, filename_suffix=suffix)
        return self._writer

    def config(self, values: Mapping[str, Any], /) -> None:
        """Write what a run is, as text, under `config`."""
        text = json.dumps(values, indent=2, default=str)
        with self._lenient:
            self._opened().add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), 0)

    def log(self, row: Mapping[str, Any], step: int, /) -> None:
        """Write a row by hand, in a loop of one's own; in a run the events do it."""
        with self._lenient:
            writer = self._opened()
            self._write(row, "", step)
            writer.flush()

    def on_log(self, ctx: LoopContext) -> None:
        """Write the running means."""
        if self._writer is None:
            return
        with self._lenient:
            self._write(ctx.logs, "running/", ctx.logs.get("step", ctx.step))
            self._write_throughput(ctx, "running/")

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
            self._draw_intervals(ctx.logs)
            self._write_throughput(ctx, "")
            for name, sample in ctx.samples.items():
                if isinstance(sample.value, str):
                    self._writer.add_text(name, sample.value, ctx.step)
                else:
                    self._writer.add_image(name, sample.value, ctx.step, dataformats="HWC")
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

    def close(self, status: str = "failed") -> None:
        """Close the event file; how the run ended is not in it."""
        del status
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._lenient:
                writer.close()

    def _draw_intervals(self, logs: Mapping[str, Any]) -> None:
        """Once, have each value with an interval drawn with its band, under Custom scalars."""
        names = [name for name in logs if is_end(f"{name}_low", logs)]
        if names and not self._has_bands:
            bands = {name: ["Margin", [name, f"{name}_low", f"{name}_high"]] for name in names}
            self._writer.add_custom_scalars({"intervals": bands})
            self._has_bands = True

    def _write_throughput(self, ctx: LoopContext, prefix: str) -> None:
        if ctx.throughput is not None:
            measured = {name: getattr(ctx.throughput, name) for name in THROUGHPUT}
            self._write(measured, f"{prefix}throughput/", ctx.throughput.step)

    def _write(self, logs: Mapping[str, Any], prefix: str, step: int) -> None:
        for name, value in logs.items():
            value = jax.device_get(value) if isinstance(value, jax.Array) else value
            if isinstance(value, Mapping):
                self._write(value, f"{prefix}{name}/", step)
            elif name not in COLUMNS and is_number(value):
                self._writer.add_scalar(f"{prefix}{name}", float(value), step)
