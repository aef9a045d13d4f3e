"""The laws of losses, over a registry: a new loss is one new row here.

Below the registry stand broken specimens: things that break one law each, which the same check must refuse,
with the right words. A check that lets its specimen pass proves nothing about the rows above it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import testing
from fntrain.testing import LawError

RNG = np.random.default_rng(0)

P = RNG.normal(size=(13, 3)).astype(np.float32)
Q = RNG.normal(size=(13, 3)).astype(np.float32)
C = RNG.integers(0, 3, 13).astype(np.int32)
KERNEL = jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32)
PROBABILITIES = np.exp(P) / np.exp(P).sum(1, keepdims=True)
LOSSES = {
    "cross_entropy": (ft.losses.cross_entropy, P, C),
    "cross_entropy of distributions": (ft.losses.cross_entropy, P, PROBABILITIES[::-1]),
    "cross_entropy smoothed and weighted": (
        lambda z, y: ft.losses.cross_entropy(z, y, label_smoothing=0.1, class_weights=[1.0, 2.0, 0.5]),
        P,
        C,
    ),
    "cross_entropy with ignored labels": (
        lambda z, y: ft.losses.cross_entropy(z, y, ignore_index=-100),
        P,
        np.where(np.arange(13) % 4 == 1, -100, C),
    ),
    "binary_cross_entropy": (ft.losses.binary_cross_entropy, P[:, 0], C % 2),
    "binary_cross_entropy with weights": (
        lambda z, y, w: ft.losses.binary_cross_entropy(z, y, pos_weight=3.0, weights=w),
        P[:, 0],
        np.linspace(0, 1, 13, dtype=np.float32),
        np.arange(13) % 3,
    ),
    "focal": (lambda z, y: ft.losses.focal(z, y, alpha=[1.0, 2.0, 0.5]), P, C),
    "binary_focal": (lambda z, y: ft.losses.binary_focal(z, y, alpha=0.25), P[:, 0], C % 2),
    "kl_divergence": (ft.losses.kl_divergence, P, PROBABILITIES[::-1]),
    "hinge": (ft.losses.hinge, P[:, 0], C % 2),
    "squared_hinge": (ft.losses.squared_hinge, P[:, 0], 2 * (C % 2) - 1),
    "dice": (ft.losses.dice, P, Q > 0),
    "dice of classes": (
        ft.losses.dice,
        RNG.normal(size=(13, 4, 3)).astype(np.float32),
        C[:, None] * [1, 1, 0, 1],
    ),
    "mse with weights": (lambda p, t, w: ft.losses.mse(p, t, weights=w), P, Q, np.abs(Q) * (Q > 0)),
    "linear_cross_entropy": (
        lambda h, y: ft.losses.linear_cross_entropy(h, KERNEL, y, chunk=4, label_smoothing=0.1, z_loss=0.01),
        P,
        np.where(C == 2, 4, C),
    ),
    "log_cosh": (ft.losses.log_cosh, P, Q),
    "cosine_distance": (ft.losses.cosine_distance, P, Q),
    "mse": (ft.losses.mse, P, Q),
    "mae": (ft.losses.mae, P, Q),
    "huber": (lambda p, t: ft.losses.huber(p, t, 0.7), P, Q),
    "combine": (
        lambda p, t: ft.losses.combine({"a": (0.3, ft.losses.mse(p, t)), "b": (2.0, ft.losses.mae(p, t))}),
        P,
        Q,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    testing.check_loss(*LOSSES[name])


BROKEN_LOSSES = {
    "a loss is one value per example": lambda p, t: ft.Loss(jnp.mean(jnp.square(p - t))),
    "a value is a matter of its example alone": lambda p, t: ft.Loss(
        jnp.mean(jnp.square(p - t), 1) - jnp.mean(p)
    ),
    "values are float32 at least": lambda p, t: ft.Loss(jnp.mean(jnp.square(p - t.astype(p.dtype)), 1)),
    "the gradient is that of differences": lambda p, t: ft.Loss(
        jnp.mean(jnp.square(p.astype(t.dtype) - t), 1) + jax.lax.stop_gradient(p.astype(t.dtype))[:, 0]
    ),
}


@pytest.mark.parametrize("law", BROKEN_LOSSES)
def test_a_broken_loss_is_refused(law):
    with pytest.raises(LawError, match=law):
        testing.check_loss(BROKEN_LOSSES[law], P, Q)


def test_every_public_loss_has_its_row():
    """A factory without a row is one whose laws nobody has checked; a row's first word is the factory's name."""
    wanted = {name for name in ft.losses.__all__ if name[0].islower()} - {"get"}
    assert wanted - {name.split(" ")[0] for name in LOSSES} == set()
    assert {"cross_entropy", "mse"} <= wanted  # the set is the one that is meant
