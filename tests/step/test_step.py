"""The verbs on one device: exact sums, counters, microbatches, weights, recorded values, nesting, retraces."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import fntrain as ft

# A linear model on small dyadic rationals: every product and sum below has few enough bits to be exact in
# float32, so that "equal" can mean equal bit for bit, in whatever order the sums were formed.
X = np.array(
    [[1, -2, 0.5], [0, 1, 2], [-1, 0.5, 1], [2, 2, -1], [0.5, 0, 0], [-2, 1, 1], [1, 1, 1], [0, -1, 0.5]],
    np.float32,
)
Y = np.array([1, -0.5, 2, 0, 1.5, -1, 0.25, 3], np.float32)
W = np.array([1, 2, 0.5, 0, 4, 0, 0.25, 0.25], np.float32)  # sums to 8: the division is exact too
PARAMS = {"w": np.array([0.5, -0.25, 1], np.float32), "b": np.float32(0.25)}


def linear_loss(params, batch, ctx):
    prediction = batch["x"] @ params["w"] + params["b"]
    loss = ft.losses.mse(prediction, batch["y"])
    logits = jnp.stack([jnp.zeros_like(prediction), prediction], axis=-1)
    return loss.with_outputs(
        prediction=prediction, logits=logits, labels=(batch["y"] > jnp.float32(0.5)).astype(jnp.int32)
    )


METRICS = {
    "accuracy": ft.metrics.accuracy(),
    "prediction": ft.metrics.mean("prediction"),
    "confusion": ft.metrics.confusion_matrix(2),
}


class Answer(NamedTuple):
    loss: Any
    w: Any
    b: Any
    accuracy: Any
    prediction: Any
    confusion: Any


def oracle(x, y, weight, params=PARAMS, rate=0.5) -> Answer:
    """One step of SGD on the weighted mean squared error, in float64."""
    x, y, weight = (np.asarray(a, np.float64) for a in (x, y, weight))
    p = x @ params["w"].astype(np.float64) + np.float64(params["b"])
    r, total = p - y, weight.sum()
    seen = weight > 0
    label, guess = (y > 0.5).astype(int), (p > 0).astype(int)
    confusion = np.zeros((2, 2))
    np.add.at(confusion, (label[seen], guess[seen]), 1)
    return Answer(
        loss=(weight * r**2).sum() / total,
        w=params["w"] - rate * (weight[:, None] * 2 * r[:, None] * x).sum(0) / total,
        b=params["b"] - rate * (weight * 2 * r).sum() / total,
        accuracy=(label == guess)[seen].mean(),
        prediction=(weight * p).sum() / total,
        confusion=confusion,
    )


def make_task(loss_fn=linear_loss, **kwargs) -> ft.Task:
    kwargs = {"metrics": METRICS, **kwargs}
    return ft.Task(loss_fn, kwargs.pop("tx", ft.optimizers.sgd(0.5)), **kwargs)


def answer(task, x=X, y=Y, weight=None) -> Answer:
    state, metrics = ft.train_step(task, ft.init_state(task, PARAMS), {"x": x, "y": y}, weight)
    return read(task, state, metrics)


def read(task, state, metrics) -> Answer:
    values = ft.compute_metrics(task, metrics)
    return Answer(
        values["loss"],
        state.params["w"],
        state.params["b"],
        *(values.get(k) for k in ("accuracy", "prediction", "confusion")),
    )


def assert_equal(got: Answer, wanted: Answer) -> None:
    for name, a, b in zip(Answer._fields, got, wanted):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32), err_msg=name)


def assert_law3(loss_fn: Callable, cut: Callable[[ft.Task], ft.Task]) -> None:
    """The step on a batch that is cut up equals the step on the whole: the check that specimens must fail."""
    whole = ft.Task(loss_fn, ft.optimizers.sgd(0.5))
    weight = jnp.asarray(W)
    assert_equal(
        answer(cut(whole), weight=weight)[:3] + (0,) * 3, answer(whole, weight=weight)[:3] + (0,) * 3
    )


def with_microbatches(n):
    return lambda task: ft.Task(task.loss_fn, task.tx, metrics=dict(task.metrics), microbatches=n)


# --- one step against NumPy ------------------------------------------------------------------------------------


def test_oracle_is_not_trivial():
    one = oracle(X, Y, W)
    assert one.loss != oracle(X, Y, np.ones(8)).loss
    assert 0 < one.accuracy < 1
    assert np.all(one.w != PARAMS["w"])
    assert np.count_nonzero(one.confusion) == 2
    assert np.count_nonzero(oracle(X, Y, np.ones(8)).confusion) == 3


@pytest.mark.parametrize("weight", [None, W], ids=["unweighted", "weighted"])
def test_step_equals_numpy_bitwise(weight):
    # Metrics count rows of non-zero weight as a mask, means take the real weights.
    assert_equal(answer(make_task(), weight=weight), oracle(X, Y, np.ones(8) if weight is None else weight))


def test_gradient_equals_numpy_and_optax():
    task = make_task()
    state = ft.init_state(task, PARAMS)
    loss, grads = ft.compute_gradients(task, state, {"x": X, "y": Y}, W)
    want = oracle(X, Y, W, rate=-1.0)  # params + gradient
    np.testing.assert_array_equal(grads["w"], (want.w - PARAMS["w"]).astype(np.float32))
    np.testing.assert_array_equal(loss, np.float32(want.loss))
    assert loss.dtype == jnp.float32

    def mean_loss(p):
        losses = (jnp.asarray(X) @ p["w"] + p["b"] - jnp.asarray(Y)) ** 2
        return jnp.sum(losses * jnp.asarray(W)) / jnp.sum(jnp.asarray(W))

    reference = jax.grad(mean_loss)(jax.tree.map(jnp.asarray, PARAMS))
    jax.tree.map(np.testing.assert_array_equal, grads, reference)
    # compute_gradients donates nothing.
    ft.train_step(task, state, {"x": X, "y": Y}, W)


def test_twenty_steps_equal_optax_in_float64():
    tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(0.05, weight_decay=0.01))
    task = make_task(tx=tx)
    state = ft.init_state(task, PARAMS)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # optax's adamw needs it
        reference = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.05, weight_decay=0.01))
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), PARAMS)
        opt_state = reference.init(params)
        rng, batches = np.random.default_rng(0), []
        for _ in range(20):
            x, y, w = rng.normal(size=(8, 3)), rng.normal(size=8), rng.integers(0, 4, 8).astype(float)
            batches.append((x.astype(np.float32), y.astype(np.float32), w.astype(np.float32)))

            def loss(p, x=x, y=y, w=w):
                return jnp.sum(w * (x @ p["w"] + p["b"] - y) ** 2) / w.sum()

            updates, opt_state = reference.update(jax.grad(loss)(params), opt_state, params)
            params = optax.apply_updates(params, updates)
        want = jax.tree.map(np.asarray, params)
    for x, y, w in batches:
        state, _ = ft.train_step(task, state, {"x": x, "y": y}, w)
    np.testing.assert_allclose(state.params["w"], want["w"], rtol=2e-5)
    np.testing.assert_allclose(state.params["b"], want["b"], rtol=2e-5)
    assert (int(state.step), int(state.updates)) == (20, 20)


# --- law 3: however a batch is cut ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 3])
def test_microbatches_equal_the_whole_batch(n):
    # 3 does not divide 8: the batch is padded. Weights of zero leave some micro-batches lighter than others.
    assert_equal(answer(make_task(microbatches=n), weight=W), oracle(X, Y, W))


def test_microbatches_without_weights():
    assert_equal(answer(make_task(microbatches=4)), oracle(X, Y, np.ones(8)))
    # Seven rows, four parts: one row of padding, which nothing may count.
    want = oracle(X[:7], Y[:7], np.ones(7))
    got = answer(make_task(microbatches=4), X[:7], Y[:7])
    np.testing.assert_allclose(got.w, want.w, rtol=1e-6)
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-6)
    np.testing.assert_array_equal(got.confusion, want.confusion)
    assert float(got.accuracy) == np.float32(want.accuracy)


def test_random_data_in_microbatches_to_1e6():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(32, 3)).astype(np.float32), rng.normal(size=32).astype(np.float32)
    weight = rng.random(32).astype(np.float32)
    want = oracle(x, y, weight)
    for task in (make_task(), make_task(microbatches=8)):
        got = answer(task, x, y, weight)
        np.testing.assert_allclose(got.loss, want.loss, rtol=1e-6)
        np.testing.assert_allclose(got.w, want.w, rtol=1e-6)
        np.testing.assert_allclose(got.prediction, want.prediction, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 4])
def test_padded_rows_may_hold_anything(n):
    x = np.concatenate([X[:5], np.full((3, 3), np.nan, np.float32)])
    y = np.concatenate([Y[:5], np.array([np.nan, np.inf, 1e30], np.float32)])
    weight = np.array([1, 1, 2, 2, 2, 0, 0, 0], np.float32)
    assert_equal(answer(make_task(microbatches=n), x, y, weight), oracle(X[:5], Y[:5], weight[:5]))


def test_merged_evaluations_equal_the_whole_set():
    task = make_task()
    state = ft.init_state(task, PARAMS)
    parts = [
        ft.eval_step(task, state, {"x": X[:5], "y": Y[:5]}, W[:5]),
        ft.eval_step(task, state, {"x": X[5:], "y": Y[5:]}, W[5:]),
    ]
    want = oracle(X, Y, W)
    for a, b in (parts, parts[::-1]):
        values = ft.compute_metrics(task, ft.merge_metrics(task, a, b))
        assert float(values["loss"]) == want.loss
        assert float(values["accuracy"]) == np.float32(want.accuracy)
        assert float(values["prediction"]) == want.prediction
        np.testing.assert_array_equal(values["confusion"], want.confusion)


def test_token_weights_divide_by_the_total_weight():
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0.5, 0.5]], np.float32)
    x = np.arange(16, dtype=np.float32).reshape(4, 4) / 4
    x[2] = 1e30  # a row that is masked whole

    def loss_fn(params, batch, ctx):
        value = batch["x"] * params["w"]
        return ft.Loss(value, batch["mask"]).with_outputs(value=value)

    weight = np.array([1, 4, 1, 2], np.float32)
    full = mask * weight[:, None]
    kept = np.where(full > 0, x, 0).astype(np.float64)
    for n in (1, 2, 4):
        task = ft.Task(
            loss_fn, ft.optimizers.sgd(1.0), metrics={"value": ft.metrics.mean("value")}, microbatches=n
        )
        state = ft.init_state(task, {"w": np.float32(0.5)})
        state, metrics = ft.train_step(task, state, {"x": x, "mask": mask}, weight)
        values = ft.compute_metrics(task, metrics)
        gradient = (full * kept).sum() / full.sum()
        np.testing.assert_allclose(values["loss"], 0.5 * gradient, rtol=1e-7)
        np.testing.assert_allclose(state.params["w"], 0.5 - gradient, rtol=1e-7)
        # Metrics count what the loss counts: masked tokens are out, the step's weight weighs, the mask's does not.
        seen = np.where(mask > 0, weight[:, None], 0)
        np.testing.assert_allclose(values["value"], 0.5 * (seen * kept).sum() / seen.sum(), rtol=1e-6)


def test_scalar_loss_over_equal_microbatches():
    def loss_fn(params, batch, ctx):
        return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)

    want = oracle(X, Y, np.ones(8))
    for n in (1, 4):
        got = answer(ft.Task(loss_fn, ft.optimizers.sgd(0.5), microbatches=n))
        assert float(got.loss) == want.loss
        np.testing.assert_array_equal(got.w, want.w.astype(np.float32))


def test_law_3_check_accepts_the_real_loss():
    assert_law3(linear_loss, with_microbatches(4))


def mean_of_means(params, batch, ctx):
    """A specimen: it divides by the mask of its own part, so parts of unequal masks weigh the same."""
    mask = (batch["y"] > jnp.float32(0)).astype(jnp.float32)
    losses = (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2
    return losses * mask / jnp.maximum(mask.sum(), jnp.float32(1))


def sees_the_batch(params, batch, ctx):
    """A specimen: a value of one example depends on the others of its part."""
    x = batch["x"] - jnp.mean(batch["x"], axis=0, keepdims=True)
    return (x @ params["w"] + params["b"] - batch["y"]) ** 2


@pytest.mark.parametrize("specimen", [mean_of_means, sees_the_batch])
def test_law_3_check_rejects(specimen):
    with pytest.raises(AssertionError):
        assert_law3(specimen, with_microbatches(4))


def assert_split_invariant(metric: ft.metrics.Metric) -> None:
    """Merged halves of unequal size read as the whole does."""
    task = make_task(metrics={"m": metric})
    state = ft.init_state(task, PARAMS)
    whole = ft.eval_step(task, state, {"x": X, "y": Y})
    a = ft.eval_step(task, state, {"x": X[:2], "y": Y[:2]})
    b = ft.eval_step(task, state, {"x": X[2:], "y": Y[2:]})
    merged = ft.merge_metrics(task, a, b)
    np.testing.assert_array_equal(ft.compute_metrics(task, merged)["m"], ft.compute_metrics(task, whole)["m"])


@ft.metrics.metric
def average_of_averages():
    """A specimen: its accumulator is already divided, so merging is not associative."""

    def update(acc, outputs, weight=None):
        return jnp.mean(outputs["prediction"])

    return (lambda: jnp.float32(0)), update, (lambda a, b: (a + b) / 2), (lambda acc: acc)


def test_split_check_accepts_and_rejects():
    assert_split_invariant(ft.metrics.mean("prediction"))
    with pytest.raises(AssertionError):
        assert_split_invariant(average_of_averages())


# --- nothing to weigh ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2])
def test_zero_weight_batch_changes_nothing(n):
    tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(0.1, weight_decay=0.1))
    task = make_task(tx=tx, microbatches=n)
    state, _ = ft.train_step(
        task, ft.init_state(task, PARAMS), {"x": X, "y": Y}, W
    )  # moments that would move
    before = jax.tree.map(np.array, (state.params, state.opt_state, state.updates))
    nothing = {"x": np.full_like(X, np.nan), "y": np.full_like(Y, np.nan)}
    state, metrics = ft.train_step(task, state, nothing, np.zeros(8, np.float32))
    after = jax.tree.map(np.asarray, (state.params, state.opt_state, state.updates))
    for (path, a), b in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after)):
        np.testing.assert_array_equal(a, b, err_msg=str(path))
    assert int(state.step) == 2
    values = ft.compute_metrics(task, metrics)
    assert float(values["loss"]) == 0
    assert np.isnan(values["accuracy"])
    assert np.all(np.isnan(values["confusion"]) | (np.asarray(values["confusion"]) == 0))
    assert np.isfinite(values["grad_norm"])


def test_zero_weight_batch_gives_zero_gradients_and_merges_as_nothing():
    task = make_task()
    state = ft.init_state(task, PARAMS)
    zero = np.zeros(8, np.float32)
    loss, grads = ft.compute_gradients(task, state, {"x": X * np.nan, "y": Y}, zero)
    assert float(loss) == 0
    np.testing.assert_array_equal(grads["w"], np.zeros(3))
    nothing = ft.eval_step(task, state, {"x": X * np.nan, "y": Y}, zero)
    whole = ft.eval_step(task, state, {"x": X, "y": Y}, W)
    a = ft.compute_metrics(task, ft.merge_metrics(task, nothing, whole))
    b = ft.compute_metrics(task, whole)
    for name in b:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# --- law 2: avals stay -----------------------------------------------------------------------------------------


def assert_same_avals(a: Any, b: Any) -> None:
    """Equal structure, shape, dtype, weak type and sharding, leaf by leaf."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b)):
        name = jax.tree_util.keystr(path)
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type), name
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim), name


