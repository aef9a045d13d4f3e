"""What a value is, as JSON that another process would write too: the identity of a run, and how two of them differ.

Nothing in it depends on an address, on the order of a hash, or on where a thing was defined. A call is its name and
all of its arguments, defaults written out, so a default that a later version changes is seen. A function of the
user's is its code, its defaults, what it closes over, and the code of the functions of its module that it calls,
directly or through others; one of a library is its name and what it closes over. Not looked at are a module's other
globals (numbers, arrays, objects), functions imported from the user's other modules, and whether a sequence is a list
or a tuple.
"""

import dataclasses
import dis
import functools
import hashlib
import inspect
import re
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .digest import crc32
from .value import Value

# Their functions are known by name: another version of a library is said as such, and is no other task.
_LIBRARIES = {
    "builtins",
    "chex",
    "equinox",
    "flax",
    "fntrain",
    "haiku",
    "jax",
    "math",
    "numpy",
    "operator",
    "optax",
}


# Text that would be taken for what these stand for.
_WORDS = {"True", "False", "nan", "inf", "-inf", "itself"}


def fingerprint(x: Any) -> Any:
    """`x` as JSON: equal for equal values, in every process, and different for those that behave differently.

    Args:
      x: numbers, text, arrays, containers, functions, partials, values of this library, dataclasses, or any object,
        which is its type and its attributes.

    Examples:
      >>> fingerprint(functools.partial(round, ndigits=2))
      {'partial': {'function': 'builtins.round'}, 'keywords': {'ndigits': 2}}
    """
    return _of(x, ())


def _of(x: Any, outer: tuple[int, ...]) -> Any:
    if isinstance(x, bool):
        return repr(x)  # JSON's true would equal 1
    if isinstance(x, str):
        return {"text": x} if x in _WORDS else x
    if x is None or isinstance(x, int):
        return x
    if isinstance(x, float):
        return x if x - x == 0 else repr(x)  # JSON has no infinity
    if isinstance(x, complex | np.dtype | bytes):
        return repr(x)
    if isinstance(x, np.ndarray | np.generic | jax.Array):
        return _of_array(x)
    if id(x) in outer:
        return "itself"
    outer = (*outer, id(x))

    def inside(y: Any) -> Any:
        return _of(y, outer)

    if isinstance(x, Value):
        return _of_value(x, inside)
    if isinstance(x, Mapping | tuple | list | set | frozenset):
        return _of_container(x, inside)
    if isinstance(x, functools.partial):
        parts = {"partial": inside(x.func), "args": inside(x.args), "keywords": inside(x.keywords)}
        return {k: v for k, v in parts.items() if v}
    if isinstance(x, types.FunctionType):
        return _of_function(x, inside)
    if isinstance(x, types.MethodType):
        return {"method": inside(x.__func__), "of": inside(x.__self__)}
    if isinstance(x, type):
        return f"{x.__module__}.{x.__qualname__}"
    return _of_object(x, inside)


def _of_container(x: Any, inside: Any) -> Any:
    if isinstance(x, Mapping):
        order = {"(order)": ", ".join(map(str, x))} if len(x) > 1 else {}
        return {**{str(k): inside(v) for k, v in x.items()}, **order}
    if isinstance(x, set | frozenset):
        return sorted((inside(v) for v in x), key=repr)
    if hasattr(x, "_fields"):  # a NamedTuple
        return {"type": type(x).__name__, **{k: inside(v) for k, v in zip(x._fields, x)}}  # type: ignore[union-attr]
    return [inside(v) for v in x]


def _of_array(x: Any) -> str:
    if not isinstance(x.dtype, np.dtype) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return f"key {jax.random.key_impl(x)} {_of_array(jax.random.key_data(x))}"
    host = np.asarray(x)
    if host.dtype.hasobject:  # whose bytes are addresses
        return f"{host.dtype.name}{list(host.shape)} {[_of(x, ()) for x in host.reshape(-1).tolist()]}"
    if host.ndim == 0 and host.dtype.kind in "biufc":
        return f"{host.dtype.name} {host.item()!r}"
    return f"{host.dtype.name}{list(host.shape)} {crc32(host):08x}"


