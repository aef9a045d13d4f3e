"""Run directories: one writer, what a resume refuses, saves that fail, and signals."""

import ast
import json
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

import fntrain as ft
from fntrain.checkpoint import checkpointer
from fntrain.data.position import Position
from fntrain.run.directory import RunDirectory
from fntrain.run.history import History
from fntrain.run.lock import RunLock
from fntrain.run.signals import Signals

TASK = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b[:, 0]), ft.optimizers.sgd(0.1))
STATE = {"w": np.arange(2.0)}


def opened(path, identity=None, resume=True):
    return RunDirectory(path, {"seed": 0} if identity is None else identity, {}, resume)


def save(run, step, history=None):
    run.save(STATE, step, {}, Position(0, step), history or History(), [])


# The lock


def test_one_writer_who_is_named_and_whoever_comes_second_waits_for_nothing(tmp_path):
    with opened(tmp_path / "run"):
        with pytest.raises(ft.RunLockedError) as error:
            opened(tmp_path / "run")
        message = str(error.value)
        assert f"process {os.getpid()} on " in message
        assert " since 20" in message
        with pytest.raises(ft.RunLockedError):
            opened(tmp_path / "run", resume=False)  # rather than "holds a run", which is true as well
    opened(tmp_path / "run").__exit__(None, None, None)


def test_a_refused_run_holds_no_lock(tmp_path):
    with opened(tmp_path / "run") as run:
        save(run, 1)
    for refused in (
        lambda: opened(tmp_path / "run", resume=False),
        lambda: opened(tmp_path / "run", {"seed": 1}),
        lambda: opened(tmp_path / "run", resume="yes"),
    ):
        with pytest.raises(ft.ConfigError):
            refused()
        RunLock(tmp_path / "run").release()


def test_the_lock_is_free_after_an_error_in_the_run_and_in_its_last_save(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError), opened(tmp_path / "run"):
        1 / 0  # noqa: B018
    RunLock(tmp_path / "run").release()
    monkeypatch.setattr(checkpointer, "orbax_save", full_disk)
    with pytest.raises(ft.CheckpointError, match="No space left"), opened(tmp_path / "run") as run:
        save(run, 1)
    RunLock(tmp_path / "run").release()


