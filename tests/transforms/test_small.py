"""The small transforms that are put between others: against their formulas, and optax where it has them."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain import ConfigError, optimizers, transforms as T

RNG = np.random.default_rng(0)
G = {
    "w": RNG.normal(size=(4, 3)).astype(np.float32),
    "heads": RNG.normal(size=(4, 2, 3)).astype(np.float32),
    "conv": RNG.normal(size=(2, 2, 3, 4)).astype(np.float32),
    "b": RNG.normal(size=3).astype(np.float32),
}
P = {name: RNG.normal(size=x.shape).astype(np.float32) for name, x in G.items()}


def close(got, want, **tolerance):
    for name in want:
        np.testing.assert_allclose(got[name], want[name], **(tolerance or {"rtol": 2e-6}), err_msg=name)


def test_clip_by_agc_is_optax_s():
    ours, theirs = T.clip_by_agc(0.5), optax.adaptive_grad_clip(0.5)
    got, want = (tx.update(G, tx.init(P), P)[0] for tx in (ours, theirs))
    close(got, want)
    assert any(not np.array_equal(got[name], G[name]) for name in G)


def test_clip_by_agc_of_huge_tiny_and_broken_units():
    p = {"w": np.ones((2, 4), np.float32)}
    g = {"w": np.array([[1e30, 1e-30, np.nan, np.inf], [1e30, 1e-30, 1, 1]], np.float32)}
    tx = T.clip_by_agc(1.0)
    out = np.asarray(tx.update(g, tx.init(p), p)[0]["w"])
    np.testing.assert_allclose(out[:, 0], 1.0, rtol=1e-6)
    np.testing.assert_array_equal(out[:, 1], g["w"][:, 1])
    assert not np.isfinite(out[0, 2:]).any()  # and no zero in its place


def test_centralize_takes_the_mean_over_the_inputs_of_a_unit():
    got, _ = T.centralize().update(G, ())
    for name in ("w", "heads", "conv"):
        g = G[name].reshape(-1, G[name].shape[-1]).astype(np.float64)
        np.testing.assert_allclose(got[name], (g - g.mean(0)).reshape(G[name].shape), atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(got["b"], G["b"])
    # optax's, of a kernel kept the other way.
    theirs, _ = optax.centralize().update(G["w"].T, optax.EmptyState())
    np.testing.assert_allclose(got["w"], theirs.T, atol=1e-6)


def test_cautious_masks_what_goes_uphill():
    inner = optimizers.sgd(0.1, momentum=0.9)
    tx = T.cautious(inner)
    grads = [G, {name: -0.5 * x + RNG.normal(size=x.shape).astype(np.float32) for name, x in G.items()}]
    state, own = tx.init(P), inner.init(P)
    for g in grads:
        got, state = tx.update(g, state, P)
        u, own = inner.update(g, own, P)
        for name, x in u.items():
            x = np.asarray(x)
            agree = x * g[name] < 0  # down the gradient
            want = x * agree / max(agree.mean(), 1e-3)
            np.testing.assert_allclose(got[name], want, rtol=1e-6, err_msg=name)
    assert 0 < agree.mean() < 1
    # Before the learning rate an update points along the gradient, and what agrees is of one sign with it.
    tx = T.cautious(T.scale_by_adam())
    np.testing.assert_allclose(tx.update(G, tx.init(P))[0]["w"], np.sign(G["w"]), rtol=1e-5)
    # One of optax's does not say, and is taken for a whole optimizer.
    tx = T.cautious(optax.sgd(0.1))
    np.testing.assert_allclose(tx.update(G, tx.init(P), P)[0]["w"], -0.1 * G["w"], rtol=1e-6)


def test_keep_norm_gives_the_direction_the_length_of_the_gradient():
    tx, inner = T.keep_norm(T.scale_by_adam()), T.scale_by_adam()
    got, _ = tx.update(G, tx.init(P))
    u, _ = inner.update(G, inner.init(P))
    close(got, {n: u[n] * np.linalg.norm(G[n]) / np.linalg.norm(np.asarray(u[n])) for n in G})
    for size in (0.0, 1e-30, 1e30):
        g = {"w": np.array([3 * size, -4 * size], np.float32)}
        tx = T.keep_norm(T.scale_by_lion())
        out = np.asarray(tx.update(g, tx.init(g))[0]["w"], np.float64)
        np.testing.assert_allclose(np.linalg.norm(out), 5 * size, rtol=1e-5)


def test_noise_has_the_variance_it_should_and_is_a_function_of_seed_and_count():
    g = {"a": np.zeros(20_000, np.float32), "b": np.zeros(20_000, np.float32)}
    tx = T.noise(2.0, decay=0.5, seed=3)
    state, drawn = tx.init(g), []
    for t in range(2):
        u, state = tx.update(g, state)
        drawn.append(u)
        for x in u.values():
            assert float(jnp.std(x)) == pytest.approx(2 / (1 + t) ** 0.25, rel=0.02)
    assert abs(np.corrcoef(drawn[0]["a"], drawn[0]["b"])[0, 1]) < 0.05
    assert abs(np.corrcoef(drawn[0]["a"], drawn[1]["a"])[0, 1]) < 0.05
    again, _ = tx.update(g, tx.init(g))
    np.testing.assert_array_equal(again["a"], drawn[0]["a"])
    other, _ = T.noise(2.0, decay=0.5, seed=4).update(g, tx.init(g))
    assert not np.array_equal(other["a"], drawn[0]["a"])


@pytest.mark.parametrize("debias", [True, False])
def test_ema_with_a_warmup_averages_the_last_few_updates(debias):
    tx = ft.chain(optimizers.sgd(1.0), ft.ema(0.99, debias=debias, warmup=10))
    p = {"w": jnp.array([100.0])}
    state, average, weight, values = tx.init(p), 0.0 if debias else 100.0, 0.0, 100.0
    for t in range(30):
        p, state, _ = tx.apply({"w": jnp.array([3.0])}, state, p)
        values, beta = values - 3, min(0.99, (1 + t) / (10 + t))
        average, weight = beta * average + (1 - beta) * values, beta * weight + 1 - beta
    want = average / weight if debias else average
    np.testing.assert_allclose(ft.averaged(state)["w"], want, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: T.cautious(ft.MultiSteps(optimizers.sgd(0.1), 2)),
            r"holds gradients back.*MultiSteps\(cautious",
        ),
        (lambda: T.keep_norm(ft.sam(optimizers.sgd(0.1))), r"sam\(keep_norm\(tx\)\)"),
        (lambda: T.clip_by_agc(0.0), "`clipping` must be"),
        (lambda: T.clip_by_agc().update(P, ()), "`params` is needed by clip_by_agc"),
        (lambda: T.noise(-1.0), "`scale` must be"),
        (lambda: T.noise(1.0, seed=0.5), "`seed` must be"),
        (lambda: ft.ema(0.9, warmup=0.5), "`warmup` must be"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
