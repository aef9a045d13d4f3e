"""What `fit` does about bad steps: notices them at log points, finds and keeps the first, goes back to a good state."""

import logging
import math
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core.errors import CheckpointError, ConfigError
from ..data import source as data_lib
from ..data.feed import Feed
from ..data.position import Position
from ..sharding.processes import to_host
from ..step import members, programs, provenance
from ..step.provenance import BadStep
from ..step.replaced import trains_itself
from ..step.state import TrainState
from ..step.task import Task
from ..transforms import loss_scale
from ..transforms.guard import all_finite
from ..transforms.types import Guard
from .again import taken_again
from .capsule import examine, save_capsule
from .directory import RunDirectory

_LOG = logging.getLogger("fntrain")


class Rescue:
    """Finds bad steps of a run, keeps the first one as a capsule, and knows the good states to go back to.

    The state before a bad step is gone when it is noticed: its buffers were donated. It is made again from the last
    checkpoint before it (or from what the run started with), step by step, as the order of the data and the
    randomness follow from the step. That takes a run directory, and data that can be read again.

    Args:
      task: the Task.
      training: the training data's feed.
      run: the run directory, or None.
      start: the state the run starts from, unless it is on disk: known as long as the caller of `fit` keeps it.
      position: the data's position at that state.
      reach: how many steps may be taken again for a capsule.
    """

    def __init__(
        self,
        task: Task,
        training: Feed,
        run: RunDirectory | None,
        start: "weakref.ref[TrainState] | None",
        position: Position,
        reach: int,
    ):
        self.task: Task = task
        self.training: Feed = training
        self.run: RunDirectory | None = run
        source = training.source
        again = isinstance(source, data_lib.Arrays) or (
            isinstance(source, data_lib.Stream)
            and (callable(source.source) or isinstance(source.source, list | tuple))
        )
        self._start, self._position = start, position
        self.reach: int = reach
        again = again and not trains_itself(task)  # a capsule is replayed by the step that is ours
        self.can_rebuild: bool = run is not None and reach > 0 and again and jax.process_count() == 1
        self.skipped = 0.0
        self.armed = True
        self.found: BadStep | None = None
        self.capsule: Path | None = None

    @property
    def start(self) -> tuple[TrainState, Position] | None:
        """What the run started with, if it is still there and no step has consumed it."""
        state = None if self._start is None else self._start()
        return None if state is None or state.updates.is_deleted() else (state, self._position)

    def watch(self, row: dict[str, Any], state: TrainState, last: int) -> None:
        """Look at a row of logs, and keep the first bad step that it shows as a capsule."""
        skipped = row.get("skipped", 0.0)
        bad = not math.isfinite(row.get("loss", 0.0)) or skipped > self.skipped
        self.skipped: Any = skipped
        # An overflow is how a loss scale finds its size: nothing to keep, unless a callback says so.
        if bad and self.armed and loss_scale(state.opt_state) is None:
            self.keep(state, last)

    def keep(self, state: TrainState, last: int) -> None:
        """Say which step was bad, and write its capsule if it can be made again.

        Args:
          state: the run's state, whose guard may know.
          last: the last step that may be it; without a guard, the first bad one up to there is looked for.
        """
        # A member of a population that diverges is a finding, and the others go on.
        if not self.armed or members.count(state) is not None:
            return
        known = noted(self.task, state)
        if known is None and is_guarded(state):  # what was skipped was a spike of finite numbers
            return
        self.armed: bool = False  # once a run: the first is the one to look into
        self.found, more = known, ""
        if self.can_rebuild:
            more = f"; it could not be made again for a capsule within `rebuild={self.reach}` steps of what is saved"
            try:
                found = self._rebuilt(
                    state, last if known is None or known.step is None else known.step, known
                )
                if found is not None:
                    self.found, before, piece = found
                    path = self.run.path / "capsules" / f"step_{self.found.step}"  # type: ignore[union-attr]
                    self.capsule = save_capsule(
                        path, self.task, before, piece.batch, piece.weight, bad=self.found
                    )
                    more = f"; look into it with `fntrain replay {path} --task MODULE:ATTRIBUTE`"
            except (
                CheckpointError,
                ConfigError,
                OSError,
            ) as error:  # a run does not end for want of a capsule
                more = f"; no capsule was written: {error}"
        if self.found is not None:
            _LOG.warning("%s%s", self.found, more)

    def _rebuilt(
        self, like: TrainState, last: int, known: BadStep | None
    ) -> tuple[BadStep, TrainState, Any] | None:
        """The first bad step up to `last`, the state before it, and its batch."""
        begun = self._before(like, last)
        if begun is None or last - int(begun[0].step) >= self.reach:
            return None
        start, metrics = programs.copied(begun[0]), programs.copied(self.training.empty)
        for before in taken_again(self.task, self.training, start, metrics, begun[1]):
            if known is None or before.step == last:
                piece = before.piece
                bad = examine(self.task, before.state, piece.batch, piece.weight)
                if bad is not None and (known is None or bad == known):
                    return bad, before.state, piece
            if before.step >= last:
                break
        return None

    def _before(self, like: TrainState, step: int) -> tuple[TrainState, Position] | None:
        """The last state on record at which this step, or an earlier one, had not been taken."""
        assert self.run is not None
        there = [saved for saved in self.run.checkpoints() if saved <= step]
        if there:
            checkpointer = self.run.checkpointer
            position = checkpointer.extra(step=there[-1])["position"]
            return checkpointer.restore(like, step=there[-1]), Position(*position)
        return self.start

    def good(self, like: TrainState) -> TrainState | None:
        """The newest saved state from before the last run of bad steps, with finite parameters."""
        if self.run is None:
            return None
        bad = noted(self.task, like)
        for step in sorted(self.run.checkpoints(), reverse=True):
            if bad is not None and bad.step is not None and step > bad.step:
                continue
            state = self.run.checkpointer.restore(like, step=step)
            if has_finite_params(state):
                _LOG.warning(
                    "back at the state of step %d, with the data behind step %d", step, int(like.step)
                )
                return state
        return None if self.start is None else programs.copied(self.start[0])


_all_finite = jax.jit(all_finite)
_each_finite = jax.jit(jax.vmap(all_finite))


def finite_params(state: TrainState) -> Any:
    """Whether a state's parameters are finite; of a population, `[N]`."""
    finite = _all_finite if members.count(state) is None else _each_finite
    return to_host(finite(tree.split(state.params)[0]))


def has_finite_params(state: TrainState) -> bool:
    """Whether a state's parameters are finite; of a population, whether some member's are."""
    return bool(np.any(finite_params(state)))


def noted(task: Task, state: TrainState) -> BadStep | None:
    """What a guard in the optimizer noted, if there is one, and it did."""
    return provenance.bad_step(task, state) if is_guarded(state) else None


def is_guarded(state: TrainState) -> bool:
    """Whether a guard in the optimizer notes bad steps."""
    return tree.has(state.opt_state, Guard)


def gone_back(good: TrainState, now: TrainState) -> TrainState:
    """A good state as one that goes on from here: the steps in between were taken, and their updates were not."""
    return good.replace(step=jnp.copy(now.step))
