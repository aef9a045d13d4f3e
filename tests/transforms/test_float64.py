"""float64 stays float64: every transform, over three updates, against its formula in NumPy, to the last digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

GRADS = [np.array([[np.pi, -np.e], [1 / 3, 0.1 * k]]) for k in (1, -2, 3)]
START = np.array([[np.sqrt(2), 0.7], [-1 / 7, 2.3]])


def clip_by_norm(gs, p):
    return [g * min(1, 0.7 / np.sqrt((g**2).sum())) for g in gs]


def clip_by_value(gs, p):
    return [np.clip(g, -0.3, 0.3) for g in gs]


def decay(gs, p):
    return [g + 0.1 * p for g in gs]


def rate(gs, p):
    return [-0.1 * g for g in gs]


def momentum(gs, p, nesterov=False):
    v, out = np.zeros_like(p), []
    for g in gs:
        v = 0.9 * v + g
        out.append(g + 0.9 * v if nesterov else v)
    return out


def dampened(gs, p):
    v, out = None, []
    for g in gs:
        v = g if v is None else 0.9 * v + (1 - 0.3) * g
        out.append(v)
    return out


def adam(gs, p):
    m, v, out = 0, 0, []
    for t, g in enumerate(gs, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        out.append(m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8))
    return out


def rms(gs, p):
    v, m, out = 0, 0, []
    for g in gs:
        v, m = 0.9 * v + 0.1 * g**2, 0.9 * m + 0.1 * g
        out.append(g / (np.sqrt(v - m**2) + 1e-8))
    return out


def mean_of_three(gs, p):
    return [0 * p, 0 * p, -0.1 * (gs[0] + gs[1] + gs[2]) / 3]


ORACLES = {
    "clip_by_norm": (lambda: ft.clip_by_norm(0.7), clip_by_norm),
    "clip_by_leaf_norm": (lambda: ft.clip_by_leaf_norm(0.7), clip_by_norm),
    "clip_by_value": (lambda: ft.clip_by_value(0.3), clip_by_value),
    "add_weight_decay": (lambda: ft.add_weight_decay(0.1), decay),
    "scale_by_learning_rate": (lambda: ft.transforms.scale_by_learning_rate(0.1), rate),
    "momentum": (lambda: ft.momentum(0.9), momentum),
    "momentum dampened": (lambda: ft.momentum(0.9, dampening=0.3), dampened),
    "nesterov": (lambda: ft.nesterov(0.9), lambda gs, p: momentum(gs, p, True)),
    "scale_by_adam": (lambda: ft.scale_by_adam(), adam),
    "scale_by_rms": (lambda: ft.scale_by_rms(0.9, centered=True), rms),
    "MultiSteps": (lambda: ft.MultiSteps(ft.optimizers.sgd(0.1), 3), mean_of_three),
    "skip_nonfinite": (lambda: ft.skip_nonfinite(ft.scale_by_adam()), adam),
    "freeze": (lambda: ft.freeze(ft.scale_by_adam(), "^b$"), adam),
    "reduce_on_plateau": (lambda: ft.transforms.reduce_on_plateau(0.5, 9), lambda gs, p: gs),
}


@pytest.mark.parametrize("name", ORACLES)
def test_against_numpy(name):
    make, oracle = ORACLES[name]
    with jax.enable_x64(True):
        tx, params = make(), {"w": jnp.asarray(START), "b": jnp.zeros(())}
        state, update = tx.init(params), jax.jit(tx.update)
        for g, want in zip(GRADS, oracle(GRADS, START), strict=True):
            grads = {"w": jnp.asarray(g), "b": jnp.zeros(())}
            u, state = update(grads, state, params, value=jnp.float32(1))
            assert u["w"].dtype == jnp.float64
            np.testing.assert_allclose(u["w"], want, rtol=1e-13, atol=1e-15)


def test_the_slow_copies_of_float64_are_float64():
    ema, p = START, START
    slow = fast = START
    with jax.enable_x64(True):
        txs = [ft.chain(ft.optimizers.sgd(0.1), ft.ema(0.9)), ft.lookahead(ft.optimizers.sgd(0.1), 2, 0.3)]
        params = [jnp.asarray(START)] * 2
        states = [tx.init(x) for tx, x in zip(txs, params, strict=True)]
        applies = [jax.jit(tx.apply) for tx in txs]
        for t, g in enumerate(GRADS, 1):
            p = p - 0.1 * g
            ema, fast = 0.9 * ema + 0.1 * p, fast - 0.1 * g
            if t % 2 == 0:
                slow = fast = slow + 0.3 * (fast - slow)
            for i, apply in enumerate(applies):
                params[i], states[i], _ = apply(jnp.asarray(g), states[i], params[i])
        np.testing.assert_allclose(ft.averaged(states[0]), ema, rtol=1e-14)
        np.testing.assert_allclose(params[1], fast, rtol=1e-14)


def test_sam_of_float64_looks_in_float64():
    with jax.enable_x64(True):
        tx = ft.sam(ft.optimizers.sgd(0.1), rho=0.05)
        f = jax.value_and_grad(lambda p: jnp.sum(p**3))
        p = jnp.asarray(START)
        u, _ = jax.jit(lambda p: tx.update(f(p)[1], tx.init(p), p, value_and_grad_fn=f))(p)
        g = 3 * START**2
        want = -0.1 * 3 * (START + 0.05 * g / np.sqrt((g**2).sum())) ** 2
        np.testing.assert_allclose(u, want, rtol=1e-14)


def test_a_flushed_window_of_float64():
    with jax.enable_x64(True):
        tx, p = ft.MultiSteps(ft.optimizers.sgd(0.1), 3), jnp.asarray(START)
        _, state = tx.update(jnp.asarray(GRADS[0]), tx.init(p), p)
        u, _ = tx.flush(state, p)
        np.testing.assert_allclose(u, -0.1 * GRADS[0], rtol=1e-15)


def test_norms_of_float64_have_its_range():
    with jax.enable_x64(True):
        for x in (1e200, 1e-200, 1.0):
            g = jnp.array([3 * x, 4 * x])
            np.testing.assert_allclose(ft.tree.norm(g), 5 * x, rtol=1e-15)
            u, _ = ft.clip_by_norm(1e-210).update(g, ft.clip_by_norm(1e-210).init(g))
            np.testing.assert_allclose(u, [0.6e-210, 0.8e-210], rtol=1e-14)


def test_float32_leaves_stay_float32_beside_float64():
    with jax.enable_x64(True):
        p = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2)}
        tx = ft.chain(ft.clip_by_norm(0.1), ft.optimizers.adam(0.1, b1=ft.schedules.linear(0.5, 0.9, 4)))
        update = jax.jit(tx.update)
        u, state = update(p, tx.init(p), p)
        u, state = update(p, state, p)
        assert (u["a"].dtype, u["b"].dtype) == (jnp.float32, jnp.float64)
        moments = state["adam"]["scale_by_adam"].mu
        assert (moments["a"].dtype, moments["b"].dtype) == (jnp.float32, jnp.float64)


def test_float64_training_reaches_float64():
    def loss(p, b, ctx):
        return (p["w"] - np.pi) ** 2 * b

    with jax.enable_x64(True):
        tx = ft.skip_nonfinite(ft.lookahead(ft.MultiSteps(ft.optimizers.sgd(0.3), 2)))
        task = ft.Task(loss, tx)
        state, _ = ft.train_steps(task, ft.init_state(task, {"w": jnp.zeros(())}), jnp.ones((1200, 1)))
        assert abs(float(state.params["w"]) - np.pi) < 1e-14
