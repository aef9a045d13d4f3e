"""The progress of a run: a live bar on a terminal, a table in a notebook, a plain line an epoch elsewhere."""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .._core.lenient import Lenient
from .._core.made import Made
from .notebook import MOST_ROWS, Cell, Output, page
from .streams import LogsAbove

if TYPE_CHECKING:
    from rich.console import Console
from .text import (
    best_index,
    best_text,
    duration_text,
    is_end,
    is_number,
    number_text,
    reading_order,
    spent_text,
    value_text,
)

REFRESH_SECONDS = 0.1  # drawing more often than this costs time that nobody sees


NOTEBOOK_SECONDS = 0.5  # and in a notebook each drawing is a message to the browser


_COUNTS = {"epoch", "epochs", "step", "steps", "updates"}  # said by the line's head already


_DETAILS = {"grad_norm_max", "clip_factor", "loss_scale"}  # in the table at the end only


class _Mark(NamedTuple):
    """A moment of the run, from which a rate is counted: by a clock that stands still while something is compiled."""

    time: float
    step: int

    @classmethod
    def of(cls, now: float, ctx: Any) -> "_Mark":
        """Where the run stands."""
        return cls(now - getattr(ctx, "compile_seconds", 0.0), ctx.step)

    def rate(self, now: "_Mark") -> float | None:
        """Count the steps a second since then; None before anything can be said."""
        steps, seconds = now.step - self.step, now.time - self.time
        return steps / seconds if steps > 0 and seconds > 0 else None


# Columns: in less a bar and a table say nothing, and a width of 0 is one that nobody knows.
_NARROWEST = 32


def _rows(ctx: Any) -> Callable[[int], int] | None:
    """What says how many rows a step's batch has, where not all have as many."""
    return getattr(ctx, "rows_before", None)


def _work(ctx: Any, first: int, last: int) -> int:
    """What lies between two steps, by which time goes: steps, or their rows where not all have as many."""
    rows = _rows(ctx)
    return last - first if rows is None else rows(last) - rows(first)


def _harmless(event: Callable[["ProgressBar", Any], None]) -> Callable[["ProgressBar", Any], None]:
    """An event out of which no failure leads: a display that fails is taken off, and the run goes on."""

    @functools.wraps(event)
    def shown(self: "ProgressBar", ctx: Any) -> None:
        if self._lenient.failed:
            return
        with self._lenient:
            event(self, ctx)
        if self._lenient.failed:
            self.close()

    return shown


