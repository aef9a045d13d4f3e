"""What ends a run early, a signal or an error: acted on at once, said, and nothing of the run is lost."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import fntrain as ft
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.run.lock import RunLock
from fntrain.run.signals import Interrupted, Signals

pytestmark = pytest.mark.filterwarnings("ignore:`data` is a plain iterable")
X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5], np.float32)).astype(np.float32)
TASK = ft.Task(lambda p, b, ctx: ft.losses.mse(b[0] @ p["w"], b[1]), ft.optimizers.sgd(0.05))


def state():
    return ft.init_state(TASK, {"w": np.zeros(3, np.float32)}, key=0)


def fit(data, **options):
    return ft.fit(TASK, state(), data, **{"epochs": 1, "progress": False, **options})


def send(number, after=0.0):
    timer = threading.Timer(after, os.kill, (os.getpid(), number))
    timer.start()
    return timer


class Stuck:
    """Batches, of which one does not come; the signal is sent when it is waited for."""

    def __init__(self, number, at=3, seconds=60.0):
        self.number, self.at, self.seconds, self.began = number, at, seconds, 0.0

    def __call__(self, epoch):
        for i in range(6):
            if i == self.at:
                self.began = time.monotonic()
                send(self.number, 0.1)
                time.sleep(self.seconds)
            yield X, Y


ENDS = [
    (signal.SIGTERM, 143),
    (signal.SIGHUP, 129),
    (signal.SIGINT, None),
]


@pytest.mark.parametrize(("number", "code"), ENDS)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_signal_while_a_batch_is_waited_for(number, code, prefetch, tmp_path, capsys):
    fit([(X, Y)] * 6)  # compiled before, so that a thread that reads ahead is not far ahead
    before = signal.getsignal(number)
    data, options = Stuck(number), dict(prefetch=prefetch, run_dir=tmp_path / "run")
    if code is None:
        result = fit(data, **options)
        assert result.interrupted
        assert result.checkpoints == [2]  # the third was read ahead, to know whether it is the last
    else:
        with pytest.raises(SystemExit) as stopped:
            fit(data, **options)
        assert stopped.value.code == code
    took = time.monotonic() - data.began
    assert took < 5, took  # of which most is the first import of Orbax
    assert signal.getsignal(number) is before
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{signal.Signals(number).name}: the run ends" in said
    assert f"saved in {tmp_path / 'run'}; a second signal ends it at once" in said
    resumed = fit(lambda epoch: [(X, Y)] * 6, run_dir=tmp_path / "run", resume=True)
    np.testing.assert_array_equal(resumed.state.params["w"], fit([(X, Y)] * 6).state.params["w"])


def test_a_batch_that_comes_within_half_a_second_is_not_lost():
    ended = []

    def batches():
        for i in range(6):
            if i == 2:
                send(signal.SIGINT, 0.05)
                time.sleep(0.2)
            try:
                yield X, Y
            except BaseException:
                ended.append(i)
                raise

    data = batches()
    result = fit(data, steps=6, epochs=None)
    assert result.interrupted
    assert next(data) is not None  # the generator lives
    assert ended == []


def test_a_signal_while_the_first_batch_or_a_validation_batch_is_waited_for(tmp_path):
    given = state()
    result = ft.fit(TASK, given, Stuck(signal.SIGINT, at=0), epochs=1, progress=False)
    assert result.interrupted
    assert result.history.epochs == 0
    np.testing.assert_array_equal(result.state.params["w"], given.params["w"])

    held_out = Stuck(signal.SIGTERM, at=2)
    with pytest.raises(SystemExit):
        fit((X, Y), batch_size=4, validation_data=held_out, run_dir=tmp_path / "run")
    assert time.monotonic() - held_out.began < 5
    held_out.at = -1
    resumed = fit((X, Y), batch_size=4, validation_data=held_out, run_dir=tmp_path / "run", resume=True)
    straight = fit((X, Y), batch_size=4, validation_data=held_out)
    assert resumed.history.rows() == straight.history.rows()


def test_a_second_signal_while_data_is_waited_for_is_the_caller_s():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(time.monotonic()))
    try:
        began = time.monotonic()
        with Signals() as signals, signals.waiting:
            send(signal.SIGTERM, 0.05)
            send(signal.SIGTERM, 0.15)
            while not seen and time.monotonic() - began < 0.45:
                time.sleep(0.01)
            assert seen
            assert signals.received == signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_wait_that_is_over_is_not_broken():
    reached = False
    with Signals() as signals:
        with signals.waiting:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.7)
        with pytest.raises(Interrupted), signals.waiting:  # nobody waits for anything any more
            reached = True
    assert not reached


def test_the_caller_s_handler_is_called_when_all_is_saved(tmp_path):
    seen = []

    def requeue(number, frame):
        RunLock(tmp_path / "run").release()  # free already
        seen.append((number, Checkpointer(tmp_path / "run" / "checkpoints").steps()))

    class Terminate:
        def on_step_end(self, ctx):
            if ctx.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, requeue)
    try:
        with pytest.raises(SystemExit, match="143"):
            fit((X, Y), batch_size=4, callbacks=[Terminate()], run_dir=tmp_path / "run")
        assert seen == [(signal.SIGTERM, [2])]
        assert signal.getsignal(signal.SIGTERM) is requeue
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_closed_stderr_ends_nothing(monkeypatch):
    class Closed:
        def write(self, text):
            raise ValueError("I/O operation on closed file")

    monkeypatch.setattr("sys.stderr", Closed())
    assert fit(Stuck(signal.SIGINT)).interrupted


# Errors


def broken_data(error):
    def batches(epoch):
        yield from [(X, Y)] * 4
        raise error

    return batches


class Broken:
    def __init__(self, event, error):
        def method(ctx):
            if ctx.step == 4:
                raise error

        setattr(self, event, method)


@pytest.mark.parametrize("where", ["data", "on_step_end", "on_log", "on_epoch_end"])
@pytest.mark.parametrize("error", [OSError("bad record"), SystemExit(3)])
def test_what_an_error_would_lose_is_saved_and_the_error_says_where(where, error, tmp_path):
    if where == "data" and isinstance(error, SystemExit):
        pytest.skip("it ends the look-ahead too")
    error = type(error)(*error.args)
    data = broken_data(error) if where == "data" else [(X, Y)] * (4 if where == "on_epoch_end" else 6)
    callbacks = [] if where == "data" else [Broken(where, error)]
    options = dict(run_dir=tmp_path / "run", log_every=1)
    with pytest.raises(type(error)) as raised:
        fit(data, callbacks=callbacks, **options)
    assert raised.value is error
    notes = "\n".join(error.__notes__)
    assert "in epoch 1 at step 4, with 4 batches of the epoch trained on: batch 4 comes next" in notes
    assert f"step 4 is saved in {tmp_path / 'run'}: `resume=True` goes on from it" in notes
    whole = [(X, Y)] * 6
    resumed = fit(lambda epoch: whole, steps=6, epochs=None, resume="must", **options)
    assert resumed.checkpoints == [4, 6]
    np.testing.assert_array_equal(resumed.state.params["w"], fit(whole).state.params["w"])


def test_an_error_is_not_hidden_by_a_save_that_fails(tmp_path, monkeypatch):
    from fntrain.checkpoint import checkpointer

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointer, "orbax_save", full)
    with pytest.raises(OSError, match="bad record") as raised:
        fit(broken_data(OSError("bad record")), run_dir=tmp_path / "run")
    assert "step 4 was not saved: " in raised.value.__notes__[-1]
    assert "No space left" in raised.value.__notes__[-1]


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    def batches(epoch):
        yield X, Y
        yield X * np.nan, Y
        yield X, Y
        raise OSError("bad record")

    with pytest.raises(OSError, match="bad record") as raised:
        fit(batches, run_dir=tmp_path / "run", rebuild=0)
    assert "the state of step 3 was not saved: its parameters are not finite" in raised.value.__notes__[-1]
    assert Checkpointer(tmp_path / "run" / "checkpoints").steps() == []


def test_an_error_before_the_first_step_makes_no_checkpoint(tmp_path):
    class Refuses:
        def on_epoch_begin(self, ctx):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no") as raised:
        fit((X, Y), callbacks=[Refuses()], run_dir=tmp_path / "run")
    assert "in epoch 1 at step 0" in "".join(raised.value.__notes__)
    assert Checkpointer(tmp_path / "run" / "checkpoints").steps() == []
