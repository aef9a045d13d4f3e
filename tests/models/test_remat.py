"""Layers computed again: the gradient of the same numbers, from less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

X = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
PARAMS = {"layers": np.stack([np.eye(32, dtype=np.float32) / (i + 1) for i in range(8)])}
TX = ft.optimizers.sgd(0.1)


def layer(x, w):
    return jnp.sin(jnp.exp(jnp.tanh(jnp.cos(x @ w))))  # four arrays behind a product


def task(layer):
    def loss_fn(params, batch, ctx):
        x, _ = jax.lax.scan(lambda x, w: (layer(x, w), None), batch, params["layers"])
        return ft.losses.mse(x, batch)

    return ft.Task(loss_fn, TX)


PLAIN = task(layer)


def temporary(task):
    state = ft.init_state(task, PARAMS)
    step = jax.jit(lambda s, b: ft.train_step(task, s, b), donate_argnums=0)
    return step.lower(state, X).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("keep", "share"),
    [("nothing", 0.4), ("products", 0.5), (jax.checkpoint_policies.everything_saveable, 1.01)],
)
def test_the_gradient_is_the_same_and_the_memory_less(keep, share):
    other = task(ft.models.remat(layer, keep))
    want, wanted = ft.compute_gradients(PLAIN, ft.init_state(PLAIN, PARAMS), X)
    got, grads = ft.compute_gradients(other, ft.init_state(other, PARAMS), X)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(grads["layers"], wanted["layers"], rtol=1e-5, atol=1e-8)
    if jax.default_backend() == "cpu":
        assert temporary(other) <= share * temporary(PLAIN)


def test_products_are_computed_again_or_kept():
    def products(keep):
        f = layer if keep is None else ft.models.remat(layer, keep)
        return str(jax.make_jaxpr(jax.grad(lambda x: f(x, PARAMS["layers"][0]).sum()))(X)).count(
            "dot_general"
        )

    assert products("products") == products(None) < products("nothing")


def test_what_is_unknown_is_refused():
    with pytest.raises(ft.ConfigError, match=r"`keep`.*'products'"):
        ft.models.remat(layer, "product")
    with pytest.raises(ft.ConfigError, match="`keep`"):
        ft.models.remat(layer, 3)
    with pytest.raises(ft.ConfigError, match="`function`"):
        ft.models.remat(3)
