"""Norms over the whole range of a dtype, of what is finite: exact for leaves of 1e-30, finite for those of 1e30.

On a CPU by a branch: one pass of squares, and a second one, scaled, only where their sum overflows, or loses digits to
underflow. Elsewhere a branch costs the device a wait, and what costs is reading: there one pass forms three sums at
once, of the numbers as they are, scaled up and scaled down, and the one that held is chosen.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Range(NamedTuple):
    """Powers of two for norms in one dtype: scaling by them rounds nothing."""

    least: float  # sums of squares above it have lost no digits to underflow
    up: float  # what brings tiny numbers to where their squares are exact
    down: float  # what brings the largest numbers to where their squares are finite
    far: float  # the smallest factor that is applied at once


RANGES = {
    jnp.dtype("float32"): Range(2.0**-60, 2.0**90, 2.0**-80, 2.0**-100),
    jnp.dtype("float64"): Range(2.0**-600, 2.0**800, 2.0**-600, 2.0**-900),
}

Leaves = list[jax.Array]
Parts = tuple[jax.Array, jax.Array]

_BLOCK = 2**14  # elements


# Jitted, as branches are closures: called eagerly, they would be compiled every time.
@partial(jax.jit, static_argnums=1, inline=True)
def whole(leaves: Leaves, kind: np.dtype) -> Parts:
    """`(root, scale)` of all leaves together, the norm being `root / scale`: scalars of a dtype with a Range.

    The scale is a power of two, and 1 unless the squares overflow or underflow. Leaves of no elements are left out
    by the caller.
    """
    return jax.lax.platform_dependent(
        leaves, cpu=partial(whole_by_branch, kind=kind), default=partial(whole_at_once, kind)
    )


@partial(jax.jit, static_argnums=1)
def each(leaves: Leaves, kind: np.dtype) -> Parts:
    """`(roots, scales)` of each leaf, `[len(leaves)]` both, as `whole` has them."""
    return jax.lax.platform_dependent(
        leaves, cpu=partial(each_by_branch, kind=kind), default=partial(each_at_once, kind)
    )


# By a branch.


def whole_by_branch(leaves: Leaves, kind: np.dtype) -> Parts:
    """`whole` as it is formed on a CPU."""
    total = sum((jnp.sum(jnp.square(x.astype(kind))) for x in leaves), kind.type(0))
    plain, scale = _scale(total, kind)

    def scaled(total: jax.Array) -> jax.Array:
        del total
        # All small leaves as one: this branch is hardly ever taken, and should not double the program.
        return jnp.sqrt(sum((_squares(x, scale) for x in _grouped(leaves, kind)), kind.type(0)))

    return jax.lax.cond(plain, jnp.sqrt, scaled, total), scale


def each_by_branch(leaves: Leaves, kind: np.dtype) -> Parts:
    """`each` as it is formed on a CPU.

    Not by `whole` of each leaf: it is a branch for each, and XLA compiles a thousand of them for minutes.
    """

    def squares(scaled: Leaves) -> jax.Array:
        return jnp.stack([jnp.sum(jnp.square(g)) for g in scaled])

    wide = [g.astype(kind) for g in leaves]
    totals = squares(wide)
    plain, scales = _scale(totals, kind)

    def scaled(totals: jax.Array) -> jax.Array:
        sums = squares([g * scale for g, scale in zip(wide, jnp.unstack(scales))])
        return jnp.sqrt(jnp.where(plain, totals, sums))

    return jax.lax.cond(jnp.all(plain), jnp.sqrt, scaled, totals), scales


def _scale(totals: jax.Array, kind: np.dtype) -> Parts:
    """`(whether a sum of squares held, what to scale by)`: down for what overflowed, up for what is tiny."""
    limits, number = RANGES[kind], kind.type
    plain = (totals > limits.least) & (totals < jnp.inf)
    return plain, jnp.where(plain, number(1), jnp.where(totals < 1, number(limits.up), number(limits.down)))


def _grouped(leaves: Leaves, kind: np.dtype) -> Leaves:
    """The large leaves as they are, and all small ones as one, in `kind`: a kernel for each would cost more."""
    small = [jnp.ravel(x).astype(kind) for x in leaves if x.size <= _BLOCK]
    return [x for x in leaves if x.size > _BLOCK] + ([jnp.concatenate(small)] if small else [])


def _squares(x: jax.Array, scale: jax.Array) -> jax.Array:
    """The sum of squares of `x * scale`, by blocks of rows: the scaled leaf never exists as a whole."""
    rows, kind = x.shape[0], scale.dtype
    block = min(rows, max(1, _BLOCK * rows // x.size))

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        start = jnp.minimum(
            i * block, rows - block
        )  # the last block reaches back, and counts only what is new
        part = jax.lax.dynamic_slice_in_dim(x, start, block).astype(kind)
        new = jnp.expand_dims(start + jnp.arange(block) >= i * block, tuple(range(1, x.ndim)))
        return total + jnp.sum(jnp.where(new, jnp.square(part * scale), jnp.zeros((), kind)))

    # The zero to start from is a sum over none of x's rows: inside a shard_map it has to vary where x does.
    zero = jnp.sum(jax.lax.slice_in_dim(x, 0, 0).astype(kind))
    return jax.lax.fori_loop(0, -(-rows // block), body, zero)


# At once. Each has a derivative of its own, as that of all three sums would be three times the work.


def whole_at_once(kind: np.dtype, leaves: Leaves) -> Parts:
    """`whole` as it is formed where a branch costs."""
    return _held(_whole_at_once(kind, leaves))


def each_at_once(kind: np.dtype, leaves: Leaves) -> Parts:
    """`each` as it is formed where a branch costs."""
    return _held(_each_at_once(kind, leaves))


def _held(parts: Parts) -> Parts:
    """With a scale that has no derivative: in that of a quotient, a zero would meet its inverse square, infinity."""
    root, scale = parts
    return root, jax.lax.stop_gradient(scale)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _whole_at_once(kind: np.dtype, leaves: Leaves) -> Parts:
    sums = [_three_sums(x, kind) for x in _grouped(leaves, kind)]
    totals = [sum(parts, kind.type(0)) for parts in zip(*sums)]
    return _chosen(totals, kind)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _each_at_once(kind: np.dtype, leaves: Leaves) -> Parts:
    sums = [_three_sums(x, kind) for x in leaves]
    return _chosen([jnp.stack(parts) for parts in zip(*sums)], kind)


def _three_sums(x: jax.Array, kind: np.dtype) -> list[jax.Array]:
    """The sums of squares of `x`, of `x` scaled up and of `x` scaled down, in one reading of it."""
    limits, x = RANGES[kind], x.astype(kind)

    def square(scale: float) -> jax.Array:
        # The minimum changes no sum. Without it XLA may turn a scalar's (x a)(x a) into (x x)(a a), which overflows.
        return jnp.square(jnp.minimum(jnp.abs(x) * kind.type(scale), np.finfo(kind).max))

    squares = jnp.square(x), square(limits.up), square(limits.down)
    return jax.lax.reduce(squares, (kind.type(0),) * 3, _add, tuple(range(x.ndim)))


def _add(a: Any, b: Any) -> Any:
    return tuple(x + y for x, y in zip(a, b))


def _chosen(totals: Any, kind: np.dtype) -> Parts:
    total, up, down = totals
    plain, scale = _scale(total, kind)
    return jnp.sqrt(jnp.where(plain, total, jnp.where(total < 1, up, down))), scale


@_whole_at_once.defjvp
def _whole_jvp(kind: np.dtype, primals: Any, tangents: Any) -> tuple[Parts, Parts]:
    root, scale = whole_at_once(kind, *primals)
    products = (_product(x, t, scale, kind) for x, t in zip(primals[0], tangents[0]))
    return (root, scale), (sum(products, kind.type(0)) / root, jnp.zeros_like(scale))


@_each_at_once.defjvp
def _each_jvp(kind: np.dtype, primals: Any, tangents: Any) -> tuple[Parts, Parts]:
    roots, scales = each_at_once(kind, *primals)
    given = zip(primals[0], tangents[0], jnp.unstack(scales))
    products = jnp.stack([_product(x, t, scale, kind) for x, t, scale in given])
    return (roots, scales), (products / roots, jnp.zeros_like(scales))


def _product(x: jax.Array, t: jax.Array, scale: jax.Array, kind: np.dtype) -> jax.Array:
    return jnp.sum((x.astype(kind) * scale) * (t.astype(kind) * scale))
