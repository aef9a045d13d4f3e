"""For outer loops of one's own: an epoch, its steps one by one, and the metrics of a data set."""

from collections.abc import Callable, Iterator
from typing import Any

from .. import sharding
from .._core import check
from .._core.errors import ConfigError, DataError
from ..data import feed as feed_lib, source as data_lib
from ..data.feed import Feed
from ..data.position import Position
from ..step import checks, programs
from ..step.packed import Packed
from ..step.replaced import replaced
from ..step.state import TrainState, check_state
from ..step.task import Task
from .history import plain


def fetched(values: dict[str, Any]) -> dict[str, Any]:
    """Values on the host, in one fetch and in their order: a dict would come back sorted by name."""
    return dict(zip(values, sharding.to_host(list(values.values()))))


def updates_of(state: TrainState) -> Any:
    """How many updates a state has had, as an int; a list of them for states that are stacked."""
    return sharding.to_host(state.updates).tolist()


def evaluate(
    task: Task,
    state: TrainState,
    data: Any,
    *,
    batch_size: int = 32,
    eval_step: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """The task's metrics over a whole data set, each example counted once.

    Args:
      task: the Task.
      state: a TrainState; nothing is changed.
      data: as in `fit`.
      batch_size: rows of a batch, where `data` is arrays.
      eval_step: in the place of ours, as in `fit`.

    Returns:
      A dict of floats, `"loss"` and the task's metrics by name (NumPy arrays for those that are arrays).

    Raises:
      DataError: if the data is empty, or a scalar loss meets a padded tail.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], 0 * b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": np.float32(1)})
      >>> ft.evaluate(task, state, np.array([1.0, 2.0, 3.0], np.float32), batch_size=2)["loss"]
      4.666666507720947
    """
    checks.check_task(task, "(task, state, data)")
    task = replaced(task, eval_step=eval_step)
    feed = _feed("evaluate", task, state, data, batch_size, train=False, shuffle=False, seed=0)
    return plain(fetched(programs.reported(task, feed_lib.evaluated(feed, state))))


def steps(
    task: Task, state: TrainState, data: Any, *, batch_size: int = 32, shuffle: bool = True, seed: int = 0
) -> Iterator[tuple[TrainState, Packed]]:
    """Train on one epoch, step by step: a generator of what `train_step` returns, which waits for nothing.

    Args:
      task: the Task.
      state: the TrainState to start from; its arrays are consumed.
      data: as in `fit`; a loader gives the epoch that its position says, from there on.
      batch_size: rows of a batch, where `data` is arrays.
      shuffle: whether arrays are shuffled.
      seed: of their order.

    Yields:
      `(state, metrics)` after each step; the metrics are that step's, on the device.

    Raises:
      DataError: as `fit`.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], 0 * b), ft.optimizers.sgd(0.5))
      >>> state = ft.init_state(task, {"w": np.float32(1)})
      >>> for state, metrics in ft.steps(task, state, np.ones(6, np.float32), batch_size=2):
      ...     pass
      >>> int(state.step), float(ft.compute_metrics(task, metrics)["loss"])
      (3, 0.0)
    """
    feed = _feed("steps", task, state, data, batch_size, train=True, shuffle=shuffle, seed=seed)
    for piece in feed.pieces(_position(data), lambda done: 1):
        state, metrics, _ = feed_lib.train(task, state, None, piece)
        yield state, metrics


def run_epoch(
    task: Task,
    state: TrainState,
    data: Any,
    training: bool = True,
    *,
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int = 0,
) -> tuple[TrainState, dict[str, Any]]:
    """One epoch of training or of evaluation, and its metrics.

    Args:
      task: the Task.
      state: the TrainState to start from; training consumes its arrays.
      data: as in `fit`; a loader gives the epoch that its position says, from there on, and moves to the next.
      training: False evaluates, in the data's own order, and returns the state as it is.
      batch_size: rows of a batch, where `data` is arrays.
      shuffle: whether arrays are shuffled, in training.
      seed: of their order; another one each epoch, or a loader, gives another order.

    Returns:
      `(state, metrics)`; the metrics are values on the host.

    Raises:
      DataError: as `fit`.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], 0 * b), ft.optimizers.sgd(0.25))
      >>> state = ft.init_state(task, {"w": np.float32(1)})
      >>> state, metrics = ft.run_epoch(task, state, np.ones(4, np.float32), batch_size=2)
      >>> metrics["loss"], ft.run_epoch(task, state, np.ones(4, np.float32), training=False)[1]["loss"]
      (0.625, 0.0625)
    """
    if not isinstance(training, bool):
        raise ConfigError(
            f"`training` must be True or False, got {type(training).__name__}; `data` is one argument, columns and "
            f"all: `run_epoch(task, state, (x, y))`"
        )
    shuffle = shuffle and training
    feed = _feed("run_epoch", task, state, data, batch_size, train=training, shuffle=shuffle, seed=seed)
    if not training:
        return state, plain(fetched(programs.reported(task, feed_lib.evaluated(feed, state))))
    if feed.source.endless:
        raise DataError(
            "`data` has no end, and so an epoch of it has none: give a part of it, or take `steps`"
        )
    metrics = programs.started(feed.empty, state)
    for piece in feed.pieces(_position(data), lambda done: 1):
        state, metrics, _ = feed_lib.train(task, state, metrics, piece)
    if isinstance(data, data_lib.ArrayLoader):
        data.seek(data.position.epoch + 1)
    return state, plain(fetched(programs.reported(task, metrics)))


def _position(data: Any) -> Position:
    return data.position if isinstance(data, data_lib.ArrayLoader) else Position(0, 0)


def _feed(
    verb: str,
    task: Task,
    state: TrainState,
    data: Any,
    batch_size: int,
    *,
    train: bool,
    shuffle: bool,
    seed: int,
) -> Feed:
    checks.check_task(task, "(task, state, data)")
    check_state(state, verb)
    batch_size = check.integer("batch_size", batch_size, at_least=1)
    source = data_lib.as_source(data, batch_size, shuffle=shuffle, seed=seed)
    return Feed(task, state, source, train=train, name="data")
