"""Which of two numbers is better, and which of many is best: decided here and nowhere else."""

import math
import numbers
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import numpy as np

from .check import one_of

Direction = Literal["min", "max"]

K = TypeVar("K")


def improves(value: Any, best: Any, direction: Direction, margin: Any = 0.0, xp: Any = np) -> Any:
    """Whether `value` is finite, and better than `best` by more than `margin`.

    Args:
      value: a number, or an array of `xp`.
      best: likewise; where there is none yet, the worst there is.
      margin: likewise.
      direction: `"min"` or `"max"`.
      xp: `numpy` or `jax.numpy`, which computes it in a trace.
    """
    better = value < best - margin if direction == "min" else value > best + margin
    return better & xp.isfinite(value)


def of_loss(column: str) -> Direction | None:
    """`"min"` for a loss, by its name; None for what only a metric can tell of."""
    return "min" if column.rpartition("val_")[2] == "loss" else None


def best_of(values: Mapping[K, Any], direction: Direction) -> K | None:
    """The key of the best finite value, the first of equals; None if there is none.

    Examples:
      >>> best_of({1: 0.5, 2: float("nan"), 3: 0.25, 4: 0.25, 5: None}, "min")
      3
    """
    one_of("mode", direction, ("min", "max"))
    finite = {key: float(x) for key, x in values.items() if _is_number(x) and math.isfinite(x)}
    return (min if direction == "min" else max)(finite, key=finite.__getitem__, default=None)


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool)
