"""Batches from data: an order that is a function of (seed, epoch, index), and a tail padded with weight 0."""

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from .. import _check, sharding, tree
from .._check import ConfigError, DataError
from .._typing import Batch, PyTree
from .tensors import to_numpy


class Position(NamedTuple):
    """Where a run stands in its data: the next batch is number `index` of `epoch`, both from 0."""

    epoch: int
    index: int


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
        self.rows = tree.leading_axis(data, name="data")
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
        epoch, index = _check.integer("epoch", epoch, at_least=0), _check.integer("index", index, at_least=0)
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
        batch = check_range(jax.tree.map(lambda x: np.asarray(x[rows]), self.data), "`data`")
        return padded(batch, len(rows), self.batch_size)

    def stacked(self, epoch: int, index: int, count: int) -> Batch:
        """Batches `index` to `index + count` of an epoch, all whole, as one gather: leaves `[count, batch, …]`."""
        size = self.batch_size
        rows = self.order(epoch)[index * size : (index + count) * size]

        def gather(x: Any) -> np.ndarray:
            return np.asarray(x[rows]).reshape(count, size, *x.shape[1:])

        return check_range(jax.tree.map(gather, self.data), "`data`")

    def __iter__(self) -> Iterator[tuple[Batch, np.ndarray]]:
        epoch, start = self.position
        for index in range(start, len(self)):
            # The position moves before the batch is handed out: it names what comes next.
            self.position = Position(epoch, index + 1) if index + 1 < len(self) else Position(epoch + 1, 0)
            yield self.batch(epoch, index)


def data_loader(
    data: PyTree, batch_size: int, *, shuffle: bool = True, seed: int = 0, drop_last: bool = False
) -> ArrayLoader:
    """Mini-batches of a data set of arrays, gathered one at a time.

    Args:
      data: an array, or a tuple, dict or any tree of arrays (NumPy, memory-mapped, JAX) that share their
        leading axis.
      batch_size: rows of every batch. The last one of an epoch is padded to it with rows of weight 0, so that
        nothing is compiled twice and no example is lost.
      shuffle: a new order each epoch.
      seed: the order is a function of the seed, the epoch, and nothing else.
      drop_last: leave an incomplete last batch out instead.

    Returns:
      An ArrayLoader; iterate over it for `(batch, weight)` pairs, `weight` float32 `[batch_size]`.

    Raises:
      DataError: if there are no rows, or leaves disagree on their number.
      ConfigError: if the batch size is no integer >= 1, or larger than the data with `drop_last`.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> loader = ft.data_loader({"x": np.arange(5)}, 2, shuffle=False)
      >>> [(batch["x"].tolist(), weight.tolist()) for batch, weight in loader]
      [([0, 1], [1.0, 1.0]), ([2, 3], [1.0, 1.0]), ([4, 0], [1.0, 0.0])]
    """
    return _array_loader(data, batch_size, shuffle, seed, drop_last, "data")


def _array_loader(
    data: PyTree, batch_size: int, shuffle: bool, seed: int, drop_last: bool, name: str
) -> ArrayLoader:
    batch_size = _check.integer("batch_size", batch_size, at_least=1)
    seed = _check.integer("seed", seed, at_least=0)
    data = jax.tree.map(lambda x: x if hasattr(x, "dtype") else np.asarray(x), data)
    check_columns(data, name)
    rows = tree.leading_axis(data, name=name)
    if rows == 0:
        raise DataError(f"`{name}` must hold at least one example, got {tree.describe(data)}")
    if drop_last and rows < batch_size:
        raise ConfigError(f"`drop_last=True` leaves nothing: {rows} examples, `batch_size` {batch_size}")
    return ArrayLoader(jax.tree.map(_on_host, data), batch_size, bool(shuffle), seed, bool(drop_last))


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


def _on_host(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, jax.Array) else x


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


