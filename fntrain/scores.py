"""Scores of whole arrays on the host, in float64: scikit-learn's values, names and order of arguments.

All take NumPy or JAX arrays (or lists), `y_true` first. What is undefined is NaN, without a warning; what cannot be
scored at all is a DataError. For data that comes in batches, see `fntrain.metrics`.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from ._core import check
from ._core.errors import ConfigError, DataError
from ._core.public import surface
from .resample import Comparison as Comparison, bootstrap as bootstrap, compare as compare


def classification_metrics(
    y_true: Any, y_pred: Any, *, sample_weight: Any = None, undefined: bool = False
) -> dict[str, float]:
    r"""Accuracy, and the macro averages of precision, recall and F1.

    .. math:: P_c = \frac{TP_c}{TP_c + FP_c}, \quad R_c = \frac{TP_c}{TP_c + FN_c}, \quad
              F_c = \frac{2\, TP_c}{2\, TP_c + FP_c + FN_c}

    averaged over the classes that occur in `y_true` or `y_pred`; a ratio with nothing to divide by is 0.

    Args:
      y_true: labels, `[N]`: integers, strings, booleans.
      y_pred: predicted labels, `[N]`.
      sample_weight: weights, `[N]`; None is ones.
      undefined: True adds `"undefined"`, the number of classes whose precision or recall had nothing to divide
        by.

    Returns:
      A dict of floats: `accuracy`, `precision`, `recall`, `f1`, in 0 to 1.

    Raises:
      DataError: if the arrays are empty, not one-dimensional, or differ in length.

    Examples:
      >>> import fntrain as ft
      >>> result = ft.scores.classification_metrics([0, 1, 2, 0, 1, 2], [0, 2, 1, 0, 1, 2])
      >>> {name: round(value, 4) for name, value in result.items()}
      {'accuracy': 0.6667, 'precision': 0.6667, 'recall': 0.6667, 'f1': 0.6667}
    """
    matrix = confusion_matrix(y_true, y_pred, sample_weight=sample_weight).astype(np.float64)
    hits, predicted, actual = np.diagonal(matrix), matrix.sum(0), matrix.sum(1)
    scores = {
        "accuracy": _ratio(hits.sum(), matrix.sum()),
        "precision": _ratio(hits, predicted).mean(),
        "recall": _ratio(hits, actual).mean(),
        "f1": _ratio(2 * hits, predicted + actual).mean(),
    }
    if undefined:
        scores["undefined"] = np.count_nonzero((predicted == 0) | (actual == 0))
    return {name: float(value) for name, value in scores.items()}


def binary_classification_metrics(
    y_true: Any, y_pred: Any, threshold: float = 0.5, *, sample_weight: Any = None
) -> dict[str, float]:
    r"""Counts and ratios of a yes-or-no decision: yes where the score is at least `threshold`.

    Args:
      y_true: labels, `[N]`: 0 and 1, booleans, or -1 and 1.
      y_pred: probabilities, or any scores, `[N]`.
      threshold: the least score that is a yes, compared in the scores' own precision.
      sample_weight: weights, `[N]`; None is ones.

    Returns:
      A dict: `accuracy`, `precision`, `recall`, `f1`, floats, 0 where there is nothing to divide by; `tp`, `tn`,
      `fp`, `fn`, ints, or sums of weights.

    Raises:
      ConfigError: if `threshold` is no finite number.
      DataError: if the arrays are empty or do not fit, labels are not two, or a score is NaN.

    Examples:
      >>> import fntrain as ft
      >>> result = ft.scores.binary_classification_metrics([1, 0, 1, 1], [0.9, 0.5, 0.2, 0.5])
      >>> result["tp"], result["fp"], result["fn"], result["accuracy"]
      (2, 1, 1, 0.5)
    """
    check.number("threshold", threshold)
    positive, scores, weight = _binary(y_true, y_pred, "y_pred", sample_weight)
    own = np.asarray(y_pred).dtype
    guess = scores >= np.float64(np.asarray(threshold).astype(own if own.kind not in "biu" else np.float64))
    amounts = np.ones(len(scores), np.int64) if weight is None else weight
    tp, tn, fp, fn = (
        amounts[x].sum().item()
        for x in (positive & guess, ~positive & ~guess, ~positive & guess, positive & ~guess)
    )
    return {
        "accuracy": float(_ratio(tp + tn, tp + tn + fp + fn)),
        "precision": float(_ratio(tp, tp + fp)),
        "recall": float(_ratio(tp, tp + fn)),
        "f1": float(_ratio(2 * tp, 2 * tp + fp + fn)),
        "tp": tp,
        "tn": tn,
        "fp": fp,
        "fn": fn,
    }


def confusion_matrix(
    y_true: Any,
    y_pred: Any,
    normalize: str | bool | None = None,
    *,
    labels: Any = None,
    sample_weight: Any = None,
) -> np.ndarray:
    """How often each true label (row) was predicted as each label (column).

    Args:
      y_true: labels, `[N]`: integers, strings, booleans.
      y_pred: predicted labels, `[N]`.
      normalize: None or False for counts; True or `"true"` divides each row by its sum, `"pred"` each column,
        `"all"` everything by the total; 0 where there is nothing to divide.
      labels: which labels, in which order, `[C]`; elements with others are left out. None is all that occur,
        sorted.
      sample_weight: weights, `[N]`; None is ones.

    Returns:
      `[C, C]`, int64; float64 if normalised or weighted.

    Raises:
      ConfigError: if `normalize` is unknown, or `labels` has duplicates.
      DataError: if the arrays are empty, not one-dimensional, differ in length, share no label with `labels`, or
        hold labels of different kinds (text and numbers), or floats too large to tell integers apart.

    Examples:
      >>> import fntrain as ft
      >>> ft.scores.confusion_matrix([0, 1, 2, 0, 1, 2], [0, 2, 1, 0, 1, 2]).tolist()
      [[2, 0, 0], [0, 1, 1], [0, 1, 1]]
    """
    if isinstance(normalize, bool):
        normalize = "true" if normalize else None
    check.one_of("normalize", normalize, (None, "true", "pred", "all"))
    true, pred, weight = _pair(y_true, y_pred, "y_pred", sample_weight)
    for name, y in (("y_true", true), ("y_pred", pred)):
        if y.ndim != 1:
            raise DataError(f"`{name}` must be labels of shape [N], got {list(y.shape)}")
    given = {
        "y_true": true,
        "y_pred": pred,
        **({} if labels is None else {"labels": _array("labels", labels)}),
    }
    true, pred, *chosen = _labels(given)
    occurring, codes = np.unique(np.concatenate([true, pred]), return_inverse=True)
    rows, columns = np.split(codes.reshape(-1), 2)
    size = len(occurring)
    cells = np.bincount(rows * size + columns, weights=weight, minlength=size * size)
    matrix = cells.reshape(size, size)
    if labels is not None:
        matrix = _rearranged(matrix, occurring, chosen[0], true)
    if normalize is None:
        return matrix
    axis = {"true": 1, "pred": 0, "all": None}[normalize]
    return _ratio(matrix.astype(np.float64), matrix.sum(axis=axis, keepdims=True))


def roc_auc(
    y_true: Any, y_score: Any, *, sample_weight: Any = None, drop_intermediate: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    r"""The ROC curve and the area under it.

    .. math:: \mathrm{FPR}_t = \frac{\#\{s_i \ge t, y_i = 0\}}{\#\{y_i = 0\}}, \qquad
              \mathrm{TPR}_t = \frac{\#\{s_i \ge t, y_i = 1\}}{\#\{y_i = 1\}}

    Args:
      y_true: labels, `[N]`: 0 and 1, booleans, or -1 and 1.
      y_score: scores of any scale, `[N]`.
      sample_weight: weights, `[N]`; None is ones.
      drop_intermediate: leave out points on a straight line between their neighbours.

    Returns:
      `(fpr, tpr, thresholds, auc)`: the curve from (0, 0), at threshold +inf, to (1, 1), one point for each
      distinct score, falling; and the area by trapezoids. If a class is missing, its rate and the area are NaN.

    Raises:
      DataError: if the arrays are empty or do not fit, labels are not two, or a score is not finite.

    Examples:
      >>> import fntrain as ft
      >>> fpr, tpr, thresholds, auc = ft.scores.roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
      >>> fpr.tolist(), tpr.tolist(), auc
      ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0], 0.75)
    """
    curve = _curve(y_true, y_score, sample_weight)
    if drop_intermediate and len(curve.fp) > 2:
        bend = np.ones(len(curve.fp), bool)
        bend[1:-1] = (np.diff(curve.fp, 2) != 0) | (np.diff(curve.tp, 2) != 0)
        curve = _Curve(*(x[bend] for x in curve))
    fp, tp = (np.concatenate([[0.0], x]) for x in (curve.fp, curve.tp))
    fpr, tpr = (x / x[-1] if x[-1] > 0 else np.full_like(x, np.nan) for x in (fp, tp))
    thresholds = np.concatenate([[np.inf], curve.thresholds.astype(np.float64)])
    return fpr, tpr, thresholds, float(np.trapezoid(tpr, fpr))


def roc_auc_score(
    y_true: Any, y_score: Any, *, average: str | None = "macro", sample_weight: Any = None
) -> float | np.ndarray:
    """The area under the ROC curve, also of several classes, one against the rest, or several labels.

    Args:
      y_true: labels, `[N]`: two values with `y_score` `[N]`, or integers in [0, C); or 0 and 1, `[N, C]`.
      y_score: scores, `[N]` or `[N, C]`.
      average: over classes: `"macro"`, `"weighted"` (by their weights of positives) or None for all of them.
      sample_weight: weights, `[N]`; None is ones.

    Returns:
      A float, or `[C]` for `average=None`; NaN where a class has no positives or no negatives.

    Raises:
      ConfigError: if `average` is unknown.
      DataError: as `roc_auc`.

    Examples:
      >>> import fntrain as ft
      >>> ft.scores.roc_auc_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
      0.75
    """
    return _averaged(
        lambda y, s: roc_auc(y, s, sample_weight=sample_weight)[3], y_true, y_score, average, sample_weight
    )


def precision_recall_curve(
    y_true: Any, y_score: Any, *, sample_weight: Any = None, drop_intermediate: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Precision and recall at every distinct score.

    .. math:: P_t = \frac{\#\{s_i \ge t, y_i = 1\}}{\#\{s_i \ge t\}}, \qquad
              R_t = \frac{\#\{s_i \ge t, y_i = 1\}}{\#\{y_i = 1\}}

    Args:
      y_true: labels, `[N]`: 0 and 1, booleans, or -1 and 1.
      y_score: scores of any scale, `[N]`.
      sample_weight: weights, `[N]`; None is ones.
      drop_intermediate: leave out points between others of the same number of true positives.

    Returns:
      `(precision, recall, thresholds)`: thresholds rising, and one point more than thresholds, the last being
      precision 1 and recall 0. Without positives, recall is NaN but there.

    Raises:
      DataError: if the arrays are empty or do not fit, labels are not two, or a score is not finite.

    Examples:
      >>> import fntrain as ft
      >>> precision, recall, thresholds = ft.scores.precision_recall_curve([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
      >>> recall.tolist(), thresholds.tolist()
      ([1.0, 1.0, 0.5, 0.5, 0.0], [0.1, 0.35, 0.4, 0.8])
    """
    curve = _curve(y_true, y_score, sample_weight)
    if drop_intermediate and len(curve.fp) > 2:
        steps = np.diff(curve.tp) != 0
        keep = np.concatenate([[True], steps[:-1] | steps[1:], [True]])
        curve = _Curve(*(x[keep] for x in curve))
    precision = _ratio(curve.tp, curve.tp + curve.fp)
    recall = curve.tp / curve.tp[-1] if curve.tp[-1] > 0 else np.full_like(curve.tp, np.nan)
    ends = np.array([1.0]), np.array([0.0])
    return (
        np.concatenate([precision[::-1], ends[0]]),
        np.concatenate([recall[::-1], ends[1]]),
        curve.thresholds[::-1],
    )


