"""Classes: accuracy, and everything that is read off a confusion matrix."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _check
from .._check import DataError
from .._typing import Outputs
from . import _base, basic
from ._base import metric, reading


@metric
def accuracy(top_k: int = 1, logits: str = "logits", labels: str = "labels", weighted: bool = False):
    r"""The share of elements whose label is among the `top_k` highest logits.

    .. math:: \frac1N \#\{i : |\{c : z_{ic} > z_{i y_i}\}| < k\}

    Ties go to the lower class. Counts are exact integers; 0 to 1; NaN if nothing was seen.

    Args:
      top_k: how many guesses count, >= 1.
      logits: the key of the scores, `[…, C]` (logits or probabilities: only their order counts), or of integer
        predictions `[…]`, with `top_k=1`.
      labels: the key of the integer labels, `[…]`.
      weighted: True weighs elements by the real weights, in float32; False takes weights as a mask.

    Returns:
      A Metric whose value is a float32 scalar.

    Raises:
      ConfigError: if `top_k` is no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.accuracy()
      >>> outputs = {"logits": jnp.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), "labels": jnp.array([0, 1, 1])}
      >>> round(float(m.compute(m.update(m.empty(), outputs))), 4)
      0.6667
    """
    _check.integer("top_k", top_k, at_least=1)
    kind = _base.tally(weighted)

    def empty():
        return kind.empty((2,))  # hits, elements: in one array, since a step hands out every array it reports

    def update(acc, outputs, weight=None):
        scores, y = _scores_and_labels(outputs, logits, labels, "accuracy")
        hits = predicted_classes(scores, y) == y if top_k == 1 else _among_top(scores, y, top_k)
        amounts = kind.amounts(_base.weights(weight, y.shape, "accuracy"))
        return kind.add(acc, _totals([hits, jnp.ones_like(hits)], amounts))

    def compute(acc):
        hits, total = kind.read(acc)
        return _base.ratio(hits, total)

    return empty, update, kind.merge, compute


def _totals(chosen: list[jax.Array], amounts: jax.Array) -> jax.Array:
    """What the chosen elements amount to, choice by choice."""
    zero = jnp.zeros((), amounts.dtype)
    return jnp.stack([jnp.sum(jnp.where(x, amounts, zero)) for x in chosen])


class ConfusionState(NamedTuple):
    """Elements by true class and predicted class; a `Count`, or a `Sum` if weighted."""

    cells: Any  # [C * C + 1]: row by row, and last what has a label or prediction that is no class

    @property
    def matrix(self) -> Any:
        """The cells as `[C, C]`, rows being true classes."""
        return jax.tree.map(lambda x: x[:-1].reshape(math.isqrt(x.size), -1), self.cells)


@metric
def _confusion(num_classes: int, logits: str, labels: str, weighted: bool):
    """What all readings of one confusion matrix accumulate."""
    _check.integer("num_classes", num_classes, at_least=1)
    kind = _base.tally(weighted)
    cells = num_classes * num_classes

    def empty():
        return ConfusionState(kind.empty((cells + 1,)))

    def update(acc, outputs, weight=None):
        reader = f"a metric over {num_classes} classes"
        scores, y = _scores_and_labels(outputs, logits, labels, reader)
        if scores.ndim > y.ndim and scores.shape[-1] != num_classes:
            raise DataError(
                f"output {logits!r} has {scores.shape[-1]} classes on its last axis (shape {list(scores.shape)}), "
                f"but the metric was made with `num_classes={num_classes}`"
            )
        guess = predicted_classes(scores, y)
        known = (y >= 0) & (y < num_classes) & (guess >= 0) & (guess < num_classes)
        cell = jnp.where(known, y * num_classes + guess, cells)
        amounts = kind.amounts(_base.weights(weight, y.shape, reader))
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
      all, see `count_to_int`), or float32 if normalised or weighted. Elements whose label is no class are in no
      cell; `normalize` then gives NaN, as it does if nothing was seen.

    Raises:
      ConfigError: if `num_classes` is no integer >= 1, or `normalize` is unknown.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.confusion_matrix(3)
      >>> outputs = {"logits": jnp.array([0, 2, 1, 0, 1, 2]), "labels": jnp.array([0, 1, 2, 0, 1, 2])}
      >>> m.compute(m.update(m.empty(), outputs)).tolist()
      [[2, 0, 0], [0, 1, 1], [0, 1, 1]]
    """
    _check.one_of("normalize", normalize, (None, "true", "pred", "all"))
    base = _confusion(num_classes, logits, labels, weighted)
    kind = _base.tally(weighted)

    def compute(acc):
        if normalize is None:
            return kind.values(acc.matrix)
        matrix = _known_matrix(kind, acc)
        axis = {"true": 1, "pred": 0, "all": None}[normalize]
        total = jnp.sum(matrix, axis=axis, keepdims=True)
        return jnp.where(jnp.sum(matrix) == 0, jnp.nan, _zero_ratio(matrix, total))

    return reading(base, compute)


