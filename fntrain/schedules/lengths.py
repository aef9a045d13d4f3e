"""Lengths that are fractions of a run, made numbers of updates once it is known how long the run is."""

from collections.abc import Mapping
from typing import Any, TypeVar

from .._core import check
from .._core.value import Value
from .types import LENGTHS, Schedule, fraction, updates

T = TypeVar("T")


def resolved(x: T, updates_in_run: int) -> T:
    """A schedule, or what has schedules in it, with lengths that are fractions of a run of so many updates made whole.

    `fit` does it by itself. In a loop of one's own it is `Task(loss_fn, schedules.resolved(tx, 1000))`.

    Args:
      x: a Schedule, a transform or an optimizer, or a list, tuple or dict of such.
      updates_in_run: how many optimizer updates the run makes, >= 1. A fraction f of them is the whole number next to
        it, and at least one.

    Returns:
      A value like `x`; `x` itself if nothing in it waits for a length.

    Raises:
      ConfigError: if `updates_in_run` is no integer >= 1, or the lengths do not fit one another.

    Examples:
      >>> import fntrain as ft
      >>> s = ft.schedules.warmup(ft.schedules.cosine(1e-3, 0.95), 0.05)
      >>> ft.schedules.resolved(s, 1000)
      warmup(schedule=cosine(start=0.001, steps=950), steps=50)
    """
    total = updates("updates_in_run", check.integer("updates_in_run", updates_in_run, at_least=1))
    return _resolved(x, total)


def waits(x: Any) -> bool:
    """Whether there is a schedule in it whose lengths are fractions of the run."""
    return _resolved(x, 2**20) is not x


def _resolved(x: Any, total: int) -> Any:
    if isinstance(x, Schedule) and not x.waits:
        return x
    if isinstance(x, Value):
        if x.call is None:
            return x
        given = x.call.arguments
        new = {name: _argument(name, value, total, isinstance(x, Schedule)) for name, value in given.items()}
        return x if all(new[name] is given[name] for name in given) else x.call.again(new)
    if isinstance(x, list | tuple) and type(x) in (list, tuple):
        items = type(x)(_resolved(item, total) for item in x)
        return x if all(a is b for a, b in zip(items, x)) else items
    if isinstance(x, Mapping):
        mapped = {key: _resolved(value, total) for key, value in x.items()}
        return x if all(mapped[key] is x[key] for key in mapped) else mapped
    return x


def _argument(name: str, value: Any, total: int, of_schedule: bool) -> Any:
    if of_schedule and name in LENGTHS and fraction(value):
        return max(1, round(value * total))
    if of_schedule and name == "parts":
        return [(_resolved(s, total), _argument("steps", n, total, True)) for s, n in value]
    return _resolved(value, total)
