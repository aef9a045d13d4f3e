"""TrainState: everything a run is at one step, as one pytree of arrays."""

import dataclasses
import functools
import html
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state
from jax.sharding import Mesh

from .. import precision, tree
from .._core.check import did_you_mean, function, is_concrete, is_function, said
from .._core.errors import ArgumentError, ConfigError, ConsumedStateError
from .._core.sizes import bytes_text
from .._core.typing import Params, PyTree
from ..schedules.types import before_the_run
from ..sharding import rules as sharding
from ..transforms.types import Carrier, recorded
from .modules import check_no_module
from .rootkey import RootKey, Words
from .task import Task, check_recorded, fold_in_name

_ROOT_KEY = RootKey()


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class TrainState(Carrier):
    """Everything a run is at one step. Arrays only.

    As a tree, its leaves are plain arrays, the words of the key among them: `jax.tree.map(np.asarray, state)` is the
    state on the host, which a step takes again, and `copy.deepcopy`, `pickle` and comparisons work.

    Attributes:
      step: batches consumed, int32, shape (). The stream of random keys follows it.
      updates: optimizer updates applied, int32, shape (). Schedules follow it.
      params: the parameters: floating-point leaves are trained, others carried.
      opt_state: the transform's state.
      model_state: mutable collections of the model (batch statistics, say), or None.
      key: the run's root PRNG key, typed; it never changes. NumPy words where the state is NumPy's.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b[:, 0]), ft.optimizers.adam(1e-3))
      >>> ft.init_state(task, {"w": np.zeros(1000, np.float32)})
      TrainState(
        step: 0, 0 updates
        params: 1,000 in 1 array (float32), 4.0 kB: w: float32[1000]
        opt_state: 2,004 in 6 arrays (float32, int32), 8.0 kB, ScaleByAdamState, ScaleByLearningRateState
        model_state: None
      )
    """

    step: jax.Array
    updates: jax.Array
    params: Params
    opt_state: PyTree
    model_state: PyTree
    key: jax.Array = _ROOT_KEY  # type: ignore[assignment]

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """The fields by name, and the key's kind."""
        children, impl = self.tree_flatten()
        return [(jax.tree_util.GetAttrKey(name), x) for name, x in zip(_FIELDS, children)], impl

    def tree_flatten(self) -> tuple[Any, Any]:
        """The fields, the key's words the last of them, and the key's kind."""
        held = self.__dict__
        impl, words = held["_words"]
        return (*(held[name] for name in _FIELDS[:-1]), words), impl

    @classmethod
    def tree_unflatten(cls, impl: Any, children: Any) -> "TrainState":
        """The state of such fields, whatever they are."""
        state = object.__new__(cls)
        held = state.__dict__  # written out: every step makes one
        (
            held["step"],
            held["updates"],
            held["params"],
            held["opt_state"],
            held["model_state"],
            words,
        ) = children
        held["_words"] = Words(impl, words)
        return state

    def __reduce__(self) -> tuple[Any, ...]:
        children, impl = self.tree_flatten()
        return TrainState.tree_unflatten, (impl, children)

    def replace(self, **changes: Any) -> "TrainState":
        """The same state with some fields changed.

        Arrays that are not this state's already are copied, as `init_state` copies them: the next step consumes what
        is in the state, and not what somebody else holds.
        """
        for name in changes:
            if name not in _FIELDS:
                raise ArgumentError(
                    f"`{name}` is no field of TrainState, which has {tree.some(_FIELDS)}{did_you_mean(name, _FIELDS)}"
                )
        owned = {id(x) for name in changes for x in jax.tree.leaves(getattr(self, name))}
        return dataclasses.replace(self, **{name: _taken(name, x, owned) for name, x in changes.items()})

    def __repr__(self) -> str:
        """What it is, and not the numbers in it."""
        return "TrainState(\n" + "".join(f"  {name}: {what}\n" for name, what in self._said()) + ")"

    def _repr_html_(self) -> str:
        """The same as a table, for a notebook."""
        left = "style='text-align:left'"
        rows = "".join(
            f"<tr><th {left}>{name}</th><td {left}>{html.escape(what)}</td></tr>"
            for name, what in self._said()
        )
        return f"<table><caption>TrainState</caption><tbody>{rows}</tbody></table>"

    def _said(self) -> list[tuple[str, str]]:
        names = dict.fromkeys(type(node).__name__ for _, node in tree.named_nodes(self.opt_state))
        plain = (
            "tuple",
            "list",
            "dict",
            "NoneType",
            *(type(x).__name__ for x in (self.params, self.model_state)),
        )
        own = [name for name in names if name not in plain]
        return [
            ("step", f"{_value(self.step)}, {_value(self.updates)} updates"),
            ("params", f"{_amount(self.params)}: {tree.describe(self.params)}"),
            ("opt_state", ", ".join([_amount(self.opt_state), *own[:6]]) + ", …" * (len(own) > 6)),
            ("model_state", "None" if self.model_state is None else _amount(self.model_state)),
        ]


