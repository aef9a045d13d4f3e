"""Errors of numbers and vectors: squared, absolute, between the two, and of direction."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._core import check
from .._core.errors import DataError
from .._core.typing import ArrayLike
from .inputs import floating, kept, loss_weights, same_shape, together, weighted
from .loss import Loss


def mse(predictions: jax.Array, targets: jax.Array, *, weights: ArrayLike | None = None) -> Loss:
    r"""Mean squared error: one value per example, the mean over all its other axes.

    .. math:: \ell_i = \frac1D \sum_d (\hat y_{id} - y_{id})^2

    Args:
      predictions: `[B, …]`, floating-point.
      targets: numbers of the same shape.
      weights: what counts, and how much, >= 0: one an example, `[B]`, or one a target, `[B, …]` (a mask of missing
        ones, say). An example's value is then the weighted mean of its targets, and its weight the mean of
        theirs, so that the loss's mean is the weighted mean over all. What weighs zero may hold anything, NaN
        included, and gets no gradient; the weights themselves are constants for gradients. None is ones.

    Returns:
      A Loss with values `[B]`, float32 at least.

    Raises:
      DataError: if the shapes differ; `[B]` against `[B, 1]` would broadcast to `[B, B]`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> predictions, targets = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[0.0, 0.0], [0.0, 1.0]])
      >>> ft.losses.mse(predictions, targets).values.tolist()
      [2.5, 0.5]
      >>> targets = jnp.array([[0.0, jnp.nan], [0.0, 1.0]])
      >>> float(ft.losses.mse(predictions, targets, weights=~jnp.isnan(targets)).mean())  # (1 + 0 + 1) / 3
      0.6666666865348816
    """
    return _of_errors(jnp.square, predictions, targets, weights)


def mae(predictions: jax.Array, targets: jax.Array, *, weights: ArrayLike | None = None) -> Loss:
    r"""Mean absolute error: one value per example, the mean over all its other axes.

    .. math:: \ell_i = \frac1D \sum_d |\hat y_{id} - y_{id}|

    Args:
      predictions: `[B, …]`, floating-point.
      targets: numbers of the same shape.
      weights: `[B]` or `[B, …]`, >= 0, as in `mse`; what weighs zero may hold anything. None is ones.

    Returns:
      A Loss with values `[B]`, float32 at least.

    Raises:
      DataError: if the shapes differ.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.losses.mae(jnp.array([1.0, -2.0]), jnp.array([0.0, 0.0])).values.tolist()
      [1.0, 2.0]
    """
    return _of_errors(jnp.abs, predictions, targets, weights)


def huber(
    predictions: jax.Array, targets: jax.Array, delta: float = 1.0, *, weights: ArrayLike | None = None
) -> Loss:
    r"""Squared for small errors, absolute for large ones; one value per example.

    .. math:: h(e) = \begin{cases} e^2 / 2 & |e| \le \delta \\ \delta (|e| - \delta / 2) & |e| > \delta
              \end{cases}, \qquad \ell_i = \frac1D \sum_d h(\hat y_{id} - y_{id})

    Args:
      predictions: `[B, …]`, floating-point.
      targets: numbers of the same shape.
      delta: δ, where the two meet, > 0, in the units of the targets.
      weights: `[B]` or `[B, …]`, >= 0, as in `mse`; what weighs zero may hold anything. None is ones.

    Returns:
      A Loss with values `[B]`, float32 at least.

    Raises:
      ConfigError: if `delta` is not > 0.
      DataError: if the shapes differ.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.losses.huber(jnp.array([0.5, -3.0]), jnp.array([0.0, 0.0])).values.tolist()
      [0.125, 2.5]

    References:
      Huber, *Robust Estimation of a Location Parameter*, 1964.
    """
    check.number("delta", delta, above=0)

    def error(e: jax.Array) -> jax.Array:
        bend = jnp.asarray(delta).astype(e.dtype)
        size = jnp.abs(e)
        inside = size <= bend
        # Each branch sees only numbers of its own: the other's infinity would come back as 0 * inf.
        small, large = jnp.where(inside, size, 0), jnp.where(inside, bend, size)
        return jnp.where(inside, jnp.square(small) / 2, bend * (large - bend / 2))

    return _of_errors(error, predictions, targets, weights)


def log_cosh(predictions: jax.Array, targets: jax.Array, *, weights: ArrayLike | None = None) -> Loss:
    r"""The logarithm of the hyperbolic cosine: squared for small errors, absolute for large ones, smooth between.

    .. math:: \ell_i = \frac1D \sum_d \log \cosh(\hat y_{id} - y_{id})

    Right to the last digits for errors of any size: :math:`e^2 / 2` near zero, :math:`|e| - \log 2` far from it.

    Args:
      predictions: `[B, …]`, floating-point.
      targets: numbers of the same shape.
      weights: `[B]` or `[B, …]`, >= 0, as in `mse`; what weighs zero may hold anything. None is ones.

    Returns:
      A Loss with values `[B]`, float32 at least.

    Raises:
      DataError: if the shapes differ.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> loss = ft.losses.log_cosh(jnp.array([0.0, 1.0, -100.0]), jnp.zeros(3))
      >>> [round(float(v), 4) for v in loss.values]
      [0.0, 0.4338, 99.3069]
    """
    return _of_errors(_log_cosh, predictions, targets, weights)


def cosine_distance(predictions: jax.Array, targets: jax.Array, *, weights: ArrayLike | None = None) -> Loss:
    r"""One minus the cosine of the angle between two vectors: 0 for one direction, 2 for opposite ones.

    .. math:: \ell_i = 1 - \frac{\hat y_i \cdot y_i}{\|\hat y_i\| \|y_i\|}

    The same at any scale of either vector. A vector of zeros has no direction: its distance is 1, and gets no
    gradient.

    Args:
      predictions: `[…, D]`, floating-point.
      targets: numbers of the same shape.
      weights: one a vector, broadcastable to `[…]`, >= 0; what weighs zero may hold anything. None is ones.

    Returns:
      A Loss with values `[…]`, float32 at least.

    Raises:
      DataError: if the shapes differ, or there is no axis of vectors.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> a, b = jnp.array([[1.0, 0.0], [2.0, 2.0], [1.0, 0.0]]), jnp.array([[9.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
      >>> [round(float(v), 4) for v in ft.losses.cosine_distance(a, b).values]
      [0.0, 0.2929, 2.0]
    """
    p, t = _both(predictions, targets)
    if p.ndim == 0:
        raise DataError("`predictions` must have the vectors on their last axis, got shape []")
    w = loss_weights(weights, p.shape[:-1], p.dtype)
    directions = [_direction(kept(w, x)) for x in (p, t)]
    return weighted(1 - jnp.sum(directions[0] * directions[1], axis=-1), w)


def _log_cosh(e: jax.Array) -> jax.Array:
    size = jnp.abs(e)
    near = size < 1
    small, large = jnp.where(near, e, 0), jnp.where(near, 1, size)
    return jnp.where(
        near,
        jnp.log1p(jnp.square(jnp.sinh(small))) / 2,
        large + jnp.log1p(jnp.expm1(-2 * large) / 2),
    )


def _direction(x: jax.Array) -> jax.Array:
    """Vectors of length 1; zeros where there is no direction."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0))
    some = largest != 0
    # A direction does not change with the scale, and squares of the scaled numbers neither vanish nor overflow.
    x = jnp.where(some, x / jnp.where(some, largest, 1), 0)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(some, square, 1))


def _both(predictions: Any, targets: Any) -> tuple[jax.Array, jax.Array]:
    predictions, targets = floating("predictions", predictions, "targets"), jnp.asarray(targets)
    same_shape("predictions", predictions, "targets", targets)
    return together(predictions, targets)


def _of_errors(error: Callable[[jax.Array], jax.Array], predictions: Any, targets: Any, weights: Any) -> Loss:
    """One value per example: the mean of its errors, those that count."""
    p, t = _both(predictions, targets)
    w = loss_weights(weights, p.shape[:1], p.dtype, p.shape)
    each, rest = error(kept(w, p) - kept(w, t)), tuple(range(1, p.ndim))
    if w is None or w.ndim < max(p.ndim, 2):
        return weighted(jnp.mean(each, axis=rest), w)
    share = jnp.mean(w, axis=rest)
    return weighted(jnp.mean(each * w, axis=rest) / jnp.where(share != 0, share, 1), share)
