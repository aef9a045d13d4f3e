"""A display that cannot be shown: it ends no run, says so once, and leaves the terminal to whoever else draws on it."""

import io
import logging
import sys
import types

import numpy as np
import pytest
from rich.console import Console
from rich.live import Live

import fntrain as ft
from fntrain.show.progress import ProgressBar

X = np.linspace(-1, 1, 16, dtype=np.float32)


def loss_fn(params, batch, ctx):
    return ft.losses.mse(batch[0] * params["w"], batch[1]).with_outputs(z=batch[1])


TASK = ft.Task(loss_fn, ft.optimizers.sgd(0.05), metrics={"précision ✓": ft.metrics.mean("z")})


@pytest.fixture(autouse=True)
def _terminal_of_the_test(monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def fit(callbacks=(), epochs=3, **options):
    state = ft.init_state(TASK, {"w": np.float32(0)})
    return ft.fit(TASK, state, (X, 3 * X), epochs=epochs, batch_size=8, callbacks=callbacks, **options)


class Screen(io.TextIOWrapper):
    """A stream that says of itself what it is, and may fail after so many writes."""

    def __init__(self, encoding="utf-8", terminal=True, error=None, after=0):
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)
        self.terminal, self.error, self.after = terminal, error, after

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.after -= 1
        if self.error is not None and self.after < 0:
            raise self.error
        return super().write(text)

    @property
    def text(self):
        return self.buffer.getvalue().decode(self.encoding)


FAILURES = [
    BrokenPipeError(32, "Broken pipe"),
    OSError(28, "No space left on device"),
    ValueError("closed file"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("after", [0, 3, 6])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_stream_that_fails_ends_no_run(error, after, terminal, monkeypatch):
    stdout, stderr = (
        Screen(terminal=terminal, error=error, after=after if terminal else after // 3),
        sys.stderr,
    )
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.warns(RuntimeWarning, match="the progress display: .*; the run goes on") as said:
        result = fit()
    assert len(said) == 1
    assert result.history["epoch"] == [1, 2, 3]
    assert sys.stdout is stdout
    assert sys.stderr is stderr


def test_where_warnings_are_errors_it_ends_no_run_either(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stdout", Screen(terminal=False, error=BrokenPipeError(32, "Broken pipe")))
    assert fit().history.epochs == 3  # the tests make errors of warnings
    assert "the progress display: BrokenPipeError" in caplog.text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("terminal", [False, True])
def test_what_an_encoding_lacks_is_a_question_mark(encoding, terminal, monkeypatch):
    screen = Screen(encoding, terminal)
    monkeypatch.setattr(sys, "stdout", screen)
    fit(callbacks=[ft.callbacks.EarlyStopping("loss", patience=1)])
    assert ("pr?cision ?" if encoding == "ascii" else "précision ?") in screen.text
    assert "steps/s" in screen.text


@pytest.mark.parametrize("width", [0, 1, 5, 20, 31])
def test_a_window_without_room_gets_plain_lines(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    fit()
    assert "\x1b" not in screen.text
    assert [line[:9] for line in screen.text.splitlines()] == [
        "epoch 1/3",
        "epoch 2/3",
        "epoch 3/3",
        "done: 3 e",
    ]


def test_a_run_within_a_run_and_within_another_s_display_has_lines_above_it(monkeypatch):
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    stdout = sys.stdout

    def inner(logs):
        fit(epochs=1)

    fit(callbacks=[inner], epochs=2)
    assert sys.stdout is stdout
    assert screen.text.count("\x1b[?25l") == 1  # one bar
    assert screen.text.count("epoch 1/1") == screen.text.count("done: 1 epoch") == 2

    monkeypatch.setattr(sys, "stdout", screen := Screen())
    with Live("theirs", console=Console(file=screen), auto_refresh=False):
        fit(epochs=1)
    assert screen.text.count("\x1b[?25l") == 1
    assert "epoch 1/1" in screen.text


def test_beside_a_bar_of_tqdm_lines_go_through_it(monkeypatch):
    lines = []
    bars = types.SimpleNamespace(_instances={1}, write=lines.append)
    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=bars))
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    fit(epochs=2)
    assert screen.text == ""
    assert [line[:9] for line in lines] == ["epoch 1/2", "epoch 2/2", "done: 2 e"]


def test_a_log_handler_made_before_writes_above_the_bar(monkeypatch):
    stream = Screen()
    monkeypatch.setattr(sys, "stdout", Screen())
    monkeypatch.setattr(sys, "stderr", stream)
    handler = logging.StreamHandler()
    logging.getLogger("theirs").addHandler(handler)
    through = []

    class Logs:
        def on_epoch_end(self, ctx):
            through.append(handler.stream is sys.stderr is not stream)
            logging.getLogger("theirs").warning("a line of theirs")

    try:
        fit(callbacks=[Logs()], epochs=2)
    finally:
        logging.getLogger("theirs").removeHandler(handler)
    assert through == [True, True]
    assert handler.stream is stream
    assert sys.stdout.text.count("a line of theirs") == 2


def test_a_bar_serves_again_after_it_has_failed():
    ctx = types.SimpleNamespace(
        epoch=1, epochs=1, step=0, steps=1, steps_per_epoch=1, epoch_step=0, batch_size=8
    )
    ctx.logs, ctx.resumed_step = {"loss": 0.5}, 0
    out = io.StringIO()
    bar = ProgressBar(Console(file=out))
    bar._console = Console(file=Screen(terminal=False, error=OSError(28, "full")))
    bar.on_fit_begin(ctx)
    out.close()
    with pytest.warns(RuntimeWarning, match="the progress display"):
        bar.on_epoch_end(ctx)
    bar.on_fit_end(ctx)
    bar._given = Console(file=(out := io.StringIO()))
    bar.on_fit_begin(ctx)
    bar.on_epoch_end(ctx)
    assert out.getvalue().startswith("epoch 1/1  loss 0.5000")