_FIELDS = tuple(field.name for field in dataclasses.fields(TrainState))


def opened(tree: PyTree) -> PyTree:
    """A tree whose TrainStates are dicts of their fields, with the key as what it is: what is stored of them."""

    def one(x: Any) -> Any:
        if not _is_state(x):
            return x
        impl, words = x.__dict__["_words"]
        typed = (
            jax.random.wrap_key_data(jnp.asarray(words), impl=impl)
            if isinstance(words, np.ndarray)
            else x.key
        )
        return {**{name: getattr(x, name) for name in _FIELDS}, "key": typed}

    return jax.tree.map(one, tree, is_leaf=_is_state)


def closed(like: PyTree, fields: PyTree) -> PyTree:
    """The TrainStates of `like` with the fields that `opened` made of such."""
    return jax.tree.map(
        lambda x, new: TrainState(**new) if _is_state(x) else new, like, fields, is_leaf=_is_state
    )


def _is_state(x: Any) -> bool:
    return isinstance(x, TrainState)


def _value(x: Any) -> str:
    """A scalar as its number, where it has one here; else what it is."""
    known = isinstance(x, jax.Array | np.ndarray | int) and is_concrete(x) and np.ndim(x) == 0
    if not known or (isinstance(x, jax.Array) and (x.is_deleted() or not x.is_fully_addressable)):
        return tree.describe(x).removeprefix("array: ")
    return str(int(jax.device_get(x)))


def _amount(part: PyTree) -> str:
    arrays = [x for x in jax.tree.leaves(part) if hasattr(x, "dtype") and hasattr(x, "shape")]
    if not arrays:
        return "no arrays"
    dtypes = ", ".join(sorted({str(x.dtype) for x in arrays}))
    many = "array" if len(arrays) == 1 else "arrays"
    return f"{tree.size(arrays):,} in {len(arrays)} {many} ({dtypes}), {bytes_text(tree.nbytes(arrays))}"


class Variables(NamedTuple):
    """What a model is made of: what is trained, and what changes otherwise.

    Attributes:
      params: a tree of arrays; floating-point leaves are trained.
      model_state: mutable collections (batch statistics, say), or None.
    """

    params: Params
    model_state: PyTree = None


