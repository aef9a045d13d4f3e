"""search: better than chance at equal cost, pruned, killed and shared without a trial lost."""

import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import cli, population

ONE = np.ones(2, np.float32)
SPACE = {"a": (0.0, 1.0), "b": (0.0, 1.0)}


def moves(a, b):
    """Each step goes to (a, b): so the loss of a run is (a - 0.5)² + (b - 0.25)², whatever else."""

    def update(g, state, params=None, **extra):
        return {"x": jnp.stack([a, b]) - params["x"]}, state

    return ft.transforms.Transform(lambda params: (), update)


def bowl(params, batch, ctx):
    return jnp.sum((params["x"] - jnp.array([0.5, 0.25])) ** 2) + 0 * batch


def make_task(a, b):
    return ft.Task(bowl, ft.with_hyperparams(moves, a=a, b=b))


def search(**kwargs):
    options = dict(trials=12, members=4, epochs=2, batch_size=2, validation_data=ONE)
    return population.search(make_task, SPACE, ONE, {"x": np.zeros(2, np.float32)}, **{**options, **kwargs})


def test_a_trials_value_is_that_of_its_numbers():
    found = search()
    assert [row["status"] for row in found.table] == ["done"] * 12
    for row in found.table:
        np.testing.assert_allclose(row["value"], (row["a"] - 0.5) ** 2 + (row["b"] - 0.25) ** 2, rtol=1e-5)
    assert found.value == min(row["value"] for row in found.table)
    best = found.table[found.number]
    assert found.params == {"a": best["a"], "b": best["b"]}
    np.testing.assert_allclose(found.state.params["x"], [best["a"], best["b"]], rtol=1e-6)
    assert search().table == found.table  # the same seed, the same study


def test_it_beats_chance_at_equal_cost():
    values = {
        sampler: [
            search(trials=30, members=5, epochs=1, sampler=sampler, seed=seed).value for seed in range(3)
        ]
        for sampler in ("tpe", "random")
    }
    assert np.mean(values["tpe"]) < np.mean(values["random"]) / 2


def test_one_program_serves_all_trials_of_a_kind():
    traced = []

    def counting(params, batch, ctx):
        traced.append(1)
        return bowl(params, batch, ctx)

    def make(a):
        return ft.Task(counting, ft.with_hyperparams(moves, a=a, b=0.25))

    options = dict(members=2, epochs=1, batch_size=2, validation_data=ONE)
    counts = []
    for trials in (2, 8):
        traced.clear()
        population.search(
            make, {"a": (0.0, 1.0)}, ONE, {"x": np.zeros(2, np.float32)}, trials=trials, **options
        )
        counts.append(len(traced))
    assert counts[0] > 0 == counts[1]  # the same seed begins with the same trials


def test_what_differs_in_more_than_numbers_is_trained_apart():
    def make(power, a):
        def loss(params, batch, ctx):
            return jnp.abs(params["x"][0] - 0.5) ** power + 0 * batch

        return ft.Task(loss, ft.with_hyperparams(moves, a=a, b=0.0))

    space = {"power": [1.0, 2.0], "a": (0.0, 1.0)}
    options = dict(trials=6, members=6, epochs=1, batch_size=2, validation_data=ONE, sampler="random")
    found = population.search(make, space, ONE, {"x": np.zeros(2, np.float32)}, **options)
    assert {row["power"] for row in found.table} == {1.0, 2.0}
    for row in found.table:
        np.testing.assert_allclose(row["value"], abs(row["a"] - 0.5) ** row["power"], rtol=1e-5)


def test_asha_prunes_and_the_best_is_not_pruned():
    found = search(trials=8, members=8, epochs=4, pruner=population.asha(reduction=2, every=1))
    gone = [row for row in found.table if row["status"] == "pruned"]
    assert len(gone) >= 4
    assert found.value == min(row["value"] for row in found.table)
    assert max(row["step"] for row in gone) < 4 or len(gone) < 8


def test_a_trial_that_diverges_is_pruned_and_the_others_go_on():
    def make(a):
        return ft.Task(bowl, ft.with_hyperparams(moves, a=a, b=0.0))

    options = dict(trials=3, members=3, epochs=1, batch_size=2, validation_data=ONE)
    found = population.search(
        make, {"a": [1e30, 0.5]}, ONE, {"x": np.zeros(2, np.float32)}, **options, seed=1
    )
    assert {row["status"] for row in found.table if row["a"] == 1e30} == {"pruned"}
    assert found.params == {"a": 0.5}


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_search

def kill(ctx):
    if ctx.step == 2 and any((path / "trials").glob("*")):
        os.kill(os.getpid(), signal.SIGKILL)

class Kill:
    adds_logs = False
    on_epoch_begin = staticmethod(kill)

import pathlib
path = pathlib.Path({path!r})
found = test_search.search(run_dir=path, checkpoint_every=1, epochs=4, callbacks=[Kill()] if {kill} else [])
"""


def _process(path, kill):
    code = SCRIPT.format(tests=os.path.dirname(__file__), path=str(path), kill=kill)
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_study_survives_a_kill_and_is_shared_by_processes(tmp_path, capsys):
    killed = _process(tmp_path, kill=True)
    error = killed.communicate()[1]
    assert killed.returncode == -signal.SIGKILL, error
    study = population.study.load_study(tmp_path)
    states = [trial.state.name for trial in study.trials]
    assert states.count("COMPLETE") == 4
    assert states.count("RUNNING") == 4

    beside = _process(tmp_path, kill=False)
    found = search(run_dir=tmp_path, checkpoint_every=1, epochs=4)
    error = beside.communicate()[1]
    assert beside.returncode == 0, error
    found = search(run_dir=tmp_path, checkpoint_every=1, epochs=4)  # nothing is left to do
    assert [row["status"] for row in found.table] == ["done"] * 12
    for row in found.table:
        np.testing.assert_allclose(row["value"], (row["a"] - 0.5) ** 2 + (row["b"] - 0.25) ** 2, rtol=1e-5)
    params = ft.restore_params(found.run_dir / "checkpoints")
    np.testing.assert_allclose(params["x"], [found.params["a"], found.params["b"]], rtol=1e-6)

    assert cli.main(["search", str(tmp_path), "--top", "3"]) == 0
    shown = capsys.readouterr().out
    assert "12 trials, 12 done" in shown
    assert shown.index(f"{found.number}") > 0
    assert cli.main(["inspect", str(found.run_dir)]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(trials=0), "`trials`"),
        (dict(sampler="tpee"), "did you mean 'tpe'"),
        (dict(validation_data=None), "`validation_data`"),
        (dict(mode="up"), "`mode`"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ft.errors.ConfigError, match=message):
        search(**change)


@pytest.mark.parametrize("space", [{}, {"a": 0.5}, {"a": (1.0, 0.0)}, {"a": (0.0, 1.0, "log")}, {"a": []}])
def test_a_space_that_is_none_is_named(space):
    with pytest.raises(ft.errors.ConfigError, match=r"`space|must be a finite number"):
        population.search(make_task, space, ONE, {"x": np.zeros(2, np.float32)}, validation_data=ONE)


def test_an_empty_directory_is_no_study(tmp_path, capsys):
    assert cli.main(["search", str(tmp_path)]) == 2
    assert "holds no study" in capsys.readouterr().err
