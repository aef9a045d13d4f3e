"""Schedules by name, and from the tuples of options."""

from typing import Any

from .._core import check
from .._core.errors import ConfigError
from .._core.typing import ScheduleLike
from .decays import cosine, exponential, linear, step_decay
from .types import constant

FORMS = {
    "step": "(rate, every, factor)",
    "exponential": "(rate, factor)",
    "cosine": "(max, min)",
    "linear": "(start, end)",
    "constant": "(rate,)",
}
"""The schedules that `get` knows, with what stands in their tuple."""


def get(spec: Any, *, rate: ScheduleLike | None = None, steps: int | None = None) -> Any:
    """A schedule from a name, a tuple `(name, *numbers)`, a number or a schedule.

    The unit is optimizer updates. `cosine` and `linear` go over `steps` of them, the whole run; `exponential`
    multiplies by its factor at each.

    Args:
      spec: `"cosine"`, `("cosine", 1e-3, 1e-5)`, `("step", 0.1, 30, 0.5)`, …, as FORMS says; a name alone starts from
        `rate` and ends, where it has an end, at zero. A number or a function of the step is taken as it is.
      rate: what a name alone starts from.
      steps: how many updates the run makes.

    Raises:
      ConfigError: if the name is unknown, the numbers are not those of its form, or `steps` or `rate` is missing.

    Examples:
      >>> import fntrain as ft
      >>> ft.schedules.get(("cosine", 1e-3, 1e-5), steps=100)
      cosine(start=0.001, steps=100, end=1e-05)
    """
    if not isinstance(spec, str | tuple | list):
        return spec
    name, *rest = (spec,) if isinstance(spec, str) else spec
    numbers: list[Any] = list(rest)
    check.one_of("lr_schedule", name, list(FORMS))
    if name in ("cosine", "linear") and steps is None:
        raise ConfigError(
            f"`lr_schedule={spec!r}` goes over the whole run: say how many updates that is, `steps=epochs * batches`"
        )
    if not numbers:
        if name in ("step", "exponential"):
            raise ConfigError(f"`lr_schedule` {name!r} needs its numbers: `({name!r}, {FORMS[name][1:]}`")
        if rate is None:
            raise ConfigError(f"`lr_schedule={name!r}` needs a rate to start from: `learning_rate=`")
        numbers = [rate] if name == "constant" else [rate, 0.0]
    if len(numbers) != FORMS[name].count(",") + (name != "constant"):
        raise ConfigError(f"`lr_schedule` {name!r} takes {FORMS[name]}, got {tuple(numbers)!r}")
    if name == "step":
        rate_, every, factor = numbers
        return step_decay(rate_, factor, every)
    if name == "exponential":
        return exponential(*numbers)
    if name == "cosine":
        return cosine(numbers[0], steps, numbers[1])  # type: ignore[arg-type]
    return linear(*numbers, steps) if name == "linear" else constant(*numbers)  # type: ignore[arg-type]
