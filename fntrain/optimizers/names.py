"""Optimizers by name."""

import inspect
from typing import Any

from .._core import check
from ..transforms import Transform
from .adafactor import adafactor
from .adam import adam, adamw
from .aliases import canonical
from .foreign import from_optax
from .lion import lion
from .muon import muon
from .rmsprop import rmsprop
from .sgd import sgd
from .soap import soap

OPTIMIZERS = {f.__name__: f for f in (sgd, adam, adamw, rmsprop, lion, adafactor, muon, soap)}


"""The optimizers that `get` knows, by name."""


PRESETS: dict[str, dict[str, Any]] = {
    "sgd/basic": {},
    "sgd/momentum": {"momentum": 0.9},
    "sgd/fine_tuning": {"learning_rate": 0.001, "momentum": 0.9},
    "sgd/regularised": {"weight_decay": 1e-4},
}


"""Arguments that are usual together, as `get("sgd/momentum")`."""


def get(name: str, **kwargs: Any) -> Transform:
    """Make an optimizer by name.

    Args:
      name: `"sgd"`, `"adam"`, `"adamw"`, `"rmsprop"`, `"lion"`, `"adafactor"`, `"muon"`, `"soap"`, a preset of
        PRESETS, as `"sgd/momentum"`, or one of optax's, as `"optax:ademamix"` (`from_optax`).
      **kwargs: its arguments, in any spelling of ALIASES; they win over those of a preset.

    Returns:
      A Transform, equal to the one that the optimizer itself makes.

    Raises:
      ConfigError: if there is no optimizer of that name, or no argument.

    Examples:
      >>> import fntrain as ft
      >>> ft.optimizers.get("adamw", lr=1e-3) == ft.optimizers.adamw(1e-3)
      True
      >>> ft.optimizers.get("sgd/momentum", learning_rate=0.1)
      sgd(learning_rate=0.1, momentum=0.9)
    """
    if isinstance(name, str) and name.startswith("optax:"):
        return from_optax(name.removeprefix("optax:"), **kwargs)
    check.one_of("name", name, [*OPTIMIZERS, *PRESETS])
    optimizer = OPTIMIZERS[name.split("/")[0]]
    given = canonical(name, inspect.signature(optimizer), (), kwargs)
    return optimizer(**{**PRESETS.get(name, {}), **given})
