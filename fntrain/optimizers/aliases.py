"""Other libraries' spellings of an optimizer's arguments."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

from .. import transforms, tree
from .._core.arguments import meant
from .._core.errors import ArgumentError
from .._core.value import Call
from ..transforms import Transform

ALIASES = {
    "lr": "learning_rate",
    "beta1": "b1",
    "beta_1": "b1",
    "beta2": "b2",
    "beta_2": "b2",
    "epsilon": "eps",
    "alpha": "decay",
    "rho": "decay",
}


"""Other libraries' spellings of an argument: every optimizer takes them for the arguments it has."""


P = ParamSpec("P")


def optimizer(function: Callable[P, Any]) -> Callable[P, Transform]:
    """`transform`, for a factory that takes the spellings of ALIASES too."""
    make = transforms.transform(function)
    signature = inspect.signature(function)

    @functools.wraps(make)  # with its signature, and what it makes
    def named(*args: P.args, **kwargs: P.kwargs) -> Transform:
        made = make(*args, **canonical(function.__name__, signature, args, kwargs))  # type: ignore[arg-type]
        # Pickle looks the factory up by its name, and finds this function there, not `make`.
        made.call = Call(named, signature, made.call.arguments)  # type: ignore[union-attr]
        return made

    return named


def canonical(
    optimizer: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Rename keyword arguments to their canonical spelling.

    Raises:
      ArgumentError: if one argument comes twice, or the optimizer has none of that name.
    """
    names = list(signature.parameters)
    given = {name: name for name in names[: len(args)]}
    out = {}
    for spelling, value in kwargs.items():
        name = ALIASES.get(spelling, spelling)
        if name not in names:
            raise ArgumentError(
                f"`{spelling}` is no argument of {optimizer}, which has {tree.some(names, len(names))}"
                + meant(spelling, names)
            )
        if name in given:
            raise ArgumentError(
                f"`{given[name]}` and `{spelling}` of {optimizer} are the same argument; give one of them"
            )
        given[name] = spelling
        out[name] = value
    return out
