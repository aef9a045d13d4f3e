"""Areas under ROC and precision-recall curves: streamed in fixed memory with a bound, or exact up to a capacity.

A streamed curve counts positives and negatives in bins of the score. Pairs in different bins are in a known
order; only those that share a bin are not, so the counts say how wrong the area can be.
"""

from .._core import check
from .areas import averaged, binned_ap, binned_auc, exact_ap, exact_auc
from .base import metric, reading
from .ranked import ranked_scores


@metric(better="max")
def roc_auc(
    num_classes: int | None = None,
    average: str | None = "macro",
    *,
    multilabel: bool = False,
    bins: int | None = None,
    exact: bool = False,
    capacity: int | None = None,
    from_logits: bool = True,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""The area under the ROC curve: how likely a positive scores above a negative, ties counting half.

    .. math:: A = P(s_+ > s_-) + \tfrac12 P(s_+ = s_-)

    Scores are counted in bins that are narrow near 0 and grow with the score's size; rounding to a bin never
    changes an order. With :math:`p_b` and :math:`n_b` the shares of positives and negatives in bin b,

    .. math:: \hat A = \sum_b p_b \Big(\sum_{c < b} n_c + \tfrac12 n_b\Big), \qquad
              |A - \hat A| \le \tfrac12 \sum_b p_b n_b

    to which `bound` adds float32's rounding, 2e-6. Several classes are taken one against the rest. A class's
    score is then its log-odds, :math:`z_c - \log \sum_{j \ne c} e^{z_j}`, which orders rows as its probability
    does.

    Args:
      num_classes: None for two classes, else C.
      average: over classes: `"macro"`, `"weighted"` (by their numbers of positives) or None for all of them.
      multilabel: True for `num_classes` labels a row, each of them yes or no, with a logit each.
      bins: a power of two up to 65,536; None is 16,384, or 1,024 a class. With logits the bound is about
        2.6 / bins; it grows where scores crowd together.
      exact: True keeps the scores instead of counting them in bins.
      capacity: how many rows `exact=True` keeps. More is a DataError in `compute`; where that is traced, as in a
        step's metrics, a value of NaN with a bound of infinity, which `fit` and `evaluate` raise as that error.
      from_logits: False for probabilities in [0, 1], which are binned finely near 0 and 1.
      logits: the key of the scores: `[…]` or `[…, 2]` for two classes (any score that orders the rows will do in
        `[…]`), `[…, C]` for more.
      labels: the key of the labels: 0 or 1, `[…]`; integers `[…]` for `num_classes`; `[…, C]` if `multilabel`.
      weighted: True weighs elements by the real weights, in float32; False takes weights as a mask and counts,
        exactly.

    Returns:
      A Metric whose value is `Bounded(value, bound)`: float32 scalars, or `[C]` for `average=None`. NaN where a
      class has no positives or no negatives, a score is NaN, or a label is no class.

    Raises:
      ConfigError: if an argument is out of range, or `exact` and `capacity` do not go together.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.roc_auc()
      >>> outputs = {"logits": jnp.array([0.1, 0.4, 0.35, 0.8]), "labels": jnp.array([0, 0, 1, 1])}
      >>> area = m.compute(m.update(m.empty(), outputs))
      >>> round(float(area.value), 4), bool(area.bound < 1e-5)
      (0.75, True)

    References:
      Hanley, McNeil, *The Meaning and Use of the Area under a ROC Curve*, 1982.
    """
    base = ranked_scores(
        num_classes, multilabel, bins, exact, capacity, from_logits, logits, labels, weighted
    )
    return reading(base, averaged(binned_auc, exact_auc, num_classes, average, weighted, exact))


@metric(better="max")
def average_precision(
    num_classes: int | None = None,
    average: str | None = "macro",
    *,
    multilabel: bool = False,
    bins: int | None = None,
    exact: bool = False,
    capacity: int | None = None,
    from_logits: bool = True,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""Average precision: the area under the precision-recall curve, by steps.

    .. math:: \mathrm{AP} = \sum_k (R_k - R_{k-1}) P_k

    over the distinct scores in falling order. It is the mean, over positives, of the precision among all that
    score no less. Within a bin, that is highest if the bin's positives come first and together, and lowest if they
    come last and one by one: `bound` is the distance to the farther of the two, and 2e-6 for float32's rounding.
    The value takes the bin's positives and negatives as evenly mixed.

    Args:
      num_classes: as in `roc_auc`, and so are all others.
      average: over classes: `"macro"`, `"weighted"` (by their numbers of positives) or None for all of them.
      multilabel: True for `num_classes` labels a row.
      bins: a power of two up to 65,536.
      exact: True keeps the scores.
      capacity: how many rows `exact=True` keeps.
      from_logits: False for probabilities.
      logits: the key of the scores.
      labels: the key of the labels.
      weighted: True weighs elements by the real weights.

    Returns:
      A Metric whose value is `Bounded(value, bound)`; NaN where a class has no positives.

    Raises:
      ConfigError: if an argument is out of range.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.average_precision()
      >>> outputs = {"logits": jnp.array([0.1, 0.4, 0.35, 0.8]), "labels": jnp.array([0, 0, 1, 1])}
      >>> round(float(m.compute(m.update(m.empty(), outputs)).value), 4)
      0.8333
    """
    base = ranked_scores(
        num_classes, multilabel, bins, exact, capacity, from_logits, logits, labels, weighted
    )
    return reading(base, averaged(binned_ap, exact_ap, num_classes, average, weighted, exact))


@metric(better="max")
def mean_average_precision(
    num_classes: int,
    *,
    multilabel: bool = False,
    bins: int | None = None,
    exact: bool = False,
    capacity: int | None = None,
    from_logits: bool = True,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""The mean over classes of `average_precision`, one class against the rest, or over labels.

    .. math:: \mathrm{mAP} = \frac1C \sum_c \mathrm{AP}_c

    Args:
      num_classes: C, and the other arguments as in `roc_auc`.
      multilabel: True for `num_classes` labels a row.
      bins: a power of two up to 65,536.
      exact: True keeps the scores.
      capacity: how many rows `exact=True` keeps.
      from_logits: False for probabilities.
      logits: the key of the scores.
      labels: the key of the labels.
      weighted: True weighs elements by the real weights.

    Returns:
      A Metric whose value is `Bounded(value, bound)`; NaN if a class has no positives
      (`average_precision(C, average=None)` says which).

    Raises:
      ConfigError: if an argument is out of range.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.mean_average_precision(2, multilabel=True)
      >>> outputs = {"logits": jnp.array([[2.0, 1.0], [0.0, 0.0], [1.0, 2.0]]),
      ...            "labels": jnp.array([[1, 1], [0, 0], [1, 0]])}
      >>> round(float(m.compute(m.update(m.empty(), outputs)).value), 4)
      0.75
    """
    check.integer("num_classes", num_classes, at_least=1)
    base = ranked_scores(
        num_classes, multilabel, bins, exact, capacity, from_logits, logits, labels, weighted
    )
    return reading(base, averaged(binned_ap, exact_ap, num_classes, "macro", weighted, exact))
