"""describe: what a transform is made of, what it costs in memory, and which leaves it touches."""

import dataclasses
import html
import itertools
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from .. import tree
from .._core.errors import ConfigError
from .._core.typing import Params, PyTree
from .._core.value import show
from ..transforms.adapt import Adapted, adapt
from ..transforms.decay import add_weight_decay
from ..transforms.quantize import quantize_state
from ..transforms.stages import Stage, walk
from ..transforms.types import Transform
from .text import bytes_text


class Row(NamedTuple):
    """One stage of a transform."""

    name: str  # its name in the chain's state, or the regex of its group
    depth: int  # how deep it is nested
    hyperparameters: str
    state_bytes: int
    touched: tuple[str, ...]  # paths of the leaves it acts on


@dataclasses.dataclass(frozen=True)
class Description:
    """A table of stages. `str` gives it as text, a notebook shows it as HTML.

    Attributes:
      rows: a Row for each stage, in order, outer ones before those they are made of.
      leaves: the paths of all parameters that are trained.
      params_bytes: the bytes of those parameters.
      state_bytes: the bytes of the whole state.
    """

    rows: tuple[Row, ...]
    leaves: tuple[str, ...]
    params_bytes: int
    state_bytes: int

    def cells(self) -> list[tuple[str, str, str, str]]:
        """The table's text, cell by cell, without its head."""
        return [
            ("  " * r.depth + r.name, r.hyperparameters, bytes_text(r.state_bytes), self._touched(r))
            for r in self.rows
        ]

    def summary(self) -> str:
        """The last line: how much there is to train, and what the state adds to it."""
        ratio = self.state_bytes / self.params_bytes if self.params_bytes else 0.0
        return (
            f"{len(self.leaves)} leaves, {bytes_text(self.params_bytes)} of parameters, "
            f"{bytes_text(self.state_bytes)} of state ({ratio:.1f} x)"
        )

    def _touched(self, row: Row) -> str:
        if len(row.touched) == len(self.leaves):
            return "all"
        shown = _patterns(row.touched, self.leaves)
        return f"{len(row.touched)} of {len(self.leaves)}: {', '.join(shown[:3])}" + ", …" * (len(shown) > 3)

    def __str__(self) -> str:
        """The table as text, as wide as the terminal if words allow it: long cells have several lines."""
        table = [_HEAD, *self.cells()]
        names, whats, sizes, leaves = (max(len(line[i]) for line in table) for i in range(4))
        room = shutil.get_terminal_size((100, 24)).columns - names - sizes - 6  # for what can be broken
        leaves = min(leaves, max(_NARROWEST, room - whats))
        whats = min(whats, max(_NARROWEST, room - leaves))
        rows = []
        for name, what, size, touched in table:
            broken = itertools.zip_longest(
                [name], _lines(what, whats), [size], _lines(touched, leaves), fillvalue=""
            )
            rows.append([f"{n:<{names}}  {w:<{whats}}  {s:>{sizes}}  {t}".rstrip() for n, w, s, t in broken])
        head, *body = itertools.chain.from_iterable(rows)
        return "\n".join([head, "-" * max(map(len, [head, *body])), *body, self.summary()])

    def _repr_html_(self) -> str:
        """The table for a notebook."""
        left, right = "style='text-align:left;white-space:pre'", "style='text-align:right'"
        head = "".join(f"<th {left}>{h}</th>" for h in _HEAD)
        body = "".join(
            "<tr>"
            + "".join(
                f"<td {right if i == 2 else left}>{html.escape(cell)}</td>" for i, cell in enumerate(cells)
            )
            + "</tr>"
            for cells in self.cells()
        )
        caption = f"<caption>{html.escape(self.summary())}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_HEAD = ("stage", "hyperparameters", "state", "leaves")

_NARROWEST = 24  # characters that a cell that is broken into lines has at least


def _lines(cell: str, width: int) -> list[str]:
    """A cell in lines, broken behind spaces and brackets."""
    lines = [""]
    for piece in re.findall(r".+?(?:[ (]+|$)", cell):
        if lines[-1].strip() and len(lines[-1] + piece.rstrip()) > width:
            lines.append("  ")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _patterns(touched: Sequence[str], leaves: Sequence[str]) -> list[str]:
    """Paths in short: those that differ in their middle only are one with stars, if it is true of no other leaf."""
    alike: dict[tuple[int, str], list[list[str]]] = {}
    for path in touched:
        names = path.split("/")
        alike.setdefault((len(names), names[-1]), []).append(names)
    shown = []
    for group in alike.values():
        pattern = [names[0] if len({*names}) == 1 else "*" for names in zip(*group)]
        matched = sum(_matches(pattern, leaf.split("/")) for leaf in leaves)
        shown += ["/".join(pattern)] if matched == len(group) else ["/".join(names) for names in group]
    return shown


def _matches(pattern: Sequence[str], names: Sequence[str]) -> bool:
    return len(pattern) == len(names) and all(p in ("*", n) for p, n in zip(pattern, names))


