"""The picture of a finding: lines over one axis, and the levels that they are held to."""

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..report.chart import Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from .style import QUIET, TRAIN, VALIDATION, new_figure, saved, styled

# c0 to c7 of a page.
COLORS = (TRAIN, VALIDATION, "#009e73", "#cc79a7", "#8a6d00", "#3b7ea1", "#7a4fbf", QUIET)


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    log: bool = False,
    path: str | PathLike[str] | None = None,
) -> "Figure":
    """Draw what a page's chart shows (`show.report.chart`), by Matplotlib.

    Args:
      title: what is drawn.
      series: the lines, at least one with a finite value; a dashed one is a level.
      x_label: what the horizontal axis counts.
      log: whether the vertical axis is logarithmic.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Raises:
      ConfigError: if Matplotlib is missing.
    """
    with styled():
        from matplotlib.ticker import MaxNLocator

        figure = new_figure(8, 3.8)
        axes: Any = figure.add_subplot(xlabel=x_label)
        axes.set_title(title, loc="left")
        axes.set_yscale("log" if log else "linear")
        for s in series:
            style = (
                {"linestyle": (0, (4, 3)), "linewidth": 1.2} if s.dashed else {"marker": "o", "markersize": 3}
            )
            y = np.array([np.nan if value is None else value for value in s.y], float)
            axes.plot(s.x, y, color=COLORS[s.color % 8], label=s.label, **style)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
        return saved(figure, path)
