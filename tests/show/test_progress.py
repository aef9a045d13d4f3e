"""The progress display: its arithmetic by a fake clock, its text on a terminal and off, and what it costs."""

import io
import math
import re
import sys
import timeit
import types

import numpy as np
import pytest
from hypothesis import given, strategies as st
from rich.console import Console

from fntrain.show.progress import ProgressBar
from fntrain.show.text import best_index, better, duration_text, is_number, number_text

CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


def screen(text):
    """What a terminal shows after `text`: the lines, with the codes that move the cursor and erase carried out."""
    lines, row, column = [""], 0, 0
    for number, code, back, down, words in CODE.findall(text):
        if back:
            column = 0
        elif down:
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif words:
            lines[row] = lines[row][:column].ljust(column) + words + lines[row][column + len(words) :]
            column += len(words)
        elif code == "A":
            row = max(0, row - int(number or 1))
        elif code == "K":
            assert number == "2"
            lines[row] = ""
        else:
            assert code in "mlh", f"a code this terminal does not know: {number}{code}"
    return [line.rstrip() for line in lines]


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Run:
    """What `fit` does, as far as a callback can see it."""

    def __init__(self, terminal=False, width=100, **fields):
        self.clock, self.out = Clock(), io.StringIO()
        console = Console(
            file=self.out, width=width, force_terminal=terminal, force_interactive=terminal, color_system=None
        )
        self.bar = ProgressBar(console, self.clock)
        start = dict(epoch=1, epochs=4, step=0, steps=40, steps_per_epoch=10, epoch_step=0)
        start |= dict(batch_size=32, logs={}, resumed_step=0)
        self.ctx = types.SimpleNamespace(**{**start, **fields})

    def begin(self):
        self.bar.on_fit_begin(self.ctx)
        return self

    def steps(self, n, seconds, chunk=1):
        for _ in range(n):
            self.clock.now += seconds
            self.ctx.step += chunk
            self.ctx.epoch_step += chunk
            self.bar.on_step_end(self.ctx)

    def end_epoch(self, logs, seconds=0.0):
        self.clock.now += seconds
        self.ctx.logs = logs
        self.bar.on_epoch_end(self.ctx)

    def epoch(self, number, n=10, seconds=0.1, **logs):
        self.ctx.epoch, self.ctx.epoch_step = number, 0
        self.bar.on_epoch_begin(self.ctx)
        self.steps(n, seconds)
        self.end_epoch(logs)

    def end(self):
        self.bar.on_fit_end(self.ctx)
        return self.text

    @property
    def text(self):
        return self.out.getvalue()

    @property
    def screen(self):
        return screen(self.text)


