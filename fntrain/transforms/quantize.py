"""Moments in eight bits: what an optimizer keeps of the past, block by block on a scale of powers of two."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import tree
from .._core import check
from .._core.digest import crc32
from .._core.errors import ConfigError
from .._core.typing import PyTree
from .adapt import adapt, moments
from .types import Transform, Window, increment, nodes, transform


class QuantizedState(NamedTuple):
    """The inner transform's state with its moments as codes, and what the codes are measured by."""

    count: jax.Array  # int32, shape ()
    inner_state: Any  # its own structure; moments are uint8, in the parameters' shapes
    scales: dict[
        str, jax.Array
    ]  # by path in it, [..., blocks]: largest magnitudes, < 0 where none is negative


@transform
def quantize_state(
    tx: optax.GradientTransformation, bits: int = 8, block: int = 256, min_size: int = 4096
) -> Any:
    r"""Keep the moments of a transform in eight bits: a quarter of the memory, and the scales.

    .. math:: x_i \approx \pm s\, 2^{-k} \left(1 + \frac{j}{8}\right), \quad j \in \{0, \dots, 7\}, \qquad
              s = \max_{i \in \text{block}} |x_i|

    A code is the leading bits of a float32: eight levels for each power of two, 6 to 13 % apart. A block without
    negative numbers (second moments) has 255 of them, over :math:`2^{-32}` of its largest, and no entry of it that is
    not zero becomes zero, by which something would be divided; others have 127 on each side, over :math:`2^{-16}`. (A
    linear scale would make most second moments zero, and the run diverge.) Numbers between two levels go to one of
    them at random, in the right mean: a moment that changes by a thousandth an update would never move else. What is
    drawn is a function of the count of updates and the place, so a resumed run has the same bits.

    Between updates there are codes alone; an update works on float32, leaf by leaf. What are moments, states say
    themselves (`transforms.Moments`); parameters, averages of them and accumulators are left as they are.

    Args:
      tx: the inner transform. What holds back or skips stands outside: `MultiSteps(quantize_state(tx), k)`,
        `skip_nonfinite(quantize_state(tx))`.
      bits: 8.
      block: how many numbers along the last axis have a scale in common, >= 1.
      min_size: leaves of fewer numbers are left in float32.

    Returns:
      A Transform; its updates are those of `tx`.

    Raises:
      ConfigError: if `tx` is no transform, may hold back or skip, or keeps no moments; or an argument is out of range.

    Examples:
      >>> import fntrain as ft, jax, jax.numpy as jnp
      >>> p = {"w": jnp.zeros((64, 256))}
      >>> whole, small = (ft.tree.nbytes(jax.eval_shape(tx.init, p)) for tx in (
      ...     ft.scale_by_adam(), ft.transforms.quantize_state(ft.scale_by_adam())))
      >>> round(whole / small, 1)
      3.9

    References:
      Dettmers et al., *8-bit optimizers via block-wise quantization*, 2022; Li et al., *Memory efficient optimizers
      with 4-bit states*, 2023.
    """
    tx = adapt(tx)
    check.one_of("bits", bits, (8,))
    block = check.integer("block", block, at_least=1)
    min_size = check.integer("min_size", min_size, at_least=0)
    if tx.gates:
        raise ConfigError(
            f"`tx` {tx!r} may hold a call back or skip it, and its state would be rounded all the same: put it "
            f"outside, as `skip_nonfinite(quantize_state(tx))`"
        )

    def is_coded(x: Any) -> bool:
        return x.ndim > 0 and x.size >= max(min_size, 1)

    def encoded(state: Any, count: jax.Array) -> QuantizedState:
        scales = {}

        def code(path, x):
            if not is_coded(x):
                return x
            codes, scales[path] = _encode(x, block, _drawn(x.shape, count, path))
            return codes

        return QuantizedState(count, _mapped(code, state), scales)

    def decoded(state: QuantizedState) -> Any:
        def value(path, x):
            return _decode(x, state.scales[path], block) if path in state.scales else x

        return _mapped(value, state.inner_state)

    def init_fn(params):
        state = tx.init(params)
        if nodes(state, Window):
            raise ConfigError(f"`tx` {tx!r} holds gradients back: `MultiSteps(quantize_state(tx), k)`")
        if not any(moments(node) for _, node in tree.named_nodes(state)):
            raise ConfigError(
                f"`tx` {tx!r} keeps no moments that are known as such: a state says what are moments by its base "
                f"class `transforms.Moments`"
            )
        return encoded(state, jnp.zeros((), jnp.int32))

    def update_fn(updates, state, params=None, **extra):
        updates, inner = tx.update(updates, decoded(state), params, **extra)
        return updates, encoded(inner, increment(state.count))

    def look_fn(updates, state, params, **extra):
        return tx.look(updates, decoded(state), params, **extra)

    return Transform(
        init_fn,
        update_fn,
        stages={"inner": tx},
        look=look_fn if tx.looks else None,
        passed=lambda state: tx.passed(state.inner_state),
    )


