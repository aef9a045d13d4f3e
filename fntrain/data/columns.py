"""What every batch has to be: columns of numbers a device can hold, and a tail padded with weight 0."""

from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.errors import DataError
from .._core.typing import Batch, PyTree


def check_rows(data: PyTree, name: str) -> None:
    """Every leaf of a data set needs rows."""
    for path, x in tree.items(data):
        if np.ndim(x) == 0:
            where = f"`{name}` leaf `{path}`" if path else f"`{name}`"
            raise DataError(f"{where} must have a leading axis of examples, got a scalar")


def check_range(batch: Batch, where: str) -> Batch:
    """Refuse 64-bit numbers that do not fit the 32 bits that JAX makes of them without a word; the batch itself.

    Integers would lose their upper bits, and floats would be infinite; that floats are rounded is what 32 bits are.
    """
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return batch
    for x in jax.tree.leaves(batch):
        # Asked of every batch, so by what a dtype has at hand: its name is put together anew each time.
        if not isinstance(x, np.ndarray) or x.dtype.itemsize != 8 or x.dtype.kind not in "iuf" or not x.size:
            continue
        narrow = np.dtype(f"{x.dtype.kind}4")
        limits = np.finfo(narrow) if narrow.kind == "f" else np.iinfo(narrow)
        low, high = x.min(), x.max()
        if low >= limits.min and high <= limits.max:
            continue
        if narrow.kind == "f":
            finite = x[np.isfinite(x)]  # what is infinite or NaN already stays visible
            low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        if low < limits.min or high > limits.max:
            path = next(path for path, leaf in tree.items(batch) if leaf is x)
            raise DataError(
                f"{where}{f' leaf `{path}`' if path else ''} holds {low if low < limits.min else high}, which does not "
                f"fit the {narrow} that JAX makes of {x.dtype}; encode it smaller, or set `jax_enable_x64`"
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


class Padded(np.ndarray):
    """A column whose last rows are padding, which knows it for as long as it has those rows.

    So that padding is none where the weights beside it were dropped: `[augment(b) for b, w in loader]`.
    """

    weight: Any = None

    def __array_finalize__(self, obj: Any) -> None:
        weight = getattr(obj, "weight", None)
        same = weight is not None and self.ndim > 0 and self.shape[0] == len(weight)
        self.weight = weight if same else None


def marked(batch: Batch, weight: np.ndarray) -> tuple[Batch, np.ndarray]:
    """`(batch, weight)`, whose columns know which of their rows are padding."""
    if weight.all():
        return batch, weight

    def mark(x: Any) -> Any:
        if not isinstance(x, np.ndarray) or not x.ndim:
            return x
        column = x.view(Padded)
        column.weight = weight
        return column

    return jax.tree.map(mark, batch), weight


def own_weight(batch: Batch) -> np.ndarray | None:
    """The weights that a batch of a loader came with and was parted from, unless it holds them itself."""
    leaves = jax.tree.leaves(batch)
    for x in leaves:
        weight = x.weight if isinstance(x, Padded) else None
        if weight is not None:
            there = any(np.shape(y) == weight.shape and np.array_equal(y, weight) for y in leaves)
            return None if there else weight
    return None


def check_weight(weight: Any, rows: int, where: str) -> np.ndarray:
    """The weights of a batch that came with it, float32 `[rows]`, finite and not negative.

    Raises:
      DataError: if they are not.
    """
    weight = np.array(weight, np.float32)
    if weight.shape != (rows,):
        raise DataError(f"{where}: `weight` must have shape [{rows}], one a row, got {list(weight.shape)}")
    good = np.isfinite(weight) & (weight >= 0)
    if not good.all():
        raise DataError(f"{where}: `weight` must be finite and >= 0, got {weight[~good][0]}")
    return weight
