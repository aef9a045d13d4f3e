"""The laws, over a registry: a new transform, metric or schedule is one new row here.

Below each registry stand broken specimens: things that break one law each, which the same check must refuse,
with the right words. A check that lets its specimen pass proves nothing about the rows above it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain import testing, tree
from fntrain.testing import LawError

RNG = np.random.default_rng(0)

TRANSFORMS = {
    "clip_by_norm": lambda: ft.clip_by_norm(1.0),
    "clip_by_value": lambda: ft.clip_by_value(0.5),
    "add_weight_decay": lambda: ft.add_weight_decay(1e-2),
    "add_weight_decay masked": lambda: ft.add_weight_decay(1e-2, mask="kernel"),
    "add_weight_decay scheduled": lambda: ft.add_weight_decay(ft.schedules.cosine(1e-2, 10)),
    "momentum": lambda: ft.momentum(0.9),
    "momentum dampened": lambda: ft.momentum(0.9, dampening=0.5),
    "nesterov": lambda: ft.nesterov(0.9),
    "scale_by_adam": lambda: ft.transforms.scale_by_adam(),
    "scale_by_learning_rate": lambda: ft.transforms.scale_by_learning_rate(ft.schedules.cosine(0.1, 10)),
    "MultiSteps": lambda: ft.MultiSteps(ft.optimizers.adamw(1e-3), 2),
    "chain": lambda: ft.chain(ft.clip_by_norm(1.0), ft.nesterov(0.9), decay=ft.add_weight_decay(1e-4)),
    "chain around MultiSteps": lambda: ft.chain(
        ft.clip_by_value(0.1), ft.MultiSteps(ft.optimizers.sgd(0.1), 3)
    ),
    "sgd": lambda: ft.optimizers.sgd(0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
    "adam": lambda: ft.optimizers.adam(1e-3),
    "adamw": lambda: ft.optimizers.adamw(1e-3),
    "rmsprop": lambda: ft.optimizers.rmsprop(1e-3, momentum=0.9, centered=True),
    "lion": lambda: ft.optimizers.lion(1e-4),
    "clip_by_norm scheduled": lambda: ft.clip_by_norm(ft.schedules.linear(2.0, 1.0, 10)),
    "clip_by_value scheduled": lambda: ft.clip_by_value(ft.schedules.linear(2.0, 1.0, 10)),
    "clip_by_leaf_norm": lambda: ft.clip_by_leaf_norm(1.0),
    "record_norms": lambda: ft.record_norms(),
    "momentum scheduled": lambda: ft.momentum(ft.schedules.linear(0.5, 0.9, 10)),
    "scale_by_adam scheduled": lambda: ft.scale_by_adam(b2=ft.schedules.linear(0.9, 0.99, 10)),
    "scale_by_rms": lambda: ft.scale_by_rms(),
    "scale_by_lion": lambda: ft.scale_by_lion(),
    "adafactor": lambda: ft.optimizers.adafactor(1e-3, min_dim_size_to_factor=2),
    "skip_nonfinite": lambda: ft.skip_nonfinite(ft.optimizers.adamw(1e-3)),
    "skip_nonfinite around MultiSteps": lambda: ft.skip_nonfinite(ft.MultiSteps(ft.optimizers.sgd(0.1), 2)),
    "skip_spikes": lambda: ft.skip_spikes(ft.optimizers.adamw(1e-3), 10.0, 4),
    "dynamic_loss_scale": lambda: ft.dynamic_loss_scale(ft.optimizers.adamw(1e-3)),
    "dynamic_loss_scale around MultiSteps": lambda: ft.dynamic_loss_scale(
        ft.MultiSteps(ft.optimizers.sgd(0.1), 2)
    ),
    "ema": lambda: ft.chain(ft.optimizers.sgd(0.1), ft.ema(0.9)),
    "lookahead": lambda: ft.lookahead(ft.optimizers.adamw(1e-3), 2),
    "sam": lambda: ft.sam(ft.optimizers.sgd(0.1)),
    "by_path": lambda: ft.by_path({"kernel": ft.optimizers.adamw(1e-3), ".*": ft.optimizers.sgd(0.1)}),
    "freeze": lambda: ft.freeze(ft.chain(ft.clip_by_norm(1.0), ft.optimizers.sgd(0.1, 0.9)), "bias"),
    "with_hyperparams": lambda: ft.with_hyperparams(ft.optimizers.adamw, learning_rate=1e-3),
    "reduce_on_plateau": lambda: ft.reduce_on_plateau(0.5, 2, accumulation_size=2),
}

# What train_step passes to every transform that takes extra arguments.
EXTRA = {"value": jnp.float32(1.0), "value_and_grad_fn": lambda params: (jnp.float32(1.0), params)}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(name):
    testing.check_transform(TRANSFORMS[name], extra=EXTRA)


@pytest.mark.parametrize("make", [lambda: ft.transforms.plateau(patience=3), lambda: ft.stop_on_plateau(3)])
def test_controllers_compare_by_value(make):
    testing.check_value(make)


def _transform(update, init=lambda params: jnp.zeros((), jnp.int32)):
    made = ft.transforms.transform(lambda: (init, update))()
    return lambda: made


def _applying(apply):
    scaled = lambda g, s, p=None, **k: (jax.tree.map(lambda x: -0.1 * x, g), s)
    made = ft.Transform(lambda p: jnp.zeros((), jnp.int32), scaled, apply)
    return lambda: made


def _counts_in_place(updates, state, params=None, **extra):
    state["n"] = state["n"] + 1
    return updates, state


CALLS = []


def _remembers_its_calls(updates, state, params=None, **extra):
    CALLS.append(1)
    # The first two calls, traced and eager, agree: nobody would notice but by a third.
    return jax.tree.map(lambda g: g * float(min(len(CALLS), 3) // 3 + 1), updates), state


BROKEN_TRANSFORMS = {
    "equal calls make equal values": lambda: ft.Transform(lambda p: (), lambda u, s, p=None, **k: (u, s)),
    "init and update agree": _transform(lambda u, s, p=None, **k: (u, s.astype(jnp.float32))),
    "updates have the gradients' types": _transform(
        lambda u, s, p=None, **k: (jax.tree.map(lambda g: g.astype(jnp.float32), u), s)
    ),
    "floating-point state is float32": _transform(
        lambda u, s, p=None, **k: (u, s), lambda p: jax.tree.map(jnp.zeros_like, p)
    ),
    "no state aliases the parameters": _transform(lambda u, s, p=None, **k: (u, s), lambda p: p),
    "zero gradients give finite updates": _transform(
        lambda u, s, p=None, **k: (jax.tree.map(lambda g: g / jnp.max(jnp.abs(g)), u), s)
    ),
    "state is arrays": _transform(lambda u, s, p=None, **k: (u, s), lambda p: {"rate": 0.5}),
    "update leaves the state it is given as it is": _transform(
        _counts_in_place, lambda p: {"n": jnp.zeros(())}
    ),
    "equal calls of update give equal results": _transform(_remembers_its_calls),
    "apply agrees with update": _applying(lambda g, s, p, **k: (jax.tree.map(lambda x: x + 1, p), s, True)),
    "a batch of weight zero changes nothing": _applying(
        lambda g, s, p, **k: (tree.add(p, jax.tree.map(lambda x: -0.1 * x, g)), s, True)
    ),
}


@pytest.mark.parametrize("law", BROKEN_TRANSFORMS)
def test_a_broken_transform_is_refused(law, monkeypatch):
    if law != "equal calls make equal values":  # pickling a function made in a test is not what is tested
        monkeypatch.setattr(testing, "check_value", lambda make: None)
    with pytest.raises(LawError, match=law):
        testing.check_transform(BROKEN_TRANSFORMS[law])


LOGITS = RNG.normal(size=(13, 4)).astype(np.float32)
OUTPUTS = {
    "logits": LOGITS,
    "labels": np.where(RNG.random(13) < 0.5, LOGITS.argmax(1), RNG.integers(0, 4, 13)).astype(np.int32),
    "x": (RNG.normal(size=13) + 3).astype(np.float32),
    "t": (RNG.normal(size=13) + 3).astype(np.float32),
    "yes": np.arange(13) % 3 == 0,
    "two": LOGITS[:, :2],
    "each": np.stack([np.arange(13) % 3 == 0, np.arange(13) % 2 == 0], 1),
}
METRICS = {
    "mean": lambda: ft.metrics.mean("x"),
    "accuracy": lambda: ft.metrics.accuracy(),
    "accuracy top 2": lambda: ft.metrics.accuracy(top_k=2),
    "confusion_matrix": lambda: ft.metrics.confusion_matrix(4),
    "confusion_matrix of rows": lambda: ft.metrics.confusion_matrix(4, normalize="true"),
    "collect": lambda: ft.metrics.collect(a=ft.metrics.accuracy(), m=ft.metrics.mean("x")),
    "per_class_accuracy": lambda: ft.metrics.per_class_accuracy(4),
    "precision": lambda: ft.metrics.precision(4),
    "recall weighted": lambda: ft.metrics.recall(4, average="weighted"),
    "f1 of each": lambda: ft.metrics.f1(4, average=None),
    "perplexity": lambda: ft.metrics.perplexity(),
    "roc_auc": lambda: ft.metrics.roc_auc(logits="x", labels="yes"),
    "average_precision": lambda: ft.metrics.average_precision(logits="x", labels="yes"),
    "mean_average_precision": lambda: ft.metrics.mean_average_precision(
        2, multilabel=True, logits="two", labels="each"
    ),
    "binary_stats": lambda: ft.metrics.binary_stats(logits="x", labels="yes"),
    "mse": lambda: ft.metrics.mse(predictions="x", targets="t"),
    "rmse": lambda: ft.metrics.rmse(predictions="x", targets="t"),
    "mae": lambda: ft.metrics.mae(predictions="x", targets="t"),
    "r2": lambda: ft.metrics.r2(predictions="x", targets="t"),
}


@pytest.mark.parametrize("weight", [None, RNG.integers(0, 2, 13)], ids=["unweighted", "masked"])
@pytest.mark.parametrize("name", METRICS)
def test_metric(name, weight):
    testing.check_metric(METRICS[name], OUTPUTS, weight)


def _mean(**replaced):
    m = ft.metrics.mean("x")
    parts = dict(empty=m.empty, update=m.update, merge=m.merge, compute=m.compute)
    made = ft.metrics.Metric(**{**parts, **replaced})
    return lambda: made


def _mean_of_means():
    def update(acc, outputs, weight=None):
        value = jnp.mean(outputs["x"])
        return acc[0] + value, acc[1] + 1

    return _mean(
        empty=lambda: (jnp.float32(0), jnp.float32(0)),
        update=update,
        merge=lambda a, b: (a[0] + b[0], a[1] + b[1]),
        compute=lambda acc: acc[0] / acc[1],
    )


def _leaky(acc, outputs, weight):
    return acc[0] + jnp.sum(outputs["x"] * weight), acc[1] + jnp.sum(weight)


BROKEN_METRICS = {
    "a split does not matter": _mean_of_means(),
    "empty is the identity": _mean(empty=lambda: jax.tree.map(lambda x: x + 1, ft.metrics.mean("x").empty())),
    "the accumulator keeps its types": _mean(
        empty=lambda: jax.tree.map(lambda x: 0, ft.metrics.mean("x").empty())
    ),
    "empty is the identity of merge, on the left": _mean(merge=lambda a, b: a),
    "rows of weight zero may hold anything": _mean(
        empty=lambda: (jnp.float32(0), jnp.float32(0)),
        update=_leaky,  # 0 * nan is nan
        merge=lambda a, b: (a[0] + b[0], a[1] + b[1]),
        compute=lambda acc: acc[0] / acc[1],
    ),
}


@pytest.mark.parametrize("law", BROKEN_METRICS)
def test_a_broken_metric_is_refused(law, monkeypatch):
    monkeypatch.setattr(testing, "check_value", lambda make: None)
    with pytest.raises(LawError, match=law):
        testing.check_metric(BROKEN_METRICS[law], OUTPUTS)


SCHEDULES = {
    "constant": lambda: ft.schedules.constant(0.1),
    "cosine": lambda: ft.schedules.cosine(0.1, 100, end=0.01),
    "warmup": lambda: ft.schedules.warmup(ft.schedules.cosine(0.1, 100), 8),
    "linear": lambda: ft.schedules.linear(0.1, 0.01, 100),
    "exponential": lambda: ft.schedules.exponential(0.1, 0.9, 10),
    "step_decay": lambda: ft.schedules.step_decay(0.1, 0.5, 30),
    "polynomial": lambda: ft.schedules.polynomial(0.1, 0.0, 100, 2.0),
    "piecewise": lambda: ft.schedules.piecewise(0.1, {7: 0.5, 99: 0.1}),
    "rsqrt": lambda: ft.schedules.rsqrt(0.1, 10),
    "one_cycle": lambda: ft.schedules.one_cycle(0.1, 100),
    "sgdr": lambda: ft.schedules.sgdr(0.1, 10, 2),
    "cooldown": lambda: ft.schedules.cooldown(ft.schedules.cosine(0.1, 90, end=0.05), 10),
    "scale": lambda: ft.schedules.scale(ft.schedules.cosine(0.1, 100), 0.5),
    "in_epochs": lambda: ft.schedules.in_epochs(ft.schedules.cosine(0.1, 10), 7),
    "join": lambda: ft.schedules.join([(ft.schedules.constant(0.1), 7), (ft.schedules.cosine(0.2, 90), 90)]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    testing.check_schedule(SCHEDULES[name])


BROKEN_SCHEDULES = {
    "a schedule is float32": lambda step: jnp.asarray(step) // 2,
    "an array of steps gives an array": lambda step: jnp.float32(0.1),
    "finite at any step": lambda step: jnp.where(
        jnp.asarray(step) > 2**30, jnp.inf, jnp.zeros(jnp.shape(step), jnp.float32)
    ),
}


@pytest.mark.parametrize("law", BROKEN_SCHEDULES)
def test_a_broken_schedule_is_refused(law, monkeypatch):
    monkeypatch.setattr(testing, "check_value", lambda make: None)
    with pytest.raises(LawError, match=law):
        testing.check_schedule(lambda: BROKEN_SCHEDULES[law])


P = RNG.normal(size=(13, 3)).astype(np.float32)
Q = RNG.normal(size=(13, 3)).astype(np.float32)
C = RNG.integers(0, 3, 13).astype(np.int32)
PROBABILITIES = np.exp(P) / np.exp(P).sum(1, keepdims=True)
LOSSES = {
    "cross_entropy": (ft.losses.cross_entropy, P, C),
    "cross_entropy of distributions": (ft.losses.cross_entropy, P, PROBABILITIES[::-1]),
    "cross_entropy smoothed and weighted": (
        lambda z, y: ft.losses.cross_entropy(z, y, label_smoothing=0.1, class_weights=[1.0, 2.0, 0.5]),
        P,
        C,
    ),
    "cross_entropy with ignored labels": (
        lambda z, y: ft.losses.cross_entropy(z, y, ignore_index=-100),
        P,
        np.where(np.arange(13) % 4 == 1, -100, C),
    ),
    "binary_cross_entropy": (ft.losses.binary_cross_entropy, P[:, 0], C % 2),
    "mse": (ft.losses.mse, P, Q),
    "mae": (ft.losses.mae, P, Q),
    "huber": (lambda p, t: ft.losses.huber(p, t, 0.7), P, Q),
    "combine": (
        lambda p, t: ft.losses.combine({"a": (0.3, ft.losses.mse(p, t)), "b": (2.0, ft.losses.mae(p, t))}),
        P,
        Q,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    testing.check_loss(*LOSSES[name])


BROKEN_LOSSES = {
    "a loss is one value per example": lambda p, t: ft.Loss(jnp.mean(jnp.square(p - t))),
    "a value is a matter of its example alone": lambda p, t: ft.Loss(
        jnp.mean(jnp.square(p - t), 1) - jnp.mean(p)
    ),
    "values are float32 at least": lambda p, t: ft.Loss(jnp.mean(jnp.square(p - t.astype(p.dtype)), 1)),
    "the gradient is that of differences": lambda p, t: ft.Loss(
        jnp.mean(jnp.square(p.astype(t.dtype) - t), 1) + jax.lax.stop_gradient(p.astype(t.dtype))[:, 0]
    ),
}


@pytest.mark.parametrize("law", BROKEN_LOSSES)
def test_a_broken_loss_is_refused(law):
    with pytest.raises(LawError, match=law):
        testing.check_loss(BROKEN_LOSSES[law], P, Q)


def rows_of(registry):
    """The names that have a row: the first word of each row's name, for what a row has in mind besides."""
    return {name.split(" ")[0] for name in registry}


