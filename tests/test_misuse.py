"""What users type by mistake is refused in our words: the argument, what was expected, what came, and the way out.

One row a misuse. Most of them were a TypeError of Python's or of JAX's, or passed, before the kind was refused where it
is decided: names of arguments in `_core/arguments.py`, numbers, truth values and functions in `_core/check.py`.
"""

import functools
import inspect
import pickle
import re

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import fntrain as ft
from fntrain import callbacks as cb, metrics as m, optimizers as o, schedules as s, transforms as t
from fntrain._core.arguments import checked
from fntrain._core.errors import ArgumentError

X, Y = np.arange(8, dtype=np.float32).reshape(4, 2), np.ones(4, np.float32)
BATCH = {"x": X, "y": Y}
PARAMS = {"w": np.array([0.5, -1], np.float32), "b": np.zeros((), np.float32)}
SGD, ADAM = o.sgd(0.125), o.adam(0.125)


def loss_fn(params, batch, ctx):
    return ft.losses.mse(batch["x"] @ params["w"] + params["b"], batch["y"])


def of_pairs(params, batch, ctx):
    return ft.losses.mse(batch[0] @ params["w"] + params["b"], batch[1])


class Model:
    def __call__(self, params, batch, ctx):
        return loss_fn(params, batch, ctx)

    def method(self, params, batch, ctx):
        return loss_fn(params, batch, ctx)

    def without_context(self, params, batch):
        return loss_fn(params, batch, None)


TASK, PAIRS = ft.Task(loss_fn, SGD), ft.Task(of_pairs, SGD)


def state(task=TASK, params=PARAMS, **kwargs):
    return ft.init_state(task, params, **kwargs)


def fit(data=(X, Y), **kwargs):
    return ft.fit(PAIRS, state(PAIRS), data, **{"epochs": 1, "progress": False, **kwargs})


def decayed(mask, params=PARAMS):
    return o.sgd(1.0).update, ft.add_weight_decay(0.5, mask).init(params)


def meshed(rules):
    return state(mesh=ft.sharding.mesh(data=-1), rules=rules)


A, C, D = ArgumentError, ft.ConfigError, ft.DataError