@pytest.fixture(autouse=True)
def _terminal_of_the_test(monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


# Without a terminal.


def test_a_plain_run_prints_these_lines_and_no_others():
    run = Run(epochs=2, steps=20).begin()
    run.epoch(1, seconds=0.08, loss=1.5, accuracy=0.25, val_loss=1.75, val_accuracy=0.125, learning_rate=1e-3)
    run.epoch(
        2, seconds=0.08, loss=0.0625, accuracy=0.75, val_loss=2.25, val_accuracy=0.5, learning_rate=5e-4
    )
    # The first step, which compiles, aside: 9 steps in 0.72 s, then 10 in 0.8 s; 10 to go after the first epoch.
    assert run.end().splitlines() == [
        "epoch 1/2  loss 1.500     accuracy 0.2500    val_loss 1.750     val_accuracy 0.1250    lr 0.001     "
        " 12.50 steps/s  400.0 examples/s  ETA 0:01",
        "epoch 2/2  loss 0.06250   accuracy 0.7500    val_loss 2.250     val_accuracy 0.5000    lr 5e-4      "
        " 12.50 steps/s  400.0 examples/s",
        "done: 2 epochs, 20 steps in 1.6 s, 12.50 steps/s, 400.0 examples/s, best val_loss 1.750 at epoch 1",
    ]


def test_what_was_compiling_is_in_no_rate_and_said_at_the_end():
    run = Run(epochs=2, steps=20).begin()
    run.ctx.compile_seconds = 20.0  # of the first step
    run.steps(1, 21.0)
    run.steps(9, 0.1)
    run.ctx.compile_seconds += 3.0  # of the validation
    run.end_epoch({"loss": 1.0}, seconds=3.1)
    assert "9.000 steps/s" in run.text
    assert run.text.endswith("ETA 0:01\n")
    run.epoch(2, seconds=0.2, loss=0.5)
    assert "20 steps in 0:27 (0:23 compiling), 5.000 steps/s" in run.end()


def test_plain_lines_are_aligned():
    run = Run(epochs=12, steps=120).begin()
    for epoch in range(1, 13):
        run.epoch(epoch, loss=3.0 / 3**epoch, accuracy=1 - 0.9**epoch, learning_rate=1e-3 / epoch)
    lines = run.end().splitlines()[:-1]
    assert len(lines) == 12
    for word in ("loss", "accuracy", "lr", "examples/s"):
        assert len({line.index(f" {word}") for line in lines}) == 1, word


def test_nothing_is_printed_between_epochs_and_no_control_codes():
    run = Run().begin()
    assert run.text == ""
    run.steps(9, 5.0)
    run.ctx.logs = {"loss": 1.0}
    run.bar.on_log(run.ctx)
    run.steps(1, 5.0)
    assert run.text == ""
    run.end_epoch({"loss": 1.0})
    run.end()
    assert "\x1b" not in run.text
    assert run.text.count("\n") == 2


def test_a_long_line_is_not_wrapped_off_a_terminal():
    run = Run(width=40).begin()
    run.epoch(1, **{f"metric_{i}": i / 7 for i in range(20)})
    assert len(run.text.splitlines()) == 1


def test_a_column_that_is_not_there_every_epoch_keeps_its_place():
    run = Run().begin()
    for epoch in (1, 2, 3):
        run.epoch(epoch, loss=0.5, **({"val_loss": 0.75} if epoch == 2 else {}))
    first, second, third = run.text.splitlines()
    assert "val_loss" not in first
    assert "val_loss 0.7500" in second
    assert "val_loss -     " in third
    assert second.index("steps/s") == third.index("steps/s")


def test_a_second_run_starts_afresh():
    run = Run().begin()
    run.epoch(1, loss=0.5, val_loss=0.25)
    run.end()
    before = len(run.text)
    run.ctx.step = 0
    run.begin().epoch(1, loss=0.5)
    run.end()
    fresh = Run().begin()
    fresh.epoch(1, loss=0.5)
    assert run.text[before:] == fresh.end()


def test_the_last_line_says_why_a_run_stopped():
    run = Run(stop_reason="`val_loss` has not improved for 3 epochs").begin()
    run.epoch(1, loss=0.5)
    assert run.end().splitlines()[-1].startswith("done: 1 epoch, 10 steps in 1.0 s")
    assert "stopped: `val_loss` has not improved for 3 epochs" in run.text


def test_a_run_that_ends_before_its_first_epoch_does():
    run = Run().begin()
    run.steps(3, 1.0)
    assert run.end() == "done: 0 epochs, 3 steps in 3.0 s, 1.000 steps/s, 32 examples/s\n"
    assert "steps/s" not in Run().begin().end()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = io.StringIO()
    run = Run()
    run.bar = ProgressBar(Console(file=out, force_terminal=True), run.clock)
    run.begin().epoch(1, loss=0.5)
    run.end()
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().count("\n") == 2


def test_without_a_console_it_writes_to_the_standard_output_of_that_moment(capsys):
    run = Run()
    run.bar = ProgressBar(clock=run.clock)
    run.begin().epoch(1, loss=0.5)
    run.end()
    assert capsys.readouterr().out.startswith("epoch 1/4  loss 0.5000")


# Rates and the remaining time.


def rate_and_eta(line):
    rate = float(re.search(r"(\S+) steps/s", line)[1])
    examples = float(re.search(r"(\S+) examples/s", line)[1])
    eta = re.search(r"ETA (\S+)", line)
    return rate, examples, eta and eta[1]


def test_the_first_step_does_not_count():
    # 60 s of compiling, then 4 steps a second: counting the first would give 10 / 62.25 s = 0.16 steps/s.
    run = Run(batch_size=128).begin()
    run.steps(1, 60.0)
    run.steps(9, 0.25)
    run.end_epoch({"loss": 1.0})
    assert rate_and_eta(run.text) == (4.0, 512.0, "0:08")  # 30 steps remain at 4 a second: 7.5 s
    assert "10 steps in 1:02" in run.end()  # though the time it took is told


def test_the_first_call_may_be_a_chunk():
    run = Run(steps=400, steps_per_epoch=100).begin()
    run.steps(1, 60.0, chunk=20)
    run.steps(4, 2.0, chunk=20)
    run.end_epoch({"loss": 1.0})
    assert rate_and_eta(run.text) == (10.0, 320.0, "0:30")


def test_where_batches_grow_rates_and_what_remains_are_of_rows():
    rows = lambda step: 32 * min(step, 20) + 64 * max(0, step - 20)  # twice as large from the third epoch on
    run = Run(rows_before=rows).begin()
    for epoch in (1, 2):
        run.epoch(epoch, loss=1.0)
    assert rate_and_eta(run.text.splitlines()[1]) == (10.0, 320.0, "0:04")  # 1,280 rows, at 320 a second
    run.epoch(3, seconds=0.2, loss=1.0)
    # 20 steps, 960 rows, in 3 s since the first epoch's end; 640 rows remain.
    assert rate_and_eta(run.text.splitlines()[2]) == (5.0, 320.0, "0:02")


def test_a_run_of_one_call_has_no_rate_rather_than_a_wrong_one():
    run = Run(epochs=1, steps=10).begin()
    run.steps(1, 60.0, chunk=10)
    run.end_epoch({"loss": 1.0})
    assert run.text == "epoch 1/1  loss 1.000\n"


def test_validation_counts_in_the_remaining_time():
    # Each epoch: 10 steps in 1 s and 4 s of validation. Two epochs remain of four: 10 s, not 2.
    run = Run().begin()
    for epoch in (1, 2):
        run.ctx.epoch = epoch
        run.bar.on_epoch_begin(run.ctx)
        run.steps(10, 0.1)
        run.end_epoch({"loss": 1.0}, seconds=4.0)
    assert rate_and_eta(run.text.splitlines()[1]) == (2.0, 64.0, "0:10")


def test_after_two_epochs_the_first_no_longer_counts():
    # The first epoch's validation compiled for 100 s: one epoch later nobody should be frightened by it.
    run = Run(epochs=3, steps=30).begin()
    run.bar.on_epoch_begin(run.ctx)
    run.steps(10, 0.1)
    run.end_epoch({"loss": 1.0}, seconds=100.0)
    run.epoch(2, seconds=0.5, loss=1.0)
    first, second = run.text.splitlines()
    assert rate_and_eta(first)[2] == "3:44"  # 9 steps in 100.9 s, 20 to go
    assert rate_and_eta(second) == (2.0, 64.0, "0:05")


def test_a_resumed_process_counts_its_own_steps():
    run = Run(step=20, resumed_step=20, epoch=3).begin()
    run.epoch(3, seconds=0.5, loss=1.0)
    assert rate_and_eta(run.text) == (2.0, 64.0, "0:05")
    run.epoch(4, seconds=0.5, loss=0.5)
    assert "2 epochs, 20 steps in 0:10" in run.end()
    assert "at epoch 4" in run.text


def test_without_a_total_there_is_no_remaining_time():
    run = Run(epochs=None, steps=None, steps_per_epoch=None).begin()
    run.epoch(1, loss=1.0)
    assert "ETA" not in run.text
    assert run.text.startswith("epoch 1  loss 1.000 ")


def test_a_clock_that_stands_still_divides_by_nothing():
    run = Run().begin()
    run.epoch(1, seconds=0.0, loss=1.0)
    run.end()
    assert "steps/s" not in run.text


# On a terminal.


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_says_where_the_run_is(width):
    run = Run(terminal=True, width=width, batch_size=128).begin()
    top, bottom = run.screen
    assert top.startswith("epoch 1/4  step  0/10 ")
    assert bottom == "compiling the first step"
    run.steps(1, 60.0)
    run.ctx.logs = {"epoch": 1.0, "loss": 0.5, "accuracy": 0.75, "table": np.ones(3)}
    run.bar.on_log(run.ctx)
    run.steps(5, 0.25)
    top, bottom = run.screen
    bar = re.fullmatch(r"epoch 1/4  step  6/10  (━+[╸╺]?) +ETA 0:08", top)  # 34 steps at 4/s: 8.5 s
    assert bar
    assert len(top) == width
    assert len(bar[1]) == pytest.approx(6 / 40 * (width - 33), abs=1)  # of the run, not of the epoch
    assert bottom == "loss 0.5000 · accuracy 0.7500 · 4 steps/s · 512 examples/s"
    run.bar.close()


def test_in_a_run_counted_in_steps_so_is_the_bar():
    run = Run(terminal=True, epochs=None, epoch=3, step=23, epoch_step=3).begin()
    assert run.screen[0].startswith("epoch 3  step 23/40 ")
    run.bar.close()
    run = Run(terminal=True, epochs=None, steps=None, steps_per_epoch=None, step=7, epoch_step=7).begin()
    run.steps(2, 1.0)
    assert run.screen[0].startswith("epoch 1  step 9 ")
    assert run.screen[0].endswith(" 0:02")  # what has passed, where nobody knows what remains
    run.bar.close()


def test_an_epoch_leaves_one_aligned_row_and_the_end_a_table():
    run = Run(terminal=True, width=80).begin()
    for epoch, loss in enumerate([1.5, 0.5, 0.0625, 0.125], 1):
        run.epoch(
            epoch, seconds=0.08, loss=loss, accuracy=1 - loss / 2, learning_rate=1e-3 / epoch, clip_factor=0.5
        )
    assert run.screen[-2].startswith("epoch 4/4  step 10/10  ━━━")
    run.end()
    assert run.screen == [
        "epoch      loss  accuracy        lr   steps/s",
        "  1/4     1.500    0.2500     0.001     12.50",
        "  2/4    0.5000    0.7500      5e-4     12.50",
        "  3/4   0.06250    0.9688  3.333e-4     12.50",
        "  4/4    0.1250    0.9375    2.5e-4     12.50",
        "",
        "                 first      best   at epoch     last",
        " ────────────────────────────────────────────────────",
        "  loss           1.500   0.06250          3   0.1250",
        "  accuracy      0.2500    0.9688          3   0.9375",
        "  lr             0.001                        2.5e-4",
        "  clip_factor   0.5000                        0.5000",
        "",
        "  4 epochs, 40 steps in 3.2 s, 12.50 steps/s, 400.0 examples/s",
        "",
    ]


def test_what_the_user_prints_stays_above_the_bar(monkeypatch):
    run = Run(terminal=True)
    monkeypatch.setattr(sys, "stdout", run.out)
    run.begin()
    print("a line of the user's")
    run.epoch(1, loss=0.5)
    assert run.screen[0] == "a line of the user's"
    assert run.screen[3].startswith("epoch 1/4  step 10/10")
    run.bar.close()


def test_the_screen_is_given_back():
    stdout = sys.stdout
    run = Run(terminal=True).begin()
    run.steps(3, 1.0)
    assert run.text.count("\x1b[?25l") == 1  # the cursor, hidden
    run.bar.close()
    run.bar.close()
    assert run.text.count("\x1b[?25h") == 1  # and shown again
    assert sys.stdout is stdout
    run.begin()
    run.end()
    assert run.text.count("\x1b[?25h") == 2


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160])
def test_no_line_is_wider_than_the_window(width):
    run = Run(terminal=True, width=width).begin()
    logs = {
        "loss": 0.5,
        "f1": 0.25,
        "accuracy": 0.125,
        "precision": 0.5,
        "val_loss": 0.75,
        "val_accuracy": 0.5,
    }
    logs |= {"grad_norm": 1.5, "learning_rate": 1e-5}
    run.ctx.logs = logs
    run.bar.on_log(run.ctx)
    run.epoch(1, **logs)
    run.epoch(2, **logs)
    lines = run.screen
    assert max(map(len, lines)) <= width
    assert len(lines) == 5  # a head, two rows, the bar: nothing has been wrapped
    assert all("0.5000" in row and "0.7500" in row for row in lines[1:3])  # the losses are always there
    run.bar.close()


