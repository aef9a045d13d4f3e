"""Many small arrays as one.

A jitted function pays about a microsecond for every array it takes and returns, and a step's metrics are a few dozen
scalars. So they cross its border as two arrays, of floats and of 32-bit words, and have their names and dtypes inside
only. The floats are not words as well, for those have no derivative.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.errors import ArgumentError
from .._core.typing import PyTree

_LARGEST = 1024  # elements; a larger array is worth a border crossing of its own
_WORDS = ("uint32", "int32")


class Form:
    """What the words of a `Packed` mean. Equal to itself alone, and made once for every meaning."""

    __slots__ = ("layout", "structure")

    def __init__(self, structure: Any, layout: tuple[tuple[str, tuple[int, ...], int | None], ...]):
        self.structure: Any = structure  # of the tree
        self.layout: tuple[tuple[str, tuple[int, ...], int | None], ...] = (
            layout  # dtype, shape, and first word (float) of every leaf; None for one that is in neither
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # By a tree: a structure of JAX's has a pickle only where it is made of Python's own containers.
        return _form_of, (jax.tree.unflatten(self.structure, range(len(self.layout))), self.layout)


@functools.cache
def _form(structure: Any, layout: tuple[tuple[str, tuple[int, ...], int | None], ...]) -> Form:
    return Form(structure, layout)


def _form_of(tree: PyTree, layout: tuple[tuple[str, tuple[int, ...], int | None], ...]) -> Form:
    return _form(jax.tree.structure(tree), layout)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A tree of arrays whose small leaves are two arrays; `unpacked` gives the tree back."""

    floats: jax.Array  # float32 [m]
    words: jax.Array  # uint32 [n]
    rest: tuple[jax.Array, ...]  # the leaves that are large, or not of 32 bits
    form: Form = dataclasses.field(metadata=dict(static=True))

    def __getitem__(self, name: Any) -> Any:
        # The sums of a step, which are divided once, at the end.
        raise ArgumentError(
            f"metrics hold sums: `fntrain.compute_metrics(task, metrics)[{name!r}]` is the value"
        )

    def __repr__(self) -> str:
        """What there is, and how it is read: the sums of a step, printed, would say nothing."""
        held = len(self.form.layout)
        return f"<metrics: sums, in {held} arrays; their values are `fntrain.compute_metrics(task, metrics)`>"

    def paths(self) -> PyTree:
        """The tree with None for its leaves, to see what is in it."""
        return jax.tree.unflatten(self.form.structure, [None] * len(self.form.layout))


def packed(tree: PyTree) -> Packed:
    """A tree of arrays as a Packed."""
    leaves, structure = jax.tree.flatten(tree)
    small = [x.dtype.name in ("float32", *_WORDS) and x.size <= _LARGEST for x in leaves]
    starts: dict[int, int] = {}
    joined: dict[str, jax.Array] = {}
    end = 0
    for dtype in ("float32", *_WORDS):  # each joined in its own dtype first: one conversion, not one a leaf
        chosen = [i for i, x in enumerate(leaves) if small[i] and x.dtype.name == dtype]
        for i in chosen:
            starts[i], end = end, end + leaves[i].size
        if chosen:
            joined[dtype] = jnp.concatenate([jnp.ravel(leaves[i]) for i in chosen])
        end = 0 if dtype == "float32" else end
    floats = joined.pop("float32", None)
    words = [jax.lax.bitcast_convert_type(x, jnp.uint32) for x in joined.values()]
    layout = tuple((x.dtype.name, tuple(x.shape), starts.get(i)) for i, x in enumerate(leaves))
    return Packed(
        jnp.zeros((0,), jnp.float32) if floats is None else floats,
        jnp.concatenate(words) if words else jnp.zeros((0,), jnp.uint32),
        tuple(x for i, x in enumerate(leaves) if not small[i]),
        _form(structure, layout),
    )


def unpacked(given: Packed) -> PyTree:
    """The tree of arrays, with the same leading axes as the words (those of a `vmap`, say)."""

    def read(part: jax.Array, dtype: str) -> jax.Array:
        return part if dtype == "float32" else jax.lax.bitcast_convert_type(part, jnp.dtype(dtype))

    return _opened(given, read)


def on_host(given: Packed) -> PyTree:
    """`unpacked` as NumPy arrays, in one fetch."""
    host = jax.device_get(given)
    return _opened(host, lambda words, dtype: np.array(words, order="C").view(dtype))


def _opened(given: Packed, read: Callable[[Any, str], Any]) -> PyTree:
    leading, rest, leaves = given.words.shape[:-1], iter(given.rest), []
    for dtype, shape, start in given.form.layout:
        if start is None:
            leaves.append(next(rest))
            continue
        held = given.floats if dtype == "float32" else given.words
        part = held[..., start : start + math.prod(shape)]
        leaves.append(read(part, dtype).reshape(leading + shape))
    return jax.tree.unflatten(given.form.structure, leaves)