class ProgressBar(Made):
    """Show how a run is doing: where it is, how fast it is, what it will come to.

    On a terminal a bar is drawn below one aligned line an epoch, and at the end gives way to a table with the
    first, best and last value of every column. In a notebook one output holds a bar over a table of the epochs.
    Elsewhere (a file, a pipe) there is one plain line an epoch and one at the end, without control codes.

    Only numbers that are on the host already are shown, so no step waits for it: drawing happens at most
    ten times a second, and a step at which none is due costs the reading of a clock. Rates are steps by wall
    time, validation included, so that rate and remaining time agree; what was compiling is left out, and said at
    the end. The first step of a process does not count; nor, once two epochs are over, does the first of them.

    A display that fails (a pipe that is closed, a disk that is full) is said once, by a warning, and taken off; what
    an output's encoding lacks is shown as `?`. While somebody else draws below the text (another bar, of Rich or of
    tqdm, or the run in whose callback this one runs) there are plain lines, above theirs.

    Args:
      console: the Rich console to write to; None makes one on the standard output when the run begins.
      clock: a function that gives the time in seconds; only differences matter.

    Examples:
      >>> import io, types
      >>> from rich.console import Console
      >>> out = io.StringIO()
      >>> clock = iter(range(100)).__next__
      >>> bar = ProgressBar(Console(file=out), clock)
      >>> ctx = types.SimpleNamespace(epoch=1, epochs=2, step=0, steps=6, steps_per_epoch=3, epoch_step=0,
      ...                             batch_size=32, logs={}, resumed_step=0)
      >>> bar.on_fit_begin(ctx)
      >>> for ctx.step in (1, 2, 3):
      ...     bar.on_step_end(ctx)
      >>> ctx.logs = {"loss": 0.5, "accuracy": 0.75, "learning_rate": 1e-3}
      >>> bar.on_epoch_end(ctx)
      >>> print(out.getvalue().rstrip())
      epoch 1/2  loss 0.5000    accuracy 0.7500    lr 0.001     0.6667 steps/s  21.33 examples/s  ETA 0:04
    """

    adds_logs = False
    needs_every_step = False

    def __init__(self, console: "Console | None" = None, clock: Callable[[], float] = time.monotonic):
        self._given = console
        self._clock = clock
        self._live: Any = None
        self._logs = LogsAbove()
        self._notebook: Output | None = None
        self._lenient = Lenient("the progress display", (Exception,))

    def on_fit_begin(self, ctx: Any) -> None:
        """Forget the last run and, on a terminal, draw the bar."""
        self.close()
        self._lenient = Lenient("the progress display", (Exception,))
        self._begin(ctx)

    @_harmless
    def _begin(self, ctx: Any) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = self._given or Console()
        self._encoding = getattr(self._console.file, "encoding", None) or "utf-8"
        self._known = getattr(getattr(ctx, "history", None), "direction", None)
        self._began = self._clock()
        self._due = -math.inf  # the first step always comes through, to be left out of the rates
        self._since: _Mark | None = None  # where the rate of the run counts from
        self._epoch_since: _Mark | None = None  # and that of the epoch
        self._first_epoch_end: _Mark | None = None
        self._running: dict[str, Any] = {}  # what was logged last
        self._columns: dict[str, list[Any]] = {}  # of the epochs seen by this process
        self._epochs: list[int] = []
        self._header = ""
        self._speeds: list[float | None] = []  # of the epochs
        if self._console.is_jupyter:
            self._notebook = Output()
            self._draw(ctx, self._began)
        elif self._console.is_terminal and self._console.is_interactive and self._has_room():
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._logs = LogsAbove(sys.stdout, sys.stderr)
            self._live.start()
            self._logs.start()
            self._draw(ctx, self._began)

    def on_epoch_begin(self, ctx: Any) -> None:
        """Start the clock of the epoch."""
        if self._since is not None:
            self._epoch_since = _Mark.of(self._clock(), ctx)

    def on_step_end(self, ctx: Any) -> None:
        """Draw, if that is due."""
        now = self._clock()
        if now < self._due:
            return
        if self._since is None:
            self._since = self._epoch_since = _Mark.of(now, ctx)
        self._due = math.inf
        if self._live is not None or self._notebook is not None:
            self._redraw(ctx)
            self._due = now + (REFRESH_SECONDS if self._live is not None else NOTEBOOK_SECONDS)

    def on_log(self, ctx: Any) -> None:
        """Remember the running values for the next drawing."""
        self._running = dict(ctx.logs)

    @_harmless
    def on_epoch_end(self, ctx: Any) -> None:
        """Print the epoch's line."""
        now = self._clock()
        row = {k: v for k, v in ctx.logs.items() if is_number(v) and k not in _COUNTS}
        for name in row:
            self._columns.setdefault(name, [None] * len(self._epochs))
        for name, values in self._columns.items():
            values.append(row.get(name))
        self._columns = {name: self._columns[name] for name in sorted(self._columns, key=reading_order)}
        self._epochs.append(ctx.epoch)
        rate = self._epoch_since.rate(_Mark.of(now, ctx)) if self._epoch_since else None
        self._speeds.append(rate)
        if len(self._epochs) == 1:
            self._first_epoch_end = _Mark.of(now, ctx)
        elif len(self._epochs) == 2:
            self._since = self._first_epoch_end
        if self._live is None and self._notebook is None:
            self._print_line(ctx, now)
            return
        if self._live is not None:
            self._print_row(ctx, rate)
        self._draw(ctx, now)

    @_harmless
    def on_fit_end(self, ctx: Any) -> None:
        """Take the bar away and sum the run up."""
        now = self._clock()
        on_terminal, notebook = self._live is not None, self._notebook
        self.close()
        steps = ctx.step - ctx.resumed_step
        said = [
            _count(len(self._epochs), "epoch"),
            f"{_count(steps, 'step')} in {spent_text(now - self._began)}{_compiling(ctx)}",
        ]
        said += self._rates(ctx, self._since, now)
        reason = getattr(ctx, "stop_reason", None) or ""
        if reason:
            said.append(f"stopped: {reason}")
        end = "diverged" if getattr(ctx, "diverged", False) else "done"
        if on_terminal:
            if self._columns:
                self._console.print(self._summary())
            said = self._encoded("  " + ", ".join(["diverged"] * (end == "diverged") + said))
            self._console.print(said, style="dim", highlight=False, markup=False)
            return
        if notebook is not None:
            notebook.show(page(end, None, ", ".join(said), *self._table(ctx)))
            return
        for name in ("val_loss", "loss"):
            values = self._columns.get(name, [])
            i = best_index(name, values, self._known)
            if i is not None:
                if best_text(values[i], f"epoch {self._epochs[i]}") not in reason:
                    said.append(f"best {name} {number_text(values[i])} at epoch {self._epochs[i]}")
                break
        self._plain(f"{end}: " + ", ".join(said))

    def close(self) -> None:
        """Take the bar off the screen, if there is one; a run that ends with an error needs no more."""
        self._notebook = None  # its output stays as it is
        live, self._live = self._live, None
        if live is not None:
            self._logs.stop()
            with contextlib.suppress(
                Exception
            ):  # it gives back what it has taken, whether it can be drawn or not
                live.stop()

    # How it looks.

    def _has_room(self) -> bool:
        """Tell whether there is room for a bar, and nobody who draws one there."""
        return self._console.width >= _NARROWEST and (self._given is not None or not _others_bar())

    def _plain(self, line: str) -> None:
        # Not through Rich, which would wrap the line, and make HTML of it in a notebook.
        line = self._encoded(line.rstrip())
        if self._given is not None or not _others_bar():
            print(line, file=self._console.file, flush=True)
        elif bars := _tqdm():
            bars.write(line)
        else:  # the bar's own way of having text above it
            print(line, file=sys.stdout, flush=True)

    def _encoded(self, text: str) -> str:
        return text.encode(self._encoding, "replace").decode(self._encoding)

    @property
    def _more(self) -> Any:
        """How a text ends that has no room: the dots are a sign that not every encoding has."""
        return "ellipsis" if self._encoded("…") == "…" else "crop"

    @property
    def _dot(self) -> str:
        return " · " if self._encoded("·") == "·" else ", "

    def _short(self, name: str) -> str:
        return self._encoded(_short(name))

    @_harmless
    def _redraw(self, ctx: Any) -> None:
        self._draw(ctx, self._clock())

    def _rates(self, ctx: Any, since: _Mark | None, now: float) -> list[str]:
        """The rates from a moment to now."""
        mark = _Mark.of(now, ctx)
        rate = since.rate(mark) if since else None
        if rate is None or since is None:
            return []
        examples = (
            rate * ctx.batch_size
            if _rows(ctx) is None
            else _work(ctx, since.step, ctx.step) / (mark.time - since.time)
        )
        texts, measured = [f"{number_text(rate)} steps/s"], getattr(ctx, "throughput", None)
        texts.append(f"{number_text(examples)} examples/s")
        if measured is not None and measured.tokens_per_second is not None:
            tokens = examples * measured.tokens_per_second / measured.examples_per_second
            texts.append(f"{number_text(tokens)} tokens/s")
        if measured is not None and measured.mfu is not None:
            texts.append(f"{measured.mfu:.1%} MFU")
        return texts

    def _eta(self, ctx: Any, now: float) -> str:
        since, mark = self._since, _Mark.of(now, ctx)
        if since is None or since.rate(mark) is None or ctx.steps is None or ctx.step >= ctx.steps:
            return ""
        done = _work(ctx, since.step, ctx.step) / (mark.time - since.time)
        return f"ETA {duration_text(_work(ctx, ctx.step, ctx.steps) / done)}"

    def _shown(self) -> list[str]:
        """List the columns of the epoch's line."""
        quiet = _DETAILS if any(self._columns.get("skipped", ())) else {"skipped", *_DETAILS}
        return [name for name in self._columns if name not in quiet and not is_end(name, self._columns)]

    def _text(self, name: str, epoch: int) -> str:
        """A column's value, with its interval if it has one."""
        return value_text(name, {column: values[epoch] for column, values in self._columns.items()})

    def _print_line(self, ctx: Any, now: float) -> None:
        parts = [f"epoch {_of(ctx.epoch, ctx.epochs)}"]
        parts += [f"{_short(n)} {self._text(n, -1):<8}" for n in self._shown()]
        parts += [f"{text:>14}" for text in self._rates(ctx, self._epoch_since, now)] + [self._eta(ctx, now)]
        self._plain("  ".join(parts))

    def _print_row(self, ctx: Any, rate: float | None) -> None:
        from rich.text import Text

        epoch = _of(ctx.epoch, ctx.epochs).rjust(5)
        widths = {name: max(8, len(self._short(name))) for name in self._shown()}
        room = self._console.width - len(epoch) - 10
        kept = []
        for name in sorted(widths, key=lambda n: n not in ("loss", "val_loss")):  # the losses always stay
            room -= widths[name] + 2
            if room < 0:
                break
            kept.append(name)
        kept = [name for name in widths if name in kept]
        cells = ["epoch".rjust(len(epoch)), *(self._short(n).rjust(widths[n]) for n in kept), " steps/s"]
        header = "  ".join(cells)
        if header != self._header:  # the first row, a new column, a window of another width
            self._header = header
            self._console.print(Text(header, style="dim"))
        row = Text.assemble((epoch, "bold"))
        for name in kept:
            values = self._columns[name]
            row.append("  " + number_text(values[-1]).rjust(widths[name]), style=self._style(name, values))
        row.append("  " + (number_text(rate) if rate else "").rjust(8), style="dim")
        self._console.print(row)

    def _style(self, name: str, values: list[Any]) -> str:
        """Green for the best validation so far, red for a value that is not finite."""
        if _is_bad(values[-1]):
            return "red"
        best = name.startswith("val_") and best_index(name, values, self._known) == len(values) - 1
        return "green" if best else ""

    def _table(self, ctx: Any) -> tuple[list[str], list[list[Cell]], int]:
        """The notebook's table: its head, the last epochs, and how many are left out before them."""
        shown = self._shown()
        best = {
            name: best_index(name, self._columns[name], self._known)
            for name in shown
            if name.startswith("val_")
        }
        first = max(0, len(self._epochs) - MOST_ROWS)
        rows = []
        for i in range(first, len(self._epochs)):
            cells = [
                Cell(self._text(name, i), best.get(name) == i, _is_bad(self._columns[name][i]))
                for name in shown
            ]
            speed = self._speeds[i]
            rows.append(
                [Cell(_of(self._epochs[i], ctx.epochs)), *cells, Cell(number_text(speed) if speed else "")]
            )
        return ["epoch", *map(self._short, shown), "steps/s"], rows, first

    def _draw(self, ctx: Any, now: float) -> None:
        if self._notebook is not None:
            where = f"epoch {_of(ctx.epoch, ctx.epochs)}, step {self._step(ctx)}"
            done = ctx.step / ctx.steps if ctx.steps else None
            title = ", ".join(filter(None, [where, self._eta(ctx, now)]))
            note = " · ".join(self._values() + self._speed(ctx, now))
            self._notebook.show(page(title, done, note, *self._table(ctx)))
            return
        from rich.console import Group
        from rich.progress_bar import ProgressBar as Bar
        from rich.table import Table
        from rich.text import Text

        top = Table.grid(expand=True, padding=(0, 2))
        top.add_column(no_wrap=True, overflow=self._more)
        top.add_column(ratio=1)
        top.add_column(no_wrap=True, overflow=self._more)
        top.add_row(
            Text.assemble((f"epoch {_of(ctx.epoch, ctx.epochs)}", "bold"), f"  step {self._step(ctx)}"),
            Bar(ctx.steps, ctx.step, pulse=ctx.steps is None, complete_style="cyan", finished_style="cyan"),
            self._eta(ctx, now) or duration_text(now - self._began),
        )
        parts = self._speed(ctx, now)
        room = self._console.width - sum(len(part) + 3 for part in parts)
        values = []
        for text in self._values():
            if len(text) + 3 <= room:
                values.append(text)
                room -= len(text) + 3
        bottom = Text(self._dot.join(values + parts), style="dim", no_wrap=True, overflow=self._more)
        self._live.update(Group(top, bottom), refresh=True)

    def _step(self, ctx: Any) -> str:
        per_epoch = ctx.epochs is not None and ctx.steps_per_epoch is not None
        return _of(ctx.epoch_step, ctx.steps_per_epoch) if per_epoch else _of(ctx.step, ctx.steps)

    def _speed(self, ctx: Any, now: float) -> list[str]:
        if self._since is None:
            return ["compiling the first step"]
        return self._rates(ctx, self._since, now)

    def _values(self) -> list[str]:
        """List the running values, in reading order."""
        return [
            f"{self._short(name)} {value_text(name, self._running)}"
            for name in sorted(self._running, key=reading_order)
            if is_number(self._running[name])
            and name not in _COUNTS | _DETAILS
            and not is_end(name, self._running)
        ]

    def _summary(self) -> Any:
        from rich import box
        from rich.table import Table

        rows = [["", "first", "best", "at epoch", "last"]]
        for name, values in self._columns.items():
            seen = [v for v in values if v is not None]
            i = best_index(name, values, self._known)
            best = ("", "") if i is None else (number_text(values[i]), str(self._epochs[i]))
            rows.append([self._short(name), number_text(seen[0]), *best, number_text(seen[-1])])
        # In a narrow window whole columns go, those that matter least first, rather than the ends of all.
        widths = [max(map(len, column)) + 3 for column in zip(*rows)]
        kept = [0, 1, 2, 3, 4]
        for column in (1, 3, 2):
            if sum(widths[i] for i in kept) >= self._console.width:
                kept.remove(column)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=True)
        for i in kept:
            table.add_column(rows[0][i], justify="right" if i else "left", no_wrap=True, overflow=self._more)
        for row in rows[1:]:
            table.add_row(*(row[i] for i in kept))
        return table


def _tqdm() -> Any:
    """Tqdm's class, if one of its bars is on the screen."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    return bars if getattr(bars, "_instances", None) else None


def _others_bar() -> bool:
    """Tell whether somebody draws on the terminal already: Rich stands in for the standard output then."""
    return hasattr(sys.stdout, "rich_proxied_file") or _tqdm() is not None


def _short(name: str) -> str:
    return "lr" if name == "learning_rate" else name


def _of(n: int, total: int | None) -> str:
    """`n/total`, the first padded to the width of the second, so that nothing moves while it counts."""
    return str(n) if total is None else f"{n:>{len(str(total))}}/{total}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


def _compiling(ctx: Any) -> str:
    """What of the run's time was compiling, if it was any to speak of."""
    seconds = getattr(ctx, "compile_seconds", 0.0)
    return f" ({spent_text(seconds)} compiling)" if seconds >= 0.1 else ""


def _is_bad(x: Any) -> bool:
    return x is not None and not math.isfinite(x)
