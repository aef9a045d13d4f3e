"""Refusals of the verbs: what is no task, no batch, no metrics."""

from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.errors import ConfigError, DataError
from .packed import Packed
from .task import Task


def check_metrics(metrics: Any, name: str) -> None:
    """Refuse what no step returned."""
    if not isinstance(metrics, Packed):
        hint = "; a step returns two, `state, metrics = train_step(...)`" * isinstance(metrics, tuple)
        raise ConfigError(
            f"`{name}` must be the metrics that a step returned, got {type(metrics).__name__}{hint}"
        )


def check_task(task: Any, order: str = "(task, state, batch)") -> None:
    """Refuse what is no Task, the usual cause being swapped arguments."""
    if not isinstance(task, Task):
        # What a Task is made of is callable, or a pair of functions.
        made = "make one, `Task(loss_fn, tx)`: " if callable(task) or hasattr(task, "update") else ""
        raise ConfigError(f"`task` must be a Task, got {type(task).__name__}; {made}the order is {order}")


_NUMBERS: set[type] = set()  # types of leaves found to be fine: looking them up is faster than `isinstance`


def check_batch(batch: Any) -> None:
    """Refuse leaves that cannot be arrays on a device, by path."""
    for i, x in enumerate(jax.tree_util.tree_leaves(batch)):  # half as long as `jax.tree.leaves` takes
        kind = type(x)
        if kind in _NUMBERS or (kind is np.ndarray and x.dtype.kind not in "OUSMm"):
            continue
        if isinstance(x, jax.Array | float | int):
            _NUMBERS.add(kind)
            continue
        path = tree.paths(batch)[i]  # asked for only here: paths cost more than the rest of a dispatch
        if not hasattr(x, "dtype"):
            raise DataError(f"`batch` leaf `{path}` must be an array, got {type(x).__name__}")
        if np.dtype(x.dtype).kind in "OUSMm":
            raise DataError(
                f"`batch` leaf `{path}` has dtype {x.dtype}, which no device takes; encode it as numbers"
            )
