"""Single numbers of a confusion matrix that chance does not flatter."""

from typing import Any

import jax.numpy as jnp

from .._core import check
from . import exact
from .base import metric, ratio, reading
from .confusion import confusion_counts, counts_of, known_matrix
from .labels import zero_ratio


@metric(better="max")
def balanced_accuracy(
    num_classes: int,
    *,
    adjusted: bool = False,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""The mean recall of the classes that occur among the labels.

    .. math:: \frac{1}{|K|} \sum_{c \in K} \frac{TP_c}{TP_c + FN_c}, \qquad K = \{c : TP_c + FN_c > 0\}

    Args:
      num_classes: C.
      adjusted: True moves and scales it, so that chance is 0 and perfection 1.
      logits: the key of the scores, `[…, C]`, or of integer predictions `[…]`.
      labels: the key of the integer labels, `[…]`.
      weighted: True weighs elements by the real weights, in float32; False takes weights as a mask.

    Returns:
      A Metric whose value is a float32 scalar; NaN if nothing was seen, a score was NaN, or a label was no class.

    Raises:
      ConfigError: if `num_classes` is no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.balanced_accuracy(2)
      >>> outputs = {"logits": jnp.array([0, 0, 0, 0]), "labels": jnp.array([0, 0, 0, 1])}
      >>> float(m.compute(m.update(m.empty(), outputs)))
      0.5

    References:
      Brodersen et al., *The Balanced Accuracy and Its Posterior Distribution*, 2010; scikit-learn's
      `balanced_accuracy_score`.
    """
    kind = exact.tally(weighted)

    def compute(acc):
        counts = counts_of(kind, acc)
        occurs = counts.actual != 0
        classes = jnp.sum(occurs.astype(jnp.float32))
        value = ratio(jnp.sum(zero_ratio(counts.hits, counts.actual)), classes)
        if adjusted:
            chance = ratio(jnp.float32(1), classes)
            value = ratio(value - chance, 1 - chance)
        return value

    return reading(confusion_counts(num_classes, logits, labels, weighted), compute)


@metric(better="max")
def mcc(num_classes: int, *, logits: str = "logits", labels: str = "labels", weighted: bool = False):
    r"""Matthews' correlation coefficient of labels and predictions, of two classes or more.

    .. math:: \frac{\sum_c (TP_c\, TN_c - FP_c\, FN_c)}
                   {\sqrt{\sum_c t_c (n - t_c)}\, \sqrt{\sum_c p_c (n - p_c)}}

    with :math:`t_c` labels and :math:`p_c` predictions of class c among n: Gorodkin's coefficient, each difference of
    which is formed where it cancels least. 1 is perfect, 0 chance; 0 where labels or predictions are all of one class.

    Args:
      num_classes: C.
      logits: the key of the scores, `[…, C]`, or of integer predictions `[…]`.
      labels: the key of the integer labels, `[…]`.
      weighted: True weighs elements by the real weights, in float32; False takes weights as a mask.

    Returns:
      A Metric whose value is a float32 scalar in [-1, 1]; NaN if nothing was seen, a score was NaN, or a label was no
      class.

    Raises:
      ConfigError: if `num_classes` is no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.mcc(2)
      >>> outputs = {"logits": jnp.array([1, 1, 1, 0]), "labels": jnp.array([1, 1, 0, 1])}
      >>> round(float(m.compute(m.update(m.empty(), outputs))), 4)
      -0.3333

    References:
      Gorodkin, *Comparing Two K-Category Assignments by a K-Category Correlation Coefficient*, 2004; scikit-learn's
      `matthews_corrcoef`.
    """
    kind = exact.tally(weighted)

    def compute(acc):
        counts = counts_of(kind, acc)
        total = jnp.sum(counts.actual)
        hits, false, missed, others = (ratio(x, total) for x in counts)
        rejected = others - false
        top = jnp.sum(hits * rejected - false * missed)
        labels_vary = jnp.sum((hits + missed) * others)
        guesses_vary = jnp.sum((hits + false) * (rejected + missed))
        return zero_ratio(top, jnp.sqrt(labels_vary) * jnp.sqrt(guesses_vary))

    return reading(confusion_counts(num_classes, logits, labels, weighted), compute)


@metric(better="max")
def cohen_kappa(
    num_classes: int,
    weighting: str | None = None,
    *,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""Cohen's kappa: how much better than by chance labels and predictions agree.

    .. math:: \kappa = 1 - \frac{\sum_{ij} d_{ij} M_{ij}}{\sum_{ij} d_{ij} E_{ij}}, \qquad
              E_{ij} = \frac{t_i p_j}{n}

    with the confusion matrix M, and the disagreements d: 1 off the diagonal, or :math:`|i - j|`, or
    :math:`(i - j)^2`.

    Args:
      num_classes: C.
      weighting: None, `"linear"` or `"quadratic"`, for classes that have an order.
      logits: the key of the scores, `[…, C]`, or of integer predictions `[…]`.
      labels: the key of the integer labels, `[…]`.
      weighted: True weighs elements by the real weights, in float32; False takes weights as a mask.

    Returns:
      A Metric whose value is a float32 scalar; NaN if nothing was seen, all is of one class and predicted so, a score
      was NaN, or a label was no class.

    Raises:
      ConfigError: if `num_classes` is no integer >= 1, or `weighting` is unknown.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.cohen_kappa(2)
      >>> outputs = {"logits": jnp.array([1, 1, 0, 0]), "labels": jnp.array([1, 1, 1, 0])}
      >>> float(m.compute(m.update(m.empty(), outputs)))
      0.5

    References:
      Cohen, *A Coefficient of Agreement for Nominal Scales*, 1960; scikit-learn's `cohen_kappa_score`.
    """
    check.one_of("weighting", weighting, (None, "linear", "quadratic"))
    kind = exact.tally(weighted)

    def compute(acc):
        matrix = known_matrix(kind, acc)
        share = ratio(matrix, jnp.sum(matrix))
        actual, predicted = jnp.sum(share, axis=1), jnp.sum(share, axis=0)
        apart = _distances(num_classes, weighting)
        expected = jnp.sum(apart * actual[:, None] * predicted[None, :])
        return 1 - ratio(jnp.sum(apart * share), expected)

    return reading(confusion_counts(num_classes, logits, labels, weighted), compute)


def _distances(classes: int, weighting: str | None) -> Any:
    place = jnp.arange(classes, dtype=jnp.float32)
    apart = jnp.abs(place[:, None] - place[None, :])
    if weighting is None:
        return (apart != 0).astype(jnp.float32)
    return apart if weighting == "linear" else jnp.square(apart)
