"""Putting arrays where they belong: rows split over a mesh, padded and weighed, or whole on every device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .. import tree
from .._core import check
from .._core.check import integer
from .._core.errors import ConfigError, DataError
from .._core.typing import Batch, PyTree
from . import processes
from .mesh import data_axis


def shard_batch(
    batch: Batch, mesh: Mesh, weight: Any = None, *, local: bool = False, rows: int | None = None
) -> tuple[Batch, jax.Array]:
    """Split a batch over the mesh's `"data"` axis (or its first), padding one that does not divide.

    Args:
      batch: the whole batch, on every process the same; leaves share their leading axis.
      mesh: the device mesh.
      weight: a weight per example, `[B]`; None is ones.
      local: the batch is this process's share alone, and the shares together are the whole. They may differ in
        size, each is padded to the largest. Processes that hold the same rows (where another axis of the mesh spans
        them) pass the same share.
      rows: with `local`, what every share is padded to; None asks the processes for their largest, a small
        exchange that all of them wait for.

    Returns:
      `(batch, weight)`, arrays of `ceil(B / n) * n` rows split over the axis (with `local`, B is the processes'
      number times the largest share); padding is zeros of weight 0.

    Raises:
      DataError: if the leaves disagree on their leading axis, the weight on theirs, or `rows` is too few.
      ConfigError: if `rows` is given without `local`.
    """
    if not hasattr(mesh, "axis_names"):
        raise ConfigError(
            f"`mesh` must be a device mesh, got {check.said(mesh)}; call `shard_batch(batch, mesh)`"
        )
    size = tree.leading_axis(batch)
    weight = np.ones(size, np.float32) if weight is None else np.asarray(weight, np.float32)
    if weight.shape != (size,):
        raise DataError(
            f"`weight` must have shape [{size}], one a row of the batch, got {list(weight.shape)}"
        )
    if rows is not None and not local:
        raise ConfigError("`rows` is the size of a process's share: pass `local=True` with it")
    if not local:
        return put_rows(pad_batch(batch, weight, mesh), mesh)
    if rows is None:
        rows = processes.largest(size)
    elif size > integer("rows", rows, at_least=1):
        raise DataError(f"`batch` has {size} rows, more than `rows`, {rows}")
    n = _rows_here(mesh)
    return _put_share(_padded((batch, weight), -(-max(rows, 1) // n) * n - size), mesh)


def _rows_here(mesh: Mesh) -> int:
    """Over how many parts of the data axis this process's devices are spread."""
    axis, me = mesh.axis_names.index(data_axis(mesh)), jax.process_index()
    return len({at[axis] for at, device in np.ndenumerate(mesh.devices) if device.process_index == me})


def _put_share(arrays: PyTree, mesh: Mesh) -> PyTree:
    """The processes' shares as one array, split along its rows."""
    split, parts, here = _rows_sharding(mesh), mesh.shape[data_axis(mesh)], _rows_here(mesh)

    def put(x: Any) -> jax.Array:
        if np.ndim(x) == 0:
            return processes.put(x, NamedSharding(mesh, PartitionSpec()))
        shape = (x.shape[0] // here * parts, *x.shape[1:])
        return jax.make_array_from_process_local_data(split, np.asarray(x), shape)

    return jax.tree.map(put, arrays)


def pad_batch(batch: Batch, weight: Any, mesh: Mesh) -> tuple[Batch, Any]:
    """`(batch, weight)` with rows of zeros, and weight 0, up to a multiple of the mesh's data axis."""
    rows, n = tree.leading_axis(batch), mesh.shape[data_axis(mesh)]
    padding = -rows % n
    if padding and weight is None:
        raise DataError(
            f"a batch of {rows} rows does not divide over the {n} devices of mesh axis {data_axis(mesh)!r}, and a "
            f"scalar loss has no place for padding: return one value per example, or choose a batch size that divides"
        )

    return _padded((batch, weight), padding)


def _padded(arrays: PyTree, padding: int) -> PyTree:
    def pad(x: Any) -> Any:
        if np.ndim(x) == 0 or not padding:
            return x
        xp = jnp if isinstance(x, jax.Array) else np
        return xp.concatenate([x, xp.zeros((padding, *np.shape(x)[1:]), x.dtype)])

    return jax.tree.map(pad, arrays)


def put_rows(arrays: PyTree, mesh: Mesh, *, row_axis: int = 0) -> PyTree:
    """Arrays on the mesh, split along their axis of rows; those without one are replicated.

    In several processes each is given all rows, and moves those of its own devices alone.
    """
    split, whole = _rows_sharding(mesh, row_axis), NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: processes.put(x, split if np.ndim(x) > row_axis else whole), arrays)


