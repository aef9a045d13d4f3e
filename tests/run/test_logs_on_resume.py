"""Metric files that are damaged, foreign or gone: a log never keeps a run from going on, and what is there is kept."""

import errno
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.callbacks import CSVLogger, JSONLogger, ModelCheckpoint, Profiler, TensorBoardLogger
from fntrain.run import writers
from fntrain.run.writers import CSVWriter, JSONLWriter, read_rows

X = np.linspace(-1, 1, 16, dtype=np.float32)
TASK = ft.Task(lambda p, b, ctx: ft.losses.mse(b[0] * p["w"], b[1]), ft.optimizers.sgd(0.05))


def fit(path, epochs=3, callbacks=(), **options):
    state = ft.init_state(TASK, {"w": np.float32(0)})
    options = {"run_dir": path, "progress": False, **options}
    return ft.fit(TASK, state, (X, 3 * X), epochs=epochs, batch_size=8, callbacks=callbacks, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The two files of a run of four epochs."""
    path = tmp_path_factory.mktemp("whole")
    fit(path, 4)
    return {name: (path / name).read_bytes() for name in ("metrics.csv", "metrics.jsonl")}


def without_line(n):
    return lambda text: b"".join(line for i, line in enumerate(text.splitlines(True)) if i != n)


DAMAGE = {
    "a hole": without_line(1),
    "a blank line": lambda text: text + b"\n",
    "a line cut short": lambda text: text[:-20] + b"\n",
    "odd bytes": lambda text: text + b"\0" * 64 + b"\n",
    "another encoding": lambda text: text.decode().encode("utf-16"),
    "latin-1": lambda text: text.replace(b"loss", b"l\xf6ss"),
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "another column": lambda text: text.replace(b"loss", b"mine"),
    "another value": lambda text: text.replace(b"0.05", b"0.06"),
    "semicolons": lambda text: text.replace(b",", b";"),
    "something else": lambda text: b"to be, or not to be\n",
}


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.jsonl"])
def test_whatever_became_of_the_files_a_resume_writes_them_anew_and_keeps_the_old(whole, name, tmp_path):
    file = tmp_path / name
    fit(tmp_path, 3)
    epoch_3 = file.read_bytes()
    for n, (what, damage) in enumerate(DAMAGE.items(), 1):
        file.write_bytes(damage(epoch_3))
        with pytest.warns(RuntimeWarning, match=rf"{name} .*; it is kept as {name}.old-{n}"):
            result = fit(tmp_path, 3, resume="must")
        assert result.history["epoch"] == [1, 2, 3], what
        assert file.read_bytes() == epoch_3, what
        assert (tmp_path / f"{name}.old-{n}").exists(), what
    fit(tmp_path, 4, resume="must")
    assert file.read_bytes() == whole[name]


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.jsonl"])
def test_rows_that_are_lost_or_too_many_are_no_matter(whole, name, tmp_path):
    fit(tmp_path, 3)
    file = tmp_path / name
    epoch_3 = file.read_bytes()
    for text in (without_line(3 if name.endswith("csv") else 2)(epoch_3), epoch_3[:-5], b"", whole[name]):
        file.write_bytes(text)
        fit(tmp_path, 3, resume="must")  # says nothing: nothing is lost
        assert file.read_bytes() == epoch_3
    file.unlink()
    fit(tmp_path, 3, resume="must")
    assert file.read_bytes() == epoch_3
    assert sorted(p.name for p in tmp_path.iterdir() if "old" in p.name) == []


def test_a_directory_in_a_file_s_place_and_rows_without_a_checkpoint(whole, tmp_path):
    (tmp_path / "metrics.csv").mkdir()
    with pytest.warns(RuntimeWarning, match=r"metrics.csv is a directory; it is kept as metrics.csv.old-1"):
        fit(tmp_path, 4)
    assert (tmp_path / "metrics.csv").read_bytes() == whole["metrics.csv"]
    for step in (tmp_path / "checkpoints").iterdir():
        step.rename(tmp_path / f"moved-{step.name}")
    with pytest.warns(RuntimeWarning, match="there is no checkpoint that knows of them"):
        fit(tmp_path, 1, resume=True)
    assert (tmp_path / "metrics.jsonl.old-1").read_bytes() == whole["metrics.jsonl"]


def test_a_cell_of_any_size(tmp_path):
    C = 220  # the matrix is a cell of 145 kB, beyond what the csv module reads by itself

    def loss_fn(params, batch, ctx):
        logits = batch[0][:, None] * params["w"][None]
        return ft.losses.cross_entropy(logits, batch[1]).with_outputs(logits=logits, labels=batch[1])

    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1), metrics={"cm": ft.metrics.confusion_matrix(C)})
    data, options = (X, np.arange(16, dtype=np.int32)), dict(run_dir=tmp_path, progress=False)
    ft.fit(task, ft.init_state(task, {"w": np.zeros(C, np.float32)}), data, epochs=1, **options)
    again = ft.fit(
        task, ft.init_state(task, {"w": np.zeros(C, np.float32)}), data, epochs=2, resume="must", **options
    )
    for name in ("metrics.csv", "metrics.jsonl"):
        rows = read_rows(tmp_path / name)
        assert [row["epoch"] for row in rows] == [1, 2]
        assert rows[1]["cm"] == again.history["cm"][1].tolist()


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("kind", ["run", "callbacks"])
def test_a_full_disk_is_said_once_and_made_good_when_there_is_room(kind, whole, tmp_path, monkeypatch):
    class Disk:
        """Full from the end of epoch 2 to that of epoch 4, in the midst of a row."""

        def on_epoch_begin(self, ctx):
            if ctx.epoch == 2:
                monkeypatch.setattr(writers._Writer, "_append", self.half)
            if ctx.epoch == 4:
                monkeypatch.undo()

        @staticmethod
        def half(writer, text):
            writer.torn = True
            with open(writer.path, "a") as file:
                file.write(text[: len(text) // 2])
            full()

    logs = {"metrics.csv": CSVLogger, "metrics.jsonl": JSONLogger}
    callbacks = [] if kind == "run" else [make(tmp_path / name) for name, make in logs.items()]
    with pytest.warns(RuntimeWarning) as said:
        fit(tmp_path if kind == "run" else None, 4, callbacks=[Disk(), *callbacks])
    assert [str(w.message).count("No space left on device; the run goes on") for w in said] == [1, 1]
    for name in whole:
        assert (tmp_path / name).read_bytes() == whole[name]


@pytest.mark.parametrize("writer", [CSVWriter, JSONLWriter])
def test_a_write_that_fails_leaves_a_writer_that_can_begin_again(writer, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    out = writer(tmp_path / "log")
    out.write({"epoch": 1})
    out.close()
    out._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        out.write({"epoch": 2})
    assert out.torn
    out.begin([{"epoch": 1}, {"epoch": 2}])
    out.write({"epoch": 3})
    out.close()
    assert [row["epoch"] for row in read_rows(tmp_path / "log")] == [1, 2, 3]


def test_paths_are_those_of_the_moment_they_were_given(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    logger, profiler = CSVLogger("log.csv"), Profiler("trace")
    saving, best, boards = ModelCheckpoint("versions"), ModelCheckpoint("best.npz"), TensorBoardLogger("tb")

    class Moves:
        def on_epoch_begin(self, ctx):
            os.chdir(tmp_path / "b")

    fit("run", 2, callbacks=[Moves(), logger, saving, best, boards, JSONLogger("log.jsonl")])
    assert list((tmp_path / "b").iterdir()) == []
    here = {"run", "log.csv", "log.jsonl", "versions", "best.npz", "tb"}
    assert {p.name for p in (tmp_path / "a").iterdir()} == here
    assert profiler.directory == tmp_path / "a" / "trace"


def test_run_directories_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "dangling").symlink_to(tmp_path / "not yet")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").write_text("")
    for path, real in [
        ("~/run", tmp_path / "home" / "run"),
        (tmp_path / "link", tmp_path / "there"),
        (tmp_path / "dangling", tmp_path / "not yet"),
        (tmp_path / "there" / ".." / "up", tmp_path / "up"),
        (tmp_path / ("n" * 255), None),
        (tmp_path / "with space" / "ünïcode ✓" / "a'b\"c", None),
    ]:
        fit(path, 1)
        assert fit(path, 2, resume="must").checkpoints == [2, 4]
        assert (Path(real or path) / "metrics.csv").exists()
    with pytest.raises(ft.ConfigError, match="`run_dir` must be a path that leads somewhere"):
        fit(tmp_path / "circle")
    with pytest.raises(ft.ConfigError, match="`run_dir` must be a path that leads somewhere"):
        fit("~nobody-of-that-name/run")
    with pytest.raises(ft.ConfigError, match="is a file"):
        fit(tmp_path / "file")
    with pytest.raises(ft.CheckpointError, match="cannot be made"):
        fit(tmp_path / "file" / "below")


def test_a_directory_that_cannot_be_written_to_is_said_before_training(tmp_path, monkeypatch):
    access = os.access
    sealed = [tmp_path / "run" / "checkpoints", tmp_path / "versions"]  # root may write anywhere, but is told
    monkeypatch.setattr(os, "access", lambda path, *mode: path not in sealed and access(path, *mode))
    steps = []

    class Counts:
        def on_step_end(self, ctx):
            steps.append(ctx.step)

    with pytest.raises(ft.CheckpointError, match=rf"cannot write to {sealed[0]}: Permission denied"):
        fit(tmp_path / "run", callbacks=[Counts()])
    with pytest.raises(ft.CheckpointError, match=rf"cannot write to {sealed[1]}: Permission denied"):
        fit(None, callbacks=[Counts(), ModelCheckpoint(sealed[1])])
    assert steps == []


def test_scalars_that_a_callback_adds_are_numbers_for_all_that_come_after(tmp_path):
    added = {
        "jax": jnp.float32(1.5),
        "bfloat16": jnp.bfloat16(2.5),
        "numpy": np.float64(3.5),
        "small": np.asarray(jnp.bfloat16(4.5))[()],
        "whole": jnp.int32(7),
    }
    seen = {}

    class Adds:
        def on_epoch_end(self, ctx):
            ctx.logs.update(added)

    board = TensorBoardLogger(tmp_path / "tb")
    board._write = lambda logs, prefix, step: seen.update(logs)
    result = fit(tmp_path / "run", 1, callbacks=[Adds(), board])
    want = {"jax": 1.5, "bfloat16": 2.5, "numpy": 3.5, "small": 4.5, "whole": 7}
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    for rows in (result.history.rows()[0], row, seen, read_rows(tmp_path / "run" / "metrics.csv")[0]):
        assert {name: rows[name] for name in want} == want
        assert all(type(rows[name]) is (int if name == "whole" else float) for name in want)


def test_a_board_of_one_s_own_loop_takes_scalars_of_every_kind(tmp_path):
    ctx = ft.callbacks.LoopContext(TASK, ft.init_state(TASK, {"w": np.float32(0)}))
    board, written = TensorBoardLogger(tmp_path), {}
    board.on_fit_begin(ctx)
    board._writer.add_scalar = lambda name, value, step: written.update({name: value})
    ctx.logs = {
        "a": jnp.float32(1.5),
        "b": np.asarray(jnp.bfloat16(2.5)),
        "c": np.float16(3.5),
        "d": jnp.ones(3),
    }
    board.on_epoch_end(ctx)
    board.close()
    assert written == {"a": 1.5, "b": 2.5, "c": 3.5}


def test_a_table_without_pandas_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ft.ConfigError, match=r"pip install pandas`; `rows\(\)` gives"):
        ft.callbacks.LoopContext(TASK, ft.init_state(TASK, {"w": np.float32(0)})).history.to_pandas()
