"""A number with the interval that it is known to."""

from typing import Any, NamedTuple


class Interval(NamedTuple):
    """A score, and how far it may be off for want of data.

    In the rows of a run the value stands under the metric's name, the ends as `…_low` and `…_high`.
    """

    value: Any
    low: Any
    high: Any
