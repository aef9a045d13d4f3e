"""Hyperparameters as data: numbers that stand in the state, and may change without a new program."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import tree
from .._core import check
from .._core.arguments import checked
from .._core.errors import ConfigError
from .._core.typing import ArrayLike
from ..sharding.place import put_like
from ..sharding.processes import to_host
from .adapt import adapt
from .decay import ScaleByLearningRateState
from .types import Recording, Transform, nodes, opt_state_of, transform

RATE = "learning_rate"


class _Hyperparams(NamedTuple):
    hyperparams: dict[str, jax.Array]  # float32, shape ()
    inner_state: Any


class HyperparamsState(Recording, _Hyperparams):
    """The numbers, by the names of the factory's arguments, and the state of the transform they make."""

    def recorded(self) -> dict[str, jax.Array]:
        """Those that no transform inside reports itself."""
        inside = {name for node in nodes(self.inner_state, Recording) for name in node.recorded()}
        return {name: x for name, x in self.hyperparams.items() if name not in inside}


@transform
def with_hyperparams(factory: Callable[..., optax.GradientTransformation], **values: Any) -> Any:
    r"""Make a transform whose numbers stand in the state: changing one compiles nothing again.

    .. math:: T_\theta(g, (\theta, s), p), \qquad T_\theta = \text{factory}(\theta)

    Each floating-point number given here becomes a float32 array in the state, whatever the parameters' dtype.
    Read them with `hyperparams`, change them with `set_hyperparams`. Everything else (a schedule, a bool, a mask,
    an integer for an argument that is one) is passed on as it is; arguments not given keep the factory's
    defaults, inside the program. They are reported by the step, under their names.

    A β₂ of 0.999 taken from the state is right to eight digits, and 1 - β₂ therefore to five: give Adam's decays
    here only to change them.

    Args:
      factory: a function of keyword arguments that makes a transform, ours, optax's or your own; it is called
        while tracing, with arrays for the numbers.
      **values: its arguments.

    Returns:
      A Transform that does what `factory(**values)` does.

    Raises:
      ConfigError: if `factory` is no function or refuses the values, or no value is a number.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.transforms.with_hyperparams(ft.optimizers.sgd, learning_rate=0.5)
      >>> g = jnp.array([1.0])
      >>> state = ft.transforms.set_hyperparams(tx.init(g), learning_rate=0.25)
      >>> tx.update(g, state)[0].tolist()
      [-0.25]

    References:
      optax.inject_hyperparams.
    """
    check.function("factory", factory, "(**hyperparameters) -> transform")
    numbers = {name: x for name, x in values.items() if _is_number(factory, name, x)}
    if not numbers:
        raise ConfigError(
            "`with_hyperparams` must be given at least one floating-point number to keep in the state, "
            f"`with_hyperparams({getattr(factory, '__name__', 'factory')}, learning_rate=0.1)`, got {values!r}"
        )
    for name, x in numbers.items():
        check.number(name, x)
    others = {name: x for name, x in values.items() if name not in numbers}

    call = checked(factory)

    def make(hyperparams: dict[str, Any]) -> Transform:
        return adapt(call(**others, **hyperparams), "factory(...)")

    # Made once with numbers that can be read, for its refusals, and to know what it is made of. NumPy's float32 and
    # not Python's floats, so that a zero leaves no stage out: in the state it may become another number.
    example = make({name: np.float32(x) for name, x in numbers.items()})

    def init_fn(params):
        hyperparams = {name: jnp.asarray(x, jnp.float32) for name, x in numbers.items()}
        return HyperparamsState(hyperparams, make(hyperparams).init(params))

    def update_fn(updates, state, params=None, **extra):
        updates, inner = make(state.hyperparams).update(updates, state.inner_state, params, **extra)
        return updates, HyperparamsState(state.hyperparams, inner)

    def apply_fn(updates, state, params, **extra):
        params, inner, applied = make(state.hyperparams).apply(updates, state.inner_state, params, **extra)
        return params, HyperparamsState(state.hyperparams, inner), applied

    def flush_fn(state, params, **extra):
        updates, inner = make(state.hyperparams).flush(state.inner_state, params, **extra)
        return updates, HyperparamsState(state.hyperparams, inner)

    def look_fn(updates, state, params, **extra):
        return make(state.hyperparams).look(updates, state.inner_state, params, **extra)

    return Transform(
        init_fn,
        update_fn,
        apply_fn if example.owns_apply else None,
        {"inner": example},
        flush_fn if example.holds_back else None,
        look=look_fn if example.looks else None,
        passed=lambda state: make(state.hyperparams).passed(state.inner_state),
    )


