"""A data set of arrays, or of examples: mini-batches whose order is a function of (seed, epoch, index)."""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.typing import Batch, PyTree
from . import order
from .columns import check_range, check_rows, marked, padded
from .cut import Cut, Place, Sizes, Stage, Stretch, going_on, largest, sizes, stages
from .examples import Examples, is_examples, refuse_others
from .position import Position
from .tensors import at, columns


class ArrayLoader:
    """Mini-batches of arrays, made by `data_loader`.

    `iter(loader)` yields one epoch of `(batch, weight)` pairs from the loader's position on, and moves the
    position along; `len(loader)` is the number of batches of the whole epoch that the position is in.
    """

    def __init__(self, data: PyTree, batch_size: Sizes, shuffle: bool, seed: int, drop_last: bool):
        self.data = data
        self.batch_size: Sizes = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.rows: int = data.rows if isinstance(data, Examples) else tree.leading_axis(data, name="data")
        # The rows at some positions, as a tree of NumPy arrays.
        self.read: Callable[[np.ndarray], Batch] = (
            data.read if isinstance(data, Examples) else functools.partial(_rows, data)
        )
        self.cut = Cut(self.rows, stages(batch_size, self.rows), drop_last)
        self.position = Position(0, 0)
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.cut.length(self.position.epoch)

    @property
    def has_tail(self) -> bool:
        """True if an epoch's last batch is padded."""
        return self.cut.has_tail

    def seek(self, epoch: int, index: int = 0) -> "ArrayLoader":
        """Go to batch `index` of `epoch` (both from 0), at once: nothing before it is read."""
        epoch, index = check.integer("epoch", epoch, at_least=0), check.integer("index", index, at_least=0)
        length = self.cut.length(epoch)
        if index > length:
            raise ConfigError(f"`index` must be at most {length}, the batches of an epoch, got {index}")
        self.position = Position(epoch + index // length, index % length)
        return self

    def order(self, epoch: int) -> np.ndarray:
        """The example indices of an epoch, in order: a function of the seed and the epoch alone."""
        if not self.shuffle:
            return np.arange(self.rows)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, order.on_host(self.seed, epoch, self.rows)
        return self._order[1]

    def batch(self, epoch: int, index: int) -> tuple[Batch, np.ndarray]:
        """Batch `index` of an epoch, `(batch, weight)`; rows past the end are zeros of weight 0."""
        return self._read(self.cut.at(epoch, index), epoch, 1)

    def stacked(self, epoch: int, index: int, count: int) -> tuple[Batch, np.ndarray]:
        """Batches `index` to `index + count`, of one size, as one gather: leaves and weights `[count, batch, …]`."""
        alike = self.cut.at(epoch, index)
        return jax.tree.map(
            lambda x: x.reshape(count, alike.size, *x.shape[1:]), self._read(alike, epoch, count)
        )

    def _read(self, alike: Stretch, epoch: int, count: int) -> tuple[Batch, np.ndarray]:
        """The rows of so many batches, one behind the other."""
        wanted = count * alike.size
        rows = self.order(epoch)[alike.start : alike.start + wanted]
        return padded(check_range(self.read(rows), "`data`"), len(rows), wanted)

    def __iter__(self) -> Iterator[tuple[Batch, np.ndarray]]:
        epoch, start = self.position
        length = self.cut.length(epoch)
        for index in range(start, length):
            # The position moves before the batch is handed out: it names what comes next.
            self.position: Position = (
                Position(epoch, index + 1) if index + 1 < length else Position(epoch + 1, 0)
            )
            yield marked(*self.batch(epoch, index))


def data_loader(
    data: PyTree,
    batch_size: int | Mapping[float, int],
    *,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = False,
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
        nothing is compiled twice and no example is lost. Or several sizes, by the epochs that are over when each
        begins, `{0: 32, 3: 64}`, as `fit` has them.
      shuffle: a new order each epoch.
      seed: the order is a function of the seed, the epoch, and nothing else.
      drop_last: leave an incomplete last batch out instead.

    Returns:
      An ArrayLoader; iterate over it for `(batch, weight)` pairs, `weight` float32, one a row.

    Raises:
      DataError: if there are no rows, leaves disagree on their number, or one is no array of numbers; and with the
        batch that holds it, for a number that does not fit 32 bits where `jax_enable_x64` is off.
      ConfigError: if the batch size is no integer >= 1 and no mapping to such that begins at 0, or larger than the data
        with `drop_last`.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> loader = ft.data_loader({"x": np.arange(5)}, 2, shuffle=False)
      >>> [(batch["x"].tolist(), weight.tolist()) for batch, weight in loader]
      [([0, 1], [1.0, 1.0]), ([2, 3], [1.0, 1.0]), ([4, 0], [1.0, 0.0])]
    """
    return array_loader(data, batch_size, shuffle, seed, drop_last, "data")


def array_loader(
    data: PyTree, batch_size: Any, shuffle: bool, seed: int, drop_last: bool, name: str
) -> ArrayLoader:
    """`data_loader`, with the name of the caller's argument for messages."""
    if np.ndim(batch_size):
        raise ConfigError(
            f"`batch_size` must be an integer >= 1, got an array: `{name}` is one argument, `data_loader((x, y), 32)`"
        )
    batch_size = sizes(batch_size)
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
    if drop_last and rows < largest(batch_size):
        raise ConfigError(
            f"`drop_last=True` leaves nothing: {rows} examples, `batch_size` {largest(batch_size)}"
        )
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
        self._begun = 0, 0  # where a run goes on, epoch and example

    @property
    def sizes(self) -> list[int]:
        """Of which sizes batches are, from where a run goes on."""
        stages = self.loader.cut.stages
        now = [stage for stage in stages if stage[:2] <= self._begun][-1:]
        return [stage.size for stage in (*now, *(stage for stage in stages if stage[:2] > self._begun))]

    @property
    def has_tail(self) -> bool:
        """Whether a batch may be padded."""
        return self.loader.has_tail

    @property
    def length(self) -> int | None:
        """Batches in an epoch; None where that is not the same in all of them."""
        lengths = {self.loader.cut.length(edge) for edge in self.loader.cut.edges}
        return lengths.pop() if len(lengths) == 1 else None

    def state(self, position: Position) -> dict[str, Any]:
        """What a checkpoint has to hold: the place in examples, and how batches are cut, up to there and then."""
        cut = self.loader.cut
        return {"example": cut.example(*position), "cut": [list(stage) for stage in cut.stages]}

    def go_on(self, place: Place) -> None:
        """Cut what is left from a place on as this source is cut, and know how it was cut before."""
        self._begun = place.epoch, min(place.example, self.loader.rows)
        self.cut_as(going_on(place.cut, self.loader.cut.stages, *self._begun))

    def cut_as(self, stages: Iterable[Stage]) -> None:
        """Cut batches so; the loader that was given stays as it is."""
        self.loader = copy.copy(self.loader)
        self.loader.cut = Cut(self.loader.rows, stages, self.loader.drop_last)

    def peek(self) -> tuple[Batch, np.ndarray]:
        """The first batch."""
        return self.loader.batch(0, 0)

    def largest(self) -> tuple[Batch, np.ndarray]:
        """The first of the largest batches."""
        cut, size = self.loader.cut, max(self.sizes)
        found = ((edge, s.index) for edge in cut.edges for s in cut.stretches(edge) if s.size == size)
        return self.loader.batch(*next(found, (0, 0)))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, np.ndarray]]:
        """The batches of an epoch from number `start` on."""
        return (self.loader.batch(epoch, index) for index in range(start, self.loader.cut.length(epoch)))