def average_precision_score(
    y_true: Any, y_score: Any, *, average: str | None = "macro", sample_weight: Any = None
) -> float | np.ndarray:
    r"""Average precision: the area under the precision-recall curve, by steps.

    .. math:: \mathrm{AP} = \sum_k (R_k - R_{k-1}) P_k

    Args:
      y_true: labels, `[N]`: two values with `y_score` `[N]`, or integers in [0, C); or 0 and 1, `[N, C]`.
      y_score: scores, `[N]` or `[N, C]`.
      average: over classes: `"macro"`, `"weighted"` (by their weights of positives) or None for all of them.
      sample_weight: weights, `[N]`; None is ones.

    Returns:
      A float, or `[C]` for `average=None`; NaN where a class has no positives.

    Raises:
      ConfigError: if `average` is unknown.
      DataError: as `precision_recall_curve`.

    Examples:
      >>> import fntrain as ft
      >>> round(float(ft.scores.average_precision_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])), 4)
      0.8333
    """

    def one(y, s):
        curve = _curve(y, s, sample_weight)
        if curve.tp[-1] == 0:
            return np.nan
        gained = np.diff(curve.tp, prepend=0)
        return np.sum(gained * _ratio(curve.tp, curve.tp + curve.fp)) / curve.tp[-1]

    return _averaged(one, y_true, y_score, average, sample_weight)


