"""Callbacks on a population: each member is decided for as its own run is; what is of all together says so."""

import jax
import numpy as np
import pytest

import fntrain as ft
from fntrain import callbacks, population

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32) + 0.25).astype(np.float32)
XV, YV = RNG.normal(size=(8, 3)).astype(np.float32), RNG.normal(size=8).astype(np.float32)


def loss_fn(params, batch, ctx):
    x, y = batch
    return ft.losses.mse(x @ params["w"], y)


TASK = ft.Task(loss_fn, ft.with_hyperparams(ft.optimizers.sgd, learning_rate=0.1))
START = {"w": np.zeros(3, np.float32)}
RATES = [0.02, 0.1, 0.3, 0.6]  # too little in eight epochs; past the best at a third; swings; diverges


def start(rates=RATES):
    return population.init(TASK, START, hyperparams={"learning_rate": rates})


def run(states, **kwargs):
    kwargs = {"batch_size": 8, "progress": False, "epochs": 8, "validation_data": (XV, YV), **kwargs}
    fit = ft.fit if states.step.ndim == 0 else population.fit
    return fit(TASK, states, (X, Y), **kwargs)


def alone(i, **kwargs):
    return run(population.member(start(), i), **kwargs)


def members(result, column):
    return np.array(result.history[column + "_each"]).T


def test_a_plateau_reduces_the_rate_of_its_member():
    def plateau():
        return [callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, cooldown=1, min_lr=0.04)]

    together = run(start(), callbacks=plateau())
    rates = members(together, "learning_rate")
    for i in range(4):
        own = alone(i, callbacks=plateau())
        np.testing.assert_allclose(rates[i], own.history["learning_rate"], rtol=1e-6)
        np.testing.assert_allclose(together.state.params["w"][i], own.state.params["w"], rtol=1e-5, atol=1e-6)
    assert (rates[1:, -1] < rates[1:, 0]).all()  # the decisions are not all one
    assert rates[0, -1] == rates[0, 0]
    assert len({tuple(row / row[0]) for row in rates}) > 2


def test_a_run_stops_when_every_member_has_and_each_ends_at_its_own_best():
    def stopping():
        return callbacks.EarlyStopping("val_loss", patience=2, restore_best=True)

    rates = RATES[1:]
    watching = stopping()
    together = run(start(rates), epochs=20, callbacks=[watching])
    ends = []
    for i in range(3):
        own = stopping()
        result = alone(i + 1, epochs=20, callbacks=[own])
        ends.append(len(result.history["loss"]))
        assert (own.best_epoch, own.best_step) == (watching.best_epoch[i], watching.best_step[i])
        np.testing.assert_allclose(watching.best[i], own.best, rtol=1e-6)
        np.testing.assert_allclose(together.state.params["w"][i], result.state.params["w"], rtol=1e-5)
    assert len(set(ends)) > 1
    assert len(together.history["loss"]) == max(ends) < 20
    assert "for 2 epochs in any of 3 members: the best is" in together.stop_reason


def test_a_scheduled_rate_is_that_of_every_member():
    def scheduled():
        return [callbacks.LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch)]

    together = run(start(), epochs=3, callbacks=scheduled())
    np.testing.assert_allclose(members(together, "learning_rate"), [[0.05, 0.025, 0.0125]] * 4, rtol=1e-6)
    own = alone(3, epochs=3, callbacks=scheduled())
    np.testing.assert_allclose(together.state.params["w"][3], own.state.params["w"], rtol=1e-6)


def test_what_is_remembered_goes_with_the_member():
    def watching():
        return [
            callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1),
            callbacks.EarlyStopping("val_loss", patience=9, restore_best=True),
            callbacks.NaNGuard(),
        ]

    straight = watching()
    whole = run(start(), epochs=4, callbacks=straight)
    cut = watching()
    result = run(start(), epochs=4, callbacks=cut, controller=population.halving(keep=0.5, every=4))
    # A row is of those whom it was measured of: who is let go at step 4 is in the row of that step.
    assert [len(x) for x in result.history["val_loss_each"]] == [4, 4, 2, 2]
    (left,) = result.ids
    assert cut[1].best.shape == (1,)
    assert (cut[1].best[0], cut[1].best_epoch[0]) == (straight[1].best[left], straight[1].best_epoch[left])
    np.testing.assert_allclose(result.state.params["w"][0], whole.state.params["w"][left], rtol=1e-6)


