"""Argument checks: each names the argument, what was expected, what came, and, where it can, the call that works."""

import difflib
import functools
import inspect
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .errors import ConfigError


def is_concrete(x: Any) -> bool:
    """True if the value of `x` can be read here: it is not being traced by a JAX transformation."""
    return not isinstance(x, Tracer)


def is_function(x: Any) -> bool:
    """True for what is there to be called; a module, which can be called and is a tree of arrays, is that tree."""
    return callable(x) and (isinstance(x, functools.partial) or jax.tree_util.all_leaves([x]))


def number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    """Check a finite real number within bounds; arrays are checked when their value can be read.

    Raises:
      ConfigError: if `value` is no number, not finite, or out of bounds.
    """
    if not is_concrete(value):
        return
    wanted = [
        f"{sign} {bound}"
        for sign, bound in ((">=", at_least), (">", above), ("<=", at_most), ("<", below))
        if bound is not None
    ]
    expected = "a finite number" + (" " + " and ".join(wanted) if wanted else "")
    if not _is_real(value):
        raise ConfigError(f"`{name}` must be {expected}, got {said(value)} of type {type(value).__name__}")
    if np.ndim(value) != 0:
        raise ConfigError(f"`{name}` must be {expected}, got an array of shape {np.shape(value)}")
    x = float(value)
    bad = not math.isfinite(x)
    bad = bad or (at_least is not None and x < at_least) or (above is not None and x <= above)
    bad = bad or (at_most is not None and x > at_most) or (below is not None and x >= below)
    if bad:
        raise ConfigError(f"`{name}` must be {expected}, got {value!r}")


def _is_real(x: Any) -> bool:
    """Whether it is a real number or an array of them: no bool, no complex number, no text."""
    if isinstance(x, np.generic | np.ndarray | jax.Array):
        return bool(jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer))
    return isinstance(x, int | float) and not isinstance(x, bool)


def number_or_schedule(name: str, value: Any, **bounds: float) -> None:
    """Check a number within bounds, or that a schedule can be called with the step.

    Raises:
      ConfigError: if it is neither, such as the factory of a schedule.
    """
    if not callable(value):
        return number(name, value, **bounds)
    if hasattr(value, "makes"):
        call = getattr(value, "__name__", "factory")
        raise ConfigError(
            f"`{name}` must be a number or a schedule `step -> value`, got the factory `{call}`: call it, `{call}(...)`"
        )
    return function(name, value, "(step) -> value", takes=1)


def flag(name: str, value: Any, hint: str = "") -> bool:
    """Check a truth value, and return it as Python's: `"no"`, 0 and None are none.

    Args:
      name: the argument.
      value: what was given.
      hint: what else may have been meant, for the end of the message.

    Raises:
      ConfigError: if `value` is anything but True or False.
    """
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(
            f"`{name}` must be True or False, got {said(value)} of type {type(value).__name__}{hint}"
        )
    return bool(value)


def integer(name: str, value: Any, *, at_least: int | None = None) -> int:
    """Check a whole number (a bool is none) and return it as a Python int.

    Raises:
      ConfigError: if `value` is no integer, or smaller than `at_least`.
    """
    expected = "an integer" + (f" >= {at_least}" if at_least is not None else "")
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        whole = is_concrete(value) and np.ndim(value) == 0 and _is_real(value) and float(value).is_integer()
        fix = f"; write `{name}={int(value)}`" if whole else ""
        raise ConfigError(
            f"`{name}` must be {expected}, got {said(value)} of type {type(value).__name__}{fix}"
        )
    if at_least is not None and value < at_least:
        raise ConfigError(f"`{name}` must be {expected}, got {value!r}")
    return int(value)