def made(module, kind):
    return {name for name, f in vars(module).items() if getattr(f, "makes", None) is kind}


def test_everything_public_has_its_row():
    """A factory without a row is one whose laws nobody has checked."""
    wanted = made(ft.transforms, ft.Transform) | made(ft.optimizers, ft.Transform) | {"MultiSteps"}
    assert wanted - rows_of(TRANSFORMS) == set()
    assert made(ft.schedules, ft.schedules.Schedule) - rows_of(SCHEDULES) == set()
    assert made(ft.metrics, ft.metrics.Metric) - rows_of(METRICS) == set()
    losses = {name for name, f in vars(ft.losses).items() if callable(f) and name[0].islower()}
    assert losses - rows_of(LOSSES) == set()
    # The sets that are compared are not empty, and hold what is known to be there.
    assert {"chain", "clip_by_norm", "adamw"} <= wanted
    assert {"cross_entropy", "mse"} <= losses
    assert {"cosine", "warmup"} <= made(ft.schedules, ft.schedules.Schedule)
    assert {"accuracy", "roc_auc"} <= made(ft.metrics, ft.metrics.Metric)


X = RNG.normal(size=(13, 3)).astype(np.float32)
Y = RNG.integers(0, 4, 13).astype(np.int32)
PARAMS = {"w": RNG.normal(size=(3, 4)).astype(np.float32), "b": np.zeros(4, np.float32)}


