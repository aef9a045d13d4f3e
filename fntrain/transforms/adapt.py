"""The door: any transform of optax's, or of anybody's in optax's form, becomes a Transform here, or is refused by name.

Behind the door nobody asks what it was. What is true of foreign transforms and not of ours is known here alone: that
they keep their state in the parameters' dtype and want gradients in it, that they are written for JAX's standard
promotion, which extra arguments they take, that `None` is no leaf to them, that their states may hold Python's
numbers, and which of their states hold back, skip or average.
"""

import contextlib
import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._core.errors import ConfigError
from .._core.typing import Params, PyTree
from .._core.value import Value
from .types import Averaging, Moments, Transform, Window, nodes

# Functions that `train_step` offers, under the names that optax's transforms have for them.
_FUNCTIONS = {
    "value_fn": "value_fn",
    "obj_fn": "value_fn",
    "value_and_grad_fn": "value_and_grad_fn",
    "grad_fn": "value_and_grad_fn",
}
_RESCALE = ("trace", "sign", "normalize", "orthogonalize", "muon", "galore", "shampoo")
_ARE_GRADIENTS = ("clip", "add_", "zero_nans", "identity", "scale", "masked", "centralize", "keep_params")


def adapt(tx: Any, name: str = "tx", *, in_float32: bool = False) -> Transform:
    """A transform as one of ours: itself, if it is one.

    Args:
      tx: a Transform, an `optax.GradientTransformation`, or `optax.MultiSteps`.
      name: the argument's name in messages.
      in_float32: whether a foreign one sees parameters and gradients in float32 at least, whatever their dtypes.

    Raises:
      ConfigError: if it is something else, with the usual cause.
    """
    if isinstance(tx, Transform):
        return tx
    if isinstance(tx, optax.MultiSteps):
        tx = tx.gradient_transformation()
    if isinstance(tx, optax.GradientTransformation):
        return Adapted(tx, in_float32)
    hint = ""
    if isinstance(tx, Value) and callable(tx):
        hint = "; a schedule goes into an optimizer, `fntrain.optimizers.sgd(schedule)`"
    elif isinstance(tx, int | float):
        hint = "; a learning rate goes into an optimizer, `fntrain.optimizers.sgd(0.1)`"
    elif callable(tx):
        hint = f"; it looks like a factory: call it, `{getattr(tx, '__name__', 'factory')}(...)`"
    elif isinstance(tx, list | tuple):
        hint = "; pass several transforms as `chain(*transforms)`"
    raise ConfigError(f"`{name}` must be a gradient transform with `init` and `update`, got {tx!r}{hint}")


class Adapted(Transform):
    """A foreign transform behind the door; equal to another if their code and what they close over are.

    Attributes:
      source: the foreign transform.
      in_float32: whether it sees everything in float32 at least.
    """

    source: optax.GradientTransformation
    in_float32: bool

    def __new__(cls, source: optax.GradientTransformation, in_float32: bool = False) -> Self:
        """Make one."""
        door = _Door(source, in_float32)
        evaluates = any(_uses(f, name) for f in _functions(source) for name in _FUNCTIONS)
        self = super().__new__(
            cls, door.init, door.update, flush=door.flush, rescales=_rescales(source), evaluates=evaluates
        )
        self.source, self.in_float32 = source, in_float32
        return self

    def _parts(self) -> tuple[Any, ...]:
        return (self.source, self.in_float32)

    @property
    def name(self) -> str:
        """The foreign factory's."""
        return _factory(self.source.update) or type(self.source).__name__.lower()

    def __repr__(self) -> str:
        return f"{_origin(self.source)}.{described(self.source)}"

    def __reduce__(self) -> Any:
        return Adapted, (self.source, self.in_float32)


jax.tree_util.register_static(Adapted)


class _Held(NamedTuple):
    inner_state: Any
    applied: jax.Array  # bool, shape (): whether the last call let an update through


class HeldState(Window, _Held):
    """The state of a foreign transform that holds steps back or skips them."""


class _Average(NamedTuple):
    inner_state: Any


