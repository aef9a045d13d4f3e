"""In what runs differ, in the words of who wrote them: made of the fingerprints in their configurations."""

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import losses, metrics, optimizers, schedules, transforms
from .._core.fingerprint import fingerprint

Row = tuple[str, list[str]]

OF_THE_PROCESS = (
    "status",
    "steps_per_call",
    "overridden",
    "task",
    "parts",
    "devices",
    "processes",
    "jax",
    "cut",
    "examples",
    "better",
    "prefixes",
)
"""Entries of `config.json` that say how a run went, or where, or follow from others; the identity has the task too."""

_ABSENT = object()
_OUTER = ("partial", "keywords", "cells", "leaves", "method")  # of which no name is said: it is nobody's word
_SILENT = ("(order)", "call", "function", "type")


def differences(configs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The arguments that are not the same in all runs, under the names that they were given by.

    Args:
      configs: what `config.json` says, of each.

    Returns:
      Rows of a name and a text for each run; where a run has no such argument, it is `–`.

    Examples:
      >>> one = {"identity": {"task": {"tx": {"call": "sgd", "learning_rate": 0.1, "momentum": 0.0}}}}
      >>> two = {"identity": {"task": {"tx": {"call": "adamw", "learning_rate": 0.1, "b1": 0.9}}}}
      >>> differences([one, two])
      [('tx', ['sgd(learning_rate=0.1)', 'adamw(learning_rate=0.1)'])]
    """
    found: dict[tuple[str, ...], Row] = {}
    for name, values in _rows("", [_arguments(config) for config in configs]):
        texts = [_text(value) for value in values]
        row = name, texts if len(set(texts)) > 1 else [str(value) for value in values]
        said = (name.rpartition(".")[2], *row[1])  # the data has the batch size and the seed again
        if said not in found or name.count(".") < found[said][0].count("."):
            found[said] = row
    return list(found.values())


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration by the names of arguments."""
    identity = dict(config.get("identity") or {})
    best = config.get("best")
    task = identity.pop("task", None)
    given = {name: x for name, x in config.items() if name not in (*OF_THE_PROCESS, "identity", "best")}
    given |= {"keep_best": ", ".join(map(str, best.values()))} if isinstance(best, dict) else {}
    return {**given, **identity, **(task if isinstance(task, dict) else {"task": task})}


def _rows(name: str, values: list[Any]) -> Iterable[tuple[str, list[Any]]]:
    """What differs below a name: as far down as the values are of one form."""
    first = values[0]
    if all(value == first for value in values):
        return
    chains = [_chained(value) for value in values]
    if None not in chains and any(isinstance(x, dict) and x.get("call") == "chain" for x in values):
        yield from _elements(name, chains)  # type: ignore[arg-type]
    elif all(isinstance(value, dict) for value in values) and _one_form(values):
        yield from _entries(name, values)
    elif all(isinstance(value, list) for value in values) and any(map(_named, values)):
        yield from _elements(name, values)
    else:
        yield name, values


def _one_form(values: list[dict[str, Any]]) -> bool:
    """Whether all are calls of one function, or one function, or objects of one type, or plain entries."""
    return all(len({str(value.get(key)) for value in values}) == 1 for key in ("call", "function", "type"))


def _entries(name: str, values: list[dict[str, Any]]) -> Iterable[tuple[str, list[Any]]]:
    """What differs between calls of one function, or the like, by argument."""
    known = _defaults(values[0].get("call"))
    for key in dict.fromkeys(key for value in values for key in value if key not in _SILENT):
        each = [value.get(key, known.get(key, _ABSENT)) for value in values]
        if key == "code" and len({str(x) for x in each}) > 1:
            called = str(values[0].get("function", "<"))
            yield f"code of {name if '<' in called else called}", [str(x)[:8] for x in each]
        elif key == "defaults" or key == "args":
            yield from _rows(_below(name, key), each)
        elif key == "helpers":
            yield from _rows(name, [{} if x is _ABSENT else x for x in each])
        else:
            yield from _rows(name if key in _OUTER else _below(name, key), each)


def _elements(name: str, lists: list[list[Any]]) -> Iterable[tuple[str, list[Any]]]:
    """What differs between lists, whose elements go by what they are called; one that comes again is numbered."""
    each: list[dict[str, Any]] = []
    for elements in lists:
        found: dict[str, Any] = {}
        for i, x in enumerate(elements):
            called = x.get("call") if isinstance(x, dict) else None
            key = str(i) if called is None else called
            n = sum(1 for other in found if other.partition(" ")[0] == key)
            found[f"{key} {n + 1}" if n else key] = x
        each.append(found)
    for key in dict.fromkeys(key for found in each for key in found):
        yield from _rows(_below(name, key), [found.get(key, _ABSENT) for found in each])


def _chained(x: Any) -> list[Any] | None:
    """The stages of a chain, or of one transform, which is a chain of itself."""
    if not isinstance(x, dict) or "call" not in x:
        return None
    return x.get("txs", []) if x["call"] == "chain" else [x]


def _named(x: Any) -> bool:
    return isinstance(x, list) and any(isinstance(element, dict) for element in x)


def _below(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


@functools.cache
def _defaults(call: str | None) -> dict[str, Any]:
    """The defaults of a function of the library, as fingerprints; nothing of a function of somebody else's."""
    for module in (optimizers, transforms, schedules, metrics, losses):
        make = getattr(module, call or "", None)
        if inspect.isfunction(make):
            parameters = inspect.signature(make).parameters.values()
            return {p.name: fingerprint(p.default) for p in parameters if p.default is not p.empty}
    return {}


def _text(x: Any) -> str:
    """A value as somebody would write it: a call with what is not at its default, a function by its name."""
    if x is _ABSENT:
        return "–"
    if isinstance(x, list):
        return f"[{', '.join(map(_text, x))}]"
    if not isinstance(x, dict):
        return str(x)
    if x.keys() == {"text"}:
        return repr(x["text"])
    if "partial" in x:
        return f"{_text(x['partial'])}({_listed(x.get('args', []), x.get('keywords', {}))})"
    if "method" in x or "function" in x:
        return _text(x["method"]) if "method" in x else str(x["function"]).rpartition(".")[2]
    if x.get("call") == "chain":
        return f"chain({', '.join(map(_text, x.get('txs', [])))})"
    called = x.get("call") or str(x.get("type", "")).rpartition(".")[2]
    known = _defaults(x.get("call"))
    rest = {k: v for k, v in x.items() if k not in (*_SILENT, "code") and known.get(k, None) != v}
    return f"{called}({_listed([], rest)})" if called else f"{{{_listed([], rest)}}}"


def _listed(args: Sequence[Any], keywords: Mapping[str, Any]) -> str:
    return ", ".join([*map(_text, args), *(f"{name}={_text(x)}" for name, x in keywords.items())])
