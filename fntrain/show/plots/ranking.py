"""ROC and precision-recall curves."""

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._core.errors import DataError
from ..text import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
from .style import QUIET, TRAIN, new_figure, saved, styled


def roc_curve(
    fpr: Any, tpr: Any, auc: float | None = None, *, path: str | PathLike[str] | None = None
) -> "Figure":
    """Draw a receiver operating characteristic, with the diagonal that guessing would follow.

    Args:
      fpr: false positive rates, shape [N], as `scores.roc_auc` returns them.
      tpr: true positive rates, shape [N].
      auc: the area under the curve, for the title.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure.

    Raises:
      ConfigError: if Matplotlib is missing.
      DataError: if the two are not of one length, or no curve: rates in [0, 1], of which neither falls.

    Examples:
      >>> roc_curve([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0], auc=0.875).axes[0].get_title()
      'ROC curve, area 0.8750'
    """
    x, y = pair("fpr", fpr, "tpr", tpr)
    if not (_shares(x, y) and _rises(x) and _rises(y)):
        raise DataError(
            "`fpr` and `tpr` must be rates from 0 to 1 of which neither falls from point to point; the curve of labels "
            "and scores is `roc_curve(*fntrain.scores.roc_auc(y_true, y_score)[:2])`"
        )
    with styled():
        figure, axes = _unit_square("false positive rate", "true positive rate")
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (2, 3)))
        axes.annotate(
            "chance", (0.86, 0.86), (4, -4), textcoords="offset points", va="top", color=QUIET, fontsize=9
        )
        axes.fill_between(x, y, color=TRAIN, alpha=0.08, linewidth=0)
        axes.plot(x, y, color=TRAIN, linewidth=2.2, clip_on=False)
        axes.set_title("ROC curve" + (f", area {number_text(auc)}" if auc is not None else ""))
        return saved(figure, path)


def precision_recall_curve(
    precision: Any,
    recall: Any,
    average_precision: float | None = None,
    *,
    path: str | PathLike[str] | None = None,
) -> "Figure":
    """Draw precision against recall, in steps: no threshold reaches a point between two of the curve.

    Args:
      precision: precisions, shape [N], as `scores.precision_recall_curve` returns them.
      recall: recalls, shape [N].
      average_precision: the area under the steps, for the title.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure.

    Raises:
      ConfigError: if Matplotlib is missing.
      DataError: if the two are not of one length, or no curve: shares in [0, 1], and recalls that never rise (or never
        fall).

    Examples:
      >>> precision_recall_curve([0.5, 1.0, 1.0], [1.0, 0.5, 0.0], 0.75).axes[0].get_title()
      'precision and recall, average precision 0.7500'
    """
    y, x = pair("precision", precision, "recall", recall)
    if not (_shares(x, y) and (_rises(x) or _rises(-x))):
        raise DataError(
            "`precision` and `recall` must be shares from 0 to 1, the recalls in order; the curve of labels and scores "
            "is `precision_recall_curve(*fntrain.scores.precision_recall_curve(y_true, y_score)[:2])`"
        )
    with styled():
        figure, axes = _unit_square("recall", "precision")
        axes.fill_between(x, y, step="post", color=TRAIN, alpha=0.08, linewidth=0)
        axes.step(x, y, where="post", color=TRAIN, linewidth=2.2, clip_on=False)
        known = average_precision is not None
        axes.set_title(
            "precision and recall"
            + (f", average precision {number_text(average_precision)}" if known else "")
        )
        return saved(figure, path)


def pair(first: str, a: Any, second: str, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of the same length, or an error that names both."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape or x.size == 0:
        raise DataError(f"`{first}` and `{second}` must be [N] both, got the shapes {x.shape} and {y.shape}")
    return x, y


def _shares(*arrays: np.ndarray) -> bool:
    return all(not np.any((x < -1e-6) | (x > 1 + 1e-6)) for x in arrays)


def _rises(x: np.ndarray) -> bool:
    return not np.any(np.diff(x) < -1e-6)  # NaN, of labels of one class only, is a gap


def _unit_square(xlabel: str, ylabel: str) -> tuple["Figure", "Axes"]:
    figure = new_figure(4.8, 4.9)
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1.0), xlabel=xlabel, ylabel=ylabel, aspect="equal")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    return figure, axes
