"""A data set of arrays, or of examples: mini-batches whose order is a function of (seed, epoch, index)."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.typing import Batch, PyTree
from .columns import check_range, check_rows, marked, padded
from .examples import Examples, is_examples, refuse_others
from .position import Position
from .tensors import at, columns


class ArrayLoader:
    """Mini-batches of arrays, made by `data_loader`.

    `iter(loader)` yields one epoch of `(batch, weight)` pairs from the loader's position on, and moves the
    position along; `len(loader)` is the number of batches of a whole epoch.
    """

    def __init__(self, data: PyTree, batch_size: int, shuffle: bool, seed: int, drop_last: bool):
        self.data = data
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.rows: int = data.rows if isinstance(data, Examples) else tree.leading_axis(data, name="data")
        # The rows at some positions, as a tree of NumPy arrays.
        self.read: Callable[[np.ndarray], Batch] = (
            data.read if isinstance(data, Examples) else functools.partial(_rows, data)
        )
        self.position = Position(0, 0)
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.rows // self.batch_size if self.drop_last else -(-self.rows // self.batch_size)

    @property
    def whole(self) -> int:
        """Batches of an epoch that hold `batch_size` examples: all, or all but the last."""
        return self.rows // self.batch_size

    @property
    def has_tail(self) -> bool:
        """True if an epoch's last batch is padded."""
        return not self.drop_last and self.rows % self.batch_size != 0

    def seek(self, epoch: int, index: int = 0) -> "ArrayLoader":
        """Go to batch `index` of `epoch` (both from 0), at once: nothing before it is read."""
        epoch, index = check.integer("epoch", epoch, at_least=0), check.integer("index", index, at_least=0)
        if index > len(self):
            raise ConfigError(f"`index` must be at most {len(self)}, the batches of an epoch, got {index}")
        self.position = Position(epoch + index // len(self), index % len(self))
        return self

    def order(self, epoch: int) -> np.ndarray:
        """The example indices of an epoch, in order: a function of the seed and the epoch alone."""
        if not self.shuffle:
            return np.arange(self.rows)
        if self._order is None or self._order[0] != epoch:
            # Sorting the raw words of a bit generator, whose stream NumPy guarantees, and not `permutation`,
            # whose algorithm it may change: a run resumed after an upgrade must see the same order.
            words = np.random.Philox(np.random.SeedSequence([self.seed, epoch])).random_raw(self.rows)
            self._order = epoch, np.argsort(words, kind="stable")
        return self._order[1]

    def batch(self, epoch: int, index: int) -> tuple[Batch, np.ndarray]:
        """Batch `index` of an epoch, `(batch, weight)`; rows past the end are zeros of weight 0."""
        rows = self.order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        batch = check_range(self.read(rows), "`data`")
        return padded(batch, len(rows), self.batch_size)

    def stacked(self, epoch: int, index: int, count: int) -> Batch:
        """Batches `index` to `index + count` of an epoch, all whole, as one gather: leaves `[count, batch, …]`."""
        size = self.batch_size
        rows = self.order(epoch)[index * size : (index + count) * size]
        batches = jax.tree.map(lambda x: x.reshape(count, size, *x.shape[1:]), self.read(rows))
        return check_range(batches, "`data`")

    def __iter__(self) -> Iterator[tuple[Batch, np.ndarray]]:
        epoch, start = self.position
        for index in range(start, len(self)):
            # The position moves before the batch is handed out: it names what comes next.
            self.position: Position = (
                Position(epoch, index + 1) if index + 1 < len(self) else Position(epoch + 1, 0)
            )
            yield marked(*self.batch(epoch, index))


def data_loader(
    data: PyTree, batch_size: int, *, shuffle: bool = True, seed: int = 0, drop_last: bool = False
) -> ArrayLoader:
    """Mini-batches of a data set of arrays or examples, gathered one at a time.

    Args:
      data: an array, or a tuple, dict or any tree of arrays that share their leading axis. Arrays of NumPy and JAX
        are taken as they are; those in files (memory-mapped, h5py, zarr: what has `shape`, `dtype` and `chunks`)
        stay there, and the rows of a batch are read when it is made. Frames and series (pandas, polars), tensors of
        torch, lists of numbers, and whatever has `__array__` or `__dlpack__` become arrays here: a frame is the matrix
        of its columns. Text, times, categories, objects, sparse matrices and values marked as missing are refused.
        Where `jax_enable_x64` is off, 64-bit floats are rounded to 32 on the device, as JAX does.
        Or a data set of examples, `len(data)` and `data[i]`, as those of Hugging Face (a dict of the columns that hold
        numbers) and of torch: an example is a number, an array, or a tuple or dict of them, all of one form, and a
        batch has its structure. What `data[i]` draws at random is its own, and is not repeated on a resume.
      batch_size: rows of every batch. The last one of an epoch is padded to it with rows of weight 0, so that
        nothing is compiled twice and no example is lost.
      shuffle: a new order each epoch.
      seed: the order is a function of the seed, the epoch, and nothing else.
      drop_last: leave an incomplete last batch out instead.

    Returns:
      An ArrayLoader; iterate over it for `(batch, weight)` pairs, `weight` float32 `[batch_size]`.

    Raises:
      DataError: if there are no rows, leaves disagree on their number, or one is no array of numbers; and with the
        batch that holds it, for a number that does not fit 32 bits where `jax_enable_x64` is off.
      ConfigError: if the batch size is no integer >= 1, or larger than the data with `drop_last`.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> loader = ft.data_loader({"x": np.arange(5)}, 2, shuffle=False)
      >>> [(batch["x"].tolist(), weight.tolist()) for batch, weight in loader]
      [([0, 1], [1.0, 1.0]), ([2, 3], [1.0, 1.0]), ([4, 0], [1.0, 0.0])]
    """
    return array_loader(data, batch_size, shuffle, seed, drop_last, "data")


def array_loader(
    data: PyTree, batch_size: int, shuffle: bool, seed: int, drop_last: bool, name: str
) -> ArrayLoader:
    """`data_loader`, with the name of the caller's argument for messages."""
    if np.ndim(batch_size):
        raise ConfigError(
            f"`batch_size` must be an integer >= 1, got an array: `{name}` is one argument, `data_loader((x, y), 32)`"
        )
    batch_size = check.integer("batch_size", batch_size, at_least=1)
    seed = check.integer("seed", seed, at_least=0)
    shuffle, drop_last = check.flag("shuffle", shuffle), check.flag("drop_last", drop_last)
    if is_examples(data):
        data = Examples(data, name)
        rows = data.rows
    else:
        refuse_others(data, name)
        data = columns(data, name)
        check_rows(data, name)
        rows = tree.leading_axis(data, name=name)
    if rows == 0:
        raise DataError(f"`{name}` must hold at least one example, got {tree.describe(data)}")
    if drop_last and rows < batch_size:
        raise ConfigError(f"`drop_last=True` leaves nothing: {rows} examples, `batch_size` {batch_size}")
    data = jax.tree.map(_on_host, data)
    return ArrayLoader(data, batch_size, shuffle, seed, drop_last)


def _rows(data: PyTree, rows: np.ndarray) -> Batch:
    return jax.tree.map(lambda x: at(x, rows), data)


def _on_host(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, jax.Array) else x


class Arrays:
    """A loader as a source of epochs."""

    sure = True  # `length` is how many batches there are
    endless = False

    def __init__(self, loader: ArrayLoader):
        self.loader = loader
        self.has_tail: bool = loader.has_tail
        self.length: int = len(loader)

    def peek(self) -> tuple[Batch, np.ndarray]:
        """The first batch."""
        return self.loader.batch(0, 0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, np.ndarray]]:
        """The batches of an epoch from number `start` on."""
        return (self.loader.batch(epoch, index) for index in range(start, len(self.loader)))
