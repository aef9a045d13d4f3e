"""Controllers: which members go on, and from where. Pure functions of a population's state, its scores and a key."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.typing import ArrayLike
from .._core.value import Value, factory
from ..sharding.place import mesh_of
from ..step.state import TrainState
from ..transforms.hyperparams import hyperparams, set_hyperparams
from .states import select, size

Control = Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, jax.Array]]


class Controller(Value):
    """A pure function `(states, scores, key) -> states` that knows the call that made it.

    Attributes:
      control: `(states, scores, key) -> (states, parents)`: with each new member's index among those before.
      every: steps between two uses of it by `population.fit`; None is at each validation.
    """

    def __init__(self, control: Control, every: int | None = None):
        self.control = control
        self.every = every

    def _parts(self) -> tuple[Any, ...]:
        return self.control, self.every

    def __call__(self, states: TrainState, scores: ArrayLike, key: int | jax.Array = 0) -> TrainState:
        """The population that goes on.

        Args:
          states: a population's state; it stays usable.
          scores: one a member, `[N]`: more is better (negate a loss), and NaN is the worst.
          key: a seed or PRNG key, for what is drawn.

        Returns:
          A population's state.

        Raises:
          DataError: if there is not one score a member.
        """
        return self.apply(states, scores, key)[0]

    def apply(
        self, states: TrainState, scores: ArrayLike, key: int | jax.Array = 0
    ) -> tuple[TrainState, jax.Array]:
        """The same, with the index of each new member's parent among those before."""
        number = size(states)
        if np.shape(scores) != (number,):
            raise DataError(
                f"`scores` must have one number a member, shape [{number}], got {list(np.shape(scores))}"
            )
        root = jax.random.key(key) if isinstance(key, int) else key
        values = jnp.asarray(scores).astype(jnp.float32)
        return self.control(states, jnp.where(jnp.isnan(values), -jnp.inf, values), root)


@factory(Controller)
def halving(keep: float = 0.5, every: int | None = None):
    r"""Successive halving: the best members go on, the others are given up.

    Of N members the :math:`\max(1, \lfloor N \cdot keep \rfloor)` with the highest scores are kept, bit for bit, in
    their order. The fewer go on in a program of their own size, so that what is given up costs nothing any more.

    Args:
      keep: which part goes on, in (0, 1).
      every: steps between two cuts in `population.fit`; None is at each validation.

    Returns:
      A Controller.

    Raises:
      ConfigError: if a number is out of range.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> from fntrain import population
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> states = population.stack([ft.init_state(task, {"w": np.float32(i)}) for i in range(4)])
      >>> population.halving(keep=0.5)(states, np.array([0.1, 0.9, np.nan, 0.4])).params["w"].tolist()
      [1.0, 3.0]

    References:
      Jamieson, Talwalkar, *Non-stochastic best arm identification and hyperparameter optimization*, 2016.
    """
    check.number("keep", keep, above=0, below=1)
    every = None if every is None else check.integer("every", every, at_least=1)

    def control(states, scores, key):
        number = max(1, math.floor(size(states) * keep))
        kept = jnp.sort(jnp.argsort(-scores, stable=True)[:number])
        return select(states, kept), kept

    return control, every


@factory(Controller)
def pbt(
    quantile: float = 0.25,
    factor: float = 1.2,
    every: int | None = None,
    *,
    names: Sequence[str] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    explore: Callable[[jax.Array, dict[str, jax.Array]], dict[str, jax.Array]] | None = None,
):
    r"""Population-based training: the worst members go on from copies of the best, with other hyperparameters.

    .. math:: \theta_i \leftarrow \theta_j, \qquad h_i \leftarrow h_j \cdot f^{\pm 1}, \qquad
              i \in \text{worst } q, \quad j \sim \text{best } q

    The :math:`\max(1, \lfloor N q \rfloor)` worst take parameters, optimizer and model state from one of as many best,
    drawn by chance, and each of their hyperparameters is multiplied or divided by `factor`. The keys stay each
    member's own. A member is only copied over by a better one.

    Args:
      quantile: q, in (0, 0.5].
      factor: f, > 1.
      every: steps between two uses in `population.fit`; None is at each validation.
      names: which hyperparameters are explored, as `transforms.hyperparams` names them; None is all.
      bounds: `{name: (low, high)}`, within which one stays.
      explore: `(key, {name: [N] values}) -> {name: [N] values}` in place of the factor, for all members, in JAX, as it
        is compiled; those that were not replaced keep what they had.

    Returns:
      A Controller.

    Raises:
      ConfigError: if a number is out of range; when it is used, if the states hold no hyperparameters.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> from fntrain import population
      >>> tx = ft.transforms.with_hyperparams(ft.optimizers.sgd, learning_rate=0.1)
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), tx)
      >>> states = population.init(task, {"w": np.float32(0)}, seeds=range(4))
      >>> new = population.pbt(quantile=0.25, factor=2.0)(states, np.arange(4.0), key=0)
      >>> sorted(round(x, 3) for x in ft.transforms.hyperparams(new)["learning_rate"].tolist())[1:3]
      [0.1, 0.1]

    References:
      Jaderberg et al., *Population based training of neural networks*, 2017.
    """
    check.number("quantile", quantile, above=0, at_most=0.5)
    check.number("factor", factor, above=1)
    every = None if every is None else check.integer("every", every, at_least=1)
    limits = {name: _bounds(name, pair) for name, pair in (bounds or {}).items()}
    if explore is not None:
        check.function("explore", explore, "(key, values) -> values", takes=2)

    def control(states, scores, key):
        number = size(states)
        many = max(1, math.floor(number * quantile))
        draw, change = jax.random.split(key)
        order = jnp.argsort(-scores, stable=True)
        best, worst = order[:many], order[number - many :]
        parents = jax.random.choice(draw, best, (many,))
        parents = jnp.where(scores[parents] > scores[worst], parents, worst)
        parents = jnp.arange(number).at[worst].set(parents)
        new = select(states, parents).replace(key=states.key)
        values = _chosen(hyperparams(new), names, limits)
        tried = _perturbed(change, values, factor) if explore is None else explore(change, values)
        replaced = parents != jnp.arange(number)
        for name, (low, high) in limits.items():
            tried[name] = jnp.clip(tried[name], low, high)
        tried = {name: jnp.where(replaced, tried[name], x) for name, x in values.items()}
        return set_hyperparams(new, **tried), parents

    return _in_one_program(control), every


