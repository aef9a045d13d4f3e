"""optax's optimizers by name: what they compute is optax's, what surrounds it is ours."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import fntrain as ft
from fntrain import ConfigError
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


C = optax.contrib
ROWS = {  # what optax itself makes of it, and the arguments
    "adopt": (C.adopt, {}),
    "ademamix": (C.ademamix, {}),
    "amsgrad": (optax.amsgrad, {}),
    "lamb": (optax.lamb, {"weight_decay": 0.1}),
    "lars": (optax.lars, {"momentum": 0.5}),
    "nadam": (optax.nadam, {}),
    "prodigy": (C.prodigy, {}),
    "radam": (optax.radam, {}),
    "schedule_free_adamw": (C.schedule_free_adamw, {"warmup_steps": 2}),
    "schedule_free_sgd": (C.schedule_free_sgd, {}),
}
RATE = ft.schedules.linear(0.1, 0.0, 10)
PLAIN = {"schedule_free_adamw", "schedule_free_sgd"}  # whose rates are numbers


def rate_of(name):
    return 0.1 if name in PLAIN else RATE


def made(name):
    return ft.optimizers.get(f"optax:{name}", lr=rate_of(name), **ROWS[name][1])


def test_each_is_what_optax_makes():
    """All of them in one program, three updates each."""
    grads = [jax.tree.map(lambda x: jnp.cos(3 * x + i), P) for i in range(3)]

    @jax.jit
    def run(grads):
        out = {}
        for name, (factory, others) in ROWS.items():
            for which, tx in (
                ("ours", made(name)),
                ("optax", factory(learning_rate=rate_of(name), **others)),
            ):
                p, state = P, tx.init(P)
                with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                    for g in grads:
                        u, state = tx.update(g, state, p)
                        p = optax.apply_updates(p, u)
                out[name, which] = p, state
        return out

    out = run(grads)
    for name in ROWS:
        (p, state), (q, theirs) = out[name, "ours"], out[name, "optax"]
        for path, x in ft.tree.items(p):
            assert np.abs(x - P[path]).max() > 0
            np.testing.assert_allclose(x, q[path], rtol=1e-6, err_msg=f"{name} {path}")
        values = ft.transforms.recorded(state)
        assert float(values["learning_rate"]) == pytest.approx(0.1 if name in PLAIN else 0.08), name
        if name in PLAIN:
            kept = optax.tree.get(theirs, "z"), optax.tree.get(theirs, "b1")
            want = jax.tree.map(
                lambda y, z: (y - (1 - kept[1]) * z) / kept[1], q, kept[0]
            )  # y = b1 x + (1 - b1) z
            for found in (made(name).evaluation_params(state, p), ft.averaged(state, like=p)):
                np.testing.assert_allclose(found["w"], want["w"], rtol=1e-5)
            with pytest.raises(ConfigError, match="like=params"):
                ft.averaged(state)
            assert not np.array_equal(want["w"], q["w"])


@pytest.mark.parametrize("name", ROWS)
def test_each_is_a_value_with_float32_statistics(name):
    a, b = made(name), made(name)
    assert a == b
    assert hash(a) == hash(b)
    assert fingerprint(a) == fingerprint(b) != fingerprint(ft.optimizers.get(f"optax:{name}", lr=0.5))
    assert f"name='{name}'" in repr(a)
    assert pickle.loads(pickle.dumps(a)) == a
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), P)
    state = jax.eval_shape(a.init, half)
    updates, after = jax.eval_shape(a.update, half, state, half)
    kinds = {x.dtype for x in jax.tree.leaves((state, after)) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert kinds == {np.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}


def test_schedule_free_takes_one_of_ours_and_fit_evaluates_where_it_says():
    inner = ft.optimizers.sgd(0.1)
    tx = ft.optimizers.get("optax:schedule_free", base_optimizer=inner, learning_rate=0.1)
    assert tx == ft.optimizers.get("optax:schedule_free", base_optimizer=ft.optimizers.sgd(0.1), lr=0.1)
    task, state, values = trained(ft.chain(ft.clip_by_norm(1.0), tx), P)
    assert {"grad_norm", "learning_rate"} <= values.keys()
    average = ft.averaged(state)
    found = ft.fit(
        task, state, X, epochs=4, batch_size=5, validation_data=X, evaluate_at="averaged", progress=False
    )
    assert not np.array_equal(average["w"], state.params["w"])
    at_average = ft.evaluate(task, found.state.replace(params=ft.averaged(found.state)), X)["loss"]
    assert found.history["val_loss"][-1] == pytest.approx(at_average, rel=1e-6)


def test_bfloat16_parameters_keep_float32_statistics_and_schedule_free_is_evaluated_at_its_average():
    p = jax.tree.map(lambda x: x.astype(jnp.bfloat16), P)
    task, state, _ = trained(ft.optimizers.get("optax:schedule_free_adamw", learning_rate=0.1), p)
    kinds = {x.dtype for x in jax.tree.leaves(state.opt_state) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert kinds == {np.dtype("float32")}
    average = task.transform.evaluation_params(state.opt_state, state.params)
    assert average["w"].dtype == jnp.bfloat16
    assert not np.array_equal(average["w"], state.params["w"])


def test_by_its_name_or_by_its_call():
    a = ft.optimizers.get("optax:adopt", lr=0.25)
    assert (
        a
        == ft.optimizers.from_optax("adopt", learning_rate=0.25)
        != ft.optimizers.from_optax("adopt", lr=0.5)
    )
    assert repr(a) == "from_optax(name='adopt', learning_rate=0.25)"


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


def test_a_line_search_takes_value_and_gradient_once_a_trial():
    count = [0]

    def hilly(p, batch, ctx):
        jax.debug.callback(lambda: count.__setitem__(0, count[0] + 1))
        return jnp.sum(jnp.cos(8 * p["w"]) + p["w"] ** 2)

    task = ft.Task(hilly, ft.optimizers.get("optax:lbfgs"))
    state, trials = ft.init_state(task, {"w": np.array([1.0, -2.0, 0.5], np.float32)}), []
    for _ in range(4):
        count[0] = 0
        state, _ = ft.train_step(task, state, np.zeros((1, 1), np.float32))
        jax.effects_barrier()
        trials += [int(x) for path, x in ft.tree.items(state.opt_state) if "num_linesearch_steps" in path]
        assert count[0] == 1 + trials[-1]  # the step's own, and one for both at each trial
    assert max(trials) > 1
