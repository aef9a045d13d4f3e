"""Curves as SVG in a figure: lines, bands and dots, with the numbers beside them as a table."""

import dataclasses
import html
import json
import math
from collections.abc import Iterator, Sequence

from ..text import number_text, tick_texts
from .files import text_of
from .scale import Scale, around
from .tables import table

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 34
MOST_POINTS = 400  # of a line: more than its pixels tell nothing
MOST_ROWS = 40  # of the table below it


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
      label: what it is called in the legend.
      x: where its values are, ascending.
      y: the values; None, NaN and infinity are gaps.
      low: the lower ends of their intervals, or None.
      high: the upper ends.
      color: which of the page's colours.
      dashed: whether the line is.
      dots: the indices of values to mark.
      best: the index of a value to ring.
      listed: whether the legend has it.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    color: int = 0
    dashed: bool = False
    dots: Sequence[int] = ()
    best: int | None = None
    listed: bool = True

    @property
    def classes(self) -> str:
        """Its classes in the page's style."""
        return f"c{self.color % 8}{' dashed' if self.dashed else ''}"


def chart(title: str, series: Sequence[Series], *, x_label: str, log: bool = False, note: str = "") -> str:
    """A figure of curves over one axis, as HTML.

    It has a caption, a legend where there is more than one line, and a table of its numbers, folded. The keys of
    arrows move a line over it, whose values are said below (`report.js`); without scripts all else is there.

    Args:
      title: what is drawn.
      series: the lines, at least one with a finite value.
      x_label: what the horizontal axis counts.
      log: whether the vertical axis is logarithmic.
      note: a sentence below the caption.
    """
    parts, xs = _picture(series, x_label, log)
    name, said = html.escape(title), html.escape(_in_words(title, series, x_label))
    legend = "".join(
        f'<li class="{s.classes}"><svg viewBox="0 0 24 8" aria-hidden="true"><path class="line" d="M1 4H23"/></svg>'
        f"{html.escape(s.label)}</li>"
        for s in series
        if s.listed
    )
    legend = f'<ul class="legend">{legend}</ul>' if len(series) > 1 else ""
    folded = f"<summary>Numbers<span class='hidden'> of {name}</span></summary>{_numbers(series, x_label)}"
    return (
        f'<figure class="chart"><figcaption><h3>{name}</h3>{legend}'
        f"{f'<p>{html.escape(note)}</p>' if note else ''}</figcaption>"
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{said}">'
        f'{parts}<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" hidden=""/></svg>'
        f'<output aria-live="polite"></output><script type="application/json">{_data(series, xs, x_label)}</script>'
        f"<details>{folded}</details></figure>"
    )


def picture(title: str, series: Sequence[Series], *, x_label: str, log: bool = False) -> str:
    """A chart alone, as an SVG document with its own style: light or dark as the reader's system is.

    Args:
      title: what is drawn; the legend stands beside it, with each line's last value.
      series: the lines, at least one with a finite value.
      x_label: what the horizontal axis counts.
      log: whether the vertical axis is logarithmic.
    """
    parts, _ = _picture(series, x_label, log)
    legend, last = "", {s.label: [y for y in s.y if is_finite(y)] for s in series}
    for s in series:
        value = number_text(last[s.label][-1]) if last[s.label] else "-"
        legend += (
            f'<tspan class="{s.classes}" style="fill:var(--c)">● </tspan>{html.escape(s.label)} {value}  '
        )
    said = html.escape(_in_words(title, series, x_label))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -44 {WIDTH} {HEIGHT + 44}" width="{WIDTH}" '
        f'height="{HEIGHT + 44}" role="img" aria-label="{said}"><style>{text_of("chart.css")}</style>'
        f'<rect y="-44" width="100%" height="100%" style="fill:var(--card)"/>'
        f'<text x="8" y="-26" style="font:600 14px system-ui,sans-serif;fill:var(--ink)">{html.escape(title)}</text>'
        f'<text x="8" y="-6" class="tick" xml:space="preserve">{legend}</text>{parts}</svg>'
    )


def _picture(series: Sequence[Series], x_label: str, log: bool) -> tuple[str, Scale]:
    """Axes and lines, and the horizontal scale."""
    finite = [v for s in series for column in (s.y, s.low, s.high) for v in column or () if is_finite(v)]
    ys = around(finite, HEIGHT - BOTTOM, TOP, log=log)  # type: ignore[arg-type]
    xs = around([x for s in series for x in s.x], LEFT, WIDTH - RIGHT, margin=0.02)
    parts = [*_axes(xs, ys, x_label)]
    for s in series:
        parts += _drawn(s, xs, ys)
    return "".join(parts), xs


def is_finite(value: float | None) -> bool:
    """Whether there is a value, and it is a finite number."""
    return value is not None and math.isfinite(value)


