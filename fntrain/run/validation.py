"""The validations of a run: each data set by its name, at the parameters trained, or at their average, or at both."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from ..data import feed as feed_lib
from ..data.feed import Feed
from ..data.resident import Resident, resident, unfit
from ..step import programs
from ..step.packed import Packed
from ..step.state import TrainState
from ..step.task import Task
from ..transforms import averaged
from .epoch import fetched
from .history import plain

At = Literal["params", "averaged", "both"]


class Validation:
    """What is measured, in which columns.

    Args:
      feeds: by the name that stands before a column.
      at: at which parameters.
    """

    def __init__(self, feeds: Mapping[str, Feed], at: At):
        self.feeds = dict(feeds)
        self.at = at
        self.there: dict[Feed, Resident] = {}  # those that are on the device

    def put(self, state: TrainState, asked: Any) -> None:
        """Put what is arrays on the device once, as `data_on_device` asks; the rest is read as it is."""
        for feed in self.feeds.values():
            found = None if unfit(feed) else resident(feed, state, asked)
            if found is not None:
                self.there[feed] = found

    def parts(self) -> Iterator[tuple[str, Feed, bool]]:
        """`(prefix of the columns, data, whether at the average)`."""
        for name, feed in self.feeds.items():
            if self.at != "averaged":
                yield f"{name}_", feed, False
            if self.at != "params":
                yield f"{name}_averaged_" if self.at == "both" else f"{name}_", feed, True

    def started(self, task: Task, state: TrainState, stopped: Callable[[], bool]) -> dict[str, Packed] | None:
        """The values of each part, on their way on the device; None if the run has been stopped meanwhile."""
        values = {}
        mean = None
        for prefix, feed, at_average in self.parts():
            if at_average and mean is None:
                mean = dataclasses.replace(state, params=averaged(state))
            at: Any = mean if at_average else state
            metrics = feed_lib.evaluated(feed, at, stopped, self.there.get(feed))
            if stopped():
                return None
            values[prefix] = programs.reported(task, metrics)
        return values


def measured(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `started` has started, as columns; this waits for it."""
    columns: dict[str, Any] = {}
    for prefix, part in values.items():
        columns.update(plain(fetched(part), prefix))
    return columns
