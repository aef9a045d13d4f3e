"""NDCG: how well a ranking puts what is relevant first."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import DataError
from .._core.typing import Outputs
from . import basic
from .base import element_weights, metric, read_output
from .labels import zero_ratio


@metric(better="max")
def ndcg(k: int | None = None, *, logits: str = "logits", labels: str = "labels"):
    r"""Normalised discounted cumulative gain, the mean over lists.

    .. math:: \mathrm{DCG}_i = \sum_{r = 1}^{k} \frac{g_{i, \pi_i(r)}}{\log_2 (r + 1)}, \qquad
              \mathrm{NDCG} = \frac1{\sum_i w_i} \sum_i w_i \frac{\mathrm{DCG}_i}{\max_\pi \mathrm{DCG}_i}

    with items in falling order of their scores. Items of equal scores each get the mean of their places' discounts, so
    that no order among them counts. A list in which nothing is relevant has 0.

    Args:
      k: how many places count; None is all.
      logits: the key of the scores, `[…, L]`, floating-point.
      labels: the key of the gains g, `[…, L]`, numbers >= 0; 2^relevance - 1 if wanted is for the caller to form. The
        step's weights of lists, `[…]`, are real numbers. Weights of items, `[…, L]`, are a mask of lists that are not
        equally long: what weighs zero is not in the list, and the list weighs as much as its largest item.

    Returns:
      A Metric whose value is a float32 scalar in [0, 1]; NaN if nothing was seen, a score was NaN, or a gain was
      negative.

    Raises:
      ConfigError: if `k` is no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.ndcg(k=2)
      >>> outputs = {"logits": jnp.array([[0.9, 0.8, 0.1]]), "labels": jnp.array([[0, 1, 1]])}
      >>> round(float(m.compute(m.update(m.empty(), outputs))), 4)
      0.3869

    References:
      Järvelin, Kekäläinen, *Cumulated Gain-Based Evaluation of IR Techniques*, 2002; scikit-learn's `ndcg_score`.
    """
    if k is not None:
        check.integer("k", k, at_least=1)

    def update(acc, outputs, weight=None):
        scores, gains, there = _read(outputs, weight, logits, labels)
        length = scores.shape[-1]
        discounts = 1 / np.log2(np.arange(length) + 2.0)
        if k is not None:
            discounts[k:] = 0
        through = jnp.asarray(np.concatenate([[0.0], np.cumsum(discounts)]), jnp.float32)
        # Behind all others, with no gain: where an item that is not there stands is of no consequence.
        keys, gains = jnp.where(there, scores, -jnp.inf), jnp.where(there, gains, 0)
        rows = (keys.reshape(-1, length), gains.reshape(-1, length), there.reshape(-1, length))
        got, best = jax.vmap(_gains, in_axes=(0, 0, 0, None, None))(
            *rows, through, jnp.asarray(discounts, jnp.float32)
        )
        bad = jnp.any(there & (jnp.isnan(scores) | ~(gains >= 0)), axis=-1)
        value = zero_ratio(got, best).reshape(bad.shape)
        return basic.fold(acc, jnp.where(bad, jnp.nan, value), element_weights(weight, bad.shape, "ndcg"))

    return basic.empty, update, basic.merge, basic.compute


def _gains(
    keys: jax.Array, gains: jax.Array, there: jax.Array, through: jax.Array, discounts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The discounted gain of one list, and the largest it could have."""
    falling = jnp.sort(-keys)
    first = jnp.searchsorted(falling, -keys, side="left")
    last = jnp.searchsorted(falling, -keys, side="right")
    # What is not there shares the end of the list with items of score -inf: they come first.
    last = jnp.minimum(last, jnp.maximum(jnp.sum(there, dtype=jnp.int32), first + 1))
    share = (through[last] - through[first]) / (last - first).astype(jnp.float32)
    return jnp.sum(gains * share), jnp.sum(-jnp.sort(-gains) * discounts)


def _read(outputs: Outputs, weight: Any, logits: str, labels: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores and gains, float32, and which items are there."""
    z, y = read_output(outputs, logits, "ndcg"), read_output(outputs, labels, "ndcg")
    if not jnp.issubdtype(z.dtype, jnp.floating) or z.ndim < 2 or z.shape != y.shape:
        raise DataError(
            f"ndcg needs floating-point scores {logits!r} and gains {labels!r} of one shape [lists, items], got "
            f"{z.dtype.name}{list(z.shape)} and {y.dtype.name}{list(y.shape)}"
        )
    of_items = weight is not None and jnp.ndim(weight) == z.ndim
    there = element_weights(weight, z.shape, "ndcg") != 0 if of_items else jnp.ones(z.shape, jnp.bool_)
    return z.astype(jnp.float32), y.astype(jnp.float32), there
