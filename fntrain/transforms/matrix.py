"""Leaves as matrices: which axes are rows and columns, and work on all matrices of a shape together.

A leaf of two axes is a matrix. One of more is a stack of them, in its last two axes, unless a word says otherwise: a
letter an axis, `r` for those that together are the rows, `c` the columns, `b` for those that only count matrices. So
`"rbc"` is an attention kernel `[width, heads, size]` with a matrix for each head, `"rcc"` the same as one matrix, and
`"rrrc"` a convolution. Rows are what a layer takes in and columns what it gives out, as in `x @ kernel`; `"cr"` is for
a kernel that is kept the other way.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import tree
from .._core.check import said
from .._core.errors import ConfigError
from .._core.typing import PyTree
from ..sharding.stacks import over_stack


class Form(NamedTuple):
    """How a leaf is a stack of matrices `[batch, rows, columns]`."""

    order: tuple[int, ...]  # its axes: those of the batch, of the rows, of the columns
    shape: tuple[int, int, int]

    def matrices(self, x: jax.Array) -> jax.Array:
        """The leaf as a stack."""
        return jnp.transpose(x, self.order).reshape(self.shape)

    def leaf(self, stack: jax.Array, like: jax.Array) -> jax.Array:
        """A stack in the form of the leaf, in float32 at least."""
        moved = stack.reshape([like.shape[axis] for axis in self.order])
        return jnp.transpose(moved, [self.order.index(i) for i in range(like.ndim)])


def check_axes(axes: Any) -> None:
    """Refuse what says no axes, where the transform is made."""
    if axes is None:
        return
    if not isinstance(axes, Mapping):
        raise ConfigError(f"`axes` must be a dict {{regex: letters}}, `{{'query': 'rbc'}}`, got {said(axes)}")
    for pattern, letters in axes.items():
        tree.compiled(pattern, "axes")
        if not isinstance(letters, str) or set(letters) - set("brc") or not {"r", "c"} <= set(letters):
            raise ConfigError(
                f"`axes[{pattern!r}]` must have a letter an axis, `r` (rows), `c` (columns) or `b` (of many matrices), "
                f"with an `r` and a `c` among them, as 'rbc', got {said(letters)}"
            )


def forms(params: PyTree, axes: Mapping[str, str] | None, name: str) -> list[Form | None]:
    """The form of every leaf; None for those of fewer than two axes.

    Raises:
      ConfigError: if letters do not fit a leaf, or a pattern matches none.
    """
    axes = axes or {}
    paths = tree.paths(params)
    for pattern in axes:
        if not any(tree.compiled(pattern, "axes").search(path) for path in paths):
            raise tree.unmatched(pattern, paths, "axes")
    return [form_of(path, x.shape, axes, name) for path, x in tree.items(params)]


def form_of(path: str, shape: tuple[int, ...], axes: Mapping[str, str], name: str) -> Form | None:
    """The form of a leaf of that path and shape."""
    letters = next(
        (word for pattern, word in axes.items() if tree.compiled(pattern, "axes").search(path)), None
    )
    if letters is None:
        if len(shape) < 2:
            return None
        letters = "b" * (len(shape) - 2) + "rc"
    if len(letters) != len(shape):
        raise ConfigError(
            f"`axes` of {name}: {letters!r} has {len(letters)} letters, and `{path}` {len(shape)} axes {list(shape)}"
        )
    places = {kind: [i for i, letter in enumerate(letters) if letter == kind] for kind in "brc"}
    batch, rows, columns = (math.prod(shape[i] for i in places[kind]) for kind in "brc")
    return Form((*places["b"], *places["r"], *places["c"]), (batch, rows, columns))


def in_stacks(f: Callable[[Any], Any], items: list[PyTree]) -> list[PyTree]:
    """`f` of each item, those of one form stacked into one call, which the devices of a mesh share.

    Args:
      f: a function of a tree of arrays `[N, …]`, row by row.
      items: trees of arrays whose first axes, of any length, are the rows.
    """
    groups: dict[Any, list[int]] = {}
    for i, item in enumerate(items):
        leaves, structure = jax.tree.flatten(item)
        groups.setdefault((structure, *((x.shape[1:], x.dtype) for x in leaves)), []).append(i)
    out: list[Any] = [None] * len(items)
    for members in groups.values():
        first, *others = (items[i] for i in members)
        stack = jax.tree.map(lambda x, *xs: _joined(x, xs), first, *others)
        done, start = over_stack(f, stack), 0
        for i in members:
            rows = jax.tree.leaves(items[i])[0].shape[0]
            out[i] = jax.tree.map(partial(_rows, start, rows), done)
            start += rows
    return out


def _joined(x: Any, others: tuple[Any, ...]) -> Any:
    return jnp.concatenate([x, *others]) if others else x


def _rows(start: int, n: int, x: Any) -> Any:
    return x[start : start + n]