def avals(state):
    def one(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.aval.weak_type, sharding=x.sharding)

    return jax.tree.map(one, state)


LAW_2 = {
    "sgd": (ft.optimizers.sgd(0.5), {}),
    "chain": (
        ft.chain(
            ft.clip_by_norm(1.0),
            ft.clip_by_value(0.5),
            ft.nesterov(0.9),
            ft.add_weight_decay(0.01),
            optax.scale_by_learning_rate(0.1),
        ),
        {},
    ),
    "multisteps": (ft.MultiSteps(ft.optimizers.adamw(ft.schedules.cosine(0.1, 10)), 3), {"microbatches": 2}),
}


def assert_law2(tx, **kwargs) -> None:
    task = make_task(tx=tx, **kwargs)
    params = {
        "w": jnp.asarray(PARAMS["w"], jnp.bfloat16),
        "b": np.float32(0.25),
        "n": np.int32(3),
        "none": None,
    }

    def loss_fn(p, batch, ctx):
        return linear_loss({"w": p["w"].astype(jnp.float32), "b": p["b"]}, batch, ctx)

    task = ft.Task(loss_fn, task.tx, metrics=METRICS, microbatches=task.microbatches)
    state = ft.init_state(task, params)
    before = avals(state)
    key = np.array(jax.random.key_data(state.key))
    for _ in range(2):
        state, _ = ft.train_step(task, state, {"x": X, "y": Y}, W)
        assert_same_avals(before, avals(state))
    np.testing.assert_array_equal(key, jax.random.key_data(state.key))  # law 1: the root key never changes
    assert int(state.params["n"]) == 3
    assert state.params["none"] is None
    assert state.step.dtype == state.updates.dtype == jnp.int32