def test_nobody_who_was_not_told_goes_on_with_other_members():
    class Cut(callbacks.Callback):
        def on_epoch_end(self, ctx):
            ctx.state = population.select(ctx.state, [0, 1])

    with pytest.raises(
        ft.errors.ConfigError, match=r"remembers 4 members, and the population has 2.*regroup"
    ):
        run(start(), callbacks=[callbacks.EarlyStopping("val_loss"), Cut()])


def test_a_guard_ends_a_population_once_all_its_members_are_bad(tmp_path):
    bad = dict(log_every=1, steps_per_call=1, epochs=3)
    one = run(start([0.1, 3e38, 0.1, 3e38]), callbacks=[callbacks.NaNGuard(patience=1)], **bad)
    assert one.stop_reason is None
    assert np.isfinite(members(one, "val_loss")).all(1).tolist() == [True, False, True, False]
    every = run(start([3e38] * 4), callbacks=[callbacks.NaNGuard(patience=2)], **bad)
    assert every.stop_reason.startswith("of each of 4 members, ")
    assert int(every.state.step[0]) < 6
    with pytest.raises(ft.errors.ConfigError, match=r"`NaNGuard\(action='rollback'\)`.*population\.pbt"):
        run(start(), callbacks=[callbacks.NaNGuard(action="rollback")], run_dir=tmp_path)


def test_gradients_are_those_of_each_member():
    result = run(start(), epochs=1, callbacks=[callbacks.GradientStats()], shuffle=False)
    each = result.history["gradient_norm_each"][0]
    for i in range(4):
        _, gradient = ft.compute_gradients(TASK, population.member(result.state, i), (X[8:], Y[8:]))
        np.testing.assert_allclose(each[i], np.linalg.norm(gradient["w"]), rtol=1e-5)
    np.testing.assert_allclose(result.history["gradient_norm"][0], each.mean(), rtol=1e-6)
    np.testing.assert_allclose(result.history["layer_gradient_norm_each"][0]["w"], each, rtol=1e-6)
    with pytest.raises(ft.errors.ConfigError, match=r"`GradientStats\(histograms=True\)`"):
        run(start(), callbacks=[callbacks.GradientStats(histograms=True)])


def test_the_best_population_is_kept_though_a_member_has_diverged(tmp_path):
    saving = callbacks.ModelCheckpoint(tmp_path / "best", save_best_only=True)
    states = start([0.1, 3e38, 0.1, 0.1])
    result = run(states, epochs=3, callbacks=[saving, callbacks.CSVLogger(tmp_path / "rows.csv")])
    assert saving.best == min(result.history["val_loss"])
    with ft.Checkpointer(tmp_path / "best") as versions:
        kept = versions.restore(start())
    scores = population.evaluate(TASK, kept, (XV, YV), batch_size=8)["loss"]
    np.testing.assert_allclose(scores[[0, 2, 3]].mean(), saving.best, rtol=1e-6)
    assert "members" in (tmp_path / "rows.csv").read_text().splitlines()[0]
    with pytest.raises(ft.errors.ConfigError, match=r"`keep_best`.*`result\.winner\(\)`"):
        run(start(), controller=population.halving(), keep_best=True)


@pytest.mark.parametrize("controller", [None, population.pbt(quantile=0.5, every=2)])
def test_a_population_goes_on_with_what_its_callbacks_knew(tmp_path, controller):
    def watching():
        return [
            callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1),
            callbacks.EarlyStopping("val_loss", patience=4, restore_best=True),
            callbacks.NaNGuard(),
        ]

    options = dict(controller=controller, epochs=6)
    straight = run(start(), callbacks=watching(), **options)
    options.update(run_dir=tmp_path / "run", resume=True)
    run(start(), callbacks=watching(), **{**options, "epochs": 3})
    resumed = run(start(), callbacks=watching(), **options)
    for a, b in zip(jax.tree.leaves(resumed.state.params), jax.tree.leaves(straight.state.params)):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    last = [result.history.rows()[-1] for result in (resumed, straight)]
    assert repr(last[0]) == repr(last[1])
