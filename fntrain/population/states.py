"""A population's state: many runs as one, with a leading member axis on every array."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .. import tree
from .._core import check
from .._core.check import is_function
from .._core.errors import ConfigError, DataError
from .._core.typing import ArrayLike, Batch, Params, PyTree
from ..sharding.place import mesh_of
from ..step import checks, members
from ..step.members import PerMember
from ..step.packed import Packed
from ..step.state import TrainState, check_state, init_state, root_key
from ..step.step import train_step, train_steps
from ..step.task import Task
from ..transforms.hyperparams import set_hyperparams


def init(
    task: Task,
    init_params: Params | Callable[[jax.Array], Params],
    *,
    seeds: Sequence[int] | ArrayLike = (0,),
    hyperparams: Mapping[str, Sequence[float] | ArrayLike] | None = None,
    model_state: PyTree = None,
    mesh: Mesh | None = None,
) -> TrainState:
    """The state of many runs: each has a seed of its own, and its own hyperparameters.

    Member i is `init_state(task, init_params, key=seeds[i])` with `set_hyperparams` of the i-th values, and every verb
    (`train_step`, `eval_step`, `evaluate`, `fit`, …) maps over the members, in one program.

    Args:
      task: the Task; hyperparameters that differ stand in a `with_hyperparams` of its transform.
      init_params: as for `init_state`. A function is given each member's key; a tree of arrays is where all start.
      seeds: one integer a member, or one for all, `[7]`.
      hyperparams: by the names that `transforms.hyperparams` shows, one number a member, or one for all. For all
        combinations see `grid`.
      model_state: as for `init_state`.
      mesh: a mesh with an axis `members`, over which they are split, and an axis `data`, over which batches are:
        `fntrain.sharding.mesh(members=-1, data=1)`.

    Returns:
      A TrainState whose arrays are `[N, …]`.

    Raises:
      ConfigError: if lengths differ, a name is no hyperparameter of the task, a seed no integer, or the mesh does not
        fit; as `init_state` too.

    Examples:
      >>> import fntrain as ft, jax
      >>> from fntrain import population
      >>> tx = ft.transforms.with_hyperparams(ft.optimizers.sgd, learning_rate=0.1)
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), tx)
      >>> states = population.init(task, lambda key: {"w": jax.random.normal(key)}, seeds=[0, 0, 1],
      ...                          hyperparams={"learning_rate": [0.1, 0.2, 0.2]})
      >>> states.params["w"].shape, ft.transforms.hyperparams(states)["learning_rate"].shape
      ((3,), (3,))
    """
    if not isinstance(task, Task):
        checks.check_task(task, "(task, init_params)")
    numbers = _numbers(seeds, hyperparams or {})
    size = max(map(len, numbers.values()))
    for name, values in numbers.items():
        if len(values) not in (1, size):
            raise ConfigError(
                f"`{name}` must have one value a member, {size} as the others have, or one for all, got "
                f"{len(values)}; for all combinations, `init(task, init_params, **population.grid(...))`"
            )
    seeds_of = numbers.pop("seeds")
    keys = jnp.stack([root_key(int(seed)) for seed in seeds_of])
    keys = jnp.broadcast_to(keys, (size,)) if len(seeds_of) == 1 else keys
    values = {name: jnp.asarray(np.broadcast_to(x, (size,))) for name, x in numbers.items()}

    jit = jax.jit if mesh is None else functools.partial(jax.jit, out_shardings=_split(mesh, size))
    if not is_function(init_params):
        first = init_state(task, init_params, model_state=model_state)
        return jit(_spread)(first, keys, values)

    def make(key: jax.Array, values: dict[str, jax.Array]) -> TrainState:
        state = init_state(task, init_params, key=key, model_state=model_state)
        return _with_values(state, values)

    # Traced anew each time: a notebook may have changed a global that the function reads.
    return jit(jax.vmap(make))(keys, values)


def _spread(first: TrainState, keys: jax.Array, values: dict[str, jax.Array]) -> TrainState:
    """Members that start alike, but for their keys and hyperparameters."""
    return jax.vmap(lambda key, values: _with_values(first.replace(key=key), values))(keys, values)


def _with_values(state: TrainState, values: dict[str, jax.Array]) -> TrainState:
    return set_hyperparams(state, **values) if values else state


def _numbers(seeds: Any, hyperparams: Any) -> dict[str, Any]:
    """Seeds and hyperparameters, as sequences by name."""
    if isinstance(seeds, int | np.integer) or np.ndim(seeds) != 1 or not len(seeds):
        raise ConfigError(
            f"`seeds` must be a sequence of integers, one a member, got {check.said(seeds)}; `range(5)` for five, "
            f"`[0]` for the same in all"
        )
    if not isinstance(hyperparams, Mapping):
        raise ConfigError(
            f"`hyperparams` must map names to values, `{{'learning_rate': [0.1, 0.01]}}`, got {check.said(hyperparams)}"
        )
    found: dict[str, Any] = {"seeds": [check.integer("seeds", seed) for seed in np.asarray(seeds)]}
    for name, values in hyperparams.items():
        array = np.asarray(values)
        if array.ndim != 1 or not array.size:
            raise ConfigError(
                f"`hyperparams`: `{name}` must be a sequence of numbers, one a member, got {check.said(values)}"
            )
        for x in array:
            check.number(name, x)
        found[name] = array.astype(np.float32)
    return found


def _split(mesh: Mesh, size: int) -> NamedSharding:
    names = getattr(mesh, "axis_names", ())
    if members.AXIS not in names or "data" not in names:
        raise ConfigError(
            f"`mesh` must have an axis `{members.AXIS}`, for the population, and an axis `data`, for batches: "
            f"`fntrain.sharding.mesh({members.AXIS}=-1, data=1)`, got {check.said(mesh)}"
        )
    if size % mesh.shape[members.AXIS]:
        raise ConfigError(
            f"{size} members do not divide over the {mesh.shape[members.AXIS]} devices of mesh axis `{members.AXIS}`"
        )
    return NamedSharding(mesh, PartitionSpec(members.AXIS))


def grid(*, seeds: Sequence[int] = (0,), **hyperparams: Sequence[float]) -> dict[str, Any]:
    """All combinations of hyperparameters and seeds, as `init` takes them.

    Args:
      seeds: the seeds that each combination is run with.
      **hyperparams: values by name.

    Returns:
      `{"seeds": [...], "hyperparams": {name: [...]}}`; seeds vary fastest, and the last name before them.

    Raises:
      ConfigError: if one of them is no sequence of numbers.

    Examples:
      >>> from fntrain import population
      >>> population.grid(seeds=range(2), learning_rate=[0.1, 0.5])
      {'seeds': [0, 1, 0, 1], 'hyperparams': {'learning_rate': [0.1, 0.1, 0.5, 0.5]}}
    """
    _numbers(seeds, hyperparams)
    columns = np.meshgrid(*map(np.asarray, hyperparams.values()), np.asarray(seeds), indexing="ij")
    *values, seed = (column.ravel().tolist() for column in columns)
    return {"seeds": seed, "hyperparams": dict(zip(hyperparams, values))}


def size(states: TrainState) -> int:
    """How many members a population has.

    Raises:
      ConfigError: if it is the state of one run.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> from fntrain import population
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> population.size(population.init(task, {"w": np.float32(0)}, seeds=range(4)))
      4
    """
    check_state(states, "population")
    number = members.count(states)
    if number is None:
        raise ConfigError(
            "`states` must be a population's, with a member axis, got the state of one run; make one with "
            "`population.init(task, init_params, seeds=range(5))`, or of states that there are, `population.stack([…])`"
        )
    return number


def member(states: TrainState, index: int) -> TrainState:
    """One member's state: an ordinary TrainState, for `fit` or whatever else.

    Args:
      states: a population's state; it stays usable.
      index: which one, counted from 0; negative from the end.

    Returns:
      A TrainState, on one device of this process; of several processes all make the call, and each has it.

    Raises:
      ConfigError: if there is no such member.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> from fntrain import population
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> states = population.init(task, {"w": np.float32(3)}, seeds=range(4))
      >>> float(population.member(states, 2).params["w"])
      3.0
    """
    number = size(states)
    index = check.integer("index", index)
    if not -number <= index < number:
        raise ConfigError(f"`index` must be a member's, from 0 to {number - 1}, got {index}")
    mesh = mesh_of(states)

    def one(tree: TrainState) -> TrainState:
        return jax.tree.map(lambda x: jnp.copy(x[index]), tree)

    if mesh is None:
        return jax.jit(one)(states)
    whole = jax.jit(one, out_shardings=NamedSharding(mesh, PartitionSpec()))(states)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)


def select(states: TrainState, indices: Sequence[int] | ArrayLike) -> TrainState:
    """A population of some members, in the order given, repeated ones too.

    Args:
      states: a population's state; it stays usable.
      indices: which ones, from 0; traced ones too.

    Returns:
      A TrainState of `len(indices)` members.

    Raises:
      ConfigError: if one is no member's, or they no longer divide over the mesh.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> from fntrain import population
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> states = population.init(task, {"w": np.float32(3)}, seeds=range(4))
      >>> population.size(population.select(states, [0, 3]))
      2
    """
    number = size(states)
    concrete = check.is_concrete(indices)
    if concrete:
        indices = np.asarray(indices)
        if indices.ndim != 1 or not len(indices) or not np.issubdtype(indices.dtype, np.integer):
            raise ConfigError(f"`indices` must be a sequence of integers, got {check.said(indices)}")
        if indices.min() < 0 or indices.max() >= number:
            raise ConfigError(f"`indices` must be members', from 0 to {number - 1}, got {indices.tolist()}")
    mesh = mesh_of(states) if check.is_concrete(states.step) else None
    if mesh is None:
        return _taken(states, jnp.asarray(indices))
    where = _split(mesh, len(indices))  # type: ignore[arg-type]
    return jax.jit(_taken, out_shardings=where)(states, jnp.asarray(indices))


@jax.jit
def _taken(states: TrainState, indices: jax.Array) -> TrainState:
    return jax.tree.map(lambda x: x[indices], states)


def stack(states: Sequence[TrainState]) -> TrainState:
    """A population of states that there are already, of the same task.

    Args:
      states: ordinary states, at the same step; they stay usable.

    Returns:
      A TrainState of `len(states)` members.

    Raises:
      ConfigError: if there is none, they differ in structure or types, or stand at different steps.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> from fntrain import population
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> states = [ft.init_state(task, {"w": np.float32(x)}) for x in (1, 2)]
      >>> population.stack(states).params["w"].tolist()
      [1.0, 2.0]
    """
    states = list(states)
    if not states:
        raise ConfigError("`states` must hold at least one state, got none")
    for i, state in enumerate(states):
        check_state(state, "population.stack")
        difference = tree.structure_difference(states[0], state) or tree.aval_difference(states[0], state)
        if difference:
            raise ConfigError(f"`states` must be alike: state {i} is not as the first, {difference}")
    steps_taken = {int(state.step) for state in states}
    if len(steps_taken) > 1:
        raise ConfigError(f"`states` must stand at the same step, got {sorted(steps_taken)}")
    return jax.jit(lambda *given: jax.tree.map(lambda *x: jnp.stack(x), *given))(*states)


def per_member(batch: PyTree) -> PerMember:
    """A batch of which each member has its own: members first, as they are stacked.

    Args:
      batch: a tree of arrays `[N, B, …]`.

    Returns:
      What every verb takes as the batch of a population.

    Raises:
      DataError: if a leaf has no two leading axes, or they differ between leaves.

    Examples:
      >>> import numpy as np
      >>> from fntrain import population
      >>> population.per_member(np.zeros((3, 8, 2))).rows.shape
      (8, 3, 2)
    """
    leading = {np.shape(x)[:2] for x in jax.tree.leaves(batch)}
    if len(leading) != 1 or len(next(iter(leading))) != 2:
        raise DataError(
            f"`batch` must be arrays [members, rows, …] that share these two axes, got {tree.describe(batch)}"
        )
    return PerMember(jax.tree.map(lambda x: x.swapaxes(0, 1), batch))


def step(
    task: Task, states: TrainState, batch: Batch, weight: ArrayLike | None = None
) -> tuple[TrainState, Packed]:
    """One step of every member, in one program: `train_step` of a population.

    Args:
      task: the Task.
      states: a population's state; its arrays are consumed.
      batch: a tree of arrays `[B, …]`, the same for all; or `per_member(...)`.
      weight: `[B]`, the same for all; `[N, B]`, each member's; or None.

    Returns:
      `(states, metrics)`; `compute_metrics(task, metrics)` gives arrays `[N, …]`.

    Raises:
      ConfigError: if `states` is no population's; as `train_step` too.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> from fntrain import population
      >>> tx = ft.transforms.with_hyperparams(ft.optimizers.sgd, learning_rate=0.1)
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], 0 * b), tx)
      >>> states = population.init(task, {"w": np.float32(1)}, hyperparams={"learning_rate": [0.0, 0.25, 0.5]})
      >>> states, metrics = population.step(task, states, np.ones(4, np.float32))
      >>> states.params["w"].tolist()
      [1.0, 0.5, 0.0]
    """
    size(states)
    if weight is not None and np.ndim(weight) == 2:
        weight = jnp.swapaxes(jnp.asarray(weight), 0, 1)
    return train_step(task, states, batch, weight)


def steps(
    task: Task, states: TrainState, batches: Batch, weights: jax.Array | None = None
) -> tuple[TrainState, Packed]:
    """K steps of every member in one dispatch: `train_steps` of a population.

    Args:
      task: the Task.
      states: a population's state; its arrays are consumed.
      batches: a tree of arrays `[K, B, …]`, the same for all.
      weights: `[K, B]`, or None.

    Returns:
      `(states, metrics)`: after K steps, the metrics of all K merged.

    Raises:
      As `step`.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> from fntrain import population
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> states = population.init(task, {"w": np.float32(0)}, seeds=range(4))
      >>> states, metrics = population.steps(task, states, np.ones((5, 2), np.float32))
      >>> ft.compute_metrics(task, metrics)["loss"].shape
      (4,)
    """
    size(states)
    return train_steps(task, states, batches, weights)