def init_state(
    task: Task,
    params: Params | Callable[[jax.Array], Params],
    *,
    key: int | jax.Array = 0,
    model_state: PyTree = None,
    mesh: Mesh | None = None,
    rules: sharding.Rules | None = None,
) -> TrainState:
    """The state a run starts from.

    Args:
      task: the Task.
      params: a tree of arrays (NumPy's too), which are copied, so that they stay usable and no two leaves of
        the state share a buffer; or a function `key -> params`, or `key -> Variables` as a model's `init`.
        What can be called and is a tree of arrays, as a module is, is parameters; so is a pair.
      key: a seed, or a typed PRNG key: the root of all randomness of the run.
      model_state: mutable collections of the model; not with a function that returns its own.
      mesh: a device mesh to place the state on. The state is made under jit with the shardings of `rules`, so
        that no device ever holds a split leaf whole (where `params` is a function).
      rules: `[(regex, PartitionSpec), …]` over parameter paths, or a rule function (`sharding.fsdp()`); None
        replicates. Optimizer state is split like the parameter it belongs to.

    Returns:
      A TrainState of arrays whose types `train_step` keeps.

    Raises:
      ConfigError: if there is nothing to train, a leaf is no array, two leaves have one path, or the rules do not fit.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b["x"] * p["w"], b["y"]), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.zeros(())}, key=0)
      >>> int(state.step), int(state.updates)
      (0, 0)
    """
    if not isinstance(task, Task):
        raise ConfigError(
            f"`task` must be a Task, got {type(task).__name__}; call `init_state(Task(loss_fn, tx), params)`"
        )
    if isinstance(params, TrainState | Task):
        raise ConfigError(
            f"`params` must be a tree of arrays or a function `key -> params`, got a {type(params).__name__}"
            + "; give its parameters, `state.params`" * isinstance(params, TrainState)
        )
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ConfigError(
            f"`mesh` must be a device mesh, `fntrain.sharding.mesh(data=-1)` say, got {said(mesh)}"
        )
    check_no_module(params)
    if is_function(params):
        function("params", params, "(key) -> params", takes=1)
    if rules is not None and mesh is None:
        raise ConfigError(
            "`rules` need a `mesh`: `init_state(task, params, mesh=fntrain.sharding.mesh(data=-1))`"
        )
    _check_direction(task)
    root = root_key(key)
    if isinstance(params, Variables):
        params, model_state = params
    if is_function(params) and model_state is not None:
        raise ConfigError(
            "`model_state` must come from the `params` function: return `fntrain.models.Variables(params, model_state)`"
        )
    if not is_function(params):
        _check_leaves(params, "params")
        # Integer scalars of Python and NumPy arrays become arrays with a fixed type here, once.
        params = _as_arrays(params, "params")
    _check_leaves(model_state, "model_state")
    model_state = _as_arrays(model_state, "model_state")

    make, given = (params, None) if is_function(params) else (None, params)
    if mesh is None and make is None:
        return _made(task, None, root, given, model_state)
    build = functools.partial(_build, task, make)
    if mesh is None:  # traced anew each time: a notebook may have changed a global that the function reads
        return jax.jit(build)(root, given, model_state)
    shapes = jax.eval_shape(build, root, given, model_state)
    shardings = sharding.state_shardings(shapes, lambda s: s.params, mesh, rules)
    return jax.jit(build, out_shardings=shardings)(root, given, model_state)


def _build(
    task: Task, function: Callable[..., Any] | None, root: jax.Array, given: Any, model_state: Any
) -> TrainState:
    made = given
    if function is not None:
        made = function(fold_in_name(root, "init"))
        check_no_module(made)
        if isinstance(made, Variables) or _of_first_version(made):
            made, model_state = made
        made, model_state = jax.tree.map(_as_array, (made, model_state))
    made = precision.cast(made, task.policy.params)  # type: ignore[union-attr]
    trained, _ = _check_trained(made)
    with before_the_run():
        opt_state = task.transform.init(trained)
    check_recorded(task, recorded(opt_state))
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        updates=jnp.zeros((), jnp.int32),
        params=made,
        opt_state=opt_state,
        model_state=model_state,
        key=root,
    )
    # Copies, not forwarded inputs, and no weak types: what goes in must come out of every step alike.
    return jax.tree.map(_own, state)


