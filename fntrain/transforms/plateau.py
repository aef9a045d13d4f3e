"""Plateaus: the rules that lower the rate, or end the run, when a metric stops improving.

A rule is a pure function over the values it has seen, `update(state, value) -> (state, decision)`, and its state
is data. So it runs inside a step (`reduce_on_plateau`), in a scan, or on the host between epochs, all the same.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .._core.ranking import Direction, improves
from .._core.typing import ArrayLike
from .._core.value import Value, factory
from .types import Recording, Transform, increment, like, transform

_LARGEST = float(np.finfo(np.float32).max)  # finite in every dtype: a state holds no infinity


class Controller(Value):
    """A rule over a sequence of values, that knows the call that made it.

    Attributes:
      init: `() -> state`, a NamedTuple of scalar arrays, NumPy's.
      update: `(state, value) -> (state, decision)`. Numbers in, NumPy scalars out, and no device is involved;
        with a JAX array among them, traced or not, JAX arrays; a state of arrays `[N]` holds N sequences, and takes
        `[N]` values. Values are compared in the dtype of the best so far:
        float64 on the host and where JAX has it, else float32.
    """

    def __init__(self, init: Callable[[], Any], update: Callable[[Any, ArrayLike], tuple[Any, Any]]):
        self.init = init
        self.update = update

    def _parts(self) -> tuple[Any, ...]:
        return (self.init, self.update)


jax.tree_util.register_static(Controller)

controller = factory(Controller)
"""Decorator: a function that returns `(init, update)` makes Controllers."""


class PlateauState(NamedTuple):
    """The best value so far, how long ago it was, and what came of it."""

    scale: Any  # float32, shape (): what the rate is multiplied by
    best: (
        Any  # float64 where there is one, else float32, shape (); before the first value, the worst there is
    )
    bad_checks: Any  # int32, shape (): values since then, or since the last reduction, without improvement
    cooldown: Any  # int32, shape (): values that will not be counted as bad


@controller
def plateau(
    factor: float = 0.1,
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    mode: str = "min",
    min_scale: float = 0.0,
):
    r"""Multiply a scale by `factor` at the `patience`-th value in a row that is no improvement.

    .. math:: x \text{ improves on the best } b \iff x < b - (r\,|b| + a)
              \qquad (\text{mode max: } x > b + (r\,|b| + a))

    The margin is relative to the magnitude of the best, so metrics below zero have plateaus too. A value that is
    not finite is never an improvement. For `cooldown` values after a reduction none is counted as bad.

    torch counts one more: its `patience=p` is `patience=p + 1` here.

    Args:
      factor: in (0, 1).
      patience: bad values in a row that make a plateau, >= 1; 1 reduces at the first.
      rtol: r, >= 0.
      atol: a, >= 0.
      cooldown: values, >= 0.
      mode: `"min"` or `"max"`: which is better.
      min_scale: the scale never falls below it, in [0, 1].

    Returns:
      A Controller whose decision is the scale, float32.

    Raises:
      ConfigError: if a number is out of range, or `mode` is another word.

    Examples:
      >>> import fntrain as ft
      >>> rule = ft.transforms.plateau(factor=0.5, patience=2)
      >>> state = rule.init()
      >>> for loss in [3.0, 2.0, 2.0, 2.5]:
      ...     state, scale = rule.update(state, loss)
      >>> float(scale)
      0.5

    References:
      torch.optim.lr_scheduler.ReduceLROnPlateau.
    """
    check.number("factor", factor, above=0, below=1)
    patience = _count("patience", patience, at_least=1)
    check.number("rtol", rtol, at_least=0)
    check.number("atol", atol, at_least=0)
    cooldown = _count("cooldown", cooldown, at_least=0)
    check.number("min_scale", min_scale, at_least=0, at_most=1)
    direction = _direction(mode)

    def init() -> PlateauState:
        return PlateauState(np.ones((), np.float32), _worst(direction), _zero(), _zero())

    def update(state: PlateauState, value: ArrayLike) -> tuple[PlateauState, Any]:
        with np.errstate(over="ignore"):
            xp, value = _observed(state, value)
            best, better = _compared(xp, direction, value, state.best, rtol, atol)
            cooling = state.cooldown > 0
            bad = xp.where(better | cooling, np.int32(0), state.bad_checks + np.int32(1))
            reduce = bad >= patience
            lower = xp.maximum(state.scale * np.float32(factor), np.float32(min_scale))
            scale = xp.where(reduce, lower, state.scale)
            left = xp.where(cooling, state.cooldown - np.int32(1), np.int32(0))
            left = xp.where(reduce, np.int32(cooldown), left)
            return PlateauState(scale, best, xp.where(reduce, np.int32(0), bad), left), scale

    return init, update


class StopOnPlateauState(NamedTuple):
    """The best value so far, and how long ago it was."""

    best: (
        Any  # float64 where there is one, else float32, shape (); before the first value, the worst there is
    )
    bad_checks: Any  # int32, shape (): values since then, held at `patience`


@controller
def stop_on_plateau(patience: int = 10, min_delta: float = 0.0, mode: str = "min"):
    r"""Early stopping: say stop at the `patience`-th value in a row that is no improvement.

    .. math:: x \text{ improves on the best } b \iff x < b - \delta \qquad (\text{mode max: } x > b + \delta)

    A value that is not finite is never an improvement. Who goes on all the same is told to stop again, until a
    value improves.

    Args:
      patience: bad values in a row, >= 1; 1 stops at the first.
      min_delta: δ, >= 0: what an improvement has to exceed, in the metric's own unit.
      mode: `"min"` or `"max"`: which is better.

    Returns:
      A Controller whose decision is whether to stop, a bool.

    Raises:
      ConfigError: if a number is out of range, or `mode` is another word.

    Examples:
      >>> import fntrain as ft
      >>> rule = ft.transforms.stop_on_plateau(patience=2)
      >>> state = rule.init()
      >>> for loss in [3.0, 2.0, 2.0, 2.5]:
      ...     state, stop = rule.update(state, loss)
      ...     print(bool(stop))
      False
      False
      False
      True

    References:
      Prechelt, *Early stopping - but when?*, 1998; Keras's `EarlyStopping`.
    """
    patience = _count("patience", patience, at_least=1)
    check.number("min_delta", min_delta, at_least=0)
    direction = _direction(mode)

    def init() -> StopOnPlateauState:
        return StopOnPlateauState(_worst(direction), _zero())

    def update(state: StopOnPlateauState, value: ArrayLike) -> tuple[StopOnPlateauState, Any]:
        with np.errstate(over="ignore"):
            xp, value = _observed(state, value)
            best, better = _compared(xp, direction, value, state.best, 0.0, min_delta)
            bad = xp.where(
                better, np.int32(0), xp.minimum(state.bad_checks, np.int32(patience - 1)) + np.int32(1)
            )
            return StopOnPlateauState(best, bad), bad >= patience

    return init, update


def _count(name: str, value: int, at_least: int) -> int:
    """A number of values, which an int32 must be able to count."""
    value = check.integer(name, value, at_least=at_least)
    if value > np.iinfo(np.int32).max:
        raise ConfigError(f"`{name}` must be at most {np.iinfo(np.int32).max}, got {value}")
    return value


def _direction(mode: str) -> Direction:
    check.one_of("mode", mode, ("min", "max"))
    return mode  # type: ignore[return-value]


def _worst(direction: Direction) -> Any:
    return np.asarray(_LARGEST if direction == "min" else -_LARGEST)


def _zero() -> Any:
    return np.zeros((), np.int32)


def _observed(state: Any, value: ArrayLike) -> tuple[Any, Any]:
    """The array module to compute with, and the value as its scalar, in the dtype of the best so far."""
    xp: Any = jnp if any(isinstance(x, jax.Array) for x in (*state, value)) else np
    shape = np.shape(state.best)
    if np.shape(value) != shape:
        wanted = f"one number for each of {shape[0]} sequences" if shape else "a single number"
        raise ConfigError(f"`value` must be {wanted}, got shape {list(np.shape(value))}")
    return xp, xp.asarray(value).astype(state.best.dtype)


def _compared(
    xp: Any, direction: Direction, value: Any, best: Any, rtol: float, atol: float
) -> tuple[Any, Any]:
    """`(the new best, whether it is new)`."""
    size = xp.where(xp.abs(best) < _LARGEST, xp.abs(best), 0)
    kind = np.dtype(best.dtype).type
    better = improves(value, best, direction, kind(rtol) * size + kind(atol), xp)
    return xp.where(better, value, best), better


class _ReduceOnPlateau(NamedTuple):
    plateau: PlateauState
    count: jax.Array  # int32, shape (): losses gathered
    total: jax.Array  # shape (): their weighted sum, in the dtype of the plateau's best
    weight: jax.Array  # shape (): their weight, likewise


class ReduceOnPlateauState(Recording, _ReduceOnPlateau):
    """The rule's state, and the losses gathered for its next check."""

    records: ClassVar[tuple[str, ...]] = ("plateau_scale",)

    @property
    def plateau_scale(self) -> jax.Array:
        """What the updates are multiplied by."""
        return self.plateau.scale


