"""Decays that change: what an average corrects by is what its weights come to, and not the last decay's power."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

GRADS = np.random.default_rng(0).normal(size=(40, 3)) * [1.0, 1e-3, 30.0]


def adam(betas1, betas2, eps=1e-8):
    """Adam in float64, by the product of the decays."""
    m = v = np.zeros(3)
    left1 = left2 = 1.0
    out = []
    for g, b1, b2 in zip(GRADS, betas1, betas2, strict=True):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        left1, left2 = left1 * b1, left2 * b2
        out.append(m / (1 - left1) / (np.sqrt(v / (1 - left2)) + eps))
    return np.array(out)


def path(tx, start=None):
    state = tx.init(jnp.zeros(3)) if start is None else start
    update, out = jax.jit(tx.update), []
    for g in GRADS:
        u, state = update(jnp.asarray(g, jnp.float32), state)
        out.append(np.asarray(u))
    return np.array(out), state


RISING = ft.schedules.linear(0.0, 0.9, 10)
JUMP = ft.schedules.join([(0.9, 20), (0.9999, None)])


@pytest.mark.parametrize(
    ("b1", "b2"), [(RISING, 0.999), (0.9, JUMP), (RISING, JUMP), (ft.schedules.constant(0.9), JUMP)]
)
def test_adam_corrects_by_the_product_of_its_decays(b1, b2):
    got, state = path(ft.scale_by_adam(b1, b2))
    steps = range(len(GRADS))
    betas = [[float(b(t)) if callable(b) else b for t in steps] for b in (b1, b2)]
    np.testing.assert_allclose(got, adam(*betas), rtol=2e-5)
    changing = {name: b for name, b in (("b1", b1), ("b2", b2)) if callable(b)}
    assert set(state.seen) == set(changing)
    assert {k: float(x) for k, x in ft.transforms.recorded(state).items()} == {
        k: float(b(len(GRADS) - 1)) for k, b in changing.items()
    }


def test_a_decay_set_in_the_state_counts_from_there():
    tx = ft.with_hyperparams(ft.scale_by_adam, b1=0.5)
    update, state, out = jax.jit(tx.update), tx.init(jnp.zeros(3)), []
    for t, g in enumerate(GRADS):
        if t == 15:
            state = ft.set_hyperparams(state, b1=0.95)
        u, state = update(jnp.asarray(g, jnp.float32), state)
        out.append(np.asarray(u))
    np.testing.assert_allclose(out, adam([0.5] * 15 + [0.95] * 25, [0.999] * 40), rtol=2e-5)


def test_plain_decays_keep_their_state_and_bits():
    got, state = path(ft.scale_by_adam())
    np.testing.assert_allclose(got, adam([0.9] * 40, [0.999] * 40), rtol=1e-5)
    assert [x.shape for x in jax.tree.leaves(state)] == [(), (3,), (3,)]  # as in checkpoints of before
    # By expm1 of the logarithm's multiple, in float32.
    u, after = ft.scale_by_adam().update(
        jnp.asarray(GRADS[0], jnp.float32), ft.scale_by_adam().init(jnp.zeros(3))
    )
    m, v = np.asarray(after.mu), np.asarray(after.nu)
    bias = [-np.expm1(np.float32(np.log(b))) for b in (0.9, 0.999)]
    np.testing.assert_allclose(u, (m / bias[0]) / (np.sqrt(v / bias[1]) + np.float32(1e-8)), rtol=3e-7)


@pytest.mark.parametrize("decay", [0.9, 0.9999, RISING])
def test_a_debiased_average_holds_nothing_of_the_start(decay):
    tx = ft.chain(ft.optimizers.sgd(1.0), ft.ema(decay, debias=True))
    params, step = jnp.full(3, 1e6), jax.jit(tx.apply)
    state = tx.init(params)
    np.testing.assert_array_equal(ft.averaged(state), params)  # before any update there is nothing else
    total, weights = np.zeros(3), 0.0
    for t, g in enumerate([params, *GRADS[:12]]):  # the first update goes from 1e6 to 0
        params, state, _ = step(jnp.asarray(g, jnp.float32), state, params)
        b = float(decay(t)) if callable(decay) else decay
        total, weights = b * total + (1 - b) * np.asarray(params, np.float64), b * weights + 1 - b
        np.testing.assert_allclose(ft.averaged(state), total / weights, rtol=3e-5, atol=1e-6)


def test_an_average_keeps_its_start_unless_told():
    tx = ft.chain(ft.optimizers.sgd(1.0), ft.ema(0.75))
    _, state, _ = tx.apply(jnp.array([4.0]), tx.init(jnp.array([8.0])), jnp.array([8.0]))
    np.testing.assert_array_equal(ft.averaged(state), [7.0])
    assert len(jax.tree.leaves(state["ema"])) == 2