HOLDER = """
import os, sys, time
from fntrain.run.lock import RunLock
lock = RunLock(sys.argv[1])
if os.fork() == 0:  # a worker, which outlives it
    print("worker", os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


def test_kill_9_frees_the_lock_though_a_worker_lives_on(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    worker = int(holder.stdout.readline().split()[1])
    try:
        with pytest.raises(ft.RunLockedError, match=f"process {holder.pid} "):
            RunLock(tmp_path)
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # it lives
        RunLock(tmp_path).release()
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_without_flock_a_warning_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("fntrain.run.lock.fcntl", None)
    with pytest.warns(RuntimeWarning, match="cannot be locked"):
        RunLock(tmp_path).release()


# Going on


def test_must_goes_on_or_fails(tmp_path):
    with pytest.raises(ft.CheckpointError, match=r'resume="must".*no checkpoint in'):
        opened(tmp_path / "run", resume="must")
    assert not (tmp_path / "run").exists()
    with opened(tmp_path / "run"):
        pass
    with pytest.raises(ft.CheckpointError, match="no checkpoint in"):
        opened(tmp_path / "run", resume="must")
    with opened(tmp_path / "run") as run:
        save(run, 3)
    with opened(tmp_path / "run", resume="must") as run:
        assert run.extra["position"] == [0, 3]


def test_what_a_killed_run_left_is_cleared_though_nothing_is_saved_again(tmp_path):
    with opened(tmp_path / "run") as run:
        save(run, 3)
    for name in ("2.deleted", "4.orbax-checkpoint-tmp"):
        (tmp_path / "run" / "checkpoints" / name / "arrays").mkdir(parents=True)
    with pytest.raises(ft.ConfigError):
        opened(tmp_path / "run", {"seed": 1})  # another's run is not touched
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 3
    opened(tmp_path / "run").__exit__(None, None, None)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]


def test_another_run_is_refused_with_the_differences_and_left_as_it_is(tmp_path):
    identity = {"task": {"tx": "sgd(0.1)", "loss_fn": "f"}, "seed": 0, **{f"k{i}": i for i in range(20)}}
    with opened(tmp_path / "run", identity) as run:
        run.write({"epoch": 1, "loss": 0.5})
        save(run, 1, History([{"epoch": 1, "loss": 0.5}]))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.*") if p.is_file()}
    other = {"task": {"tx": "sgd(0.2)", "loss_fn": "f"}, "seed": 0, **{f"k{i}": -i for i in range(20)}}
    with pytest.raises(ft.ConfigError) as error:
        opened(tmp_path / "run", other)
    assert isinstance(error.value, ft.CheckpointMismatchError)
    lines = str(error.value).splitlines()
    assert lines[1] == "  task.tx: saved 'sgd(0.1)', now 'sgd(0.2)'"
    assert lines[-1] == "  and 10 more"
    assert not [line for line in lines if "seed" in line or "loss_fn" in line]
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.*") if p.is_file()}


def test_rows_of_another_run_that_never_saved_are_not_dropped(tmp_path):
    with opened(tmp_path / "run") as run:
        run.write({"epoch": 1, "loss": 0.5})
    with pytest.raises(ft.ConfigError, match="seed: saved 0, now 1"):
        opened(tmp_path / "run", {"seed": 1})
    assert (tmp_path / "run" / "metrics.jsonl").read_text()
    opened(tmp_path / "run").__exit__(None, None, None)  # the same run starts anew, and writes them again
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


def test_if_every_checkpoint_is_damaged_a_run_does_not_start_anew(tmp_path):
    with opened(tmp_path / "run") as run:
        run.write({"epoch": 1})
        save(run, 1, History([{"epoch": 1}]))
    (tmp_path / "run" / "checkpoints" / "1" / "meta" / "checkpoint.json").write_text("{}")
    with pytest.warns(RuntimeWarning, match="passing over"), pytest.raises(ft.CheckpointCorruptError):
        opened(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text()


def test_history_comes_back_as_it_was_arrays_and_order_too(tmp_path):
    rows = [
        {"z": 1.5, "epoch": 1, "per_class": np.array([0.25, np.nan], np.float32), "a": float("inf")},
        {"z": -0.0, "epoch": 2, "counts": np.arange(4).reshape(2, 2), "note": "x", "none": None},
    ]
    with opened(tmp_path / "run") as run:
        save(run, 2, History(rows))
    state = ft.init_state(TASK, STATE)
    with opened(tmp_path / "run") as run:
        run.checkpointer.restore = lambda like: like
        _, _, position, history = run.restore(state, {})
    assert position == Position(0, 2)
    back = history.rows()
    assert [list(row) for row in back] == [list(row) for row in rows]
    for row, expected in zip(back, rows):
        for name, value in expected.items():
            assert type(row[name]) is type(value)
            np.testing.assert_array_equal(row[name], value)
            if isinstance(value, np.ndarray):
                assert row[name].dtype == value.dtype


# Saves that fail


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_a_failed_save_is_said_and_the_current_step_takes_its_place(tmp_path, monkeypatch):
    with opened(tmp_path / "run") as run:
        save(run, 1)
        assert not run.failed(wait=True)
        with monkeypatch.context() as broken:
            broken.setattr(checkpointer, "orbax_save", full_disk)
            save(run, 2)
            assert run.failed(wait=True)
        with pytest.warns(RuntimeWarning, match=r"step 2 was not saved.*No space left.*step 3 is saved"):
            save(run, 3)
        assert run.checkpoints() == [1, 3]
        save(run, 4)
        assert run.checkpoints() == [1, 3, 4]


def test_two_failures_in_a_row_end_the_run(tmp_path, monkeypatch):
    with opened(tmp_path / "run") as run:
        save(run, 1)
        run.checkpoints()
        with monkeypatch.context() as broken:
            broken.setattr(checkpointer, "orbax_save", full_disk)
            save(run, 2)
            with pytest.warns(RuntimeWarning, match="step 2 was not saved"):
                save(run, 3)
            with pytest.raises(ft.CheckpointError, match="step 3 was not saved"):
                save(run, 4)
        assert run.checkpoints() == [1]
        save(run, 5)  # a failure, then a success, and the count is at zero
        assert run.checkpoints() == [1, 5]


# Signals


def test_the_second_signal_is_what_it_was_without_us():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("mine"))
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (signals.received, seen) == (signal.SIGTERM, [])
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == ["mine"]
        assert seen == ["mine", "mine"]  # the first one, now that all is saved
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == ["mine", "mine", "mine"]
    finally:
        signal.signal(signal.SIGTERM, before)


TWICE = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts without
{prompt}
with Signals() as signals:
    os.kill(os.getpid(), signal.SIG{first})
    assert signals.received == signal.SIG{first}
    try:
        os.kill(os.getpid(), signal.SIG{second})
    except KeyboardInterrupt:
        sys.exit("interrupted")
print("still here")
"""
# One process that imports, and forks for each script it is sent: what ends is a child.
FORKS = """
import ast, os, signal, sys, time
from fntrain.run.signals import Signals
for script in map(ast.literal_eval, sys.stdin):
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(into, 1), os.dup2(into, 2)
        exec(script)
        sys.stdout.flush()
        os._exit(0)
    os.close(into)
    said = open(out).read()
    print((os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said), flush=True)
"""


