"""What every batch has to be: columns of numbers a device can hold, and a tail padded with weight 0."""

from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.errors import DataError
from .._core.typing import Batch, PyTree


def check_columns(data: PyTree, name: str) -> None:
    """Every leaf needs rows, and a dtype that a device can hold."""
    for path, x in tree.items(data):
        where = f"`{name}` leaf `{path}`" if path else f"`{name}`"
        if np.ndim(x) == 0:
            raise DataError(f"{where} must have a leading axis of examples, got a scalar")
        if np.dtype(x.dtype).kind in "OUSMm":
            raise DataError(f"{where} has dtype {x.dtype}, which no device takes; encode it as numbers")


def check_range(batch: Batch, where: str) -> Batch:
    """Refuse 64-bit integers that JAX would cut to their lower 32 bits without a word; the batch itself."""
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return batch
    for x in jax.tree.leaves(batch):
        if isinstance(x, np.ndarray) and x.dtype in (np.int64, np.uint64) and x.size:
            low, high = int(x.min()), int(x.max())
            limits = np.iinfo(np.int32 if x.dtype == np.int64 else np.uint32)
            if low < limits.min or high > limits.max:
                path = next(path for path, leaf in tree.items(batch) if leaf is x)
                raise DataError(
                    f"{where} leaf `{path}` holds {low if low < limits.min else high}, which does not fit the "
                    f"{limits.dtype} that JAX makes of {x.dtype}; encode it smaller, or set `jax_enable_x64`"
                )
    return batch


def padded(batch: Batch, rows: int, size: int) -> tuple[Batch, np.ndarray]:
    """`(batch, weight)` of `size` rows: zeros of weight 0 after the first `rows`."""
    weight = np.zeros(size, np.float32)
    weight[:rows] = 1.0
    if rows == size:
        return batch, weight

    def pad(x: Any) -> Any:
        if np.ndim(x) == 0:
            return x
        return np.concatenate([x, np.zeros((size - rows, *np.shape(x)[1:]), x.dtype)])

    return jax.tree.map(pad, batch), weight
