"""Schedule, the simplest of them, and how a count and a length are read."""

import contextlib
import contextvars
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec

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
      waits: whether a length in it is a fraction of the run, so that it has no values before `fit`, or
        `schedules.resolved`, has said how long that is.
    """

    def __init__(
        self,
        function: Callable[[jax.Array], Any],
        steps: int | None = None,
        boundaries: Iterable[int] = (),
        *,
        waits: bool = False,
    ):
        self.function = function
        self.waits = waits
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
          ConfigError: if `step` is no integer: a float cannot count past 2^24; or if the schedule waits for the length
            of the run.
        """
        count = as_count(step)
        if self.waits:
            if _BEFORE_THE_RUN.get():
                return jnp.zeros(count.shape, jnp.float32)
            raise ConfigError(
                f"`{self!r}` has lengths that are fractions of the run, which `fit` knows and a step by itself does "
                f"not: give numbers of updates, or make them so, `Task(loss_fn, schedules.resolved(tx, updates))`"
            )
        return jnp.broadcast_to(to_float(self.function(count)), count.shape)


jax.tree_util.register_static(Schedule)


_BEFORE_THE_RUN = contextvars.ContextVar("before the run", default=False)


@contextlib.contextmanager
def before_the_run() -> Iterator[None]:
    """In here a schedule that waits for the length of the run is 0, and not refused: a state is being made."""
    token = _BEFORE_THE_RUN.set(True)
    try:
        yield
    finally:
        _BEFORE_THE_RUN.reset(token)


LENGTHS = ("steps", "start_at")
"""The arguments of a schedule that may be a fraction of the run, a float in (0, 1]."""


def fraction(value: Any) -> bool:
    """Whether a length is a fraction of the run."""
    return isinstance(value, float) and 0 < value <= 1


P = ParamSpec("P")


def schedule(function: Callable[P, Any]) -> Callable[P, Schedule]:
    """Decorator: a function that returns `function` or `(function, steps, boundaries)` makes Schedules.

    Where an argument is a fraction of the run, or a schedule that has such, what is made waits.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def body(*args: P.args, **kwargs: P.kwargs) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        if not _has_fractions(arguments):
            return function(*args, **kwargs)
        return Schedule(lambda step: step, waits=True)

    return factory(Schedule)(body)


def _has_fractions(arguments: Mapping[str, Any]) -> bool:
    def waiting(x: Any) -> bool:
        return isinstance(x, Schedule) and x.waits

    parts = arguments.get("parts")
    parts = parts if isinstance(parts, list | tuple) else ()
    pairs = [pair for pair in parts if isinstance(pair, tuple | list) and len(pair) == 2]
    return (
        any(waiting(x) for x in arguments.values())
        or any(fraction(arguments.get(name)) for name in LENGTHS)
        or any(waiting(s) or fraction(n) for s, n in pairs)
    )


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
