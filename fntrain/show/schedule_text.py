"""Schedules read back from the text of a call, such as a run's `config.json` holds; nothing is executed."""

import ast
from typing import Any

from .. import schedules
from .._core.errors import ConfigError
from ..schedules import Schedule


def schedules_in(text: str) -> list[Schedule]:
    """The outermost schedules in a repr, in order: of a schedule, of a transform, or of a whole chain.

    A repr is the call that made the value, so the calls of `fntrain.schedules` in it can be made again. Only
    those are, with numbers, lists, tuples, dicts and other such calls as arguments; a schedule that is a function
    of the user's own has only its name there, and is left out.

    Args:
      text: the repr.

    Returns:
      Schedules, equal ones once.

    Raises:
      ConfigError: if the text is no Python expression.

    Examples:
      >>> schedules_in("sgd(learning_rate=warmup(schedule=cosine(start=0.1, steps=90), steps=10), momentum=0.9)")
      [warmup(schedule=cosine(start=0.1, steps=90), steps=10)]
    """
    try:
        root = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        raise ConfigError(f"`text` must be the repr of a transform or schedule, got {text!r}") from None
    found: list[Schedule] = []

    def look(node: ast.AST) -> None:
        schedule = _made(node)
        if schedule is None:
            for child in ast.iter_child_nodes(node):
                look(child)
        elif schedule not in found:
            found.append(schedule)

    look(root)
    return found


def _made(node: ast.AST) -> Schedule | None:
    """The schedule that a call makes; None if it is another call, or one that cannot be made from text."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id.startswith("_"):
        return None
    make = getattr(schedules, node.func.id, None)
    if (
        not callable(make)
        or isinstance(make, type)
        or not (getattr(make, "__module__", None) or "").startswith(f"{schedules.__name__}.")
    ):
        return None
    try:
        made = make(*map(_value, node.args), **{k.arg or "": _value(k.value) for k in node.keywords})
    except (ValueError, TypeError):
        return None
    return made if isinstance(made, Schedule) else None


def _value(node: ast.AST) -> Any:
    """A literal, or a container of literals and schedules."""
    if isinstance(node, ast.List):
        return [_value(x) for x in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(x) for x in node.elts)
    made = _made(node)
    return ast.literal_eval(node) if made is None else made  # type: ignore[arg-type]
