"""Learning curves: a panel a metric, training and validation together."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..text import Known, best_index, number_text
from .panels import SLIM, columns_of, interval, is_logarithmic, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
from .style import QUIET, TRAIN, VALIDATION, new_figure, saved, styled, ticks


def learning_curves(
    history: Mapping[str, Sequence[Any]],
    *,
    metrics: Iterable[str] | None = None,
    title: str | None = None,
    path: str | PathLike[str] | None = None,
) -> "Figure":
    """Draw what a run measured at each epoch, training and validation together.

    One panel a metric, with the last values written at the curves' ends and a ring at the best epoch (of the
    validation where there is one); below, slimmer, the learning rate and the gradient norm. An entry that is
    None, NaN or infinite is a gap. A loss that falls far is drawn on a logarithmic axis. A metric with an interval
    (`metrics.bootstrap`: `x_low` and `x_high` beside `x`) has a band around its curve.

    Args:
      history: column -> one value an epoch, as `fit` returns it. `val_x` belongs to `x`; a column `epoch`
        numbers the epochs, which else count from 1. Columns that hold no numbers are left out.
      metrics: the columns to draw, without `val_`; None draws all but those that only keep the books (counts,
        times).
      title: a line above the picture.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure.

    Raises:
      ConfigError: if Matplotlib is missing, or `metrics` names what `history` doesn't have.
      DataError: if there is nothing to draw, or the columns differ in length.

    Examples:
      >>> figure = learning_curves({"loss": [0.9, 0.5, 0.4], "val_loss": [0.8, 0.6, 0.7]})
      >>> [axes.get_title(loc="left") for axes in figure.axes]
      ['loss']
    """
    known = getattr(history, "direction", None)  # a run's history knows; of other mappings, the names tell
    epochs, columns = columns_of(history)
    length = len(epochs)
    names = panels(columns, metrics)
    tall = [name for name in names if name not in SLIM]
    slim = [name for name in SLIM if name in names]
    across = 1 if len(tall) <= 3 else 2
    cells = [*tall, *[None] * (-len(tall) % across), *slim]
    heights = [2.3 if i < len(tall) else 1.15 for i in range(0, len(cells), across)]
    with styled():
        from matplotlib.ticker import MaxNLocator

        figure = new_figure(8 if across == 1 else 13, sum(heights) + 0.4 + 0.3 * (title is not None))
        if title is not None:
            figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
        grid = figure.add_gridspec(len(heights), across, height_ratios=heights)
        bottom: dict[int, Axes] = {}
        labels: list[list[Any]] = []
        for i, name in enumerate(cells):
            if name is not None:
                axes = figure.add_subplot(grid[i // across, i % across], sharex=bottom.get(0))
                axes.tick_params(labelbottom=False)
                bottom[i % across] = axes
                labels.append(_panel(axes, epochs, columns, name, known))
        for axes in bottom.values():
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("epoch")
        pad = 0.5 if length == 1 else 0.015 * (epochs[-1] - epochs[0])
        figure.axes[0].set_xlim(epochs[0] - pad, epochs[-1] + pad)
        figure.axes[0].xaxis.set_major_locator(
            MaxNLocator(10, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
        )
        figure.draw_without_rendering()  # only now is it known where the labels stand
        for pair in labels:
            _separate(pair)
        return saved(figure, path)


def _panel(
    axes: "Axes", epochs: np.ndarray, columns: Mapping[str, np.ndarray], name: str, known: Known
) -> list[Any]:
    """Draw one panel and return the labels at the curves' ends."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    series = [("train", TRAIN, name), ("validation", VALIDATION, "val_" + name)]
    if name in SLIM:
        series = [("", QUIET, name)]
    series = [s for s in series if s[2] in columns and np.isfinite(columns[s[2]]).any()]
    shown = name.replace("_", " ")
    shown = shown if len(shown) <= 28 else "…" + shown[-27:]  # the other half of the line is the best value's
    axes.set_title(shown, loc="left")
    axes.margins(y=0.1)
    if not series:
        return []
    drawn = [x for _, _, column in series for x in (columns[column], *interval(columns, column))]
    together = np.concatenate(drawn)
    low, high = np.nanmin(together), np.nanmax(together)
    if is_logarithmic(name, low, high):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 400 else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3 if name in SLIM else 6))
    axes.yaxis.set_major_formatter(ticks())

    labels = []
    for label, color, column in series:
        values = columns[column]
        finite = np.isfinite(values)
        alone = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]  # no line would show these
        marked = finite if len(values) <= 40 and name not in SLIM else alone
        axes.plot(
            epochs,
            values,
            color=color,
            marker="o",
            markersize=3.2,
            linewidth=1.8 if len(values) <= 200 else 1.1,
            markevery=np.flatnonzero(marked).tolist(),
        )
        if ends := interval(columns, column):
            lowest, highest = ends
            axes.fill_between(epochs, lowest, highest, color=color, alpha=0.18, linewidth=0)
            if alone.any():  # which have no neighbour to make a band with
                axes.vlines(epochs[alone], lowest[alone], highest[alone], color=color, alpha=0.5, linewidth=3)
        last = values[finite][-1]
        labels.append(
            axes.annotate(
                f"{label} {number_text(last)}".strip(),
                (1, last),
                (7, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                va="center",
                color=color,
                fontsize=9.5,
            )
        )
    _mark_best(axes, epochs, columns[series[-1][2]], series[-1], known)
    return labels


def _mark_best(
    axes: "Axes", epochs: np.ndarray, values: np.ndarray, series: tuple[Any, ...], known: Known
) -> None:
    """A ring at the best epoch, and its value in the panel's head."""
    _, color, column = series
    best = best_index(column, values.tolist(), known)
    if best is not None and len(epochs) > 1:
        x, y = epochs[best], values[best]
        axes.axvline(x, color=color, linewidth=0.9, linestyle=(0, (1, 3)), zorder=1)
        axes.plot(
            x, y, "o", markersize=7.5, markerfacecolor="white", markeredgecolor=color, markeredgewidth=1.6
        )
        axes.set_title(
            f"best {number_text(y)} at epoch {x:.0f}",
            loc="right",
            color=color,
            fontsize=9.5,
            fontweight="normal",
        )


def _separate(labels: list[Any], gap: float = 13.0) -> None:
    """Move two labels apart that would stand in each other's way; `gap` in points."""
    if len(labels) < 2:
        return
    axes = labels[0].axes
    points = [axes.transData.transform((0, label.xy[1]))[1] * 72 / axes.figure.dpi for label in labels]
    upper, lower = sorted(range(2), key=lambda i: -points[i])
    short = gap - (points[upper] - points[lower])
    if short > 0:
        labels[upper].xyann = (7, short / 2)
        labels[lower].xyann = (7, -short / 2)