def _mapped(f: Callable[[str, jax.Array], jax.Array], state: Any) -> Any:
    """The state with `f(path, x)` in place of every array of its moments."""

    def one(path: tuple[Any, ...], node: Any) -> Any:
        fields = moments(node)
        if not fields:
            return node
        at = tree.path_name(path)
        return node._replace(**{name: _named(f, f"{at}/{name}", getattr(node, name)) for name in fields})

    return jax.tree_util.tree_map_with_path(one, state, is_leaf=lambda node: bool(moments(node)))


def _named(f: Callable[[str, jax.Array], jax.Array], at: str, x: PyTree) -> PyTree:
    return tree.map_with_path(lambda path, leaf: f(f"{at}/{path}".strip("/"), leaf), x)


# What a code leaves of a float32 is its exponent and three bits of its mantissa; it drops so many.
_DROPPED = 20
_ONE = 0x3F800000 >> _DROPPED  # the code of 1.0, before it is counted from the top
_SIGNED, _POSITIVE = np.int32(127), np.int32(255)  # the code of the largest magnitude of a block


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """`[..., n]` as `[..., blocks, size]`, with zeros at the end."""
    n = x.shape[-1]
    size = min(block, n)
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -n % size)]
    return jnp.pad(x, padding).reshape(*x.shape[:-1], -1, size)


def _flat(x: jax.Array, n: int) -> jax.Array:
    """The inverse of `_blocks`."""
    return x.reshape(*x.shape[:-2], -1)[..., :n]


def _encode(x: jax.Array, block: int, drawn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(codes, scales)`: uint8 in the shape of `x`, and one number a block."""
    parts, drawn = _blocks(x, block), _blocks(drawn, block)
    least, largest = _extremes(parts)
    positive, scale = least >= 0, jnp.maximum(largest, -least)
    upward = positive[..., None]
    ratio = jnp.abs(parts) / jnp.where(scale > 0, scale, jnp.ones((), x.dtype))[..., None]
    codes = _level(ratio.astype(jnp.float32), drawn, jnp.where(upward, _POSITIVE, _SIGNED))
    codes = jnp.where(
        upward & (parts > 0), jnp.maximum(codes, 1), codes
    )  # nothing is divided by a zero that was none
    codes = jnp.where(upward, codes, 128 + jnp.where(parts < 0, -codes, codes))
    return _flat(codes.astype(jnp.uint8), x.shape[-1]), jnp.where(positive, -scale, scale)


def _extremes(parts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least and the largest of each block, in one reduction: on a CPU two take 27 times as long."""

    def both(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
        return jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])

    infinity = jnp.asarray(jnp.inf, parts.dtype)
    least, largest = jax.lax.reduce((parts, parts), (infinity, -infinity), both, (parts.ndim - 1,))
    return least, largest


def _level(ratio: jax.Array, drawn: jax.Array, top: jax.Array) -> jax.Array:
    """The level of a magnitude in [0, 1]: one of the two around it, so that the mean is right."""
    # Within a power of two floats are evenly spaced: what is drawn carries into the level above as often as it should.
    bits = jax.lax.bitcast_convert_type(ratio, jnp.int32)
    level = ((bits + drawn) >> _DROPPED) - _ONE + top
    part = ratio / _magnitude(jnp.ones_like(top), top) * jnp.float32(2**_DROPPED)
    return jnp.where(level < 1, (drawn.astype(jnp.float32) < part).astype(jnp.int32), jnp.minimum(level, top))


def _magnitude(level: jax.Array, top: jax.Array) -> jax.Array:
    """What a level from 1 to `top` stands for, float32; the last one for 1."""
    return jax.lax.bitcast_convert_type((level - top + _ONE) << _DROPPED, jnp.float32)


def _decode(codes: jax.Array, scales: jax.Array, block: int) -> jax.Array:
    parts = _blocks(codes, block).astype(jnp.int32)
    upward = (scales <= 0)[..., None]
    level = jnp.where(upward, parts, jnp.abs(parts - 128))
    size = _magnitude(level, jnp.where(upward, _POSITIVE, _SIGNED)).astype(scales.dtype)
    size = jnp.where(level > 0, jnp.abs(scales)[..., None] * size, jnp.zeros((), scales.dtype))
    return _flat(jnp.where(upward | (parts >= 128), size, -size), codes.shape[-1])


def _drawn(shape: tuple[int, ...], count: jax.Array, path: str) -> jax.Array:
    """Integers in [0, 2**20), a function of place, count and path: a mixer of 32 bits, cheaper than a random key."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis, stride in enumerate(np.cumprod([1, *shape[:0:-1]])[::-1]):
        place += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(int(stride) % 2**32)
    salt = jnp.uint32(crc32(np.frombuffer(path.encode(), np.uint8)))
    x = (
        place * jnp.uint32(0x9E3779B1) + (count.astype(jnp.uint32) + jnp.uint32(1)) * jnp.uint32(0x85EBCA77)
        ^ salt
    )
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    x ^= x >> jnp.uint32(16)
    return (x >> jnp.uint32(32 - _DROPPED)).astype(jnp.int32)
