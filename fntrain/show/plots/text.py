"""Learning curves as text: what a terminal shows where there is no Matplotlib, or no display."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..._core import check
from ..text import Known, best_index, number_text, value_text
from .panels import SLIM, columns_of, is_logarithmic, panels

# Dots of a braille character, by row and column, as bits of its code point.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


class _Scale(NamedTuple):
    """From values to rows: 0 is the lowest value, 1 the highest."""

    low: float
    high: float
    logarithmic: bool

    def of(self, values: np.ndarray) -> np.ndarray:
        if self.high == self.low:
            return np.full(np.shape(values), 0.5)
        if self.logarithmic:
            return np.log(values / self.low) / np.log(self.high / self.low)
        return (values - self.low) / (self.high - self.low)

    def at(self, height: float) -> float:
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** height)
        return self.low + height * (self.high - self.low)


def text(
    history: Mapping[str, Sequence[Any]],
    *,
    metrics: Iterable[str] | None = None,
    width: int = 78,
    height: int = 8,
    ascii: bool = False,
) -> str:
    """Learning curves for a terminal: `print(fntrain.plots.text(history))`; Matplotlib is not needed.

    One panel a metric, as in `learning_curves`: the training a fine line, the validation circles, the best epoch in
    the head; below, half as high, the learning rate and the gradient norm. A loss that falls far is drawn on a
    logarithmic axis; what is missing, NaN or infinite is a gap.

    Args:
      history: column -> one value an epoch, as `fit` returns it.
      metrics: the columns to draw, without `val_`; None draws all but those that only keep the books.
      width: characters of a line, >= 40.
      height: lines of a panel, >= 3.
      ascii: use no character beyond ASCII.

    Raises:
      ConfigError: if a size is too small, or `metrics` names what `history` doesn't have.
      DataError: if there is nothing to draw, or the columns differ in length.

    Examples:
      >>> print(text({"accuracy": [0.1, 0.5, 0.7, 0.8]}, width=40, height=3, ascii=True))
      accuracy          best 0.8000 at epoch 4
      0.8000 |                 ...............
      0.4500 |     .............
      0.1000 |.....
              1                              4
              . train 0.8000
    """
    check.integer("width", width, at_least=40)
    check.integer("height", height, at_least=3)
    check.flag("ascii", ascii)
    known = getattr(history, "direction", None)
    epochs, columns = columns_of(history)
    names = panels(columns, metrics)
    ordered = [name for name in names if name not in SLIM] + [name for name in SLIM if name in names]
    drawn = [
        _panel(name, epochs, columns, known, width, max(3, height // 2) if name in SLIM else height, ascii)
        for name in ordered
    ]
    return "\n\n".join(panel for panel in drawn if panel)


def _panel(
    name: str,
    epochs: np.ndarray,
    columns: Mapping[str, np.ndarray],
    known: Known,
    width: int,
    height: int,
    ascii: bool,
) -> str:
    line, ring = (".", "o") if ascii else ("⠒", "○")
    series = [("" if name in SLIM else "train", line, name), ("validation", ring, f"val_{name}")]
    series = [s for s in series if s[2] in columns and np.isfinite(columns[s[2]]).any()]
    if not series:
        return ""
    together = np.concatenate([columns[column] for _, _, column in series])
    low, high = float(np.nanmin(together)), float(np.nanmax(together))
    scale = _Scale(low, high, is_logarithmic(name, low, high))
    at = {row: scale.at(1 - row / (height - 1)) for row in (0, height // 2, height - 1)}
    ticks = _ticks({height // 2: low} if low == high else at, scale.logarithmic)
    margin = max(map(len, ticks.values()))
    across = width - margin - 2
    places = _places(epochs)
    grid = np.full((height, across), " ")
    for _, mark, column in series:
        if column.startswith("val_"):
            _mark(grid, places, scale.of(columns[column]), mark)
        elif ascii:
            _draw(grid, places, scale.of(columns[column]), mark)
        else:
            _draw_braille(grid, places, scale.of(columns[column]))
    axis = "|" if ascii else "│"
    rows = [f"{ticks.get(i, ''):>{margin}} {axis}{''.join(row)}" for i, row in enumerate(grid)]
    head = _head(name, epochs, columns, series[-1][2], known, width)
    indent = " " * (margin + 2)
    first, last = f"{epochs[0]:.0f}", f"{epochs[-1]:.0f}"
    foot = first if len(epochs) == 1 else first + last.rjust(across - len(first))
    ends = [
        f"{mark} {label} {value_text(column, _last(column, columns))}".replace("  ", " ")
        for label, mark, column in series
    ]
    return "\n".join(row.rstrip() for row in (head, *rows, indent + foot, indent + "   ".join(ends)))


def _ticks(at: Mapping[int, float], logarithmic: bool) -> dict[int, str]:
    """The numbers beside the rows: over even spaces all with as many decimals as make four digits of the largest."""
    texts = {row: number_text(value) for row, value in at.items()}
    plain = not any("e" in text for text in texts.values()) and any("." in text for text in texts.values())
    if logarithmic or len(at) == 1 or not plain:
        return texts
    decimals = max(0, 3 - math.floor(math.log10(max(map(abs, at.values())))))
    return {row: f"{value:.{decimals}f}" for row, value in at.items()}


def _last(name: str, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The row of a column's last finite value."""
    last = np.flatnonzero(np.isfinite(columns[name]))[-1]
    return {column: float(values[last]) for column, values in columns.items()}


