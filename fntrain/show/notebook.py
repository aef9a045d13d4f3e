"""The progress of a run in a notebook: one output that is replaced, a bar over a table of epochs."""

import html
from typing import Any, NamedTuple

MOST_ROWS = 20  # a table of a thousand epochs would be sent anew with every update


class Cell(NamedTuple):
    """A text of the table, and whether it stands out as the best, or as not finite."""

    text: str
    best: bool = False
    bad: bool = False


def page(
    title: str, done: float | None, note: str, columns: list[str], rows: list[list[Cell]], left_out: int = 0
) -> str:
    """Write the output as HTML.

    Args:
      title: where the run is.
      done: how much of it is over, from 0 to 1; None draws no bar.
      note: values and rates, below the bar.
      columns: the head of the table.
      rows: a row an epoch.
      left_out: how many epochs there were before these.

    Examples:
      >>> page("done", None, "2 epochs", ["epoch", "loss"], [[Cell("1/1"), Cell("0.5")]])[:42]
      '<div><b>done</b><br><small>2 epochs</small'
    """
    bar = "" if done is None else f" <progress value='{done:.4f}' max='1' style='width:20em'></progress>"
    out = f"<div><b>{html.escape(title)}</b>{bar}<br><small>{html.escape(note)}</small></div>"
    if not rows:
        return out
    if left_out > 0:
        out += f"<small>the last {len(rows)} of {left_out + len(rows)} epochs</small>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return out + f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: Cell) -> str:
    color = "color:#c00;" if cell.bad else ""
    text = html.escape(cell.text)
    return f"<td style='{color}text-align:right'>{f'<b>{text}</b>' if cell.best else text}</td>"


def in_notebook() -> bool:
    """Whether what is displayed comes out in a notebook's cell."""
    from rich.console import Console

    return Console().is_jupyter


class Output:
    """An output of a notebook's cell that can be replaced."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle: Any = display(_Html(""), display_id=True)

    def show(self, text: str) -> None:
        """Replace it."""
        if self._handle is not None:  # no kernel is listening
            self._handle.update(_Html(text))


class _Html:
    def __init__(self, text: str):
        self.text = text

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return "the progress of a run"
