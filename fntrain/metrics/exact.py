"""The exact numbers that reducers are made of: compensated sums, and counts that do not wrap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Sum(NamedTuple):
    """A float32 sum and what its additions rounded away: about twice float32's digits, over any number of terms."""

    value: jax.Array  # float32
    error: jax.Array  # float32, the same shape


def empty_sum(shape: tuple[int, ...] = ()) -> Sum:
    """A sum of nothing."""
    return Sum(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def add_to_sum(total: Sum, x: jax.Array) -> Sum:
    """`total + x`: the rounding of the addition is kept, not lost."""
    x = x.astype(jnp.float32)
    return merge_sums(total, Sum(x, jnp.zeros_like(x)))


def merge_sums(a: Sum, b: Sum) -> Sum:
    """`a + b` by Knuth's TwoSum, the same both ways round."""
    value = a.value + b.value
    back = value - a.value
    error = ((a.value - (value - back)) + (b.value - back)) + (a.error + b.error)
    # What the errors add up to goes back into the value, or they would lose digits of their own.
    total = value + error
    # An infinite sum is infinite: its "rounding error" would be inf - inf.
    finite = jnp.isfinite(total)
    return Sum(jnp.where(finite, total, value), jnp.where(finite, error - (total - value), 0.0))


def read_sum(total: Sum) -> jax.Array:
    """The sum as one float32."""
    return total.value + total.error


class Count(NamedTuple):
    """A non-negative integer below 2^64 as two 32-bit words: exact past 2^24, and no wrap at 2^31."""

    high: jax.Array  # uint32
    low: jax.Array  # uint32, the same shape


def empty_count(shape: tuple[int, ...] = ()) -> Count:
    """Zero."""
    return Count(jnp.zeros(shape, jnp.uint32), jnp.zeros(shape, jnp.uint32))


def add_to_count(count: Count, n: jax.Array) -> Count:
    """`count + n` for integers 0 <= n < 2^32."""
    n = n.astype(jnp.uint32)
    low = count.low + n
    return Count(count.high + (low < n).astype(jnp.uint32), low)


def merge_counts(a: Count, b: Count) -> Count:
    """`a + b`."""
    joined = add_to_count(a, b.low)
    return Count(joined.high + b.high, joined.low)


def read_count(count: Count) -> jax.Array:
    """The count as float32, rounded once, for ratios; `count_to_int` reads it exactly."""
    return count.high.astype(jnp.float32) * jnp.float32(2.0**32) + count.low.astype(jnp.float32)


def count_to_int(count: Count) -> Any:
    """The count as Python ints (an int, or an object array of them), exactly. Host side only."""
    high, low = np.asarray(count.high).astype(object), np.asarray(count.low).astype(object)
    total = high * 2**32 + low
    return int(total) if np.ndim(total) == 0 else total


def count_values(count: Count) -> jax.Array:
    """The count as an integer array: uint32, held at its largest value instead of wrapping."""
    return jnp.where(count.high > 0, jnp.uint32(2**32 - 1), count.low)


class Tally(NamedTuple):
    """How a reducer that counts keeps its numbers: the four functions of `Count`, or those of `Sum`."""

    empty: Callable[..., Any]
    add: Callable[[Any, jax.Array], Any]
    merge: Callable[[Any, Any], Any]
    read: Callable[[Any], jax.Array]  # float32, for ratios
    values: Callable[[Any], jax.Array]  # as reported
    amounts: Callable[[jax.Array], jax.Array]  # what an element of this weight adds


def tally(weighted: bool) -> Tally:
    """Exact integers, the weight a mask; or, if `weighted`, compensated float32 sums of real weights."""
    if weighted:
        return Tally(empty_sum, add_to_sum, merge_sums, read_sum, read_sum, lambda w: w)
    return Tally(
        empty_count,
        add_to_count,
        merge_counts,
        read_count,
        count_values,
        lambda w: (w != 0).astype(jnp.uint32),
    )
