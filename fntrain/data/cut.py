"""How a data set is cut into batches: a batch's size is that of the place where it begins, in epochs and examples."""

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from .._core import check
from .._core.errors import ConfigError

Sizes: TypeAlias = int | dict[float, int]
"""A batch size; or several, by how many epochs are over when each begins."""


class Stage(NamedTuple):
    """From example `example` of `epoch` on, both from 0, batches begin with `size` examples."""

    epoch: int
    example: int
    size: int


class Stretch(NamedTuple):
    """Batches of an epoch, one behind the other, of one size."""

    index: int  # of the first
    start: int  # its first example
    size: int
    count: int
    whole: int  # how many of them are not padded: all, or all but the last


def sizes(given: Any) -> Sizes:
    """A `batch_size` as it was given, looked at and in its shortest form.

    Raises:
      ConfigError: if it is neither an integer >= 1 nor a mapping from epochs to such.
    """
    if not isinstance(given, Mapping):
        return check.integer("batch_size", given, at_least=1)
    wanted = "`batch_size` must be an integer >= 1, or map epochs gone by to such, `{0: 32, 3: 64}`"
    for after, size in given.items():
        try:
            check.number("epochs", after, at_least=0)
            check.integer("size", size, at_least=1)
        except ConfigError:
            raise ConfigError(f"{wanted}; got {check.said(after)}: {check.said(size)}") from None
    if min(given, default=None) != 0:
        raise ConfigError(f"{wanted}; it has to begin at 0, got {check.said(dict(given))}")
    shortest: dict[float, int] = {}
    for after in sorted(given):
        if not shortest or int(given[after]) != next(reversed(shortest.values())):
            shortest[int(after) if after == int(after) else float(after)] = int(given[after])
    return shortest[0] if len(shortest) == 1 else shortest


def largest(batch_size: Sizes) -> int:
    """The largest of the sizes."""
    return max(batch_size.values()) if isinstance(batch_size, dict) else batch_size


def as_json(batch_size: Sizes) -> Any:
    """The sizes, with text for keys."""
    return {str(k): v for k, v in batch_size.items()} if isinstance(batch_size, dict) else batch_size


def from_json(saved: Any) -> Any:
    """The inverse of `as_json`."""
    return {float(k): v for k, v in saved.items()} if isinstance(saved, Mapping) else saved


def in_words(saved: Any) -> str:
    """Sizes, or what `as_json` made of them, for people: `32, 64 after 3 epochs`."""
    if not isinstance(saved, Mapping):
        return "" if saved is None else str(saved)
    return ", ".join(
        f"{size} after {float(after):g} epoch{'s' * (float(after) != 1)}" if float(after) else f"{size}"
        for after, size in saved.items()
    )


def stages(batch_size: Sizes, rows: int) -> tuple[Stage, ...]:
    """Sizes as stages of a data set of so many rows; a fraction of an epoch is the example next to it."""
    if not isinstance(batch_size, dict):
        return (Stage(0, 0, batch_size),)
    found = []
    for after, size in batch_size.items():
        epoch, example = int(after), round((after - int(after)) * rows)
        found.append(Stage(epoch + 1, 0, size) if example == rows else Stage(epoch, example, size))
    return tuple(found)


def going_on(before: Iterable[Stage], now: Iterable[Stage], epoch: int, example: int) -> tuple[Stage, ...]:
    """The stages of a run that was cut as `before` says up to a place, and is cut as `now` says from there on."""
    place, now = (epoch, example), tuple(now)
    size = next(stage.size for stage in reversed(now) if stage[:2] <= place)
    kept = [stage for stage in before if stage[:2] < place]
    if not kept or kept[-1].size != size:
        kept.append(Stage(*place, size))
    return (*kept, *(stage for stage in now if stage[:2] > place))


class Place(NamedTuple):
    """Where a run stands in a data set, and how it came there."""

    epoch: int
    example: int  # the next one: how many of the epoch's were seen
    cut: tuple[Stage, ...]


def place_of(extra: Mapping[str, Any]) -> Place:
    """The place that a checkpoint speaks of; those of the first versions count batches."""
    (epoch, index), state = extra["position"], extra.get("data_state") or {}
    if "cut" in state:
        return Place(epoch, state["example"], tuple(Stage(*stage) for stage in state["cut"]))
    size = extra["identity"].get("batch_size") or 1
    return Place(epoch, index * size, (Stage(0, 0, size),))