@pytest.mark.parametrize("name", LAW_2)
def test_avals_stay(name):
    tx, kwargs = LAW_2[name]
    assert_law2(tx, **kwargs)


def drifting_dtype():
    """A specimen: a count that starts as an integer and goes on as a float."""
    return optax.GradientTransformation(
        lambda params: jnp.zeros((), jnp.int32),
        lambda grads, state, params=None: (grads, state.astype(jnp.float32) + 1),
    )


def growing_state():
    """A specimen: a dict that is empty until the first update."""
    return optax.GradientTransformation(
        lambda params: {}, lambda grads, state, params=None: (grads, {"norm": jnp.float32(1)})
    )


@pytest.mark.parametrize("specimen", [drifting_dtype, growing_state])
def test_law_2_check_rejects(specimen):
    tx, params = specimen(), jax.tree.map(jnp.asarray, PARAMS)
    before = tx.init(params)
    with pytest.raises(AssertionError):
        assert_same_avals(before, tx.update(params, before, params)[1])


def test_a_state_that_grows_is_an_error_that_says_where():
    task = make_task(tx=optax.chain(growing_state(), optax.scale(-0.5)))
    with pytest.raises(ft.ConfigError, match="norm"):
        ft.train_step(task, ft.init_state(task, PARAMS), {"x": X, "y": Y})


