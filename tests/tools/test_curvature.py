"""curvature: against the eigenvalues of a Hessian that is known, or written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

import fntrain as ft

RNG = np.random.default_rng(0)


def quadratic(eigenvalues):
    n = len(eigenvalues)
    q = np.linalg.qr(RNG.normal(size=(n, n)))[0]
    matrix = jnp.asarray(q @ np.diag(eigenvalues) @ q.T, jnp.float32)

    def loss_fn(p, b, ctx):
        w = jnp.concatenate([p["a"], p["b"].ravel()])
        return b * (0.5 * w @ matrix @ w)

    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1))
    return task, ft.init_state(task, {"a": jnp.ones(n - 4), "b": jnp.ones((2, 2)), "count": jnp.int32(3)})


def test_exact_on_a_quadratic():
    """Three distinct eigenvalues, two of them many times: three iterations are all it takes."""
    task, state = quadratic([7.0] * 3 + [2.0] * 4 + [-1.5])
    found = ft.tools.curvature(task, state, jnp.ones(4))
    np.testing.assert_allclose(found.eigenvalues, [7, 2, -1.5], rtol=1e-5)
    assert (found.sharpness, found.lowest) == (found.eigenvalues[0], found.eigenvalues[-1])
    assert found.largest_rate == pytest.approx(2 / 7, rel=1e-5)
    assert found.error < 1e-4
    assert found.direction["count"] is None
    flat = np.concatenate([found.direction["a"], found.direction["b"].ravel()])
    assert np.linalg.norm(flat) == pytest.approx(1, rel=1e-5)
    assert str(found).startswith("sharpness 7 ± ")
    # A batch of rows that weigh nothing but one is that row, twice as steep.
    weighed = ft.tools.curvature(task, state, jnp.array([5.0, 2, 5, 5]), jnp.array([0.0, 1, 0, 0]))
    assert weighed.sharpness == pytest.approx(14, rel=1e-5)


def test_the_hessian_of_a_network():
    def loss_fn(p, b, ctx):
        x, y = b
        return ft.losses.mse(jnp.tanh(x @ p["in"]) @ p["out"], y)

    x = RNG.normal(size=(16, 3)).astype(np.float32)
    batch = (x, np.sin(x.sum(1)))
    params = {k: RNG.normal(size=s).astype(np.float32) for k, s in (("in", (3, 4)), ("out", (4,)))}
    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1), microbatches=2)
    state = ft.init_state(task, params)
    found = ft.tools.curvature(task, state, batch, iterations=16)
    flat, back = jax.flatten_util.ravel_pytree(params)
    exact = np.linalg.eigvalsh(jax.hessian(lambda w: loss_fn(back(w), batch, None).mean())(flat))
    assert found.sharpness == pytest.approx(exact[-1], rel=1e-4)
    assert found.lowest == pytest.approx(exact[0], rel=1e-2)
    few = ft.tools.curvature(task, state, batch, iterations=4)
    assert abs(few.sharpness - exact[-1]) <= few.error + 1e-4
    with pytest.raises(ft.ConfigError, match="`iterations`"):
        ft.tools.curvature(task, state, batch, iterations=0)


def descended(rate, steps=600, stretches=10):
    """Sharpness times rate / 2, before and along gradient descent of a small network on all of its data at once."""

    def loss_fn(p, b, ctx):
        return ft.losses.mse(jnp.tanh(jnp.tanh(b[0] @ p["in"]) @ p["mid"]) @ p["out"], b[1])

    x, y = datasets.load_digits(return_X_y=True)
    batch = (x[:32] / 16 - 0.3).astype(np.float32), np.eye(10, dtype=np.float32)[y[:32]]
    rng = np.random.default_rng(1)
    shapes = {"in": (64, 24, 1 / 16), "mid": (24, 24, 0.1), "out": (24, 10, 0.05)}
    params = {k: (scale * rng.normal(size=(m, n))).astype(np.float32) for k, (m, n, scale) in shapes.items()}
    task = ft.Task(loss_fn, ft.optimizers.sgd(rate))
    state = ft.init_state(task, params)
    repeated = jax.tree.map(lambda x: np.broadcast_to(x, (steps // stretches, *x.shape)), batch)
    found = [ft.tools.curvature(task, state, batch, iterations=10).sharpness]
    for _ in range(stretches):
        state, _ = ft.train_steps(task, state, repeated)
        found.append(ft.tools.curvature(task, state, batch, iterations=10).sharpness)
    return np.array(found) * rate / 2


def test_the_edge_of_stability():
    """Cohen et al., 2021: the sharpness rises to 2 / rate, and stays; at a rate that is too small it doesn't arrive."""
    share = descended(1.5)
    assert share[0] < 0.5
    np.testing.assert_allclose(share[-4:], 1, atol=0.1)
    assert descended(0.05, stretches=2).max() < 0.1
