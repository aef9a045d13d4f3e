"""Schedule, the simplest of them, and how a count and a length are read."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import ConfigError
from .._core.typing import ArrayLike
from .._core.value import Value, factory
from .arithmetic import LARGEST, to_float


class Schedule(Value):
    """A function `step -> float32` that knows the call that made it.

    To write one, return the function from a function decorated with `fntrain.schedules.schedule`, alone or as
    `(function, steps, boundaries)`.

    Attributes:
      function: what is called with the step, an int32 array >= 0 of any shape; it returns a value, or an
        array of the step's shape.
      steps: the update at which the schedule has come to its end, or None if it has none.
      boundaries: the updates at which one piece ends and the next begins, increasing; of pieces that repeat
        for ever, the first 64.
    """

    def __init__(
        self,
        function: Callable[[jax.Array], Any],
        steps: int | None = None,
        boundaries: Iterable[int] = (),
    ):
        self.function = function
        self.steps = steps
        self.boundaries: tuple[int, ...] = tuple(boundaries)

    def _parts(self) -> tuple[Any, ...]:
        return (self.function, self.steps, self.boundaries)

    def __call__(self, step: ArrayLike | Sequence[int]) -> jax.Array:
        """Evaluate the schedule at an update.

        Args:
          step: the count of updates before this one: a Python int, or an array of integers of any shape,
            traced or not. So `schedule(jnp.arange(n))` is the whole curve.

        Returns:
          A float32 array of the step's shape.

        Raises:
          ConfigError: if `step` is no integer: a float cannot count past 2^24.
        """
        count = as_count(step)
        return jnp.broadcast_to(to_float(self.function(count)), count.shape)


jax.tree_util.register_static(Schedule)


schedule = factory(Schedule)


"""Decorator: a function that returns `function` or `(function, steps, boundaries)` makes Schedules."""


@schedule
def constant(value: float):
    r"""Hold one value at every update.

    .. math:: \eta_t = v

    Args:
      value: v, >= 0.

    Returns:
      A Schedule without end.

    Raises:
      ConfigError: if `value` is not a finite number >= 0.

    Examples:
      >>> import fntrain as ft
      >>> float(ft.schedules.constant(0.5)(1000))
      0.5
    """
    check.number("value", value, at_least=0)
    return lambda step: value


def as_count(step: Any) -> jax.Array:
    """Make the count an int32 array; what is not in [0, 2^31 - 1] is moved to the nearest end."""
    numpy: Any = jnp if isinstance(step, jax.Array) else np
    step = numpy.asarray(step)
    if not jnp.issubdtype(step.dtype, jnp.integer):
        raise ConfigError(
            f"`step` must be a count of updates, an integer or an array of integers, got {step.dtype}"
            f"{list(step.shape)}; cast it, `schedule(step.astype(int))`"
        )
    largest = min(LARGEST, int(jnp.iinfo(step.dtype).max))
    return jnp.asarray(numpy.clip(step, 0, largest).astype(np.int32))


def updates(name: str, value: Any, at_least: int = 1) -> int:
    """Check a number of updates, which an int32 must be able to count."""
    value = check.integer(name, value, at_least=at_least)
    if value > LARGEST:
        raise ConfigError(f"`{name}` must be at most {LARGEST}, the largest count of updates, got {value}")
    return value


def as_schedule(name: str, value: Any) -> Schedule:
    """Make what was given a Schedule."""
    if isinstance(value, Schedule):
        return value
    if not callable(value):
        check.number(name, value, at_least=0)
        return constant(value)
    if (getattr(value, "__module__", None) or "").startswith(f"{__package__}."):
        call = getattr(value, "__name__", "factory")
        raise ConfigError(f"`{name}` must be a schedule, got the factory `{call}`: call it, `{call}(...)`")
    return Schedule(value)
