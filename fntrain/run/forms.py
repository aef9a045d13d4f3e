"""What a run's steps were compiled for, and why one was compiled again."""

import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core.errors import ConfigError
from ..data.feed import Piece
from ..step import members
from ..step.packed import Packed
from ..step.state import TrainState

Form = dict[str, str]


class Forms:
    """What the steps of a run were compiled for, by how many a dispatch takes and of which size.

    Args:
      then: what to do when one is compiled again; another size of batches that was to come is no accident.

    Attributes:
      found: why that was, a line each.
    """

    def __init__(self, then: Literal["warn", "raise", "ignore"]):
        self.then = then
        self.found: list[str] = []
        self._known: dict[tuple[int, int, int | None], Form] = {}

    def __contains__(self, piece: Piece) -> bool:
        return any((piece.steps, piece.rows) == known[:2] for known in self._known)

    def compiled(self, state: TrainState, metrics: Packed, piece: Piece, step: int) -> None:
        """Note what a dispatch was compiled for, and say why it was, if it was before.

        Raises:
          ConfigError: in that case, with `then="raise"`.
        """
        now = form_of(state=state, metrics=metrics, batch=piece.batch, weight=piece.weight)
        # That members of a population have left is no accident.
        kind = piece.steps, piece.rows, members.count(state)
        before, self._known[kind] = self._known.get(kind), now
        if before is None:
            return
        lines = changes(before, now) or ["no leaf of state or batch: a setting of JAX is another, say"]
        more = f", and {len(lines) - 3} more" if len(lines) > 3 else ""
        said = f"the step was compiled again at step {step}: {'; '.join(lines[:3])}{more}"
        self.found.append(said)
        if self.then == "raise":
            raise ConfigError(f"`recompile`: {said}")
        if self.then == "warn":
            warnings.warn(f'{said}; `recompile="ignore"` takes that in silence', RuntimeWarning, stacklevel=7)


def form_of(**arguments: Any) -> Form:
    """What a program is compiled for, by path: of each leaf its dtype and shape, whether it is weak, where it lies."""
    return {path: _leaf(x) for path, x in tree.items(arguments)}


def _leaf(x: Any) -> str:
    if not isinstance(x, jax.Array) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return f"{getattr(x, 'dtype', type(x).__name__)}{list(np.shape(x))}"
    weak = "weak " if x.aval.weak_type else ""  # type: ignore[attr-defined]
    where = ", ".join(map(str, x.sharding.device_set)) if len(x.sharding.device_set) == 1 else x.sharding
    kept = "committed to " if x.committed else ""  # type: ignore[attr-defined]
    return f"{weak}{x.dtype}{list(x.shape)} on {kept}{where}"


def changes(before: Form, now: Form) -> list[str]:
    """Which leaves differ, from what to what, a line each."""
    lines = []
    for path in dict.fromkeys([*before, *now]):
        was, new = before.get(path, "nothing"), now.get(path, "nothing")
        if was != new:
            lines.append(f"`{path}` was {_short(was, new)} and is {_short(new, was)}")
    return lines


def _short(form: str, other: str) -> str:
    """Without what both have: a sharding is long."""
    what, _, where = form.partition(" on ")
    return what if where == other.partition(" on ")[2] else form
