"""How many steps one dispatch takes: a function of the run, and of no clock."""

from collections.abc import Iterable

import jax

from .. import tree
from ..data.feed import Feed
from ..step.cost import cost_of
from ..step.state import TrainState
from ..step.task import Task

_MOST = 32  # steps in one dispatch on a CPU: beyond, next to nothing is gained
_MOST_AHEAD = 256  # on an accelerator, where a dispatch costs as much as many short steps
_HELD = 64 * 2**20  # bytes of batches, which are there at once where they travel
_BUSY = 0.1  # seconds: an interrupt, a progress bar and a callback wait for a dispatch
_LONG = 2e-3  # seconds: a dispatch is a few per cent of a step that takes longer
_FEW = 256  # steps: a run shorter than that ends before a second program is compiled


def choose(task: Task, state: TrainState, feed: Feed, steps: int | None, edges: Iterable[int]) -> int:
    """How many steps a dispatch should take: 1, or the number that cuts a span of batches best.

    Several, where a step is so short that sending it costs as much: as its program says, by operations, bytes, and
    the kind of device. There is one candidate, as each is a program to compile: the one that leaves the fewest
    dispatches. On one kind of machine the same run always takes the same number, wherever its data lies.

    Args:
      task: the Task.
      state: where the run starts; only its form counts.
      feed: the training data; anything but arrays and examples on one device is 1.
      steps: how long the run is, if known.
      edges: every how many steps there is something that a dispatch may not run over (a validation, a checkpoint).
    """
    if not feed.whole or (steps is not None and steps < _FEW):
        return 1
    span = min([feed.source.loader.cut.longest, *edges])
    device = next(iter(jax.tree.leaves(state)[0].devices()))
    if span < 2 or (seconds := cost_of(task, state, *feed.form).seconds(device)) >= _LONG:
        return 1
    most = _MOST
    if device.platform != "cpu":
        room = min(_HELD // max(1, tree.nbytes(feed.form[0])), int(_BUSY / seconds))
        most = min(_MOST_AHEAD, max(_MOST, room))
    return candidate(span, most)


def candidate(span: int, most: int = _MOST) -> int:
    """The chunk of at most so many steps that covers a span in the fewest dispatches, single ones for the rest."""
    return min(
        range(1, min(span, most) + 1),
        key=lambda k: (span if k == 1 else span // k + span % k, -k),
        default=1,
    )