class AveragedState(Averaging, _Average):
    """The state of a foreign transform that is to be evaluated at an average."""

    def evaluation_params(self, params: Params) -> Params:
        """Optax's own reading of it."""
        if params is None:
            raise ConfigError(
                "a schedule-free average is computed from the parameters that are trained: give the whole TrainState, "
                "`averaged(state)`, or `averaged(opt_state, like=params)`"
            )
        state = nodes(self.inner_state, optax.contrib.ScheduleFreeState)[0]
        params = jax.tree.map(tree.wide, params)  # as what it keeps may be, whatever is trained
        if jax.tree.structure(state.z) != jax.tree.structure(params):
            params = _dense(params)
            return _spread(optax.contrib.schedule_free_eval_params(state, params), params)
        return optax.contrib.schedule_free_eval_params(state, params)


class _Door(NamedTuple):
    """The functions of an adapted transform."""

    tx: optax.GradientTransformation
    in_float32: bool

    def init(self, params: Params) -> Any:
        def run() -> Any:
            return _arrays(self.tx.init(_dense(self._seen(params))))

        state = self._run("init", run)
        if nodes(state, optax.contrib.DifferentiallyPrivateAggregateState):
            raise ConfigError(
                f"`{described(self.tx)}` clips one gradient an example, and a step has the gradient of the whole batch "
                f"alone: optax's private aggregation cannot stand in a `Task`"
            )
        if nodes(state, optax.contrib.ScheduleFreeState):
            return AveragedState(state)
        if nodes(state, _HOLDING):
            return HeldState(state, jnp.asarray(True))
        return state

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        held = isinstance(state, HeldState | AveragedState)
        old = state.inner_state if held else state
        holes = _has_holes(updates if params is None else params)
        params = self._seen(params)
        dense = self._seen(updates) if params is None else tree.cast_like(updates, params)
        extra = _given(self.tx, extra, params, holes)

        def run() -> Any:
            new, after = self.tx.update(
                _dense(dense) if holes else dense, old, _dense(params) if holes else params, **extra
            )
            return _spread(new, dense) if holes else new, _arrays(after)

        new, after = self._run("update", run)
        if jax.tree.structure(old) == jax.tree.structure(after):
            after = jax.tree.map(_like, after, old)
        difference = tree.aval_difference(old, after)
        if difference:
            raise ConfigError(
                f"`{described(self.tx)}` changes the type of its state in an update, which would compile every step "
                f"anew: the state {difference}"
            )
        if self.in_float32:
            new = tree.cast_like(new, updates)
        if isinstance(state, HeldState):
            return new, HeldState(after, _applied(old, after))
        return new, AveragedState(after) if held else after

    def flush(self, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        del extra
        if isinstance(state, HeldState) and nodes(state, optax.MultiStepsState):
            raise ConfigError(
                "`flush` cannot close a window of `optax.MultiSteps`; use `fntrain.MultiSteps`, a drop-in"
            )
        return tree.zeros_like(params), state

    def _seen(self, x: Any) -> Any:
        return jax.tree.map(tree.wide, x) if self.in_float32 else x

    def _run(self, what: str, run: Callable[[], Any]) -> Any:
        try:
            # Standard promotion is what optax is written for; a strict setting is the user's, for their own code.
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                return run()
        except ConfigError:
            raise
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError) as error:
            raise ConfigError(
                f"`{described(self.tx)}` cannot be used here: its `{what}` says {type(error).__name__}: {error}"
            ) from error


def _like(x: Any, old: Any) -> Any:
    return x if x.dtype == old.dtype else x.astype(old.dtype)


def _arrays(state: Any) -> Any:
    """A state whose leaves are arrays of a fixed type, Python's numbers included."""

    def one(x: Any) -> Any:
        x = jnp.asarray(x)
        return (
            x if not getattr(jax.typeof(x), "weak_type", False) else jax.lax.convert_element_type(x, x.dtype)
        )

    return jax.tree.map(one, state)


# None is a tree without leaves to JAX, and no value that every foreign transform expects: where only some leaves are
# given (frozen ones, integers, other groups), they see a dict of those alone, by path.


