"""From values to places on a line, and the round numbers written beside it."""

import dataclasses
import math
from collections.abc import Iterable

STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Scale:
    """A line from `start` to `end`, in units of the picture, for values from `low` to `high`.

    Examples:
      >>> scale = Scale(0.0, 10.0, 100.0, 0.0)
      >>> scale(2.5), scale.ticks(3)
      (75.0, [0.0, 5.0, 10.0])
      >>> Scale(0.01, 1.0, 0.0, 100.0, log=True)(0.1)
      50.0
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high, x = (
            (math.log10(v) for v in (self.low, self.high, value))
            if self.log
            else (
                self.low,
                self.high,
                value,
            )
        )
        return self.start + (self.end - self.start) * (x - low) / (high - low)

    def ticks(self, most: int) -> list[float]:
        """At most so many round values, evenly spaced: of a logarithmic line, ones, twos and fives."""
        found = _decades(self.low, self.high, most) if self.log else []
        return found if len(found) > 1 else _even(self.low, self.high, most)


def around(
    values: Iterable[float], start: float, end: float, *, log: bool = False, margin: float = 0.06
) -> Scale:
    """A scale that holds all finite values, with a margin on both sides.

    Args:
      values: at least one of them finite.
      start: where the lowest value comes.
      end: where the highest comes.
      log: whether it is logarithmic; then all of them are positive.
      margin: which part of the range is added at each end.
    """
    known = [v for v in values if math.isfinite(v)]
    low, high = min(known), max(known)
    if log:
        factor = (high / low) ** margin
        return Scale(low / factor, high * factor, start, end, log=True)
    wide = (high - low) * margin or abs(low) * 0.5 or 0.5  # of a single value, its neighbourhood
    return Scale(low - wide, high + wide, start, end)


def _even(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / max(most - 1, 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(s * size for s in STEPS if s * size >= rough * (1 - 1e-9))
    while (count := math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1) > most:
        step *= 2
    first = math.ceil(low / step - 1e-9)
    return [(first + i) * step for i in range(count)]


def _decades(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for leads in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        found = [lead * 10.0**e for e in range(first, last + 1) for lead in leads]
        found = [v for v in found if low <= v <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]
