"""Folds and orders: each member is the run it stands for."""

import jax
import numpy as np
import pytest

import fntrain as ft
from fntrain import population

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32) + RNG.normal(0, 0.1, 22)).astype(np.float32)


def loss_fn(params, batch, ctx):
    x, y = batch
    return ft.losses.mse(x @ params["w"], y)


def init_params(key):
    return {"w": jax.random.normal(key, (3,))}


TASK = ft.Task(loss_fn, ft.optimizers.adam(0.05))


def test_a_fold_is_trained_on_the_others_and_scored_on_itself():
    found = population.cross_validate(
        TASK, init_params, (X, Y), folds=4, seeds=[0, 5], epochs=3, batch_size=8
    )
    assert sorted(np.bincount(found.folds)) == [5, 5, 6, 6]
    assert found.scores["loss"].shape == (2, 4)
    loader = ft.data_loader((X, Y, found.folds), 8, seed=0)
    for place, (seed, fold) in enumerate((s, f) for s in (0, 5) for f in range(4)):
        if place not in (0, 6):
            continue
        state = ft.init_state(TASK, init_params, key=seed)
        for epoch in range(3):
            for index in range(3):
                (x, y, of), weight = loader.batch(epoch, index)
                keep = (weight > 0) & (of != fold)  # the rows that are held out are not there at all
                state, _ = ft.train_step(TASK, state, (x[keep], y[keep]))
        mine = population.member(found.state, place)
        np.testing.assert_allclose(mine.params["w"], state.params["w"], rtol=1e-5, atol=1e-6)
        rows = found.folds == fold
        loss = np.mean((X[rows] @ np.asarray(state.params["w"]) - Y[rows]) ** 2)
        np.testing.assert_allclose(found.scores["loss"][place // 4, place % 4], loss, rtol=1e-5)
    assert "4 folds, 2 seeds: loss" in repr(found)


def test_folds_hold_their_share_of_every_label():
    labels = np.arange(22) % 2
    found = population.cross_validate(TASK, init_params, (X, Y), folds=2, stratify=labels, epochs=1)
    counts = [np.bincount(labels[found.folds == fold]) for fold in range(2)]
    assert np.abs(counts[0] - counts[1]).max() <= 1
    with pytest.raises(ft.errors.DataError, match=r"`stratify` must have one label a row, \[22\]"):
        population.cross_validate(TASK, init_params, (X, Y), stratify=labels[:3])
    with pytest.raises(ft.errors.DataError, match="too few for 40 folds"):
        population.cross_validate(TASK, init_params, (X, Y), folds=40)


def test_members_see_the_data_in_their_own_order():
    seeds = [3, 4]
    states = population.init(TASK, init_params, seeds=seeds)
    data = population.orders((X, Y), 8, seeds=seeds)
    result = population.fit(TASK, states, data, epochs=2, progress=False)
    for i, seed in enumerate(seeds):
        state = ft.init_state(TASK, init_params, key=seed)
        alone = ft.fit(TASK, state, (X, Y), batch_size=8, epochs=2, seed=seed, progress=False)
        np.testing.assert_allclose(
            population.member(result.state, i).params["w"], alone.state.params["w"], rtol=1e-6, atol=1e-7
        )
        losses = [row[i] for row in result.history["loss_each"]]
        np.testing.assert_allclose(losses, alone.history["loss"], rtol=1e-6)


def test_a_rate_is_found_for_many_seeds():
    states = population.init(TASK, init_params, seeds=range(5))
    found = ft.tools.lr_find(TASK, states, (X, Y), steps=40, batch_size=8)
    assert found.each.shape == (5, 40)
    for i in (0, 4):
        alone = ft.tools.lr_find(TASK, population.member(states, i), (X, Y), steps=40, batch_size=8)
        finite = np.isfinite(alone.losses)
        np.testing.assert_allclose(found.each[i][finite], alone.losses[finite], rtol=1e-4)
    np.testing.assert_allclose(found.losses, np.median(found.each, 0))
    assert 1e-3 < found.suggestion < 10
    assert len(found.plot().axes[0].collections) == 1  # the band


def test_the_picture_has_a_line_a_member_their_mean_and_a_band():
    history = {
        "step": [1, 2, 3],
        "members": [[0, 1, 2], [0, 1, 2], [1]],
        "val_loss_each": [[1.0, 2.0, np.nan], [0.5, 1.0, 3.0], [0.7]],
        "learning_rate_each": [[0.1, 0.1, 0.2]] * 2 + [[0.1]],
    }
    figure = ft.plots.population(history)
    (axes,) = figure.axes
    *members, mean = axes.lines
    np.testing.assert_array_equal(members[1].get_ydata(), [2.0, 1.0, 0.7])
    np.testing.assert_array_equal(members[0].get_ydata(), [1.0, 0.5, np.nan])
    np.testing.assert_allclose(mean.get_ydata(), [1.5, 1.5, 0.7])
    assert len(axes.collections) == 1
    assert len(ft.plots.population(history, metrics=["val_loss", "learning_rate"]).axes) == 2
    with pytest.raises(ft.errors.ConfigError, match="did you mean 'val_loss'"):
        ft.plots.population(history, metrics=["val_los"])
    with pytest.raises(ft.errors.DataError, match="learning_curves"):
        ft.plots.population({"loss": [1.0]})