def regression_metrics(y_true: Any, y_pred: Any, *, sample_weight: Any = None) -> dict[str, float]:
    r"""Mean squared error, its root, mean absolute error, and the coefficient of determination.

    .. math:: R^2 = 1 - \frac{\sum_i w_i (y_i - \hat y_i)^2}{\sum_i w_i (y_i - \bar y)^2}

    Constant targets have R² 1 if every prediction is exact, else 0. Several outputs, `[N, D]`, are averaged
    evenly.

    Args:
      y_true: targets, `[N]` or `[N, D]`.
      y_pred: predictions, of the same shape.
      sample_weight: weights, `[N]`; None is ones.

    Returns:
      A dict of floats: `mse`, `rmse`, `mae`, `r2`; `r2` is NaN for less than two rows.

    Raises:
      DataError: if the arrays are empty, differ in shape, or hold NaN or infinity.

    Examples:
      >>> import fntrain as ft
      >>> ft.scores.regression_metrics([3.0, -0.5, 2.0, 7.0], [2.5, 0.0, 2.0, 8.0])["mse"]
      0.375
    """
    true, pred, weight = _pair(y_true, y_pred, "y_pred", sample_weight)
    if true.ndim not in (1, 2) or true.shape != pred.shape:
        raise DataError(
            f"`y_true` and `y_pred` must have one shape, [N] or [N, D], got {list(true.shape)} and "
            f"{list(pred.shape)}"
        )
    true, pred = (_finite(name, y.astype(np.float64)) for name, y in (("y_true", true), ("y_pred", pred)))
    rows = len(true)
    true, pred = true.reshape(rows, -1), pred.reshape(rows, -1)
    w = np.ones((rows, 1)) if weight is None else weight[:, None]
    mean = functools.partial(np.average, axis=0, weights=w[:, 0])
    with np.errstate(over="ignore"):  # what is infinite in float64 is said to be
        (true, own), (error, unit) = _in_units(true), _in_units(true - pred)
        spread = mean(np.square(true - mean(true)))
        spread = np.where((true == true[:1]).all(0), 0, spread)  # the rounding of a mean is no spread
        square = mean(np.square(error))
        left = square / np.where(spread == 0, 1, spread) * np.square(unit / own)
        r2 = np.where(spread == 0, np.where(square == 0, 1.0, 0.0), 1 - left)
        return {
            "mse": float((square * unit * unit).mean()),
            "rmse": float((np.sqrt(square) * unit).mean()),
            "mae": float((mean(np.abs(error)) * unit).mean()),
            "r2": float(r2.mean()) if rows >= 2 else float("nan"),
        }


