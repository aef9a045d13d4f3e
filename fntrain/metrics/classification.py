"""Precision, recall, F-scores, overlaps: ratios of counts by class, averaged over the classes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import ConfigError, DataError
from . import exact
from .base import element_weights, metric, ratio, reading
from .confusion import ClassCounts, confusion_counts, counts_of
from .labels import checked_zero_division, totals, yes_or_no, zero_ratio


@metric(better="max")
def precision(
    num_classes: int,
    average: str | None = "macro",
    *,
    classes: Sequence[int] | None = None,
    zero_division: float = 0.0,
    multilabel: bool = False,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""Precision: how much of what was predicted as a class belongs to it.

    .. math:: P_c = \frac{TP_c}{TP_c + FP_c}

    Where nothing was predicted as the class, `zero_division`.

    Args:
      num_classes: C.
      average: `"macro"`, the mean over classes that occur among labels or predictions (over all, if `multilabel`);
        `"micro"`, of the counts of all classes together; `"weighted"`, by the classes' numbers of labels; None for
        each class.
      classes: which classes, and in which order (scikit-learn's `labels`): all of these are averaged, whether they
        occur or not; elements of others still count as false or missed. None is all, as said above.
      zero_division: a class's value where there is nothing to divide by: 0, 1, or NaN, which averages leave out.
      multilabel: True for `num_classes` labels a row, each yes or no, predicted where the logit is >= 0.
      logits: the key of the scores, `[…, C]`, or of integer predictions `[…]`.
      labels: the key of the integer labels, `[…]`, or `[…, C]` of 0 and 1 if `multilabel`.
      weighted: True weighs elements by the real weights, in float32; False takes weights as a mask.

    Returns:
      A Metric whose value is a float32 scalar, or `[C]` for `average=None` (of `classes`, if given); NaN if nothing
      was seen, a score was NaN, or a label was no class.

    Raises:
      ConfigError: if `num_classes` is no integer >= 1, `average` is unknown, or `classes` or `zero_division` cannot
        be.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.precision(3, average=None)
      >>> outputs = {"logits": jnp.array([0, 2, 1, 0, 1, 2]), "labels": jnp.array([0, 1, 2, 0, 1, 2])}
      >>> m.compute(m.update(m.empty(), outputs)).tolist()
      [1.0, 0.5, 0.5]
    """

    def parts(counts):
        return counts.hits, counts.predicted

    return _class_score(
        parts, num_classes, average, classes, zero_division, multilabel, logits, labels, weighted
    )