def test_the_head_is_repeated_when_columns_come():
    run = Run(terminal=True, width=100).begin()
    for epoch in (1, 2, 3):
        run.epoch(epoch, loss=0.5, learning_rate=0.1, **({"val_loss": 0.75} if epoch == 2 else {}))
    run.bar.close()
    assert [line.split()[:4] for line in run.screen[:5]] == [
        ["epoch", "loss", "lr", "steps/s"],
        ["1/4", "0.5000", "0.1000", "10.00"],
        ["epoch", "loss", "val_loss", "lr"],
        ["2/4", "0.5000", "0.7500", "0.1000"],
        ["3/4", "0.5000", "-", "0.1000"],
    ]


def test_a_column_that_comes_late_has_its_best_at_the_right_epoch():
    run = Run(terminal=True).begin()
    run.epoch(1, loss=0.5)
    for epoch, loss in ((2, 0.75), (3, 0.25), (4, 0.5)):
        run.epoch(epoch, loss=0.5, val_loss=loss)
    run.end()
    assert ["val_loss", "0.7500", "0.2500", "3", "0.5000"] in [line.split() for line in run.screen]


def test_columns_stand_in_reading_order():
    run = Run().begin()
    run.epoch(
        1,
        **dict.fromkeys(("accuracy", "grad_norm", "learning_rate", "loss", "val_accuracy", "val_loss"), 0.5),
    )
    names = re.findall(r"[a-z_]+(?= 0\.5000)", run.text)
    assert names == ["loss", "accuracy", "val_loss", "val_accuracy", "lr", "grad_norm"]


