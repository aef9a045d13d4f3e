"""The picture of a finding: what was measured over the epochs, and the level beyond which it is a cause."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from ...show.plots.lines import lines
from ...show.report.chart import Series, chart, is_finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from .evidence import Evidence

MOST_LINES = 6  # of a picture; more cannot be told apart
LEVEL = 7  # the colour of what is no measurement


@dataclasses.dataclass(frozen=True)
class Picture:
    """Lines over the epochs, and levels; drawn by Matplotlib, or as a chart of a page."""

    title: str
    series: tuple[Series, ...]
    log: bool = False

    def plot(self, path: str | PathLike[str] | None = None) -> "Figure":
        """As a figure of Matplotlib's, saved if there is a path."""
        return lines(self.title, self.series, x_label="epoch", log=self.log, path=path)

    @property
    def html(self) -> str:
        """As a figure of a page."""
        return chart(self.title, self.series, x_label="epoch", log=self.log)


def picture(
    evidence: Evidence, title: str, columns: Mapping[str, str] | Sequence[str], levels: Mapping[str, float]
) -> Picture | None:
    """What columns say over the epochs, and the levels as dashed lines; None where none of them has a finite value.

    The vertical axis is logarithmic where all is positive and spans two powers of ten.

    Args:
      evidence: the run.
      title: what is drawn.
      columns: those to draw, or each with its name in the legend. Of more than a few, those that lie outermost.
      levels: what to hold them to, by its name in the legend.
    """
    rows = [row for row in evidence.rows if evidence.has_ended(row)]
    names = columns if isinstance(columns, Mapping) else {name: name for name in columns}
    epochs = [float(row.get("epoch") or i) for i, row in enumerate(rows, 1)]
    values = {name: [_number(row.get(name)) for row in rows] for name in names}
    values = {name: ys for name, ys in values.items() if any(map(is_finite, ys))}
    if not values:
        return None
    drawn = [Series(names[name], epochs, values[name], color=i) for i, name in enumerate(_outermost(values))]
    ends = [epochs[0], epochs[-1]] if len(epochs) > 1 else [epochs[0] - 0.5, epochs[0] + 0.5]
    held = [
        Series(name, ends, [level] * 2, color=LEVEL, dashed=True)
        for name, level in levels.items()
        if math.isfinite(level)
    ]
    every = [y for s in [*drawn, *held] for y in s.y if y is not None and math.isfinite(y)]
    log = min(every) > 0 and max(every) / min(every) > 100
    more = f", {len(drawn)} of {len(values)}" * (len(drawn) < len(values))
    return Picture(title + more, (*drawn, *held), log)


def _number(x: object) -> float | None:
    return float(x) if isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) else None


def _outermost(values: Mapping[str, Sequence[float | None]]) -> list[str]:
    """The names to draw, as they came: the lowest and the highest by their medians, if there are too many."""
    if len(values) <= MOST_LINES:
        return list(values)
    middle = {name: statistics.median(y for y in ys if y is not None) for name, ys in values.items()}
    ranked, half = sorted(middle, key=lambda name: middle[name]), MOST_LINES // 2
    kept = {*ranked[:half], *ranked[-half:]}
    return [name for name in values if name in kept]
