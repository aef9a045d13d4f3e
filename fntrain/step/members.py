"""The member axis: a state whose arrays have one more, leading axis is many runs, and every verb maps over it.

Members share the step's program, its batch and its number; what they are otherwise (keys, parameters, the optimizer's
state with its hyperparameters) is their own.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .._core.typing import PyTree
from .state import TrainState

F = TypeVar("F", bound=Callable[..., Any])

AXIS = "members"
"""The axis of a mesh that members are split over."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerMember:
    """Arrays of which each member of a population has its own: `[B, N, …]`, rows first, then members.

    Rows stand first as in every batch, so that what cuts, pads and weighs batches need not know of members.

    Attributes:
      rows: a tree of such arrays.
    """

    rows: PyTree


class Spread(NamedTuple):
    """A number of a population: `value`, the mean of the members where it is finite, and that of `each`, `[N, …]`.

    One member that has diverged is seen in `each`, and does not hide the others.
    """

    value: Any
    each: Any


def count(state: TrainState) -> int | None:
    """How many members a state has; None if it is one run's."""
    return state.step.shape[0] if np.ndim(state.step) else None


def first(step: jax.Array) -> jax.Array:
    """The step's number, which all members have."""
    return step[0] if np.ndim(step) else step


def over_members(function: F, out: int = 0) -> F:
    """Make a function `(task, state[, batch, weight])` of one run map over the members of a population's state.

    A batch is the same for all, unless it is `PerMember`; so is a weight, unless it is `[B, N]`. In what comes back the
    members are axis `out`.
    """

    @functools.wraps(function)
    def call(task: Any, state: TrainState, *data: Any) -> Any:
        if count(state) is None:
            return function(task, state, *data)
        axes = [
            1 if isinstance(x, PerMember) or (i == 1 and np.ndim(x) == 2) else None
            for i, x in enumerate(data)
        ]
        each = jax.vmap(functools.partial(function, task), in_axes=(0, *axes), out_axes=out)
        return each(state, *(x.rows if isinstance(x, PerMember) else x for x in data))

    return call  # type: ignore[return-value]


def spread(each: Any) -> Spread:
    """The Spread of a value's arrays `[N, …]`."""

    def mean(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        seen = jnp.isfinite(x)
        number = jnp.sum(seen, 0).astype(jnp.float32)
        return jnp.where(number > 0, jnp.sum(jnp.where(seen, x, 0), 0) / jnp.maximum(number, 1), jnp.nan)

    return Spread(jax.tree.map(mean, each), each)


def each_of(value: Any) -> Any:
    """The members' values of a Spread; else the value."""
    return value.each if isinstance(value, Spread) else value