def test_skipped_steps_appear_once_there_are_some():
    run = Run().begin()
    run.epoch(1, loss=0.5, skipped=0.0)
    run.epoch(2, loss=0.5, skipped=2.0)
    first, second = run.text.splitlines()
    assert "skipped" not in first
    assert "skipped 2 " in second


def test_nan_is_shown_and_never_best():
    run = Run(terminal=True).begin()
    for epoch, loss in enumerate([0.5, 0.25, math.nan, math.inf], 1):
        run.epoch(epoch, loss=loss, val_loss=math.nan)
    run.end()
    rows = [line.split() for line in run.screen]
    assert ["loss", "0.5000", "0.2500", "2", "inf"] in rows
    assert ["val_loss", "nan", "nan"] in rows


# What it costs.


class Cells:
    """A notebook's output, as the kernel sees it."""

    def __init__(self, monkeypatch):
        self.shown = []
        monkeypatch.setattr("IPython.display.display", self.display)

    def display(self, page, display_id):
        assert display_id is True
        self.shown.append(page._repr_html_())
        return self

    def update(self, page):
        self.shown.append(page._repr_html_())

    def table(self):
        rows = re.findall(r"<tr>(.*?)</tr>", self.shown[-1])
        return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_in_a_notebook_one_output_is_replaced(monkeypatch):
    pytest.importorskip("IPython")
    cells, run = Cells(monkeypatch), Run(epochs=2, steps=20)
    run.bar._given = Console(file=run.out, force_jupyter=True)
    run.begin()
    assert "epoch 1/2, step  0/10" in cells.shown[-1]
    assert "compiling the first step" in cells.shown[-1]
    run.steps(1, 9.0)
    before = len(cells.shown)
    run.steps(8, 0.25)
    assert len(cells.shown) - before == 4  # every half second
    run.ctx.logs = {"loss": 0.5, "a<b": 2.0, "learning_rate": 0.1}
    run.bar.on_log(run.ctx)
    run.steps(1, 1.0)
    # 9 steps in 3 s, 10 to go.
    for text in (
        "step 10/10, ETA 0:03",
        "value='0.5000'",
        "loss 0.5000 · lr 0.1000 · a&lt;b 2",
        "3 steps/s",
    ):
        assert text in cells.shown[-1], text
    run.end_epoch({"loss": 0.5, "val_loss": 0.25})
    run.ctx.epoch = 2
    run.end_epoch({"loss": math.nan, "val_loss": 0.75, "late": 1.5})
    assert cells.table() == [
        ["epoch", "loss", "val_loss", "late", "steps/s"],
        ["1/2", "0.5000", "<b>0.2500</b>", "-", "3"],
        ["2/2", "nan", "0.7500", "1.500", "3"],
    ]
    assert "color:#c00;text-align:right'>nan" in cells.shown[-1]
    run.bar.on_fit_end(run.ctx)
    assert "<progress" not in cells.shown[-1]
    assert "<b>done</b><br><small>2 epochs, 10 steps in 0:12" in cells.shown[-1]
    assert len(cells.table()) == 3
    assert run.out.getvalue() == ""


