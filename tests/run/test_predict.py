"""`predict` against the model's own function, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

X = np.random.default_rng(0).normal(size=(37, 4)).astype(np.float32)
W = np.arange(8, dtype=np.float32).reshape(4, 2)
TRACES = []


def predict_fn(params, batch, ctx):
    TRACES.append(batch.shape)
    assert ctx.train is False
    return {"logits": batch @ params["w"], "twice": (2 * batch, batch[:, 0])}


def loss_fn(params, batch, ctx):
    x, y = batch if isinstance(batch, tuple) else (batch, jnp.zeros(len(batch), jnp.int32))
    logits = x @ params["w"]
    return ft.losses.cross_entropy(logits, y).with_outputs(logits=logits, hidden=x)


TX = ft.optimizers.sgd(0.1)


def state_of(task, **options):
    return ft.init_state(task, lambda key: {"w": jnp.asarray(W)}, **options)


@pytest.mark.parametrize("batch_size", [1, 8, 37, 64])
def test_rows_come_in_order_without_padding_by_one_program(batch_size):
    task = ft.Task(loss_fn, TX, predict_fn=predict_fn)
    state = state_of(task)
    TRACES.clear()
    got = ft.predict(task, state, X, batch_size=batch_size)
    assert len(TRACES) == 1
    np.testing.assert_allclose(got["logits"], X @ W, rtol=1e-5)
    np.testing.assert_array_equal(got["twice"][0], 2 * X)
    np.testing.assert_array_equal(got["twice"][1], X[:, 0])
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(got))
    assert not state.params["w"].is_deleted()


def test_without_a_function_it_gives_the_outputs_of_the_loss():
    task = ft.Task(loss_fn, TX)
    state = state_of(task)
    got = ft.predict(task, state, X, batch_size=8)
    assert sorted(got) == ["hidden", "logits"]
    np.testing.assert_allclose(ft.predict(task, state, X, outputs="logits"), X @ W, rtol=1e-5)
    assert sorted(ft.predict(task, state, X, outputs=["hidden"])) == ["hidden"]


def test_any_form_of_data_and_rows_of_weight_zero():
    task = ft.Task(loss_fn, TX, predict_fn=predict_fn)
    state = state_of(task)
    wanted = X @ W
    forms = {
        "list": [X[:20], X[20:]],
        "generator": (X[i : i + 10] for i in range(0, 37, 10)),
        "loader": ft.data_loader(X, 10, shuffle=False),
    }
    for name, data in forms.items():
        np.testing.assert_allclose(
            ft.predict(task, state, data, outputs="logits"), wanted, rtol=1e-5, err_msg=name
        )
    weight = np.ones(37, np.float32)
    weight[[3, 5]] = 0
    got = ft.predict(task, state, [(X, weight)], outputs="logits")
    np.testing.assert_allclose(got, np.delete(wanted, [3, 5], 0), rtol=1e-5)


def test_a_mesh_gives_the_same_rows():
    mesh = ft.sharding.mesh(data=8)
    task = ft.Task(loss_fn, TX, predict_fn=predict_fn)
    state = state_of(task, mesh=mesh)
    np.testing.assert_allclose(ft.predict(task, state, X, batch_size=12, outputs="logits"), X @ W, rtol=1e-5)


def test_it_has_no_part_in_a_runs_identity_and_is_a_part_of_the_task():
    with_it, without = ft.Task(loss_fn, TX, predict_fn=predict_fn), ft.Task(loss_fn, TX)
    assert with_it != without
    assert with_it.fingerprint() == without.fingerprint()


def test_what_cannot_be_predicted_is_refused_by_name():
    silent = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b[:, :2]), TX)
    with pytest.raises(ft.ConfigError, match="says nothing to predict"):
        ft.predict(silent, state_of(silent), X)
    task = ft.Task(loss_fn, TX, predict_fn=predict_fn)
    with pytest.raises(ft.ConfigError, match=r"`predict_fn` returns no 'logit'.*did you mean 'logits'"):
        ft.predict(task, state_of(task), X, outputs="logit")
    mean = ft.Task(loss_fn, TX, predict_fn=lambda p, b, ctx: (b @ p["w"]).mean())
    with pytest.raises(ft.DataError, match="must have one row per example, 32 for this batch, got shape"):
        ft.predict(mean, state_of(mean), X)
    with pytest.raises(ft.ConfigError, match="predict_fn"):
        ft.Task(loss_fn, TX, predict_fn=3)
