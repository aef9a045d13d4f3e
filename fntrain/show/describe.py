"""describe: what a transform is made of, what it costs in memory, and which leaves it touches."""

import dataclasses
import html
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from .. import tree
from .._core.typing import Params, PyTree
from .._core.value import closure_name, show
from ..transforms import Transform
from ..transforms.select import parts, split_frozen
from ..transforms.types import call_init, checked


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
            ("  " * r.depth + r.name, r.hyperparameters, _size(r.state_bytes), self._touched(r))
            for r in self.rows
        ]

    def summary(self) -> str:
        """The last line: how much there is to train, and what the state adds to it."""
        ratio = self.state_bytes / self.params_bytes if self.params_bytes else 0.0
        return (
            f"{len(self.leaves)} leaves, {_size(self.params_bytes)} of parameters, {_size(self.state_bytes)} of "
            f"state ({ratio:.1f} x)"
        )

    def _touched(self, row: Row) -> str:
        if len(row.touched) == len(self.leaves):
            return "all"
        return f"{len(row.touched)} of {len(self.leaves)}: {', '.join(row.touched[:3])}" + ", …" * (
            len(row.touched) > 3
        )

    def __str__(self) -> str:
        """The table as text."""
        table = [_HEAD, *self.cells()]
        widths = [max(len(line[i]) for line in table) for i in range(3)]
        lines = [
            f"{name:<{widths[0]}}  {what:<{widths[1]}}  {size:>{widths[2]}}  {leaves}".rstrip()
            for name, what, size, leaves in table
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], self.summary()])

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
      >>> tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-3, mask="kernel"))
      >>> print(ft.tools.describe(tx, {"bias": jnp.zeros(10), "kernel": jnp.zeros((100, 10))}))
      stage                     hyperparameters                          state  leaves
      ----------------------------------------------------------------------------------------
      clip_by_norm              max_norm=1.0                               8 B  all
      adamw                     mask='kernel'                           8.1 kB  all
        scale_by_adam           b1=0.9, b2=0.999, eps=1e-08             8.1 kB  all
        add_weight_decay        rate=0.0001, mask='kernel' (decoupled)     0 B  1 of 2: kernel
        scale_by_learning_rate  learning_rate=0.001                       12 B  all
      2 leaves, 4.0 kB of parameters, 8.1 kB of state (2.0 x)
    """
    tx = checked(tx)
    trained, _ = tree.split(params)
    return Description(
        rows=tuple(_rows(tx, trained)),
        leaves=tuple(tree.paths(trained)),
        params_bytes=tree.nbytes(trained),
        state_bytes=_state_bytes(tx, trained),
    )


def _rows(
    tx: optax.GradientTransformation,
    params: PyTree,
    name: str = "",
    depth: int = 0,
    preconditioned: bool = False,
) -> list[Row]:
    own, what = _factory(tx), _hyperparameters(tx)
    if own == "add_weight_decay":
        what += " (decoupled)" if preconditioned else " (L2)"
    stages = dict(tx.stages) if isinstance(tx, Transform) else {}
    shown = own != "chain" or not stages or bool(name)  # a bare chain says nothing that its stages do not
    inside, touched = [], set()
    for (key, stage), part in zip(stages.items(), _seen(tx, params)):
        if _factory(stage) == "_in_float32":
            stage = stage.call.arguments["tx"]  # type: ignore[attr-defined]
        rows = _rows(stage, part, "" if key == "inner" else key, depth + shown, preconditioned)
        inside += rows
        touched.update(*(row.touched for row in rows))
        if own != "by_path":  # whose groups do not follow one another
            preconditioned = preconditioned or _preconditions(stage)
    if not shown:
        return inside
    if not stages:
        touched = _acts_on(tx, params)
    title = own if name in ("", own) else f"{name}: {own}"
    paths = tuple(path for path in tree.paths(params) if path in touched)
    return [Row(title, depth, what, _state_bytes(tx, params), paths), *inside]


def _factory(tx: optax.GradientTransformation) -> str:
    if isinstance(tx, Transform) and tx.call is not None:
        return tx.call.name
    return closure_name(tx) or type(tx).__name__


def _preconditions(tx: optax.GradientTransformation) -> bool:
    """Whether the updates behind `tx` are no longer a gradient, so that decay added to them is decoupled."""
    name = _factory(tx)
    if (name.startswith("scale_by_") and name != "scale_by_learning_rate") or name in (
        "momentum",
        "nesterov",
        "trace",
    ):
        return True
    return isinstance(tx, Transform) and any(map(_preconditions, tx.stages.values()))


def _seen(tx: optax.GradientTransformation, params: PyTree) -> list[PyTree]:
    """The parameters that each stage of `tx` sees."""
    stages = tx.stages if isinstance(tx, Transform) else {}
    arguments = tx.call.arguments if isinstance(tx, Transform) and tx.call else {}
    if _factory(tx) == "by_path":
        return parts(arguments["groups"], params)
    if _factory(tx) == "freeze":
        regex = arguments["regex"]
        return [split_frozen([regex] if isinstance(regex, str) else regex, params)[1]]
    return [params] * len(stages)


def _acts_on(tx: optax.GradientTransformation, params: PyTree) -> set[str]:
    """The paths that a transform without stages acts on."""
    paths = tree.paths(params)
    if _factory(tx) == "add_weight_decay":
        mask = tree.mask_leaves(tx.call.arguments["mask"], params)  # type: ignore[attr-defined]
        return {path for path, m in zip(paths, mask) if m}
    return set(paths)


def _hyperparameters(tx: optax.GradientTransformation) -> str:
    """The arguments of a call as text, but for transforms, which have rows of their own."""
    if not isinstance(tx, Transform) or tx.call is None:
        return "(optax)"
    arguments = {k: v for k, v in tx.call.arguments.items() if v is not None and not _holds_transform(v)}
    named = tx.stages and "inner" not in tx.stages  # an optimizer, whose stages say the rest
    shown = tx.call.shown() if named else {k: show(v) for k, v in arguments.items()}
    return ", ".join(f"{k}={v}" for k, v in shown.items() if k in arguments)


def _holds_transform(x: Any) -> bool:
    if isinstance(x, optax.GradientTransformation):
        return True
    values = x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple | list) else ()
    return any(map(_holds_transform, values))


def _state_bytes(tx: optax.GradientTransformation, params: PyTree) -> int:
    return tree.nbytes(jax.eval_shape(lambda p: call_init(tx, p), params))


def _size(n: float) -> str:
    """Bytes as text: `8.1 kB`."""
    if n < 1000:
        return f"{n} B"
    for unit in ("kB", "MB", "GB"):
        n /= 1000
        if n < 1000:
            return f"{n:.1f} {unit}"
    return f"{n / 1000:.1f} TB"
