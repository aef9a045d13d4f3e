"""Hinge losses: a right answer has to be right by a margin."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.errors import DataError
from .._core.typing import ArrayLike
from .inputs import floating, kept, loss_weights, readable, same_shape, weighted
from .loss import Loss


def hinge(scores: jax.Array, labels: jax.Array, *, weights: ArrayLike | None = None) -> Loss:
    r"""How far a score stays behind a margin of 1 on the right side, element by element.

    .. math:: \ell = \max(0, 1 - y s), \qquad y = \pm 1

    Args:
      scores: s, `[…]`, floating-point, unbounded.
      labels: of the same shape: 1 for yes, and 0 or -1 for no, or booleans. Decisions, without a gradient.
      weights: broadcastable to `[…]`, >= 0; elements of weight zero may hold anything. None is ones.

    Returns:
      A Loss with values of that shape; NaN where a label that cannot be read is none of these.

    Raises:
      DataError: if the shapes differ, or labels that can be read are none of these.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.losses.hinge(jnp.array([2.0, 0.5, 0.5]), jnp.array([1, 1, 0])).values.tolist()
      [0.0, 0.5, 1.5]

    References:
      Cortes, Vapnik, *Support-Vector Networks*, 1995.
    """
    short, w = _short(scores, labels, weights)
    return weighted(short, w)


def squared_hinge(scores: jax.Array, labels: jax.Array, *, weights: ArrayLike | None = None) -> Loss:
    r"""The square of `hinge`, which has no kink at the margin.

    .. math:: \ell = \max(0, 1 - y s)^2, \qquad y = \pm 1

    Args:
      scores: as in `hinge`, and so are all others.
      labels: 1 for yes, and 0 or -1 for no, or booleans.
      weights: broadcastable to `[…]`, >= 0.

    Returns:
      A Loss with values of that shape.

    Raises:
      DataError: if the shapes differ, or labels that can be read are none of these.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.losses.squared_hinge(jnp.array([2.0, 0.5, 0.5]), jnp.array([1, 1, -1])).values.tolist()
      [0.0, 0.25, 2.25]
    """
    short, w = _short(scores, labels, weights)
    return weighted(jnp.square(short), w)


def _short(scores: Any, labels: Any, weights: Any) -> tuple[jax.Array, jax.Array | None]:
    """By how much each score misses the margin, and the weights."""
    s, y = floating("scores", scores, "labels"), jnp.asarray(labels)
    same_shape("scores", s, "labels", y)
    w = loss_weights(weights, s.shape, s.dtype)
    s, y = kept(w, s), kept(w, y)
    yes, known = y == 1, (y == 1) | (y == 0)
    if y.dtype != jnp.bool_:
        known |= y.astype(jnp.float32) == -1
    if readable(known) and not np.asarray(known).all():
        raise DataError(
            f"`labels` must be 1 for yes and 0 or -1 for no, got {np.asarray(y)[~np.asarray(known)][0]}"
        )
    return jnp.where(known, jnp.maximum(1 - jnp.where(yes, s, -s), 0), jnp.nan), w