def _in_units(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns in units of a power of two, in which their squares neither vanish nor overflow, and the units."""
    unit = np.exp2(np.floor(np.log2(np.maximum(np.abs(x).max(0), np.finfo(np.float64).tiny))))
    return x / unit, unit


def spearman(y_true: Any, y_pred: Any, *, sample_weight: Any = None) -> float:
    r"""Spearman's rank correlation: Pearson's, of the ranks.

    .. math:: \rho = \frac{\operatorname{Cov}_w(r_y, r_{\hat y})}
                         {\sqrt{\operatorname{Var}_w(r_y) \operatorname{Var}_w(r_{\hat y})}}

    Equal numbers share the mean of their ranks. A weight counts a row so many times: ranks are sums of weights.

    Args:
      y_true: targets, `[N]`: numbers, of which only the order counts.
      y_pred: predictions, `[N]`.
      sample_weight: weights, `[N]`; None is ones.

    Returns:
      A float in [-1, 1]; NaN if one of the two is constant.

    Raises:
      DataError: if the arrays are empty, differ in shape, are no real numbers, or hold NaN.

    Examples:
      >>> import fntrain as ft
      >>> ft.scores.spearman([1.0, 2.0, 3.0, 4.0], [1.0, 10.0, 5.0, 1000.0])
      0.8

    References:
      Spearman, *The Proof and Measurement of Association between Two Things*, 1904; `scipy.stats.spearmanr`.
    """
    true, pred, weight = _pair(y_true, y_pred, "y_pred", sample_weight)
    for name, y in (("y_true", true), ("y_pred", pred)):
        if y.ndim != 1 or y.dtype.kind not in "biuf":
            raise DataError(f"`{name}` must be numbers of shape [N], got {y.dtype.name}{list(y.shape)}")
        if y.dtype.kind == "f" and np.isnan(y).any():
            raise DataError(f"`{name}` must not be NaN, which has no rank")
    w = np.ones(len(true)) if weight is None else weight
    ranks = [_ranks(y[w != 0], w[w != 0]) for y in (true, pred)]
    w = w[w != 0]
    a, b = (r - np.average(r, weights=w) for r in ranks)
    if any((r == r[0]).all() for r in ranks):
        return float("nan")
    value = (w * a * b).sum() / np.sqrt((w * a * a).sum() * (w * b * b).sum())
    return float(np.clip(value, -1, 1))


def _ranks(y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The weight of what is smaller, and half of the weight of what is equal."""
    _, place = np.unique(y, return_inverse=True)
    own = np.bincount(place, weights=weight)
    return (np.cumsum(own) - own / 2)[place]


class _Curve(NamedTuple):
    """Weights of negatives and positives that score no less than each distinct score, falling."""

    fp: np.ndarray
    tp: np.ndarray
    thresholds: np.ndarray


def _curve(y_true: Any, y_score: Any, sample_weight: Any) -> _Curve:
    positive, scores, weight = _binary(y_true, y_score, "y_score", sample_weight)
    _finite("y_score", scores)
    if weight is not None:  # what weighs nothing has no point on the curve
        positive, scores, weight = (x[weight != 0] for x in (positive, scores, weight))
    order = np.argsort(scores)[::-1]  # ties are merged below, so a faster sort than a stable one will do
    falling, positive = scores[order], positive[order]
    last = np.flatnonzero(np.concatenate([falling[1:] != falling[:-1], [True]]))
    if weight is None:
        tp = np.cumsum(positive)[last].astype(np.float64)
        return _Curve(1.0 + last - tp, tp, falling[last])
    weight = weight[order]
    tp, fp = (np.cumsum(np.where(side, weight, 0.0))[last] for side in (positive, ~positive))
    return _Curve(fp, tp, falling[last])


def _averaged(score: Any, y_true: Any, y_score: Any, average: str | None, sample_weight: Any) -> Any:
    """`score(labels, scores)` of two classes, or its average over columns."""
    check.one_of("average", average, ("macro", "weighted", None))
    true, scores = _array("y_true", y_true), _array("y_score", y_score)
    if scores.ndim == 1:
        return float(score(true, scores))
    if scores.ndim != 2 or true.shape not in (scores.shape, scores.shape[:1]):
        raise DataError(
            f"`y_score` must have shape [N] or [N, C] and `y_true` [N] or the same, got {list(scores.shape)} and "
            f"{list(true.shape)}"
        )
    if true.ndim == 1:
        classes = np.arange(scores.shape[1])
        if not np.isin(true, classes).all():
            raise DataError(f"`y_true` must be integers in [0, {len(classes)}), the columns of `y_score`")
        true = true[:, None] == classes
    each = np.array([score(true[:, c], scores[:, c]) for c in range(scores.shape[1])])
    if average is None:
        return each
    if average == "macro":
        return float(each.mean())
    support = np.average(true == 1, axis=0, weights=sample_weight)
    return float(np.sum(np.where(support == 0, 0, each * support)) / support.sum())


def _ratio(top: Any, bottom: Any) -> Any:
    """`top / bottom`, 0 where there is nothing to divide by."""
    bottom = np.asarray(bottom, np.float64)
    return np.where(bottom == 0, 0.0, top / np.where(bottom == 0, 1.0, bottom))


def _rearranged(
    matrix: np.ndarray, occurring: np.ndarray, labels: np.ndarray, true: np.ndarray
) -> np.ndarray:
    if labels.ndim != 1 or len(np.unique(labels)) != labels.size or labels.size == 0:
        raise ConfigError(f"`labels` must be different labels, [C], got {labels.tolist()!r}")
    if not np.isin(labels, true).any():
        raise DataError(f"`labels` {labels.tolist()!r} must share a label with `y_true`")
    place = np.searchsorted(occurring, labels)
    place = np.where(np.isin(labels, occurring), place, len(occurring))
    return np.pad(matrix, (0, 1))[np.ix_(place, place)]


def _labels(given: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Labels of one dtype in which equal ones, and no others, are equal.

    NumPy's own common dtype is no such thing: of int64 and uint64 it is float64, in which large ids merge, and of
    numbers and text it is text, in which 1 is "1".
    """
    known = {name: _label_kind(name, y) for name, y in given.items()}
    kinds = {name: kind for name, (kind, _) in known.items()}
    if len(set(kinds.values())) > 1:
        told = " and ".join(f"`{name}` {kind}" for name, kind in kinds.items())
        raise DataError(f"labels must be of one kind, got {told}; convert one, `y.astype(str)` say")
    arrays = [y for _, y in known.values()]
    sorts, most = {y.dtype.kind for y in arrays}, np.iinfo(np.int64).max
    if sorts == {"i", "u"} and not any(y.max(initial=0) > most for y in arrays):
        return [y.astype(np.int64) for y in arrays]
    if len(sorts) > 1:
        return [y.astype(object) for y in arrays]  # Python's integers, of any size
    return arrays


def _label_kind(name: str, y: np.ndarray) -> tuple[str, np.ndarray]:
    """What sort of labels these are, and they in a dtype of that sort."""
    if y.dtype.kind == "O":
        types = {type(x) for x in y.reshape(-1).tolist()}
        if not types or not (types <= {str} or types <= {int, bool}):
            told = ", ".join(sorted(t.__name__ for t in types))
            raise DataError(f"`{name}` must be labels of one kind, text or integers, got {told}")
        return ("text", y.astype(str)) if types <= {str} else ("integers", y)
    if y.dtype.kind in "biu":
        return "integers", y.astype(np.int64) if y.dtype.kind == "b" else y
    if y.dtype.kind == "f":
        if not (y == np.floor(y)).all():
            raise DataError(f"`{name}` must be labels, got {y.dtype.name} values that are no integers")
        largest = 2 ** (np.finfo(y.dtype).nmant + 1)
        if (np.abs(y) > min(largest, 2**62)).any():
            raise DataError(
                f"`{name}` must be labels, got {y.dtype.name} values above {largest}, where that dtype skips integers; "
                "give integers"
            )
        return "integers", y.astype(np.int64)
    return {"U": "text", "S": "bytes", "M": "dates", "m": "durations"}.get(y.dtype.kind, y.dtype.name), y


def _array(name: str, x: Any) -> np.ndarray:
    given, x = x, np.asarray(x)
    if x.dtype.kind in "US" and not isinstance(given, np.ndarray | np.generic):
        # A list of 1 and "1" has become text.
        x = np.asarray(given, object)
        x = np.asarray(given) if len({type(y) for y in x.reshape(-1).tolist()}) == 1 else x
    elif x.dtype.kind == "f" and isinstance(given, list | tuple):
        # A list of integers that no one integer dtype holds has become floats.
        whole = np.asarray(given, object)
        if all(isinstance(y, int) for y in whole.reshape(-1).tolist()):
            x = whole
    if x.dtype.name == "bfloat16":  # JAX's, of which NumPy knows little
        x = x.astype(np.float32)
    if x.ndim == 0 or x.shape[0] == 0:
        raise DataError(f"`{name}` must have one element at least, got shape {list(x.shape)}")
    return x


def _pair(
    y_true: Any, other: Any, name: str, sample_weight: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Both arrays, of one length, and the weights in float64."""
    true, other = _array("y_true", y_true), _array(name, other)
    if len(true) != len(other):
        raise DataError(f"`y_true` and `{name}` must have one length, got {len(true)} and {len(other)}")
    if sample_weight is None:
        return true, other, None
    weight = _finite("sample_weight", np.asarray(sample_weight, np.float64))
    if weight.shape != true.shape[:1]:
        raise DataError(f"`sample_weight` must have shape [{len(true)}], got {list(weight.shape)}")
    if (weight < 0).any() or not weight.any():
        raise DataError("`sample_weight` must be >= 0, and not all 0")
    return true, other, weight


def _binary(
    y_true: Any, y_score: Any, name: str, sample_weight: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Whether positive, scores, weights."""
    true, scores, weight = _pair(y_true, y_score, name, sample_weight)
    if true.dtype.kind not in "biuf":  # NumPy would compare 1 and "1" as text
        raise DataError(f"`y_true` must be numbers or booleans, got {true.dtype.name}")
    if true.ndim != 1 or scores.ndim != 1:
        raise DataError(
            f"`y_true` and `{name}` must have shape [N], got {list(true.shape)} and {list(scores.shape)}"
        )
    if not (np.isin(true, (0, 1)).all() or np.isin(true, (-1, 1)).all()):
        raise DataError(f"`y_true` must be 0 and 1 (or -1 and 1), got {np.unique(true)[:5].tolist()!r}")
    if scores.dtype.kind not in "fiub":
        raise DataError(f"`{name}` must be numbers, got {scores.dtype.name}")
    if np.isnan(scores).any():
        raise DataError(f"`{name}` must not be NaN")
    return true == 1, scores if scores.dtype.kind == "f" else scores.astype(np.float64), weight


def _finite(name: str, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise DataError(f"`{name}` must be finite, got {x[~np.isfinite(x)][0]}")
    return x


__all__ = [
    "Comparison",
    "average_precision_score",
    "binary_classification_metrics",
    "bootstrap",
    "classification_metrics",
    "compare",
    "confusion_matrix",
    "precision_recall_curve",
    "regression_metrics",
    "roc_auc",
    "roc_auc_score",
    "spearman",
]

surface(__name__)
