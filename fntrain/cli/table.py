"""Tables of text in a terminal, or for a program that reads them."""

import itertools


class Page:
    """What a command has to show, written at once when it is whole."""

    def __init__(self):
        from rich.console import Console

        self._console = Console(highlight=False)
        if not self._console.is_terminal:  # no line is cut for a reader that is a program
            self._console = Console(width=10_000, color_system=None, highlight=False)
        self._console.begin_capture()

    def table(
        self, title: str, header: tuple[str, ...], rows: list[tuple[str, ...]], sides: str = ""
    ) -> None:
        """Add a table under its title; `sides` has an `r` for each column of numbers."""
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim", show_header=any(header)
        )
        for name, side in itertools.zip_longest(header, sides):
            table.add_column(name, justify="right" if side == "r" else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        self._console.print("", Text(title, style="bold"), Padding(table, (0, 0, 0, 2)), sep="\n")

    def line(self, text: str) -> None:
        """Add a line of its own."""
        self._console.print("", text, sep="\n", markup=False)

    def print(self) -> None:
        """Write what was added, without the blanks at the ends of lines."""
        print("\n".join(line.rstrip() for line in self._console.end_capture().strip().splitlines()))
