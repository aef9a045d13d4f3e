"""optax's optimizers by name: what they compute is optax's, what surrounds it is ours."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import fntrain as ft
from fntrain._core.fingerprint import fingerprint

P = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.ones(4)}
X = np.linspace(0, 1, 15, dtype=np.float32).reshape(5, 3)


def loss(p, batch, ctx):
    p = jax.tree.map(lambda x: x.astype(jnp.float32), p)
    return ft.losses.mse(batch @ p["w"] + p["b"][None], jnp.tile(batch[:, :1], 4))


def trained(tx, p, steps=3):
    task = ft.Task(loss, tx)
    state = ft.init_state(task, p)
    for _ in range(steps):
        state, metrics = ft.train_step(task, state, X)
    return task, state, ft.compute_metrics(task, metrics)


@pytest.mark.parametrize(
    ("name", "factory"),
    [("ademamix", optax.contrib.ademamix), ("lamb", optax.lamb), ("prodigy", optax.contrib.prodigy)],
)
def test_it_is_what_optax_makes(name, factory):
    rate = ft.schedules.linear(0.1, 0.0, 10)
    _, ours, values = trained(ft.optimizers.get(f"optax:{name}", lr=rate), P)
    _, theirs, _ = trained(factory(learning_rate=rate), P)
    np.testing.assert_array_equal(ours.params["w"], theirs.params["w"])
    assert float(values["learning_rate"]) == pytest.approx(0.08)  # of the third update


def test_bfloat16_parameters_keep_float32_statistics_and_schedule_free_is_evaluated_at_its_average():
    p = jax.tree.map(lambda x: x.astype(jnp.bfloat16), P)
    task, state, _ = trained(ft.optimizers.get("optax:schedule_free_adamw", learning_rate=0.1), p)
    kinds = {x.dtype for x in jax.tree.leaves(state.opt_state) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert kinds == {np.dtype("float32")}
    average = task.transform.evaluation_params(state.opt_state, state.params)
    assert average["w"].dtype == jnp.bfloat16
    assert not np.array_equal(average["w"], state.params["w"])


def test_it_is_a_value():
    a, b = ft.optimizers.get("optax:adopt", lr=0.25), ft.optimizers.from_optax("adopt", learning_rate=0.25)
    assert a == b
    assert repr(a) == "from_optax(name='adopt', learning_rate=0.25)"
    assert pickle.loads(pickle.dumps(a)) == a
    assert fingerprint(a) == fingerprint(b) != fingerprint(ft.optimizers.from_optax("adopt", lr=0.5))
    assert a != ft.optimizers.from_optax("adopt", lr=0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ft.optimizers.get("optax:ademamx"), "optax has no 'ademamx'.*did you mean 'ademamix'"),
        (
            lambda: ft.optimizers.get("optax:adopt", learning_rat=1),
            "`learning_rat` is no argument of optax's adopt",
        ),
        (lambda: ft.optimizers.get("optax:adopt", lr=1, learning_rate=1), "are the same argument"),
        (lambda: ft.optimizers.get("optax:constant_schedule", value=1.0), "makes no gradient transform"),
        (lambda: ft.optimizers.get("optax:adopt"), "refuses its arguments: .*learning_rate"),
    ],
)
def test_what_it_refuses(call, words):
    with pytest.raises(ft.ConfigError, match=words):
        call()


def test_lbfgs_with_its_line_search_finds_the_optimum_of_logistic_regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    y = (x @ [1.0, -2.0, 0.5, 0.0] + rng.normal(size=60) > 0).astype(np.float64)

    def objective(w, xp):
        z = x @ w
        return xp.mean(xp.logaddexp(0.0, z) - y * z) + 0.005 * xp.sum(w * w)

    best = scipy.optimize.minimize(objective, np.zeros(4), args=(np,), method="BFGS", options={"gtol": 1e-10})
    with jax.enable_x64(True):
        task = ft.Task(lambda p, batch, ctx: objective(p["w"], jnp), ft.optimizers.get("optax:lbfgs"))
        state = ft.init_state(task, {"w": np.zeros(4)})
        state, _ = ft.train_steps(task, state, np.zeros((25, 1)))
        found = np.asarray(state.params["w"])
    assert objective(found, np) - best.fun < 1e-8
    np.testing.assert_allclose(found, best.x, atol=1e-5)