@metric
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
    kind = _base.tally(weighted)

    def compute(acc):
        counts = _of_matrix(kind, acc)
        return _base.ratio(counts.hits, counts.actual)

    return reading(_confusion(num_classes, logits, labels, weighted), compute)


@metric
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


@metric
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


@metric
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


class ClassCounts(NamedTuple):
    """What precision, recall and F1 are ratios of, by class."""

    hits: Any  # [C], predicted and actual
    predicted: Any  # [C]
    actual: Any  # [C]


class LabelsState(NamedTuple):
    """Counts of each of several labels; `Count`s, or `Sum`s if weighted."""

    classes: Any  # [3, C], the fields of ClassCounts
    elements: Any  # [2], with a label of yes or no, and without


@metric
def _labels(num_classes: int, logits: str, labels: str, weighted: bool):
    """What readings of several yes-or-no labels a row accumulate."""
    _check.integer("num_classes", num_classes, at_least=1)
    kind = _base.tally(weighted)

    def empty():
        return LabelsState(kind.empty((3, num_classes)), kind.empty((2,)))

    def update(acc, outputs, weight=None):
        reader = "a metric over several labels"
        guess, true, known = _yes_or_no(outputs, logits, labels, 0.0, reader)
        if guess.shape[-1:] != (num_classes,):
            raise DataError(
                f"output {logits!r} of shape {list(guess.shape)} must have `num_classes={num_classes}` on its last axis"
            )
        amounts = kind.amounts(_base.weights(weight, guess.shape, reader))
        chosen = jnp.stack([guess & true, guess, true]) & known[None]
        counts = jnp.where(chosen, amounts[None], jnp.zeros((), amounts.dtype)).reshape(3, -1, num_classes)
        return LabelsState(
            kind.add(acc.classes, jnp.sum(counts, axis=1)),
            kind.add(acc.elements, _totals([known, ~known], amounts)),
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
) -> tuple:
    """A reading that averages a ratio of counts over the classes."""
    _check.one_of("average", average, ("macro", "micro", "weighted", None))
    kind = _base.tally(weighted)
    base = (_labels if multilabel else _confusion)(num_classes, logits, labels, weighted)

    def compute(acc):
        if multilabel:
            seen, outside = kind.read(acc.elements)
            counts = ClassCounts(*kind.read(acc.classes))
        else:
            counts = _of_matrix(kind, acc)
            seen, outside = jnp.sum(counts.actual), 0
        top, bottom = parts(counts)
        each = _zero_ratio(top, bottom)
        if average is None:
            value = each
        elif average == "micro":
            value = _zero_ratio(jnp.sum(top), jnp.sum(bottom))
        elif average == "weighted":
            value = _zero_ratio(jnp.sum(each * counts.actual), jnp.sum(counts.actual))
        else:
            present = (counts.predicted + counts.actual != 0) | multilabel
            value = _base.ratio(jnp.sum(jnp.where(present, each, 0)), jnp.sum(present.astype(jnp.float32)))
        return jnp.where((seen != 0) & (outside == 0), value, jnp.nan)

    return reading(base, compute)


