"""A batch as a place in arrays that are on the device already: the program that takes it gathers it itself."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from .._core.typing import Batch, PyTree
from ..sharding import explicit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Picked:
    """Rows of arrays, in an order that lies on the device too.

    Attributes:
      arrays: a tree of arrays `[N, …]`.
      order: int32 `[N]`, the rows as an epoch takes them.
      offsets: int32 `[B]`, places in the order behind a batch's first; what is beyond the last is a row of zeros, as
        padding is. Where it is split over a mesh, so is the batch.
      start: int32, a batch's first place in the order; or `[K]`, for K batches.
    """

    arrays: PyTree
    order: Any
    offsets: Any
    start: Any


def apart(batches: Batch) -> tuple[PyTree, Any]:
    """What is shared by K stacked batches, and what each has of its own, along a leading axis."""
    if not isinstance(batches, Picked):
        return None, batches
    return (batches.arrays, batches.order, batches.offsets), batches.start


def together(shared: Any, own: Any) -> Batch:
    """One of the batches that `apart` took apart, gathered."""
    return own if shared is None else gathered(Picked(*shared, start=own))


def gathered(batch: Batch) -> Batch:
    """The batch itself, as an array for each leaf."""
    if not isinstance(batch, Picked):
        return batch
    places = jnp.expand_dims(batch.start, -1) + jnp.expand_dims(batch.offsets, range(jnp.ndim(batch.start)))
    rows = _at(batch.order, places, len(batch.order))
    return jax.tree.map(lambda x: _at(x, rows, 0), batch.arrays)


def _at(x: jax.Array, places: jax.Array, beyond: int) -> jax.Array:
    """`x[places]`, and what is beyond its last row."""
    return x.at[places].get(
        mode="fill", fill_value=beyond, out_sharding=explicit.split_as(places, whole=x.ndim - 1)
    )
