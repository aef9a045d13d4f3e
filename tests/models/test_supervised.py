"""`supervised`: every name of its vocabulary, against the same task written out."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
import sklearn.utils.class_weight

import fntrain as ft
from fntrain.models.supervised import ALIASES

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 40).astype(np.int32)


def init(key):
    return {"w": 0.1 * jax.random.normal(key, (5, 3))}


def apply(params, x):
    return x @ params["w"]


MODEL = ft.models.plain(init, apply)


def loss_fn(params, batch, ctx):
    logits = apply(params, batch[0])
    return ft.losses.cross_entropy(logits, batch[1]).with_outputs(logits=logits, labels=batch[1])


def trained(task, steps=5, data=(X, Y)):
    state = ft.init_state(task, init, key=0)
    for _ in range(steps):
        state, _ = ft.train_step(task, state, data)
    return np.asarray(state.params["w"])


OPT = ft.optimizers
SAME = {
    "defaults": ({}, OPT.adam()),
    "learning_rate": ({"learning_rate": 0.1}, OPT.adam(0.1)),
    "lr": ({"lr": 0.1}, OPT.adam(0.1)),
    "beta_1": ({"beta_1": 0.8, "epsilon": 1e-6}, OPT.adam(b1=0.8, eps=1e-6)),
    "sgd": ({"optimizer": "sgd", "momentum": 0.9, "nesterov": True}, OPT.sgd(momentum=0.9, nesterov=True)),
    "preset": ({"optimizer": "sgd/momentum"}, OPT.sgd(momentum=0.9)),
    "clip_norm": ({"clip_norm": 0.1}, ft.chain(ft.clip_by_norm(0.1), OPT.adam())),
    "clip_value then clip_norm": (
        {"clip_norm": 0.1, "clip_value": 0.05},
        ft.chain(ft.clip_by_value(0.05), ft.clip_by_norm(0.1), OPT.adam()),
    ),
    "clips that are off": ({"clip_norm": 0.0, "clip_value": 0}, OPT.adam()),
    "gradient_clip": ({"gradient_clip": 0.1}, ft.chain(ft.clip_by_norm(0.1), OPT.adam())),
    "L2 before adam": ({"weight_decay": 0.1}, ft.chain(ft.add_weight_decay(0.1), OPT.adam())),
    "L2 of sgd": ({"optimizer": "sgd", "weight_decay": 0.1}, OPT.sgd(weight_decay=0.1)),
    "decoupled": ({"optimizer": "adamw", "weight_decay": 0.1}, OPT.adamw(weight_decay=0.1)),
    "accumulation": ({"accumulate_gradients": 4}, ft.MultiSteps(OPT.adam(), 4)),
    "accumulation_steps": ({"accumulation_steps": 4}, ft.MultiSteps(OPT.adam(), 4)),
    "gradients are clipped when they are added up": (
        {"accumulate_gradients": 2, "clip_norm": 0.1},
        ft.MultiSteps(ft.chain(ft.clip_by_norm(0.1), OPT.adam()), 2),
    ),
    "warmup": ({"learning_rate": 0.1, "warmup": 3}, OPT.adam(ft.schedules.warmup(0.1, 3))),
    "step": ({"lr_schedule": ("step", 0.1, 2, 0.5)}, OPT.adam(ft.schedules.step_decay(0.1, 0.5, 2))),
    "exponential": ({"lr_schedule": ("exponential", 0.1, 0.9)}, OPT.adam(ft.schedules.exponential(0.1, 0.9))),
    "cosine": (
        {"lr_schedule": ("cosine", 0.1, 1e-3), "steps": 9},
        OPT.adam(ft.schedules.cosine(0.1, 9, 1e-3)),
    ),
    "cosine by name, behind its warmup": (
        {"lr_schedule": "cosine", "lr": 0.1, "steps": 9, "warmup": 4},
        OPT.adam(ft.schedules.warmup(ft.schedules.cosine(0.1, 5), 4)),
    ),
    "a schedule": (
        {"lr_schedule": ft.schedules.linear(0.1, 0.0, 9)},
        OPT.adam(ft.schedules.linear(0.1, 0.0, 9)),
    ),
    "a transform": ({"optimizer": OPT.sgd(0.3)}, OPT.sgd(0.3)),
}


@pytest.mark.parametrize("name", SAME)
def test_options_make_the_task_that_is_written_out(name):
    options, tx = SAME[name]
    assert ft.supervised(MODEL, **options).tx == tx


# The transform is equal by the test above, and the loss is that of every row.
@pytest.mark.matrix(always=("accumulation", "a schedule", "gradients are clipped when they are added up"))
@pytest.mark.parametrize("name", SAME)
def test_and_it_trains_to_the_same_bits(name):
    options, tx = SAME[name]
    np.testing.assert_array_equal(trained(ft.supervised(MODEL, **options)), trained(ft.Task(loss_fn, tx)))


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_its_option_and_both_at_once_are_refused(alias):
    name = ALIASES[alias]
    value = {"learning_rate": 0.5, "lr_schedule": ("exponential", 0.1, 0.9), "warmup": 3, "steps": 9}.get(
        name, 2
    )
    more = {"learning_rate": 0.1} if name == "warmup" else {}
    assert ft.supervised(MODEL, **{alias: value}, **more) == ft.supervised(MODEL, **{name: value}, **more)
    with pytest.raises(ft.ConfigError, match=f"`{alias}` and `{name}` are the same option"):
        ft.supervised(MODEL, **{alias: value, name: value}, **more)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"accumulate_gradients": 1, "accumulation_steps": 4},
            "`accumulation_steps` and `accumulate_gradients` are",
        ),
        ({"warmup_steps": 4, "warmup": 0, "lr": 0.1}, "`warmup_steps` and `warmup` are the same option"),
        ({"lr": 0.1, "learning_rate": None}, "`lr` and `learning_rate` are the same option"),
        ({"gradient_clip": 1.0, "clipnorm": 1.0}, "`gradient_clip` and `clipnorm` are the same option"),
        ({"optimizer": "adam", "b1": 0.9, "beta_1": 0.9}, "`b1` and `beta_1` of adam are the same"),
    ],
)
def test_two_spellings_are_refused_whatever_their_values(options, words):
    with pytest.raises(ft.ConfigError, match=words):
        ft.supervised(MODEL, **options)


def test_it_is_an_ordinary_task_by_value_that_prints_as_the_call():
    def make(**options):
        return ft.supervised(MODEL, "cross_entropy", "adamw", learning_rate=1e-3, **options)

    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make(clip_norm=1.0)
    assert "supervised(model=" in repr(make(clip_norm=1.0))
    assert repr(make(clip_norm=1.0)).endswith("optimizer='adamw', learning_rate=0.001, clip_norm=1.0)")
    assert pickle.loads(pickle.dumps(make())) == make()
    assert make().fingerprint() == make().fingerprint() != make(label_smoothing=0.1).fingerprint()
    before = ft.train_step(make(), ft.init_state(make(), init), (X, Y))
    assert float(ft.compute_metrics(make(), before[1])["accuracy"]) > 0


def test_losses_by_name_are_those_of_the_module():
    for name, f in ft.losses.LOSSES.items():
        assert ft.losses.get(name) is f
    for alias, name in {
        "bce": "binary_cross_entropy",
        "mean_squared_error": "mse",
        "ce": "cross_entropy",
    }.items():
        assert ft.losses.get(alias) is ft.losses.LOSSES[name]
    logits = RNG.normal(size=(6, 3)).astype(np.float32)
    got = ft.losses.get("cross_entropy", label_smoothing=0.1)(logits, Y[:6]).values
    np.testing.assert_array_equal(got, ft.losses.cross_entropy(logits, Y[:6], label_smoothing=0.1).values)
    assert set(ft.losses.LOSSES) == {n for n in ft.losses.__all__ if n[0].islower()} - {
        "get",
        "combine",
        "linear_cross_entropy",
    }


def test_metrics_by_name_are_those_of_the_module():
    made = {n for n in ft.metrics.__all__ if n[0].islower()}
    assert set(ft.metrics.METRICS) == made - {"get", "bootstrap", "collect", "count_to_int", "mean", "metric"}
    assert ft.metrics.get("f1_score", num_classes=3) == ft.metrics.f1(3)
    assert ft.metrics.get("auc") == ft.metrics.roc_auc()
    for name in ft.metrics.METRICS:
        parameters = inspect.signature(ft.metrics.METRICS[name]).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty]
        options = {"num_classes": 3, "beta": 0.5}
        assert isinstance(ft.metrics.get(name, **{n: options[n] for n in needed}), ft.metrics.Metric)


def test_class_weights_balanced_from_counts_are_scikit_learns():
    counts = np.bincount(Y)
    task = ft.supervised(MODEL, class_weights="balanced", class_counts=counts)
    weights = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.arange(3), y=Y)
    wanted = ft.supervised(MODEL, class_weights=weights.astype(np.float32))
    np.testing.assert_allclose(trained(task), trained(wanted), rtol=1e-5)


def test_accuracy_is_none_where_the_loss_is_not_of_classes():
    task = ft.supervised(lambda p, x: x @ p["w"], "mse", metrics=["accuracy", "r2", "mae"])
    state = ft.init_state(task, {"w": np.ones(5, np.float32)})
    y = (X @ np.arange(5)).astype(np.float32)
    result = ft.evaluate(task, state, (X, y), batch_size=7)
    assert result["accuracy"] is None
    assert result["r2"] == pytest.approx(sklearn.metrics.r2_score(y, X.sum(1)), rel=1e-5)
    assert result["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(y, X.sum(1)), rel=1e-5)
    _, history = ft.fit(task, state, (X, y), epochs=2, progress=False)
    assert history["accuracy"] == [None, None]


def test_yes_or_no_is_judged_as_such():
    names = ["accuracy", "f1", "precision", "recall", "roc_auc", "mcc", "confusion_matrix"]
    task = ft.supervised(lambda p, x: x @ p["w"], "bce", metrics=names)
    w = np.array([1, -1, 0.5, 0, 2], np.float32)
    state = ft.init_state(task, {"w": w})
    y = RNG.integers(0, 2, 40)
    result = ft.evaluate(task, state, (X, y.astype(np.int32)), batch_size=7)
    yes = (X @ w >= 0).astype(int)
    wanted = {
        "accuracy": sklearn.metrics.accuracy_score(y, yes),
        "f1": sklearn.metrics.f1_score(y, yes),
        "precision": sklearn.metrics.precision_score(y, yes),
        "recall": sklearn.metrics.recall_score(y, yes),
        "mcc": sklearn.metrics.matthews_corrcoef(y, yes),
        "roc_auc": sklearn.metrics.roc_auc_score(y, X @ w),
    }
    for name, value in wanted.items():
        assert result[name] == pytest.approx(value, abs=2e-3 if name == "roc_auc" else 1e-6), name
    np.testing.assert_array_equal(result["confusion_matrix"], sklearn.metrics.confusion_matrix(y, yes))
    broken = state.replace(params={"w": np.full(5, np.nan, np.float32)})
    assert np.isnan(ft.evaluate(task, broken, (X, y.astype(np.int32)))["accuracy"])


REFUSED = {
    "loss": ({"loss": "cross_entropi"}, "did you mean 'cross_entropy'"),
    "optimizer": ({"optimizer": "adamm"}, "did you mean 'adam"),
    "metric": ({"metrics": ["acuracy"]}, "did you mean 'accuracy'"),
    "option": (
        {"learning_rat": 0.1},
        "`learning_rat` is no option of `supervised`.*did you mean 'learning_rate'",
    ),
    "schedule": ({"lr_schedule": ("cosin", 1, 2)}, "did you mean 'cosine'"),
    "schedule without its numbers": ({"lr_schedule": ("step", 0.1)}, r"takes \(rate, every, factor\)"),
    "schedule without a length": ({"lr_schedule": ("cosine", 1.0, 0.1)}, "`steps=epochs \\* batches`"),
    "two rates": ({"lr": 0.1, "lr_schedule": ("exponential", 0.1, 0.9)}, "both say the rate"),
    "warmup to nothing": ({"warmup": 5}, "give `learning_rate` or `lr_schedule`"),
    "nesterov of adam": ({"nesterov": True}, "`nesterov`: adam has none"),
    "momentum of adam": ({"momentum": 0.9}, "`momentum`: adam has none"),
    "a rate beside a transform": ({"optimizer": ft.optimizers.sgd(0.1), "lr": 0.1}, "has its own"),
    "classes unknown": ({"metrics": ["f1"]}, "say how many, `num_classes=`"),
    "balanced without counts": ({"class_weights": "balanced"}, "`class_counts=numpy.bincount"),
    "counts without balanced": ({"class_counts": [1, 2]}, 'for `class_weights="balanced"`'),
    "smoothing of mse": ({"loss": "mse", "label_smoothing": 0.1}, "`label_smoothing` is no option of mse"),
    "model": ({"model": 3}, "`model` must be a function"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused(name):
    options, message = REFUSED[name]
    with pytest.raises(ft.ConfigError, match=message):
        ft.supervised(**{"model": MODEL, **options})


def test_batches_of_another_form_are_refused_by_name():
    task = ft.supervised(MODEL)
    state = ft.init_state(task, init)
    with pytest.raises(ft.ConfigError, match=r"wants batches `\(inputs, targets\)`"):
        ft.train_step(task, state, {"x": X, "y": Y})


def test_several_inputs_and_a_model_that_asks_for_the_context():
    def both(params, a, b, ctx):
        return (a + b) @ params["w"] + (1.0 if ctx.train else 0.0)

    model = ft.models.plain(init, both)
    task = ft.supervised(model)
    state = ft.init_state(task, model.init)
    wanted = (2 * X) @ np.asarray(state.params["w"])
    np.testing.assert_allclose(ft.predict(task, state, ((X, X), Y)), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        ft.predict(task, state, ((jnp.asarray(X), X), Y)), wanted, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("loss", ["mse", "huber", "binary_cross_entropy"])
def test_a_column_for_a_vector_is_refused_with_what_to_do_here(loss):
    x, y, params = jnp.ones((4, 3)), jnp.ones(4), {"w": jnp.ones((3, 1))}

    def values(model, y):
        task = ft.supervised(model, loss, "sgd", (), learning_rate=0.1)
        return task.loss_fn(params, (x, y), None).values

    with pytest.raises(
        ft.DataError, match=r"\[4, 1\] for targets \[4\]: end.*x\[\.\.\., 0\].*y\[\.\.\., None"
    ):
        values(lambda params, x: x @ params["w"], y)
    with pytest.raises(ft.DataError, match=r"`model`.*\[4\] for targets \[4, 1\]: .*`\(x, y\[\.\.\., 0\]\)`"):
        values(lambda params, x: (x @ params["w"])[..., 0], y[:, None])
    # Both ways out are ways.
    one = values(lambda params, x: (x @ params["w"])[..., 0], y)
    two = values(lambda params, x: x @ params["w"], y[..., None])
    np.testing.assert_array_equal(one, np.reshape(two, 4))
