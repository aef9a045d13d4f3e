"""Numbers, durations and columns as people read them."""

import itertools
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._core.ranking import Direction, best_of
from .._core.sizes import bytes_text as bytes_text

Known = Callable[[str], Direction | None] | None

_LOWER = {"loss", "error", "mse", "rmse", "mae", "huber", "nll", "entropy", "perplexity"}


_HIGHER = {"accuracy", "precision", "recall", "f1", "auc", "r2", "iou", "score"}


ENDS = ("_low", "_high")
"""What stands behind a column's name where it has the ends of the intervals of that column's values."""


BOUND = "_bound"
"""What stands behind it where it has the largest error that the column's values may have, as `roc_auc` says it."""


def better(name: str) -> Callable[..., Any] | None:
    """Say which is better for a column of that name, `min` or `max`; None where the name doesn't tell.

    Examples:
      >>> better("val_loss"), better("top_5_accuracy"), better("learning_rate")
      (<built-in function min>, <built-in function max>, None)
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    # loss_scale, roc_auc_bound, accuracy_low: not scores themselves
    if words & {"scale", "bound"} or name.endswith(ENDS):
        return None
    return min if words & _LOWER else max if words & _HIGHER else None


def reading_order(name: str) -> tuple[Any, ...]:
    """Sort columns as they are read: the loss, the scores, then those of the validation, rates and norms last.

    Examples:
      >>> sorted(["accuracy", "grad_norm", "learning_rate", "loss", "val_accuracy", "val_loss"], key=reading_order)
      ['loss', 'accuracy', 'val_loss', 'val_accuracy', 'learning_rate', 'grad_norm']
    """
    last = better(name) is None
    return (
        last,
        last and name != "learning_rate",
        name.startswith("val_"),
        name.removeprefix("val_") != "loss",
    )


def best_index(name: str, values: list[Any], known: "Known" = None) -> int | None:
    """Find the best finite value of a column (the first of equals); None if there is none.

    Which is better `known` says, a function of the column's name; of what it does not know (a file's, say), the name.
    """
    by_name = better(name)
    direction = (known and known(name)) or (by_name and by_name.__name__)
    return None if direction is None else best_of(dict(enumerate(values)), direction)  # type: ignore[arg-type]


def best_text(value: float, where: str) -> str:
    """Write which value of a column was the best, and where: the words by which a display knows that it is said.

    Examples:
      >>> best_text(0.125, "epoch 3")
      'the best is 0.125, of epoch 3'
    """
    return f"the best is {value:.6g}, of {where}"


def is_number(x: Any) -> bool:
    """Tell a real number on the host from an array, a table or None."""
    if isinstance(x, np.generic | np.ndarray) and not isinstance(
        x, numbers.Real
    ):  # bfloat16 is none to Python
        return x.shape == () and (
            jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
        )
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def number_text(x: Any) -> str:
    """Write a number with four significant digits, in eight characters where that is possible.

    Examples:
      >>> [number_text(x) for x in (0.95, 0.098765, 0.001, 0.00035, 1234.5, 40000.0, 7, float("nan"), None)]
      ['0.9500', '0.09877', '0.001', '3.5e-4', '1234', '40000', '7', 'nan', '-']
    """
    if not is_number(x):
        return "-"
    x = x if isinstance(x, numbers.Real) else float(x)
    size = abs(x)
    if isinstance(x, numbers.Integral) or not math.isfinite(x) or (x == int(x) and size != 1 and size < 1e7):
        return f"{x:.0f}"  # a count; an accuracy of one is written 1.000
    if 1e-3 <= size < 9999.5:
        text = f"{x:#.4g}".rstrip(".")  # with its zeros: 0.9500 stands under 0.9612
        return text.rstrip("0") if size < 0.0999 and text.endswith("00") else text  # but not 0.001000
    if 1 < size < 1e7:
        return f"{x:.0f}"
    mantissa, exponent = f"{x:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def tick_texts(values: Sequence[float]) -> list[str]:
    """Write the numbers beside an axis: where they are evenly spaced, in one unit, with one number of decimals.

    Examples:
      >>> tick_texts([0, 0.5, 1.0]), tick_texts([0.75, 1.0, 1.25]), tick_texts([0.1, 1, 10])
      (['0.0', '0.5', '1.0'], ['0.75', '1.00', '1.25'], ['0.1', '1', '10'])
      >>> tick_texts([0, 5000, 10000]), tick_texts([5e-5, 1e-4])
      (['0', '5k', '10k'], ['0.5e−4', '1.0e−4'])
    """
    values = [float(v) for v in values]
    spaces = [b - a for a, b in itertools.pairwise(values)]
    if spaces and max(spaces) - min(spaces) > 1e-6 * max(map(abs, spaces)):
        return [text for value in values for text in tick_texts([value])]
    top = max(map(abs, values), default=0.0)
    if 0 < top < 1e-3:
        exponent = math.floor(math.log10(top))
        unit, behind = 10.0**exponent, f"e{exponent}"
    else:
        unit, behind = next(
            (u for u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if top >= max(u[0], 1e4)), (1.0, "")
        )
    least = 1e-6 * (min(map(abs, spaces)) if spaces else top) / unit
    of_it = [v / unit for v in values]
    decimals = next((d for d in range(15) if all(abs(v - round(v, d)) <= least for v in of_it)), 15)
    texts = [
        f"{round(v, decimals) + 0.0:.{decimals}f}{behind if abs(v) > least else ''}" for v in of_it
    ]  # no -0
    return [text.replace("-", "−") for text in texts]


def is_confusion(value: Any) -> bool:
    """Tell a confusion matrix, under whatever name: a square of 2 to 50 rows, of numbers of which none is negative."""
    return (
        isinstance(value, list)
        and 2 <= len(value) <= 50
        and all(isinstance(row, list) and len(row) == len(value) for row in value)
        and all(is_number(x) and x >= 0 for row in value for x in row)
    )


def is_end(name: str, columns: Iterable[str]) -> bool:
    """Tell the end of an interval, or the bound of an error, whose value (and other end) is there too.

    Examples:
      >>> columns = ["accuracy", "accuracy_low", "accuracy_high", "pass_low", "auc", "auc_bound", "out_of_bound"]
      >>> [name for name in columns if is_end(name, columns)]
      ['accuracy_low', 'accuracy_high', 'auc_bound']
    """
    if name.endswith(BOUND):
        return name.removesuffix(BOUND) in columns
    value = next((name.removesuffix(end) for end in ENDS if name.endswith(end)), None)
    return value is not None and {value, *(value + end for end in ENDS)} <= {*columns}


def value_text(name: str, row: Mapping[str, Any]) -> str:
    """Write the value of a row's column, with its interval if the row has that, and with an error that would show.

    Examples:
      >>> row = {"loss": 0.5, "accuracy": 0.93, "accuracy_low": 0.912, "accuracy_high": 0.95}
      >>> value_text("loss", row), value_text("accuracy", row)
      ('0.5000', '0.9300 [0.9120, 0.9500]')
      >>> value_text("auc", {"auc": 0.93, "auc_bound": 2e-6}), value_text("auc", {"auc": 0.93, "auc_bound": 0.002})
      ('0.9300', '0.9300 ± 0.002')
    """
    ends = [row.get(name + end) for end in ENDS]
    interval = f" [{', '.join(map(number_text, ends))}]" if all(map(is_number, ends)) else ""
    value, bound = row.get(name), row.get(name + BOUND)
    if not (is_number(value) and is_number(bound)):
        return number_text(value) + interval
    shows = not float(bound) < 5e-5 * abs(float(value))  # type: ignore[arg-type]  # in the digits that are written
    return number_text(value) + (f" ± {number_text(bound)}" if shows else "") + interval


def duration_text(seconds: float) -> str:
    """Write seconds as `0:07`, `12:34`, `1:02:03` or `2 d 03:04:05`.

    Examples:
      >>> [duration_text(s) for s in (7.4, 754, 3723, 2 * 86400 + 11045)]
      ['0:07', '12:34', '1:02:03', '2 d 03:04:05']
    """
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h:02}:{m:02}:{s:02}"
    return f"{h}:{m:02}:{s:02}" if h else f"{m}:{s:02}"


def spent_text(seconds: float) -> str:
    """Write what something took: as `duration_text` from ten seconds on, and less in seconds, with what tells.

    Examples:
      >>> [spent_text(s) for s in (0, 0.00042, 0.58, 7.43, 754)]
      ['0.0 s', '0.42 ms', '0.58 s', '7.4 s', '12:34']
    """
    if round(seconds, 1) >= 10:
        return duration_text(seconds)
    return f"{1e3 * seconds:.2g} ms" if 0 < seconds < 0.01 else f"{seconds:#.2g} s"
