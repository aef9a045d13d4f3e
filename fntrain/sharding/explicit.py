"""Meshes whose axes are of the explicit type, on which every operation must say how its result is split."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def automatic(f: Callable[..., Any], *args: Any) -> Any:
    """`f(*args)`, with the splitting left to XLA and a result that is whole on every device.

    For what is summed up over a batch (metrics), which has one answer however the batch is split; elsewhere than on
    explicit axes, it is `f(*args)`.
    """
    mesh = _mesh_of(args)
    if mesh is None:
        return f(*args)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.sharding.auto_axes(f, out_sharding=NamedSharding(mesh, PartitionSpec()))(*args)


def split_as(x: Any, whole: int) -> NamedSharding | None:
    """An array split as `x` is, with so many axes more, which are whole; None on other axes than explicit ones."""
    mesh = _mesh_of(x)
    return (
        None
        if mesh is None
        else NamedSharding(mesh, PartitionSpec(*jax.typeof(x).sharding.spec, *[None] * whole))
    )


def _mesh_of(args: Any) -> Any:
    for x in jax.tree.leaves(args):
        mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
        if mesh is not None and AxisType.Explicit in mesh.axis_types:
            return mesh
    return None
