"""Arrays put on the device once: a step gathers its rows itself, in an order formed there; a place in it travels."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from .. import sharding, tree
from .._core.errors import ConfigError
from .._core.sizes import bytes_text
from ..sharding.mesh import data_axis
from ..sharding.place import put_rows
from ..step import programs
from ..step.picked import Picked
from ..step.state import TrainState
from . import order
from .arrays import ArrayLoader, Arrays
from .columns import check_range
from .examples import Examples
from .feed import Feed, Piece
from .position import Position

SHARE = 4  # the data takes at most one part in so many of the memory that is free
_ORDER = 28  # bytes a row for its order, while that is being sorted

_shuffled = jax.jit(order.on_device, static_argnums=1)


def resident(feed: Feed, state: TrainState, asked: Any) -> "Resident | None":
    """The feed's arrays on the device, if that was asked for; where it is left to us, on one accelerator, if they fit.

    Not on a CPU: there the data is in the same memory already, and a copy of it makes no epoch shorter.

    Raises:
      ConfigError: if it was asked for, and the data is no arrays in memory.
    """
    if asked is False:
        return None
    why = unfit(feed)
    if asked is True:
        if why is not None:
            raise ConfigError(f"`data_on_device=True` needs `data` to be arrays in memory, and {why}")
        return Resident(feed, state)
    device = next(iter(jax.tree.leaves(state)[0].devices()))
    if why is not None or feed.mesh is not None or device.platform == "cpu":
        return None
    memory = device.memory_stats() or {}
    free = memory.get("bytes_limit", 0) - memory.get("bytes_in_use", 0)
    return Resident(feed, state) if SHARE * _nbytes(feed) <= free else None


def unfit(feed: Feed) -> str | None:
    """Why a feed's data cannot be put on the device as it is, in words."""
    source = feed.source
    if not isinstance(source, Arrays):
        return "it is batches that are made elsewhere"
    if isinstance(source.loader.data, Examples):
        return "it is examples, which are read one by one"
    for path, x in tree.items(source.loader.data):
        if type(x) is not np.ndarray:  # in a file, mapped into memory say
            return f"its leaf{f' `{path}`' if path else ''} is {type(x).__name__}, which may be larger than any memory"
    if jax.process_count() > 1:
        return f"here {jax.process_count()} processes read it, each its share"
    if source.loader.rows > 2**30:  # twice as many is still a place in 32 bits
        return f"it has {source.loader.rows:,} rows, of more than 2**30"
    return None


def _nbytes(feed: Feed) -> int:
    """Bytes of a feed's data on the device, where 64-bit numbers may be 32-bit ones, and of its order."""
    per_row = tree.nbytes(feed.form[0]) / feed.rows
    return int((per_row + _ORDER) * feed.source.loader.rows)


class Resident:
    """A feed's arrays on its devices, and an epoch's dispatches as places in an order that is formed there.

    Args:
      feed: a feed of arrays.
      state: says on which devices.
    """

    def __init__(self, feed: Feed, state: TrainState):
        self._feed = feed
        self._loader: ArrayLoader = feed.source.loader
        self._like = jax.tree.leaves(state)[0]
        self._arrays = self._put(check_range(self._loader.data, "`data`"))
        self._order: tuple[int | None, Any] = None, None  # of which epoch, None for any
        self._offsets: Callable[[int], Any] = functools.cache(self._offsets_of)
        self._weights: Callable[[int, int, bool, int], Any] = functools.cache(self._weights_of)

    def __repr__(self) -> str:
        return f"Resident({self._loader.rows:,} rows, {bytes_text(_nbytes(self._feed))})"

    def pieces(self, position: Position, room: Callable[[int], int]) -> Iterator[Piece]:
        """As those of the feed, which gives the same rows in the same dispatches, as arrays."""
        loader, (epoch, index) = self._loader, position
        total = loader.cut.length(epoch)
        while index < total and (steps := room(index - position.index)):
            alike = loader.cut.at(epoch, index)
            size, stacked = alike.size, 1 < steps <= alike.count
            steps = steps if stacked else 1
            starts = np.arange(alike.start, alike.start + steps * size, size, dtype=np.int32)
            batch = Picked(
                self._arrays, self._in_order(epoch), self._offsets(size), starts if stacked else starts[0]
            )
            seen = min(steps * size, loader.rows - alike.start)
            weight = self._weights(size, steps, stacked, seen) if self._feed.weighed else None
            yield Piece(batch, weight, steps, stacked, index + steps == total, size)
            index += steps

    def _in_order(self, epoch: int) -> Any:
        """The rows as an epoch takes them, on the devices."""
        loader = self._loader
        if self._order[1] is None or self._order[0] not in (epoch, None):
            self._order = (
                (epoch, _shuffled(self._put(order.round_keys(loader.seed, epoch)), loader.rows))
                if loader.shuffle
                else (None, self._put(np.arange(loader.rows, dtype=np.int32)))
            )
        return self._order[1]

    def _put(self, arrays: Any) -> Any:
        if self._feed.mesh is not None:
            return sharding.replicate(arrays, self._feed.mesh)
        # Committed to a device only if the state is: else a step's results would be, and compile the next anew.
        return jax.device_put(arrays, self._like.sharding if getattr(self._like, "committed", True) else None)

    def _width(self, size: int) -> int:
        """Rows of a batch that divides over the devices."""
        mesh = self._feed.mesh
        return size if mesh is None else -(-size // (n := mesh.shape[data_axis(mesh)])) * n

    def _offsets_of(self, size: int) -> Any:
        offsets = np.full(self._width(size), self._loader.rows, np.int32)  # nowhere, whatever is added
        offsets[:size] = np.arange(size)
        return self._put(offsets) if self._feed.mesh is None else put_rows(offsets, self._feed.mesh)

    def _weights_of(self, size: int, steps: int, stacked: bool, seen: int) -> Any:
        """The weights of batches whose first so many rows are the data's."""
        mesh, width = self._feed.mesh, self._width(size)
        if mesh is None and seen == steps * size:
            return self._feed.ones(*(steps, size) if stacked else (size,))
        weight = np.zeros((steps, width), np.float32)
        weight[:, :size] = (np.arange(steps * size) < seen).reshape(steps, size)
        given = weight if stacked else weight[0]
        return jax.device_put(given) if mesh is None else put_rows(given, mesh, row_axis=int(stacked))

    def opened(self, piece: Piece) -> Piece:
        """The piece with the arrays of its batch, on the device."""
        return piece._replace(batch=programs.picked(piece.batch))