def _has_holes(x: PyTree) -> bool:
    return any(leaf is None for leaf in jax.tree.leaves(x, is_leaf=lambda leaf: leaf is None))


def _dense(x: PyTree) -> PyTree:
    return dict(tree.items(x)) if x is not None and _has_holes(x) else x


def _spread(dense: Any, like: PyTree) -> PyTree:
    """A dict by path as the tree it was made of."""
    return tree.map_with_path(lambda path, _: dense[path], like) if isinstance(dense, dict) else dense


def _given(tx: Any, extra: dict[str, Any], params: Any, holes: bool) -> dict[str, Any]:
    """The extra arguments that a foreign `update` takes, in the parameters' form and dtypes."""
    value_fn, both = extra.get("value_fn"), extra.get("value_and_grad_fn")
    if value_fn is None and both is not None:
        value_fn = _value_of(both)

    def whole(p: Any) -> Any:
        return _spread(p, params) if holes else p

    def in_form(grads: Any) -> Any:
        grads = tree.cast_like(grads, params)
        return _dense(grads) if holes else grads

    if params is not None:
        if extra.get("grad") is not None:
            extra = {**extra, "grad": in_form(extra["grad"])}
        if both is not None and value_fn is not None:
            # For optax a gradient has the parameters' form, and a function may be asked with more than them.
            extra = {
                **extra,
                "value_fn": lambda p, *_, **__: value_fn(whole(p)),
                "obj_fn": lambda p, *_, **__: value_fn(whole(p)),
                "value_and_grad_fn": lambda p, *_, **__: (lambda v, g: (v, in_form(g)))(*both(whole(p))),
                "grad_fn": lambda p, *_, **__: in_form(both(whole(p))[1]),
            }
    wanted = _wanted(tx)
    return extra if wanted is None else {name: x for name, x in extra.items() if name in wanted}


def _value_of(function: Callable[[Any], tuple[Any, Any]]) -> Callable[[Any], Any]:
    """The value of a function that gives value and gradient: differentiated, it is that gradient and no new one."""

    @jax.custom_vjp
    def value(p: Any) -> Any:
        return function(p)[0]

    def forward(p: Any) -> tuple[Any, Any]:
        value, grads = function(p)
        return value, tree.cast_like(grads, p)

    def backward(grads: Any, seed: Any) -> tuple[Any]:
        return (jax.tree.map(lambda g: (seed * g).astype(g.dtype), grads),)

    value.defvjp(forward, backward)
    return value


# What is read off foreign transforms and their states.

_MOMENTS: dict[type, tuple[str, ...]] = {
    optax.EmaState: ("ema",),
    optax.ScaleByAdamState: ("mu", "nu"),
    optax.ScaleByAmsgradState: ("mu", "nu", "nu_max"),
    optax.ScaleByBeliefState: ("mu", "nu"),
    optax.ScaleByLionState: ("mu",),
    optax.ScaleByRmsState: ("nu",),
    optax.ScaleByRStdDevState: ("mu", "nu"),
    optax.TraceState: ("trace",),
    optax.contrib.MuonState: ("mu",),
    optax.contrib.ProdigyState: ("exp_avg", "exp_avg_sq"),
    optax.contrib.ScaleByAdemamixState: ("m1", "m2", "nu"),
    optax.contrib.SophiaState: ("mu",),
}


def moments(node: Any) -> tuple[str, ...]:
    """The fields of a state, ours or optax's, that are running means; none for any other node."""
    return node.moments if isinstance(node, Moments) else _MOMENTS.get(type(node), ())


_HOLDING: tuple[type, ...] = (optax.MultiStepsState, optax.ApplyIfFiniteState, optax.ApplyEvery)


def _applied(old: Any, new: Any) -> jax.Array:
    """Whether optax's own windows and guards let this call through."""
    applied = jnp.asarray(True)
    for before, after in zip(nodes(old, _HOLDING), nodes(new, _HOLDING)):
        if isinstance(after, optax.MultiStepsState):
            applied &= after.gradient_step > before.gradient_step
        elif isinstance(after, optax.ApplyIfFiniteState):
            applied &= after.last_finite
        else:
            applied &= after.count == 0
    return applied


