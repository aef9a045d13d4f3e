"""Monitors where validations fall inside epochs, over a resume, and where parameters are not finite."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.run.writers import read_rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3)).astype(np.float32)
W = np.array([1.0, -2.0, 0.5], np.float32)
Y = X @ W


def loss_fn(params, batch, ctx):
    return ft.losses.mse(batch[0] @ params["w"], batch[1])


TASK = ft.Task(loss_fn, ft.optimizers.sgd(0.05))


def fresh(task=TASK):
    return ft.init_state(task, {"w": jnp.zeros(3)})


def fit(callbacks=(), task=TASK, data=(X, Y), **options):
    options = {"batch_size": 8, "progress": False, **options}
    return ft.fit(task, fresh(task), data, callbacks=callbacks, **options)


def batches(epoch):
    while True:  # an epoch without an end
        yield X[:16], Y[:16]


INSIDE = dict(validation_data=(X, Y), validation_every=5)


def test_patience_counts_validations_inside_an_epoch_without_an_end(tmp_path):
    stopping = ft.callbacks.EarlyStopping(patience=2, min_delta=1e9)
    saving = ft.callbacks.ModelCheckpoint(tmp_path / "ck")
    files = [ft.callbacks.CSVLogger(tmp_path / "log.csv"), ft.callbacks.JSONLogger(tmp_path / "log.jsonl")]
    result = fit([stopping, saving, *files], data=batches, steps=400, run_dir=tmp_path / "run", **INSIDE)
    # The first validation sets the best; the second and the third are no improvement by 1e9.
    assert int(result.state.step) == 15
    assert result.history["step"] == [5, 10, 15]
    assert result.history["unfinished"] == [True] * 3
    assert result.stop_reason.startswith("val_loss has not improved for 2 validations: the best is")
    assert (stopping.best_step, stopping.best) == (5, result.history["val_loss"][0])
    for step, value in zip((5, 10, 15), result.history["val_loss"]):
        w = np.asarray(Checkpointer(tmp_path / "ck").restore(fresh(), step=step).params["w"], np.float64)
        np.testing.assert_allclose(value, np.mean((X @ w - Y) ** 2), rtol=1e-5)
    for name in ("run/metrics.csv", "run/metrics.jsonl", "log.csv", "log.jsonl"):
        assert [row["step"] for row in read_rows(tmp_path / name)] == [5, 10, 15], name


def test_the_training_loss_is_looked_at_when_an_epoch_ends():
    seen = []

    class Counted(ft.callbacks.EarlyStopping):
        def _check(self, ctx):
            seen.append(ctx.step)
            super()._check(ctx)

    fit([Counted("loss")], epochs=2, **INSIDE)
    assert seen == [8, 16]


def test_the_rate_is_reduced_by_validations_inside_epochs():
    plateau = ft.callbacks.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=1e9)
    result = fit([plateau], steps=20, **INSIDE)
    # The first validation sets the best, and each after it reduces; a row has the rate from before its own.
    assert result.history["step"] == [5, 8, 10, 15, 16, 20]
    np.testing.assert_allclose(
        result.history["learning_rate"], 0.05 * 0.5 ** np.array([0, 0, 1, 2, 3, 4]), rtol=1e-6
    )


@pytest.mark.parametrize("k", [3, 5, 7, 10, 12])
def test_stopped_and_resumed_is_the_run_rows_inside_epochs_included(k, tmp_path):
    def run(directory, steps, resume=False):
        stopping = ft.callbacks.EarlyStopping(patience=50)
        options = dict(run_dir=directory, checkpoint_every=1, steps_per_call=1, resume=resume)
        return fit([stopping], steps=steps, **options, **INSIDE), stopping

    straight, whole = run(tmp_path / "straight", 16)
    run(tmp_path / "run", k)
    resumed, stopping = run(tmp_path / "run", 16, resume=True)
    assert resumed.history.rows() == straight.history.rows()
    assert (stopping.best_step, stopping.best) == (whole.best_step, whole.best)
    for name in ("metrics.jsonl", "metrics.csv"):
        assert read_rows(tmp_path / "run" / name) == read_rows(tmp_path / "straight" / name)


def test_a_run_stopped_inside_its_first_epoch_has_a_row_that_says_so(tmp_path):
    class Stop:
        def on_step_end(self, ctx):
            if ctx.step == 3:
                ctx.stop("enough")

    log = tmp_path / "log.jsonl"
    result = fit([Stop(), ft.callbacks.JSONLogger(log)], epochs=2, run_dir=tmp_path / "run")
    alone = fit(steps=3)
    assert result.history["loss"] == alone.history["loss"]
    assert (result.history["unfinished"], result.history.epochs) == ([True], 0)
    assert read_rows(log) == read_rows(tmp_path / "run" / "metrics.jsonl")
    resumed = fit(epochs=2, run_dir=tmp_path / "run", resume=True)
    assert resumed.history.rows() == fit(epochs=2).history.rows()
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 2


# Over a resume.


def added(logs):
    return {"acc": 0.5 + 0.01 * logs["epoch"]}


VALIDATED = dict(validation_data=(X, Y))


def test_another_column_starts_anew_and_says_so(tmp_path):
    fit([added, ft.callbacks.EarlyStopping()], epochs=2, run_dir=tmp_path / "r", **VALIDATED)
    stopping = ft.callbacks.EarlyStopping("acc", mode="max", patience=3)
    with pytest.warns(
        RuntimeWarning, match=r"EarlyStopping\(monitor='acc', mode='max'\) starts anew: .*'val_loss'"
    ):
        result = fit([added, stopping], epochs=9, run_dir=tmp_path / "r", resume=True, **VALIDATED)
    assert len(result.history["acc"]) == 9  # acc rises: nothing stops it
    assert (stopping.best, stopping.best_epoch) == (0.5 + 0.01 * 9, 9)
    noted = json.loads((tmp_path / "r" / "config.json").read_text())["overridden"]
    assert noted[0]["step"] == 16
    assert "'acc'" in noted[0]["changes"][0]


def test_order_does_not_matter_and_each_finds_its_own(tmp_path):
    def callbacks():
        return [ft.callbacks.EarlyStopping("loss", patience=30), ft.callbacks.EarlyStopping(patience=30)]

    first = callbacks()
    fit(first, epochs=2, run_dir=tmp_path / "r", **VALIDATED)
    second = callbacks()[::-1]
    fit(second, epochs=2, run_dir=tmp_path / "r", resume=True, **VALIDATED)
    assert [c.best for c in second] == [c.best for c in first[::-1]]
    assert first[0].best != first[1].best


def test_others_are_refused_and_the_way_is_shown_and_works(tmp_path):
    fit([ft.callbacks.EarlyStopping()], epochs=1, run_dir=tmp_path / "r", **VALIDATED)
    other = ft.callbacks.ReduceLROnPlateau()
    with pytest.raises(ft.ConfigError, match=r'override=\("callbacks",\)'):
        fit([other], epochs=2, run_dir=tmp_path / "r", resume=True, **VALIDATED)
    fit([other], epochs=2, run_dir=tmp_path / "r", resume=True, override=("callbacks",), **VALIDATED)
    changes = json.loads((tmp_path / "r" / "config.json").read_text())["overridden"][0]["changes"]
    assert [line.split("(")[0] for line in changes] == ["ReduceLROnPlateau", "EarlyStopping"]


# One writer a place.


def test_two_in_one_place_are_refused_before_training(tmp_path):
    def saving(path, monitor="loss"):
        return ft.callbacks.ModelCheckpoint(path, monitor=monitor)

    for path in (tmp_path / "ck", tmp_path / "best.npz"):
        steps = []
        with pytest.raises(ft.RunLockedError, match="another run or callback"):
            fit(
                [saving(path), saving(path, "val_loss"), lambda logs: steps.append(logs)],
                epochs=1,
                **VALIDATED,
            )
        assert steps == []
        fit([saving(path)], epochs=1)  # the refused run holds nothing
    with pytest.raises(ft.ConfigError, match="holds the run's own checkpoints"):
        fit([saving(tmp_path / "r" / "checkpoints")], epochs=1, run_dir=tmp_path / "r")
    assert [p.name for p in (tmp_path / "ck").iterdir() if not p.name[0].isdigit()] == []


def test_so_are_two_in_two_processes(tmp_path):
    script = (
        "import sys; from fntrain.run.lock import RunLock\n"
        f"lock = RunLock({str(tmp_path)!r}, stays=False); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(ft.RunLockedError, match=f"process {other.pid}"):
        fit([ft.callbacks.ModelCheckpoint(tmp_path, monitor="loss")], epochs=1)
    other.communicate()
    fit([ft.callbacks.ModelCheckpoint(tmp_path, monitor="loss")], epochs=1)


# Parameters that are not finite.


def poison(logs):
    if logs["epoch"] == 2:
        POISONED[5] = np.nan


POISONED = X.copy()


def test_parameters_that_are_not_finite_push_nothing_out(tmp_path):
    POISONED[:] = X
    place = tmp_path / "run"
    saving = ft.callbacks.ModelCheckpoint(tmp_path / "best.npz", monitor="score", mode="max")
    rising = lambda logs: {"score": float(logs["epoch"])}
    result = fit([rising, poison, saving], data=(POISONED, Y), epochs=6, run_dir=place, rebuild=0)
    with Checkpointer(place / "checkpoints") as checkpoints:
        finite = {
            k: np.isfinite(checkpoints.restore(fresh(), step=k).params["w"]).all()
            for k in checkpoints.steps()
        }
        assert finite == {8: True, 16: True, 48: False}
    assert saving.best == 2.0
    assert np.isfinite(np.load(tmp_path / "best.npz")["w"]).all()
    assert result.diverged
    assert json.loads((place / "config.json").read_text())["status"] == "diverged"


def test_a_run_whose_losses_are_finite_has_not_diverged(tmp_path, capsys):
    result = fit(epochs=1, run_dir=tmp_path / "run", progress=True)
    assert not result.diverged
    assert json.loads((tmp_path / "run" / "config.json").read_text())["status"] == "done"
    assert "\ndone: " in capsys.readouterr().out
    bad = fit(data=(np.full_like(X, np.nan), Y), epochs=1, progress=True)
    assert bad.diverged
    assert "\ndiverged: " in capsys.readouterr().out


def test_the_last_line_says_the_best_once(capsys):
    def last_line(monitor):
        diverging = ft.Task(loss_fn, ft.optimizers.sgd(1.0))
        early = [ft.callbacks.EarlyStopping(monitor, patience=2)]
        result = fit(early, diverging, epochs=9, validation_data=(X[:8], Y[:8]), progress=True)
        best = int(np.argmin(result.history["val_loss"]))
        said = f"the best is {result.history['val_loss'][best]:.6g}, of epoch {best + 1}"
        return capsys.readouterr().out.splitlines()[-1], said

    line, said = last_line("val_loss")
    assert line.endswith(f"stopped: val_loss has not improved for 2 epochs: {said}")
    assert line.count("best") == 1
    line, _ = last_line("loss")  # of which the reason says nothing about the validation
    assert "stopped: loss has not improved for 2 epochs: the best is" in line
    assert ", best val_loss" in line


# Early stopping as Keras's.


def stopped(values, **options):
    it = iter(values)
    stopping = ft.callbacks.EarlyStopping("v", mode="min", **options)
    result = fit([lambda logs: {"v": next(it)}, stopping], epochs=len(values), batch_size=64)
    return len(result.history["v"]), stopping


@pytest.mark.parametrize(
    ("options", "values", "epochs", "best_epoch"),
    [
        # Two epochs are not looked at, the best among them neither.
        (dict(patience=2, start_from_epoch=2), [0.1, 0.2, 1.0, 0.9, 0.95, 0.95, 0.1], 6, 4),
        # Falling, and never below the baseline: patience runs out.
        (dict(patience=3, baseline=0.5), [0.9, 0.8, 0.7, 0.6, 0.4], 3, 3),
        # Below the baseline in time: from there on patience counts as ever.
        (dict(patience=3, baseline=0.5), [0.9, 0.8, 0.4, 0.6, 0.6, 0.6, 0.1], 6, 3),
        # Better by less than min_delta is not better than the baseline.
        (dict(patience=2, baseline=0.5, min_delta=0.1), [0.9, 0.45, 0.1], 2, 2),
    ],
)
def test_warm_up_and_baseline(options, values, epochs, best_epoch):
    done, stopping = stopped(values, **options)
    assert (done, stopping.best_epoch, stopping.best) == (epochs, best_epoch, values[best_epoch - 1])


def test_kerass_name_for_restore_best():
    assert ft.callbacks.EarlyStopping(restore_best_weights=True).restore_best
    with pytest.raises(ft.ConfigError, match="`restore_best` or `restore_best_weights`, not both"):
        ft.callbacks.EarlyStopping(restore_best=True, restore_best_weights=True)
    for bad in (dict(start_from_epoch=-1), dict(baseline="low")):
        with pytest.raises(ft.ConfigError, match=next(iter(bad))):
            ft.callbacks.EarlyStopping(**bad)


def test_min_lr_is_a_floor_also_without_an_update_between_two_reductions():
    task = ft.Task(
        lambda p, b, c: ft.Loss(jnp.ones(b.shape[0]) + 0 * p["w"]), ft.MultiSteps(ft.optimizers.sgd(0.1), 8)
    )
    state = ft.init_state(task, {"w": np.float32(1)})
    plateau = ft.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_lr=0.05)
    data = np.ones((8, 1), np.float32)  # two batches an epoch, eight to an update
    result = ft.fit(task, state, data, batch_size=4, epochs=12, callbacks=[plateau], progress=False)
    assert result.history["learning_rate"][-1] == pytest.approx(0.05)
