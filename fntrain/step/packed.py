"""Many small arrays as one.

A jitted function pays about a microsecond for every array it takes and returns, and a step's metrics are a few dozen
scalars. So they cross its border as one array of 32-bit words, and have their names and dtypes inside only.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.typing import PyTree

_LARGEST = 1024  # elements; a larger array is worth a border crossing of its own
_WORDS = ("float32", "uint32", "int32")


class Form:
    """What the words of a `Packed` mean. Equal to itself alone, and made once for every meaning."""

    __slots__ = ("layout", "structure")

    def __init__(self, structure: Any, layout: tuple[tuple[str, tuple[int, ...], int | None], ...]):
        self.structure: Any = structure  # of the tree
        self.layout: tuple[tuple[str, tuple[int, ...], int | None], ...] = (
            layout  # dtype, shape, and first word of every leaf; None for one that is not in the words
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _form, (self.structure, self.layout)


_form = functools.cache(Form)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A tree of arrays whose small leaves are one array; `unpacked` gives the tree back."""

    words: jax.Array  # uint32 [n]
    rest: tuple[jax.Array, ...]  # the leaves that are large, or not of 32 bits
    form: Form = dataclasses.field(metadata=dict(static=True))

    def paths(self) -> PyTree:
        """The tree with None for its leaves, to see what is in it."""
        return jax.tree.unflatten(self.form.structure, [None] * len(self.form.layout))


def packed(tree: PyTree) -> Packed:
    """A tree of arrays as a Packed."""
    leaves, structure = jax.tree.flatten(tree)
    small = [x.dtype.name in _WORDS and x.size <= _LARGEST for x in leaves]
    starts: dict[int, int] = {}
    words, end = [], 0
    for dtype in _WORDS:  # each joined in its own dtype first: one conversion, not one a leaf
        chosen = [i for i, x in enumerate(leaves) if small[i] and x.dtype.name == dtype]
        for i in chosen:
            starts[i], end = end, end + leaves[i].size
        if chosen:
            joined = jnp.concatenate([jnp.ravel(leaves[i]) for i in chosen])
            words.append(jax.lax.bitcast_convert_type(joined, jnp.uint32))
    layout = tuple((x.dtype.name, tuple(x.shape), starts.get(i)) for i, x in enumerate(leaves))
    return Packed(
        jnp.concatenate(words) if words else jnp.zeros((0,), jnp.uint32),
        tuple(x for i, x in enumerate(leaves) if not small[i]),
        _form(structure, layout),
    )


def unpacked(given: Packed) -> PyTree:
    """The tree of arrays, with the same leading axes as the words (those of a `vmap`, say)."""
    return _opened(given, lambda words, dtype: jax.lax.bitcast_convert_type(words, jnp.dtype(dtype)))


def on_host(given: Packed) -> PyTree:
    """`unpacked` as NumPy arrays, in one fetch."""
    return _opened(jax.device_get(given), lambda words, dtype: np.array(words, order="C").view(dtype))


def _opened(given: Packed, read: Callable[[Any, str], Any]) -> PyTree:
    leading, rest, leaves = given.words.shape[:-1], iter(given.rest), []
    for dtype, shape, start in given.form.layout:
        if start is None:
            leaves.append(next(rest))
        else:
            words = given.words[..., start : start + math.prod(shape)]
            leaves.append(read(words, dtype).reshape(leading + shape))
    return jax.tree.unflatten(given.form.structure, leaves)
