"""`weights=` of every loss: one meaning, and nothing of what weighs zero, in values or in gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import DataError, losses

RNG = np.random.default_rng(0)
ROWS = 6
Z = RNG.normal(size=(ROWS, 4)).astype(np.float32) * 2
T = RNG.normal(size=(ROWS, 4)).astype(np.float32)
SOFT = RNG.dirichlet(np.ones(4), ROWS).astype(np.float32)
CLASSES = RNG.integers(0, 4, ROWS)
YES = (T > 0).astype(np.float32)
WEIGHT = np.array([1.0, 0.0, 2.5, 0.0, 0.5, 1.0], np.float32)

# name: (the loss of two arrays, both of them)
ROWWISE = {
    "mse": (losses.mse, Z, T),
    "mae": (losses.mae, Z, T),
    "huber": (losses.huber, Z, T),
    "log_cosh": (losses.log_cosh, Z, T),
    "cosine_distance": (losses.cosine_distance, Z, T),
    "cross_entropy": (losses.cross_entropy, Z, CLASSES),
    "cross_entropy, class weights": (
        lambda z, y, weights=None: losses.cross_entropy(
            z, y, class_weights=[1.0, 2.0, 0.5, 3.0], ignore_index=-100, label_smoothing=0.1, weights=weights
        ),
        Z,
        np.where(np.arange(ROWS) == 4, -100, CLASSES),
    ),
    "cross_entropy of distributions": (losses.cross_entropy, Z, SOFT),
    "linear_cross_entropy": (
        lambda z, y, weights=None: losses.linear_cross_entropy(z, T.T, y, chunk=4, weights=weights),
        Z,
        CLASSES,
    ),
    "focal": (losses.focal, Z, CLASSES),
    "focal of distributions": (losses.focal, Z, SOFT),
    "kl_divergence": (losses.kl_divergence, Z, SOFT),
    "dice": (losses.dice, Z, YES),
    "dice of classes": (
        losses.dice,
        Z[:, None, :] * np.float32([[1], [-1]]),
        np.stack([CLASSES, CLASSES[::-1]], 1),
    ),
    "binary_cross_entropy": (losses.binary_cross_entropy, Z[:, 0], YES[:, 0]),
    "binary_focal": (losses.binary_focal, Z[:, 0], YES[:, 0]),
    "hinge": (losses.hinge, Z[:, 0], YES[:, 0]),
    "squared_hinge": (losses.squared_hinge, Z[:, 0], YES[:, 0]),
}


def test_every_loss_is_here():
    wanted = {name for name in losses.__all__ if name[0].islower()} - {
        "combine",
        "get",
    }  # whose parts have weights
    assert wanted == {name.split(",")[0].split(" of ")[0] for name in ROWWISE}


@pytest.mark.parametrize("name", ROWWISE)
def test_what_weighs_zero_may_hold_anything(name):
    loss, z, y = ROWWISE[name]
    out = (WEIGHT == 0).reshape((-1,) + (1,) * (z.ndim - 1))
    garbage_z = np.where(out, np.nan, z)
    out = (WEIGHT == 0).reshape((-1,) + (1,) * (y.ndim - 1))
    garbage_y = np.where(out, np.nan, y) if y.dtype.kind == "f" else np.where(out, 77, y)
    differentiated = (0, 1) if y.dtype.kind == "f" else 0

    def mean(z, y):
        return loss(z, y, weights=WEIGHT).mean()

    value, gradients = jax.jit(jax.value_and_grad(mean, differentiated))(garbage_z, garbage_y)
    clean, expected = jax.jit(jax.value_and_grad(mean, differentiated))(z, y)
    assert value == clean
    alone = loss(z, y)
    w = WEIGHT if alone.weights is None else WEIGHT * np.asarray(alone.weights)
    np.testing.assert_allclose(value, (np.asarray(alone.values) * w).sum() / w.sum(), rtol=2e-6)
    for got, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(got[WEIGHT == 0], 0)
        assert np.isfinite(got).all()
    assert np.isfinite(
        loss(garbage_z, garbage_y, weights=WEIGHT).values
    ).all()  # what can be read is not refused


@pytest.mark.parametrize("loss", [losses.mse, losses.mae, losses.huber, losses.log_cosh])
def test_single_targets_can_be_missing(loss):
    there = RNG.uniform(size=T.shape) < 0.6
    there[2] = False  # and a whole row
    w = there * np.float32([1.0, 2.0, 0.5, 1.0])
    holes = np.where(there, T, np.nan)
    each = np.stack([np.asarray(loss(Z[:, d], T[:, d]).values) for d in range(4)], 1).astype(np.float64)
    got = loss(Z, holes, weights=w)
    np.testing.assert_allclose(got.mean(), (each * w).sum() / w.sum(), rtol=1e-6)
    seen = w.sum(1) > 0
    np.testing.assert_allclose(
        np.asarray(got.values)[seen], ((each * w).sum(1)[seen] / w.sum(1)[seen]), rtol=1e-6
    )
    assert np.isfinite(jax.grad(lambda z: loss(z, holes, weights=there).mean())(Z)).all()


def test_pixels_of_a_dice_loss_can_be_left_out():
    there = RNG.uniform(size=T.shape) < 0.7
    p = 1 / (1 + np.exp(-Z.astype(np.float64)))
    top, bottom = (2 * p * YES * there).sum(1) + 1, ((p + YES) * there).sum(1) + 1
    got = losses.dice(Z, np.where(there, YES, np.nan), weights=there)
    np.testing.assert_allclose(got.values, 1 - top / bottom, rtol=2e-6)


def test_a_training_step_on_missing_targets_stays_finite():
    x = RNG.normal(size=(8, 2)).astype(np.float32)
    y = np.where(np.arange(8) == 3, np.nan, x[:, 0]).astype(np.float32)

    def loss_fn(params, batch, ctx):
        x, y = batch
        return losses.mse(x @ params["w"], y, weights=jnp.isfinite(y))

    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1))
    state, metrics = ft.train_step(task, ft.init_state(task, {"w": jnp.zeros(2)}), (x, y))
    kept = np.isfinite(y)
    expected = 0.1 * 2 * (x[kept] * y[kept, None]).mean(0)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        ft.compute_metrics(task, metrics)["loss"], np.square(y[kept]).mean(), rtol=1e-6
    )


def test_weights_of_tokens_and_of_rows():
    z, y = RNG.normal(size=(3, 5, 4)).astype(np.float32), RNG.integers(0, 4, (3, 5))
    rows = losses.cross_entropy(z, y, weights=np.float32([[1], [0], [2]]))
    assert rows.weights.shape == (3, 5)
    np.testing.assert_array_equal(rows.values[1], 0)
    with pytest.raises(DataError, match=r"did you mean `weights\[:, None\]`"):
        losses.cross_entropy(z, y, weights=np.ones(3))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.ones(5), r"`weights` must broadcast to the values, \[6\] or \[6, 4\], got \[5\]"),
        (-np.ones(6), "`weights` must be >= 0 and finite, got -1.0"),
        (np.full(6, np.nan), "finite"),
        (np.ones(6, complex), "numbers or a mask"),
    ],
)
def test_weights_that_cannot_be(weights, words):
    with pytest.raises(DataError, match=words):
        losses.mse(Z, T, weights=weights)


def test_weights_are_constants_for_gradients():
    gradient = jax.grad(lambda w: losses.mse(Z, T, weights=w).mean())(np.abs(T) + 1)
    np.testing.assert_array_equal(gradient, 0)
