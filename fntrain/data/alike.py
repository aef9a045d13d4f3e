"""Examples that are like the first, stacked a column at a time: a value is asked only what may differ between rows."""

import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

import jax
import numpy as np

from .._core.typing import Batch, PyTree
from .tensors import at, column

# Larger tensors torch stacks with its threads, which wait long for cores while a step has them.
_BY_ONE_THREAD = 2**15
_NUMBERS = {kind: np.dtype(kind) for kind in (bool, int, float, complex)}


def together(examples: Sequence[Any], form: PyTree, kinds: PyTree) -> Batch | None:
    """The examples as a tree of arrays of their own `[len(examples), …]`, or None where they may be unlike.

    It never takes what would be refused if each were looked at; whether and where one is unlike, that look says.

    Args:
      examples: one at least.
      form: shape and dtype of each leaf of the first example.
      kinds: its types, in the same structure.
    """
    forms, structure = jax.tree.flatten(form)
    try:
        columns = zip(*map(structure.flatten_up_to, examples))
        # That the types are the first's says of a list too whether it is a leaf or has leaves.
        arrays = map(_stacked, columns, structure.flatten_up_to(kinds), forms)
        return jax.tree.unflatten(structure, list(arrays))
    except Exception:  # whatever a library raises where two do not go together
        return None


def _stacked(values: tuple[Any, ...], kind: type, like: jax.ShapeDtypeStruct) -> np.ndarray:
    """The values of a column, all of one type.

    Raises:
      Exception: of some kind, if one may have another type, shape or dtype.
    """
    _same({kind}, map(type, values))
    torch: Any = sys.modules.get("torch")  # who has a tensor has imported it
    if kind is list:
        kind = _inmost(values)
    if kind is like.dtype.type or kind in _NUMBERS:
        _same({like.dtype}, [_NUMBERS.get(kind, like.dtype)])
        array = np.array(values, like.dtype)
    elif kind in (np.ndarray, np.memmap):
        array = _joined(values, like)
    elif torch is not None and kind is torch.Tensor:
        _same({values[0].dtype}, (x.dtype for x in values))
        if like.size <= _BY_ONE_THREAD:
            array = at(column(torch.stack(values), "examples"))
        else:
            array = _joined([at(column(x, "examples")) for x in values], like)
    else:
        raise ValueError(f"a {kind.__name__} is looked at by itself")
    _same({(len(values), *like.shape, like.dtype)}, [(*array.shape, array.dtype)])
    return array


def _joined(arrays: Sequence[np.ndarray], like: jax.ShapeDtypeStruct) -> np.ndarray:
    """`np.stack`, which takes longer for the views it makes than for the copies."""
    if not like.shape:
        _same({like.dtype}, (x.dtype for x in arrays))
        return np.array(arrays)
    _same({like.shape}, (x.shape for x in arrays))
    out = np.empty((len(arrays), *like.shape), like.dtype)
    rows, *rest = like.shape
    np.concatenate(arrays, out=out.reshape(len(arrays) * rows, *rest), casting="no")
    return out


def _inmost(values: Any) -> type:
    """The one type of the numbers inside of lists, or of lists of them, all equally deep."""
    kind: type = list
    while kind is list:
        values = list(chain.from_iterable(values))
        kind = type(values[0])
        _same({kind}, map(type, values))
    return kind


def _same(wanted: set[Any], got: Any) -> None:
    if set(got) != wanted:
        raise ValueError("unlike")
