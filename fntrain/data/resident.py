"""Arrays put on the device once: what travels to a step is which rows it takes, and it gathers them itself."""

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
from .arrays import ArrayLoader, Arrays
from .columns import check_range
from .examples import Examples
from .feed import Feed, Piece
from .position import Position

SHARE = 4  # the data takes at most one part in so many of the memory that is free


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
    if source.loader.rows >= 2**31:
        return f"it has {source.loader.rows:,} rows, more than 32 bits count"
    return None


def _nbytes(feed: Feed) -> int:
    """Bytes of a feed's data on the device, where 64-bit numbers may be 32-bit ones."""
    per_row = tree.nbytes(feed.form[0]) / feed.rows
    return int(per_row * feed.source.loader.rows)


class Resident:
    """A feed's arrays on its devices, and an epoch's dispatches as rows of them.

    Args:
      feed: a feed of arrays.
      state: says on which devices.
    """

    def __init__(self, feed: Feed, state: TrainState):
        self._feed = feed
        self._loader: ArrayLoader = feed.source.loader
        data = check_range(self._loader.data, "`data`")
        if feed.mesh is not None:
            self._arrays = sharding.replicate(data, feed.mesh)
        else:
            like = jax.tree.leaves(state)[0]
            # Committed to a device only if the state is: else a step's results would be, and compile the next anew.
            self._arrays = jax.device_put(data, like.sharding if getattr(like, "committed", True) else None)

    def __repr__(self) -> str:
        return f"Resident({self._loader.rows:,} rows, {bytes_text(_nbytes(self._feed))})"

    def pieces(self, position: Position, room: Callable[[int], int]) -> Iterator[Piece]:
        """As those of the feed, which gives the same rows in the same dispatches, as arrays."""
        loader, (epoch, index) = self._loader, position
        total = loader.cut.length(epoch)
        while index < total and (steps := room(index - position.index)):
            alike = loader.cut.at(epoch, index)
            stacked = steps > 1 and steps <= (alike.whole if self._feed.whole else alike.count)
            steps = steps if stacked else 1
            rows = loader.picked(epoch, index, steps).astype(np.int32)
            yield self._piece(rows, alike.size, steps, stacked, index + steps == total)
            index += steps

    def _piece(self, rows: np.ndarray, size: int, steps: int, stacked: bool, last: bool) -> Piece:
        feed = self._feed
        if feed.mesh is None and len(rows) == steps * size:
            shape = (steps, size) if stacked else (size,)
            picked = Picked(self._arrays, rows.reshape(shape))
            return Piece(picked, feed.ones(*shape) if feed.weighed else None, steps, stacked, last, size)
        width = size if feed.mesh is None else -(-size // (n := feed.mesh.shape[data_axis(feed.mesh)])) * n
        chosen = np.full(
            (steps, width), self._loader.rows, np.int32
        )  # the row behind the last is one of zeros
        weight = np.zeros((steps, width), np.float32)
        full, rest = divmod(len(rows), size)
        chosen[:full, :size], weight[:full, :size] = rows[: full * size].reshape(full, size), 1
        if rest:
            chosen[full, :rest], weight[full, :rest] = rows[full * size :], 1
        given: Any = (chosen, weight if feed.weighed else None)
        given = given if stacked else jax.tree.map(lambda x: x[0], given)
        if feed.mesh is not None:
            given = put_rows(given, feed.mesh, row_axis=int(stacked))
        elif feed.weighed:
            given = given[0], jax.device_put(given[1])
        return Piece(Picked(self._arrays, given[0]), given[1], steps, stacked, last, size)

    def opened(self, piece: Piece) -> Piece:
        """The piece with the arrays of its batch, on the device."""
        return piece._replace(batch=programs.picked(piece.batch))
