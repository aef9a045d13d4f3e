"""What a guard notes of a step that it does not take: one small vector of integers, made on the device.

The step, what the loss was, and four counts a leaf; made in the branch that skips a step, and nowhere else.
`step.provenance` reads it.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core.typing import PyTree
from ..sharding import manual

_SMALL, _BLOCK = 2**12, 2**10  # elements
_KINDS = jnp.isnan, jnp.isinf
LOSS = ("", "finite", "NaN", "infinite")


def nothing(leaves: int) -> jax.Array:
    """The note of no bad step yet: int32 `[2 + 4 * leaves]`."""
    return jnp.zeros((2 + 4 * leaves,), jnp.int32)


def note(step: Any, loss: Any, grads: PyTree, params: PyTree) -> jax.Array:
    """What is not finite in a step: `[step, loss, NaN and infinities of each gradient, of each parameter]`.

    The step is -1 where it is not known; the loss an index into `LOSS`, 0 if nothing is bad.
    """
    loss = jnp.zeros((), jnp.float32) if loss is None else loss
    kind = jnp.where(jnp.isnan(loss), 3, jnp.where(jnp.isinf(loss), 4, 2)).astype(jnp.int32) - 1
    leaves, places = jax.tree.leaves(grads), jax.tree.leaves(params)
    found = counts([*leaves, *places])
    kind = jnp.where((kind > 1) | jnp.any(found[: 2 * len(leaves)] > 0), kind, 0)
    step = jnp.full((), -1, jnp.int32) if step is None else jnp.asarray(step, jnp.int32)
    unknown = jnp.zeros((2 * (len(leaves) - len(places)),), jnp.int32)  # no parameters were given
    return jnp.concatenate([jnp.stack([step, kind]), found, unknown])


def counts(leaves: list[jax.Array]) -> jax.Array:
    """How many NaN and how many infinities each leaf has: int32 `[2 * len(leaves)]`, pair by pair.

    On a CPU in a branch that is hardly ever taken, and written to cost little where it is not: few operations, and no
    large temporaries. Elsewhere it may be counted at every step (`branch.either_noting`): in few passes and kernels.
    """
    return jax.lax.platform_dependent(leaves, cpu=_in_turn, default=_at_once)


def _at_once(leaves: list[jax.Array]) -> jax.Array:
    small = [i for i, x in enumerate(leaves) if x.size <= _SMALL]
    pairs = {i: [_number(f, x) for f in _KINDS] for i, x in enumerate(leaves) if x.size > _SMALL}
    if small:
        kind, longest = tree.widest([leaves[i] for i in small]), max(leaves[i].size for i in small)
        rows = [jnp.ravel(leaves[i]).astype(kind) for i in small]
        table = jnp.stack([jnp.pad(x, (0, longest - x.size)) for x in rows])
        found = [jnp.unstack(_number(f, table, axis=1)) for f in _KINDS]
        pairs |= dict(zip(small, zip(*found)))
    return jnp.stack([number for i in range(len(leaves)) for number in pairs[i]])


def _number(f: Callable[..., jax.Array], x: jax.Array, axis: int | None = None) -> jax.Array:
    return jnp.sum(f(x), axis=axis, dtype=jnp.int32)


def _in_turn(leaves: list[jax.Array]) -> jax.Array:
    found: list[Any] = [None] * len(leaves)
    small = [i for i, x in enumerate(leaves) if x.size <= _SMALL]
    if small:
        sizes = np.array([leaves[i].size for i in small])
        longest, starts = int(sizes.max()), np.cumsum(sizes) - sizes
        kind = tree.widest([leaves[i] for i in small])
        joined = [jnp.ravel(leaves[i]).astype(kind) for i in small]
        line = jnp.concatenate([*joined, jnp.zeros((longest,), kind)])

        def leaf(x: tuple[jax.Array, jax.Array]) -> jax.Array:
            start, size = x
            part = jax.lax.dynamic_slice_in_dim(line, start, longest)
            return _counted(part, jnp.arange(longest, dtype=jnp.int32) < size)

        pairs = jax.lax.map(leaf, (jnp.asarray(starts, jnp.int32), jnp.asarray(sizes, jnp.int32)))
        for i, pair in zip(small, jnp.unstack(pairs)):
            found[i] = pair
    for i, x in enumerate(leaves):
        if found[i] is None:
            found[i] = _by_blocks(x)
    return jnp.concatenate(found)


def _counted(x: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.sum(jnp.stack([f(x) for f in _KINDS]) & where[None], axis=1, dtype=jnp.int32)


def _by_blocks(x: jax.Array) -> jax.Array:
    """The counts of one large leaf, by blocks of rows."""
    rows, row = x.shape[0], x.size // x.shape[0]
    block = min(rows, max(1, max(_BLOCK, x.size // 256) // row))

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        start = jnp.minimum(i * block, rows - block)  # the last block reaches back, and counts what is new
        part = jax.lax.dynamic_slice_in_dim(x, start, block)
        new = jnp.repeat(start + jnp.arange(block) >= i * block, row)
        return total + _counted(jnp.ravel(part), new)

    none = manual.vary(jnp.zeros((2,), jnp.int32), manual.axes(x))
    return jax.lax.fori_loop(0, -(-rows // block), body, none)


_asked: list[list[list[str]]] = []


def announce(params: PyTree) -> None:
    """A guard's `init` says which parameters it sees, if anybody asks."""
    if _asked:
        _asked[-1].append(tree.paths(params))


@contextlib.contextmanager
def asking() -> Iterator[list[list[str]]]:
    """Collect what guards announce while it is entered."""
    found: list[list[str]] = []
    _asked.append(found)
    try:
        yield found
    finally:
        _asked.pop()
