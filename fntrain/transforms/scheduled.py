"""The present values of hyperparameters that are schedules, for the step to report."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core.typing import ScheduleLike
from .types import Recording, at_step, increment


class _Scheduled(NamedTuple):
    values: dict[str, jax.Array]  # float32, shape ()


class Scheduled(Recording, _Scheduled):
    """What the schedules of a transform said at the last update, by name."""

    def recorded(self) -> dict[str, jax.Array]:
        """All of them."""
        return dict(self.values)


def scheduled(count: jax.Array, **hyperparameters: ScheduleLike) -> Any:
    """The values at an update of those hyperparameters that are schedules; nothing, (), if none is."""
    values = {name: at_step(h, count) for name, h in hyperparameters.items() if callable(h)}
    return Scheduled(values) if values else ()


class CountedState(NamedTuple):
    """The state of a transform that would have none, but for a schedule."""

    count: jax.Array  # int32, shape (): updates applied
    scheduled: Scheduled


def counted_init(**hyperparameters: ScheduleLike) -> Any:
    """A CountedState, or nothing, (), if no hyperparameter is a schedule."""
    count = jnp.zeros((), jnp.int32)
    values = scheduled(count, **hyperparameters)
    return CountedState(count, values) if values else ()


def counted_update(state: Any, **hyperparameters: ScheduleLike) -> tuple[dict[str, Any], Any]:
    """`(the values to use, as `at_step` has them, the state after this update)`."""
    count = state.count if state else jnp.zeros((), jnp.int32)
    values = {name: at_step(h, count) for name, h in hyperparameters.items()}
    return values, CountedState(increment(count), scheduled(count, **hyperparameters)) if state else state
