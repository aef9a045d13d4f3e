"""The confusion matrix, and what is read off its rows."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core import check
from .._core.errors import DataError
from . import exact
from .base import element_weights, metric, ratio, reading
from .labels import predicted_classes, scores_and_labels, zero_ratio


class ConfusionState(NamedTuple):
    """Elements by true class and predicted class; a `Count`, or a `Sum` if weighted."""

    cells: Any  # [C * C + 1]: row by row, and last what has a label or prediction that is no class, NaN among them

    @property
    def matrix(self) -> Any:
        """The cells as `[C, C]`, rows being true classes."""
        return jax.tree.map(lambda x: x[:-1].reshape(math.isqrt(x.size), -1), self.cells)


@metric
def confusion_counts(num_classes: int, logits: str, labels: str, weighted: bool):
    """What all readings of one confusion matrix accumulate."""
    check.integer("num_classes", num_classes, at_least=1)
    kind = exact.tally(weighted)
    cells = num_classes * num_classes

    def empty():
        return ConfusionState(kind.empty((cells + 1,)))

    def update(acc, outputs, weight=None):
        reader = f"a metric over {num_classes} classes"
        scores, y = scores_and_labels(outputs, logits, labels, reader)
        if scores.ndim > y.ndim and scores.shape[-1] != num_classes:
            raise DataError(
                f"output {logits!r} has {scores.shape[-1]} classes on its last axis (shape {list(scores.shape)}), "
                f"but the metric was made with `num_classes={num_classes}`"
            )
        guess = predicted_classes(scores, y)
        known = (y >= 0) & (y < num_classes) & (guess >= 0) & (guess < num_classes)
        cell = jnp.where(known, y * num_classes + guess, cells)
        amounts = kind.amounts(element_weights(weight, y.shape, reader))
        return ConfusionState(kind.add(acc.cells, jnp.zeros(cells + 1, amounts.dtype).at[cell].add(amounts)))

    def merge(a, b):
        return ConfusionState(kind.merge(a.cells, b.cells))

    def compute(acc):
        return kind.values(acc.matrix)

    return empty, update, merge, compute


@metric
def confusion_matrix(
    num_classes: int,
    normalize: str | None = None,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""How often each true class (row) was predicted as each class (column).

    Args:
      num_classes: C.
      normalize: None for counts; `"true"` divides each row by its sum, `"pred"` each column, `"all"` everything
        by the total; 0 where there is nothing to divide.
      logits: the key of the scores, `[…, C]`, or of integer predictions `[…]`.
      labels: the key of the integer labels, `[…]`.
      weighted: True adds up real weights, in float32; False takes weights as a mask and counts.

    Returns:
      A Metric whose value has shape `[C, C]`: uint32 counts (held at 2^32 - 1; the accumulator's `matrix` has them
      all, see `count_to_int`), or float32 if normalised or weighted. Elements whose label is no class, or of whose
      scores one is NaN, are in no cell; `normalize` then gives NaN, as it does if nothing was seen.

    Raises:
      ConfigError: if `num_classes` is no integer >= 1, or `normalize` is unknown.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.confusion_matrix(3)
      >>> outputs = {"logits": jnp.array([0, 2, 1, 0, 1, 2]), "labels": jnp.array([0, 1, 2, 0, 1, 2])}
      >>> m.compute(m.update(m.empty(), outputs)).tolist()
      [[2, 0, 0], [0, 1, 1], [0, 1, 1]]
    """
    check.one_of("normalize", normalize, (None, "true", "pred", "all"))
    base = confusion_counts(num_classes, logits, labels, weighted)
    kind = exact.tally(weighted)

    def compute(acc):
        if normalize is None:
            return kind.values(acc.matrix)
        matrix = known_matrix(kind, acc)
        axis = {"true": 1, "pred": 0, "all": None}[normalize]
        total = jnp.sum(matrix, axis=axis, keepdims=True)
        return jnp.where(jnp.sum(matrix) == 0, jnp.nan, zero_ratio(matrix, total))

    return reading(base, compute)


@metric(better="max")
def per_class_accuracy(
    num_classes: int, logits: str = "logits", labels: str = "labels", weighted: bool = False
):
    r"""The share of each class's elements that are predicted as that class.

    .. math:: a_c = \frac{M_{cc}}{\sum_j M_{cj}}

    with the confusion matrix M, rows being true classes. That is each class's recall, but NaN where the class did
    not occur.

    Args:
      num_classes: C.
      logits: the key of the scores, `[…, C]`, or of integer predictions `[…]`.
      labels: the key of the integer labels, `[…]`.
      weighted: True weighs elements by the real weights, in float32; False takes weights as a mask.

    Returns:
      A Metric whose value is float32 `[C]`.

    Raises:
      ConfigError: if `num_classes` is no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.per_class_accuracy(3)
      >>> outputs = {"logits": jnp.array([0, 1, 1, 0]), "labels": jnp.array([0, 0, 1, 0])}
      >>> [round(float(v), 3) for v in m.compute(m.update(m.empty(), outputs))]
      [0.667, 1.0, nan]
    """
    kind = exact.tally(weighted)

    def compute(acc):
        counts = counts_of(kind, acc)
        return ratio(counts.hits, counts.actual)

    return reading(confusion_counts(num_classes, logits, labels, weighted), compute)


class ClassCounts(NamedTuple):
    """What ratios of classes are ratios of, by class, each a sum of its own: a difference would lose digits."""

    hits: Any  # [C], predicted and actual
    false: Any  # [C], predicted, but of another class
    missed: Any  # [C], actual, but predicted as another
    others: Any  # [C], of another class

    @property
    def predicted(self) -> Any:
        """How much was predicted as the class."""
        return self.hits + self.false

    @property
    def actual(self) -> Any:
        """How much is of the class."""
        return self.hits + self.missed


def counts_of(kind: exact.Tally, acc: ConfusionState) -> ClassCounts:
    """The counts of each class."""
    matrix = known_matrix(kind, acc)
    own = jnp.eye(len(matrix), dtype=jnp.bool_)
    off = jnp.where(own, 0, matrix)
    actual = jnp.sum(matrix, axis=1)
    others = jnp.sum(jnp.where(own, 0, actual[None, :]), axis=1)
    return ClassCounts(jnp.diagonal(matrix), jnp.sum(off, axis=0), jnp.sum(off, axis=1), others)


def known_matrix(kind: exact.Tally, acc: ConfusionState) -> jax.Array:
    """The counts in float32: NaN, visibly, if there was a label that is no class."""
    return jnp.where(kind.read(acc.cells)[-1] == 0, kind.read(acc.matrix), jnp.nan)