def _of_matrix(kind: _base.Tally, acc: ConfusionState) -> ClassCounts:
    matrix = _known_matrix(kind, acc)
    return ClassCounts(jnp.diagonal(matrix), jnp.sum(matrix, axis=0), jnp.sum(matrix, axis=1))


def _known_matrix(kind: _base.Tally, acc: ConfusionState) -> jax.Array:
    """The counts in float32: NaN, visibly, if there was a label that is no class."""
    return jnp.where(kind.read(acc.cells)[-1] == 0, kind.read(acc.matrix), jnp.nan)


def _zero_ratio(top: jax.Array, bottom: jax.Array) -> jax.Array:
    return jnp.where(bottom == 0, 0, top / jnp.where(bottom == 0, 1, bottom))


@metric
def binary_stats(
    threshold: float = 0.5, logits: str = "logits", labels: str = "labels", weighted: bool = False
):
    r"""Counts and ratios of a yes-or-no decision: yes where the probability is at least `threshold`.

    .. math:: \text{yes} \iff \sigma(z) \ge t \iff z \ge \log \frac{t}{1 - t}

    Args:
      threshold: t, a probability in [0, 1].
      logits: the key of the logits, `[…]`, or `[…, 2]`, whose difference is one.
      labels: the key of the labels, 0 or 1, `[…]`; all elements are counted together.
      weighted: True adds up real weights, in float32; False takes weights as a mask and counts.

    Returns:
      A Metric whose value is a dict: `tp`, `fp`, `fn`, `tn`, uint32 counts (held at 2^32 - 1; float32 if
      weighted), and `accuracy`, `precision`, `recall`, `f1`, float32; 0 where there is nothing to divide by, NaN
      if nothing was seen or a label was neither 0 nor 1.

    Raises:
      ConfigError: if `threshold` is not in [0, 1].

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.binary_stats()
      >>> outputs = {"logits": jnp.array([1.0, 0.0, -1.0, 2.0]), "labels": jnp.array([1, 0, 1, 1])}
      >>> stats = m.compute(m.update(m.empty(), outputs))
      >>> int(stats["tp"]), int(stats["fp"]), int(stats["fn"]), float(stats["accuracy"])
      (2, 1, 1, 0.5)
    """
    _check.number("threshold", threshold, at_least=0, at_most=1)
    kind = _base.tally(weighted)
    with np.errstate(divide="ignore"):
        cut = float(np.log(threshold) - np.log1p(-threshold))

    def empty():
        return kind.empty((5,))  # tp, fp, fn, tn, labels that are neither 0 nor 1

    def update(acc, outputs, weight=None):
        guess, true, known = _yes_or_no(outputs, logits, labels, cut, "binary_stats")
        chosen = (guess & true, guess & ~true, ~guess & true, ~guess & ~true)
        amounts = kind.amounts(_base.weights(weight, guess.shape, "binary_stats"))
        return kind.add(acc, _totals([*(x & known for x in chosen), ~known], amounts))

    def compute(acc):
        tp, fp, fn, tn, outside = kind.read(acc)
        total = tp + fp + fn + tn
        ratios = {
            "accuracy": _zero_ratio(tp + tn, total),
            "precision": _zero_ratio(tp, tp + fp),
            "recall": _zero_ratio(tp, tp + fn),
            "f1": _zero_ratio(2 * tp, 2 * tp + fp + fn),
        }
        usable = (total != 0) & (outside == 0)
        counts = dict(zip(("tp", "fp", "fn", "tn"), kind.values(acc)))
        return {**counts, **{name: jnp.where(usable, x, jnp.nan) for name, x in ratios.items()}}

    return empty, update, kind.merge, compute


