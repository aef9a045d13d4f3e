"""Refusals of the verbs: what is no task, no batch, no metrics."""

from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.dtypes import check_numeric
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
_DTYPES: set[np.dtype] = set()  # of arrays of NumPy, likewise


def check_batch(batch: Any) -> None:
    """Refuse leaves that cannot be arrays on a device, by path."""
    for i, x in enumerate(jax.tree_util.tree_leaves(batch)):  # half as long as `jax.tree.leaves` takes
        kind = type(x)
        if kind in _NUMBERS or (kind is np.ndarray and x.dtype in _DTYPES):
            continue
        if isinstance(x, jax.Array | float | int):
            _NUMBERS.add(kind)
            continue
        _check_leaf(x, batch, i)


def refused_batch(batch: Any) -> DataError | None:
    """What `check_batch` would raise; None if it would not."""
    try:
        check_batch(batch)
    except DataError as error:
        return error
    return None


def _check_leaf(x: Any, batch: Any, i: int) -> None:
    where = f"`batch` leaf `{tree.paths(batch)[i]}`"  # asked for only here: paths cost more than the rest of a dispatch
    foreign = hasattr(x, "__array__") and not isinstance(x, np.ndarray | np.generic)
    if not hasattr(x, "dtype") or foreign:
        way = "; make it one, `np.asarray(x)`" if foreign else ""
        raise DataError(f"{where} must be an array, got {type(x).__name__}{way}")
    if isinstance(x, np.ma.MaskedArray):
        raise DataError(f"{where} is a masked array, whose mask no device takes: `x.filled(value)`")
    check_numeric(where, np.dtype(x.dtype))
    if not np.dtype(x.dtype).isnative:
        raise DataError(
            f"{where} has the other byte order, {x.dtype!r}: `x.astype(x.dtype.newbyteorder('='))`"
        )
    if type(x) is np.ndarray:
        _DTYPES.add(x.dtype)
