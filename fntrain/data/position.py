"""Where a run stands in its data."""

from typing import NamedTuple


class Position(NamedTuple):
    """Where a run stands in its data: the next batch is number `index` of `epoch`, both from 0.

    A checkpoint knows the place of arrays by their examples too (`cut.Place`), as batches may be of another size later.
    """

    epoch: int
    index: int