def _is_number(factory: Callable[..., Any], name: str, x: Any) -> bool:
    """Whether a value is kept in the state: a float, or an integer for an argument that is none."""
    if isinstance(x, bool | np.bool_):
        return False
    if isinstance(x, int | np.integer):
        try:
            parameter = inspect.signature(factory).parameters.get(name)
        except ValueError:  # a function that does not tell its arguments
            parameter = None
        default = None if parameter is None else parameter.default
        whole = isinstance(default, int) and not isinstance(default, bool)
        return not (whole or (parameter is not None and parameter.annotation in (int, "int")))
    return isinstance(x, float | np.floating) or (
        isinstance(x, np.ndarray | jax.Array) and x.ndim == 0 and bool(jnp.issubdtype(x.dtype, jnp.floating))
    )


def hyperparams(state: Any) -> dict[str, jax.Array]:
    """The hyperparameters that a state holds, by name.

    Args:
      state: a TrainState, or an optimizer state made by a transform with a `with_hyperparams` anywhere in it.

    Returns:
      A dict of float32 arrays of shape (), or `[N]` of a population, copies. A name that stands in several
      places has its path in front: `encoder/learning_rate`.

    Raises:
      ConfigError: if the state holds none.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.chain(ft.clip_by_norm(1.0), ft.transforms.with_hyperparams(ft.optimizers.sgd, learning_rate=0.5))
      >>> {name: float(x) for name, x in ft.transforms.hyperparams(tx.init(jnp.zeros(1))).items()}
      {'learning_rate': 0.5}
    """
    found = {name: node.hyperparams[key] for name, (node, key) in _places(opt_state_of(state)).items()}
    if not found:
        raise _nothing_held()
    return {name: jnp.copy(x) for name, x in found.items()}


def set_hyperparams(state: Any, **values: ArrayLike) -> Any:
    """The same state with some hyperparameters changed; a step on it runs the program it ran before.

    Args:
      state: a TrainState or an optimizer state, as for `hyperparams`; it stays as it is, but shares its other
        arrays with the one returned.
      **values: the new numbers, finite, by the names that `hyperparams` shows (those with a path as
        `**{"encoder/learning_rate": 0.1}`). In a population's state, one for all members or an array `[N]`.

    Returns:
      A state of the same kind and types.

    Raises:
      ConfigError: if the state holds no hyperparameter of a name, or a value is no finite number. Ranges are not
        checked.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.transforms.with_hyperparams(ft.optimizers.adamw, learning_rate=0.5, weight_decay=0.1)
      >>> state = ft.transforms.set_hyperparams(tx.init(jnp.zeros(1)), weight_decay=0.0)
      >>> {name: round(float(x), 3) for name, x in ft.transforms.hyperparams(state).items()}
      {'learning_rate': 0.5, 'weight_decay': 0.0}
    """
    opt_state = opt_state_of(state)
    places = _places(opt_state)
    if not places:
        raise _nothing_held()
    wanted: dict[tuple[int, str], Any] = {}
    for name, value in values.items():
        if name not in places:
            raise ConfigError(
                f"`{name}` is no hyperparameter of this state, which holds {tree.some(list(places), 12)}"
                + check.did_you_mean(name, places)
            )
        node, key = places[name]
        _check_each(name, value, node.hyperparams[key])
        wanted[id(node), key] = value

    def change(node: HyperparamsState) -> HyperparamsState:
        new = {
            key: placed_like(wanted[id(node), key], x) if (id(node), key) in wanted else x
            for key, x in node.hyperparams.items()
        }
        inner = replace_nodes(node.inner_state, HyperparamsState, change)
        if (id(node), RATE) in wanted:
            rates = node.hyperparams[RATE], new[RATE]
            inner = replace_nodes(inner, ScaleByLearningRateState, lambda x: _recorded_of(x, *rates))
        return HyperparamsState(new, inner)

    return with_opt_state(state, replace_nodes(opt_state, HyperparamsState, change))


