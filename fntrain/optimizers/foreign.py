"""optax's optimizers, by name, through the door."""

import inspect
from collections.abc import Callable
from typing import Any

import optax

from .. import transforms
from .._core import check
from .._core.errors import ConfigError
from .._core.typing import ScheduleLike
from .._core.value import Call
from ..schedules import constant
from ..transforms import Transform, chain
from ..transforms.adapt import adapt
from ..transforms.scheduled import counted_init, counted_update
from .aliases import canonical


def from_optax(name: str, **arguments: Any) -> Transform:
    """An optimizer of optax's, or of `optax.contrib`, as one of ours.

    It compares and prints by its name and arguments, sees parameters and gradients in float32 at least, so that its
    statistics are, reports its `learning_rate`, and is evaluated where it wants to be (schedule-free ones at
    their average).

    Args:
      name: as optax has it: `"ademamix"`, `"adopt"`, `"prodigy"`, `"schedule_free_adamw"`, `"lamb"`, `"lars"`,
        `"nadam"`, `"amsgrad"`, `"radam"`, `"lbfgs"`, ….
      **arguments: its arguments, in any spelling of ALIASES; a schedule may be one of ours.

    Returns:
      A Transform: `chain(<name>, rate)`, the second only where there is a learning rate to report.

    Raises:
      ConfigError: if optax has nothing of that name that makes a gradient transform, or refuses the arguments.

    Examples:
      >>> import fntrain as ft
      >>> ft.optimizers.from_optax("ademamix", learning_rate=0.001)
      from_optax(name='ademamix', learning_rate=0.001)
      >>> ft.optimizers.get("optax:ademamix", lr=1e-3) == ft.optimizers.from_optax("ademamix", learning_rate=0.001)
      True

    References:
      DeepMind, *optax*, https://optax.readthedocs.io.
    """
    given = canonical(f"optax's {name}", inspect.signature(_factory(name)), (), arguments)
    made = _made(name, **given)
    made.call = Call(from_optax, _SIGNATURE, {"name": name, "arguments": given})
    return made


from_optax.makes = Transform  # type: ignore[attr-defined]
_SIGNATURE = inspect.signature(from_optax)


@transforms.transform
def _made(name: str, **arguments: Any):
    """The chain, from arguments under their own names."""
    make = _factory(name)
    try:
        tx = make(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optax's `{name}` refuses its arguments: {error}") from error
    if not isinstance(tx, optax.GradientTransformation):
        raise ConfigError(f"`name`: optax's `{name}` makes no gradient transform, but {check.said(tx)}")
    stages = {name: adapt(tx, in_float32=True)}
    default = inspect.signature(make).parameters.get("learning_rate")
    rate = arguments.get("learning_rate", None if default is None else default.default)
    if callable(rate) or (isinstance(rate, int | float) and not isinstance(rate, bool)):
        stages["rate"] = _rate(rate)
    return chain(**stages)


@transforms.transform
def _rate(learning_rate: ScheduleLike):
    """Let updates through, and report the rate that another transform makes them with."""
    schedule = learning_rate if callable(learning_rate) else constant(learning_rate)  # type: ignore[arg-type]

    def init_fn(params):
        del params
        return counted_init(learning_rate=schedule)

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        return updates, counted_update(state, learning_rate=schedule)[1]

    return Transform(init_fn, update_fn, rescales=False, descends=False, observes=True)


def _factory(name: Any) -> Callable[..., Any]:
    """The function of that name, of optax's or its contributions'."""
    known = {**_functions(optax.contrib), **_functions(optax)}
    if name not in known:
        raise ConfigError(
            f"`name`: optax has no {check.said(name)}, neither `optax.{name}` nor `optax.contrib.{name}`"
            + check.did_you_mean(name, known)
        )
    return known[name]


def _functions(module: Any) -> dict[str, Callable[..., Any]]:
    made = vars(module).items()
    return {name: f for name, f in made if callable(f) and name.islower() and not name.startswith("_")}
