"""Kullback-Leibler divergence: how far one distribution is from another."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from .._core.errors import DataError
from .._core.typing import ArrayLike
from .classification import log_probabilities
from .inputs import (
    absorbed,
    are_distributions,
    at_least_tiny,
    floating,
    kept,
    loss_weights,
    readable,
    same_shape,
    together,
    weighted,
)
from .loss import Loss


def kl_divergence(
    logits: jax.Array,
    targets: jax.Array,
    *,
    from_logits: bool = True,
    targets_from_logits: bool = False,
    weights: ArrayLike | None = None,
) -> Loss:
    r"""The Kullback-Leibler divergence of predicted distributions from the target ones, over C classes.

    .. math:: \ell_i = \sum_c t_{ic} (\log t_{ic} - \log p_{ic})

    That is the cross-entropy less the entropy of the targets: the same gradient by the logits, and 0 where the two are
    equal. Where :math:`t` is 0, nothing is added.

    Args:
      logits: `[…, C]`, floating-point: scores of any scale, or probabilities if `from_logits` is False.
      targets: distributions `[…, C]`, or logits of them (another model's) if `targets_from_logits`.
      from_logits: False takes `logits` as probabilities; those below the smallest normal float32 count as that.
      targets_from_logits: True takes `targets` as logits.
      weights: broadcastable to `[…]`, >= 0; rows of weight zero may hold anything. None is ones.

    Returns:
      A Loss with values `[…]`, float32 at least; NaN where a target that cannot be read is negative.

    Raises:
      DataError: if shapes or dtypes do not fit, or targets that can be read are negative.

    Warns:
      UserWarning: if rows of probabilities that can be read are no distributions.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> targets = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
      >>> [round(float(v), 4) for v in ft.losses.kl_divergence(jnp.zeros((2, 3)), targets).values]
      [0.4055, 1.0986]

    References:
      Kullback, Leibler, *On Information and Sufficiency*, 1951.
    """
    z, t = floating("logits", logits, "targets"), jnp.asarray(targets)
    if not jnp.issubdtype(t.dtype, jnp.floating):
        raise DataError(
            f"`targets` must be floating-point distributions, got {t.dtype.name}{list(t.shape)}; "
            "`cross_entropy` takes integer labels"
        )
    same_shape("logits", z, "targets", t)
    if z.ndim == 0 or z.shape[-1] == 0:
        raise DataError(f"`logits` must have the classes on their last axis, got shape {list(z.shape)}")
    z, t = together(z, t)
    w = loss_weights(weights, z.shape[:-1], z.dtype)
    even = 1 / z.shape[-1]
    z = kept(w, z, 0 if from_logits else even)
    t = kept(w, t, 0 if targets_from_logits else even)
    for name, rows, are_logits in (("logits", z, from_logits), ("targets", t, targets_from_logits)):
        if are_logits or not readable(rows):
            continue
        if name == "targets" and (np.asarray(rows) < 0).any():
            raise DataError(
                "`targets` must be distributions, >= 0; give logits with `targets_from_logits=True`"
            )
        if not are_distributions(np.asarray(rows)):
            warnings.warn(f"rows of `{name}` must be >= 0 and sum to 1, and some do not", stacklevel=2)
    logp = log_probabilities(z, from_logits)
    if targets_from_logits:
        logt = jax.nn.log_softmax(t)
        # Of two logarithms -inf, the difference is none: what neither has is nothing apart.
        apart = jnp.where(logt == -jnp.inf, 0, logt) - jnp.where(logt == -jnp.inf, 0, logp)
        return weighted(jnp.sum(jnp.exp(logt) * apart, axis=-1), w)
    each = t * jnp.log(at_least_tiny(t)) - absorbed(t, logp)
    return weighted(jnp.sum(jnp.where(t < 0, jnp.nan, each), axis=-1), w)