def set_multiplier(state: Any, multiplier: ArrayLike) -> Any:
    """The same state with the learning rate's multiplier set: what controllers on the host do.

    Args:
      state: a TrainState, or an optimizer state.
      multiplier: what the rate, scheduled or not, is multiplied by from the next update on; >= 0. In a population's
        state, one for all members or an array `[N]`.

    Returns:
      A state of the same kind and types; a step on it compiles nothing again.

    Raises:
      ConfigError: if the state has no `scale_by_learning_rate` in it, or the number is negative.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx, g = ft.optimizers.sgd(0.5), jnp.array([1.0])
      >>> tx.update(g, ft.transforms.set_multiplier(tx.init(g), 0.1))[0].tolist()
      [-0.05000000074505806]
    """
    opt_state = opt_state_of(state)
    if not tree.has(opt_state, ScaleByLearningRateState):
        raise ConfigError(
            "`state` has no learning rate that could be scaled: its optimizer was not made with "
            "`scale_by_learning_rate`. Take one of `fntrain.optimizers`, or keep the rate of another library's in the "
            "state, `with_hyperparams(optax.adam, learning_rate=1e-3)`, and change it with `set_hyperparams`"
        )

    def change(node: ScaleByLearningRateState) -> ScaleByLearningRateState:
        _check_each("multiplier", multiplier, node.multiplier, at_least=0)
        return node._replace(multiplier=placed_like(multiplier, node.multiplier))

    return with_opt_state(state, replace_nodes(opt_state, ScaleByLearningRateState, change))


def _recorded_of(node: ScaleByLearningRateState, old: jax.Array, new: jax.Array) -> ScaleByLearningRateState:
    """A node whose recorded rate is that of the new number, as the next update will say it."""
    arrays = node.learning_rate, node.multiplier, old, new
    xp: Any = np if all(map(check.is_concrete, arrays)) else jnp
    rate, multiplier, old, new = to_host(arrays) if xp is np else arrays
    ratio = new / xp.where(old == 0, np.float32(1), old)
    same = rate == old * multiplier  # as it is where the number is the rate, and not a factor of it
    rate = xp.where(same, new * multiplier, xp.where(old == 0, rate, rate * ratio))
    return node._replace(learning_rate=placed_like(rate, node.learning_rate))


def _check_each(name: str, value: ArrayLike, old: jax.Array, **bounds: float) -> None:
    """Check a finite number, or of a population's one for each member."""
    many = np.shape(value) != () and np.shape(value) == np.shape(old)
    for x in np.asarray(value) if many and check.is_concrete(value) else [value] * (not many):
        check.number(name, x, **bounds)


def with_opt_state(state: Any, opt_state: Any) -> Any:
    """The inverse: the same kind of state as was given."""
    return state.replace(opt_state=opt_state) if opt_state_of(state) is not state else opt_state


def replace_nodes(opt_state: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The state with every outermost node of a kind changed."""
    return jax.tree.map(
        lambda x: change(x) if isinstance(x, kind) else x, opt_state, is_leaf=lambda x: isinstance(x, kind)
    )


def placed_like(value: ArrayLike, old: jax.Array) -> jax.Array:
    """A number as float32 where the old one was: moved elsewhere it would compile the step anew.

    Where the old ones are those of a population, it is every member's, unless there is one for each.
    """
    if not (check.is_concrete(value) and check.is_concrete(old)) or not isinstance(old, jax.Array):
        return jnp.broadcast_to(jnp.asarray(value, jnp.float32), jnp.shape(old))
    return put_like(np.broadcast_to(np.float32(value), old.shape), old)


def _places(opt_state: Any) -> dict[str, tuple[HyperparamsState, str]]:
    """Every hyperparameter by name, with its node and key; the path in front where a name is not alone."""
    found = list(_all(opt_state))
    counts: dict[str, int] = {}
    for _, _, key in found:
        counts[key] = counts.get(key, 0) + 1
    return {
        key if counts[key] == 1 else f"{path}/{key}" if path else key: (node, key)
        for path, node, key in found
    }


def _all(opt_state: Any) -> Iterator[tuple[str, HyperparamsState, str]]:
    for path, node in tree.named_nodes(opt_state):
        if isinstance(node, HyperparamsState):
            # The wrappers' field names say nothing about which of two is meant.
            short = "/".join(part for part in path.split("/") if part not in WRAPPERS)
            for key in node.hyperparams:
                yield short, node, key


WRAPPERS = ("inner_state", "inner_opt_state")
"""The fields in which transforms keep the state of the one they wrap."""


def _nothing_held() -> ConfigError:
    return ConfigError(
        "`state` holds no hyperparameters: make the transform with "
        "`with_hyperparams(fntrain.optimizers.adamw, learning_rate=1e-3)`, whose numbers stand in the state"
    )
