"""The best validation's state: in memory, on disk, of a callback; bitwise that of its epoch, whole over a resume."""

import functools
import math

import jax
import numpy as np
import pytest

import fntrain as ft

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32)).astype(np.float32)


def loss_fn(params, batch, ctx):
    predictions = batch[0] @ params["w"]
    return ft.losses.mse(predictions, batch[1]).with_outputs(predictions=predictions, targets=batch[1])


TASK = ft.Task(loss_fn, ft.optimizers.sgd(0.25, momentum=0.9), {"r2": ft.metrics.r2()})  # it overshoots
HELD = (X[:5], Y[:5])


def run(**options):
    state = ft.init_state(TASK, {"w": np.zeros(3, np.float32)})
    options = {"epochs": 6, "batch_size": 8, "progress": False, "validation_data": HELD, **options}
    return ft.fit(TASK, state, (X, Y), **options)


def bits(state):
    return [
        np.asarray(x).tobytes() for x in jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))
    ]


@functools.cache
def straight():
    """The rows of the run, and the bits of its state at each validation inside epochs and at their ends."""
    seen = {}

    class Watch(ft.callbacks.Callback):
        adds_logs = False

        def on_validation_end(self, ctx):
            seen[ctx.step] = bits(ctx.state)

    return run(validation_every=2, callbacks=[Watch()]).history.rows(), seen


def best_row(rows, column="val_loss", better=min):
    return better((row for row in rows if math.isfinite(row[column])), key=lambda row: row[column])


def test_the_best_is_neither_the_first_nor_the_last():
    rows, _ = straight()
    assert rows[0]["step"] < best_row(rows)["step"] < rows[-1]["step"]


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("keep", [True, "val_loss", ("val_loss", "min")])
def test_it_is_bitwise_the_state_that_was_validated(on_disk, keep, tmp_path):
    rows, seen = straight()
    where = dict(run_dir=tmp_path, checkpoint_every=100) if on_disk else {}
    result = run(validation_every=2, keep_best=keep, **where)
    assert result.history.rows() == rows
    state, row = result.best
    assert row == best_row(rows)
    assert bits(state) == seen[row["step"]]
    assert bits(result.state) == seen[rows[-1]["step"]]  # and the run's own is the last
    assert result.best is result.best


def test_which_way_is_better_the_metric_says():
    rows, seen = straight()
    result = run(validation_every=2, keep_best="val_r2")
    assert result.best.row == best_row(rows, "val_r2", max)
    assert bits(result.best.state) == seen[result.best.row["step"]]
    training = run(keep_best="loss").best.row
    assert training["loss"] == min(run().history["loss"])


def test_it_outlives_a_resume(tmp_path):
    rows, seen = straight()
    options = dict(validation_every=2, keep_best=True, run_dir=tmp_path, checkpoint_every=4)
    for steps in (5, 7, 11):
        run(**options, steps=steps, epochs=None, resume=True)
    result = run(**options, resume=True)
    assert result.best.row["step"] == best_row(rows)["step"]
    assert result.best.row["val_loss"] == best_row(rows)["val_loss"]
    assert bits(result.best.state) == seen[result.best.row["step"]]
    assert np.array_equal(ft.restore_params(tmp_path, "best")["w"], result.best.state.params["w"])
    # A result that has nothing left to do knows it, too; and one whose state is spent.
    again = run(**options, resume=True)
    ft.train_step(TASK, again.state, HELD)
    assert bits(again.best.state) == bits(result.best.state)


def test_a_run_directory_has_it_unasked_where_epochs_are_saved(tmp_path):
    result = run(run_dir=tmp_path)
    assert result.best.row == best_row(result.history.rows())
    assert int(result.best.state.step) == result.best.row["step"]


def test_a_checkpoint_is_ranked_by_what_was_measured_at_its_own_step(tmp_path):
    # Epochs of 3 steps, saved at 4, 8, …: no saved step but the last was validated.
    result = run(run_dir=tmp_path, checkpoint_every=4, epochs=3)
    assert ft.Checkpointer(tmp_path / "checkpoints").best_step in (None, 9)
    with pytest.raises(ft.ConfigError, match=r"keep_best='val_loss'"):
        _ = result.best


def test_what_a_model_checkpoint_keeps_is_the_best(tmp_path):
    saving = ft.callbacks.ModelCheckpoint(tmp_path, "val_r2", save_best_only=True)
    result = run(callbacks=[saving])
    assert result.best.row == best_row(result.history.rows(), "val_r2", max)
    assert int(result.best.state.step) == result.best.row["step"]
    one_file = ft.callbacks.ModelCheckpoint(tmp_path / "best.npz", "val_r2")
    with pytest.raises(ft.ConfigError, match=r"keep_best=True"):
        _ = run(callbacks=[one_file]).best


def test_what_is_not_finite_is_never_the_best():
    task = ft.Task(loss_fn, ft.optimizers.sgd(1e20))  # finite once, then infinite
    state = ft.init_state(task, {"w": np.zeros(3, np.float32)})
    options = dict(epochs=3, batch_size=22, progress=False, validation_data=HELD)
    result = ft.fit(task, state, (X, Y), keep_best=True, **options)
    assert not any(map(math.isfinite, result.history["val_loss"]))
    with pytest.raises(ft.ConfigError, match="no validation had a finite 'val_loss'"):
        _ = result.best


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ("val_los", r"`keep_best`.*'val_los'.*did you mean 'val_loss'"),
        (3, r"`keep_best` must be True.*got 3"),
        (("val_loss", "low"), r"`keep_best`.*got \('val_loss', 'low'\)"),
        (("val_lss", "min"), r"`keep_best` must be a number that an epoch logs.*did you mean 'val_loss'"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_training(keep, words):
    with pytest.raises(ft.ConfigError, match=words):
        run(keep_best=keep)


def test_without_a_word_nothing_is_kept_in_memory():
    result = run()
    with pytest.raises(ft.ConfigError, match=r"`result.best`.*`fit\(..., keep_best=True\)`"):
        _ = result.best
    assert "_kept" not in repr(result)
