"""Means, spreads and their product of two variables: merged without cancellation, at any scale."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from . import exact
from .base import masked
from .exact import Count, Sum

LOWEST = -400
"""The exponent of nothing: below that of any number, or of any difference of two."""


class MomentsState(NamedTuple):
    """Weighted moments of two variables, each in units of a power of two of its own.

    In those units no variable is larger than 2, so that squares neither overflow nor, where they matter, vanish.
    """

    mean: Sum  # [2], in two words: a mean near 1e4 keeps its last digits
    spread: Sum  # [2], sums of squared deviations from the mean
    cross: Sum  # [], the sum of the deviations' products
    exponent: jax.Array  # int32 [2], of the units
    weight: Sum
    count: Count


def empty() -> MomentsState:
    """The moments of nothing. Arrays of their own each, so that they can be donated."""
    mean, spread = (exact.empty_sum((2,)) for _ in range(2))
    cross, weight = (exact.empty_sum() for _ in range(2))
    return MomentsState(mean, spread, cross, jnp.full(2, LOWEST, jnp.int32), weight, exact.empty_count())


def merge(a: MomentsState, b: MomentsState) -> MomentsState:
    """Join by Chan's formula, in the larger units."""
    exponent = jnp.maximum(a.exponent, b.exponent)
    a, b = _in_units(a, exponent), _in_units(b, exponent)
    weight = exact.merge_sums(a.weight, b.weight)
    wa, wb, w = (exact.read_sum(x) for x in (a.weight, b.weight, weight))
    by = jnp.where(w == 0, 1, w)
    # Means are two words each, so that their difference is exact where they are close.
    delta = (b.mean.value - a.mean.value) + (b.mean.error - a.mean.error)
    both = wa * (wb / by)
    # From the heavier mean: with an empty accumulator it is then the other's, to the bit.
    step = jnp.where(wb > wa, -delta * (wa / by), delta * (wb / by))
    start = jax.tree.map(lambda x, y: jnp.where(wb > wa, y, x), a.mean, b.mean)
    return MomentsState(
        mean=exact.add_to_sum(start, step),
        spread=exact.add_to_sum(exact.merge_sums(a.spread, b.spread), jnp.square(delta) * both),
        cross=exact.add_to_sum(exact.merge_sums(a.cross, b.cross), delta[0] * delta[1] * both),
        exponent=exponent,
        weight=weight,
        count=exact.merge_counts(a.count, b.count),
    )


def of_batch(x: jax.Array, y: jax.Array, w: jax.Array) -> MomentsState:
    """One batch's moments, about means of its own."""
    kept = w != 0
    weight = jnp.sum(w)
    by = jnp.where(weight == 0, 1, weight)
    mean, off, exponent = [], [], []
    for v in (x, y):
        v, e = scaled(v, w)
        rough = jnp.sum(v * w) / by
        # Within the range of the numbers, so that constant ones deviate by exactly nothing.
        lowest = jnp.min(jnp.where(kept, v, jnp.inf), initial=jnp.inf)
        highest = jnp.max(jnp.where(kept, v, -jnp.inf), initial=-jnp.inf)
        rough = jnp.where(jnp.any(kept), jnp.clip(rough, lowest, highest), 0)
        deviation = masked(v - rough, w)
        fine = jnp.sum(deviation * w) / by
        mean.append((rough, fine))
        off.append(masked(deviation - fine, w))
        exponent.append(e)
    rough, fine = (jnp.stack(part) for part in zip(*mean))
    spread = jnp.stack([jnp.sum(jnp.square(d) * w) for d in off])
    zero = jnp.zeros((), jnp.float32)
    return MomentsState(
        mean=Sum(rough, fine),
        spread=Sum(spread, jnp.zeros_like(spread)),
        cross=Sum(jnp.sum(off[0] * off[1] * w), zero),
        exponent=jnp.stack(exponent),
        weight=Sum(weight, zero),
        count=exact.add_to_count(exact.empty_count(), jnp.sum(kept, dtype=jnp.uint32)),
    )


def scaled(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x`, 0 where the weight is, in units of a power of two that makes all smaller than 4, and its exponent."""
    x = masked(x, w)
    bits = jax.lax.bitcast_convert_type(jnp.max(jnp.abs(x), initial=0), jnp.int32)
    exponent = jnp.clip((bits >> 23) - 126, -126, 126)
    return x * power_of_two(-exponent), exponent


def power_of_two(exponent: jax.Array) -> jax.Array:
    """2 to an integer power, exactly: 0 below float32's range, the largest there is above it."""
    return jax.lax.bitcast_convert_type(jnp.clip(exponent + 127, 0, 254) << 23, jnp.float32)


def times(total: Sum, factor: jax.Array) -> Sum:
    """A sum in other units; exact for powers of two."""
    return Sum(total.value * factor, total.error * factor)


def _in_units(acc: MomentsState, exponent: jax.Array) -> MomentsState:
    factor = power_of_two(acc.exponent - exponent)
    return acc._replace(
        mean=times(acc.mean, factor),
        spread=times(times(acc.spread, factor), factor),
        cross=times(times(acc.cross, factor[0]), factor[1]),
        exponent=exponent,
    )