def test_a_foreign_state_that_drifts_keeps_its_type():
    task = make_task(tx=optax.chain(drifting_dtype(), optax.scale(-0.5)))
    state = ft.init_state(task, PARAMS)
    before = avals(state)
    for _ in range(2):
        state, _ = ft.train_step(task, state, {"x": X, "y": Y})
        assert_same_avals(before, avals(state))
    assert int(state.opt_state[0]) == 2


# --- law 1: values, not identities -----------------------------------------------------------------------------


class Counting:
    """A loss function that counts how often it is traced."""

    def __init__(self):
        self.traces = 0

    def __call__(self, params, batch, ctx):
        self.traces += 1
        return linear_loss(params, batch, ctx)


def equal_task(loss_fn):
    return ft.Task(
        loss_fn,
        ft.chain(
            ft.clip_by_norm(1.0), ft.optimizers.adamw(ft.schedules.warmup(ft.schedules.cosine(1e-2, 100), 10))
        ),
        metrics={"accuracy": ft.metrics.accuracy(), "confusion": ft.metrics.confusion_matrix(2)},
        microbatches=2,
    )


def test_equal_tasks_do_not_retrace():
    loss_fn = Counting()
    a, b = equal_task(loss_fn), equal_task(loss_fn)
    assert a == b
    assert hash(a) == hash(b)
    batch = {"x": X, "y": Y}
    state = ft.init_state(a, PARAMS)
    state, metrics = ft.train_step(a, state, batch, W)
    ft.compute_metrics(a, ft.eval_step(a, state, batch, W))
    traces = loss_fn.traces
    for _ in range(3):
        rebuilt = equal_task(loss_fn)
        state, metrics = ft.train_step(rebuilt, state, batch, np.ones(8, np.float32))
        ft.compute_metrics(rebuilt, metrics)
        ft.eval_step(rebuilt, state, batch, W)
    assert loss_fn.traces == traces
    # The counter counts: another task does trace.
    other = ft.Task(loss_fn, ft.optimizers.sgd(0.25))
    assert other != a
    ft.train_step(other, ft.init_state(other, PARAMS), batch, W)
    assert loss_fn.traces > traces


