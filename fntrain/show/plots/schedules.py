"""A schedule over updates."""

import textwrap
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._core import check

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from .style import QUIET, TRAIN, new_figure, saved, styled, ticks


def schedule(
    schedule: Callable[[Any], Any], steps: int, *, path: str | PathLike[str] | None = None
) -> "Figure":
    """Draw a schedule over the optimizer's updates, with its boundaries marked if it tells them.

    Args:
      schedule: a function from the count of updates to a value, one of `schedules` or any other.
      steps: how many updates to draw, from 0 to `steps` inclusive.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure, titled with the schedule's repr.

    Raises:
      ConfigError: if Matplotlib is missing, `schedule` can't be called, or `steps` is no integer >= 1.

    Examples:
      >>> schedule(lambda step: 0.1 * 0.5 ** (step // 100), 300).axes[0].get_xlabel()
      'update'
    """
    check.function("schedule", schedule, "step -> value")
    steps = check.integer("steps", steps, at_least=1)
    marks = [int(b) for b in getattr(schedule, "boundaries", ()) if 0 < b < steps]
    around = [b + side for b in marks for side in (-1, 0)]  # a jump is upright, however few the points
    at = np.unique(np.r_[np.linspace(0, steps, min(steps, 2000) + 1).round(), around]).astype(np.int32)
    with styled():
        from matplotlib.ticker import StrMethodFormatter

        figure = new_figure(8, 3.4)
        axes = figure.add_subplot(xlabel="update", xlim=(0, steps))
        for mark in marks:
            axes.axvline(mark, color=QUIET, linewidth=0.9, linestyle=(0, (1, 3)))
        axes.plot(at, _values(schedule, at), color=TRAIN, clip_on=False)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(ticks())
        name = getattr(schedule, "__name__", None) if "<function" in repr(schedule) else repr(schedule)
        axes.set_title("\n".join(textwrap.wrap(name or "schedule", 90)), fontsize=10.5)
        return saved(figure, path)


def _values(schedule: Callable[..., Any], at: np.ndarray) -> np.ndarray:
    try:
        values = np.asarray(schedule(at), np.float64)
        if values.shape == at.shape:
            return values
    except Exception:  # a foreign function that takes one step at a time, whatever it says of an array
        pass
    return np.array([float(schedule(int(step))) for step in at])