def _rescales(tx: optax.GradientTransformation) -> bool | None:
    """Whether what comes out of a foreign transform is no longer a gradient; None where its name does not say."""
    names = {name for name in map(_factory, _functions(tx)) if name}
    names -= {"chain", "named_chain", "with_extra_args_support", "multi_transform", "partition"}
    if any(
        n.startswith("scale_by_") and n not in ("scale_by_learning_rate", "scale_by_schedule") for n in names
    ):
        return True
    if any(n.startswith(_RESCALE) for n in names):
        return True
    return False if names and all(n.startswith(_ARE_GRADIENTS) for n in names) else None


def described(tx: Any) -> str:
    """The factory's name of a foreign transform, and of those it is made of: `chain(scale_by_adam, scale)`."""
    name = _factory(tx.update) or type(tx).__name__
    inner = [n for n in (_factory(f) for f in _functions(tx) if f is not tx.update) if n and n != name]
    inner = [n for n in dict.fromkeys(inner) if n != "with_extra_args_support"]
    return f"{name}({', '.join(inner)})" if inner else name


def _origin(tx: Any) -> str:
    return (getattr(tx.update, "__module__", None) or type(tx).__module__).split(".")[0]


def _factory(f: Any) -> str | None:
    """`scale_by_adam` for `scale_by_adam.<locals>.update_fn`."""
    outer, _, inner = getattr(f, "__qualname__", "").replace(".<locals>", "").rpartition(".")
    return outer.rsplit(".", 1)[-1] if outer and inner else None


def _functions(f: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """The update functions (and optax's conditions, which may ask for the same) inside a foreign transform."""
    seen = set() if seen is None else seen
    if id(f) in seen:
        return
    seen.add(id(f))
    if isinstance(f, types.FunctionType | types.MethodType) and _asks(f):
        yield f
    if isinstance(f, optax.GradientTransformation) and not _asks(f.update):
        yield f.update  # whatever it is called
    for inner in _inside(f):
        yield from _functions(inner, seen)


def _asks(f: Any) -> bool:
    return any(name in getattr(f, "__name__", "") for name in ("update", "should_transform_fn"))


def _inside(f: Any) -> list[Any]:
    """What a transform, function or container is made of."""
    if isinstance(f, optax.GradientTransformation):
        return [f.update]
    if isinstance(f, functools.partial):
        return [f.func]
    if isinstance(f, types.MethodType):
        return [f.__self__]
    if isinstance(f, tuple | list):
        return list(f)
    if isinstance(f, dict):
        return list(f.values())
    if isinstance(f, optax.MultiSteps):
        return list(vars(f).values())
    found = []
    for cell in getattr(f, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # not filled yet
            found.append(cell.cell_contents)
    return found


def _wanted(tx: optax.GradientTransformation) -> set[str] | None:
    """The extra arguments that anything inside a foreign transform names; None for all of them.

    optax's line searches refuse arguments that nobody inside them asks for, so optax's are given no others. What
    takes any, and is not optax's, may read any.
    """
    wanted: set[str] = set()
    for f in _functions(tx):
        named = _parameters(f)
        wanted |= named
        if "**" in named and not (f.__module__ or "").startswith("optax."):
            return None
    return wanted


def _uses(f: Any, name: str) -> bool:
    """Whether a function has a parameter of that name, and reads it."""
    code = getattr(getattr(f, "__func__", f), "__code__", None)
    if name not in _parameters(f) or code is None:
        return False
    loads = (i for i in dis.get_instructions(code) if i.opname.startswith("LOAD_") and i.argval == name)
    return name in code.co_cellvars or any(loads)


@functools.lru_cache(maxsize=256)
def _parameters(f: Any) -> frozenset[str]:
    """The names of a function's parameters; `**` if it takes any."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return frozenset({"**"})
    return frozenset("**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters)