def test_each_difference_makes_another_task():
    base = make_task()
    different = [
        make_task(loss_fn=lambda p, b, c: linear_loss(p, b, c)),
        make_task(tx=ft.optimizers.sgd(0.25)),
        make_task(metrics={"accuracy": ft.metrics.accuracy()}),
        make_task(metrics={**METRICS, "accuracy": ft.metrics.accuracy(top_k=2)}),
        make_task(microbatches=2),
        make_task(policy="bf16"),
        make_task(axis_name="data"),
    ]
    assert make_task() == base
    assert all(task != base for task in different)


def test_task_is_frozen_and_has_the_loss():
    task = make_task()
    assert "loss" in task.metrics
    with pytest.raises(AttributeError):
        task.microbatches = 2
    with pytest.raises(TypeError):
        task.metrics["more"] = ft.metrics.mean("prediction")


# --- counters, keys, context -----------------------------------------------------------------------------------


def test_updates_count_closed_windows_and_flush_closes_one():
    rate, weights = 0.25, [1.0, 2.0, 1.0]
    task = make_task(tx=ft.MultiSteps(ft.optimizers.sgd(rate), 4))
    state = ft.init_state(task, PARAMS)
    total, gradient = 0.0, np.zeros(3)
    for i, w in enumerate(weights):
        x, y, weight = X[2 * i : 2 * i + 2], Y[2 * i : 2 * i + 2], np.full(2, w, np.float32)
        gradient += 2 * w * (oracle(x, y, weight, rate=-1.0).w - PARAMS["w"])
        total += 2 * w
        state, _ = ft.train_step(task, state, {"x": x, "y": y}, weight)
        assert (int(state.step), int(state.updates)) == (i + 1, 0)
        np.testing.assert_array_equal(state.params["w"], PARAMS["w"])
    closed = ft.flush(task, state)
    assert (int(closed.step), int(closed.updates)) == (3, 1)
    np.testing.assert_allclose(closed.params["w"], PARAMS["w"] - rate * gradient / total, rtol=1e-6)
    again = ft.flush(task, closed)  # nothing is open now
    jax.tree.map(np.testing.assert_array_equal, again.params, closed.params)
    assert int(again.updates) == 1
    # `state` was not consumed by flush: the fourth step closes the window.
    state, _ = ft.train_step(task, state, {"x": X[6:], "y": Y[6:]}, np.ones(2, np.float32))
    assert (int(state.step), int(state.updates)) == (4, 1)
    gradient += 2 * (oracle(X[6:], Y[6:], np.ones(2), rate=-1.0).w - PARAMS["w"])
    np.testing.assert_allclose(state.params["w"], PARAMS["w"] - rate * gradient / (total + 2), rtol=1e-6)


def noisy_loss(params, batch, ctx):
    noise = jax.random.normal(ctx.key, batch.shape)
    return ft.Loss(batch * params["w"]).with_outputs(
        noise=noise,
        at=jnp.broadcast_to(ctx.step.astype(jnp.float32), batch.shape),
        train=jnp.full(batch.shape, 1.0 if ctx.train is True else 0.0, jnp.float32),
        other=jax.random.normal(ctx.stream("dropout"), batch.shape),
    )


NOISY = ft.Task(
    noisy_loss,
    ft.optimizers.sgd(0.5),
    metrics={k: ft.metrics.mean(k) for k in ("noise", "at", "train", "other")},
)


def test_keys_are_a_function_of_seed_and_step():
    batch = np.ones(4, np.float32)

    def run(seed, n):
        state, seen = ft.init_state(NOISY, {"w": np.float32(1)}, key=seed), []
        for _ in range(n):
            state, metrics = ft.train_step(NOISY, state, batch)
            values = ft.compute_metrics(NOISY, metrics)
            seen.append((float(values["noise"]), float(values["other"])))
            assert float(values["train"]) == 1
            assert float(values["at"]) == int(state.step) - 1
        return state, seen

    state, first = run(0, 3)
    assert len({v for pair in first for v in pair}) == 6  # each step and each stream its own
    assert run(0, 3)[1] == first
    assert run(1, 1)[1] != first[:1]
    # No replay: a fresh state put to step 2 sees what the run saw there.
    late = ft.init_state(NOISY, {"w": np.float32(1)}, key=0).replace(step=jnp.asarray(2, jnp.int32))
    late, metrics = ft.train_step(NOISY, late, batch)
    assert float(ft.compute_metrics(NOISY, metrics)["noise"]) == first[2][0]
    # Evaluation: a constant key, ctx.train False.
    values = [ft.compute_metrics(NOISY, ft.eval_step(NOISY, s, batch)) for s in (state, run(0, 1)[0])]
    assert float(values[0]["noise"]) == float(values[1]["noise"])
    assert float(values[0]["train"]) == 0