ROWS = {
    # --- an argument that there is not
    "sgd(mom=)": (
        A,
        r"`mom` is no argument of sgd, which has .*did you mean 'momentum'",
        lambda: o.sgd(mom=0.9),
    ),
    "adam(betas=)": (
        A,
        "`betas` is no argument of adam.*did you mean 'b1'",
        lambda: o.adam(betas=(0.9, 0.99)),
    ),
    "get(lern_rate=)": (A, "`lern_rate`.*'learning_rate'", lambda: o.get("adam", lern_rate=0.1)),
    "clip(maxnorm=)": (
        A,
        r"`maxnorm` .* `clip_by_norm\(max_norm\)`; did.*'max_norm'",
        lambda: ft.clip_by_norm(maxnorm=1),
    ),
    "cosine(decay_steps=)": (A, "`decay_steps`.*`cosine.*'steps'", lambda: s.cosine(0.1, decay_steps=10)),
    "accuracy(topk=)": (A, "`topk`.*`accuracy.*'top_k'", lambda: m.accuracy(topk=5)),
    "Task(optimizer=)": (
        A,
        r"`optimizer`.*`Task\(loss_fn, tx.*'tx'",
        lambda: ft.Task(loss_fn, optimizer=SGD),
    ),
    "Task(metric=)": (A, "`metric`.*'metrics'", lambda: ft.Task(loss_fn, SGD, metric={})),
    "Policy(comp=)": (A, "`comp`.*`Policy.*'compute'", lambda: ft.Policy(comp="bfloat16")),
    "Loss(weight=)": (A, "`weight`.*`Loss.*'weights'", lambda: ft.Loss(Y, weight=Y)),
    "cross_entropy(smoothing=)": (
        A,
        "`smoothing`.*'label_smoothing'",
        lambda: ft.losses.cross_entropy(X, np.zeros(4, int), smoothing=0.1),
    ),
    "fit(epoch=)": (A, r"`epoch`.*`fit\(task, state, data.*'epochs'", lambda: fit(epoch=3)),
    "fit(x=)": (A, r"`x`.*one `data`, a tuple: `\(x, y\)`", lambda: ft.fit(PAIRS, state(PAIRS), x=X, y=Y)),
    "fit(validation_split=)": (
        A,
        r"`validation_split`.*`train, held_out = fntrain.split\(data, 0.8\)`",
        lambda: fit(validation_split=0.2),
    ),
    "fit(steps_per_epoch=)": (
        A,
        "`steps_per_epoch`.*`steps` are the batches",
        lambda: fit(steps_per_epoch=3),
    ),
    "fit(initial_epoch=)": (A, "`initial_epoch`.*`run_dir=…, resume=True`", lambda: fit(initial_epoch=3)),
    "fit(class_weight=)": (
        A,
        "`class_weight`.*the loss's.*class_weights",
        lambda: fit(class_weight={0: 2.0}),
    ),
    "fit(sample_weight=)": (A, "`sample_weight`.*the loss's.*weights=", lambda: fit(sample_weight=Y)),
    "fit(lr=)": (A, "`lr`.*the optimizer's", lambda: fit(lr=0.1)),
    "fit(output_dir=)": (A, "`output_dir`.*'run_dir'", lambda: fit(output_dir="runs")),
    "fit(callback=)": (A, "`callback`.*'callbacks'", lambda: fit(callback=[])),
    "fit(validation=)": (A, "`validation`.*'validation_data'", lambda: fit(validation=(X, Y))),
    "train_step(weights=)": (
        A,
        "`weights`.*`train_step.*'weight'",
        lambda: ft.train_step(TASK, state(), BATCH, weights=Y),
    ),
    "init_state(seed=)": (A, "`seed`.*`init_state.*'key'", lambda: state(seed=0)),
    "state.replace(stp=)": (A, "`stp` is no field of TrainState.*'step'", lambda: state().replace(stp=1)),
    "run_epoch(train=)": (
        A,
        "`train`.*'training'",
        lambda: ft.run_epoch(PAIRS, state(PAIRS), (X, Y), train=True),
    ),
    "split(test_size=)": (A, "`test_size`.*'fraction'", lambda: ft.split((X, Y), test_size=0.2)),
    "data_loader(droplast=)": (
        A,
        "`droplast`.*'drop_last'",
        lambda: ft.data_loader((X, Y), 2, droplast=True),
    ),
    "EarlyStopping(monitr=)": (
        A,
        "`monitr`.*`EarlyStopping.*'monitor'",
        lambda: cb.EarlyStopping(monitr="loss"),
    ),
    "ModelCheckpoint(save_best=)": (
        A,
        "`save_best`.*'save_best_only'",
        lambda: cb.ModelCheckpoint("x", save_best=True),
    ),
    "scheduler by name": (
        A,
        "`patiance`.*'patience'",
        lambda: cb.LearningRateScheduler("reduce_on_plateau", patiance=3),
    ),
    "Keep(lastest=)": (A, "`lastest`.*'latest'", lambda: ft.Keep(lastest=3)),
    "MultiSteps(every_k=)": (
        A,
        "`every_k`.*`MultiSteps.*'every_k_schedule'",
        lambda: ft.MultiSteps(SGD, every_k=4),
    ),
    "roc_auc_score(averge=)": (
        A,
        "`averge`.*'average'",
        lambda: ft.scores.roc_auc_score([0, 1], [0.1, 0.2], averge="macro"),
    ),
    "lr_find(num_steps=)": (
        A,
        "`num_steps`.*'steps'",
        lambda: ft.tools.lr_find(PAIRS, state(PAIRS), (X, Y), num_steps=5),
    ),
    "with_hyperparams(optax)": (
        A,
        "`learnin_rate`.*`adam.*'learning_rate'",
        lambda: t.with_hyperparams(optax.adam, learnin_rate=0.1),
    ),
    # --- too many, too few, in the wrong place
    "fit(task, state, x, y)": (
        A,
        r"`fit` takes 3 arguments by position, got 4: .*as one `data`, a tuple: `\(x, y\)`",
        lambda: ft.fit(PAIRS, state(PAIRS), X, Y),
    ),
    "evaluate(task, state, x, y)": (
        A,
        "`evaluate`.*one `data`, a tuple",
        lambda: ft.evaluate(PAIRS, state(PAIRS), X, Y),
    ),
    "evaluate(…, 4)": (A, "by name: `batch_size=…`", lambda: ft.evaluate(PAIRS, state(PAIRS), (X, Y), 4)),
    "init_state(task, params, 0)": (A, "by name: `key=…`", lambda: ft.init_state(TASK, PARAMS, 0)),
    "sgd of six": (A, "`sgd` takes 5 arguments by position, got 6", lambda: o.sgd(0.1, 0.9, 0, 0, False, 1)),
    "set_hyperparams by position": (
        A,
        r"`set_hyperparams\(state, \*\*values\)`",
        lambda: t.set_hyperparams(state(), 0.1),
    ),
    "fit(task, state)": (A, "`data` must be given to `fit.*got task, state", lambda: ft.fit(TASK, state())),
    "Task(loss_fn)": (A, "`tx` must be given to `Task", lambda: ft.Task(loss_fn)),
    "clip_by_norm()": (A, "`max_norm` must be given to `clip_by_norm", lambda: ft.clip_by_norm()),
    "f1()": (A, "`num_classes` must be given to `f1", lambda: m.f1()),
    "CSVLogger()": (A, "`path` must be given to `CSVLogger", lambda: cb.CSVLogger()),
    "sgd(lr, learning_rate=)": (
        A,
        "`learning_rate` and `lr` of sgd are the same",
        lambda: o.sgd(0.1, lr=0.1),
    ),
    "cosine(0.1, start=)": (A, "`start` is given twice to `cosine", lambda: s.cosine(0.1, 5, start=0.1)),
    "fit(state, task, data)": (
        C,
        r"`task` .*got TrainState.*\(task, state, data\)",
        lambda: ft.fit(state(), TASK, (X, Y)),
    ),
    "fit(task, data, state)": (
        C,
        "`state` must be a TrainState, got tuple",
        lambda: ft.fit(TASK, (X, Y), state()),
    ),
    "fit(task, task, data)": (
        C,
        "`state` must be a TrainState, got Task",
        lambda: ft.fit(TASK, TASK, (X, Y)),
    ),
    "fit(tx, …)": (
        C,
        r"`task` .*got Transform; make one, `Task\(loss_fn, tx\)`",
        lambda: ft.fit(SGD, state(), (X, Y)),
    ),
    "fit(loss_fn, …)": (C, r"`task` .*got function; make one", lambda: ft.fit(loss_fn, state(), (X, Y))),
    "compute_metrics(task, step)": (
        C,
        "`metrics`.*got tuple; a step returns two",
        lambda: ft.compute_metrics(TASK, (state(), None)),
    ),
    "init_state(params)": (A, "`params` must be given to `init_state", lambda: ft.init_state(PARAMS)),
    "init_state(loss_fn, tx)": (
        C,
        r"`task` .*`init_state\(Task\(loss_fn, tx\)",
        lambda: ft.init_state(loss_fn, SGD),
    ),
    "init_state(task, state)": (
        C,
        "`params`.*got a TrainState.*`state.params`",
        lambda: ft.init_state(TASK, state()),
    ),
    "find_nonfinite swapped": (C, "`task`", lambda: ft.tools.find_nonfinite(state(), TASK, BATCH)),
    "check_task swapped": (
        C,
        r"`task`.*\(task, params, batch\)",
        lambda: ft.testing.check_task(PARAMS, TASK, BATCH),
    ),
    "check_transform of a transform": (
        C,
        r"`make` must be a function",
        lambda: ft.testing.check_transform(SGD),
    ),
    "shard_batch swapped": (
        C,
        "`mesh`.*shard_batch",
        lambda: ft.sharding.shard_batch(ft.sharding.mesh(), BATCH),
    ),
    # --- losses
    "loss of two": (
        C,
        r"`loss_fn` must be .*\(params, batch, ctx\).*got `<lambda>\(p, b\)`.*write `def loss_fn",
        lambda: ft.Task(lambda p, b: 0, SGD),
    ),
    "loss of four": (C, r"`loss_fn` .*missing .*'d'", lambda: ft.Task(lambda p, b, c, d: 0, SGD)),
    "loss with a keyword": (C, r"`loss_fn` .*missing .*'d'", lambda: ft.Task(lambda p, b, c, *, d: 0, SGD)),
    "a bound method of two": (C, r"got `without_context\(", lambda: ft.Task(Model().without_context, SGD)),
    "a jitted loss of two": (
        C,
        r"`loss_fn`.*got `<lambda>\(p, b\)`",
        lambda: ft.Task(jax.jit(lambda p, b: 0), SGD),
    ),
    "a library's loss": (C, r"got `mse\(predictions, targets", lambda: ft.Task(ft.losses.mse, SGD)),
    "Task(tx, loss_fn)": (C, "`loss_fn` must be a function", lambda: ft.Task(SGD, loss_fn)),
    "params of no key": (C, r"`params` must be a function `\(key\)", lambda: state(params=lambda: PARAMS)),
    # --- a state of another optimizer
    "sgd's state for adam": (
        C,
        r"`state` was made for another optimizer.*`opt_state` lacks `scale_by_adam/count`.*adam\(.*`init_state",
        lambda: ft.train_step(ft.Task(loss_fn, ADAM), state(), BATCH),
    ),
    "adam's state for sgd": (
        C,
        "`opt_state` has a surplus `scale_by_adam/count`",
        lambda: ft.train_step(TASK, state(ft.Task(loss_fn, ADAM)), BATCH),
    ),
    "sgd's state for momentum": (
        C,
        "`opt_state` lacks `momentum/count`",
        lambda: ft.fit(ft.Task(loss_fn, o.sgd(0.1, 0.9)), state(), BATCH, epochs=1, progress=False),
    ),
    "optax's state for another of optax": (
        C,
        "`opt_state` lacks `0/count`",
        lambda: ft.train_step(
            ft.Task(loss_fn, optax.adam(1.0)), state(ft.Task(loss_fn, optax.sgd(1.0))), BATCH
        ),
    ),
    "a flush with another": (C, "another optimizer", lambda: ft.flush(ft.Task(loss_fn, ADAM), state())),
    "other parameters": (
        C,
        "`opt_state` has a surplus `scale_by_adam/mu/b`",
        lambda: ft.train_step(
            ft.Task(loss_fn, ADAM), state(ft.Task(loss_fn, ADAM)).replace(params={"w": jnp.ones(2)}), BATCH
        ),
    ),
    # --- names of policies, optimizers, metrics, options, patterns, axes
    "policy bfloat16": (
        C,
        r"`policy`.*'bfloat16'; did you mean 'bf16'\? .*Policy\(params=",
        lambda: ft.Task(loss_fn, SGD, policy="bfloat16"),
    ),
    "policy jnp.bfloat16": (C, "did you mean 'bf16'", lambda: ft.Task(loss_fn, SGD, policy=jnp.bfloat16)),
    "policy BF16": (C, "did you mean 'bf16'", lambda: ft.Task(loss_fn, SGD, policy="BF16")),
    "policy half": (C, "did you mean 'fp16'", lambda: ft.Task(loss_fn, SGD, policy="half")),
    "policy fp32": (C, r"did you mean 'float32'\?$", lambda: ft.Task(loss_fn, SGD, policy="fp32")),
    "Policy(compute=bf16)": (C, "`compute`.*did you mean 'bfloat16'", lambda: ft.Policy(compute="bf16")),
    "tx adm": (C, "`tx`.*got 'adm'.*optimizers.get.*'adam'", lambda: ft.Task(loss_fn, "adm")),
    "tx of a schedule": (C, r"`tx`.*optimizers.sgd\(schedule\)", lambda: ft.Task(loss_fn, s.constant(0.1))),
    "tx 0.1": (C, r"`tx`.*optimizers.sgd\(0.1\)", lambda: ft.Task(loss_fn, 0.1)),
    "metrics acuracy": (
        C,
        "`metrics`.*'acuracy'.*'accuracy'",
        lambda: ft.Task(loss_fn, SGD, {"a": "acuracy"}),
    ),
    "metrics, a list of names": (C, "`metrics` must map names", lambda: ft.Task(loss_fn, SGD, ["accuracy"])),
    "axis_name 3": (C, "`axis_name`.*got 3", lambda: ft.Task(loss_fn, SGD, axis_name=3)),
    "axis_name dta": (
        C,
        "`axis_name`.*did you mean 'data'",
        lambda: ft.train_step(
            ft.Task(loss_fn, SGD, axis_name="dta"), state(mesh=ft.sharding.mesh(data=-1)), BATCH
        ),
    ),
    "rules kernal": (
        C,
        "`rules`.*'kernal' matches no leaf.*'kernel'",
        lambda: state(
            params={"dense": {"kernel": X}},
            mesh=ft.sharding.mesh(data=-1),
            rules=[("kernal", PartitionSpec())],
        ),
    ),
    "rules, axis dat": (
        C,
        "no axis 'dat'.*did you mean 'data'",
        lambda: meshed([("w", PartitionSpec("dat")), (".*", PartitionSpec())]),
    ),
    "rules, a dict": (
        C,
        r"`rules` must be a list of pairs.*list\(rules.items\(\)\)",
        lambda: meshed({"w": PartitionSpec()}),
    ),
    "rules, a string": (C, "`rules` must be a list of pairs", lambda: meshed("w")),
    "rules, a factory": (C, "`rules` must be a function", lambda: meshed(ft.sharding.fsdp)),
    "fsdp of dat": (C, "`axis` 'dat'.*did you mean 'data'", lambda: meshed(ft.sharding.fsdp("dat"))),
    "mesh(8)": (C, r"`devices`.*`mesh\(data=-1\)`", lambda: ft.sharding.mesh(8)),
    "mesh('data')": (C, r"`devices`.*`mesh\(data=-1\)`", lambda: ft.sharding.mesh("data")),
    "mesh=(8,)": (C, "`mesh` must be a device mesh", lambda: state(mesh=(8,))),
    "scheduler step": (C, "`scheduler`.*did you mean 'step_decay'", lambda: cb.LearningRateScheduler("step")),
    # --- masks and labels
    "mask of words": (
        C,
        "`mask` must say True or False.*'no' for `b`",
        lambda: decayed({"w": "yes", "b": "no"}),
    ),
    "mask of entries": (
        C,
        "`mask` must say True or False",
        lambda: decayed({"w": np.ones(2, bool), "b": True}),
    ),
    "mask without a leaf": (C, "`mask`.*lacks `b`", lambda: decayed({"w": True})),
    "mask True": (C, "`mask`.*is one bool and no tree", lambda: decayed(True)),
    "freeze a function": (C, "`regex` must be a regex", lambda: t.freeze(SGD, lambda path: True)),
    "freeze None": (
        C,
        "`regex` must be a regex.*None|`regex` must be a regex.*none",
        lambda: t.freeze(SGD, None),
    ),
    # --- numbers, truth values, keys
    "learning_rate '1e-3'": (C, "`learning_rate`.*number.*got '1e-3' of type str", lambda: o.adam("1e-3")),
    "learning_rate np.True_": (C, "`learning_rate`.*bool", lambda: o.adam(np.True_)),
    "learning_rate, a bool array": (C, "`learning_rate`", lambda: o.adam(jnp.array(True))),
    "learning_rate complex": (C, "`learning_rate`", lambda: o.adam(np.complex64(1))),
    "learning_rate, a factory": (C, r"`learning_rate`.*factory `cosine`: call it", lambda: o.adam(s.cosine)),
    "learning_rate, optax's factory": (
        C,
        r"`learning_rate` must be a function `\(step\)",
        lambda: o.adam(optax.cosine_decay_schedule),
    ),
    "max_norm, a factory": (C, "`max_norm`.*call it", lambda: ft.clip_by_norm(s.constant)),
    "momentum 1": (C, "`momentum` must be a finite number >= 0 and < 1", lambda: o.sgd(0.1, momentum=1.0)),
    "rmsprop momentum": (C, "`momentum` must be", lambda: o.rmsprop(0.1, momentum=-1.0)),
    "weight_decay True": (C, "`weight_decay` must be", lambda: o.sgd(0.1, weight_decay=True)),
    "adamw weight_decay": (C, "`weight_decay` must be", lambda: o.adamw(0.1, weight_decay=-1.0)),
    "nesterov 'no'": (
        C,
        "`nesterov` must be True or False, got 'no'",
        lambda: o.sgd(0.1, 0.9, nesterov="no"),
    ),
    "centered 1": (C, "`centered` must be True or False, got 1", lambda: o.rmsprop(0.1, centered=1)),
    "weighted 'x'": (C, "`weighted` must be True or False", lambda: m.accuracy(weighted="x")),
    "use_grad_mean 'x'": (
        C,
        "`use_grad_mean` must be True or False",
        lambda: ft.MultiSteps(SGD, 2, use_grad_mean="x"),
    ),
    "restore_best 'x'": (
        C,
        "`restore_best` must be True or False",
        lambda: cb.EarlyStopping(restore_best="x"),
    ),
    "shuffle 'no'": (C, "`shuffle` must be True or False", lambda: fit(shuffle="no")),
    "shuffle None": (C, "`shuffle` must be True or False", lambda: ft.data_loader((X, Y), 2, shuffle=None)),
    "verbose 2": (C, "`verbose` must be True or False.*`progress=False`", lambda: fit(verbose=2)),
    "verbose 0": (C, "`verbose` must be True or False, got 0 .*`progress=False`", lambda: fit(verbose=0)),
    "run_epoch(x, y)": (
        C,
        "`training` must be True or False",
        lambda: ft.run_epoch(PAIRS, state(PAIRS), X, Y),
    ),
    "steps 10.0": (
        C,
        "`steps` must be an integer >= 1, got 10.0 of type float; write `steps=10`",
        lambda: fit(epochs=None, steps=10.0),
    ),
    "cosine of 1e4": (C, "`steps`.*write `steps=10000`", lambda: s.cosine(0.1, 1e4)),
    "a key of 70 bits": (C, "`key`.*32 bits", lambda: state(key=2**70)),
    "a raw key of another kind": (C, r"`key`.*uint32\[4\].*typed", lambda: state(key=np.zeros(4, np.uint32))),
    "CSVLogger(3)": (C, "`path` must be a path", lambda: cb.CSVLogger(3)),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_misuse_is_refused_in_our_words(name):
    error, words, call = ROWS[name]
    with pytest.raises(error, match=words) as caught:
        call()
    assert len(str(caught.value)) < 500
    assert isinstance(caught.value, TypeError) == (error is A)


@pytest.mark.parametrize(
    ("name", "make"),
    {
        "a default": lambda: lambda p, b, c, d=1: loss_fn(p, b, c),
        "stars": lambda: lambda *args: loss_fn(*args),
        "a partial": lambda: functools.partial(lambda k, p, b, c: loss_fn(p, b, c), 1),
        "a partial by name": lambda: functools.partial(lambda p, b, c, k: loss_fn(p, b, c), k=1),
        "jit": lambda: jax.jit(lambda p, b, c: loss_fn(p, b, c)),
        "an object": Model,
        "a bound method": lambda: Model().method,
        "wrapped": lambda: functools.wraps(loss_fn)(lambda *args: loss_fn(*args)),
    }.items(),
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_every_kind_of_function_is_a_loss(name, make):
    loss = make()
    _, metrics = ft.train_step(ft.Task(loss, SGD), state(), BATCH)
    expected = np.mean((X @ PARAMS["w"] - Y) ** 2)
    np.testing.assert_allclose(ft.compute_metrics(TASK, metrics)["loss"], expected, rtol=1e-6)


@pytest.mark.parametrize("rate", [np.float64(0.125), jnp.float32(0.125), np.array(0.125), np.float16(0.125)])
def test_numbers_of_numpy_and_jax_are_numbers(rate):
    after, _ = ft.train_step(ft.Task(loss_fn, o.sgd(rate)), state(), BATCH)
    expected, _ = ft.train_step(TASK, state(), BATCH)
    np.testing.assert_array_equal(after.params["w"], expected.params["w"])


@pytest.mark.parametrize(
    "key",
    [
        7,
        np.int64(7),
        jax.random.key(7),
        jax.random.PRNGKey(7),
        np.asarray(jax.random.PRNGKey(7)),
        jnp.int32(7),
    ],
    ids=["int", "numpy", "typed", "raw", "raw, numpy", "array"],
)
def test_every_kind_of_key_is_the_same_key(key):
    np.testing.assert_array_equal(
        jax.random.key_data(state(key=key).key), jax.random.key_data(jax.random.key(7))
    )


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        (BATCH, KeyError, r"loss_fn `of_pairs`.*batch = dict\(x: float32\[4, 2\], y: float32\[4\]\)"),
        (X, TypeError, r"batch = array: float32\[4, 2\]"),
        (
            (X.T, Y[:2]),
            TypeError,
            r"batch = tuple\(0: float32\[2, 4\], 1: float32\[2\]\).*params = dict\(b: float32\[\]",
        ),
    ],
)
@pytest.mark.parametrize("verb", [ft.train_step, ft.eval_step, ft.compute_gradients])
def test_an_error_inside_the_loss_is_kept_and_says_what_it_was_called_with(verb, batch, error, words):
    with pytest.raises(Exception) as caught:
        verb(PAIRS, state(PAIRS), batch)
    assert isinstance(caught.value, error | IndexError | ValueError)
    assert not isinstance(caught.value, ft.ConfigError)
    notes = [note for note in caught.value.__notes__ if "loss_fn" in note]
    assert len(notes) == 1
    assert re.search(words, notes[0])


