"""CSVLogger and JSONLogger: a row an epoch, in a file."""

import os
from pathlib import Path
from typing import Any

import jax

from .._core.lenient import Lenient
from .._core.made import Made
from ..run.context import LoopContext
from ..run.history import UNFINISHED
from ..run.writers import CSVWriter, JSONLWriter, _Writer


class _FileLogger(Made):
    """One row an epoch into a file; where that fails, a warning says so, and the run goes on."""

    adds_logs = False
    writer_type: type[_Writer]

    def __init__(self, path: str | os.PathLike[str]):
        self.path: Path = self.writer_type(path).path  # a directory is refused here, not in the first epoch
        self._writer: Any = None
        self._written = -1  # the step of the last row
        self._lenient = Lenient(str(self.path))

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start the file anew; when resuming, go on after the epochs that are done."""
        self.close()
        self._written = ctx.history.last.get("step", -1)
        if jax.process_index() != 0:
            return
        self._lenient = Lenient(str(self.path))
        with self._lenient:
            if not ctx.resumed:
                self.path.unlink(missing_ok=True)
            self._writer = self.writer_type(self.path)
            self._writer.begin(ctx.history.rows(), whole=False)

    def on_validation_end(self, ctx: LoopContext) -> None:
        """Write the row of a validation inside an epoch."""
        if ctx.validated:
            self.on_epoch_end(ctx)

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Write the epoch's row."""
        if self._writer is None:
            return
        with self._lenient:
            if self._writer.torn:
                self._writer.begin(ctx.history.rows(), whole=False)
            self._writer.write(ctx.logs)
            self._written = ctx.step

    def on_fit_end(self, ctx: LoopContext) -> None:
        """Write the row of an epoch that the run was stopped in, and close the file."""
        if ctx.logs.get(UNFINISHED) and self._written != ctx.step:
            self.on_epoch_end(ctx)
        self.close()

    def close(self) -> None:
        """Close the file; it is whole after every row."""
        if self._writer is not None:
            with self._lenient:
                self._writer.close()


class CSVLogger(_FileLogger):
    """Write each epoch's row to a CSV file.

    A new run starts the file anew; a resumed one drops the rows of epochs that it runs again. A validation inside
    an epoch has a row too. Columns that callbacks after this one add are not in it, so put it last. See
    `fntrain.run.writers` for the format.

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