def test_train_steps_equals_single_steps_bitwise():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(4, 8, 3)).astype(np.float32), rng.normal(size=(4, 8)).astype(np.float32)
    weight = rng.integers(0, 3, (4, 8)).astype(np.float32)
    tx = ft.chain(ft.clip_by_norm(0.5), ft.optimizers.sgd(ft.schedules.linear(0.5, 0.0, 8), momentum=0.9))
    task = make_task(tx=tx)
    state, joined = ft.init_state(task, PARAMS), None
    norms, rates = [], []
    for i in range(4):
        state, metrics = ft.train_step(task, state, {"x": x[i], "y": y[i]}, weight[i])
        values = ft.compute_metrics(task, metrics)
        norms.append(float(values["grad_norm"]))
        rates.append(float(values["learning_rate"]))
        joined = metrics if joined is None else ft.merge_metrics(task, joined, metrics)
    many, metrics = ft.train_steps(task, ft.init_state(task, PARAMS), {"x": x, "y": y}, weight)
    assert (int(many.step), int(many.updates)) == (4, 4)
    jax.tree.map(
        np.testing.assert_array_equal, (many.params, many.opt_state), (state.params, state.opt_state)
    )
    got, want = ft.compute_metrics(task, metrics), ft.compute_metrics(task, joined)
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, err_msg=name)
    # Recorded values: the last one, and the largest norm beside it.
    assert norms[-1] < max(norms)
    assert float(got["grad_norm"]) == norms[-1]
    assert float(got["grad_norm_max"]) == max(norms)
    assert float(got["learning_rate"]) == rates[-1]
    np.testing.assert_allclose(rates, [0.5 * (1 - t / 8) for t in range(4)], rtol=1e-6)


def test_recorded_values_equal_numpy():
    schedule = ft.schedules.linear(0.5, 0.25, 2)
    task = make_task(tx=ft.chain(ft.clip_by_norm(1.0), ft.optimizers.sgd(schedule)))
    want = oracle(X, Y, W, rate=-1.0)
    norm = np.sqrt(np.sum((want.w - PARAMS["w"]) ** 2) + (want.b - PARAMS["b"]) ** 2)
    state, metrics = ft.train_step(task, ft.init_state(task, PARAMS), {"x": X, "y": Y}, W)
    values = ft.compute_metrics(task, metrics)
    assert norm > 1
    np.testing.assert_allclose(values["grad_norm"], norm, rtol=1e-6)  # before clipping
    np.testing.assert_allclose(values["clip_factor"], 1 / norm, rtol=1e-6)
    assert float(values["learning_rate"]) == 0.5
    # Later steps win, whichever way round they are merged.
    _, later = ft.train_step(task, state, {"x": X, "y": Y}, W)
    for a, b in ((metrics, later), (later, metrics)):
        merged = ft.compute_metrics(task, ft.merge_metrics(task, a, b))
        assert float(merged["learning_rate"]) == 0.375
    assert "learning_rate" not in ft.compute_metrics(
        task, ft.eval_step(task, ft.init_state(task, PARAMS), {"x": X, "y": Y})
    )


class Seen(NamedTuple):
    value: jax.Array
    weight: jax.Array
    again: jax.Array


def test_extra_arguments_reach_a_foreign_transform():
    def update(grads, state, params=None, *, value, weight, value_and_grad_fn, **extra):
        again, _ = value_and_grad_fn(params)
        like = lambda x: jnp.asarray(x, jnp.float32).reshape(())
        return jax.tree.map(lambda g: -0.5 * g, grads), Seen(like(value), like(weight), like(again))

    spy = optax.GradientTransformationExtraArgs(lambda params: Seen(*(jnp.zeros(()),) * 3), update)
    task = make_task(tx=spy)
    state, _ = ft.train_step(task, ft.init_state(task, PARAMS), {"x": X, "y": Y}, W)
    want = oracle(X, Y, W)
    seen = state.opt_state
    assert (float(seen.value), float(seen.weight), float(seen.again)) == (want.loss, W.sum(), want.loss)
    np.testing.assert_array_equal(state.params["w"], want.w.astype(np.float32))


def test_model_state_threads_through_microbatches_in_order():
    def loss_fn(params, batch, ctx):
        old = ctx.model_state["count"]
        new = {"count": old + 1, "log": old + 2 * ctx.model_state["log"]}
        loss = ft.Loss(batch * params["w"])
        return loss.with_state(new) if ctx.train else loss

    task = ft.Task(loss_fn, ft.optimizers.sgd(0.5), microbatches=3)
    state = ft.init_state(
        task, {"w": np.float32(1)}, model_state={"count": np.float32(1), "log": np.float32(0)}
    )
    state, _ = ft.train_step(task, state, np.arange(1, 7, dtype=np.float32))
    # Three parts, one after the other: log = 1, then 2 + 2 * 1, then 3 + 2 * 4.
    assert (float(state.model_state["count"]), float(state.model_state["log"])) == (4, 11)


def test_a_loss_without_state_keeps_the_model_state():
    task = ft.Task(lambda p, b, ctx: b * p["w"] + ctx.model_state, ft.optimizers.sgd(0.5))
    state = ft.init_state(task, {"w": np.float32(1)}, model_state=np.float32(3))
    with pytest.warns(
        UserWarning, match="returns no model state in training"
    ):  # statistics that nobody updates
        state, metrics = ft.train_step(task, state, np.ones(2, np.float32))
    assert float(state.model_state) == 3
    # Nor does a batch that weighs nothing leave a trace in it.
    counting = ft.Task(lambda p, b, ctx: ft.Loss(b * p["w"], model_state=ctx.model_state + 1), task.tx)
    state = ft.init_state(counting, {"w": np.float32(1)}, model_state=np.float32(3))
    for weight, want in ((np.ones(2), 4), (np.zeros(2), 4), (np.ones(2), 5)):
        state, _ = ft.train_step(counting, state, np.ones(2, np.float32), weight.astype(np.float32))
        assert float(state.model_state) == want
    assert float(ft.compute_metrics(task, metrics)["loss"]) == 4


