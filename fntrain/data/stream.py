"""Any iterable of batches as a source of epochs."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.errors import DataError
from .._core.typing import Batch
from .arrays import ArrayLoader, Arrays
from .columns import check_columns, check_range, padded
from .tensors import to_numpy


class Stream:
    """Any iterable of batches as a source of epochs.

    An object that can be iterated again (a list, a loader) gives an epoch each time; a generator gives what it
    has, once; a function `epoch -> iterable` is called each epoch.
    """

    has_tail = False  # not known beforehand: a short batch shows itself when it comes

    def __init__(self, data: Iterable[Any] | Callable[[int], Iterable[Any]], name: str = "data"):
        self.source = data
        self.name = name
        self.once = iter(data) if not callable(data) and iter(data) is data else None  # type: ignore[arg-type]
        self.first: tuple[int, list[Any]] | None = None

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


def _form(entry: tuple[Any, ...] | None) -> str:
    return (
        "no such leaf"
        if entry is None
        else f"`{entry[0]}` {entry[2].name}[batch{''.join(f', {n}' for n in entry[1])}]"
    )
