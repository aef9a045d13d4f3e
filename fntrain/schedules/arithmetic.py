"""Exact arithmetic on a count of updates: fractions of integers, mixtures, powers, tables."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check

LARGEST = 2**31 - 1  # the largest count of updates: counts are int32


def to_float(x: Any) -> jax.Array:
    """A number or array in float32."""
    return jnp.asarray(x, jnp.float32)


def fractions(gone: jax.Array, steps: Any, extra: Any = 0.0) -> tuple[jax.Array, jax.Array]:
    """Divide what is gone and what is left by the whole, `steps + extra`.

    Both come from integers, so both have float32's relative precision: `1 - gone` would have lost the digits
    that matter near the end. `extra` is what the whole has beyond an int32, >= 0.
    """
    gone = jnp.clip(gone, 0, steps)
    whole = to_float(steps) + to_float(extra)
    return gone.astype(jnp.float32) / whole, ((steps - gone).astype(jnp.float32) + to_float(extra)) / whole


def mix(start: Any, end: Any, gone: jax.Array, left: jax.Array) -> jax.Array:
    """`start * left + end * gone`, and exactly `start` or `end` where nothing is gone or left."""
    start, end = to_float(start), to_float(end)
    return jnp.where(left <= 0, end, jnp.where(gone <= 0, start, start * left + end * gone))


def cosine_mix(start: Any, end: Any, gone: jax.Array, left: jax.Array) -> jax.Array:
    """`mix` with weights along half a cosine."""
    # (1 + cos πx) / 2 = sin² π(1 - x)/2, which does not cancel where it is small; the large one is the rest.
    small = jnp.square(jnp.sin(jnp.minimum(gone, left) * to_float(math.pi / 2)))
    return mix(start, end, *(jnp.where(x <= 0.5, small, 1 - small) for x in (gone, left)))


def power_of(start: Any, rate: Any, every: int) -> Callable[[jax.Array], jax.Array]:
    """`n -> start * rate ** (n / every)`.

    A power taken in float32 is off by n times the rounding of its logarithm. So the powers of the 11-bit
    digits of n are made in float64 and looked up; each digit but the first costs two roundings.
    """
    tables = []
    for bits in (0, 11, 22):
        with np.errstate(over="ignore", under="ignore"):
            powers = np.power(float(rate), np.arange(2**11) * 2.0**bits / every)
        tables.append(rounded(1.0 if bits else start, powers))

    def function(n):
        low, middle, high = (look_up(t, (n >> 11 * i) & 2047) for i, t in enumerate(tables))
        return jnp.where(low > 0, low * middle * high, 0.0)  # a start of zero grows to zero, not to NaN

    return function


def rounded(factor: Any, table: np.ndarray | np.float64) -> Any:
    """`factor * table` in float32, rounded once where the factor's value is known."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if check.is_concrete(factor):
            return np.asarray(float(factor) * table, np.float32)
        return to_float(factor) * np.asarray(table, np.float32)


def look_up(table: Any, index: jax.Array) -> jax.Array:
    """Entries of a table."""
    return jnp.asarray(table)[index]


def passed(boundaries: Sequence[int], step: jax.Array) -> jax.Array:
    """How many of the boundaries are at or before the step."""
    return jnp.searchsorted(jnp.asarray(boundaries, jnp.int32), step, side="right", method="compare_all")


def increasing(boundaries: Iterable[int]) -> tuple[int, ...]:
    """Boundaries in order, each once, those that an int32 can count."""
    return tuple(sorted({b for b in boundaries if 0 < b <= LARGEST}))
