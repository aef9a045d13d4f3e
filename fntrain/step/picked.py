"""A batch as rows of arrays that are on the device already: the program that takes it gathers it itself."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from .._core.typing import Batch, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Picked:
    """Rows of arrays.

    Attributes:
      arrays: a tree of arrays `[N, …]`.
      rows: int32 `[B]`, or `[K, B]` for K batches; N is a row of zeros, as padding is.
    """

    arrays: PyTree
    rows: Any


def apart(batches: Batch) -> tuple[PyTree, Any]:
    """What is shared by K stacked batches, and what each has of its own, along a leading axis."""
    return (batches.arrays, batches.rows) if isinstance(batches, Picked) else (None, batches)


def together(shared: PyTree, own: Any) -> Batch:
    """One of the batches that `apart` took apart, gathered."""
    return own if shared is None else gathered(Picked(shared, own))


def gathered(batch: Batch) -> Batch:
    """The batch itself, as an array for each leaf."""
    if not isinstance(batch, Picked):
        return batch
    return jax.tree.map(lambda x: jnp.take(x, batch.rows, axis=0, mode="fill", fill_value=0), batch.arrays)