class Cut:
    """The batches of every epoch of a data set.

    Args:
      rows: examples in it.
      stages: of which size batches are, from where on; the first from the beginning.
      drop_last: whether an epoch's last batch is left out where it is not whole.

    Attributes:
      edges: epochs, of which those from one to the next are cut alike; and those from the last one on.
    """

    def __init__(self, rows: int, stages: Iterable[Stage], drop_last: bool):
        self.rows = rows
        self.stages: tuple[Stage, ...] = tuple(stages)
        self.drop_last = drop_last
        inside = {stage.epoch + 1 for stage in self.stages if stage.example}
        self.edges: list[int] = sorted({0, *inside, *(stage.epoch for stage in self.stages)})
        self._known: dict[int, list[Stretch]] = {}

    def stretches(self, epoch: int) -> list[Stretch]:
        """An epoch's batches, by size."""
        edges = self.edges
        alike = edges[bisect.bisect(edges, epoch) - 1] if len(edges) > 1 else 0
        known = self._known.get(alike)
        if known is None:
            known = self._known[alike] = list(self._walk(alike))
        return known

    def _walk(self, epoch: int) -> Iterable[Stretch]:
        index = start = 0
        while start < self.rows:
            size = next(stage.size for stage in reversed(self.stages) if stage[:2] <= (epoch, start))
            ends = [stage.example for stage in self.stages if stage.epoch == epoch and stage.example > start]
            # Batches that begin before another size does; the last of them may reach beyond.
            count = -(-(min([*ends, self.rows]) - start) // size)
            whole = min(count, (self.rows - start) // size)
            if self.drop_last and whole < count:
                if whole:
                    yield Stretch(index, start, size, whole, whole)
                return
            yield Stretch(index, start, size, count, whole)
            index, start = index + count, start + count * size

    def at(self, epoch: int, index: int) -> Stretch:
        """The stretch from batch `index` of an epoch on."""
        stretches = self.stretches(epoch)
        if not stretches:
            return Stretch(index, self.rows, self.stages[-1].size, 0, 0)
        found = stretches[-1]
        if len(stretches) > 1 and found.index > index:
            found = next(stretch for stretch in reversed(stretches) if stretch.index <= index)
        first, start, size, count, whole = found  # asked for at every dispatch
        done = index - first
        return Stretch(index, start + done * size, size, count - done, whole - done)

    def example(self, epoch: int, index: int) -> int:
        """How many examples of an epoch are in its batches before number `index`."""
        return min(self.rows, self.at(epoch, index).start) if index else 0

    def length(self, epoch: int) -> int:
        """Batches in an epoch."""
        return sum(stretch.count for stretch in self.stretches(epoch))

    def batches(self, epochs: int) -> int:
        """Batches in the first so many epochs."""
        edges = [*(edge for edge in self.edges if edge < epochs), epochs]
        return sum((after - edge) * self.length(edge) for edge, after in pairwise(edges))

    def sizes(self, batches: int) -> Counter[int]:
        """How many of the first so many batches are of which size."""
        found: Counter[int] = Counter()
        for edge, after in zip(self.edges, [*self.edges[1:], None]):
            length = max(1, self.length(edge))
            epochs = batches // length if after is None else min(batches // length, after - edge)
            inside = after is None or edge + epochs < after  # the last of the batches are of such an epoch
            batches -= epochs * length
            for stretch in self.stretches(edge):
                more = max(0, min(stretch.count, batches - stretch.index)) if inside else 0
                found[stretch.size] += epochs * stretch.count + more
            if inside:
                break
        return found

    @property
    def even(self) -> bool:
        """Whether all batches are of one size."""
        return len({stage.size for stage in self.stages}) == 1

    @property
    def longest(self) -> int:
        """The most batches of an epoch, one behind the other, that are of one size."""
        return max((s.count for edge in self.edges for s in self.stretches(edge)), default=0)

    @property
    def has_tail(self) -> bool:
        """Whether a batch of some epoch is padded."""
        return any(s.whole < s.count for edge in self.edges for s in self.stretches(edge))
