"""The losses of a learning-rate sweep."""

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..text import number_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from .ranking import pair
from .style import TRAIN, VALIDATION, new_figure, saved, styled, ticks


def lr_finding(
    learning_rates: Any,
    losses: Any,
    suggestion: float | None = None,
    *,
    each: Any = None,
    path: str | PathLike[str] | None = None,
) -> "Figure":
    """Draw the losses of a learning rate sweep, with the suggested rate marked.

    Args:
      learning_rates: the rates, shape [N], > 0.
      losses: the losses, shape [N]; those that are not finite are left out, and what is far above the first is
        cut off.
      suggestion: the rate to mark.
      each: of several sweeps, the losses of each, shape [M, N]: drawn as the band that 80 % of them are in.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure.

    Raises:
      ConfigError: if Matplotlib is missing.
      DataError: if the two are not of one length.

    Examples:
      >>> lr_finding([0.01, 0.1, 1.0], [2.0, 1.0, 9.0], 0.1).axes[0].get_title()
      'suggested learning rate 0.1000'
    """
    x, y = pair("learning_rates", learning_rates, "losses", losses)
    shown = np.where(np.isfinite(y), y, np.nan)
    with styled():
        figure = new_figure(8, 3.8)
        axes = figure.add_subplot(xlabel="learning rate", ylabel="loss", xscale="log")
        finite = shown[np.isfinite(shown)]
        if finite.size and (finite > 0).all() and finite.max() / finite.min() > 40:
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_formatter(ticks())
        axes.plot(x, shown, color=TRAIN)
        if each is not None:
            ends = np.quantile(np.where(np.isnan(each), np.inf, each), (0.1, 0.9), axis=0, method="nearest")
            low, high = np.where(np.isfinite(ends), ends, np.nan)
            axes.fill_between(x, low, high, color=TRAIN, alpha=0.18, linewidth=0)
        if finite.size:
            low, first = finite.min(), finite[0]
            top = min(finite.max(), first + 3 * abs(first))  # what diverges would flatten all the rest
            room = 0.05 * (top - low)
            if axes.get_yscale() == "log":
                axes.set_ylim(low / 1.3, top * 1.3)
            elif room > 0:
                axes.set_ylim(low - room, top + room)
        axes.set_xlim(x[0], x[-1])
        if suggestion is None:
            axes.set_title("the loss falls at no learning rate")
        else:
            axes.axvline(suggestion, color=VALIDATION, linewidth=1.2, linestyle=(0, (2, 3)))
            axes.set_title(f"suggested learning rate {number_text(float(suggestion))}")
        return saved(figure, path)
