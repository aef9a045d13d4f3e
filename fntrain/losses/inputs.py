"""What losses ask of their arguments before they compute anything, and the sums they share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import DataError
from ..tree import wide


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


def weighted_sum(logp: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum over the classes, where weight 0 times -inf is 0."""
    weights = over_rows(weights, logp.ndim)
    return jnp.sum(jnp.where(weights != 0, logp, 0) * weights, axis=-1)


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
