"""What a file system will not let go of, and what is gone from it."""

import os
import shutil

import numpy as np
import pytest

import fntrain as ft
from fntrain.callbacks import ModelCheckpoint
from fntrain.checkpoint import checkpointer, shelf
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.checkpoint.keep import Keep

X = np.linspace(-1, 1, 16, dtype=np.float32)
TASK = ft.Task(lambda p, b, ctx: ft.losses.mse(b[0] * p["w"], b[1]), ft.optimizers.sgd(0.05))


def fit(path, epochs=4, **options):
    state = ft.init_state(TASK, {"w": np.float32(0)})
    options = {"run_dir": path, "progress": False, **options}
    return ft.fit(TASK, state, (X, 3 * X), epochs=epochs, batch_size=8, **options)


def saved(directory, *steps):
    with Checkpointer(directory, Keep(latest=1, best=None)) as checkpoints:
        for step in steps:
            checkpoints.save({"w": np.full(2, step)}, step=step)
        return checkpoints.steps()


def test_a_step_that_cannot_be_deleted_stays_and_ends_nothing(tmp_path, monkeypatch):
    rename = os.rename

    def refused(old, new, **options):
        if ".deleted" in str(new):
            raise PermissionError(1, "Operation not permitted")
        rename(old, new, **options)

    with monkeypatch.context() as sealed:
        sealed.setattr(os, "rename", refused)
        with pytest.warns(RuntimeWarning) as said:
            assert saved(tmp_path, 1, 2, 3) == [1, 2, 3]
    assert [str(w.message) for w in said] == [
        f"an old step of {tmp_path} was not deleted, and stays: PermissionError: [Errno 1] Operation not permitted; "
        f"the run goes on"
    ]
    assert saved(tmp_path, 4) == [4]  # as soon as it can be done


def test_what_an_nfs_leaves_is_no_matter(tmp_path, monkeypatch):
    remove = shutil.rmtree

    def busy(path, ignore_errors=False, **options):
        """A file that somebody has open becomes `.nfs…`, and its directory cannot be removed."""
        remove(path, ignore_errors=True)
        os.makedirs(path)
        open(os.path.join(path, ".nfs0001"), "w").close()
        if not ignore_errors:
            raise OSError(39, "Directory not empty")

    with monkeypatch.context() as server:
        server.setattr(shelf.shutil, "rmtree", busy)
        assert saved(tmp_path, 1, 2) == [2]
        assert saved(tmp_path, 3) == [3]
        assert (tmp_path / "1.deleted" / ".nfs0001").exists()
        # The same step again, while the rest of its first version is still there.
        with Checkpointer(tmp_path, Keep(latest=1, best=None)) as checkpoints:
            checkpoints.save({"w": np.zeros(2)}, step=1)
            checkpoints.save({"w": np.zeros(2)}, step=4)
            assert checkpoints.steps() == [4]
    assert saved(tmp_path, 5) == [5]
    assert [p.name for p in tmp_path.iterdir()] == ["5"]  # cleared when there was nobody to hold it


def test_files_that_are_gone_are_named_and_nothing_starts_over_in_silence(tmp_path):
    fit(tmp_path, 3)
    directory = tmp_path / "checkpoints"

    def empty(name):
        shutil.rmtree(directory / name)
        (directory / name).mkdir()

    empty("6")
    with pytest.warns(
        RuntimeWarning, match="the files of `step 6` are gone from .*; the run goes on from step 4"
    ):
        resumed = fit(tmp_path, 3, resume=True)
    np.testing.assert_array_equal(resumed.state.params["w"], fit(None, 3).state.params["w"])
    for step in directory.iterdir():
        empty(step.name)
    with pytest.raises(
        ft.CheckpointCorruptError, match=r"`step 2`, `step 4`, `step 6` are gone .*choose another"
    ):
        fit(tmp_path, 3, resume=True)


def test_two_that_would_write_to_one_directory_are_refused_before_training(tmp_path):
    steps = []

    class Counts:
        def on_step_end(self, ctx):
            steps.append(ctx.step)

    low, high = (
        ModelCheckpoint(tmp_path / "versions", "loss"),
        ModelCheckpoint(tmp_path / "versions", "loss", "max"),
    )
    with pytest.raises(ft.RunLockedError, match="versions is in use by process"):
        fit(None, callbacks=[low, high, Counts()])
    with pytest.raises(ft.ConfigError, match="holds the run's own checkpoints"):
        fit(tmp_path / "run", callbacks=[ModelCheckpoint(tmp_path / "run" / "checkpoints", "loss"), Counts()])
    assert steps == []
    fit(None, callbacks=[low])  # free again
    assert low.best is not None


def test_a_disk_that_is_full_keeps_what_is_there_and_says_what_is_not(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    fit(tmp_path, 1)
    monkeypatch.setattr(checkpointer, "orbax_save", full)
    with (
        pytest.warns(RuntimeWarning, match="step 4 was not saved"),
        pytest.raises(ft.CheckpointError, match="No space left on device"),
    ):
        fit(tmp_path, 4, resume=True)
    monkeypatch.undo()
    assert Checkpointer(tmp_path / "checkpoints").steps() == [2]
    assert fit(tmp_path, 4, resume=True).checkpoints[-1] == 8
