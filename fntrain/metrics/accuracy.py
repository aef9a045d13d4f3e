"""Accuracy: the share of elements whose label is among the highest scores."""

import jax.numpy as jnp

from .._core import check
from . import exact
from .base import element_weights, metric, ratio
from .labels import among_top, predicted_classes, scores_and_labels, totals, unordered


@metric(better="max")
def accuracy(top_k: int = 1, logits: str = "logits", labels: str = "labels", weighted: bool = False):
    r"""The share of elements whose label is among the `top_k` highest logits.

    .. math:: \frac1N \#\{i : |\{c : z_{ic} > z_{i y_i}\}| < k\}

    Ties go to the lower class. Counts are exact integers; 0 to 1; NaN if nothing was seen, or a score was NaN.

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
    check.integer("top_k", top_k, at_least=1)
    kind = exact.tally(weighted)

    def empty():
        # Hits, elements, NaN scores: in one array, since a step hands out every array it reports.
        return kind.empty((3,))

    def update(acc, outputs, weight=None):
        scores, y = scores_and_labels(outputs, logits, labels, "accuracy")
        hits = predicted_classes(scores, y) == y if top_k == 1 else among_top(scores, y, top_k)
        amounts = kind.amounts(element_weights(weight, y.shape, "accuracy"))
        return kind.add(acc, totals([hits, jnp.ones_like(hits), unordered(scores, y)], amounts))

    def compute(acc):
        hits, total, lost = kind.read(acc)
        return jnp.where(lost == 0, ratio(hits, total), jnp.nan)

    return empty, update, kind.merge, compute
