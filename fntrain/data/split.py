"""Two parts of a data set: exact sizes, disjoint and complete, a function of the seed."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core import check
from .._core.errors import DataError
from .._core.typing import PyTree
from .columns import check_rows
from .tensors import at, columns


def split(data: PyTree, fraction: float, seed: int = 0, stratify: Any = None) -> tuple[PyTree, PyTree]:
    """Split a data set of arrays at random: `fraction` of its rows in the first part, the others in the second.

    Each row is in exactly one part, where rows keep their order. The first part has `round(fraction * rows)` of
    them. Which ones is a function of the seed and the number of rows (and of the labels, where stratified), and
    stays so on other machines and with other versions of NumPy.

    Args:
      data: an array, or a tuple, dict or any tree but a list of arrays that share their leading axis, of whatever
        `data_loader` takes, and of text.
      fraction: of the first part, > 0 and < 1, and such that no part is empty: `train, test = split(data, 0.8)`.
      seed: an integer >= 0.
      stratify: the class of each row, `[rows]`, integers, bools or text: each class is divided in the same
        proportion, to within one row. None divides all rows alike.

    Returns:
      `(first, second)`: two trees of NumPy arrays like `data`, copies of its rows.

    Raises:
      ConfigError: if `fraction` or `seed` is out of range.
      DataError: if `data` holds no arrays, they disagree on their number of rows, a part would be empty, or
        `stratify` is not one label a row.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> data = {"x": np.arange(10), "y": np.array([0] * 6 + [1] * 4)}
      >>> first, second = ft.split(data, 0.5, seed=1, stratify=data["y"])
      >>> first["y"].tolist(), second["y"].tolist()
      ([0, 0, 0, 1, 1], [0, 0, 0, 1, 1])
      >>> sorted(first["x"].tolist() + second["x"].tolist())
      [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    check.number("fraction", fraction, above=0, below=1)
    seed = check.integer("seed", seed, at_least=0)
    if isinstance(data, list | Iterator):
        raise DataError(
            f"`data` must be an array, or a tuple or dict of arrays, got {type(data).__name__}; a list or an "
            f"iterable holds batches: split it where it is made"
        )
    data = columns(data, "data", numeric=False)
    rows = tree.leading_axis(data, name="data")
    check_rows(data, "data")
    size = round(float(fraction) * rows)
    if not 0 < size < rows:
        raise DataError(
            f"`fraction` {fraction} of {rows} rows leaves {size} and {rows - size}: no part may be empty"
        )
    # Sorted raw words, as the order of an epoch, but of another stream than any epoch's.
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(1,))).random_raw(rows)
    order = np.argsort(words, kind="stable")
    if stratify is not None:
        order = _stratified(order, _labels(stratify, rows), float(fraction), size)
    first = np.zeros(rows, bool)
    first[order[:size]] = True
    return _rows(data, first), _rows(data, ~first)


def _rows(data: PyTree, mask: np.ndarray) -> PyTree:
    # By index and not by mask, which a memory-mapped file would be read through for as a whole.
    index = np.flatnonzero(mask)
    return jax.tree.map(lambda x: at(np.asarray(x) if isinstance(x, jax.Array) else x, index), data)


def _labels(stratify: Any, rows: int) -> np.ndarray:
    labels = np.asarray(stratify)
    if labels.dtype.kind not in "iubUS" or labels.shape != (rows,):
        raise DataError(
            f"`stratify` must hold one class a row, integers, bools or text of shape [{rows}], got "
            f"{labels.dtype}{list(labels.shape)}"
        )
    return np.unique(labels, return_inverse=True)[1]


def _stratified(order: np.ndarray, labels: np.ndarray, fraction: float, size: int) -> np.ndarray:
    """Rows of the first part: of each class its share rounded down, and one more where most is missing."""
    exact = np.bincount(labels) * fraction
    counts = np.floor(exact).astype(np.int64)
    missing = size - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    by_class = order[np.argsort(labels[order], kind="stable")]  # each class's rows together, in random order
    sizes = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return by_class[rank < np.repeat(counts, sizes)]
