"""Bad input is an error that names the argument, what was expected, what came and the way out; NaN stays visible."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft

X = np.array([[1, 2], [0, 1], [2, 0], [1, 1]], np.float32)
Y = np.array([1, 0, 2, 1], np.float32)
BATCH = {"x": X, "y": Y}
PARAMS = {"w": np.array([0.5, -1], np.float32)}
SGD = ft.optimizers.sgd(0.125)


def loss_fn(params, batch, ctx):
    prediction = batch["x"] @ params["w"]
    return ft.losses.mse(prediction, batch["y"]).with_outputs(predictions=prediction)


def scalar_loss(params, batch, ctx):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


TASK = ft.Task(loss_fn, SGD)


def fresh(task=TASK, params=PARAMS, **kwargs):
    return ft.init_state(task, params, **kwargs)


def step(loss=loss_fn, batch=BATCH, weight=None, task=None, **kwargs):
    task = task or ft.Task(loss, SGD, **kwargs)
    return ft.train_step(task, fresh(task), batch, weight)


def fitted(data=(X, Y), task=None, **kwargs):
    task = task or ft.Task(lambda p, b, c: ft.losses.mse(b[0] @ p["w"], b[1]), SGD)
    return ft.fit(task, fresh(task), data, **{"epochs": 1, "batch_size": 2, "progress": False, **kwargs})


def value(p, b):
    return b["x"] @ p["w"]


C, D = ft.ConfigError, ft.DataError
POSITIVE = ft.metrics.accuracy  # a factory that was not called

TABLE = {
    # --- what a loss may return
    "loss: tuple": (C, ["loss_fn", "tuple", "Loss"], lambda: step(lambda p, b, c: (value(p, b), {}))),
    "loss: None": (C, ["loss_fn", "None"], lambda: step(lambda p, b, c: None)),
    "loss: dict": (C, ["loss_fn", "dict"], lambda: step(lambda p, b, c: {"loss": value(p, b)})),
    "loss: Python float": (C, ["loss_fn", "float"], lambda: step(lambda p, b, c: 1.0)),
    "loss: int dtype": (C, ["int32"], lambda: step(lambda p, b, c: value(p, b).astype(jnp.int32))),
    "loss: complex": (C, ["complex64"], lambda: step(lambda p, b, c: value(p, b).astype(jnp.complex64))),
    "loss: other rows": (
        (C, D), ["4", "3", "loss_fn"], lambda: step(lambda p, b, c: value(p, b)[:3], weight=np.ones(4, np.float32)),
    ),
    "Loss: int values": (C, ["`values`", "int32"], lambda: ft.Loss(jnp.arange(3))),
    "Loss: weights of another shape": (C, ["`weights`", "[2]"], lambda: ft.Loss(jnp.ones(3), jnp.ones(2))),
    "loss: scalar with weight": (
        D, ["`weight`", "scalar", "per example"], lambda: step(scalar_loss, weight=np.ones(4, np.float32)),
    ),
    "loss: scalar, evaluated with weight": (
        D, ["`weight`", "scalar"],
        lambda: ft.eval_step(ft.Task(scalar_loss, SGD), fresh(), BATCH, np.ones(4, np.float32)),
    ),
    "loss: scalar, ragged microbatches": (
        D, ["microbatches", "3", "4"],
        lambda: step(scalar_loss, microbatches=3),
    ),
    "loss: no function": (C, ["`loss_fn`", "(params, batch, ctx)"], lambda: ft.Task(3, SGD)),
    "loss: model state of another structure": (
        C, ["model state", "`n`"],
        lambda: ft.train_step(
            ft.Task(lambda p, b, c: ft.Loss(value(p, b), model_state={"n": c.model_state, "m": c.model_state}), SGD),
            fresh(model_state=np.float32(0)), BATCH,
        ),
    ),
    # --- batches and weights
    "batch: lengths": (D, ["x", "y", "4", "3"], lambda: step(batch={"x": X, "y": Y[:3]})),
    "batch: no leaves": (D, ["batch"], lambda: step(batch={})),
    "batch: strings": (D, ["`batch`", "name"], lambda: step(batch={**BATCH, "name": np.array(list("abcd"))})),
    "batch: an object": (D, ["`batch`", "thing"], lambda: step(batch={**BATCH, "thing": object()})),
    "weight: wrong length": (D, ["`weight`", "[4]", "[3]"], lambda: step(weight=np.ones(3, np.float32))),
    "weight: two axes": (D, ["`weight`", "[4]", "[4, 1]"], lambda: step(weight=np.ones((4, 1), np.float32))),
    "weight: a number": (D, ["`weight`", "[4]"], lambda: step(weight=np.float32(1))),
    "train_steps: lengths": (
        D, ["3|2"],
        lambda: ft.train_steps(TASK, fresh(), jax.tree.map(lambda a: np.stack([a] * 3), BATCH),
            np.ones((2, 4), np.float32)),
    ),
    # --- arguments in the wrong place
    "swapped task and state": (
        C, ["`task`", "TrainState", "(task, state, batch)"],
        lambda: ft.train_step(fresh(), TASK, BATCH),
    ),
    "swapped in eval_step": (C, ["`task`", "TrainState"], lambda: ft.eval_step(fresh(), TASK, BATCH)),
    "swapped in compute_gradients": (C, ["`task`"], lambda: ft.compute_gradients(fresh(), TASK, BATCH)),
    "swapped in fit": (C, ["`task`"], lambda: ft.fit(fresh(), TASK, (X, Y))),
    "swapped in evaluate": (C, ["`task`"], lambda: ft.evaluate(fresh(), TASK, (X, Y))),
    "params for a state": (C, ["`state`", "dict", "init_state"], lambda: ft.train_step(TASK, PARAMS, BATCH)),
    "params for a task": (C, ["`task`", "dict"], lambda: ft.init_state(PARAMS, TASK)),
    "values for metrics": (C, ["`metrics`", "dict"], lambda: ft.compute_metrics(TASK, {"loss": 1.0})),
    "merging two verbs": (
        C, ["`a`", "`b`"],
        lambda: ft.merge_metrics(TASK, ft.train_step(TASK, fresh(), BATCH)[1], ft.eval_step(TASK, fresh(), BATCH)),
    ),
    # --- tx and metrics
    "tx: factory": (C, ["`tx`", "sgd", "("], lambda: ft.Task(loss_fn, ft.optimizers.sgd)),
    "tx: optax factory": (C, ["`tx`", "("], lambda: ft.Task(loss_fn, optax.adam)),
    "tx: number": (C, ["`tx`", "0.1"], lambda: ft.Task(loss_fn, 0.1)),
    "tx: name": (C, ["`tx`", "adam"], lambda: ft.Task(loss_fn, "adam")),
    "tx: factory in a chain": (C, ["nesterov"], lambda: ft.chain(ft.clip_by_norm(1.0), ft.nesterov)),
    "metrics: factory": (
        C, ["accuracy", "accuracy()"],
        lambda: ft.Task(loss_fn, SGD, {"accuracy": POSITIVE}),
    ),
    "metrics: class": (C, ["Metric"], lambda: ft.Task(loss_fn, SGD, {"m": ft.metrics.Metric})),
    "metrics: a list": (
        C, ["`metrics`", "got [accuracy()]"],
        lambda: ft.Task(loss_fn, SGD, [ft.metrics.accuracy()]),
    ),
    "metrics: a metric": (C, ["`metrics`"], lambda: ft.Task(loss_fn, SGD, ft.metrics.accuracy())),
    "metrics: number as name": (C, ["metrics"], lambda: ft.Task(loss_fn, SGD, {1: ft.metrics.accuracy()})),
    "metrics: reserved name": (
        C, ["`metrics`", "loss"],
        lambda: ft.Task(loss_fn, SGD, {"loss": ft.metrics.accuracy()}),
    ),
    "metrics: recorded name": (
        C, ["learning_rate"],
        lambda: step(task=ft.Task(loss_fn, SGD, {"learning_rate": ft.metrics.mean("predictions")})),
    ),
    "metrics: output of another shape": (
        (C, D), ["mean", "[4]", "[3]"],
        lambda: step(
            lambda p, b, c: ft.Loss(value(p, b)).with_outputs(predictions=value(p, b)[:3]),
            metrics={"m": ft.metrics.mean("predictions")}, weight=np.ones(4, np.float32),
        ),
    ),
    "microbatches: zero": (C, ["`microbatches`", "0"], lambda: ft.Task(loss_fn, SGD, microbatches=0)),
    "microbatches: float": (C, ["`microbatches`", "2.0"], lambda: ft.Task(loss_fn, SGD, microbatches=2.0)),
    "microbatches: more than rows": (
        (C, D), ["microbatches", "4", "5"],
        lambda: step(scalar_loss, microbatches=5),
    ),
    "policy: unknown": (C, ["`policy`", "half", "bf16"], lambda: ft.Task(loss_fn, SGD, policy="half")),
    "policy: int dtype": (C, ["`compute`", "int8"], lambda: ft.Policy(compute="int8")),
    "gradient method": (
        C, ["`method`", "numerical", "numeric"], lambda: ft.compute_gradients(TASK, fresh(), BATCH, method="numeric"),
    ),
    "gradient epsilon": (
        C, ["`epsilon`", "0"], lambda: ft.compute_gradients(TASK, fresh(), BATCH, method="numerical", epsilon=0.0),
    ),
    # --- parameters
    "params: function leaf": (
        C, ["`params`", "`f`", "function"],
        lambda: fresh(params={**PARAMS, "f": jnp.tanh}),
    ),
    "params: string leaf": (
        C, ["`params`", "`name`", "str"],
        lambda: fresh(params={**PARAMS, "name": "dense"}),
    ),
    "params: object leaf": (C, ["`params`", "`o`"], lambda: fresh(params={**PARAMS, "o": object()})),
    "params: object array": (
        C, ["`o`", "object"],
        lambda: fresh(params={**PARAMS, "o": np.array([None, 1])}),
    ),
    "params: complex": (
        C, ["`z`", "complex"],
        lambda: fresh(params={**PARAMS, "z": np.ones(2, np.complex64)}),
    ),
    "params: empty": (C, ["`params`"], lambda: fresh(params={})),
    "params: integers alone": (C, ["`params`", "floating"], lambda: fresh(params={"n": np.arange(3)})),
    "params: None": (C, ["`params`"], lambda: fresh(params=None)),
    "key: a string": (C, ["`key`"], lambda: fresh(key="0")),
    "key: a float": (C, ["`key`"], lambda: fresh(key=0.5)),
    "model_state: string leaf": (C, ["`model_state`", "`s`"], lambda: fresh(model_state={"s": "x"})),
    # --- fit
    "fit: epochs and steps": (C, ["`epochs`", "`steps`"], lambda: fitted(epochs=1, steps=1)),
    "fit: no epochs": (C, ["`epochs`", "0"], lambda: fitted(epochs=0)),
    "fit: half an epoch": (C, ["`epochs`", "0.5"], lambda: fitted(epochs=0.5)),
    "fit: negative steps": (C, ["`steps`", "-1"], lambda: fitted(epochs=None, steps=-1)),
    "fit: batch size": (C, ["`batch_size`", "0"], lambda: fitted(batch_size=0)),
    "fit: steps_per_call": (C, ["`steps_per_call`"], lambda: fitted(steps_per_call=0)),
    "fit: steps_per_call by name": (C, ["`steps_per_call`", "many"], lambda: fitted(steps_per_call="many")),
    "fit: log_every": (C, ["`log_every`"], lambda: fitted(log_every=0)),
    "fit: resume without directory": (C, ["`resume`", "`run_dir`"], lambda: fitted(resume=True)),
    "fit: checkpoints without directory": (
        C, ["`checkpoint_every`", "`run_dir`"],
        lambda: fitted(checkpoint_every=1),
    ),
    "fit: callback class": (
        C, ["`callbacks`", "CallbackList()"],
        lambda: fitted(callbacks=[ft.callbacks.CallbackList]),
    ),
    "fit: callback that is none": (C, ["`callbacks`", "3"], lambda: fitted(callbacks=[3])),
    "fit: one callback, no list": (C, ["`callbacks`"], lambda: fitted(callbacks=lambda logs: None)),
    "fit: empty data": (D, ["`data`"], lambda: fitted((X[:0], Y[:0]))),
    "fit: empty list": (D, ["`data`", "empty"], lambda: fitted([])),
    "fit: no data": (D, ["`data`", "None"], lambda: fitted(None)),
    "fit: a path": (D, ["`data`"], lambda: fitted("data.npz")),
    "fit: lengths": (D, ["4", "3"], lambda: fitted((X, Y[:3]))),
    "fit: empty validation": (D, ["validation_data"], lambda: fitted(validation_data=(X[:0], Y[:0]))),
    "fit: shapes between batches": (
        D, ["batch 1", "epoch 1", "2", "3"], lambda: fitted([(X, Y), (np.ones((4, 3), np.float32), Y)]),
    ),
    "fit: dtypes between batches": (
        D, ["batch 1", "float32", "float64|int"],
        lambda: fitted([(X, Y), (X.astype(np.int32), Y)]),
    ),
    "fit: structures between batches": (D, ["batch 1"], lambda: fitted([(X, Y), (X, Y, Y)])),
    "fit: a batch that grows": (D, ["batch 1", "4", "2"], lambda: fitted([(X[:2], Y[:2]), (X, Y)])),
    "evaluate: empty": (D, ["data"], lambda: ft.evaluate(TASK, fresh(), {"x": X[:0], "y": Y[:0]})),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_a_named_error(name):
    error, words, call = TABLE[name]
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    missing = [word for word in words if not any(part in message for part in word.split("|"))]
    assert not missing, f"{missing} not in: {message}"
    assert "\n\n" not in message
    assert len(message) < 700


def test_a_metric_that_asks_for_an_absent_output_lists_those_there_are():
    task = ft.Task(loss_fn, SGD, {"accuracy": ft.metrics.accuracy()})
    for verb in (ft.train_step, ft.eval_step):
        with pytest.raises((C, D)) as error:
            verb(task, fresh(task), BATCH)
        message = str(error.value)
        assert "logits" in message
        assert "predictions" in message
        assert "accuracy" in message


def test_a_state_used_twice():
    state = fresh()
    ft.train_step(TASK, state, BATCH)
    for verb in (ft.train_step, ft.eval_step):
        with pytest.raises(ft.ConsumedStateError, match="step 0"):
            verb(TASK, state, BATCH)
    state = fresh()
    ft.train_steps(TASK, state, jax.tree.map(lambda a: np.stack([a] * 2), BATCH))
    with pytest.raises(ft.ConsumedStateError, match="step 0"):
        ft.train_step(TASK, state, BATCH)
    # A refused call consumed nothing.
    state = fresh()
    with pytest.raises(D):
        ft.train_step(TASK, state, BATCH, np.ones(3, np.float32))
    ft.train_step(TASK, state, BATCH)


def test_a_run_directory_in_use(tmp_path):
    fitted(run_dir=tmp_path / "run")
    with pytest.raises(C) as error:
        fitted(run_dir=tmp_path / "run")
    assert "`run_dir`" in str(error.value)
    assert "resume=True" in str(error.value)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(C, match="`run_dir`"):
        fitted(run_dir=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_data_stays_visible(bad):
    x = X.copy()
    x[1, 0] = bad
    state, metrics = ft.train_step(TASK, fresh(), {"x": x, "y": Y})
    values = ft.compute_metrics(TASK, metrics)
    assert not np.isfinite(values["loss"])
    assert not np.all(np.isfinite(state.params["w"]))
    # A weight of zero leaves it out, and so does nothing else.
    state, metrics = ft.train_step(TASK, fresh(), {"x": x, "y": Y}, np.array([1, 0, 1, 1], np.float32))
    keep = [0, 2, 3]
    r = X[keep] @ PARAMS["w"] - Y[keep]
    np.testing.assert_allclose(ft.compute_metrics(TASK, metrics)["loss"], (r**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(
        state.params["w"], PARAMS["w"] - 0.125 * (2 * r[:, None] * X[keep]).mean(0), rtol=1e-6
    )


def test_non_finite_data_stays_visible_through_clip_and_fit():
    x = X.copy()
    x[1, 0] = np.nan
    task = ft.Task(
        lambda p, b, c: ft.losses.mse(b[0] @ p["w"], b[1]),
        ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(0.1)),
    )
    result = ft.fit(task, fresh(task), (x, Y), epochs=1, batch_size=2, progress=False, validation_data=(X, Y))
    assert np.isnan(result.history["loss"][0])
    assert np.isnan(result.history["val_loss"][0])
    assert np.all(np.isnan(result.state.params["w"]))
    assert np.isnan(ft.evaluate(task, fresh(task), (x, Y), batch_size=3)["loss"])


def test_a_batch_of_no_rows_is_nothing():
    state, metrics = step(batch={"x": X[:0], "y": Y[:0]})
    np.testing.assert_array_equal(state.params["w"], PARAMS["w"])
    assert float(ft.compute_metrics(TASK, metrics)["loss"]) == 0
    assert (int(state.step), int(state.updates)) == (1, 0)


def test_a_table_row_that_does_not_raise_is_noticed():
    with pytest.raises(pytest.fail.Exception), pytest.raises((C, D)):
        step()
