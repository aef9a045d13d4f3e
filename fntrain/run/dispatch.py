"""How many steps one dispatch takes: a function of the run, and of no clock."""

import jax

from ..data.feed import Feed
from ..step.cost import cost_of
from ..step.state import TrainState
from ..step.task import Task

_MOST = 32  # steps in one dispatch: beyond, next to nothing is gained
_LONG = 2e-3  # seconds: a dispatch is a few per cent of a step that takes longer
_FEW = 256  # steps: a run shorter than that ends before a second program is compiled


def choose(task: Task, state: TrainState, feed: Feed, steps: int | None, span: int) -> int:
    """How many steps a dispatch should take: 1, or the number that cuts a span of batches best.

    Several, where a step is so short that sending it costs as much: as its program says, by operations, bytes, and
    the kind of device. There is one candidate, as each is a program to compile: the one that leaves the fewest
    dispatches. On one kind of machine the same run always takes the same number.

    Args:
      task: the Task.
      state: where the run starts; only its form counts.
      feed: the training data; anything but whole batches of arrays on one device is 1.
      steps: how long the run is, if known.
      span: steps between what a dispatch may not run over (an epoch's end, a validation, a checkpoint).
    """
    if not feed.whole or (steps is not None and steps < _FEW):
        return 1
    chunk = candidate(min(span, feed.source.loader.cut.whole))
    if chunk == 1:
        return 1
    device = next(iter(jax.tree.leaves(state)[0].devices()))
    return chunk if cost_of(task, state, *feed.form).seconds(device) < _LONG else 1


def candidate(span: int) -> int:
    """The chunk of at most 32 steps that covers `span` steps in the fewest dispatches, single ones for the rest."""
    return min(
        range(1, min(span, _MOST) + 1),
        key=lambda k: (span if k == 1 else span // k + span % k, -k),
        default=1,
    )
