"""Saves by the clock, and how many updates a row's state has had."""

import jax
import numpy as np
import pytest

import fntrain as ft
from fntrain.run import loop
from fntrain.run.cadence import cadence

X = np.linspace(-1, 1, 32, dtype=np.float32)


def loss_fn(params, batch, ctx):
    return ft.losses.mse(batch * params["w"], 3 * batch)


TASK = ft.Task(loss_fn, ft.MultiSteps(ft.optimizers.sgd(0.1, momentum=0.5), 3))


def run(**options):
    state = ft.init_state(TASK, {"w": np.float32(0)})
    options = {"epochs": 2, "batch_size": 4, "progress": False, **options}
    return ft.fit(TASK, state, X, **options)


class Tick(ft.callbacks.Callback):
    """A clock that goes on by a second a step."""

    adds_logs = False

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(loop.time, "monotonic", lambda: self.now)

    def on_step_end(self, ctx):
        self.now += 1.0


def test_a_time_saves_at_the_steps_at_which_it_is_over(monkeypatch, tmp_path):
    saved = []
    save = loop.RunDirectory.save

    def noted(self, state, step, *more):
        saved.append(step)
        save(self, state, step, *more)

    monkeypatch.setattr(loop.RunDirectory, "save", noted)
    straight = run()
    result = run(run_dir=tmp_path, checkpoint_every="3s", callbacks=[Tick(monkeypatch)])
    assert saved == [3, 6, 9, 12, 15, 16]  # the last step always
    assert float(result.state.params["w"]) == float(straight.state.params["w"])


@pytest.mark.parametrize("stop", [3, 8, 10])
def test_where_it_saved_no_resume_can_tell(monkeypatch, tmp_path, stop):
    straight = run()
    run(run_dir=tmp_path, checkpoint_every="5s", callbacks=[Tick(monkeypatch)], epochs=None, steps=stop)
    result = run(run_dir=tmp_path, checkpoint_every="2s", callbacks=[Tick(monkeypatch)], resume=True)
    for x, y in zip(jax.tree.leaves(result.state.opt_state), jax.tree.leaves(straight.state.opt_state)):
        assert np.array_equal(x, y)
    assert result.history.rows() == straight.history.rows()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("30s", 30.0), ("10min", 600.0), ("2 h", 7200.0), ("0.5h", 1800.0), (7, 7), (None, None)],
)
def test_steps_and_times(given, wanted):
    found = cadence("checkpoint_every", given)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize("given", ["10", "ten min", "0s", "-1h", "5 days", "", 0, 2.5, True])
def test_what_is_neither(given, tmp_path):
    with pytest.raises(ft.ConfigError, match=r"`checkpoint_every` must be an integer >= 1"):
        run(run_dir=tmp_path / "run", checkpoint_every=given)
    assert not (tmp_path / "run").exists()


def test_a_row_says_how_many_updates_its_state_has_had():
    # Windows of three, over epochs of eight batches: 2 updates after 8 batches, 5 after 16.
    result = run(validation_data=X[:4], validation_every=7)
    rows = [(row["step"], row["updates"]) for row in result.history.rows()]
    assert rows == [(7, 2), (8, 2), (14, 4), (16, 5)]
    assert all(type(updates) is int for _, updates in rows)
    assert list(result.history)[:3] == ["epoch", "step", "updates"]


def test_no_metric_may_have_its_name():
    with pytest.raises(ft.ConfigError, match=r"'updates'.*column of the history"):
        ft.Task(loss_fn, ft.optimizers.sgd(0.1), {"updates": ft.metrics.mean("x")})