@metric
def perplexity(logits: str = "logits", labels: str = "labels"):
    r"""The exponential of the mean cross-entropy: among how many equal guesses the model hesitates.

    .. math:: \exp\left(-\frac{\sum_i w_i \log p_{i y_i}}{\sum_i w_i}\right)

    Args:
      logits: the key of the logits, `[…, C]`.
      labels: the key of the integer labels, `[…]`. A label that is no class gives NaN.

    Returns:
      A Metric whose value is a float32 scalar.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.perplexity()
      >>> acc = m.update(m.empty(), {"logits": jnp.zeros((2, 8)), "labels": jnp.array([3, 5])})
      >>> round(float(m.compute(acc)), 4)
      8.0
    """

    def update(acc, outputs, weight=None):
        z, y = _scores_and_labels(outputs, logits, labels, "perplexity")
        if z.ndim == y.ndim:
            raise DataError(
                f"perplexity needs logits for all classes in {logits!r}, got {z.dtype.name}{list(z.shape)}"
            )
        known = (y >= 0) & (y < z.shape[-1])
        logp = jax.nn.log_softmax(z.astype(jnp.float32))
        own = jnp.take_along_axis(logp, jnp.where(known, y, 0)[..., None], axis=-1)[..., 0]
        return basic.fold(acc, jnp.where(known, -own, jnp.nan), weight)

    def compute(acc):
        return jnp.exp(basic.compute(acc))

    return basic.empty, update, basic.merge, compute


def _scores_and_labels(
    outputs: Outputs, logits: str, labels: str, reader: str
) -> tuple[jax.Array, jax.Array]:
    """Scores `[…, C]`, or integer predictions `[…]`, and int32 labels `[…]`."""
    scores, y = _base.read(outputs, logits, reader), _base.read(outputs, labels, reader)
    if not (jnp.issubdtype(y.dtype, jnp.integer) or y.dtype == jnp.bool_):
        raise DataError(f"output {labels!r} must hold integer labels, got {y.dtype.name}{list(y.shape)}")
    if jnp.issubdtype(scores.dtype, jnp.floating):
        fits, wanted = scores.ndim > 0 and scores.shape[:-1] == y.shape, [*y.shape, "classes"]
    else:
        fits, wanted = scores.shape == y.shape, list(y.shape)
    if not fits:
        raise DataError(
            f"output {logits!r} of shape {list(scores.shape)}, {scores.dtype.name}, does not fit the labels of shape "
            f"{list(y.shape)} that {reader} reads: expected {wanted}"
        )
    return scores, y.astype(jnp.int32)


def predicted_classes(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """The highest score's class, the first of equals; integer predictions are taken as they are."""
    if scores.ndim == labels.ndim:
        return scores.astype(jnp.int32)
    # argmax in two plain reductions, which XLA:CPU does in vectors: the first of the largest, or of the NaN.
    highest = jnp.max(scores, axis=-1, keepdims=True)
    places = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    chosen = (scores == highest) | jnp.isnan(scores)
    return jnp.min(jnp.where(chosen, places, jnp.int32(scores.shape[-1])), axis=-1)


def _yes_or_no(
    outputs: Outputs, logits: str, labels: str, cut: float, reader: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether predicted, whether true, and whether the label says either, element by element."""
    z, y = _base.read(outputs, logits, reader), _base.read(outputs, labels, reader)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise DataError(
            f"output {logits!r} must hold floating-point logits, got {z.dtype.name}{list(z.shape)}"
        )
    if z.shape == (*y.shape, 2):
        z = z[..., 1] - z[..., 0]
    if z.shape != y.shape:
        raise DataError(
            f"output {logits!r} of shape {list(z.shape)} does not fit the labels of shape {list(y.shape)} that "
            f"{reader} reads: expected one logit a label"
        )
    y = y.astype(jnp.float32)
    return z.astype(jnp.float32) >= jnp.float32(cut), y == 1, (y == 0) | (y == 1)


def _among_top(scores: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether fewer than `k` classes come before the label's: a comparison of each score, and no sort."""
    if scores.ndim == labels.ndim:
        raise DataError(
            f"`top_k={k}` needs scores for all classes, got integer predictions {list(scores.shape)}"
        )
    classes = jnp.arange(scores.shape[-1], dtype=jnp.int32).reshape((1,) * labels.ndim + (-1,))
    label = labels[..., None]
    own = jnp.max(jnp.where(classes == label, scores, -jnp.inf), axis=-1, keepdims=True)
    before = (scores > own) | ((scores == own) & (classes < label))
    known = (labels >= 0) & (labels < scores.shape[-1])
    return known & (jnp.sum(before, axis=-1, dtype=jnp.int32) < k)
