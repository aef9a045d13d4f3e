"""A yes-or-no decision: its counts and ratios."""

import jax.numpy as jnp
import numpy as np

from .._core import check
from . import exact
from .base import element_weights, metric
from .labels import checked_zero_division, totals, yes_or_no, zero_ratio


@metric(better=dict.fromkeys(("accuracy", "precision", "recall", "f1"), "max"))
def binary_stats(
    threshold: float = 0.5,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
    *,
    zero_division: float = 0.0,
):
    r"""Counts and ratios of a yes-or-no decision: yes where the probability is at least `threshold`.

    .. math:: \text{yes} \iff \sigma(z) \ge t \iff z \ge \log \frac{t}{1 - t}

    Args:
      threshold: t, a probability in [0, 1].
      logits: the key of the logits, `[…]`, or `[…, 2]`, whose difference is one.
      labels: the key of the labels, 0 or 1, `[…]`; all elements are counted together.
      weighted: True adds up real weights, in float32; False takes weights as a mask and counts.
      zero_division: the ratio where there is nothing to divide by: 0, 1 or NaN.

    Returns:
      A Metric whose value is a dict: `tp`, `fp`, `fn`, `tn`, uint32 counts (held at 2^32 - 1; float32 if
      weighted) of what could be decided, and `accuracy`, `precision`, `recall`, `f1`, float32; NaN if nothing was
      seen, a logit was NaN, or a label was neither 0 nor 1.

    Raises:
      ConfigError: if `threshold` is not in [0, 1], or `zero_division` is none of these.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.binary_stats()
      >>> outputs = {"logits": jnp.array([1.0, 0.0, -1.0, 2.0]), "labels": jnp.array([1, 0, 1, 1])}
      >>> stats = m.compute(m.update(m.empty(), outputs))
      >>> int(stats["tp"]), int(stats["fp"]), int(stats["fn"]), float(stats["accuracy"])
      (2, 1, 1, 0.5)
    """
    check.number("threshold", threshold, at_least=0, at_most=1)
    otherwise = checked_zero_division(zero_division)
    kind = exact.tally(weighted)
    with np.errstate(divide="ignore"):
        cut = float(np.log(threshold) - np.log1p(-threshold))

    def empty():
        return kind.empty((5,))  # tp, fp, fn, tn, what is undecided: NaN, or a label neither 0 nor 1

    def update(acc, outputs, weight=None):
        guess, true, known = yes_or_no(outputs, logits, labels, cut, "binary_stats")
        chosen = (guess & true, guess & ~true, ~guess & true, ~guess & ~true)
        amounts = kind.amounts(element_weights(weight, guess.shape, "binary_stats"))
        return kind.add(acc, totals([*(x & known for x in chosen), ~known], amounts))

    def compute(acc):
        tp, fp, fn, tn, outside = kind.read(acc)
        total = tp + fp + fn + tn
        ratios = {
            "accuracy": zero_ratio(tp + tn, total),
            "precision": zero_ratio(tp, tp + fp, otherwise),
            "recall": zero_ratio(tp, tp + fn, otherwise),
            "f1": zero_ratio(2 * tp, 2 * tp + fp + fn, otherwise),
        }
        usable = (total != 0) & (outside == 0)
        counts = dict(zip(("tp", "fp", "fn", "tn"), kind.values(acc)))
        return {**counts, **{name: jnp.where(usable, x, jnp.nan) for name, x in ratios.items()}}

    return empty, update, kind.merge, compute
