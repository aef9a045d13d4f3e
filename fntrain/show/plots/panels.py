"""Which columns of a history make a picture, and how they belong together."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..._core import check
from ..._core.errors import DataError
from ..text import ENDS, better, is_end, reading_order

SLIM = ("learning_rate", "grad_norm")  # drawn below the metrics, at half their height


_BOOKKEEPING = re.compile(
    r"^(epochs?|steps?|mini_step|updates|examples|skipped|clip_factor|ema_decay|loss_scale|grad_norm_max)$"
    r"|second|memory|bytes|(^|_)time(_|$)"
    r"|/(tp|fp|fn|tn)$"  # counts, whose ratios are drawn
)


def bookkeeping(name: str) -> bool:
    """Whether a column only keeps the books: counts, times, memory."""
    return bool(_BOOKKEEPING.search(name))


def columns_of(history: Mapping[str, Sequence[Any]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The epochs, and the columns of numbers as float arrays, with NaN for what is missing or infinite.

    Raises:
      DataError: if there is no number, or the columns differ in length.
    """
    columns: dict[str, np.ndarray] = {}
    for name in history:
        try:
            values = np.array([np.nan if v is None else v for v in history[name]], np.float64)
        except (TypeError, ValueError):  # a table an epoch, or text
            continue
        if values.ndim == 1:
            columns[name] = np.where(np.isfinite(values), values, np.nan)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"the columns of `history` must have one entry an epoch each, got the lengths {lengths}"
        )
    if not any(lengths.values()):
        raise DataError("`history` must hold numbers of at least one epoch, got none")
    length = next(iter(lengths.values()))
    epochs = columns.pop("epoch", np.full(length, np.nan))
    return epochs if np.isfinite(epochs).all() else np.arange(1.0, length + 1), columns


def panels(columns: Mapping[str, np.ndarray], metrics: Iterable[str] | None) -> list[str]:
    """The names to draw, a metric and its validation being one.

    Raises:
      ConfigError: if `metrics` has a name that is not there.
      DataError: if there is nothing to draw.
    """
    there = sorted(dict.fromkeys(name.removeprefix("val_") for name in columns), key=reading_order)
    if metrics is None:
        measured = [name for name in columns if np.isfinite(columns[name]).any()]
        ends = {name for name in measured if is_end(name, columns)}
        names = [n for n in there if not bookkeeping(n) and {n, "val_" + n} & {*measured} - ends]
    else:
        names = [n.removeprefix("val_") for n in ([metrics] if isinstance(metrics, str) else metrics)]
        for name in names:
            check.one_of("metrics", name, there)
    if not names:
        raise DataError(f"there is no metric to draw; `history` has {', '.join(columns) or 'only epochs'}")
    return list(dict.fromkeys(names))


def interval(columns: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, ...]:
    """The ends of a column's intervals, `(low, high)`; nothing, if it has none."""
    ends = tuple(columns[name + end] for end in ENDS if name + end in columns)
    return ends if len(ends) == 2 else ()


def is_logarithmic(name: str, low: float, high: float) -> bool:
    """Whether a panel shows its values on a logarithmic axis: a loss that falls far."""
    return low > 0 and high / low > 40 and (better(name) is min or name == "grad_norm")
