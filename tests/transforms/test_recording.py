"""What transforms record in passing: the gradient's noise scale, and the size of updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

RNG = np.random.default_rng(3)


def linear(p, b, ctx):
    """Its gradient for an example is the example."""
    return b["x"] @ p["w"] + b["y"] @ p["v"]


def test_the_noise_scale_of_gradients_of_known_covariance():
    """Within 5 %, of gradients of unequal variances, cut unevenly: some micro-batches are padding in part."""
    steps, rows = 300, 36
    mean, deviation = RNG.normal(size=24), np.linspace(0.2, 3, 24)
    truth = np.square(deviation).sum() / np.square(mean).sum()
    g = (mean + deviation * RNG.normal(size=(steps, rows, 24))).astype(np.float32)
    tx = ft.chain(ft.clip_by_norm(1e-3), ft.transforms.record_noise_scale(0.995), ft.optimizers.sgd(1e-9))
    task = ft.Task(linear, tx, microbatches=8)
    state = ft.init_state(task, {"w": np.zeros(20, np.float32), "v": np.zeros(4, np.float32)})
    weights = np.ones((steps, rows), np.float32)
    weights[:, -5:] = 0
    state, metrics = ft.train_steps(task, state, {"x": g[..., :20], "y": g[..., 20:]}, weights)
    found = float(ft.compute_metrics(task, metrics)["noise_scale"])
    assert found == pytest.approx(truth, rel=0.05)


def test_the_noise_scale_of_one_step_by_hand():
    x = np.array([[3.0, 0], [1, 2], [5, 4], [0, 0]], np.float32)
    w = np.array([1.0, 1, 1, 0], np.float32)
    tx = ft.chain(ft.transforms.record_noise_scale(0.0), ft.optimizers.sgd(0.1))
    task = ft.Task(lambda p, b, ctx: b @ p, tx, microbatches=2)
    state, metrics = ft.train_step(task, ft.init_state(task, np.zeros(2, np.float32)), x, w)
    # Row i is of micro-batch i mod 2: rows 0 and 2, and row 1 with one that weighs nothing.
    parts, sizes = np.array([x[[0, 2]].mean(0), x[1]]), np.array([2, 1])
    whole = x[:3].mean(0)
    variance = (sizes * np.square(parts).sum(1)).sum() - 3 * np.square(whole).sum()
    square = np.square(whole).sum() - variance / 3
    assert float(ft.compute_metrics(task, metrics)["noise_scale"]) == pytest.approx(
        variance / square, rel=1e-5
    )
    # A batch that weighs nothing, and one of a single part, say nothing, and leave no trace.
    kept = [float(x) for x in state.opt_state["record_noise_scale"]]
    for weight in ([0, 0, 0, 0], [1, 0, 1, 0]):
        state, _ = ft.train_step(task, state, x, np.float32(weight))
        assert [float(x) for x in state.opt_state["record_noise_scale"]] == kept


def test_the_noise_scale_needs_parts():
    task = ft.Task(linear, ft.chain(ft.transforms.record_noise_scale(), ft.optimizers.sgd(0.1)))
    state = ft.init_state(task, {"w": np.zeros(2, np.float32), "v": np.zeros(2, np.float32)})
    with pytest.raises(ft.ConfigError, match=r"needs the gradients of micro-batches.*microbatches=k"):
        ft.train_step(task, state, {"x": jnp.ones((4, 2)), "y": jnp.ones((4, 2))})
    with pytest.raises(ft.ConfigError, match="`decay`"):
        ft.transforms.record_noise_scale(1.0)


def test_update_ratios_are_those_of_what_was_added():
    tx = ft.chain(ft.optimizers.adamw(0.1, weight_decay=0.1), ft.transforms.record_updates())
    task = ft.Task(linear, tx)
    params = {"w": RNG.normal(size=2).astype(np.float32), "v": np.zeros(2, np.float32)}
    state = ft.init_state(task, params)
    batch = {"x": np.ones((4, 2), np.float32), "y": -np.ones((4, 2), np.float32)}
    state, metrics = ft.train_step(task, state, batch)
    values = {k: float(v) for k, v in ft.compute_metrics(task, metrics).items()}
    added = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, state.params, params)
    ratio = np.linalg.norm(added["w"]) / np.linalg.norm(params["w"])
    assert values["update_ratio/w"] == pytest.approx(ratio, rel=1e-5)
    assert values["update_ratio/v"] == pytest.approx(np.linalg.norm(added["v"]) / 1e-8, rel=1e-5)
    assert values["update_ratio"] == values["update_ratio/v"]  # the largest
    alone = ft.Task(linear, ft.optimizers.adamw(0.1, weight_decay=0.1))
    plain, _ = ft.train_step(alone, ft.init_state(alone, params), batch)
    assert np.array_equal(plain.params["w"], state.params["w"])  # and they are let through as they are
    with pytest.raises(ft.ConfigError, match="`params` is needed by record_updates"):
        ft.transforms.record_updates().update(params, ft.transforms.record_updates().init(params))