class Stream:
    """Any iterable of batches as a source of epochs.

    An object that can be iterated again (a list, a loader) gives an epoch each time; a generator gives what it
    has, once; a function `epoch -> iterable` is called each epoch.
    """

    has_tail = False  # not known beforehand: a short batch shows itself when it comes

    def __init__(self, data: Iterable | Callable[[int], Iterable], name: str = "data"):
        self.source = data
        self.name = name
        self.once = iter(data) if not callable(data) and iter(data) is data else None  # type: ignore[arg-type]
        self.first: tuple[int, list] | None = None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, np.ndarray]]:
        """The batches of an epoch from number `start` on; those before it are read and dropped."""
        if self.once is not None:
            batches = self.once
        else:
            given = self.source(epoch) if callable(self.source) else self.source
            if isinstance(given, ArrayLoader):  # which weights its batches itself
                yield from Arrays(given).epoch(given.position.epoch, start)
                return
            batches = iter(given)
        for index, batch in enumerate(itertools.islice(batches, start, None), start):
            yield self._checked(batch, epoch, index)

    @property
    def length(self) -> int | None:
        """Batches in an epoch, if the iterable says."""
        return len(self.source) if hasattr(self.source, "__len__") else None  # type: ignore[arg-type]

    def peek(self) -> tuple[Batch, np.ndarray]:
        """The first batch, without consuming it."""
        if self.once is None:
            first = next(self.epoch(0), None)
        else:
            first = next(self.once, None)
            if first is not None:
                self.once = itertools.chain([first], self.once)
                first = self._checked(first, 0, 0)
        if first is None:
            raise DataError(f"`{self.name}` gave no batch: the iterable is empty")
        return first

    def _checked(self, batch: Batch, epoch: int, index: int) -> tuple[Batch, np.ndarray]:
        batch = to_numpy(batch)
        where = f"batch {index} of epoch {epoch + 1}"
        check_columns([x for x in jax.tree.leaves(batch) if np.ndim(x)], where)
        rows = tree.leading_axis(batch, name=where)
        form = [(path, np.shape(x)[1:], np.dtype(x.dtype)) for path, x in tree.items(batch)]
        if self.first is None:
            if rows == 0:
                raise DataError(f"`{self.name}`: {where} is empty, {tree.describe(batch)}")
            self.first = rows, form
        size, expected = self.first
        for want, got in itertools.zip_longest(expected, form):
            if want != got:
                raise DataError(
                    f"`{self.name}`: {where} is unlike the first: expected {_form(want)}, got {_form(got)}"
                )
        if rows > size:
            raise DataError(f"`{self.name}`: {where} has {rows} rows, more than the first batch's {size}")
        return padded(check_range(batch, f"`{self.name}`: {where}"), rows, size)


def _form(entry: tuple | None) -> str:
    return (
        "no such leaf"
        if entry is None
        else f"`{entry[0]}` {entry[2].name}[batch{''.join(f', {n}' for n in entry[1])}]"
    )


class Arrays:
    """A loader as a source of epochs."""

    def __init__(self, loader: ArrayLoader):
        self.loader = loader
        self.has_tail = loader.has_tail
        self.length = len(loader)

    def peek(self) -> tuple[Batch, np.ndarray]:
        """The first batch."""
        return self.loader.batch(0, 0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, np.ndarray]]:
        """The batches of an epoch from number `start` on."""
        return (self.loader.batch(epoch, index) for index in range(start, len(self.loader)))


def as_source(data: Any, batch_size: int, *, shuffle: bool, seed: int, name: str = "data") -> Any:
    """What `fit` and `evaluate` iterate over, from any of the forms data comes in.

    An array, or a tuple or dict (any tree but a list) of arrays, is a data set; a list, generator, loader, Grain
    dataset or function `epoch -> iterable` gives batches. A source has `length` (batches of an epoch, or None),
    `has_tail`, `peek() -> (batch, weight)` and `epoch(epoch, start) -> iterator of (batch, weight)`.

    Raises:
      DataError: if it is none of these, or empty.
    """
    from . import grain  # which builds on what is here

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
    return Arrays(_array_loader(data, batch_size, shuffle, seed, False, name))


def _is_arrays(data: Any) -> bool:
    if isinstance(data, str | bytes):
        return True  # nothing to iterate over; refused by name further on
    leaves = jax.tree.leaves(data)
    return bool(leaves) and all(hasattr(x, "dtype") or isinstance(x, bool | int | float) for x in leaves)


def place(batch: Batch, weight: Any, mesh: Mesh | None) -> tuple[Batch, Any]:
    """The batch on the device, or split over the mesh; explicit, so a transfer guard lets it pass."""
    if mesh is not None:
        return sharding.put_rows(sharding.pad_batch(batch, weight, mesh), mesh)
    return jax.device_put((batch, weight))


def place_stacked(pairs: list[tuple[Batch, Any]], mesh: Mesh | None) -> tuple[Batch, Any]:
    """Several batches stacked along a new leading axis, on the device or split over the mesh along rows."""
    if mesh is not None:
        pairs = [sharding.pad_batch(batch, weight, mesh) for batch, weight in pairs]
    batches = jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *[batch for batch, _ in pairs])
    weights = None if pairs[0][1] is None else np.stack([weight for _, weight in pairs])
    if mesh is None:
        return jax.device_put((batches, weights))
    return sharding.put_rows((batches, weights), mesh, row_axis=1)


def mesh_of(state: PyTree) -> Mesh | None:
    """The mesh a state lives on, or None if it is on one device."""
    for x in jax.tree.leaves(state):
        found = getattr(x.sharding, "mesh", None)
        if isinstance(found, Mesh) and found.size > 1:
            return found
    return None


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
        digest = zlib.crc32(np.ascontiguousarray(x[rows]).tobytes(), digest)
    return {
        "kind": "arrays",
        "leaves": {path: f"{np.dtype(x.dtype).name}{list(x.shape)}" for path, x in tree.items(loader.data)},
        "sample_crc32": digest,
        "batch_size": loader.batch_size,
        "shuffle": loader.shuffle,
        "seed": loader.seed,
        "drop_last": loader.drop_last,
    }
