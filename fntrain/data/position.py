"""Where a run stands in its data."""

from typing import NamedTuple


class Position(NamedTuple):
    """Where a run stands in its data: the next batch is number `index` of `epoch`, both from 0."""

    epoch: int
    index: int