def describe(tx: optax.GradientTransformation, params: Params) -> Description:
    """List the stages of a transform with their hyperparameters, state and leaves.

    Nothing is allocated: the state's size comes from its shapes.

    Args:
      tx: a transform, ours or optax's (whose insides are not known).
      params: the parameters it is for, or their shapes (`jax.ShapeDtypeStruct`).

    Returns:
      A Description: print it, or let a notebook show it.

    Raises:
      ConfigError: if `tx` is no transform, or a mask or regex in it does not fit the parameters.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.by_path({"bias": ft.optimizers.sgd(1e-2), "kernel": ft.optimizers.adam(1e-3)})
      >>> print(ft.tools.describe(tx, {"bias": jnp.zeros(10), "kernel": jnp.zeros((100, 10))}))
      stage                       hyperparameters               state  leaves
      -------------------------------------------------------------------------------
      by_path                                                  8.0 kB  all
        bias: sgd                                                12 B  1 of 2: bias
          scale_by_learning_rate  learning_rate=0.01             12 B  1 of 2: bias
        kernel: adam                                           8.0 kB  1 of 2: kernel
          scale_by_adam           b1=0.9, b2=0.999, eps=1e-08  8.0 kB  1 of 2: kernel
          scale_by_learning_rate  learning_rate=0.001            12 B  1 of 2: kernel
      2 leaves, 4.0 kB of parameters, 8.0 kB of state (2.0 x)
    """
    adapted = adapt(tx)
    trained, _ = tree.split(params)
    return Description(
        rows=_rows(adapted, trained),
        leaves=tuple(tree.paths(trained)),
        params_bytes=tree.nbytes(trained),
        state_bytes=_state_bytes(adapted, trained),
    )


def _rows(tx: Transform, params: PyTree) -> tuple[Row, ...]:
    stages = list(walk(tx, params))
    shown = [stage for stage in stages if _is_shown(stage)]
    rows = []
    for stage in shown:
        depth = sum(any(stage.around[i] is other.tx for other in shown) for i in range(len(stage.around)))
        inside = [s for s in stages if s is stage or stage.tx in s.around]
        touched = set().union(*(_acts_on(s) for s in inside if not s.tx.stages))
        paths = tuple(path for path in tree.paths(stage.params) if path in touched)
        rows.append(Row(_title(stage), depth, _hyperparameters(stage), _bytes_in_place(stage), paths))
    return tuple(rows)


def _is_shown(stage: Stage) -> bool:
    """A bare chain says nothing that its stages do not."""
    return stage.tx.name != "chain" or not stage.tx.stages or bool(stage.around)


def _title(stage: Stage) -> str:
    own, name = stage.tx.name, stage.name
    if _is_part(stage.tx):
        return name
    return own if name in ("inner", own) else f"{name}: {own}"


def _is_part(tx: Transform) -> bool:
    """Whether it is a part that an optimizer is made of and has no call of its own: its stages say what it is."""
    return tx.call is None and bool(tx.stages) and not isinstance(tx, Adapted)


def _acts_on(stage: Stage) -> set[str]:
    """The paths that a transform without stages acts on."""
    paths = tree.paths(stage.params)
    if stage.tx.made_by(add_weight_decay):
        mask = tree.mask_leaves(stage.tx.call.arguments["mask"], stage.params)  # type: ignore[union-attr]
        return {path for path, m in zip(paths, mask) if m}
    return set(paths)


KINDS: dict[bool | None, str] = {
    True: "decoupled",
    False: "L2",
    None: "decoupled or L2: what stands before it does not say",
}
"""What weight decay is, by whether what it is added to is another direction than the gradient."""


def _hyperparameters(stage: Stage) -> str:
    """The arguments of a call as text, but for transforms, which have rows of their own."""
    tx = stage.tx
    if _is_part(tx):
        return ""
    if isinstance(tx, Adapted) or tx.call is None:
        return "(optax)"
    arguments = {k: v for k, v in tx.call.arguments.items() if v is not None and not _holds_transform(v)}
    named = tx.stages and "inner" not in tx.stages  # an optimizer, whose stages say the rest
    shown = tx.call.shown() if named else {k: show(v) for k, v in arguments.items()}
    text = ", ".join(f"{k}={v}" for k, v in shown.items() if k in arguments)
    return f"{text} ({KINDS[stage.rescaled]})" if tx.made_by(add_weight_decay) else text


def _holds_transform(x: Any) -> bool:
    if isinstance(x, optax.GradientTransformation):
        return True
    values = x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple | list) else ()
    return any(map(_holds_transform, values))


def _bytes_in_place(stage: Stage) -> int:
    """The bytes of a stage's state, as it is kept where it stands: in eight bits, inside `quantize_state`."""
    outer = next((tx for tx in reversed(stage.around) if tx.made_by(quantize_state)), None)
    if outer is None:
        return _state_bytes(stage.tx, stage.params)
    try:
        coded = outer.call.again({**outer.call.arguments, "tx": stage.tx})  # type: ignore[union-attr]
        return _state_bytes(coded, stage.params) - np.dtype(np.int32).itemsize  # without the count of updates
    except ConfigError:  # no moments in this one
        return _state_bytes(stage.tx, stage.params)


def _state_bytes(tx: Transform, params: PyTree) -> int:
    return tree.nbytes(jax.eval_shape(tx.init, params))