def test_policy_computes_low_and_keeps_high():
    seen = {}

    def loss_fn(params, batch, ctx):
        seen["dtype"] = params["w"].dtype
        return ft.losses.mse(
            batch["x"].astype(params["w"].dtype) @ params["w"] + params["b"],
            batch["y"].astype(params["w"].dtype),
        )

    task = ft.Task(loss_fn, ft.optimizers.sgd(0.5), policy="bf16")
    state, metrics = ft.train_step(task, ft.init_state(task, PARAMS), {"x": X, "y": Y}, W)
    assert seen["dtype"] == jnp.bfloat16
    assert state.params["w"].dtype == jnp.float32
    np.testing.assert_allclose(state.params["w"], oracle(X, Y, W).w, rtol=0.02, atol=0.02)
    assert ft.compute_metrics(task, metrics)["loss"].dtype == jnp.float32


# --- donation --------------------------------------------------------------------------------------------------


def test_a_consumed_state_names_the_step():
    task = make_task()
    batch = {"x": X, "y": Y}
    first = ft.init_state(task, PARAMS)
    second, _ = ft.train_step(task, first, batch, W)
    third, _ = ft.train_step(task, second, batch, W)
    jax.block_until_ready(third)
    for verb in (ft.train_step, ft.eval_step, ft.compute_gradients):
        with pytest.raises(ft.ConsumedStateError, match=r"step 0") as e0:
            verb(task, first, batch, W)
        with pytest.raises(ft.ConsumedStateError, match=r"step 1") as e1:
            verb(task, second, batch, W)
        assert str(e0.value) != str(e1.value)
    with pytest.raises(ft.ConsumedStateError):
        ft.flush(task, first)
    with pytest.raises(ft.ConsumedStateError):
        ft.fit(task, first, batch, epochs=1, batch_size=8, progress=False)
    ft.eval_step(task, third, batch, W)  # which donates nothing
    ft.train_step(task, third, batch, W)


# --- compute_gradients by differences ---------------------------------------------------------------------------


def test_numerical_gradients_agree_in_float64():
    def loss_fn(params, batch, ctx):
        h = jnp.tanh(batch["x"] @ params["k"] + params["b"][None])
        return ft.losses.mse(h @ params["v"], batch["y"])

    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        task = ft.Task(
            loss_fn,
            ft.optimizers.sgd(0.5),
            policy=ft.Policy(params="float64", compute="float64", output="float64"),
        )
        params = {
            "k": rng.normal(size=(3, 4)),
            "b": rng.normal(size=4),
            "v": rng.normal(size=4),
            "n": np.int32(2),
        }
        state = ft.init_state(task, params)
        batch = {"x": X.astype(np.float64), "y": Y.astype(np.float64)}
        results = {
            m: ft.compute_gradients(task, state, batch, W, method=m)
            for m in ("autodiff", "numerical", "numerical_batch")
        }
        # The analytic gradient with respect to v, by hand.
        h = np.tanh(batch["x"] @ params["k"] + params["b"])
        r = h @ params["v"] - batch["y"]
        want = (W[:, None] * 2 * r[:, None] * h).sum(0) / W.sum()
        for loss, grads in results.values():
            np.testing.assert_allclose(loss, (W * r**2).sum() / W.sum(), rtol=1e-6)
            np.testing.assert_allclose(grads["v"], want, rtol=1e-6, atol=1e-8)
            assert grads["n"] is None
        for m in ("numerical", "numerical_batch"):
            for name in ("k", "b", "v"):
                np.testing.assert_allclose(
                    results[m][1][name], results["autodiff"][1][name], rtol=1e-6, atol=1e-8
                )


@pytest.mark.parametrize("method", ["numerical", "numerical_batch"])
def test_numerical_gradients_in_float32_warn(method):
    task = make_task()
    state = ft.init_state(task, PARAMS)
    with pytest.warns(UserWarning, match="float32"):
        loss, grads = ft.compute_gradients(task, state, {"x": X, "y": Y}, W, method=method, epsilon=0.25)
    want = oracle(X, Y, W, rate=-1.0)
    np.testing.assert_allclose(loss, want.loss, rtol=1e-6)
    np.testing.assert_allclose(
        grads["w"], want.w - PARAMS["w"], rtol=1e-5
    )  # exact for a quadratic, but for rounding
    assert grads["w"].dtype == jnp.float32


# --- nesting ---------------------------------------------------------------------------------------------------


def many(k):
    rng = np.random.default_rng(7)
    values = (
        rng.integers(-4, 5, (k, 8, 3)).astype(np.float32) / 2,
        rng.integers(-4, 5, (k, 8)).astype(np.float32) / 4,
    )
    return {"x": values[0], "y": values[1]}


