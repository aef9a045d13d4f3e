"""The door of data: from what people hand to `fit` to a source of epochs."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.digest import crc32
from .._core.errors import ConfigError, DataError
from .arrays import ArrayLoader, Arrays, array_loader
from .cut import as_json
from .examples import Examples, is_examples, refuse_others
from .stream import Stream
from .tensors import at, is_column, is_leaf


def as_source(data: Any, batch_size: Any, *, shuffle: bool, seed: int, name: str = "data") -> Any:
    """What `fit` and `evaluate` iterate over, from any of the forms data comes in.

    An array, or a tuple or dict (any tree but a list) of arrays, is a data set, and so is what has examples by
    position (`len(data)` and `data[i]`, Hugging Face's or torch's); a list, generator, loader, Grain dataset or
    function `epoch -> iterable` gives batches. A source has `length` (batches of an epoch, or None) and
    whether that is `sure`, `endless`, `has_tail`, `peek() -> (batch, weight)`, `epoch(epoch, start) -> iterator of
    (batch, weight)`, and, where it may hold pairs, `pair_up`.

    Raises:
      DataError: if it is none of these, or empty.
      ConfigError: if there are several batch sizes for what is cut into batches elsewhere.
    """
    source = _source(data, batch_size, shuffle=shuffle, seed=seed, name=name)
    own = "to its `data_loader`" if isinstance(data, ArrayLoader) else "to whoever makes them"
    if isinstance(batch_size, Mapping) and (isinstance(data, ArrayLoader) or not isinstance(source, Arrays)):
        raise ConfigError(
            f"`batch_size` says when batches of arrays or examples grow, and `{name}` gives batches that are cut "
            f"already: give the sizes {own}, or give the arrays"
        )
    return source


def _source(data: Any, batch_size: Any, *, shuffle: bool, seed: int, name: str) -> Any:
    """As `as_source`."""
    from . import grain

    if isinstance(data, ArrayLoader):
        return Arrays(data)
    if grain.is_grain(data):
        return grain.GrainSource(data, name)
    if isinstance(data, list) and not data:
        raise DataError(f"`{name}` is an empty list; give arrays, or at least one batch")
    if isinstance(data, list | Iterator) or callable(data):
        if isinstance(data, list):
            _refuse_columns(data, name)
        return Stream(data, name)  # type: ignore[arg-type]
    refuse_others(data, name)
    if not is_examples(data) and not _is_arrays(data):
        if isinstance(data, Iterable) and not isinstance(data, str | bytes):
            return Stream(data, name)
        raise DataError(
            f"`{name}` must be arrays (a tree of them) or an iterable of batches, got {tree.describe(data)}"
        )
    return Arrays(array_loader(data, batch_size, shuffle, seed, False, name))


def _is_arrays(data: Any) -> bool:
    """Whether this is a data set: a column, or a tree of them. A lone object that can be iterated over is none."""
    if isinstance(data, Mapping):
        return bool(data)
    leaves = jax.tree.leaves(data, is_leaf=is_leaf)
    if len(leaves) == 1 and leaves[0] is data:
        return is_column(data)
    return bool(leaves)


def _refuse_columns(data: list[Any], name: str) -> None:
    """A list is one of batches; arrays of as many rows and other forms, side by side, are columns."""
    if not 1 < len(data) <= 8 or not all(hasattr(x, "dtype") and hasattr(x, "shape") for x in data):
        return
    forms = {(tuple(x.shape), str(x.dtype)) for x in data}
    if len(forms) > 1 and len({shape[:1] for shape, _ in forms}) == 1:
        raise DataError(
            f"`{name}` is a list, which holds batches of one form, and its {len(data)} arrays are of one length and "
            f"not alike: if they are columns, give them as a tuple, `(x, y)`, or a dict"
        )


def fingerprint(source: Any) -> dict[str, Any]:
    """What must be equal for a resumed run to see the same data: structure, sizes, and a sample of content."""
    if hasattr(source, "fingerprint"):
        return source.fingerprint()
    if isinstance(source, Stream):
        return {"kind": "iterable"}
    loader = source.loader
    cut = {
        "batch_size": as_json(loader.batch_size),
        "shuffle": loader.shuffle,
        "seed": loader.seed,
        "drop_last": loader.drop_last,
    }
    if isinstance(loader.data, Examples):
        return {**loader.data.fingerprint(), **cut}
    rows = np.unique(np.linspace(0, loader.rows - 1, min(loader.rows, 64)).astype(np.int64))
    digest = 0
    for _, x in tree.items(loader.data):
        digest = crc32(at(x, rows), digest)
    return {
        "kind": "arrays",
        "leaves": {path: f"{np.dtype(x.dtype).name}{list(x.shape)}" for path, x in tree.items(loader.data)},
        "sample_crc32": digest,
        **cut,
    }
