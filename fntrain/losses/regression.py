"""Errors of numbers: squared, absolute, Huber's."""

from typing import Any

import jax
import jax.numpy as jnp

from .._core import check
from .inputs import (
    floating,
    same_shape,
)
from .loss import Loss


def mse(predictions: jax.Array, targets: jax.Array) -> Loss:
    r"""Mean squared error: one value per example, the mean over all its other axes.

    .. math:: \ell_i = \frac1D \sum_d (\hat y_{id} - y_{id})^2

    Args:
      predictions: `[B, …]`, floating-point.
      targets: numbers of the same shape.

    Returns:
      A Loss with values `[B]`, float32 at least.

    Raises:
      DataError: if the shapes differ; `[B]` against `[B, 1]` would broadcast to `[B, B]`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> predictions, targets = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[0.0, 0.0], [0.0, 1.0]])
      >>> ft.losses.mse(predictions, targets).values.tolist()
      [2.5, 0.5]
    """
    return _per_example(jnp.square(_errors(predictions, targets)))


def mae(predictions: jax.Array, targets: jax.Array) -> Loss:
    r"""Mean absolute error: one value per example, the mean over all its other axes.

    .. math:: \ell_i = \frac1D \sum_d |\hat y_{id} - y_{id}|

    Args:
      predictions: `[B, …]`, floating-point.
      targets: numbers of the same shape.

    Returns:
      A Loss with values `[B]`, float32 at least.

    Raises:
      DataError: if the shapes differ.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.losses.mae(jnp.array([1.0, -2.0]), jnp.array([0.0, 0.0])).values.tolist()
      [1.0, 2.0]
    """
    return _per_example(jnp.abs(_errors(predictions, targets)))


def huber(predictions: jax.Array, targets: jax.Array, delta: float = 1.0) -> Loss:
    r"""Squared for small errors, absolute for large ones; one value per example.

    .. math:: h(e) = \begin{cases} e^2 / 2 & |e| \le \delta \\ \delta (|e| - \delta / 2) & |e| > \delta
              \end{cases}, \qquad \ell_i = \frac1D \sum_d h(\hat y_{id} - y_{id})

    Args:
      predictions: `[B, …]`, floating-point.
      targets: numbers of the same shape.
      delta: δ, where the two meet, > 0, in the units of the targets.

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
    size = jnp.abs(_errors(predictions, targets))
    inner = jnp.minimum(size, jnp.asarray(delta, size.dtype))
    return _per_example(inner * (size - inner / 2))


def _errors(predictions: Any, targets: Any) -> jax.Array:
    predictions, targets = floating("predictions", predictions, "targets"), jnp.asarray(targets)
    same_shape("predictions", predictions, "targets", targets)
    dtype = targets.dtype if targets.dtype == jnp.float64 else predictions.dtype
    return predictions.astype(dtype) - targets.astype(dtype)


def _per_example(errors: jax.Array) -> Loss:
    return Loss(jnp.mean(errors, axis=tuple(range(1, errors.ndim))))