@transform
def reduce_on_plateau(
    factor: float = 0.1,
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    mode: str = "min",
    min_scale: float = 0.0,
    accumulation_size: int = 1,
):
    r"""Multiply the updates by a scale that falls when the training loss stops improving.

    .. math:: u = s_t\, g, \qquad s_t \leftarrow \max(f\, s_t, s_{\min}) \text{ on a plateau}

    The rule is `plateau`'s. What it watches is the loss of the step, the extra argument `value` that
    `train_step` passes; the loss of one batch is noisy, so `accumulation_size` of them are averaged (by their
    weights) before each check. The scale counts from the update whose loss completes the check, and is reported
    by the step as `plateau_scale`.

    It stands behind the optimizer, `chain(adamw(1e-3), reduce_on_plateau(...))`, since what Adam normalises
    forgets a scale. Inside `MultiSteps` it sees the loss of the micro-batch that closes a window; around it, of
    each micro-batch. To watch a metric of the host's instead, run the rule there: `plateau(...)`.

    Args:
      factor: f, in (0, 1).
      patience: bad checks in a row that make a plateau, >= 1.
      rtol: the relative margin of an improvement, >= 0.
      atol: the absolute margin of an improvement, >= 0.
      cooldown: checks after a reduction in which none counts as bad, >= 0.
      mode: `"min"` or `"max"`: which is better.
      min_scale: the scale never falls below it, in [0, 1].
      accumulation_size: losses averaged for one check, >= 1.

    Returns:
      A Transform; its `update` needs `value`. Updates keep their shapes and dtypes, and at scale 1 every bit.

    Raises:
      ConfigError: if a number is out of range, `mode` is another word, or `update` gets no `value`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.transforms.reduce_on_plateau(factor=0.5, patience=1)
      >>> g = jnp.array([1.0])
      >>> state = tx.init(g)
      >>> for loss in [2.0, 1.0, 1.0]:
      ...     u, state = tx.update(g, state, value=loss)
      >>> u.tolist()
      [0.5]

    References:
      torch.optim.lr_scheduler.ReduceLROnPlateau; optax.contrib.reduce_on_plateau.
    """
    rule = plateau(factor, patience, rtol, atol, cooldown, mode, min_scale)
    size = check.integer("accumulation_size", accumulation_size, at_least=1)

    def init_fn(params):
        del params
        start = PlateauState(*map(jnp.asarray, rule.init()))
        return ReduceOnPlateauState(start, *_nothing(start))

    def update_fn(updates, state, params=None, **extra):
        del params
        if extra.get("value") is None:
            raise ConfigError(
                "`value` is needed by reduce_on_plateau, which watches the loss; train_step passes it, or call "
                "`tx.update(grads, state, params, value=loss)`"
            )
        kind = state.plateau.best.dtype
        value = jnp.asarray(extra["value"], kind)
        weight = jnp.asarray(1.0 if extra.get("weight") is None else extra["weight"], kind)
        state = _checked(state, value, weight)
        scale = state.plateau.scale

        def scaled(g):
            wide = tree.wide(g)
            return like(wide * like(scale, wide), g)

        return jax.tree.map(scaled, updates), state

    def _checked(state, value, weight):
        """The state after one more loss; of weight zero it is as if it had not come."""
        seen = weight > 0
        count = jnp.where(seen, increment(state.count), state.count)
        total = state.total + jnp.where(seen, value * weight, 0)
        gathered = state.weight + weight
        due = seen & (count >= size)
        # A single loss is itself: times its weight and over it would round.
        mean = value if size == 1 else total / jnp.where(due, gathered, 1)
        after, _ = rule.update(state.plateau, mean)
        new, old = (after, *_nothing(after)), (state.plateau, count, total, gathered)
        return ReduceOnPlateauState(*jax.tree.map(lambda a, b: jnp.where(due, a, b), new, old))

    return Transform(init_fn, update_fn, rescales=False, descends=False)


def _nothing(plateau: PlateauState) -> tuple[jax.Array, jax.Array, jax.Array]:
    """No losses gathered: how many, their sum, their weight."""
    zeros = jnp.zeros((), jnp.int32), *(jnp.zeros((), plateau.best.dtype) for _ in range(2))
    return tuple(map(jnp.copy, zeros))  # type: ignore[return-value]
