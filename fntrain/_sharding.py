"""Meshes, and which axis of them each array is split over."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from . import _processes, tree
from ._check import ConfigError, DataError, integer
from ._typing import Batch, PyTree

Rules: TypeAlias = Sequence[tuple[str, PartitionSpec]] | Callable[[str, Any, Mesh], PartitionSpec]
"""`[(regex, PartitionSpec), …]`, first match wins, or a function of path, array and mesh."""


def mesh(devices: Sequence[Any] | None = None, **axes: int) -> Mesh:
    """A device mesh with named axes.

    Args:
      devices: the devices to use; None is all.
      **axes: size by name, in order; one may be -1, what is left. Without any, `data=-1, model=1`.

    Raises:
      ConfigError: if the sizes do not multiply to the number of devices.

    Examples:
      >>> import fntrain as ft
      >>> ft.sharding.mesh(data=-1).axis_names
      ('data',)
    """
    axes = axes or {"data": -1, "model": 1}
    devices = list(jax.devices() if devices is None else devices)
    sizes = list(axes.values())
    if any(isinstance(s, bool) or not isinstance(s, int) or (s < 1 and s != -1) for s in sizes):
        raise ConfigError(f"mesh axes must be integers >= 1, or -1 for what is left, got {axes}")
    if sizes.count(-1) > 1:
        raise ConfigError(f"only one mesh axis may be -1, got {axes}")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // -int(np.prod(sizes)))
    if int(np.prod(sizes)) != len(devices):
        raise ConfigError(f"mesh axes {axes} do not multiply to the {len(devices)} devices at hand")
    auto = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes), tuple(axes), axis_types=auto, devices=devices)


def fsdp(axis: str = "data", min_size: int = 2**18) -> Callable[[str, Any, Mesh], PartitionSpec]:
    """Rules that split every leaf of at least `min_size` elements along its largest divisible axis.

    Args:
      axis: the mesh axis to split over.
      min_size: smaller leaves, in elements, are replicated.
    """

    def rule(path: str, x: Any, mesh: Mesh) -> PartitionSpec:
        del path
        if axis not in mesh.axis_names:
            raise ConfigError(f"`axis` {axis!r} is not in the mesh, which has {mesh.axis_names}")
        n = mesh.shape[axis]
        fit = [i for i, size in enumerate(x.shape) if size % n == 0]
        if int(np.prod(x.shape)) < min_size or not fit:
            return PartitionSpec()
        split = max(fit, key=lambda i: x.shape[i])
        return PartitionSpec(*(axis if i == split else None for i in range(split + 1)))

    return rule


def specs(params: PyTree, mesh: Mesh, rules: Rules | None) -> PyTree:
    """The PartitionSpec of every leaf; None as rules replicates all.

    Raises:
      ConfigError: if a leaf is covered by no rule, a rule matches no leaf, or a spec does not fit its leaf.
    """
    if rules is None:
        rules = [(".*", PartitionSpec())]
    if not callable(rules):
        rules = _from_patterns(rules, tree.paths(params))
    rule = rules

    def spec(path: str, x: Any) -> PartitionSpec:
        found = rule(path, x, mesh)
        _check_spec(path, x, found, mesh)
        return found

    return tree.map_with_path(spec, params)


def _from_patterns(
    rules: Sequence[tuple[str, PartitionSpec]], names: list[str]
) -> Callable[..., PartitionSpec]:
    pairs = [(tree.compiled(pattern, "rules"), spec) for pattern, spec in rules]
    for pattern, _ in pairs:
        # The usual last rule, for whatever is left, may find nothing left.
        if pattern.pattern != ".*" and not any(pattern.search(name) for name in names):
            raise tree.unmatched(pattern.pattern, names, "rules")

    def rule(path: str, x: Any, mesh: Mesh) -> PartitionSpec:
        del x, mesh
        for pattern, spec in pairs:
            if pattern.search(path):
                return spec
        raise ConfigError(f'`rules` cover no leaf `{path}`; end them with (".*", PartitionSpec())')

    return rule


def _check_spec(path: str, x: Any, spec: Any, mesh: Mesh) -> None:
    if not isinstance(spec, PartitionSpec):
        raise ConfigError(f"`rules` must give a PartitionSpec for `{path}`, got {spec!r}")
    if len(spec) > len(x.shape):
        raise ConfigError(f"`rules` give {spec} for `{path}`, which has only {len(x.shape)} axes")
    for size, entry in zip(x.shape, spec):
        for name in (entry,) if isinstance(entry, str) else entry or ():
            if name not in mesh.axis_names:
                raise ConfigError(
                    f"`rules` give {spec} for `{path}`; the mesh has no axis {name!r}, only {mesh.axis_names}"
                )
        n = int(np.prod([mesh.shape[a] for a in ((entry,) if isinstance(entry, str) else entry or ())]))
        if size % n:
            raise ConfigError(
                f"`rules` give {spec} for `{path}` of shape {list(x.shape)}: {size} does not divide by {n}"
            )


def state_shardings(
    state: PyTree, params_of: Callable[[PyTree], PyTree], mesh: Mesh, rules: Rules | None
) -> PyTree:
    """A sharding for every leaf of a train state.

    Parameters follow the rules. A leaf elsewhere whose path ends with a parameter's path and which has its shape
    (a moment, an accumulator) is split like it; all others are replicated.
    """
    params = params_of(state)
    by_path = dict(
        zip(tree.paths(params), zip(jax.tree.leaves(params), jax.tree.leaves(specs(params, mesh, rules))))
    )

    def one(path: str, x: Any) -> NamedSharding:
        parts = path.split("/")
        for i in range(len(parts)):
            like = by_path.get("/".join(parts[i:]))
            if like is not None and like[0].shape == x.shape:
                return NamedSharding(mesh, like[1])
        return NamedSharding(mesh, PartitionSpec())

    return tree.map_with_path(one, state)


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
        rows = _processes.largest(size)
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
            return _processes.put(x, NamedSharding(mesh, PartitionSpec()))
        shape = (x.shape[0] // here * parts, *x.shape[1:])
        return jax.make_array_from_process_local_data(split, np.asarray(x), shape)

    return jax.tree.map(put, arrays)


def data_axis(mesh: Mesh) -> str:
    """The axis that batches are split over: `"data"`, or the mesh's first."""
    return "data" if "data" in mesh.axis_names else mesh.axis_names[0]


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
    return jax.tree.map(lambda x: _processes.put(x, split if np.ndim(x) > row_axis else whole), arrays)


def _rows_sharding(mesh: Mesh, row_axis: int = 0) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*[None] * row_axis, data_axis(mesh)))


def replicate(arrays: PyTree, mesh: Mesh) -> PyTree:
    """Arrays on the mesh, whole on every device."""
    return jax.tree.map(lambda x: _processes.put(x, NamedSharding(mesh, PartitionSpec())), arrays)


def report(state: PyTree) -> str:
    """A table of leaf, shape, spec and bytes per device, with the total."""
    rows = [("leaf", "shape", "spec", "bytes/device")]
    total = 0
    for path, x in tree.items(state):
        sharding = x.sharding
        here = int(np.prod(sharding.shard_shape(x.shape))) * x.dtype.itemsize
        total += here
        spec = getattr(sharding, "spec", "one device")
        rows.append(
            (path, f"{x.dtype.name}{list(x.shape)}", re.sub("PartitionSpec", "P", str(spec)), f"{here:,}")
        )
    rows.append(("total", "", "", f"{total:,}"))
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(r[:3], widths)), r[3].rjust(widths[3])]) for r in rows
    )
