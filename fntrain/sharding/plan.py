"""What a training run will hold on each device, from shapes alone: nothing is allocated, no device is asked."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from .._core import check
from .._core.errors import ConfigError
from .._core.typing import Batch, Params, PyTree
from .mesh import data_axis
from .rules import Rules, state_shardings


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes on each device, by what they are for; `print` it for a table.

    Attributes:
      mesh: the mesh's axes and their sizes.
      size: the number of parameters, over all devices.
      parameters: bytes of the parameters.
      gradients: bytes of their gradient, in float32 at least, split like the parameters.
      optimizer_state: bytes of the transform's state.
      activations: bytes that the backward pass keeps from the forward pass for one micro-batch, and the copies of
        the parameters in the policy's compute dtype; None without a batch.
      batch: bytes of the batch; None without one.
    """

    mesh: Mapping[str, int]
    size: int
    parameters: int
    gradients: int
    optimizer_state: int
    activations: int | None = None
    batch: int | None = None

    @property
    def total(self) -> int:
        """The sum of all of them."""
        parts = (self.parameters, self.gradients, self.optimizer_state, self.activations, self.batch)
        return sum(n for n in parts if n is not None)

    def __str__(self) -> str:
        """A table, a line for each part."""
        axes = " x ".join(f"{name} {n}" for name, n in self.mesh.items())
        unit, per = ("GiB", 2**30) if self.total >= 2**30 else ("MiB", 2**20)
        lines = [f"{self.size:,} parameters on {int(np.prod(list(self.mesh.values())))} devices ({axes})"]
        for name in ("parameters", "gradients", "optimizer_state", "activations", "batch", "total"):
            n = getattr(self, name)
            text = "not known: pass `batch`" if n is None else f"{n / per:12.3f} {unit}  {n:>19,} B"
            lines.append(f"{name.replace('_', ' '):<16}{text}")
        return "\n".join([lines[0] + ", on each of them:", *lines[1:]])


def plan(
    task: Any,
    params: Params | Callable[[jax.Array], Params],
    mesh: Mesh | AbstractMesh | Mapping[str, int],
    rules: Rules | None = None,
    *,
    batch: Batch = None,
) -> Plan:
    """The memory that training takes on each device, before anything is allocated.

    Parameters, gradients and optimizer state are what `init_state` and `train_step` make. Activations are what
    automatic differentiation keeps (`jax.checkpoint` is seen), for the rows of one device and one micro-batch; they
    are counted whole along every mesh axis but the batch's, so where a rule splits layers over a `"model"` axis the
    number is an upper bound. What XLA needs besides is not known before it compiles: see `tools.compile_report`.

    Args:
      task: the Task.
      params: as in `init_state`, or shapes: `jax.ShapeDtypeStruct` leaves.
      mesh: a mesh, or sizes by name for devices that are not at hand: `{"data": 64, "model": 8}`.
      rules: as in `init_state`.
      batch: the whole batch, or its shapes; None leaves activations out.

    Returns:
      A Plan, for `print`.

    Raises:
      ConfigError: if the rules do not fit, or the mesh is something else.

    Examples:
      >>> import fntrain as ft, jax, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b), ft.optimizers.adam(1e-3))
      >>> shapes = {"w": jax.ShapeDtypeStruct((65536, 65536), jnp.float32)}
      >>> print(ft.sharding.plan(task, shapes, {"data": 8}, ft.sharding.fsdp()))
      4,294,967,296 parameters on 8 devices (data 8), on each of them:
      parameters             2.000 GiB        2,147,483,648 B
      gradients              2.000 GiB        2,147,483,648 B
      optimizer state        4.000 GiB        4,294,967,312 B
      activations     not known: pass `batch`
      batch           not known: pass `batch`
      total                  8.000 GiB        8,589,934,608 B
    """
    needs = demands(task, params)
    where = _abstract(mesh)
    shardings = state_shardings(needs.state, lambda s: s.params, where, rules)
    split = jax.tree.map(
        lambda x, s: None if x is None else s, needs.gradients, shardings.params, is_leaf=_is_none
    )
    parameters = _bytes(needs.state.params, shardings.params)
    found = Plan(
        mesh=dict(where.shape),
        size=sum(int(np.prod(x.shape)) for x in jax.tree.leaves(needs.state.params)),
        parameters=parameters,
        gradients=_bytes(needs.gradients, split),
        optimizer_state=_bytes(needs.state.opt_state, shardings.opt_state),
    )
    if batch is None:
        return found
    parts = where.shape[data_axis(where)]
    batch = jax.tree.map(shape_of, batch)
    kept, copies = needs.saved(_first_rows(batch, parts * needs.microbatches))
    whole = _bytes(needs.state.params, None)
    return dataclasses.replace(
        found,
        activations=kept + copies * parameters // whole,
        batch=_bytes(_first_rows(batch, parts), None),
    )


class Demands(NamedTuple):
    """What training holds, as shapes."""

    state: Any  # with `params` and `opt_state`
    gradients: PyTree  # None for leaves that are not trained
    microbatches: int
    saved: Callable[[Batch], tuple[int, int]]  # bytes kept for the backward pass: of the batch, of parameters


@functools.singledispatch
def demands(task: Any, params: Any) -> Demands:
    """What a task needs to train parameters. The engine, which knows, registers its answer for its Task."""
    del params
    raise ConfigError(f"`task` must be a Task, got {type(task).__name__}; call `plan(task, params, mesh)`")


def _abstract(mesh: Any) -> Any:
    if isinstance(mesh, Mesh | AbstractMesh):
        return mesh
    if not isinstance(mesh, Mapping) or not mesh:
        raise ConfigError(f'`mesh` must be a mesh, or sizes such as {{"data": 64, "model": 8}}, got {mesh!r}')
    sizes = tuple(check.integer(f"mesh[{name!r}]", n, at_least=1) for name, n in mesh.items())
    return AbstractMesh(sizes, tuple(mesh))


def shape_of(x: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, a number, or of what is one already."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    return jax.eval_shape(jnp.asarray, x)


def _is_none(x: Any) -> bool:
    return x is None


def _first_rows(batch: PyTree, parts: int) -> PyTree:
    """The shapes of one of so many parts of a batch."""

    def one(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((-(-x.shape[0] // parts), *x.shape[1:]), x.dtype) if x.shape else x

    return jax.tree.map(one, batch)


def _bytes(arrays: PyTree, shardings: PyTree | None) -> int:
    leaves = jax.tree.leaves(arrays)
    where: list[NamedSharding | None] = (
        [None] * len(leaves) if shardings is None else jax.tree.leaves(shardings)
    )
    return sum(
        int(np.prod(s.shard_shape(x.shape) if s is not None else x.shape)) * x.dtype.itemsize
        for x, s in zip(leaves, where)
    )
