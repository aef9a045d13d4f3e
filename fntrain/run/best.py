"""The best validation of a run: which it was, and where its state is."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .._core.errors import ConfigError
from .._core.made import Made
from .._core.ranking import Direction, best_of
from ..checkpoint.checkpointer import Checkpointer
from ..step import programs
from ..step.state import TrainState
from .context import LoopContext
from .directory import RunDirectory
from .history import History
from .monitor import Monitor
from .rescue import has_finite_params


class Best(NamedTuple):
    """The best validation of a run.

    Attributes:
      state: the TrainState that was validated.
      row: what was measured, the epoch's row or that of the validation inside it.
    """

    state: TrainState
    row: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Kept:
    """The best validation as a result holds it: its row, and its state or the place where that is saved.

    Attributes:
      row: what was measured.
      state: the state, if it is in memory.
      directory: the `Checkpointer`'s directory that it is in.
      step: its step there.
      missing: why there is none, and how to have it.
    """

    row: dict[str, Any] = dataclasses.field(default_factory=dict)
    state: TrainState | None = None
    directory: Path | None = None
    step: int | None = None
    missing: str = ""

    def read(self, like: TrainState) -> Best:
        """The state and its row; from disk, in the types and on the devices of a state, whose values do not matter.

        Raises:
          ConfigError: if nothing was kept.
          CheckpointError: if it cannot be read.
        """
        if self.missing:
            raise ConfigError(self.missing)
        if self.state is not None:
            return Best(self.state, dict(self.row))
        assert self.directory is not None
        with Checkpointer(self.directory) as checkpointer:
            return Best(checkpointer.restore(like, step=self.step), dict(self.row))


class KeepsBest(Made):
    """The base of callbacks that save whole states, and know which is the best."""

    def kept(self, history: History) -> Kept | None:
        """The best; None if there is none, or it is no whole state."""
        raise NotImplementedError


class BestState:
    """Keeps the state of the best validation: the run directory has it saved, and without one it is a copy.

    Args:
      watched: the column.
      run: the run directory, or None.
    """

    def __init__(self, watched: Monitor, run: RunDirectory | None):
        self.watched = watched
        self._run = run
        self._row: dict[str, Any] = {}
        self._state: TrainState | None = None
        self._value: Any = None
        if run is not None and run.extra is not None and (step := run.checkpointer.best_step) is not None:
            self._value = run.checkpointer.metrics(step).get(watched.column)

    def look(self, ctx: LoopContext) -> None:
        """Keep the state, if what has just been measured is better than all before."""
        value = self.watched.read(ctx)
        better = best_of({"before": self._value, "now": value}, self.watched.direction) == "now"
        if not better or not has_finite_params(ctx.state):
            return
        self._value = value
        if self._run is not None:
            ctx.request_save()
        else:
            self._state = None  # first, so that there are never two of them
            self._state, self._row = programs.copied(ctx.state), dict(ctx.logs)

    def kept(self, history: History) -> Kept:
        """The best so far."""
        if self._run is not None:
            return _of_run(self._run, self.watched.column, history)
        if self._state is None:
            return Kept(missing=f"`result.best`: no validation had a finite {self.watched.column!r}")
        return Kept(self._row, self._state)


def kept(
    best: BestState | None, callbacks: Iterable[Any], run: RunDirectory | None, history: History
) -> Kept:
    """The best of a run: what it was asked to keep, what a callback has kept, or the best of what it has saved."""
    if best is not None:
        return best.kept(history)
    for callback in callbacks:
        found = callback.kept(history) if isinstance(callback, KeepsBest) else None
        if found is not None:
            return found
    if run is None:
        return Kept(
            missing="`result.best` is kept where it is asked for: `fit(..., keep_best=True)` keeps the state of the "
            "best `val_loss`, in `run_dir` or, without one, in memory"
        )
    column, direction = run.ranked
    found = _of_run(run, column, history)
    best_value = history.best(column, direction)
    if best_value is not None and _is_better(best_value, found.row.get(column), direction):
        return Kept(
            missing=f"`result.best`: the best {column!r} was measured at a step that `checkpoint_every` did not save: "
            f"`fit(..., keep_best={column!r})` saves each best one"
        )
    return found


def _is_better(a: float, b: Any, direction: Direction) -> bool:
    return best_of({"b": b, "a": a}, direction) == "a"


def _of_run(run: RunDirectory, column: str, history: History) -> Kept:
    missing = Kept(missing=f"`result.best`: no checkpoint in {run.path} has a finite {column!r}")
    return best_saved(run.checkpointer, column, history) or missing


def best_saved(checkpointer: Checkpointer, column: str, history: History) -> Kept | None:
    """The best step of a directory, with its row in the history, or what it was saved with; None if there is none."""
    step = checkpointer.best_step
    if step is None:
        return None
    rows = [row for row in history.rows() if row.get("step") == step and column in row]
    return Kept(rows[0] if rows else checkpointer.metrics(step), None, checkpointer.directory, step)
