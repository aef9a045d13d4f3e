"""Precision, recall and F1: ratios of counts by class, averaged over the classes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core import check
from .._core.errors import DataError
from . import exact
from .base import element_weights, metric, ratio, reading
from .confusion import ClassCounts, confusion_counts, counts_of
from .labels import totals, yes_or_no, zero_ratio


@metric(better="max")
def precision(
    num_classes: int,
    average: str | None = "macro",
    *,
    multilabel: bool = False,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""Precision: how much of what was predicted as a class belongs to it.

    .. math:: P_c = \frac{TP_c}{TP_c + FP_c}

    Where nothing was predicted as the class, 0.

    Args:
      num_classes: C.
      average: `"macro"`, the mean over classes that occur among labels or predictions (over all, if `multilabel`);
        `"micro"`, of the counts of all classes together; `"weighted"`, by the classes' numbers of labels; None for
        each class.
      multilabel: True for `num_classes` labels a row, each yes or no, predicted where the logit is >= 0.
      logits: the key of the scores, `[…, C]`, or of integer predictions `[…]`.
      labels: the key of the integer labels, `[…]`, or `[…, C]` of 0 and 1 if `multilabel`.
      weighted: True weighs elements by the real weights, in float32; False takes weights as a mask.

    Returns:
      A Metric whose value is a float32 scalar, or `[C]` for `average=None`; NaN if nothing was seen, or a label
      was no class.

    Raises:
      ConfigError: if `num_classes` is no integer >= 1, or `average` is unknown.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.precision(3, average=None)
      >>> outputs = {"logits": jnp.array([0, 2, 1, 0, 1, 2]), "labels": jnp.array([0, 1, 2, 0, 1, 2])}
      >>> m.compute(m.update(m.empty(), outputs)).tolist()
      [1.0, 0.5, 0.5]
    """

    def parts(counts):
        return counts.hits, counts.predicted

    return _class_score(parts, num_classes, average, multilabel, logits, labels, weighted)


@metric(better="max")
def recall(
    num_classes: int,
    average: str | None = "macro",
    *,
    multilabel: bool = False,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""Recall: how much of a class was predicted as it.

    .. math:: R_c = \frac{TP_c}{TP_c + FN_c}

    Where the class does not occur among the labels, 0.

    Args:
      num_classes: C.
      average: as in `precision`, and so are all others.
      multilabel: True for `num_classes` labels a row.
      logits: the key of the scores.
      labels: the key of the labels.
      weighted: True weighs elements by the real weights.

    Returns:
      A Metric whose value is a float32 scalar, or `[C]` for `average=None`.

    Raises:
      ConfigError: if `num_classes` is no integer >= 1, or `average` is unknown.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.recall(3)
      >>> outputs = {"logits": jnp.array([0, 2, 1, 0, 1, 2]), "labels": jnp.array([0, 1, 2, 0, 1, 2])}
      >>> round(float(m.compute(m.update(m.empty(), outputs))), 4)
      0.6667
    """

    def parts(counts):
        return counts.hits, counts.actual

    return _class_score(parts, num_classes, average, multilabel, logits, labels, weighted)


@metric(better="max")
def f1(
    num_classes: int,
    average: str | None = "macro",
    *,
    multilabel: bool = False,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""F1, the harmonic mean of precision and recall.

    .. math:: F_c = \frac{2\, TP_c}{2\, TP_c + FP_c + FN_c}

    Where the class occurs among neither labels nor predictions, 0.

    Args:
      num_classes: C.
      average: as in `precision`, and so are all others.
      multilabel: True for `num_classes` labels a row.
      logits: the key of the scores.
      labels: the key of the labels.
      weighted: True weighs elements by the real weights.

    Returns:
      A Metric whose value is a float32 scalar, or `[C]` for `average=None`.

    Raises:
      ConfigError: if `num_classes` is no integer >= 1, or `average` is unknown.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.f1(3, average="micro")
      >>> outputs = {"logits": jnp.array([0, 2, 1, 0, 1, 2]), "labels": jnp.array([0, 1, 2, 0, 1, 2])}
      >>> round(float(m.compute(m.update(m.empty(), outputs))), 4)
      0.6667
    """

    def parts(counts):
        return 2 * counts.hits, counts.predicted + counts.actual

    return _class_score(parts, num_classes, average, multilabel, logits, labels, weighted)


class LabelsState(NamedTuple):
    """Counts of each of several labels; `Count`s, or `Sum`s if weighted."""

    classes: Any  # [3, C], the fields of ClassCounts
    elements: Any  # [2], with a label of yes or no, and without


@metric
def _labels(num_classes: int, logits: str, labels: str, weighted: bool):
    """What readings of several yes-or-no labels a row accumulate."""
    check.integer("num_classes", num_classes, at_least=1)
    kind = exact.tally(weighted)

    def empty():
        return LabelsState(kind.empty((3, num_classes)), kind.empty((2,)))

    def update(acc, outputs, weight=None):
        reader = "a metric over several labels"
        guess, true, known = yes_or_no(outputs, logits, labels, 0.0, reader)
        if guess.shape[-1:] != (num_classes,):
            raise DataError(
                f"output {logits!r} of shape {list(guess.shape)} must have `num_classes={num_classes}` on its last axis"
            )
        amounts = kind.amounts(element_weights(weight, guess.shape, reader))
        chosen = jnp.stack([guess & true, guess, true]) & known[None]
        counts = jnp.where(chosen, amounts[None], jnp.zeros((), amounts.dtype)).reshape(3, -1, num_classes)
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
    multilabel: bool,
    logits: str,
    labels: str,
    weighted: bool,
) -> tuple[Any, ...]:
    """A reading that averages a ratio of counts over the classes."""
    check.one_of("average", average, ("macro", "micro", "weighted", None))
    kind = exact.tally(weighted)
    base = (_labels if multilabel else confusion_counts)(num_classes, logits, labels, weighted)

    def compute(acc):
        if multilabel:
            seen, outside = kind.read(acc.elements)
            counts = ClassCounts(*kind.read(acc.classes))
        else:
            counts = counts_of(kind, acc)
            seen, outside = jnp.sum(counts.actual), 0
        top, bottom = parts(counts)
        each = zero_ratio(top, bottom)
        if average is None:
            value = each
        elif average == "micro":
            value = zero_ratio(jnp.sum(top), jnp.sum(bottom))
        elif average == "weighted":
            value = zero_ratio(jnp.sum(each * counts.actual), jnp.sum(counts.actual))
        else:
            present = (counts.predicted + counts.actual != 0) | multilabel
            value = ratio(jnp.sum(jnp.where(present, each, 0)), jnp.sum(present.astype(jnp.float32)))
        return jnp.where((seen != 0) & (outside == 0), value, jnp.nan)

    return reading(base, compute)
