"""Grain's datasets and loaders as a source of epochs, resumed by the iterator's own state."""

import functools
import json
import re
import sys
import warnings
from collections.abc import Iterator
from itertools import count
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.digest import crc32
from .._core.errors import DataError
from .._core.typing import Batch
from .position import Position
from .stream import Stream

EVERY = 8  # batches between two states that are kept of an iterator
_KEPT = 64  # of those: enough for what is read ahead of the position a checkpoint asks for


def is_grain(data: Any) -> bool:
    """Whether this is a Grain `MapDataset`, `IterDataset` or `DataLoader`; Grain itself is not imported for it."""
    grain = sys.modules.get("grain")
    return grain is not None and isinstance(data, grain.MapDataset | grain.IterDataset | grain.DataLoader)


class GrainSource:
    """A Grain dataset or loader whose elements are batches, as a source of epochs.

    A `MapDataset` is read by index, through Grain's own reading threads, and each epoch as Grain's `repeat` would
    give it: what `shuffle` draws is drawn anew. An `IterDataset` or a `DataLoader` is iterated from its beginning
    each epoch, and so gives each time what it gives the first time; one that repeats itself has a single epoch
    without an end. A batch shorter than the first is padded with rows of weight 0.

    `state` and `restore` are for a checkpoint. A `MapDataset` needs none: its batches are functions of their
    position. Of an iterator every eighth state is kept; a run that is resumed sets the one before its position,
    and reads the few batches between.

    Args:
      data: the dataset or loader, batched.
      name: the argument's name in messages.

    Raises:
      DataError: when read: if it is empty, a batch is unlike the first, or an element was filtered out after
        batching.
    """

    has_tail = False  # not known beforehand: a short batch shows itself when it comes

    def __init__(self, data: Any, name: str = "data"):
        self.data = data
        self.name = name
        self._indexed = isinstance(data, sys.modules["grain"].MapDataset)
        self._checks = Stream([], name)  # the form that all batches share
        self._first: tuple[Batch, np.ndarray] | None = None
        self._given: Any = None  # the first batch as it came
        self._restored: dict[str, Any] | None = None
        # Replaced as a whole, never changed: it may be read while another thread reads ahead.
        self._states: tuple[tuple[Position, Any], ...] = ()

    @property
    def sure(self) -> bool:
        """Whether `length` is how many batches there are."""
        return self._indexed

    @property
    def endless(self) -> bool:
        """Whether an epoch is known to have no end; that it is not, does not say that it has one."""
        return self._indexed and len(self.data) >= 2**62

    def pair_up(self) -> bool:
        """Take elements as pairs `(batch, weight)`, if the first is one by its form; whether it is."""
        self.peek()
        if not self._checks.take_pairs(self._given):
            return False
        self._first = None
        return True

    @property
    def length(self) -> int | None:
        """Batches in an epoch, if the dataset says, and ends."""
        return len(self.data) if self._indexed and len(self.data) < 2**62 else None

    def peek(self) -> tuple[Batch, np.ndarray]:
        """The first batch, which is not consumed."""
        if self._first is None:
            iterator = self._iterator(0, 0)
            try:
                batch = next(iterator, None)
            finally:
                _close(iterator)
            if batch is None:
                raise DataError(
                    f"`{self.name}` gave no batch: the Grain pipeline is empty, or its first is filtered"
                )
            self._given = batch
            self._first = self._checks.checked(batch, 0, 0)
        return self._first

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, np.ndarray]]:
        """The batches of an epoch from number `start` on."""
        self.peek()  # what all batches have to be like is that of the first of all, wherever this begins
        iterator, first = self._iterator(epoch, start), start
        if not self._indexed:
            first = self._seek(iterator, epoch, start)
        try:
            for index in count(first):
                if not self._indexed and index % EVERY == 0:
                    self._states = (
                        *self._states[-_KEPT:],
                        (Position(epoch, index), _json(iterator.get_state())),
                    )
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                if index < start:
                    continue
                if batch is None:
                    raise DataError(
                        f"`{self.name}`: element {index} of epoch {epoch + 1} was filtered out of a `MapDataset` of "
                        f"batches; filter before batching: `dataset.to_iter_dataset().filter(...).batch(...)`"
                    )
                yield self._checks.checked(batch, epoch, index)
        finally:
            _close(iterator)

    def state(self, position: Position) -> dict[str, Any]:
        """What a checkpoint at `position`, of which later batches may have been read already, has to hold: JSON."""
        for at, state in reversed(self._states):
            if at.epoch == position.epoch and at.index <= position.index:
                return {"epoch": at.epoch, "index": at.index, "iterator": state}
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Let the next `epoch` begin from a state that `state` gave."""
        self._restored = state or None
        self._states = ()

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a resumed run to see the same data."""
        batch, _ = self.peek()
        return {
            "kind": "grain",
            "pipeline": _pipeline(self.data),
            "batches": self.length,
            "first_batch": {
                path: f"{np.dtype(x.dtype).name}{list(x.shape)}" for path, x in tree.items(batch)
            },
            "first_batch_crc32": self._digest(),
        }

    def _iterator(self, epoch: int, start: int) -> Any:
        if not self._indexed:
            return iter(self.data)
        # As a slice of the repeated dataset, so that Grain's threads read it ahead.
        endless = self.length is None
        rows = self.data if endless else self.data.repeat(epoch + 1)
        rows = rows[start if endless else epoch * len(self.data) + start :]
        return iter(rows.to_iter_dataset(allow_nones=True))

    def _seek(self, iterator: Any, epoch: int, start: int) -> int:
        """Set the restored state, if it is of this epoch and not behind `start`; the number of the next batch."""
        restored = self._restored or {}
        if restored.get("epoch") == epoch and restored["index"] <= start:
            state = restored["iterator"]
            iterator.set_state(state["text"].encode() if "text" in state else state["value"])
            return restored["index"]
        if start > 0:
            warnings.warn(
                f"`{self.name}`: no state of the Grain iterator was saved for batch {start} of epoch {epoch + 1}; "
                f"the batches before it are read again and dropped",
                stacklevel=2,
            )
        return 0

    def _digest(self) -> int | None:
        """A sum over the first batch; None where that is not the same each time it is read."""
        if not self._indexed:
            return None  # reading again may mean to start processes
        digests = {_crc(self.data[0]) for _ in range(2)}
        return digests.pop() if len(digests) == 1 else None


def _crc(batch: Batch) -> int:
    return functools.reduce(lambda digest, x: crc32(x, digest), jax.tree.leaves(batch), 0)


def _json(state: Any) -> dict[str, Any]:
    """An iterator's state as JSON, and a copy: `DataLoader` gives bytes of text, datasets give dicts."""
    if isinstance(state, bytes):
        return {"text": state.decode()}
    return {"value": json.loads(json.dumps(state))}


def _pipeline(data: Any) -> str:
    """The steps of a pipeline, last to first, without addresses in memory."""
    if not hasattr(data, "parents"):  # a DataLoader, whose iterator knows more about it than it says itself
        iterator = iter(data)
        try:
            state = json.loads(iterator.get_state())
        finally:
            _close(iterator)
        return f"DataLoader({state.get('sampler')}, {state.get('data_source')})"
    steps = [re.sub(r" at 0x[0-9a-f]+", "", str(data))]
    return " < ".join(steps + [_pipeline(parent) for parent in data.parents])


def _close(iterator: Any) -> None:
    getattr(iterator, "close", lambda: None)()