def classify(params, batch, ctx):
    logits = batch["x"] @ params["w"] + params["b"][None]
    return ft.losses.cross_entropy(logits, batch["y"]).with_outputs(logits=logits, labels=batch["y"])


TASKS = {
    "adamw": lambda: ft.Task(classify, ft.optimizers.adamw(1e-2), {"accuracy": ft.metrics.accuracy()}),
    "clipped nesterov": lambda: ft.Task(
        classify, ft.chain(ft.clip_by_norm(0.1), ft.optimizers.sgd(0.1, 0.9, nesterov=True))
    ),
    "MultiSteps": lambda: ft.Task(classify, ft.MultiSteps(ft.optimizers.adamw(1e-2), 2)),
    "dynamic_loss_scale": lambda: ft.Task(classify, ft.dynamic_loss_scale(ft.optimizers.adamw(1e-2))),
    "optax": lambda: ft.Task(classify, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))),
}


@pytest.mark.parametrize("name", TASKS)
def test_task(name):
    if name != "optax":  # whose closures no pickle takes; equal it is all the same
        testing.check_value(TASKS[name])
    assert TASKS[name]() == TASKS[name]()
    testing.check_task(TASKS[name](), PARAMS, {"x": X, "y": Y}, RNG.integers(1, 4, 13))


