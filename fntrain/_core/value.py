"""Values that know the call that made them.

A transform, a schedule and a metric are functions in a small shell. Functions compare by identity, so two
equal optimizers would be two compilations, could not be pickled, and would print as addresses. A `Value`
remembers the factory and the arguments that made it instead: two are equal if their calls are equal, and the
repr is the call.
"""

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .arguments import misfit
from .check import flag


class Call:
    """A factory and the arguments it was called with, comparable and hashable by value."""

    __slots__ = ("_key", "arguments", "factory", "signature")

    def __init__(self, factory: Callable[..., Any], signature: inspect.Signature, arguments: dict[str, Any]):
        self.factory: Callable[..., Any] = factory
        self.signature: inspect.Signature = signature
        self.arguments: dict[str, Any] = arguments  # kept alive, so identities inside the key stay unique
        self._key = (factory, frozen(arguments))

    @property
    def name(self) -> str:
        """The factory's name, as in `clip_by_norm`."""
        return self.factory.__name__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def shown(self) -> dict[str, str]:
        """The arguments that say something (not those at their defaults), each as text."""
        return _shown(self.signature, self.arguments)

    def __repr__(self) -> str:
        return call_text(self.name, self.signature, self.arguments)

    def again(self, arguments: dict[str, Any]) -> Any:
        """What the same factory makes of other arguments."""
        bound = inspect.BoundArguments(self.signature, arguments)  # type: ignore[arg-type]
        return self.factory(*bound.args, **bound.kwargs)

    def remake(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """What pickle needs to make the call again."""
        bound = inspect.BoundArguments(self.signature, self.arguments)  # type: ignore[arg-type]
        return _call_again, (self.factory, bound.args, bound.kwargs)


def call_text(name: str, signature: inspect.Signature, arguments: Mapping[str, Any]) -> str:
    """A call as one would write it, without the arguments at their defaults."""
    shown = _shown(signature, arguments)
    return f"{name}({', '.join(v if k.startswith('*') else f'{k}={v}' for k, v in shown.items())})"


def _shown(signature: inspect.Signature, arguments: Mapping[str, Any]) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, value in arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            out.update({f"*{i}": show(v) for i, v in enumerate(value)})
        elif parameter.kind is parameter.VAR_KEYWORD:
            out.update({k: show(v) for k, v in value.items()})
        elif parameter.default is parameter.empty or frozen(value) != frozen(parameter.default):
            out[name] = show(value)
    return out


def _call_again(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return factory(*args, **kwargs)


class Value:
    """Mixin: equality, hash, repr and pickling from the call that made the object."""

    call: Call | None = None
    _hash: int | None = None
    _equals: object | None = None  # the same object on values that were found to be equal

    def _parts(self) -> tuple[Any, ...]:
        """What stands in for the call of an object that was made without a factory."""
        raise NotImplementedError

    def _identity(self) -> Any:
        return self.call if self.call is not None else frozen(self._parts())

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Value) or type(self) is not type(other) or hash(self) != hash(other):
            return False
        if self._equals is not None and self._equals is other._equals:
            return True
        if self._identity() != other._identity():
            return False
        # Compared on every dispatch with the one that was compiled for, so remembered.
        mark = self._equals or other._equals or object()
        for x in (self, other):
            object.__setattr__(x, "_equals", mark)
        return True

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        if self._hash is None:  # hashed on every dispatch of a jitted step, so remembered
            object.__setattr__(self, "_hash", hash((type(self).__name__, self._identity())))
        return self._hash  # type: ignore[return-value]

    def __repr__(self) -> str:
        if self.call is not None:
            return repr(self.call)
        return f"{type(self).__name__}({', '.join(show(p) for p in self._parts())})"

    def __reduce__(self) -> Any:
        if self.call is not None:
            return self.call.remake()
        return type(self), self._parts()

    def __copy__(self) -> Any:
        return self  # immutable

    def __deepcopy__(self, memo: dict[str, Any]) -> Any:
        return self


P = ParamSpec("P")
V = TypeVar("V", bound=Value)


def factory(kind: type[V], **attributes: Any) -> Callable[[Callable[P, Any]], Callable[P, V]]:
    """Turn a function that returns the parts of a `kind` (or a fresh `kind`) into a factory of values.

    The value remembers the call, with defaults filled in, so `f(1.0)` and `f(max_norm=1.0)` are equal.
    What is given as `attributes` is written on each value that it makes.
    """

    def decorate(function: Callable[P, Any]) -> Callable[P, V]:
        signature = inspect.signature(function)
        # What is True or False unless said otherwise is nothing else.
        flags = [p.name for p in signature.parameters.values() if isinstance(p.default, bool)]

        @functools.wraps(function)
        def make(*args: P.args, **kwargs: P.kwargs) -> V:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                raise misfit(make, args, kwargs, signature) from None  # type: ignore[misc]
            bound.apply_defaults()
            for name in flags:
                flag(name, bound.arguments[name])
            made = function(*args, **kwargs)
            if not isinstance(made, kind):
                made = kind(*made) if isinstance(made, tuple) else kind(made)  # type: ignore[call-arg]
            # `made` is new: no factory returns one of its arguments, so nobody else sees these writes.
            for name, value in attributes.items():
                object.__setattr__(made, name, value)
            object.__setattr__(made, "call", Call(make, signature, dict(bound.arguments)))
            object.__setattr__(made, "_hash", None)
            object.__setattr__(made, "_equals", None)
            return made

        make.makes = kind  # type: ignore[attr-defined]
        # For help() and the reference: the function says what its parts are, not what callers get.
        make.__signature__ = signature.replace(return_annotation=kind)  # type: ignore[attr-defined]
        return make

    return decorate


class _Same:
    """Equal only to itself: for arguments that have no value to compare by."""

    __slots__ = ("of",)

    def __init__(self, of: Any):
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.of is other.of

    def __hash__(self) -> int:
        return id(self.of)


def frozen(x: Any) -> Any:
    """A hashable stand-in for `x`: two are equal exactly if the values behave alike under tracing.

    Concrete arrays compare by dtype, shape and content, containers by their items, optax's closures by their
    code and what they close over. Other functions and unhashable objects compare by identity.
    """
    if isinstance(x, Value) or x is None or isinstance(x, str | bytes | np.dtype | type):
        return x
    if isinstance(x, bool | int | float | complex):
        return (type(x).__name__ if isinstance(x, bool) else "number", x)
    if isinstance(x, Tracer):
        return _Same(x)
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return ("key", str(jax.random.key_impl(x)), frozen(jax.random.key_data(x)))
    if isinstance(x, np.ndarray | np.generic | jax.Array):
        host = np.asarray(x)
        return ("array", host.dtype.name, host.shape, host.tobytes())
    if isinstance(x, Mapping):
        return ("mapping", tuple((k, frozen(v)) for k, v in x.items()))
    if isinstance(x, tuple | list):
        return (type(x).__name__, tuple(frozen(v) for v in x))
    if isinstance(x, functools.partial):
        return ("partial", frozen(x.func), frozen(x.args), frozen(x.keywords))
    if isinstance(x, types.FunctionType):
        return _frozen_function(x)
    if isinstance(x, types.MethodType) and (x.__func__.__module__ or "").startswith("optax."):
        return ("method", x.__func__, tuple((k, frozen(v)) for k, v in vars(x.__self__).items()))
    try:
        hash(x)
    except TypeError:
        return _Same(x)
    return x


def _frozen_function(f: types.FunctionType) -> Any:
    # A closure of optax's is a pure function of what it closes over, and its globals are optax's own, so code
    # and cells say what it does. Of anybody else's function we cannot know that: a notebook may have rebound
    # a global, and it would be a stale program to call it the same. Those compare by identity.
    if not (f.__module__ or "").startswith("optax."):
        return f
    try:
        cells = tuple(cell.cell_contents for cell in f.__closure__ or ())
        return ("closure", f.__code__, frozen(f.__defaults__), frozen(f.__kwdefaults__), frozen(cells))
    except (ValueError, RecursionError):  # an empty cell, or a closure that holds itself
        return f


def show(x: Any) -> str:
    """Short readable text of an argument: functions by name, arrays by dtype and shape."""
    if isinstance(x, Value):
        return repr(x)
    if isinstance(x, np.ndarray | jax.Array) and np.ndim(x) > 0:
        return f"{x.dtype.name}{list(x.shape)}"
    if isinstance(x, np.generic | jax.Array | np.ndarray) and not isinstance(x, Tracer):
        return f"{x.item()!r}"
    if isinstance(x, Mapping):
        return "{" + ", ".join(f"{k!r}: {show(v)}" for k, v in x.items()) + "}"
    if isinstance(x, tuple) and callable(
        update := getattr(x, "update", None)
    ):  # a transform of another library
        name = getattr(update, "__qualname__", type(x).__name__)
        return name.split(".<locals>")[0].rsplit(".", 1)[-1]  # its factory's
    if isinstance(x, list | tuple):
        inside = ", ".join(show(v) for v in x)
        return f"[{inside}]" if isinstance(x, list) else f"({inside}{',' * (len(x) == 1)})"
    if callable(x) and not isinstance(x, type):
        return getattr(x, "__name__", type(x).__name__)
    if isinstance(x, type):
        return x.__name__
    if isinstance(x, PurePath):
        return repr(str(x))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(x))