def _of_value(x: Value, inside: Any) -> Any:
    if hasattr(x, "fingerprint"):  # it knows best what it is
        return {"type": type(x).__name__, **x.fingerprint()}  # type: ignore[attr-defined]
    if x.call is None:
        return {"type": type(x).__name__, "parts": [inside(part) for part in x._parts()]}
    arguments = {k: v for k, v in x.call.arguments.items() if not (isinstance(v, tuple | dict) and not v)}
    return {"call": x.call.name, **{k: inside(v) for k, v in arguments.items()}}


def _of_function(f: types.FunctionType, inside: Any) -> dict[str, Any]:
    f = getattr(f, "__checked__", f)
    library = (f.__module__ or "").split(".")[0] in _LIBRARIES
    cells = {}
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or ()):
        try:
            cells[name] = inside(cell.cell_contents)
        except ValueError:  # not filled yet
            cells[name] = None
    defaults = {**dict(enumerate(f.__defaults__ or ())), **(f.__kwdefaults__ or {})}
    parts = {
        "function": f"{(f.__module__ or '').split('.')[0]}.{f.__qualname__}" if library else f.__name__,
        "code": None if library else _digest(f.__code__, f.__doc__),
        "defaults": inside(defaults),
        "cells": cells,
        "helpers": {} if library else _helpers(f, inside),
    }
    return {k: v for k, v in parts.items() if v}


def _helpers(f: types.FunctionType, inside: Any) -> dict[str, Any]:
    """What the functions of its module are that a function calls, and those that they call: by name, once each."""
    found: dict[str, types.FunctionType] = {}
    todo = [f]
    while todo:
        for name in _globals_of(todo.pop().__code__):
            helper = f.__globals__.get(name)
            helper = getattr(helper, "__wrapped__", helper)  # a jitted one, say
            if not isinstance(helper, types.FunctionType) or helper.__globals__ is not f.__globals__:
                continue
            if helper is not f and name not in found:
                found[name] = helper
                todo.append(helper)
    return {name: _of_helper(name, found[name], inside) for name in sorted(found)}


def _of_helper(name: str, f: types.FunctionType, inside: Any) -> dict[str, Any]:
    defaults = {**dict(enumerate(f.__defaults__ or ())), **(f.__kwdefaults__ or {})}
    parts = {"function": name, "code": _digest(f.__code__, f.__doc__), "defaults": inside(defaults)}
    return {k: v for k, v in parts.items() if v}


def _globals_of(code: types.CodeType) -> list[str]:
    """The global names that some code reads, in functions within it too."""
    names = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _globals_of(constant)
    return names


_KINDS = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_COROUTINE


def _digest(code: types.CodeType, doc: str | None = None) -> str:
    """Eight bytes of what the code does: instructions, names and constants; no lines, no file, no comment."""
    found = hashlib.sha256()

    def add(code: types.CodeType, doc: str | None) -> None:
        flags = code.co_flags & _KINDS  # not whether it was defined inside another function
        counts = (code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, flags)
        found.update(repr((counts, code.co_code, code.co_names)).encode())
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                first = (
                    constant.co_consts[:1] if constant.co_name.isidentifier() else ()
                )  # no `<genexpr>` has one
                add(constant, first[0] if first and isinstance(first[0], str) else None)
            elif isinstance(constant, frozenset):
                found.update(repr(sorted(constant, key=repr)).encode())
            elif constant != doc or doc is None:
                found.update(repr(constant).encode())

    add(code, doc)
    return found.hexdigest()[:16]