def _in_one_program(control: Control) -> Control:
    """The same in one program, and not one an operation, whose new states are where the old ones were."""

    def call(states, scores, key):
        if not check.is_concrete(states.step) or mesh_of(states) is None:
            return jax.jit(control)(states, scores, key)
        places = jax.tree.map(lambda x: x.sharding, states)
        return jax.jit(control, out_shardings=(places, None))(states, scores, key)

    return call


def _bounds(name: str, pair: Any) -> tuple[float, float]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ConfigError(f"`bounds` must be pairs (low, high), got {check.said(pair)} for `{name}`")
    check.number(f"bounds[{name!r}]", pair[1], above=pair[0])
    return pair[0], pair[1]


def _chosen(values: dict[str, jax.Array], names: Any, limits: Mapping[str, Any]) -> dict[str, jax.Array]:
    chosen = list(values) if names is None else list(names)
    for argument, wanted in (("names", chosen), ("bounds", list(limits))):
        for name in wanted:
            if name not in (values if argument == "names" else chosen):
                raise ConfigError(
                    f"`{argument}`: {name!r} is no hyperparameter that is explored, which are {', '.join(values)}"
                    + check.did_you_mean(name, values)
                )
    return {name: values[name] for name in chosen}


def _perturbed(key: jax.Array, values: dict[str, jax.Array], factor: float) -> dict[str, jax.Array]:
    out = {}
    for i, (name, x) in enumerate(values.items()):
        up = jax.random.bernoulli(jax.random.fold_in(key, i), shape=x.shape)
        out[name] = x * jnp.where(up, jnp.float32(factor), jnp.float32(1 / factor))
    return out


class Rungs(Value):
    """A pure decision about one run among others that were not started together; see `asha`.

    Attributes:
      reduction: one in so many goes on.
      every: the first rung, in steps.
    """

    def __init__(self, reduction: int, every: int):
        self.reduction = reduction
        self.every = every

    def _parts(self) -> tuple[Any, ...]:
        return self.reduction, self.every

    def at(self, step: int) -> bool:
        """Whether a step is a rung: `every * reduction**k`."""
        rung = self.every
        while rung < step:
            rung *= self.reduction
        return rung == step

    def __call__(self, score: float, scores: Sequence[float]) -> bool:
        """Whether a run goes on.

        Args:
          score: its own at this rung: more is better, and NaN never goes on.
          scores: those of all that have reached the rung before it, in any order.

        Returns:
          True if it is among the best `1 / reduction` of them all, itself counted, one at the least.
        """
        if math.isnan(score):
            return False
        number = max(1, (len(scores) + 1) // self.reduction)
        return sum(other > score for other in scores) < number


@factory(Rungs)
def asha(reduction: int = 4, every: int = 1):
    """Asynchronous successive halving: a run decides for itself, by what others had at its rung.

    Rungs are at `every`, `every * reduction`, `every * reduction**2`, … steps. Nobody waits for anybody: who comes
    first to a rung goes on, as it is the best so far, and so a few go on that a later one would have beaten.

    Args:
      reduction: one in so many goes on, >= 2.
      every: the first rung, in steps.

    Returns:
      A pure function `(score, scores) -> bool`; `at(step)` says whether a step is a rung.

    Raises:
      ConfigError: if a number is out of range.

    Examples:
      >>> from fntrain import population
      >>> rungs = population.asha(reduction=2, every=100)
      >>> [step for step in range(100, 900, 100) if rungs.at(step)]
      [100, 200, 400, 800]
      >>> rungs(0.7, [0.9, 0.1, 0.2]), rungs(0.15, [0.9, 0.1, 0.2])
      (True, False)

    References:
      Li et al., *A system for massively parallel hyperparameter tuning*, 2020.
    """
    return Rungs(check.integer("reduction", reduction, at_least=2), check.integer("every", every, at_least=1))
