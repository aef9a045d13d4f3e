"""The door of data: from what people hand to `fit` to a source of epochs."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.digest import crc32
from .._core.errors import DataError
from .arrays import ArrayLoader, Arrays, array_loader
from .stream import Stream


def as_source(data: Any, batch_size: int, *, shuffle: bool, seed: int, name: str = "data") -> Any:
    """What `fit` and `evaluate` iterate over, from any of the forms data comes in.

    An array, or a tuple or dict (any tree but a list) of arrays, is a data set; a list, generator, loader, Grain
    dataset or function `epoch -> iterable` gives batches. A source has `length` (batches of an epoch, or None),
    `has_tail`, `peek() -> (batch, weight)` and `epoch(epoch, start) -> iterator of (batch, weight)`.

    Raises:
      DataError: if it is none of these, or empty.
    """
    from . import grain

    if isinstance(data, ArrayLoader):
        return Arrays(data)
    if grain.is_grain(data):
        return grain.GrainSource(data, name)
    if isinstance(data, list) and not data:
        raise DataError(f"`{name}` is an empty list; give arrays, or at least one batch")
    if (
        callable(data)
        or isinstance(data, list | Iterator)
        or (hasattr(data, "__iter__") and not _is_arrays(data))
    ):
        return Stream(data, name)  # type: ignore[arg-type]
    if data is None or isinstance(data, str | bytes | int | float) or not jax.tree.leaves(data):
        raise DataError(
            f"`{name}` must be arrays (a tree of them) or an iterable of batches, got {tree.describe(data)}"
        )
    return Arrays(array_loader(data, batch_size, shuffle, seed, False, name))


def _is_arrays(data: Any) -> bool:
    if isinstance(data, str | bytes):
        return True  # nothing to iterate over; refused by name further on
    leaves = jax.tree.leaves(data)
    return bool(leaves) and all(hasattr(x, "dtype") or isinstance(x, bool | int | float) for x in leaves)


def fingerprint(source: Any) -> dict[str, Any]:
    """What must be equal for a resumed run to see the same data: structure, sizes, and a sample of content."""
    if hasattr(source, "fingerprint"):
        return source.fingerprint()
    if isinstance(source, Stream):
        return {"kind": "iterable"}
    loader = source.loader
    rows = np.unique(np.linspace(0, loader.rows - 1, min(loader.rows, 64)).astype(np.int64))
    digest = 0
    for _, x in tree.items(loader.data):
        digest = crc32(x[rows], digest)
    return {
        "kind": "arrays",
        "leaves": {path: f"{np.dtype(x.dtype).name}{list(x.shape)}" for path, x in tree.items(loader.data)},
        "sample_crc32": digest,
        "batch_size": loader.batch_size,
        "shuffle": loader.shuffle,
        "seed": loader.seed,
        "drop_last": loader.drop_last,
    }