def test_a_mask_of_the_whole_tree_that_fails_is_told_how_it_is_called():
    with pytest.raises(AttributeError) as caught:
        decayed(lambda leaf: leaf.ndim > 1)
    assert any("`mask`" in note and "jax.tree.map" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("kind", [dict, flax.core.freeze])
@pytest.mark.parametrize("of", [dict, flax.core.freeze])
def test_a_mask_of_another_mapping_type_is_matched_by_key(kind, of):
    # In another order too: by key, and not by position.
    params, mask = kind({"w": jnp.ones(2), "b": jnp.ones(())}), of({"b": False, "w": True})
    tx = ft.chain(ft.add_weight_decay(0.5, mask), ft.scale_by_learning_rate(1.0))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert type(updates) is type(params)
    np.testing.assert_array_equal(updates["w"], [-0.5, -0.5])
    np.testing.assert_array_equal(updates["b"], 0.0)


def test_a_refused_state_is_not_consumed():
    old = state()
    with pytest.raises(C, match="another optimizer"):
        ft.train_step(ft.Task(loss_fn, ADAM), old, BATCH)
    ft.train_step(TASK, old, BATCH)


# --- the mechanism


def test_checked_functions_are_what_they_were():
    for function in (ft.fit, ft.train_step, ft.losses.mse, ft.sharding.mesh, ft.scores.roc_auc_score):
        own = function.__wrapped__
        assert inspect.signature(function) == inspect.signature(own)
        assert (function.__name__, function.__doc__) == (own.__name__, own.__doc__)
        assert pickle.loads(pickle.dumps(function)) is function
    assert inspect.signature(cb.EarlyStopping).parameters["patience"].default == 10
    assert next(iter(inspect.signature(ft.MultiSteps).parameters)) == "opt"
    # What each step makes is as Python made it.
    assert not hasattr(ft.TrainState.__init__, "__checked__")
    assert not hasattr(t.ScaleByAdamState.__new__, "__checked__")


def test_every_public_function_is_checked():
    modules = [ft, *(x for x in vars(ft).values() if inspect.ismodule(x) and hasattr(x, "__all__"))]
    found = 0
    for module in (x for x in modules if x is not ft.tree):
        for name in module.__all__:
            x = getattr(module, name)
            if inspect.isfunction(x):
                assert hasattr(x, "__checked__") or hasattr(x, "makes"), f"{module.__name__}.{name}"
                found += 1
    assert found > 100


def test_errors_from_inside_are_left_alone():
    @checked
    def outer(x):
        return inner()

    def inner(y):
        return y

    with pytest.raises(TypeError, match="inner") as caught:
        outer(1)
    assert not isinstance(caught.value, ft.ConfigError)
    with pytest.raises(A, match="`z` is no argument of `outer"):
        outer(z=1)
    assert outer.__wrapped__.__name__ == "outer"


def test_a_function_of_the_library_in_a_task_has_the_fingerprint_it_had():
    from fntrain._core.fingerprint import fingerprint

    assert fingerprint(ft.losses.mse) == {"function": "fntrain.mse", "defaults": {"weights": None}}