def one_of(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Check that `value` is one of `choices`.

    Raises:
      ConfigError: naming the choices, and the nearest one if `value` looks misspelt.
    """
    choices = list(choices)
    if value not in choices:
        raise ConfigError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}"
            + did_you_mean(value, choices)
        )


def name(argument: str, value: Any) -> str:
    """Check a name that may become a column, a tag or a file: `loss`, `loss/part`, `top-5 accuracy`.

    Raises:
      ConfigError: if it is no text, empty, longer than 128 characters, holds a line break or another control
        character, or reads as a path that leaves its place (`../x`, `/x`, `a//b`).
    """
    wanted = f"`{argument}` must be a name of 1 to 128 printable characters"
    if not isinstance(value, str) or not 0 < len(value) <= 128 or not value.isprintable():
        raise ConfigError(f"{wanted}, got {said(value)}")
    if any(part in ("", ".", "..") for part in value.replace("\\", "/").split("/")):
        raise ConfigError(f"{wanted} that is no path out of its place, got {value!r}")
    return value


def path(argument: str, value: Any) -> Path:
    """Check a path that is to be written to, and return it, absolute, `~` and links followed.

    Raises:
      ConfigError: if it is no path, empty, a URL, leads nowhere, or no file system could hold it.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"`{argument}` must be a path, got {value!r} of type {type(value).__name__}")
    text = os.fspath(value)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ConfigError(f"`{argument}` must be a path, got {text!r}")
    if "://" in text:
        raise ConfigError(
            f"`{argument}` must be a local or mounted directory, got {text!r}: locks, renames and files that are "
            f"appended to are not to be had there; mount it (gcsfuse, s3fs), or copy what a run has left"
        )
    longest = max((len(os.fsencode(part)) for part in Path(text).parts), default=0)
    if longest > 255:
        raise ConfigError(f"`{argument}` must have names of at most 255 bytes, got one of {longest}")
    try:
        return Path(text).expanduser().resolve()  # once: the process may change its directory
    except (RuntimeError, OSError) as error:  # the home of nobody; links in a circle
        raise ConfigError(
            f"`{argument}` must be a path that leads somewhere, got {text!r}: {error}"
        ) from None


def did_you_mean(value: Any, choices: Iterable[Any]) -> str:
    """`; did you mean 'x'?` if a choice is close to `value`, else nothing."""
    if not isinstance(value, str):
        return ""
    names = {c.lower(): c for c in choices if isinstance(c, str)}
    low = value.lower()
    close = difflib.get_close_matches(low, names, n=1)
    if not close and len(low) > 1:  # cut short: `mom` for `momentum`, `best` for `save_best_only`
        close = [name for name in names if name.startswith(low) or low in name.split("_")]
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def function(name: str, value: Any, signature: str, *, takes: int | None = None) -> None:
    """Check that `value` can be called; `signature` shows how it will be.

    Args:
      name: the argument's name.
      value: what was given.
      signature: `(epoch) -> learning rate`, for the message.
      takes: how many arguments it is called with, by position; None does not look.

    Raises:
      ConfigError: if it cannot be called, or not with that many arguments.
    """
    wanted = f"`{name}` must be a function `{signature}`"
    if not callable(value):
        raise ConfigError(f"{wanted}, got {said(value)} of type {type(value).__name__}")
    if takes is None:
        return
    try:
        own = inspect.signature(value)
    except (TypeError, ValueError):  # a built-in, say, that does not tell
        return
    try:
        own.bind(*[None] * takes)
    except TypeError as error:
        called = getattr(value, "__name__", type(value).__name__)
        bare = own.replace(
            parameters=[p.replace(annotation=p.empty) for p in own.parameters.values()],
            return_annotation=own.empty,
        )
        listed = signature.partition(" ->")[0]
        raise ConfigError(
            f"{wanted}, called with {takes} argument{'s' * (takes != 1)} by position, got `{called}{bare}` ({error}): "
            f"write `def {name}{listed}`, with all of them also where some are not needed, and call what you have in it"
        ) from None


def said(value: Any) -> str:
    """The repr of a value in a message: at most 80 characters of it."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