@pytest.fixture(scope="module")
def forked():
    """`forked(script)`: the exit code, and what was printed."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(script):
            print(repr(script), file=process.stdin, flush=True)
            return ast.literal_eval(process.stdout.readline())

        yield run
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("first", "second", "prompt", "code"),
    [
        ("TERM", "TERM", "", -signal.SIGTERM),
        ("INT", "INT", "", -signal.SIGINT),
        ("INT", "TERM", "", -signal.SIGTERM),
        ("INT", "INT", "sys.ps1 = '>>> '", 1),  # at a prompt, or in a notebook: an exception, not its end
        ("TERM", "INT", "signal.signal(signal.SIGINT, signal.SIG_IGN)", 0),  # ignored before, ignored now
    ],
)
def test_a_second_signal_ends_the_process_at_once(first, second, prompt, code, forked):
    got, said = forked(TWICE.format(first=first, second=second, prompt=prompt))
    assert got == code, said
    assert (said == "still here\n") == (code == 0)


def test_outside_the_main_thread_nothing_is_touched():
    import threading

    found = []

    def work():
        with Signals() as signals:
            found.append((signals.received, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)]


# Paths


def test_paths_that_no_file_system_holds(tmp_path):
    for bad in ("", " ", "a\0b", "x" * 300, "gs://bucket/run", None, 3, b"run"):
        with pytest.raises(ft.ConfigError, match="`run_dir` must"):
            opened(bad)
    with pytest.raises(ft.CheckpointError, match="cannot be made"):
        opened("/proc/1/nowhere")
    run = opened(tmp_path / "a" / ".." / "b c" / "é")  # the caller's own path may go anywhere
    run.__exit__(None, None, None)
    assert json.loads((tmp_path / "b c" / "é" / "config.json").read_text()) == {"identity": {"seed": 0}}


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "victim")
    with warnings.catch_warnings(), pytest.raises(ft.CheckpointError, match="cannot write"):
        opened(tmp_path / "run")
    assert (tmp_path / "victim").read_text() == "precious"


TOGETHER = """
import sys, time
import fntrain as ft
from fntrain.run.signals import Signals
rank, port = int(sys.argv[1]), sys.argv[2]
ft.sharding.initialize(f"127.0.0.1:{port}", 2, rank)
with Signals() as signals:
    for step in range(1, 1000):
        time.sleep(0.01 if rank else 0.013)  # they are never at the same step at the same time
        if signals.poll():
            break
        if step == 5:
            print("stepping", flush=True)