@metric(better="max")
def recall(
    num_classes: int,
    average: str | None = "macro",
    *,
    classes: Sequence[int] | None = None,
    zero_division: float = 0.0,
    multilabel: bool = False,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""Recall: how much of a class was predicted as it.

    .. math:: R_c = \frac{TP_c}{TP_c + FN_c}

    Where the class does not occur among the labels, `zero_division`.

    Args:
      num_classes: C.
      average: as in `precision`, and so are all others.
      classes: which classes, and in which order.
      zero_division: a class's value where there is nothing to divide by.
      multilabel: True for `num_classes` labels a row.
      logits: the key of the scores.
      labels: the key of the labels.
      weighted: True weighs elements by the real weights.

    Returns:
      A Metric whose value is a float32 scalar, or `[C]` for `average=None`.

    Raises:
      ConfigError: if `num_classes` is no integer >= 1, `average` is unknown, or `classes` or `zero_division` cannot
        be.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.recall(3)
      >>> outputs = {"logits": jnp.array([0, 2, 1, 0, 1, 2]), "labels": jnp.array([0, 1, 2, 0, 1, 2])}
      >>> round(float(m.compute(m.update(m.empty(), outputs))), 4)
      0.6667
    """

    def parts(counts):
        return counts.hits, counts.actual

    return _class_score(
        parts, num_classes, average, classes, zero_division, multilabel, logits, labels, weighted
    )


@metric(better="max")
def f1(
    num_classes: int,
    average: str | None = "macro",
    *,
    classes: Sequence[int] | None = None,
    zero_division: float = 0.0,
    multilabel: bool = False,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""F1, the harmonic mean of precision and recall.

    .. math:: F_c = \frac{2\, TP_c}{2\, TP_c + FP_c + FN_c}

    Where the class occurs among neither labels nor predictions, `zero_division`.

    Args:
      num_classes: C.
      average: as in `precision`, and so are all others.
      classes: which classes, and in which order.
      zero_division: a class's value where there is nothing to divide by.
      multilabel: True for `num_classes` labels a row.
      logits: the key of the scores.
      labels: the key of the labels.
      weighted: True weighs elements by the real weights.

    Returns:
      A Metric whose value is a float32 scalar, or `[C]` for `average=None`.

    Raises:
      ConfigError: if `num_classes` is no integer >= 1, `average` is unknown, or `classes` or `zero_division` cannot
        be.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.f1(3, average="micro")
      >>> outputs = {"logits": jnp.array([0, 2, 1, 0, 1, 2]), "labels": jnp.array([0, 1, 2, 0, 1, 2])}
      >>> round(float(m.compute(m.update(m.empty(), outputs))), 4)
      0.6667
    """

    def parts(counts):
        return 2 * counts.hits, 2 * counts.hits + counts.false + counts.missed

    return _class_score(
        parts, num_classes, average, classes, zero_division, multilabel, logits, labels, weighted
    )


@metric(better="max")
def fbeta(
    num_classes: int,
    beta: float,
    average: str | None = "macro",
    *,
    classes: Sequence[int] | None = None,
    zero_division: float = 0.0,
    multilabel: bool = False,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""F-beta: a mean of precision and recall in which recall counts β times as much.

    .. math:: F_{\beta,c} = \frac{(1 + \beta^2)\, TP_c}{(1 + \beta^2)\, TP_c + FP_c + \beta^2\, FN_c}

    β = 1 is `f1`, 0 is precision. Where the class occurs among neither labels nor predictions, `zero_division`.

    Args:
      num_classes: C.
      beta: β, >= 0.
      average: as in `precision`, and so are all others.
      classes: which classes, and in which order.
      zero_division: a class's value where there is nothing to divide by.
      multilabel: True for `num_classes` labels a row.
      logits: the key of the scores.
      labels: the key of the labels.
      weighted: True weighs elements by the real weights.

    Returns:
      A Metric whose value is a float32 scalar, or `[C]` for `average=None`.

    Raises:
      ConfigError: if `beta` is negative, or as in `precision`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.fbeta(2, 2.0, classes=[1])
      >>> outputs = {"logits": jnp.array([1, 1, 1, 0, 0]), "labels": jnp.array([1, 0, 0, 1, 0])}
      >>> round(float(m.compute(m.update(m.empty(), outputs))), 4)
      0.4545

    References:
      van Rijsbergen, *Information Retrieval*, 1979.
    """
    check.number("beta", beta, at_least=0)
    squared = float(beta) ** 2

    def parts(counts):
        top = (1 + squared) * counts.hits
        return top, top + counts.false + squared * counts.missed

    return _class_score(
        parts, num_classes, average, classes, zero_division, multilabel, logits, labels, weighted
    )


@metric(better="max")
def specificity(
    num_classes: int,
    average: str | None = "macro",
    *,
    classes: Sequence[int] | None = None,
    zero_division: float = 0.0,
    multilabel: bool = False,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""Specificity: how much of what is of other classes was not predicted as the class.

    .. math:: S_c = \frac{TN_c}{TN_c + FP_c}

    Of two classes, that of class 1 (`classes=[1]`) is the recall of class 0. Where there is nothing of other classes,
    `zero_division`.

    Args:
      num_classes: C.
      average: as in `precision`, and so are all others.
      classes: which classes, and in which order.
      zero_division: a class's value where there is nothing to divide by.
      multilabel: True for `num_classes` labels a row.
      logits: the key of the scores.
      labels: the key of the labels.
      weighted: True weighs elements by the real weights.

    Returns:
      A Metric whose value is a float32 scalar, or `[C]` for `average=None`.

    Raises:
      ConfigError: as in `precision`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.specificity(2, classes=[1])
      >>> outputs = {"logits": jnp.array([1, 1, 0, 0, 0]), "labels": jnp.array([1, 0, 0, 1, 0])}
      >>> round(float(m.compute(m.update(m.empty(), outputs))), 4)
      0.6667
    """

    def parts(counts):
        return counts.others - counts.false, counts.others

    return _class_score(
        parts, num_classes, average, classes, zero_division, multilabel, logits, labels, weighted
    )


@metric(better="max")
def iou(
    num_classes: int,
    average: str | None = "macro",
    *,
    classes: Sequence[int] | None = None,
    zero_division: float = 0.0,
    multilabel: bool = False,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""Intersection over union, the Jaccard index, of predicted and true elements of a class.

    .. math:: J_c = \frac{TP_c}{TP_c + FP_c + FN_c}

    Counted over all elements seen, as is usual for segmentation, and not image by image. Where the class occurs among
    neither labels nor predictions, `zero_division`.

    Args:
      num_classes: C.
      average: as in `precision`, and so are all others.
      classes: which classes, and in which order.
      zero_division: a class's value where there is nothing to divide by.
      multilabel: True for `num_classes` labels a row.
      logits: the key of the scores.
      labels: the key of the labels.
      weighted: True weighs elements by the real weights.

    Returns:
      A Metric whose value is a float32 scalar, or `[C]` for `average=None`.

    Raises:
      ConfigError: as in `precision`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.iou(2, average=None)
      >>> outputs = {"logits": jnp.array([[1, 1], [0, 0]]), "labels": jnp.array([[1, 0], [0, 0]])}
      >>> [round(float(v), 4) for v in m.compute(m.update(m.empty(), outputs))]
      [0.6667, 0.5]

    References:
      Jaccard, *Étude comparative de la distribution florale*, 1901; scikit-learn's `jaccard_score`.
    """

    def parts(counts):
        return counts.hits, counts.hits + counts.false + counts.missed

    return _class_score(
        parts, num_classes, average, classes, zero_division, multilabel, logits, labels, weighted
    )


@metric(better="max")
def dice(
    num_classes: int,
    average: str | None = "macro",
    *,
    classes: Sequence[int] | None = None,
    zero_division: float = 0.0,
    multilabel: bool = False,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""The Dice coefficient of predicted and true elements of a class: the same number as `f1`.

    .. math:: D_c = \frac{2\, TP_c}{2\, TP_c + FP_c + FN_c} = \frac{2 J_c}{1 + J_c}

    Counted over all elements seen, and not image by image.

    Args:
      num_classes: C.
      average: as in `precision`, and so are all others.
      classes: which classes, and in which order.
      zero_division: a class's value where there is nothing to divide by.
      multilabel: True for `num_classes` labels a row.
      logits: the key of the scores.
      labels: the key of the labels.
      weighted: True weighs elements by the real weights.

    Returns:
      A Metric whose value is a float32 scalar, or `[C]` for `average=None`.

    Raises:
      ConfigError: as in `precision`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.dice(2, average=None)
      >>> outputs = {"logits": jnp.array([[1, 1], [0, 0]]), "labels": jnp.array([[1, 0], [0, 0]])}
      >>> [round(float(v), 4) for v in m.compute(m.update(m.empty(), outputs))]
      [0.8, 0.6667]

    References:
      Dice, *Measures of the Amount of Ecologic Association Between Species*, 1945.
    """

    def parts(counts):
        return 2 * counts.hits, 2 * counts.hits + counts.false + counts.missed

    return _class_score(
        parts, num_classes, average, classes, zero_division, multilabel, logits, labels, weighted
    )


class LabelsState(NamedTuple):
    """Counts of each of several labels; `Count`s, or `Sum`s if weighted."""

    classes: Any  # [4, C], the fields of ClassCounts
    elements: Any  # [2], decided, and not: NaN, or a label that is neither yes nor no


@metric
def _labels(num_classes: int, logits: str, labels: str, weighted: bool):
    """What readings of several yes-or-no labels a row accumulate."""
    check.integer("num_classes", num_classes, at_least=1)
    kind = exact.tally(weighted)

    def empty():
        return LabelsState(kind.empty((4, num_classes)), kind.empty((2,)))

    def update(acc, outputs, weight=None):
        reader = "a metric over several labels"
        guess, true, known = yes_or_no(outputs, logits, labels, 0.0, reader)
        if guess.shape[-1:] != (num_classes,):
            raise DataError(
                f"output {logits!r} of shape {list(guess.shape)} must have `num_classes={num_classes}` on its last axis"
            )
        amounts = kind.amounts(element_weights(weight, guess.shape, reader))
        chosen = jnp.stack([guess & true, guess & ~true, ~guess & true, ~true]) & known[None]
        counts = jnp.where(chosen, amounts[None], jnp.zeros((), amounts.dtype)).reshape(4, -1, num_classes)
        return LabelsState(
            kind.add(acc.classes, jnp.sum(counts, axis=1)),
            kind.add(acc.elements, totals([known, ~known], amounts)),
        )

    def merge(a, b):
        return LabelsState(kind.merge(a.classes, b.classes), kind.merge(a.elements, b.elements))

    def compute(acc):
        return ClassCounts(*kind.values(acc.classes))

    return empty, update, merge, compute


def _class_score(
    parts: Callable[[ClassCounts], tuple[jax.Array, jax.Array]],
    num_classes: int,
    average: str | None,
    classes: Sequence[int] | None,
    zero_division: float,
    multilabel: bool,
    logits: str,
    labels: str,
    weighted: bool,
) -> tuple[Any, ...]:
    """A reading that averages a ratio of counts over the classes."""
    check.one_of("average", average, ("macro", "micro", "weighted", None))
    otherwise = checked_zero_division(zero_division)
    if not isinstance(labels, str):
        raise ConfigError(
            f"`labels` must be the key of an output, got {labels!r}; which classes to average, `classes=` says"
        )
    base = (_labels if multilabel else confusion_counts)(num_classes, logits, labels, weighted)
    kind = exact.tally(weighted)
    chosen = _chosen(classes, num_classes)

    def compute(acc):
        if multilabel:
            seen, outside = kind.read(acc.elements)
            counts = ClassCounts(*kind.read(acc.classes))
        else:
            counts = counts_of(kind, acc)
            seen, outside = jnp.sum(counts.actual), 0
        if chosen is not None:
            counts = ClassCounts(*(x[chosen] for x in counts))
        top, bottom = parts(counts)
        each = zero_ratio(top, bottom, otherwise)
        if average is None:
            value = each
        elif average == "micro":
            value = zero_ratio(jnp.sum(top), jnp.sum(bottom), otherwise)
        else:
            present = (counts.predicted + counts.actual != 0) | multilabel | (chosen is not None)
            present &= ~jnp.isnan(each) | (
                bottom != 0
            )  # what was said to be NaN is left out, what became so is not
            by = jnp.where(present, counts.actual if average == "weighted" else jnp.ones_like(each), 0)
            value = ratio(jnp.sum(jnp.where(by != 0, each * by, 0)), jnp.sum(by))
            if average == "weighted":  # no label of these classes: scikit-learn's even mean
                even = ratio(jnp.sum(jnp.where(present, each, 0)), jnp.sum(present.astype(jnp.float32)))
                value = jnp.where(jnp.sum(by) == 0, even, value)
        return jnp.where((seen > 0) & (outside == 0), value, jnp.nan)

    return reading(base, compute)


def _chosen(classes: Sequence[int] | None, num_classes: int) -> np.ndarray | None:
    if classes is None:
        return None
    wanted = f"`classes` must be different integers in [0, {num_classes})"
    if isinstance(classes, str) or not isinstance(classes, Sequence | np.ndarray) or len(classes) == 0:
        raise ConfigError(f"{wanted}, got {classes!r}")
    chosen = [check.integer("classes", c) for c in classes]
    if len(set(chosen)) != len(chosen) or not all(0 <= c < num_classes for c in chosen):
        raise ConfigError(f"{wanted}, got {chosen}")
    return np.array(chosen)
