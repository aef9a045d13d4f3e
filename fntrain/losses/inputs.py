"""What losses ask of their arguments before they compute anything, and the sums they share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import DataError
from ..tree import wide
from .loss import Loss


def same_shape(a_name: str, a: jax.Array, b_name: str, b: jax.Array) -> None:
    """Refuse arrays of different shapes, with the usual slip."""
    if a.shape == b.shape:
        return
    hint = ""
    if a.shape == (*b.shape, 1):
        hint = f"; did you mean `{a_name}[..., 0]`?"
    elif b.shape == (*a.shape, 1):
        hint = f"; did you mean `{b_name}[..., 0]`?"
    raise DataError(
        f"`{a_name}` and `{b_name}` must have one shape, got {list(a.shape)} and {list(b.shape)}{hint}"
    )


def floating(name: str, x: Any, other: str) -> jax.Array:
    """`x` in float32 at least; anything but floating-point is refused."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise DataError(
            f"`{name}` must be floating-point, got {x.dtype.name}{list(x.shape)}; "
            f"the order is ({name}, {other})"
        )
    return wide(x)


def together(x: jax.Array, other: Any) -> tuple[jax.Array, jax.Array]:
    """`x`, and numbers in its dtype; both in float64 if either is."""
    other = jnp.asarray(other)
    dtype = other.dtype if other.dtype == jnp.float64 else x.dtype
    return x.astype(dtype), other.astype(dtype)


def loss_weights(
    weights: Any, shape: tuple[int, ...], dtype: Any, elements: tuple[int, ...] | None = None
) -> jax.Array | None:
    """`weights` in `dtype`, for values of `shape`, or for the `elements` that each value is a mean of.

    Constants for gradients, as a Loss's are. None stays None.

    Raises:
      DataError: if they are no real numbers, fit neither shape, or are negative or not finite where that can be
        read.
    """
    if weights is None:
        return None
    given = jnp.asarray(weights)
    if not (jnp.issubdtype(given.dtype, jnp.number) or given.dtype == jnp.bool_) or jnp.iscomplexobj(given):
        raise DataError(f"`weights` must be numbers or a mask, got {given.dtype.name}{list(given.shape)}")
    whole = shape if elements is None or given.ndim <= len(shape) else elements
    fits = len(given.shape) <= len(whole) and all(a in (1, b) for a, b in zip(given.shape[::-1], whole[::-1]))
    if not fits:
        also = "" if elements is None or elements == shape else f" or {list(elements)}"
        hint = "; did you mean `weights[:, None]`?" * (given.shape == whole[:1] and len(whole) == 2)
        raise DataError(
            f"`weights` must broadcast to the values, {list(shape)}{also}, got {list(given.shape)}{hint}"
        )
    if given.dtype != jnp.bool_ and readable(given):
        host = np.asarray(given.astype(dtype))
        wrong = ~((host >= 0) & np.isfinite(host))
        if wrong.any():
            raise DataError(f"`weights` must be >= 0 and finite, got {host[wrong].reshape(-1)[0]}")
    return jnp.broadcast_to(jax.lax.stop_gradient(given.astype(dtype)), whole)


def kept(weights: jax.Array | None, x: jax.Array, filler: Any = 0) -> jax.Array:
    """`x`, but `filler` where the weight of its leading axes is zero.

    It has to happen before anything is computed: behind a computation, autodiff multiplies the zero gradient of what
    is left out by a derivative that may be NaN, and 0 * NaN is NaN.
    """
    if weights is None:
        return x
    counted = weights.reshape(weights.shape + (1,) * (x.ndim - weights.ndim)) != 0
    return jnp.where(counted, x, jnp.asarray(filler, x.dtype))


def weighted(values: jax.Array, weights: jax.Array | None) -> Loss:
    """A Loss whose values are 0 where their weight is."""
    return Loss(values if weights is None else jnp.where(weights != 0, values, 0), weights)


def absorbed(weight: jax.Array, x: jax.Array) -> jax.Array:
    """`weight * x`, where 0 times infinity is 0; the gradient by a weight of 0 is `x` all the same, if finite."""
    return weight * jnp.where((weight == 0) & jnp.isinf(x), 0, x)


def weighted_sum(logp: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum over the classes, where weight 0 times -inf is 0."""
    return jnp.sum(absorbed(over_rows(weights, logp.ndim), logp), axis=-1)


def over_rows(x: jax.Array, ndim: int) -> jax.Array:
    """An array with axes of one in front, up to `ndim`."""
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def at_least_tiny(p: jax.Array) -> jax.Array:
    """Probabilities, those below the smallest normal float32 as that."""
    return jnp.maximum(p, jnp.asarray(jnp.finfo(jnp.float32).tiny, p.dtype))


def readable(x: jax.Array) -> bool:
    """Whether the numbers can be looked at here: not traced, and not on another process's devices."""
    return check.is_concrete(x) and x.is_fully_addressable


def are_distributions(rows: np.ndarray) -> bool:
    """Whether every row is >= 0 and sums to 1, to within a hundredth."""
    return bool((rows >= 0).all() and np.allclose(rows.sum(-1), 1, atol=1e-2))


def within_unit(x: np.ndarray) -> bool:
    """Whether every number is in [0, 1]."""
    return x.dtype == bool or bool(((x >= 0) & (x <= 1)).all())
