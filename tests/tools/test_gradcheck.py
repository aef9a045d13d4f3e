"""check_gradients: right is called right, wrong is called wrong, and what cannot be told is called neither."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(5, 4)).astype(np.float32), RNG.integers(0, 3, 5).astype(np.int32)
BATCH = {"x": X, "y": Y}


@pytest.fixture(autouse=True)
def seeded():
    """Each test draws the same numbers whichever ran before it."""
    global RNG
    RNG = np.random.default_rng(0)


def params():
    return {
        "layers": [
            {"kernel": RNG.normal(size=(4, 8)).astype(np.float32), "bias": np.zeros(8, np.float32)},
            {"kernel": RNG.normal(size=(8, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)},
        ],
        "count": np.int32(3),
    }


def network(activation):
    def loss_fn(params, batch, ctx):
        first, second = params["layers"]
        h = activation(batch["x"] @ first["kernel"] + first["bias"][None])
        return ft.losses.cross_entropy(h @ second["kernel"] + second["bias"][None], batch["y"])

    return ft.Task(loss_fn, ft.optimizers.sgd(0.1))


@pytest.mark.parametrize("policy", [ft.Policy(), "bf16"])
def test_right_gradients_are_right_to_ten_digits(policy):
    task = ft.Task(network(jnp.tanh).loss_fn, ft.optimizers.sgd(0.1), policy=policy)
    state = ft.init_state(task, params())
    check = ft.tools.check_gradients(task, state, BATCH, tolerance=1e-8, entries=40)
    assert check
    assert check.verdict == "right"
    assert check.dtype == "float64"
    assert [leaf.path for leaf in check.leaves] == [
        f"layers/{i}/{name}" for i in (0, 1) for name in ("bias", "kernel")
    ]
    assert [leaf.entries for leaf in check.leaves] == [8, 32, 3, 24]
    assert not jax.config.jax_enable_x64
    assert state.params["layers"][0]["kernel"].dtype == jnp.float32  # and the state is as it was
    ft.train_step(task, state, BATCH)


@jax.custom_vjp
def wrong(x):
    return jnp.tanh(x)


wrong.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * 1.001,))


@jax.custom_vjp
def broken(x):
    return jnp.tanh(x)


broken.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * jnp.nan,))


@pytest.mark.parametrize("activation", [wrong, broken])
def test_a_wrong_backward_pass_shows_in_the_leaves_before_it(activation):
    task = network(activation)
    check = ft.tools.check_gradients(task, ft.init_state(task, params()), BATCH)
    assert not check
    assert {leaf.path: leaf.verdict for leaf in check.leaves} == {
        "layers/0/bias": "wrong",
        "layers/0/kernel": "wrong",
        "layers/1/bias": "right",
        "layers/1/kernel": "right",
    }
    text = str(check)
    assert "layers/0/kernel" in text
    assert text.splitlines()[-1].startswith("wrong: in float64, epsilon 1e-05")


def test_one_wrong_entry_among_many_is_found_if_it_is_looked_at():
    @jax.custom_vjp
    def f(w):
        return w

    f.defvjp(lambda w: (w, None), lambda _, g: (g.at[17].multiply(2),))
    task = ft.Task(lambda p, b, ctx: b @ f(p["w"]), ft.optimizers.sgd(0.1))
    state = ft.init_state(task, {"w": np.ones(40, np.float32)})
    batch = RNG.normal(size=(3, 40)).astype(np.float32)
    assert ft.tools.check_gradients(task, state, batch, entries=40).verdict == "wrong"


@pytest.mark.parametrize("epsilon", [1e-10, 1e-300])
def test_an_epsilon_that_is_too_small_is_said_to_be(epsilon):
    task = network(jnp.tanh)
    check = ft.tools.check_gradients(
        task, ft.init_state(task, params()), BATCH, epsilon=epsilon, tolerance=1e-8
    )
    assert check.verdict == "unresolved"
    assert "is too small for float64" in check.advice
    if epsilon == 1e-10:  # and the one that is advised does
        wanted = float(check.advice.split()[-1])
        state = ft.init_state(task, params())
        assert ft.tools.check_gradients(task, state, BATCH, epsilon=wanted, tolerance=1e-6)


def test_a_loss_that_computes_in_float32_is_checked_as_such():
    def loss_fn(params, batch, ctx):
        return (batch.astype(jnp.float32) @ params["w"].astype(jnp.float32)) ** 2

    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1))
    state = ft.init_state(task, {"w": np.ones(4, np.float32)})
    check = ft.tools.check_gradients(task, state, X)
    assert (check.dtype, check.epsilon, check.verdict) == ("float32", 1e-2, "right")
    assert ft.tools.check_gradients(task, state, X, epsilon=1e-6).verdict == "unresolved"


def test_weights_count():
    task = network(jnp.tanh)
    state = ft.init_state(task, params())
    batch = {"x": np.where(np.arange(5)[:, None] == 4, np.nan, X).astype(np.float32), "y": Y}
    assert ft.tools.check_gradients(task, state, batch, np.array([1, 2, 0.5, 3, 0], np.float32))


def test_refusals():
    task = network(jnp.tanh)
    state = ft.init_state(task, params())
    for bad, message in (
        (dict(epsilon=0), "`epsilon`"),
        (dict(entries=0), "`entries`"),
        (dict(tolerance=-1), "`tol"),
    ):
        with pytest.raises(ft.ConfigError, match=message):
            ft.tools.check_gradients(task, state, BATCH, **bad)
