"""Any iterable of batches as a source of epochs."""

import inspect
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import tree
from .._core.errors import DataError
from .._core.typing import Batch
from .arrays import ArrayLoader
from .columns import check_range, check_weight, own_weight, padded
from .examples import batch_them
from .tensors import is_column, is_rows, to_numpy


class Stream:
    """Any iterable of batches as a source of epochs.

    An object that can be iterated again (a list, a loader) gives an epoch each time; a generator gives what it
    has, once; a function, of the epoch or of nothing, is called once an epoch, in order.

    Attributes:
      once: whether there is one epoch only, as of a generator.
      paired: whether what comes are pairs `(batch, weight)`.
    """

    has_tail = False  # not known beforehand: a short batch shows itself when it comes

    def __init__(self, data: Iterable[Any] | Callable[..., Iterable[Any]], name: str = "data"):
        self.source = data
        self.name = name
        self.once: bool = isinstance(data, Iterator)
        self.paired = False
        self.first: tuple[int, list[Any]] | None = None
        self._call = _caller(data, name) if callable(data) else None
        self._endless = _is_endless(data)
        self._begun: tuple[int, Iterator[Any]] | None = (
            None  # an epoch that was opened to look at its first batch
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, np.ndarray]]:
        """The batches of an epoch from number `start` on; those before it are read and dropped."""
        for index, batch in enumerate(itertools.islice(self._opened(epoch), start, None), start):
            yield self.checked(batch, epoch, index)

    @property
    def length(self) -> int | None:
        """Batches in an epoch, if the iterable says; whether that is so, only reading shows."""
        try:
            return len(self.source) or None  # type: ignore[arg-type]
        except Exception:  # whatever its own `__len__` raises
            return None

    @property
    def sure(self) -> bool:
        """Whether `length` is how many batches there are."""
        return isinstance(self.source, list | tuple)

    @property
    def endless(self) -> bool:
        """Whether an epoch is known to have no end; that it is not, does not say that it has one."""
        return self._endless

    def peek(self) -> tuple[Batch, np.ndarray]:
        """The first batch of the first epoch, which is not consumed."""
        return self.checked(self._first(), 0, 0)

    def pair_up(self) -> bool:
        """Take what comes as pairs `(batch, weight)`, if the first is one by its form; whether it is."""
        return self.take_pairs(self._first())

    def take_pairs(self, first: Any) -> bool:
        """As `pair_up`, of a first batch that is known."""
        if self.paired or not is_pair(first):
            return False
        self.paired, self.first = True, None
        return True

    def _first(self) -> Any:
        batches = self._opened(0)
        first = next(batches, None)
        if first is None:
            raise DataError(f"`{self.name}` gave no batch: the iterable is empty")
        self._begun = 0, itertools.chain([first], batches)
        return first

    def _opened(self, epoch: int) -> Iterator[Any]:
        """The epoch's batches as they come: the iterator that was opened already, if it is of this epoch."""
        begun, self._begun = self._begun, None
        if begun is not None and (self.once or begun[0] == epoch):
            return begun[1]
        if self._call is None:
            return iter(self.source)  # type: ignore[arg-type]
        given = self._call(epoch)
        if isinstance(given, ArrayLoader):  # which weighs its batches itself
            return (_OfLoader(given, given.position.epoch, index) for index in range(len(given)))
        if not isinstance(given, Iterable) or isinstance(given, Mapping | tuple | str) or is_column(given):
            raise DataError(
                f"`{self.name}` is a function, and must return an iterable of batches, got {type(given).__name__}; "
                f"for arrays return `fntrain.data_loader(arrays, batch_size, seed=epoch)`"
            )
        self._endless = _is_endless(given)
        return iter(given)

    def checked(self, given: Any, epoch: int, index: int) -> tuple[Batch, np.ndarray]:
        """A batch as it came as `(batch, weight)`, of the form and size of the first."""
        where = f"batch {index} of epoch {epoch + 1}"
        named = f"`{self.name}`: {where}"
        batch, weight = given, None
        if isinstance(given, _OfLoader):
            batch, weight = given.loader.batch(given.epoch, given.index)
        elif self.paired:
            if type(given) is not tuple or len(given) != 2:
                raise DataError(f"{named} is no pair `(batch, weight)`, as the first is: got {_kind(given)}")
            batch, weight = given
        else:
            weight = own_weight(batch)
        if is_rows(batch):
            raise DataError(
                f"{named} is a list of numbers: a list holds batches. Give `np.asarray(data)`, if these are the rows "
                f"of a data set, or make an array of each batch"
            )
        batch = to_numpy(batch, f"{self.name}, {where}")
        try:
            rows = tree.leading_axis(batch, name=f"{self.name}, {where}")
        except DataError as error:
            if self.first is not None or not jax.tree.leaves(batch):
                raise
            raise DataError(f"{error}. If this is an example: {batch_them(given, self.name)}") from None
        form = [(path, np.shape(x)[1:], np.dtype(x.dtype)) for path, x in tree.items(batch)]
        if self.first is None:
            if rows == 0:
                raise DataError(f"{named} is empty, {tree.describe(batch)}")
            self.first = rows, form
        size, expected = self.first
        for want, got in itertools.zip_longest(expected, form):
            if want != got:
                raise DataError(f"{named} is unlike the first: expected {_form(want)}, got {_form(got)}")
        if rows > size:
            raise DataError(f"{named} has {rows} rows, more than the first batch's {size}")
        batch, ones = padded(check_range(batch, named), rows, size)
        if weight is not None:
            ones[:rows] = check_weight(to_numpy(weight, where), rows, named)
        return batch, ones


class _OfLoader(NamedTuple):
    """A batch with its weight, read when it is wanted: of those that are dropped, none is."""

    loader: ArrayLoader
    epoch: int
    index: int


def is_pair(given: Any) -> bool:
    """Whether this may be a pair `(batch, weight)`: one floating-point weight a row, finite and not negative."""
    if type(given) is not tuple or len(given) != 2 or not hasattr(given[1], "dtype"):
        return False
    try:
        batch, weight = to_numpy(given)
        check_weight(weight, tree.leading_axis(batch), "")
    except DataError:
        return False
    return tree.is_trained(weight)


def _caller(function: Callable[..., Any], name: str) -> Callable[[int], Any]:
    """The function as one of the epoch; one of nothing may be told nothing.

    Raises:
      DataError: if it can be called neither way, or its first parameter, which may be any option, has a default.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin, which does not say
        return function
    wanted = f"`{name}` must be a function `epoch -> iterable of batches`, or of no parameters"
    for arguments in ((0,), ()):
        try:
            bound = signature.bind(*arguments)
        except TypeError:
            continue
        if not bound.arguments:
            return lambda epoch: function()
        first = signature.parameters[next(iter(bound.arguments))]
        if first.default is not first.empty and first.name != "epoch":
            raise DataError(
                f"{wanted}; `{first.name}={first.default!r}` is taken for an option of it: write `lambda epoch: ...`"
            )
        return function
    raise DataError(f"{wanted}, got one of {signature}: write `lambda epoch: ...`")


def _is_endless(x: Any) -> bool:
    return isinstance(x, itertools.cycle) or (
        isinstance(x, itertools.repeat) and operator.length_hint(x, -1) < 0
    )


def _kind(given: Any) -> str:
    return tree.describe(given) if jax.tree.leaves(given) else type(given).__name__


def _form(entry: tuple[Any, ...] | None) -> str:
    return (
        "no such leaf"
        if entry is None
        else f"`{entry[0]}` {entry[2].name}[batch{''.join(f', {n}' for n in entry[1])}]"
    )