def _head(
    name: str,
    epochs: np.ndarray,
    columns: Mapping[str, np.ndarray],
    judged: str,
    known: Known,
    width: int,
) -> str:
    best = best_index(judged, columns[judged].tolist(), known)
    said = "" if best is None else f"best {number_text(columns[judged][best])} at epoch {epochs[best]:.0f}"
    return name.replace("_", " ")[: width - len(said) - 1].ljust(width - len(said)) + said


def _places(epochs: np.ndarray) -> np.ndarray:
    """Where each epoch stands across, from 0 to 1."""
    span = epochs[-1] - epochs[0]
    return (epochs - epochs[0]) / span if span > 0 else np.full(len(epochs), 0.5)


def _cells(places: np.ndarray, heights: np.ndarray, rows: int, across: int) -> tuple[np.ndarray, np.ndarray]:
    """The row and column of finite points on a grid."""
    x = np.rint(places * (across - 1)).astype(int)
    y = np.rint((1 - heights) * (rows - 1)).astype(int)
    return y, x


def _mark(grid: np.ndarray, places: np.ndarray, heights: np.ndarray, mark: str) -> None:
    finite = np.isfinite(heights)
    grid[_cells(places[finite], heights[finite], *grid.shape)] = mark


def _line(places: np.ndarray, heights: np.ndarray, rows: int, across: int) -> tuple[np.ndarray, np.ndarray]:
    """The points of a line through those that are finite, as fine as the grid; gaps stay gaps."""
    finite = np.isfinite(heights)
    x, y = [places[finite]], [heights[finite]]
    steps = 4 * max(rows, across)
    for i in np.flatnonzero(finite[:-1] & finite[1:]):
        more = np.linspace(0, 1, max(2, int(steps * (places[i + 1] - places[i])) + rows))
        x.append(places[i] + more * (places[i + 1] - places[i]))
        y.append(heights[i] + more * (heights[i + 1] - heights[i]))
    return _cells(np.concatenate(x), np.concatenate(y), rows, across)


def _draw(grid: np.ndarray, places: np.ndarray, heights: np.ndarray, mark: str) -> None:
    grid[_line(places, heights, *grid.shape)] = mark


def _draw_braille(grid: np.ndarray, places: np.ndarray, heights: np.ndarray) -> None:
    """A line of dots, two a character across and four down."""
    rows, across = grid.shape
    y, x = _line(places, heights, 4 * rows, 2 * across)
    dots = np.zeros((rows, across), int)
    np.bitwise_or.at(dots, (y // 4, x // 2), _DOTS[y % 4, x % 2])
    there = dots > 0
    grid[there] = [chr(0x2800 + code) for code in dots[there]]
    finite = np.isfinite(heights)
    alone = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]  # one dot is easily missed
    grid[_cells(places[alone], heights[alone], rows, across)] = "•"