def test_a_long_run_shows_its_last_epochs_in_a_notebook(monkeypatch):
    pytest.importorskip("IPython")
    cells, run = Cells(monkeypatch), Run(epochs=50)
    run.bar._given = Console(file=run.out, force_jupyter=True)
    run.begin()
    for run.ctx.epoch in range(1, 31):
        run.end_epoch({"loss": 1.0})
    assert "the last 20 of 30 epochs" in cells.shown[-1]
    assert [row[0] for row in cells.table()[1:]] == [f"{n}/50" for n in range(11, 31)]
    assert max(map(len, cells.shown)) < 5000


def test_the_table_loses_columns_in_a_narrow_window_and_not_its_digits():
    heads = {}
    for width in (32, 38, 46, 80):
        run = Run(terminal=True, width=width).begin()
        for loss in (0.123456, 0.0123456):
            run.end_epoch({"loss": loss, "val_accuracy": 1 - loss, "learning_rate": 1.234e-5})
        run.bar.on_fit_end(run.ctx)
        end = screen(run.out.getvalue())
        start = next(i for i, line in enumerate(end) if line.endswith("last"))
        assert not any("…" in line for line in end[start:])
        heads[width] = end[start].split()
        assert any("0.9877" in line and "val_accuracy" in line for line in end[start:])
    assert heads == {
        32: ["last"],
        38: ["best", "last"],
        46: ["best", "last"],
        80: ["first", "best", "at", "epoch", "last"],
    }


