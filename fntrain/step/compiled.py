"""A compiled step that is not run: what it needs, and into how many parts a batch has to be cut to fit."""

import dataclasses
import os
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from .. import sharding, tree
from .._core.errors import ConfigError, DataError
from .._core.sizes import bytes_text
from .._core.typing import Batch
from ..sharding.place import mesh_of
from . import programs
from .state import TrainState
from .step import train_step
from .task import Task

SHARE = 0.9  # of a device's memory: the rest is the runtime's


def compiled(task: Task, state: TrainState, batch: Batch, weight: Any) -> tuple[Any, Any]:
    """`(trace, program)` of `train_step` on such arguments, arrays or shapes; the state donated, as it is in a run."""

    def step(state: TrainState, batch: Batch, weight: Any) -> Any:
        return train_step(task, state, batch, weight)

    arguments = jax.tree.map(_abstract, state), *_placed(state, batch, weight)
    mesh: Any = getattr(arguments[0].step.sharding, "mesh", None)
    with nullcontext() if mesh is None else jax.set_mesh(mesh):
        traced = jax.jit(step, donate_argnums=0).trace(*arguments)
        return traced, traced.lower().compile()


def memory_of(program: Any) -> tuple[int, int, int]:
    """Bytes a device of arguments, of outputs that are in none's place, and of what is needed besides."""
    memory: Any = program.memory_analysis()
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes, output, memory.temp_size_in_bytes


def fewest_microbatches(
    task: Task, state: TrainState, batch: Batch, weight: Any, budget: int
) -> tuple[int, dict[int, int]]:
    """The smallest power of two of micro-batches with which a step fits, and the peak bytes of all that were tried.

    Raises:
      DataError: if one row at a time is too much, with what it would take.
    """
    rows = tree.leading_axis(batch)
    mesh = mesh_of(state)
    rows = rows if mesh is None else -(-rows // mesh.shape[sharding.data_axis(mesh)])
    divides = not programs.takes_weights(task, state, batch, train=True)
    tried: dict[int, int] = {}
    number = 1
    while number <= rows and not (divides and rows % number):
        cut = dataclasses.replace(task, microbatches=number)
        tried[number] = sum(memory_of(compiled(cut, state, batch, weight)[1]))
        if tried[number] <= budget:
            return number, tried
        number *= 2
    least = min(tried, key=tried.__getitem__)
    raise DataError(
        f"`batch` of {rows} rows a device does not fit {bytes_text(budget)} however it is cut: it takes "
        f"{bytes_text(tried[least])} in {least} micro-batch{'es' * (least > 1)}, of which the state is "
        f"{bytes_text(tree.nbytes(_words(state)))}; take a smaller batch, or split the state over a mesh"
        + "; the loss is a scalar, so that only parts that divide the rows were tried"
        * divides
    )


def _words(state: TrainState) -> list[Any]:
    return [x for x in jax.tree.leaves(state) if not jnp.issubdtype(x.dtype, jax.dtypes.extended)]


def device_budget(state: TrainState) -> int:
    """Bytes that a run may take on each device of a state: its memory but for a tenth; on the CPU, the machine's.

    Raises:
      ConfigError: if that is not known.
    """
    device = next(iter(jax.tree.leaves(state)[0].devices()))
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform == "cpu":
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(device.client.local_devices())
    if limit is None:
        raise ConfigError(f"`budget` must be given in bytes: {device} does not say how much memory it has")
    return int(SHARE * limit)


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    where = x.sharding if getattr(x, "committed", True) else None
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where, weak_type=getattr(x, "weak_type", False))


def _placed(state: TrainState, batch: Batch, weight: Any) -> Any:
    mesh = mesh_of(jax.tree.map(_abstract, state))

    def one(x: Any) -> jax.ShapeDtypeStruct:
        if not isinstance(x, jax.Array | jax.ShapeDtypeStruct):
            x = jax.eval_shape(jnp.asarray, x)
        where = x.sharding if getattr(x, "committed", True) else None
        if mesh is None or isinstance(where, NamedSharding):
            return _abstract(x)
        axis = sharding.data_axis(mesh)
        rows = [-(-x.shape[0] // mesh.shape[axis]) * mesh.shape[axis]] if x.shape else []
        spec = PartitionSpec(axis) if x.shape else PartitionSpec()
        return jax.ShapeDtypeStruct((*rows, *x.shape[1:]), x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(one, (batch, weight))