def test_nested_in_jit_scan_and_vmap():
    task = make_task(tx=ft.optimizers.sgd(0.125))
    batches, weight = many(3), np.tile(W, (3, 1))
    state, losses = ft.init_state(task, PARAMS), []
    for i in range(3):
        state, metrics = ft.train_step(task, state, jax.tree.map(lambda a: a[i], batches), weight[i])
        losses.append(float(ft.compute_metrics(task, metrics)["loss"]))

    def body(state, xs):
        batch, weight = xs
        state, metrics = ft.train_step(task, state, batch, weight)
        return state, ft.compute_metrics(task, metrics)["loss"]

    start = ft.init_state(task, PARAMS)
    scanned, scanned_losses = jax.jit(partial(jax.lax.scan, body))(start, (batches, weight))
    np.testing.assert_allclose(scanned.params["w"], state.params["w"], rtol=1e-6)
    np.testing.assert_allclose(scanned_losses, losses, rtol=1e-6)
    assert int(scanned.step) == 3
    ft.eval_step(task, start, {"x": X, "y": Y}, W)  # the outer jit donated nothing: `start` is alive

    # A population: three states, each on its own batch.
    one = [
        ft.train_step(task, ft.init_state(task, PARAMS, key=k), jax.tree.map(lambda a: a[k], batches), W)[0]
        for k in range(3)
    ]
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(ft.init_state(task, PARAMS, key=k) for k in range(3))
    )
    mapped, metrics = jax.vmap(lambda s, b: ft.train_step(task, s, b, W))(stacked, batches)
    np.testing.assert_allclose(mapped.params["w"], np.stack([s.params["w"] for s in one]), rtol=1e-6)
    assert mapped.step.tolist() == [1, 1, 1]
    values = jax.vmap(partial(ft.compute_metrics, task))(metrics)
    for k in range(3):
        want = oracle(batches["x"][k], batches["y"][k], W)
        np.testing.assert_allclose(values["loss"][k], want.loss, rtol=1e-6)
        np.testing.assert_array_equal(values["confusion"][k], want.confusion)


def test_partial_is_a_scan_body():
    task = make_task()
    batches = many(2)
    state, metrics = jax.lax.scan(partial(ft.train_step, task), ft.init_state(task, PARAMS), batches)
    assert int(state.step) == 2
    losses = jax.vmap(partial(ft.compute_metrics, task))(metrics)["loss"]
    np.testing.assert_allclose(
        losses[0], oracle(batches["x"][0], batches["y"][0], np.ones(8)).loss, rtol=1e-6
    )


def shards(task, n=4, weight=W):
    """One step inside shard_map over n devices: parameters and metrics of each shard, stacked."""
    mesh = ft.sharding.mesh(jax.devices()[:n], data=n)

    def body(state, batch, weight):
        state, metrics = ft.train_step(task, state, batch, weight)
        evaluated = ft.eval_step(task, state, batch, weight)
        out = (state.params, ft.compute_metrics(task, metrics), ft.compute_metrics(task, evaluated))
        return jax.tree.map(lambda a: a[None], out)

    f = jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P("data"))
    return jax.jit(f)(ft.init_state(task, PARAMS), {"x": X, "y": Y}, weight)


@pytest.mark.parametrize("n", [1, 2])
def test_shard_map_with_axis_name_is_the_whole_batch(n):
    task = make_task(axis_name="data", microbatches=n)
    want = oracle(X, Y, W)
    params, values, _ = shards(task)
    for k in range(4):
        got = Answer(
            values["loss"][k], params["w"][k], params["b"][k],
            *(values[m][k] for m in ("accuracy", "prediction", "confusion")),
        )  # fmt: skip
        want32 = want._replace(accuracy=np.float32(want.accuracy))
        assert_equal(got, want32)


def test_shard_map_without_axis_name_is_independent():
    weight = np.array([1, 1, 2, 2, 1, 3, 0, 0], np.float32)  # the last shard has nothing at all
    params, values, _ = shards(make_task(), weight=weight)
    for k in range(3):
        rows = slice(2 * k, 2 * k + 2)
        want = oracle(X[rows], Y[rows], weight[rows])
        np.testing.assert_array_equal(params["w"][k], want.w.astype(np.float32))
        np.testing.assert_allclose(values["loss"][k], want.loss, rtol=1e-7)
        np.testing.assert_array_equal(values["confusion"][k], want.confusion)
    np.testing.assert_array_equal(params["w"][3], PARAMS["w"])
    assert float(values["loss"][3]) == 0
    assert not np.array_equal(params["w"][0], params["w"][1])


def test_shard_map_with_axis_name_returns_a_replicated_state():
    # out_specs of P() make shard_map itself prove that nothing varies over the axis.
    task = make_task(axis_name="data", tx=ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(0.1)))
    mesh = ft.sharding.mesh(jax.devices()[:4], data=4)
    f = jax.shard_map(
        partial(ft.train_step, task), mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P()
    )
    state, metrics = jax.jit(f)(ft.init_state(task, PARAMS), {"x": X, "y": Y}, W)
    plain = ft.Task(task.loss_fn, task.tx, metrics=METRICS)
    alone, alone_metrics = ft.train_step(plain, ft.init_state(plain, PARAMS), {"x": X, "y": Y}, W)
    np.testing.assert_allclose(state.params["w"], alone.params["w"], rtol=1e-6)
    a, b = ft.compute_metrics(task, metrics), ft.compute_metrics(plain, alone_metrics)
    assert a.keys() == b.keys()
    np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-6)
