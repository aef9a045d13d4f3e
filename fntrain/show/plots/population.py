"""The curves of a population: every member, their mean, and the band that most of them are in."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._core import check
from ..._core.errors import ConfigError, DataError
from ..text import is_end, number_text, reading_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from .style import QUIET, TRAIN, VALIDATION, new_figure, saved, styled

_EACH = "_each"


def population(
    history: Mapping[str, Sequence[Any]],
    *,
    metrics: Iterable[str] | None = None,
    band: float = 0.8,
    title: str | None = None,
    path: str | PathLike[str] | None = None,
) -> "Figure":
    """Draw what the members of a population measured: a thin line each, their mean, and a band.

    One panel a column, over steps. Members that were let go end where they did. What is not finite is a gap, and left
    out of mean and band.

    Args:
      history: as `population.fit` returns it: `x_each` has an array a row, `members` the numbers of those in it.
      metrics: the columns to draw, `val_loss` say; None draws the loss and the scores, those of the validation where
        there is one.
      band: which part of the members it holds, in (0, 1).
      title: a line above the picture.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure.

    Raises:
      ConfigError: if Matplotlib is missing, or `metrics` names what `history` does not have for each member.
      DataError: if `history` is that of one run.

    Examples:
      >>> history = {"step": [1, 2], "val_loss_each": [[0.5, 0.7], [0.25, 0.5]]}
      >>> [axes.get_title(loc="left") for axes in population(history).axes]
      ['val_loss']
    """
    check.number("band", band, above=0, below=1)
    names = _chosen(history, metrics)
    with styled():
        figure = new_figure(8, 2.6 * len(names) + 0.4)
        if title is not None:
            figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
        above = None
        for i, name in enumerate(names):
            axes = figure.add_subplot(len(names), 1, i + 1, sharex=above)
            above = above or axes
            axes.set_title(name, loc="left")
            _panel(axes, *_lines(history, name), band, VALIDATION if name.startswith("val_") else TRAIN)
            if i < len(names) - 1:
                axes.tick_params(labelbottom=False)
        figure.axes[-1].set_xlabel("step")
        return saved(figure, path)


def _chosen(history: Mapping[str, Sequence[Any]], metrics: Iterable[str] | None) -> list[str]:
    have = [name.removesuffix(_EACH) for name in history if name.endswith(_EACH)]
    if not have:
        raise DataError(
            "`history` has no column of a population's members, such as `val_loss_each`; for one run, "
            "`plots.learning_curves`"
        )
    if metrics is None:
        have = [name for name in have if not is_end(name, have)]
        validated = [name for name in have if name.startswith("val_")]
        usual = [n for n in validated or have if not reading_order(n)[0]] or (validated or have)[:1]
        return sorted(usual, key=reading_order)
    metrics = list(metrics)
    for name in metrics:
        if name not in have:
            raise ConfigError(
                f"`metrics`: {name!r} has no values of members; there are {', '.join(have)}"
                + check.did_you_mean(name, have)
            )
    return metrics


def _lines(history: Mapping[str, Sequence[Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """`(steps [T], values [T, N])`, NaN where a member is not, or its value is not finite."""
    rows = history[name + _EACH]
    ids = history["members"] if "members" in history else [None] * len(rows)
    steps = history["step"] if "step" in history else range(1, len(rows) + 1)
    kept = [
        (step, np.asarray(x, np.float64), np.arange(len(x)) if i is None else np.asarray(i))
        for step, x, i in zip(steps, rows, ids)
        if x is not None and np.ndim(x) == 1
    ]
    if not kept:
        raise DataError(f"`history` has no row with a number a member of {name!r}")
    values = np.full((len(kept), 1 + max(int(i.max()) for _, _, i in kept)), np.nan)
    for row, (_, x, i) in enumerate(kept):
        values[row, i] = np.where(np.isfinite(x), x, np.nan)
    return np.array([step for step, _, _ in kept], np.float64), values


def _panel(axes: Any, steps: np.ndarray, values: np.ndarray, band: float, color: str) -> None:
    seen = np.isfinite(values)
    some = seen.any(1)
    inside = values[seen]
    if inside.size and (inside > 0).all() and inside.max() / inside.min() > 40:
        axes.set_yscale("log")
    alone = (seen.sum(0) == 1).any() or len(steps) == 1
    marks = {"marker": "o", "markersize": 2.5} if alone else {}
    axes.plot(
        steps, values, color=color, linewidth=0.6, alpha=max(0.2, 0.8 / np.sqrt(values.shape[1])), **marks
    )
    ends = ((1 - band) / 2, (1 + band) / 2)
    low, high = np.array([np.nanquantile(row, ends) for row in values[some]]).reshape(-1, 2).T
    mean = np.array([np.nanmean(row) for row in values[some]])
    axes.fill_between(steps[some], low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(steps[some], mean, color=color, **marks)
    if len(mean):
        count = int(seen[some][-1].sum())
        said = f"{number_text(float(mean[-1]))}\n{count} member{'s' * (count != 1)}"
        axes.annotate(
            said,
            (steps[some][-1], mean[-1]),
            (5, 0),
            textcoords="offset points",
            va="bottom",
            fontsize=9,
            color=QUIET,
        )
