"""Steps of a run taken again: its order of data and its randomness follow from where it stands."""

from collections.abc import Iterator
from typing import NamedTuple

from ..data import feed as feed_lib
from ..data.feed import Feed, Piece
from ..data.position import Position
from ..step import members, programs
from ..step.packed import Packed
from ..step.state import TrainState
from ..step.task import Task


class Before(NamedTuple):
    """Where a run stands before a step; the next one consumes the state and the metrics."""

    step: int
    position: Position
    state: TrainState
    metrics: Packed  # of the epoch so far
    piece: Piece  # the step's batch, on the device
    ended: Packed | None  # right behind an epoch's end, the metrics of that epoch


def taken_again(
    task: Task, training: Feed, state: TrainState, metrics: Packed, position: Position
) -> Iterator[Before]:
    """Each step from a position on, before it is taken, one by one and epoch after epoch, by the run's own program.

    It ends where the data does. What callbacks did to the state between two steps is not done again.

    Args:
      task: the Task.
      training: the training data's feed.
      state: the state at the position; it is consumed.
      metrics: the metrics of the epoch so far, likewise.
      position: where the data stands.
    """
    step, (epoch, index) = int(members.first(state.step)), position
    ended = None
    while True:
        began = index
        for piece in training.pieces(Position(epoch, index), lambda done: 1):
            piece = feed_lib.on_device(piece)
            yield Before(step, Position(epoch, index), state, metrics, piece, ended)
            ended = None
            state, metrics, _ = feed_lib.train(task, state, metrics, piece)
            step, index = step + 1, index + 1
        if index == began == 0:
            return
        epoch, index, ended = epoch + 1, 0, metrics
        metrics = programs.started(training.empty, state)