def mean_inside(params, batch, ctx):
    """A mean over the batch, given to every example: the mean of means, dressed up."""
    loss = classify(params, batch, ctx)
    return ft.Loss(jnp.full(loss.values.shape, jnp.mean(loss.values)))


def drifting(params, batch, ctx):
    return classify(params, batch, ctx)


def _untyped():
    tx = optax.GradientTransformation(
        lambda p: {"n": jnp.zeros((), jnp.int32)}, lambda u, s, p=None: (u, {"n": s["n"], "extra": s["n"]})
    )
    return ft.Task(classify, tx)


def _shrinks_anyway():
    """An `apply` that shrinks the parameters even where a batch weighs nothing."""

    def apply(g, s, p, **k):
        return jax.tree.map(lambda x: x * 0.9, p), s, jnp.asarray(True)

    return ft.Transform(lambda p: (), lambda u, s, p=None, **k: (u, s), apply)


@pytest.mark.parametrize("name", ["kernel", "weight", "applied", "mini_step", "acc_grads"])
def test_no_name_of_a_leaf_hides_it_from_the_law(name):
    def loss_fn(params, batch, ctx):
        return ft.losses.mse(batch["x"] @ params[name], jnp.zeros(batch["x"].shape[0]))

    with pytest.raises(LawError, match="a batch of weight zero changes nothing.*" + name):
        testing.check_task(ft.Task(loss_fn, _shrinks_anyway()), {name: np.ones(3, np.float32)}, {"x": X})