def _axes(xs: Scale, ys: Scale, x_label: str) -> Iterator[str]:
    rows = ys.ticks(6)
    for value, text in zip(rows, tick_texts(rows)):
        y = ys(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    columns = [value for value in xs.ticks(6) if value == int(value)]
    for value, text in zip(columns, tick_texts(columns)):
        x, y = xs(value), HEIGHT - BOTTOM + 16
        yield f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{text}</text>'
    yield f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{html.escape(x_label)}</text>'


def _drawn(s: Series, xs: Scale, ys: Scale) -> Iterator[str]:
    if s.low is not None and s.high is not None:
        for run in _runs(s, s.low, s.high):
            there = [f"{xs(s.x[i]):.1f} {ys(s.high[i]):.1f}" for i in run]  # type: ignore[arg-type]
            back = [f"{xs(s.x[i]):.1f} {ys(s.low[i]):.1f}" for i in reversed(run)]  # type: ignore[arg-type]
            yield f'<path class="band {s.classes}" d="M{"L".join(there + back)}Z"/>'
    marked = set(s.dots)
    for run in _runs(s, s.y):
        if len(run) == 1:
            marked.add(run[0])
        points = "L".join(f"{xs(s.x[i]):.1f} {ys(s.y[i]):.1f}" for i in _thinned(s, run))  # type: ignore[arg-type]
        yield f'<path class="line {s.classes}" d="M{points}"/>'
    for i in sorted(marked):
        if is_finite(s.y[i]):
            yield f'<circle class="dot {s.classes}" cx="{xs(s.x[i]):.1f}" cy="{ys(s.y[i]):.1f}" r="2.6"/>'  # type: ignore[arg-type]
    if s.best is not None:
        x, y = xs(s.x[s.best]), ys(s.y[s.best])  # type: ignore[arg-type]
        yield f'<circle class="ring {s.classes}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'


def _runs(s: Series, *columns: Sequence[float | None]) -> list[list[int]]:
    """The indices of values that follow each other without a gap."""
    runs: list[list[int]] = [[]]
    for i in range(len(s.x)):
        if all(is_finite(column[i]) for column in columns):
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _thinned(s: Series, run: list[int]) -> list[int]:
    """At most so many points of a line: of each stretch its ends, its lowest and its highest, so no peak is lost."""
    if len(run) <= MOST_POINTS:
        return run
    size = math.ceil(4 * len(run) / MOST_POINTS)
    kept: set[int] = set()
    for first in range(0, len(run), size):
        part = run[first : first + size]
        kept |= {
            part[0],
            part[-1],
            min(part, key=lambda i: s.y[i] or 0.0),
            max(part, key=lambda i: s.y[i] or 0.0),
        }
    return sorted(kept)


def _in_words(title: str, series: Sequence[Series], x_label: str) -> str:
    """What the picture shows, for who does not see it: where each line begins and ends, and its best value."""
    said = []
    for s in series:
        known = [i for i in range(len(s.x)) if is_finite(s.y[i])]
        if not known:
            said.append(f"{s.label}: no finite value")
            continue
        first, last = known[0], known[-1]
        best = "" if s.best is None else f", best {number_text(s.y[s.best])} at {x_label} {s.x[s.best]:g}"
        said.append(
            f"{s.label}: from {number_text(s.y[first])} at {x_label} {s.x[first]:g} to {number_text(s.y[last])} at "
            f"{x_label} {s.x[last]:g}{best}"
        )
    return f"{title}. {'; '.join(said)}."


def _data(series: Sequence[Series], xs: Scale, x_label: str) -> str:
    """What the script reads: for each place on the axis, where it is and what to say of it."""
    by_x: dict[float, list[str]] = {}
    for s in series:
        for i, x in enumerate(s.x):
            if is_finite(s.y[i]):
                by_x.setdefault(x, []).append(f"{s.label} {_with_interval(s, i)}")
    kept = sorted(by_x)
    kept = kept[:: math.ceil(len(kept) / MOST_POINTS)] or kept
    places = [[round(xs(x), 1), "\n".join([f"{x_label} {x:g}", *by_x[x]])] for x in kept]
    return json.dumps(places, ensure_ascii=False).replace("<", "\\u003c")


def _with_interval(s: Series, i: int) -> str:
    text = number_text(s.y[i])
    if s.low is not None and s.high is not None and is_finite(s.low[i]) and is_finite(s.high[i]):
        text += f" [{number_text(s.low[i])}, {number_text(s.high[i])}]"
    return text


def _numbers(series: Sequence[Series], x_label: str) -> str:
    at: dict[float, dict[int, str]] = {}
    for n, s in enumerate(series):
        for i, x in enumerate(s.x):
            if is_finite(s.y[i]):
                at.setdefault(x, {})[n] = _with_interval(s, i)
    kept = sorted(at)
    step = math.ceil(len(kept) / MOST_ROWS)
    kept = kept[(len(kept) - 1) % step :: step]  # the last one is always among them
    rows = [[f"{x:g}", *(at[x].get(n, "") for n in range(len(series)))] for x in kept]
    return table([x_label, *(s.label for s in series)], rows)
