"""Integers in 32 bits, without a number becoming another on the way."""

import jax
import jax.numpy as jnp

LOWEST, HIGHEST = -(2**31), 2**31 - 1


def saturated(x: jax.Array) -> jax.Array:
    """Integers or booleans as int32; what does not fit becomes the nearest that does, and never wraps to a class."""
    if not jnp.issubdtype(x.dtype, jnp.integer) or x.dtype.itemsize < 4 or x.dtype == jnp.int32:
        return x.astype(jnp.int32)
    x = jnp.minimum(x, jnp.asarray(HIGHEST, x.dtype))
    if jnp.issubdtype(x.dtype, jnp.signedinteger):
        x = jnp.maximum(x, jnp.asarray(LOWEST, x.dtype))
    return x.astype(jnp.int32)
