"""A confusion matrix, drawn."""

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._core import check
from ..._core.errors import ConfigError, DataError
from ..text import number_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from .style import SHADES, new_figure, saved, styled


def confusion_matrix(
    matrix: Any,
    labels: Sequence[Any] | None = None,
    normalize: str | None = None,
    *,
    path: str | PathLike[str] | None = None,
) -> "Figure":
    """Draw a confusion matrix: true classes down, predicted classes across.

    A cell is shaded by its share of its true class, so that a rare class reads as well as a common one, and
    shows its count. Up to 25 classes the cells are written in; above that the shading must do.

    Args:
      matrix: counts, shape [K, K], true classes in rows.
      labels: K names of the classes; None numbers them from 0.
      normalize: what the cells show, and are shaded by: None counts (shaded by row), `"true"` shares of the
        row, `"pred"` of the column, `"all"` of everything.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure; its title says the accuracy, unless the matrix was normalised by class already.

    Raises:
      ConfigError: if Matplotlib is missing, `labels` are not K, or `normalize` is none of these.
      DataError: if `matrix` is not square, or holds what is no count.

    Examples:
      >>> confusion_matrix([[8, 2], [1, 9]], ["cat", "dog"]).axes[0].get_title()
      'accuracy 0.8500'
    """
    check.one_of("normalize", normalize, (None, "true", "pred", "all"))
    counts = np.asarray(matrix, np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.size == 0:
        raise DataError(f"`matrix` must be square, [classes, classes], got the shape {counts.shape}")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise DataError("`matrix` must hold counts >= 0, got negative or non-finite entries")
    k = len(counts)
    names = [str(x) for x in (range(k) if labels is None else labels)]
    if len(names) != k:
        raise ConfigError(f"`labels` must name the {k} classes of `matrix`, got {len(names)}")

    axis = {"pred": 0, "all": (0, 1)}.get(normalize or "true", 1)
    total = counts.sum(axis, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    whole = bool((counts == np.round(counts)).all())
    if normalize is not None or not whole:
        texts = np.vectorize(lambda x: f"{x:.2f}")(counts if normalize is None else shares)
    else:
        texts = np.vectorize(lambda x: f"{x:.0f}")(counts)

    with styled():
        from matplotlib.colors import LinearSegmentedColormap

        cell = float(np.clip(6.2 / k, 0.36 if k <= 25 else 0.0, 1.05))  # inches
        longest = max(map(len, names))
        figure = new_figure(cell * k + 1.7 + 0.07 * longest, cell * k + 1.3 + 0.05 * longest * (longest > 3))
        axes = figure.add_subplot()
        axes.grid(False)
        colours = LinearSegmentedColormap.from_list("share", SHADES)
        top = max(shares.max(), 1e-9) if normalize == "all" else 1.0
        image = axes.imshow(shares, cmap=colours, vmin=0, vmax=top)
        if k <= 25:
            size = min(11.0, 0.86 * cell * 72 / (0.62 * max(map(len, texts.ravel()))))
            light = image.to_rgba(shares)[..., :3] ** 2.2 @ [0.2126, 0.7152, 0.0722] > 0.18
            for (row, column), text in np.ndenumerate(texts):
                color = "#8f9aa6" if counts[row, column] == 0 else "black" if light[row, column] else "white"
                axes.text(column, row, text, ha="center", va="center_baseline", fontsize=size, color=color)
        every = next(10**i * n for i in range(9) for n in (1, 2, 5) if k <= 25 * 10**i * n)
        ticks = np.arange(0, k, every)
        upright = longest * 0.62 * 9 > 0.95 * every * cell * 72  # points of text, points of room
        axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90 if upright else 0)
        axes.set_yticks(ticks, [names[i] for i in ticks])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5 if k <= 25 else 0)
        axes.tick_params(which="minor", length=0)
        accuracy = _accuracy(counts)
        axes.set_title("confusion matrix" if accuracy is None else f"accuracy {number_text(accuracy)}")
        bar = figure.colorbar(image, shrink=0.6 if k > 4 else 0.75, aspect=24, pad=0.03)
        bar.outline.set_visible(False)  # type: ignore[operator]
        of = {"pred": "share of the predicted class", "all": "share of all"}
        bar.set_label(of.get(normalize or "", "share of the true class"))
        return saved(figure, path)


def _accuracy(counts: np.ndarray) -> float | None:
    """Add the diagonal up; None where rows or columns were normalised, and their sizes are lost."""
    whole = (counts == np.round(counts)).all()
    for axis in (0, 1):
        sums = counts.sum(axis)
        if not whole and np.all(np.isclose(sums, 1) | (sums == 0)):
            return None
    return float(np.trace(counts) / counts.sum()) if counts.sum() > 0 else None