def _of_object(x: Any, inside: Any) -> Any:
    wrapped = getattr(x, "__wrapped__", None)  # a jitted function, say
    if callable(wrapped):
        return inside(wrapped)
    if isinstance(x, types.BuiltinFunctionType | np.ufunc):
        return {"function": f"{getattr(x, '__module__', None) or 'numpy'}.{x.__name__}"}
    kind = f"{type(x).__module__.split('.')[0]}.{type(x).__qualname__}"
    if dataclasses.is_dataclass(x):
        fields = {f.name: inside(getattr(x, f.name, None)) for f in dataclasses.fields(x)}
        return {"type": kind, **_of_methods(type(x)), **fields}
    state = {**_slots(x), **getattr(x, "__dict__", {})}
    does = _of_methods(type(x))
    if state or does:
        return {"type": kind, **does, **{k: inside(v) for k, v in state.items()}}
    return {"type": kind, "repr": re.sub(r" at 0x[0-9a-f]+", "", repr(x))}


def _slots(x: Any) -> dict[str, Any]:
    """The attributes that a class of the user's keeps in slots."""
    if type(x).__module__.split(".")[0] in _LIBRARIES:
        return {}
    named = [vars(base).get("__slots__", ()) for base in type(x).__mro__]
    names = [n for slots in named for n in ([slots] if isinstance(slots, str) else slots)]
    return {n: getattr(x, n) for n in names if not n.startswith("__") and hasattr(x, n)}


def _of_methods(kind: type[Any]) -> dict[str, Any]:
    """What a call of an object runs: the code of its class's own functions; nothing where it cannot be called."""
    call = next((vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base)), None)
    if not isinstance(call, types.FunctionType):
        return {}
    named = {name: f for name, f in vars(kind).items() if not name.startswith("__")} | {"call": call}
    return {
        "code": [_digest(f.__code__, f.__doc__) for f in named.values() if isinstance(f, types.FunctionType)]
    }


def differences(saved: Any, now: Any, path: str = "") -> list[str]:
    """How two fingerprints differ, a line each, in words: where, what was saved, what is there now."""
    if _ABSENT in (saved, now) and None not in (saved, now):
        saved, now = (None if x is _ABSENT else x for x in (saved, now))
    if isinstance(saved, dict) and isinstance(now, dict):
        if saved.get("function") and now.get("function") and saved.get("code") != now.get("code"):
            names = dict.fromkeys([saved["function"], now["function"]])
            what = "of " + " and now ".join(f"`{name}`" for name in names)
            return [f"{path}: the code {what} is another one"]
        if saved.get("call") != now.get("call"):
            return [f"{path}: saved {_short(saved)}, now {_short(now)}"]
        keys = dict.fromkeys([*saved, *now])
        if "helpers" in now and "helpers" not in saved and "function" in saved:
            del keys[
                "helpers"
            ]  # the first version did not follow them, and a new call is a change of the code
        return [
            line
            for key in keys
            for line in differences(saved.get(key, _ABSENT), now.get(key, _ABSENT), _below(path, key))
        ]
    if isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        return [
            line for i, pair in enumerate(zip(saved, now)) for line in differences(*pair, _below(path, i))
        ]
    return [] if saved == now else [f"{path}: saved {_short(saved)}, now {_short(now)}"]


class _Absent:
    """What is not there, which is not None."""

    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _below(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _short(x: Any, most: int = 300) -> str:
    text = _call_text(x)
    return text if len(text) <= most else text[: most - 1] + "…"


def _call_text(x: Any) -> str:
    if isinstance(x, str) and x in _WORDS:
        return x
    if isinstance(x, dict) and x.keys() == {"text"}:
        return repr(x["text"])
    if isinstance(x, dict) and "call" in x:
        arguments = ", ".join(f"{k}={_call_text(v)}" for k, v in x.items() if k != "call")
        return f"{x['call']}({arguments})"
    if isinstance(x, dict) and "function" in x:
        return f"the function {x['function']}"
    if isinstance(x, list):
        return f"[{', '.join(map(_call_text, x))}]"
    return repr(x)