def _of_first_version(made: Any) -> bool:
    """Whether this is a pair `(params, model_state)`, as functions returned it, with a word about it.

    A pair is parameters; one with nothing to train in its second part was meant otherwise, for one version still.
    """
    if type(made) is not tuple or len(made) != 2:
        return False
    if jax.tree.leaves(tree.split(made[1])[0]):
        return False
    warnings.warn(
        "`params` returned a pair `(params, model_state)`, which will be parameters alone in the next version: return "
        "`fntrain.models.Variables(params, model_state)`",
        DeprecationWarning,
        stacklevel=2,
    )
    return True


def _taken(name: str, value: PyTree, owned: set[int]) -> PyTree:
    """What comes into a state: arrays of its own, but for those that are its own and those of a trace."""

    def own(path: Any, x: Any) -> Any:
        if id(x) in owned or not (isinstance(x, jax.Array | np.ndarray) and is_concrete(x)):
            return x
        _check_there(x, f"`{name}` leaf `{tree.path_name(path)}`")
        return _own(_as_array(x))

    return jax.tree_util.tree_map_with_path(own, value)


def _check_there(x: Any, where: str) -> None:
    if isinstance(x, jax.Array) and is_concrete(x) and x.is_deleted():
        raise ConsumedStateError(
            f"{where} was consumed by a train step: its buffer was donated to the state that step returned. "
            f"Take it from that state, or keep a copy, `jax.tree.map(jnp.copy, state.params)`"
        )


# Compiled once for a task and a form of parameters: a sweep makes many states.
_made = jax.jit(_build, static_argnums=(0, 1))


def _as_array(x: Any) -> Any:
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def _as_arrays(value: PyTree, name: str) -> PyTree:
    """The leaves that were given as arrays of JAX, or the path of the one that its library does not hand over."""

    def one(path: Any, x: Any) -> Any:
        try:
            return _as_array(x)
        except Exception as error:
            where = f"`{name}` leaf `{tree.path_name(path)}`" if path else f"`{name}`"
            raise ConfigError(f"{where}: no array could be made of {type(x).__name__} ({error})") from error

    return jax.tree_util.tree_map_with_path(one, value)


