"""Arrays found, by path, as the tree that is wanted, or the table of what differs."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.errors import (
    CheckpointMismatchError,
    ConfigError,
)
from .._core.typing import PyTree
from ..step.state import closed, opened
from .leaves import can_cast, converted, kind, placed, saved_kind


def fitted(
    like: PyTree,
    found: Mapping[str, tuple[np.ndarray, Mapping[str, Any]]],
    what: str,
    partial: bool = False,
    cast: bool = False,
) -> PyTree:
    """The arrays found, by path, as the tree `like`; `what` says in a message where they were found."""
    fields = opened(like)
    wanted = dict(tree.items(fields))
    if len(wanted) != len(jax.tree.leaves(fields)):
        raise ConfigError("`like` must not have two leaves of the same path")
    kinds = {path: kind(path, leaf) for path, leaf in wanted.items()}
    rows = _differences({p: saved_kind(info) for p, (_, info) in found.items()}, kinds, partial, cast)
    if rows:
        raise CheckpointMismatchError(f"{what} does not fit `like`:\n" + _table(rows))
    leaves = []
    for path, leaf in wanted.items():
        if path in found:
            host, info = found[path]
            leaf = placed(converted(path, host, kinds[path][0]), info.get("key"), leaf)
        leaves.append(leaf)
    return closed(like, jax.tree.unflatten(jax.tree.structure(fields), leaves))


def _differences(
    saved: Mapping[str, tuple[Any, ...]], wanted: Mapping[str, tuple[Any, ...]], partial: bool, cast: bool
) -> list[tuple[Any, ...]]:
    """Rows (path, saved, wanted, problem) for each leaf that does not fit."""
    rows = []
    for path in dict.fromkeys([*wanted, *saved]):
        if path not in saved or path not in wanted:
            problem = "missing from the checkpoint" if path in wanted else "unexpected, not in `like`"
        elif saved[path][1] != wanted[path][1]:
            problem = "shape"
        elif saved[path][0] != wanted[path][0] and not (cast and can_cast(saved[path][0], wanted[path][0])):
            problem = "dtype"
        else:
            continue
        rows.append((path, _show(saved.get(path)), _show(wanted.get(path)), problem))
    if partial and any(path in saved for path in wanted):
        rows = [row for row in rows if row[3] in ("shape", "dtype")]
    return rows


def _show(kind: tuple[Any, ...] | None) -> str:
    return "-" if kind is None else f"{kind[0]}{list(kind[1])}"


def _table(rows: list[tuple[Any, ...]], most: int = 40) -> str:
    shown = [("path", "saved", "wanted", "problem"), *((_short(row[0]), *row[1:]) for row in rows[:most])]
    widths = [max(len(row[i]) for row in shown) for i in range(3)]
    lines = ["  " + "  ".join([*map(str.ljust, row, widths), row[3]]) for row in shown]
    if len(rows) > most:
        lines.append(f"  and {len(rows) - most} more")
    problems = {row[3].partition(" ")[0].rstrip(",") for row in rows}
    if {"missing", "unexpected"} <= problems:
        lines.append(
            "rename={saved: wanted} renames saved leaves; partial=True restores what both sides have"
        )
    elif problems & {"missing", "unexpected"}:
        lines.append("partial=True restores what both sides have")
    if any(row[3] == "dtype" for row in rows):
        lines.append("cast=True converts between floats and between integers")
    return "\n".join(lines)


def _short(path: str, most: int = 60) -> str:
    path = repr(path)[1:-1]
    return path if len(path) <= most else "…" + path[-most + 1 :]
