"""Focal losses: cross-entropies that turn away from what is easy."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._core import check
from .._core.typing import ArrayLike
from .classification import at_labels, log_probabilities
from .inputs import absorbed, at_least_tiny, floating, kept, over_rows, weighted
from .labels import class_weights, counted, yes_or_no
from .loss import Loss


def focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float = 2.0,
    alpha: ArrayLike | Sequence[float] | None = None,
    ignore_index: int | None = None,
    from_logits: bool = True,
    weights: ArrayLike | None = None,
) -> Loss:
    r"""Cross-entropy over C classes, in which confident right answers count little.

    .. math:: \ell_i = -\sum_c \alpha_c\, t_{ic}\, (1 - p_{ic})^\gamma \log p_{ic}

    with :math:`t_i` one-hot for an integer label. γ = 0 is `cross_entropy`. α is part of the values, as in the paper:
    a mean divides by the number of rows, not by the sum of α.

    Args:
      logits: `[…, C]`, floating-point, or probabilities if `from_logits` is False.
      labels: integers `[…]`, or distributions `[…, C]`, floating-point.
      gamma: γ, how strongly the easy is turned down, >= 0.
      alpha: `[C]`, >= 0; None is ones.
      ignore_index: the integer label of what is not counted.
      from_logits: False takes `logits` as probabilities.
      weights: broadcastable to `[…]`, >= 0; what weighs zero may hold anything. None is ones.

    Returns:
      A Loss with values `[…]`. A label that is no class is an error where it can be read, else its value is NaN.

    Raises:
      ConfigError: if an option is out of range, `alpha` is not `[C]`, or `ignore_index` meets distributions.
      DataError: if shapes or dtypes do not fit, or a label is no class.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> logits, labels = jnp.array([[4.0, 0.0], [0.0, 0.0]]), jnp.array([0, 0])
      >>> [round(float(v), 5) for v in ft.losses.focal(logits, labels).values]
      [1e-05, 0.17329]

    References:
      Lin et al., *Focal Loss for Dense Object Detection*, 2017.
    """
    check.number("gamma", gamma, at_least=0)
    z, y, w = counted(floating("logits", logits, "labels"), labels, ignore_index, weights)
    classes = z.shape[-1]
    logp = log_probabilities(kept(w, z, 0 if from_logits else 1 / classes), from_logits)
    each = None if alpha is None else class_weights("alpha", alpha, classes, z.dtype)
    if jnp.issubdtype(y.dtype, jnp.floating):
        share = kept(w, y) if each is None else kept(w, y) * over_rows(each, y.ndim)
        return weighted(jnp.sum(_focused(share, logp, gamma), axis=-1), w)
    known = (y >= 0) & (y < classes)
    own = at_labels(logp, y)
    share = jnp.ones_like(own) if each is None else each[jnp.where(known, y, 0)]
    values = _focused(share, own, gamma)
    return weighted(jnp.where(known, values, jnp.nan), w)


def binary_focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    weights: ArrayLike | None = None,
) -> Loss:
    r"""Cross-entropy of yes-or-no labels, in which confident right answers count little.

    .. math:: \ell = -\alpha_t (1 - p_t)^\gamma \big(t \log p + (1 - t) \log (1 - p)\big), \qquad p = \sigma(z)

    with :math:`p_t = t p + (1 - t)(1 - p)` and :math:`\alpha_t = \alpha t + (1 - \alpha)(1 - t)`, or 1 if `alpha` is
    None. γ = 0 is `binary_cross_entropy`.

    Args:
      logits: `[…]`, floating-point.
      labels: of the same shape: integers or booleans, or probabilities in [0, 1].
      gamma: γ, >= 0.
      alpha: α, the share of the positives' weight, in [0, 1] (0.25 in the paper).
      weights: broadcastable to `[…]`, >= 0; elements of weight zero may hold anything. None is ones.

    Returns:
      A Loss with values of that shape; NaN where a label that cannot be read is not in [0, 1].

    Raises:
      ConfigError: if `gamma` or `alpha` is out of range.
      DataError: if the shapes differ, or labels that can be read are not in [0, 1].

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> loss = ft.losses.binary_focal(jnp.array([4.0, 0.0]), jnp.array([1, 1]), alpha=0.25)
      >>> [round(float(v), 7) for v in loss.values]
      [1.5e-06, 0.0433217]

    References:
      Lin et al., *Focal Loss for Dense Object Detection*, 2017.
    """
    check.number("gamma", gamma, at_least=0)
    z, t, w = yes_or_no("logits", logits, labels, weights)
    entropy = absorbed(t, jax.nn.softplus(-z)) + absorbed(1 - t, jax.nn.softplus(z))
    missed = t * jax.nn.sigmoid(-z) + (1 - t) * jax.nn.sigmoid(z)  # 1 - p_t, without its cancellation
    values = _power(missed, gamma) * entropy
    if alpha is not None:
        check.number("alpha", alpha, at_least=0, at_most=1)
        share = jnp.asarray(alpha).astype(z.dtype)
        values = values * (share * t + (1 - share) * (1 - t))
    return weighted(jnp.where((t >= 0) & (t <= 1), values, jnp.nan), w)


def _focused(share: jax.Array, logp: jax.Array, gamma: Any) -> jax.Array:
    """What the shares of classes cost, given the logarithms of their probabilities."""
    logp = jnp.where((share == 0) & jnp.isinf(logp), 0, logp)
    return -share * _power(-jnp.expm1(logp), gamma) * logp


def _power(base: jax.Array, exponent: Any) -> jax.Array:
    """`base ** exponent`, whose derivative stays finite at 0 for exponents below 1."""
    return jnp.power(at_least_tiny(base), jnp.asarray(exponent).astype(base.dtype))