def _rows_sharding(mesh: Mesh, row_axis: int = 0) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*[None] * row_axis, data_axis(mesh)))


def replicate(arrays: PyTree, mesh: Mesh) -> PyTree:
    """Arrays on the mesh, whole on every device."""
    return jax.tree.map(lambda x: processes.put(x, NamedSharding(mesh, PartitionSpec())), arrays)


def place(batch: Batch, weight: Any, mesh: Mesh | None) -> tuple[Batch, Any]:
    """The batch on the device, or split over the mesh; explicit, so a transfer guard lets it pass."""
    if mesh is not None:
        return put_rows(pad_batch(batch, weight, mesh), mesh)
    return jax.device_put((batch, weight))


def place_stacked(pairs: list[tuple[Batch, Any]], mesh: Mesh | None) -> tuple[Batch, Any]:
    """Several batches stacked along a new leading axis, on the device or split over the mesh along rows."""
    if mesh is not None:
        pairs = [pad_batch(batch, weight, mesh) for batch, weight in pairs]
    batches = jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *[batch for batch, _ in pairs])
    weights = None if pairs[0][1] is None else np.stack([weight for _, weight in pairs])
    if mesh is None:
        return jax.device_put((batches, weights))
    return put_rows((batches, weights), mesh, row_axis=1)


def put_like(x: Any, old: jax.Array) -> jax.Array:
    """`x` where `old` is, in memory of its own, which can be donated.

    Committed to a device only if `old` is: what is committed elsewhere, or at all, compiles a step anew.
    """
    where = old.sharding if getattr(old, "committed", True) else None
    if where is not None and not where.is_fully_addressable:
        return _copied(processes.put(x, where))
    array = jax.device_put(x, where)
    if isinstance(x, jax.Array):
        return _copied(array)
    # On the CPU that is an alias of NumPy's memory, which could not be donated: the second put copies.
    return jax.device_put(array, where, may_alias=False) if on_host(array) else array


_copied = jax.jit(jnp.copy)


def on_host(x: jax.Array) -> bool:
    """Whether its memory is the host's, so that NumPy may have the same."""
    return x.sharding.memory_kind != "device" or any(d.platform == "cpu" for d in x.devices())


def mesh_of(state: PyTree) -> Mesh | None:
    """The mesh a state lives on, or None if it is on one device."""
    for x in jax.tree.leaves(state):
        found = getattr(getattr(x, "sharding", None), "mesh", None)
        if isinstance(found, Mesh) and found.size > 1:
            return found
    return None


class Layout:
    """Where every leaf of a tree lies; equal to another if all of them lie alike."""

    __slots__ = ("_hash", "shardings")

    def __init__(self, shardings: tuple[NamedSharding, ...]):
        self.shardings: tuple[NamedSharding, ...] = shardings
        self._hash = hash(shardings)  # asked for at every step

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Layout) and self.shardings == other.shardings)

    def __hash__(self) -> int:
        return self._hash


def layout_of(tree: PyTree) -> Layout | None:
    """The layout of a tree on a mesh of several devices; None for one that is not, or is being traced.

    None too on axes of the explicit type, where types say where everything lies.
    """
    leaves = jax.tree.leaves(tree)
    shardings = tuple(x.sharding for x in leaves if check.is_concrete(x))
    named = [s for s in shardings if isinstance(s, NamedSharding) and s.mesh.size > 1]
    if not leaves or len(named) != len(leaves):
        return None
    if any(AxisType.Explicit in s.mesh.axis_types for s in named):
        return None
    return Layout(tuple(named))


def pinned(tree: PyTree, layout: Layout | None) -> PyTree:
    """The tree as it leaves a program: where `layout` says, and not where the compiler would have it."""
    if layout is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    placed = [jax.lax.with_sharding_constraint(x, s) for x, s in zip(leaves, layout.shardings)]
    return jax.tree.unflatten(structure, placed)