BROKEN_TASKS = {
    "micro-batches add up to the batch": (lambda: ft.Task(mean_inside, ft.optimizers.sgd(0.1)), LawError),
    "changes the type of its state in an update": (_untyped, ft.ConfigError),
}


@pytest.mark.parametrize("law", BROKEN_TASKS)
def test_a_broken_task_is_refused(law):
    make, error = BROKEN_TASKS[law]
    with pytest.raises(error, match=law):
        testing.check_task(make(), PARAMS, {"x": X, "y": Y})


def test_randomness_is_a_function_of_seed_and_step():
    """Law 7: the key of a step follows from the root key and the step, whatever ran before."""

    def noisy(params, batch, ctx):
        return jax.random.normal(ctx.stream("noise"), batch.shape) * params["w"]

    task = ft.Task(noisy, ft.optimizers.sgd(0.0))
    batch = jnp.ones(4)

    def losses(key, steps):
        state = ft.init_state(task, {"w": jnp.float32(1)}, key=key)
        root = jax.random.key_data(state.key).tolist()
        out = []
        for _ in range(steps):
            state, metrics = ft.train_step(task, state, batch)
            out.append(float(ft.compute_metrics(task, metrics)["loss"]))
        assert jax.random.key_data(state.key).tolist() == root  # the root key never changes
        return out, state

    first, state = losses(0, 4)
    again, _ = losses(0, 4)
    other, _ = losses(1, 4)
    assert first == again
    assert len(set(first)) == 4  # a new draw each step
    assert not set(first) & set(other)
    # Nothing to replay: a state put at step 2 by hand draws what step 2 drew.
    state = ft.init_state(task, {"w": jnp.float32(1)}, key=0).replace(step=jnp.int32(2))
    _, metrics = ft.train_step(task, state, batch)
    assert float(ft.compute_metrics(task, metrics)["loss"]) == first[2]