def test_drawing_is_rare():
    run = Run(terminal=True, steps=10**6, steps_per_epoch=10**6).begin()
    run.steps(1, 1.0)
    before = len(run.text)
    run.steps(99, 0.001)
    assert len(run.text) == before  # 99 ms later: not yet
    run.steps(2, 0.001)
    assert len(run.text) > before
    before, drawn = len(run.text), 0
    for _ in range(10_000):  # 10 s
        run.steps(1, 0.001)
        drawn += len(run.text) > before
        before = len(run.text)
    assert 90 <= drawn <= 100
    run.bar.close()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_step_costs_less_than_five_microseconds(terminal):
    run = Run(terminal=terminal).begin()
    run.steps(1, 1.0)
    run.steps(1, 1.0)
    n = 10_000
    assert min(timeit.repeat(lambda: run.bar.on_step_end(run.ctx), number=n, repeat=5)) / n < 5e-6
    run.bar.close()


@pytest.mark.parametrize("terminal", [True, False])
def test_values_on_the_device_are_never_read(terminal):
    class OnDevice:
        def _read(self, *args):
            raise AssertionError("a device value was read")

        __float__ = __int__ = __bool__ = __array__ = __format__ = __repr__ = __str__ = __lt__ = __len__ = (
            _read
        )
        __eq__ = _read  # type: ignore[assignment]
        __hash__ = None  # type: ignore[assignment]

    run = Run(terminal=terminal).begin()
    run.ctx.state = OnDevice()
    run.ctx.logs = {"loss": OnDevice(), "accuracy": 0.5}
    run.bar.on_log(run.ctx)
    run.steps(5, 1.0)
    run.end_epoch(run.ctx.logs)
    run.end()
    assert any("accuracy" in line for line in run.screen)


# Numbers as text.


@given(st.floats(1e-9, 9.99e6))
def test_numbers_keep_four_digits_in_eight_characters(x):
    text = number_text(x)
    assert len(text) <= 8
    assert float(text) == pytest.approx(x, rel=5.001e-4)
    assert number_text(-x) == "-" + text


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.95, "0.9500"),
        (0.99996, "1.000"),
        (1.0, "1.000"),
        (1, "1"),
        (0.0, "0"),
        (0.05, "0.05"),
        (0.0255, "0.02550"),
        (0.001, "0.001"),
        (1e-4, "1e-4"),
        (1.25e-10, "1.25e-10"),
        (9999.4, "9999"),
        (9999.6, "10000"),
        (12345678.9, "1.235e7"),
        (2**31, "2147483648"),
        (np.float32(0.1), "0.1000"),
        (np.int64(3), "3"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (None, "-"),
        ("text", "-"),
        (True, "-"),
    ],
)
def test_numbers_as_text(x, text):
    assert number_text(x) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599.6, "1:00:00"), (86399.6, "1 d 00:00:00")]
)
def test_durations_carry(seconds, text):
    assert duration_text(seconds) == text


def test_which_way_is_better():
    lower = ["loss", "val_loss", "loss/reconstruction", "val_rmse", "perplexity", "cross_entropy"]
    higher = ["accuracy", "val_top_5_accuracy", "f1", "roc_auc", "mean_average_precision", "r2"]
    neither = ["learning_rate", "grad_norm", "loss_scale", "roc_auc_bound", "closeness"]
    assert [better(n) for n in lower] == [min] * len(lower)
    assert [better(n) for n in higher] == [max] * len(higher)
    assert [better(n) for n in neither] == [None] * len(neither)


def test_the_best_is_the_first_of_equals_among_the_finite():
    assert best_index("loss", [math.nan, 2.0, 1.0, None, 1.0, -math.inf]) == 2
    assert best_index("accuracy", [0.5, 0.75, 0.75]) == 1
    assert best_index("loss", [None, math.nan]) is None
    assert best_index("learning_rate", [1.0]) is None
    assert not is_number(np.ones(2))
