"""LoopContext: what a callback gets. The one place where a run's numbers stand on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from .._core.check import one_of
from .._core.errors import ConfigError
from .._core.ranking import Direction, best_of
from .._core.typing import PyTree
from ..data.position import Position
from ..step.state import TrainState
from ..step.task import Task
from .history import History, direction
from .throughput import Throughput

Mode = Literal["auto", "min", "max"]


class Histogram(NamedTuple):
    """How numbers are distributed: `counts` `[n]` between `edges` `[n + 1]`; those that are not finite are left out."""

    counts: np.ndarray
    edges: np.ndarray
    sum: float
    sum_of_squares: float


class Sample(NamedTuple):
    """What a model made of examples, as people look at it: text, or an image, uint8 `[H, W, C]`."""

    value: str | np.ndarray


@dataclasses.dataclass
class LoopContext:
    """What a callback gets: where the run stands. Numbers are on the host; only `state` is on the device.

    A loop written by hand makes one, `LoopContext(task, state)`, and keeps it up to date.

    Attributes:
      task: the Task.
      state: the TrainState; the next step consumes it, so copy what you keep. A callback may replace it by one
        of the same types.
      epoch: the current epoch, from 1.
      epochs: epochs in all, or None if the run counts steps.
      step: batches consumed so far.
      steps: steps in all, or None if unknown.
      steps_per_epoch: those of this epoch, or None if the data does not say.
      epoch_step: batches consumed in this epoch.
      batch_size: rows of a batch: of the last one, where `fit(batch_size=)` says when they grow.
      logs: values by name: running means of the epoch at `on_log`, whose `step` says where they were measured,
        the epoch's row at `on_epoch_end`. Entries added at `on_epoch_end` go into the history.
      validated: the columns that a validation inside an epoch has just measured, at its `on_validation_end`; empty
        everywhere else, at an epoch's end too.
      history: the rows so far.
      resumed: whether the run goes on from a checkpoint of its own.
      resumed_step: the step this process started at.
      run_dir: the run directory, or None.
      stop_reason: why the run will stop after this event, or None.
      diverged: at `on_fit_end`, whether the run came to nothing: no loss of it was finite, or the last one was not,
        and neither are the parameters.
      status: at `on_fit_end`, how the run ended: `"done"`, `"stopped"`, `"interrupted"` or `"diverged"`.
      rollback_reason: why the run goes back to its last good checkpoint after this event, or None.
      bad_steps: whether a callback has found the run's steps bad, so that the first is worth keeping.
      save_requested: whether a callback has asked for a checkpoint.
      data_seconds: how long the loop has waited for batches in all; None where nobody counts.
      compile_seconds: how long this call of `fit` has traced and compiled; 0 where nobody counts.
      throughput: how fast the steps since the log before were, at `on_log`; those of the epoch, its
        validation included (in a process's first epoch from behind the first dispatch, which compiles), at
        `on_epoch_end`. None where nothing was measured. No part of the history.
      rows_before: a function that says how many rows the batches up to a step have in all, padding included; None where
        all batches have `batch_size`.
      columns: a function that says which numbers an epoch logs; None where that is not known before.
      last_batch: the last batch and its weights, on the device, and whether they are stacked, one row a step;
        None unless a callback `wants_batch`, and again once the epoch's end was called.
      histograms: by name, for the callbacks that come after the one that made them; empty again at the epoch's end.
      samples: likewise.
    """

    task: Task
    state: TrainState
    epoch: int = 1
    epochs: int | None = None
    step: int = 0
    steps: int | None = None
    steps_per_epoch: int | None = None
    epoch_step: int = 0
    batch_size: int = 1
    logs: dict[str, Any] = dataclasses.field(default_factory=dict)
    validated: frozenset[str] = frozenset()
    history: History = dataclasses.field(default_factory=History)
    resumed: bool = False
    resumed_step: int = 0
    run_dir: Any = None
    stop_reason: str | None = None
    diverged: bool = False
    status: str = "running"
    rollback_reason: str | None = None
    bad_steps: bool = False
    save_requested: bool = False
    data_seconds: float | None = None
    throughput: Throughput | None = None
    rows_before: Callable[[int], int] | None = None
    columns: Callable[[], list[str]] | None = None
    last_batch: tuple[PyTree, Any, bool] | None = None
    histograms: dict[str, Histogram] = dataclasses.field(default_factory=dict)
    samples: dict[str, Sample] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0

    @property
    def position(self) -> Position:
        """Where the run stands in its data: the next batch, both numbers from 0."""
        return Position(self.epoch - 1, self.epoch_step)

    def stop(self, reason: str) -> None:
        """End the run after this event, in good order."""
        self.stop_reason = reason

    def roll_back(self, reason: str) -> None:
        """Go back to the last good checkpoint after this event, and on with the data behind this step.

        Raises:
          ConfigError: if there is no run directory that could hold one.
        """
        if self.run_dir is None:
            raise ConfigError("`roll_back` needs a run directory: `fit(..., run_dir=...)`")
        self.rollback_reason = reason

    def request_save(self) -> None:
        """Save a checkpoint of the run after this event.

        Raises:
          ConfigError: if there is no run directory to save it in.
        """
        if self.run_dir is None:
            raise ConfigError("`request_save` needs a run directory: `fit(..., run_dir=...)`")
        self.save_requested = True

    def direction(self, monitor: str, mode: Mode = "auto") -> Direction:
        """Which values of a column are better: `mode`, or for `"auto"` what the column's metric says.

        Raises:
          ConfigError: if `mode` is something else, or `"auto"` for a column that comes from no metric of the task.
        """
        one_of("mode", mode, ("auto", "min", "max"))
        if mode != "auto":
            return mode
        known = direction(self.task.metrics, monitor, self.history.prefixes)
        if known is None:
            raise ConfigError(
                f'`mode` must be "min" or "max" for {monitor!r}: whether more of it is better is not known, since no '
                f"metric of the task says so; got 'auto'"
            )
        return known

    def best_score(self, monitor: str = "val_loss", mode: Mode = "auto") -> float | None:
        """The best finite value of a column over the rows so far, this one included; None if none is.

        Raises:
          ConfigError: as `direction`.
        """
        better = self.direction(monitor, mode)
        now = self.logs.get(monitor) if self.logs.get("epoch") == self.epoch else None
        values = {"before": self.history.best(monitor, better), "now": now}
        best = best_of(values, better)
        return None if best is None else values[best]
