"""ModelCheckpoint: versions of the run, or its parameters in one file."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import sharding, tree
from .._core import check
from .._core.errors import ConfigError
from .._core.files import replacing, writable
from .._core.ranking import best_of
from .._core.typing import Params
from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.keep import Keep
from ..run.best import KeepsBest, Kept, best_saved
from ..run.context import LoopContext, Mode
from ..run.history import History
from ..run.lock import NAME as LOCK, RunLock
from ..run.monitor import Monitor
from ..run.rescue import has_finite_params


class ModelCheckpoint(KeepsBest):
    """Save the state at the end of epochs: every so many, or whenever a column is better than ever before.

    A directory holds versions, one a step, and is a `Checkpointer`'s: the newest three and the best one stay,
    or with `save_best_only` the best one. A path that ends in `.npz` is one file instead, with the parameters under
    their paths, written anew each time, or where a `monitor` is given, whenever it is better than before; `np.load`
    reads it (bfloat16 is written as float32).

    The best so far survives a resume; a run that starts from a state at or after the newest version of the
    directory goes on with its best, too. A directory with later versions than that belongs to another run and is
    refused, unless this instance wrote them, in which case its second run replaces its first. While a run is going
    on, a directory or file is one instance's: a second one on it is refused before training, in another process
    too, and so is the `checkpoints` directory of a run.

    Where validations fall inside epochs (`validation_every`), a column of theirs is looked at in each of them, if
    `every` is 1. Parameters that are not finite are never the best, nor put in the place of finite ones.

    Args:
      directory: the directory, or a file `….npz`.
      monitor: a column of the epoch's logs. None is `"val_loss"`; without validation data nothing is ranked then,
        which is an error only with `save_best_only`.
      mode: `"min"` or `"max"`, which is better; `"auto"` is what the column's metric says.
      save_best_only: save only what is better than all before; NaN and infinity never are.
      every: look at every so many epochs, >= 1.
      save_dir: another name for `directory`.
      filepath: Keras's name for it.

    Attributes:
      best: the best value so far, or None.

    Raises:
      ConfigError: if an argument is out of range, the path has the suffix of another kind of file, the directory
        is another run's, or the run's own for its checkpoints, or there is no such column.
      CheckpointError: by `fit`, before anything runs, if the directory cannot be written to.
      RunLockedError: likewise, if somebody else is writing there.

    Examples:
      >>> import fntrain as ft, numpy as np, tempfile
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": np.float32(0)})
      >>> directory = tempfile.mkdtemp()
      >>> saving = ft.callbacks.ModelCheckpoint(directory, monitor="loss", save_best_only=True)
      >>> data = np.ones(8, np.float32)
      >>> result = ft.fit(task, state, data, epochs=3, batch_size=4, callbacks=[saving], progress=False)
      >>> saving.best == min(result.history["loss"])
      True
    """

    adds_logs = False

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        monitor: str | None = None,
        mode: Mode = "auto",
        save_best_only: bool = False,
        every: int = 1,
        *,
        save_dir: str | os.PathLike[str] | None = None,
        filepath: str | os.PathLike[str] | None = None,
    ):
        names = {"directory": directory, "save_dir": save_dir, "filepath": filepath}
        given = {name: value for name, value in names.items() if value is not None}
        if len(given) != 1:
            said = " and ".join(f"`{name}`" for name in given) or "none"
            raise ConfigError(
                f"give one of `directory`, `save_dir` and `filepath`, which are one argument, got {said}"
            )
        [(name, place)] = given.items()
        self.path: Path = check.path(name, place)
        self.monitor: str = "val_loss" if monitor is None else monitor
        self._watched = Monitor(self.monitor, mode)
        self.save_best_only: bool = check.flag("save_best_only", save_best_only)
        self.every: int = check.integer("every", every, at_least=1)
        self.best: float | None = None
        self._file = self.path.suffix == ".npz" and not self.path.is_dir()
        # `runs/lr-0.1` is a directory with a dot in its name; `best.h5` is somebody's file.
        if not self._file and re.fullmatch(r"\.[A-Za-z]\w*", self.path.suffix) and not self.path.is_dir():
            raise ConfigError(
                f"`{name}` must be a directory, or a file that ends in `.npz`, got {str(place)!r}"
            )
        # Whoever says what is better and gives one file means the best one.
        self._ranks = save_best_only or monitor is not None
        self._best_only = save_best_only or (self._file and self._ranks)
        self._checkpoints: Checkpointer | None = None
        self._lock: RunLock | None = None
        self._own: set[int] = set()  # the steps this instance has saved

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start anew, or go on with what the directory holds."""
        self.close()
        self.best = None
        self._watched.begin(ctx, required=self._ranks)
        if ctx.run_dir is not None and self.path == Path(ctx.run_dir, "checkpoints"):
            raise ConfigError(
                f"`directory` {self.path} holds the run's own checkpoints: choose another directory"
            )
        self._take()
        if self._file:
            return
        best = (self.monitor, self._watched.direction)
        keep = Keep(latest=1 if self.save_best_only else 3, best=best)
        self._checkpoints = Checkpointer(self.path, keep)
        if jax.process_index() == 0:
            self._checkpoints.prepare()
        if ctx.resumed:
            return  # what the directory holds is of this run
        later = [step for step in self._checkpoints.steps() if step > ctx.step]
        if self._own.issuperset(later):
            for step in later:
                self._checkpoints.discard(step)
        elif later:
            raise ConfigError(
                f"`directory` {self.path} holds later steps ({tree.some([str(s) for s in later])}) than this run "
                f"starts at ({ctx.step}), so they are another run's: choose another directory, remove it, or go on "
                f"with that run by `fit(..., run_dir=..., resume=True)`"
            )
        if self._checkpoints.best_step is not None:
            self.best = self._checkpoints.extra("best")["logs"].get(self.monitor)

    def _take(self) -> None:
        """Hold the directory, or the file, so that nobody else writes there."""
        if jax.process_index() != 0:  # of several processes the first holds it for all
            return
        place = self.path.parent if self._file else self.path
        writable(place)
        name = f".{self.path.name}.lock" if self._file else LOCK
        self._lock = RunLock(place, name, stays=False, what=f"ModelCheckpoint: `directory` {self.path}")

    def on_validation_end(self, ctx: LoopContext) -> None:
        """Save, if this is a validation inside an epoch and that is due."""
        if self.every == 1 and self._watched.column in ctx.validated:
            self._look(ctx)

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Save, if that is due."""
        if ctx.epoch % self.every == 0:
            self._look(ctx)

    def _look(self, ctx: LoopContext) -> None:
        if self._ranks or self.monitor in ctx.logs:
            value, direction = self._watched.read(ctx), self._watched.direction
            better = best_of({"old": self.best, "new": value}, direction) == "new"
            if better and has_finite_params(ctx.state):
                self.best = value
            elif self._best_only:
                return
        if self._file:
            if self._ranks or not self.path.exists() or has_finite_params(ctx.state):
                save_params(self.path, ctx.state.params)
            return
        assert self._checkpoints is not None, "on_fit_begin was not called"
        logs = {n: x for n, x in ctx.logs.items() if isinstance(x, int | float) and not isinstance(x, bool)}
        extra = {"epoch": ctx.epoch, "logs": logs}
        self._own.add(ctx.step)
        self._checkpoints.save(ctx.state, step=ctx.step, metrics=logs, extra=extra, overwrite=True)

    def on_fit_end(self, ctx: LoopContext) -> None:
        """Wait until the last version is on disk."""
        del ctx
        self.close()

    def close(self) -> None:
        """Wait until the last version is on disk, and let go of the place."""
        try:
            if self._checkpoints is not None:
                self._checkpoints.close()
        finally:
            lock, self._lock = self._lock, None
            if lock is not None:
                lock.release()

    def kept(self, history: History) -> Kept | None:
        """The best version in the directory; None where there is none, or the best is one file of parameters."""
        if self._checkpoints is None:
            return None
        return best_saved(self._checkpoints, self.monitor, history)

    def watches(self) -> dict[str, Any]:
        """The place, the column and which of its values are better, by which a resumed run knows its state again."""
        return {"directory": str(self.path), **self._watched.watches()}

    def state(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self.best}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.best = state["best"]


def save_params(path: Path, params: Params) -> None:
    """Write parameters to an `.npz` file, by path, replacing it as a whole; of several processes, the first does."""
    host = sharding.to_host(params)
    if jax.process_index() != 0:
        return
    # Not `np.savez`, whose own arguments are not free for names of parameters.
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, x in tree.items(host):
            x = x.astype(np.float32) if x.dtype.kind == "V" else x  # bfloat16 and its like: not NumPy's
            with archive.open(f"{name or 'params'}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, x, allow_pickle=False)
