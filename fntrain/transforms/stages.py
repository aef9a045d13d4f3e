"""The one walk over what a transform is made of."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from .. import tree
from .._core.typing import PyTree
from .accumulate import MultiSteps
from .types import Transform


class Stage(NamedTuple):
    """A transform somewhere inside another, or that one itself.

    Attributes:
      name: its name in the state of the one around it, or the regex of its group; its own for the outermost.
      tx: the transform.
      around: those around it, outermost first.
      groups: the regexes of the groups it is in, innermost first.
      rescaled: whether what it gets is another direction than the gradient; None where a stage before it does not
        say.
      params: the parameters it sees, None in place of the others.
    """

    name: str
    tx: Transform
    around: tuple[Transform, ...]
    groups: tuple[str, ...]
    rescaled: bool | None
    params: PyTree


def walk(tx: Transform, params: PyTree) -> Iterator[Stage]:
    """Every stage of a transform, itself first, in the order in which they act.

    Args:
      tx: a Transform.
      params: the parameters it is for, or their shapes.
    """
    yield from _walk(Stage(tx.name, tx, (), (), False, params))


def _walk(stage: Stage) -> Iterator[Stage]:
    yield stage
    tx, rescaled = stage.tx, stage.rescaled
    for name, inner in tx.stages.items():
        groups = (name, *stage.groups) if tx.side_by_side else stage.groups
        seen = tx.seen(name, stage.params)
        yield from _walk(Stage(name, inner, (*stage.around, tx), groups, rescaled, seen))
        if not tx.side_by_side:  # whose stages do not follow one another
            rescaled = _or(rescaled, rescales(inner, seen))


def rescales(tx: Transform, params: PyTree) -> bool | None:
    """Whether a transform's updates are another direction than the gradient it is given; None if nobody knows.

    One that does not say, and keeps a state of the parameters' shapes, is taken to be made of it.
    """
    if tx.rescales is not None:
        return tx.rescales
    if tx.stages:
        found: bool | None = False
        for name, stage in tx.stages.items():
            found = _or(found, rescales(stage, tx.seen(name, params)))
        return found
    shapes = dict(tree.items(params))
    for path, x in tree.items(jax.eval_shape(tx.init, params)):
        parts = path.split("/")
        suffixes = ("/".join(parts[i:]) for i in range(1, len(parts)))
        if any(own in shapes and shapes[own].shape == x.shape and own for own in suffixes):
            return True
    return None


def _or(a: bool | None, b: bool | None) -> bool | None:
    return True if True in (a, b) else None if None in (a, b) else False


def accumulated(tx: Transform) -> Any:
    """How many batches an update takes: a number, or its schedule."""
    if isinstance(tx, MultiSteps):
        return tx.call.arguments["every_k_schedule"]  # type: ignore[union-attr]
    inner = [accumulated(stage) for stage in tx.stages.values()]
    return next((every for every in inner if every != 1), 1)