def _own(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return jax.random.wrap_key_data(jnp.copy(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    return jax.lax.convert_element_type(jnp.copy(x), x.dtype)


def root_key(key: Any) -> jax.Array:
    """A typed PRNG key from a seed, a typed key, or a raw one (uint32[2])."""
    if isinstance(key, bool) or not isinstance(key, int | np.integer | jax.Array | np.ndarray):
        raise ConfigError(f"`key` must be an integer seed or a PRNG key, got {key!r}")
    if isinstance(key, int | np.integer):
        if not -(2**31) <= key < 2**32:  # JAX keeps the last 32 bits, in which other seeds end as well
            raise ConfigError(f"`key` must be a seed of at most 32 bits, got {key}; take `{key % 2**32}`")
        return jax.random.key(int(key))
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise ConfigError(f"`key` must be one PRNG key, got {list(key.shape)} of them")
        return key  # type: ignore[return-value]
    usual = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    if (key.dtype, key.shape) == (usual.dtype, usual.shape):
        return jax.random.wrap_key_data(jnp.asarray(key))
    if jnp.issubdtype(key.dtype, jnp.integer) and key.shape == ():
        return jax.random.key(key)
    raise ConfigError(
        f"`key` must be an integer seed or a PRNG key, got {key.dtype.name}{list(key.shape)}; a raw key of another "
        f"kind than JAX's default says which it is as a typed one, `jax.random.key(0, impl='rbg')`"
    )


def _check_leaves(value: PyTree, name: str) -> None:
    for path, x in tree.items(value):
        where = f"`{name}` leaf `{path}`" if path else f"`{name}`"
        if callable(x) and not hasattr(x, "dtype"):
            raise ConfigError(
                f"{where} is a function, not an array: keep functions out of the state; "
                f"for a model object, take its arrays apart first"
            )
        if isinstance(x, str) or not (hasattr(x, "dtype") or isinstance(x, bool | int | float)):
            raise ConfigError(f"{where} must be an array, got {type(x).__name__}")
        if getattr(x, "dtype", None) == np.dtype(object):
            raise ConfigError(f"{where} is a NumPy array of objects; give it a numeric dtype")
        _check_there(x, where)


def _check_direction(task: Task) -> None:
    """Warn of an optimizer that is known to go uphill: one without a learning rate, or with two in a row."""
    if task.transform.descends is False:
        warnings.warn(
            f"`tx` {task.tx!r} adds its updates along the gradient, so that the loss rises: a transform goes downhill "
            f"behind a learning rate, and one alone. End the chain with an optimizer, `chain(clip_by_norm(1.0), "
            f"fntrain.optimizers.adamw(1e-3))`, or with `fntrain.transforms.scale_by_learning_rate(0.1)`",
            UserWarning,
            stacklevel=4,
        )


def _check_trained(params: Params) -> tuple[PyTree, PyTree]:
    tree.names(params)  # groups, rules, checkpoints and reports go by them
    for path, x in tree.items(params):
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise ConfigError(
                f"`params` leaf `{path}` is complex, which has no agreed gradient; "
                f"keep its real and imaginary parts as two leaves"
            )
    trained, carried = tree.split(params)
    if not jax.tree.leaves(trained):
        raise ConfigError(
            f"`params` must hold at least one floating-point array, got {tree.describe(params)}"
        )
    return trained, carried


def check_optimizer(task: Task, state: TrainState) -> None:
    """Refuse, while tracing, a state whose `opt_state` another transform than the task's has made."""
    trained, _ = tree.split(state.params)
    # In a function of its own: the trace of `init` itself is `bad_step`'s to take, for what it says on the way.
    made = jax.eval_shape(lambda params: task.transform.init(params), trained)
    difference = tree.structure_difference(made, state.opt_state)
    if difference:
        raise ConfigError(
            f"`state` was made for another optimizer, or other parameters: its `opt_state` {difference}. "
            f"The optimizer is {task.tx!r}; start it on these parameters with `init_state(task, state.params)`"
        )


_ARRAYS: set[type] = (
    set()
)  # types found to be concrete arrays: `isinstance` of jax.Array is slow, at every step


def check_state(state: Any, verb: str) -> None:
    """Refuse what is no TrainState, and one that a step has consumed, naming the step."""
    if not isinstance(state, TrainState):
        raise ConfigError(
            f"`state` must be a TrainState, got {type(state).__name__}; make one with `init_state(task, params)` "
            f"and call `{verb}(task, state, …)`"
        )
    kind = type(state.updates)
    if kind not in _ARRAYS and isinstance(state.updates, jax.Array) and is_concrete(state.updates):
        _ARRAYS.add(kind)
    if kind in _ARRAYS and state.updates.is_deleted():
        # `step` is never donated, so a spent state can still say which one it was.
        raise ConsumedStateError(
            f"this TrainState was consumed by a train step at step {int(state.step)}: its buffers were donated to "
            f"the state that step returned. Use that one, `state, metrics = train_step(task, state, batch)`; "
            f"to keep a state, copy it first: `jax.tree.map(jnp.copy, state)`"
        )


with jax.ensure_compile_time_eval():  # so that it is this one, wherever the import stands
    _NO_TRACE: Any = get_opaque_trace_state()


def is_traced(state: TrainState) -> bool:
    """Whether a part of it is being traced, so that its arrays are not the state's own to give away."""
    if (
        get_opaque_trace_state() == _NO_TRACE
    ):  # every step pays for the question, and the leaves cost ten times this
        return False
    kinds = set(map(type, jax.tree.leaves((state.params, state.opt_state, state.model_state))))
    return any(issubclass(kind, Tracer) for kind in kinds)
