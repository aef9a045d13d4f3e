"""How many steps one dispatch takes: chosen by measurement, and only where it changes no bit."""

import time
from typing import Any

import jax
import numpy as np

from ..data import feed as feed_lib
from ..data.feed import Feed
from ..data.position import Position
from ..step import step as engine
from ..step.state import TrainState
from ..step.task import Task

_MOST = 32  # steps in one dispatch: beyond, next to nothing is gained
_LONG = 2e-3  # seconds: a dispatch is a few per cent of a step that takes longer
_FEW = 256  # steps: a run shorter than that ends before a second program is compiled
_GAIN = 0.95  # what is less of a gain than that may be noise


def choose(
    task: Task, state: TrainState, feed: Feed, steps: int | None, span: int, log_every: int = 0
) -> int:
    """How many steps a dispatch should take: 1, or the number that cuts a span of batches best.

    Both are tried on the first batches, with copies of the state. A number above 1 is taken if it is faster and
    gives the same bits. There is one candidate, as each is a program to compile: the one that leaves the fewest
    dispatches.

    Args:
      task: the Task.
      state: where the run starts; it stays usable.
      feed: the training data; anything but whole batches of arrays on one device is 1.
      steps: how long the run is, if known.
      span: steps between what a dispatch may not run over (an epoch's end, a validation, a checkpoint).
      log_every: which steps' values dispatches of several give as well; 0 for none.
    """
    if not feed.whole or (steps is not None and steps < _FEW):
        return 1
    chunk = candidate(min(span, feed.source.loader.whole))
    if chunk == 1:
        return 1
    one, seconds = _timed(task, state, feed, chunk, 1)
    if seconds > _LONG:
        return 1
    many, seconds_many = _timed(task, state, feed, chunk, chunk, log_every)
    return chunk if seconds_many < _GAIN * seconds and _same_bits(one, many) else 1


def candidate(span: int) -> int:
    """The chunk of at most 32 steps that covers `span` steps in the fewest dispatches, single ones for the rest."""
    return min(
        range(1, min(span, _MOST) + 1),
        key=lambda k: (span if k == 1 else span // k + span % k, -k),
        default=1,
    )


def _timed(
    task: Task, state: TrainState, feed: Feed, steps: int, chunk: int, log_every: int = 0
) -> tuple[Any, float]:
    """The outcome of the first `steps` steps, and seconds a step, compilation not counted."""
    result, best = None, float("inf")
    for _ in range(3):  # the first time compiles
        state_now, metrics = engine.copied(state), engine.copied(feed.empty)
        pieces = feed.pieces(Position(0, 0), lambda done: min(chunk, steps - done))
        jax.block_until_ready((state_now, metrics))
        began = time.perf_counter()
        for piece in pieces:
            state_now, metrics, _ = feed_lib.train(task, state_now, metrics, piece, log_every)
        result = jax.block_until_ready((state_now, metrics))
        best = min(best, (time.perf_counter() - began) / steps)
    return result, best


def _same_bits(a: Any, b: Any) -> bool:
    one, other = (jax.device_get(jax.tree.leaves((s.replace(key=None), metrics))) for s, metrics in (a, b))
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(one, other))