print(step, signals.received, flush=True)
import os
os._exit(0)  # without the farewell of the two, which takes seconds
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)]
)
def test_several_processes_stop_at_the_same_step(number, told):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(rank), str(port)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        for process in both:
            assert process.stdout.readline() == "stepping\n", process.stderr.read()
        both[1].send_signal(number)
        said = [process.communicate(timeout=60)[0].split() for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert said[0][0] == said[1][0]
    assert 5 < int(said[0][0]) < 999
    assert (int(said[0][1]), int(said[1][1])) == (signal.SIGTERM, told)


# The loop: `fit` on a run directory


X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(12, 2)


def fitted(path, **more):
    state = ft.init_state(TASK, {"w": np.zeros(2, np.float32)})
    options = dict(epochs=3, batch_size=2, run_dir=path, checkpoint_every=4, progress=False)
    return ft.fit(TASK, state, X, **{**options, **more})


class Fails:
    """The engine, which fails at the saves of given numbers, counted from 1."""

    def __init__(self, monkeypatch, *numbers):
        self.save, self.numbers, self.count = checkpointer.orbax_save, numbers, 0
        monkeypatch.setattr(checkpointer, "orbax_save", self)

    def __call__(self, *arguments):
        self.count += 1
        if self.count in self.numbers:
            full_disk()
        return self.save(*arguments)


class Waits:
    """Gives a save in the background its time, so that it fails at a known step."""

    def __init__(self, run_checkpointers):
        self.found = run_checkpointers

    def on_step_end(self, ctx):
        for made in self.found:
            made.failed(wait=True)


@pytest.fixture
def checkpointers(monkeypatch):
    """Every Checkpointer that a run opens."""
    found, opens = [], RunDirectory._open

    def opened(self, *arguments):
        opens(self, *arguments)
        found.append(self.checkpointer)

    monkeypatch.setattr(RunDirectory, "_open", opened)
    return found


def test_a_failed_save_in_a_run_is_made_good_at_the_next_step(tmp_path, monkeypatch, checkpointers):
    Fails(monkeypatch, 2)  # of step 8
    with pytest.warns(
        RuntimeWarning, match=r"step 8 was not saved.*No space left.*step 9 is saved in its place"
    ):
        result = fitted(tmp_path, callbacks=[Waits(checkpointers)], steps_per_call=1)
    assert result.checkpoints == [12, 16, 18]
    assert result.checkpoints == checkpointers[0].steps()


def test_the_last_save_is_tried_again_and_then_the_run_fails_aloud(tmp_path, monkeypatch):
    Fails(monkeypatch, 5)
    with pytest.warns(RuntimeWarning, match=r"step 18 was not saved.*step 18 is saved in its place"):
        assert fitted(tmp_path / "one").checkpoints == [12, 16, 18]
    Fails(monkeypatch, 5, 6)
    with (
        pytest.warns(RuntimeWarning, match="step 18 was not saved"),
        pytest.raises(ft.CheckpointError, match="step 18 was not saved"),
    ):
        fitted(tmp_path / "two")
    RunLock(tmp_path / "two").release()
    assert fitted(tmp_path / "two", resume="must").checkpoints == [12, 16, 18]


def test_a_checkpoint_beyond_the_last_step_returns_at_once_and_says_so(tmp_path):
    first = fitted(tmp_path, epochs=None, steps=9)
    assert first.stop_reason is None
    again = fitted(tmp_path, epochs=None, steps=7, resume="must")
    assert int(again.state.step) == 9
    assert again.stop_reason == f"{tmp_path} holds the whole run, up to step 9"
    assert again.checkpoints == first.checkpoints
    np.testing.assert_array_equal(again.state.params["w"], first.state.params["w"])


def test_a_state_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path):
    def never(params, batch, ctx):
        calls.append(1)
        return ft.losses.mse(batch @ params["a"]["b"], batch[:, 0]).with_state(ctx.model_state)

    calls = []
    task = ft.Task(never, ft.optimizers.sgd(0.1))
    state = ft.init_state(task, {"a": {"b": np.zeros(2, np.float32)}})
    state = state.replace(
        model_state={"c": {"d": np.zeros(1)}, "c/d": np.zeros(1)}
    )  # parameters are looked at before
    with pytest.raises(ft.ConfigError, match="two leaves have the path `model_state/c/d`"):
        ft.fit(task, state, X, epochs=1, run_dir=tmp_path, progress=False)
    assert len(calls) <= 2  # traced for its shapes, no more
    RunLock(tmp_path).release()
