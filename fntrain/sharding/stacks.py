"""Work on a stack of independent things, shared out over all devices of the mesh in context."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from .._core.typing import PyTree
from .place import Layout


def context(layout: Layout | None) -> AbstractContextManager[Any]:
    """The mesh of a layout put in context for what is traced inside; nothing where there is none."""
    if layout is None:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(layout.shardings[0].mesh.abstract_mesh)


def over_stack(f: Callable[[Any], Any], stack: PyTree) -> Any:
    """`f(stack)`, in which no device does what another does too, where there is a mesh in context.

    Args:
      f: a function of a tree of arrays `[N, …]` to another, in which row i comes from row i alone.
      stack: the tree. Its rows are dealt out over all axes of the mesh, after rows of zeros up to a multiple of the
        devices; without a mesh, on one device, and inside a `shard_map`, this is `f(stack)`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    n = _devices(mesh)
    if n == 1:
        return f(stack)
    rows = jax.tree.leaves(stack)[0].shape[0]
    split = PartitionSpec(tuple(mesh.axis_names))
    padded = jax.tree.map(lambda x: _padded(x, -rows % n), stack)
    # No device tells another anything, which is what the check would have to be told for loops inside.
    out = jax.shard_map(f, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)(padded)
    return jax.tree.map(lambda x: x[:rows], out)


def _devices(mesh: AbstractMesh) -> int:
    """How many devices the rows can be dealt out over; 1 where somebody else says what is where."""
    if mesh.empty or any(kind is not AxisType.Auto for kind in mesh.axis_types):
        return 1
    return math.prod(mesh.axis_sizes)


def _padded(x: jax.Array, rows: int) -> jax.Array:
    return jnp.concatenate([x, jnp.zeros((rows, *x.shape[1:]), x.dtype)]) if rows else x
