"""What trains wrongly without a word where modules of other libraries meet parameters: each is refused, or said."""

import warnings

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

import fntrain as ft

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int32)
TASK = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b[:, 0]), ft.optimizers.sgd(0.1))


@pytest.fixture(autouse=True)
def usual_promotion():
    """Their layers are written for JAX's own defaults, and not for the strict ones of these tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class NNXNet(nnx.Module):
    """With `inner`, what a call says itself, against what the step sets."""

    def __init__(self, rngs, inner=None):
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(3, 2, rngs=rngs)
        self.inner = inner

    def __call__(self, x):
        x = self.norm(x, **({"use_running_average": False} if self.inner == "norm" else {}))
        return self.last(self.drop(x, **({"deterministic": False} if self.inner == "drop" else {})))


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Param(jax.random.normal(rngs.params(), (3, 2)))
        self.out = self.embed


class LinenNet(nn.Module):
    """With `stuck`, a layer that trains whatever the step says."""

    stuck: str = ""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train and self.stuck != "norm")(x)
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train and self.stuck != "drop")(x))


OfTorch = type("OfTorch", (), {"__module__": "torch.nn.modules.linear", "__call__": lambda self, x: x})


# -- what is no tree of parameters -----------------------------------------------------------------------------------


def linen_variables(key=None):
    return LinenNet().init(jax.random.key(0) if key is None else key, X, train=False)


WHOLE = {
    "an NNX module": (lambda: NNXNet(nnx.Rngs(0)), r"`drop/rngs/count` is a RngCount of a Flax NNX module"),
    "an NNX module's statistics": (lambda: nnx.BatchNorm(3, rngs=nnx.Rngs(0)), "`mean` is a BatchStat"),
    "an NNX module, made": (lambda: lambda key: NNXNet(nnx.Rngs(key)), r"`fntrain\.models\.nnx\(module\)`"),
    "all of NNX's state": (lambda: nnx.state(NNXNet(nnx.Rngs(0))), r"`nnx\.state\(module, nnx\.Param\)`"),
    "what NNX splits": (lambda: nnx.split(NNXNet(nnx.Rngs(0))), "RngCount"),
    "tied weights of NNX": (lambda: Tied(nnx.Rngs(0)), "`out` is `embed` once more"),
    "a class of NNX": (lambda: NNXNet, "is a model, NNXNet, and not the arrays"),
    "Linen's variables": (linen_variables, r"would train `batch_stats` as well: give `fntrain\.models\.Variables"),
    "Linen's variables, made": (lambda: linen_variables, r"fntrain\.models\.linen\(module, example\)"),
    "a Linen module": (lambda: LinenNet(), "is a model, LinenNet"),
    "an Equinox module with a function": (
        lambda: eqx.nn.MLP(2, 2, 2, depth=1, key=jax.random.key(0)),
        "`activation` is a function of an Equinox module",
    ),
    "an Equinox module with a rate": (
        lambda: {"net": eqx.nn.Sequential([eqx.nn.Linear(3, 2, key=jax.random.key(0)), eqx.nn.Dropout(0.5)])},
        r"`net/layers/1/p` is the float 0\.5 of an Equinox module",
    ),
    "an Equinox module, made": (
        lambda: lambda key: eqx.nn.MLP(2, 2, 2, depth=1, key=key),
        r"fntrain\.models\.equinox\(module\)",
    ),
    "a Haiku function": (lambda: hk.transform(lambda x: x), r"fntrain\.models\.haiku\(transformed, example\)"),
    "a module of torch": (lambda: OfTorch(), "is a module of torch, OfTorch.*named_parameters"),
    "a model": (lambda: ft.models.nnx(NNXNet), r"`init_state\(task, model\.init\)`"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_module_is_no_parameters(name):
    make, message = WHOLE[name]
    with pytest.raises(ft.ConfigError, match=message):
        ft.init_state(TASK, make())


def test_what_is_parameters_alone_is_taken():
    module = eqx.nn.Linear(3, 2, key=jax.random.key(0))  # can be called, and is a tree of arrays
    task = ft.Task(lambda p, b, ctx: ft.losses.mse(jax.vmap(p)(b)[:, 0], b[:, 0]), ft.optimizers.sgd(0.1))
    state, _ = ft.train_step(task, ft.init_state(task, module), X)
    assert isinstance(state.params, eqx.nn.Linear)
    assert not np.array_equal(state.params.weight, module.weight)
    taken = {
        "Linen": (linen_variables()["params"], ["BatchNorm_0/bias", "Dense_0/kernel"]),
        "Linen without others": ({"params": linen_variables()["params"]}, ["params/Dense_0/kernel"]),
        "NNX": (nnx.state(NNXNet(nnx.Rngs(0)), nnx.Param), ["last/kernel/value"]),
        "NNX, tied, its state": (nnx.state(Tied(nnx.Rngs(0))), ["embed/value"]),
        "Equinox": (eqx.filter(eqx.nn.MLP(2, 2, 2, depth=1, key=jax.random.key(0)), eqx.is_array), ["layers/0/bias"]),
        "Linen's name": ({"params": {"w": np.ones(3, np.float32)}, "scale": np.ones(1, np.float32)}, ["scale"]),
    }  # fmt: skip
    for name, (params, paths) in taken.items():
        assert set(paths) <= set(ft.tree.paths(ft.init_state(TASK, params).params)), name


# -- what a step consumes --------------------------------------------------------------------------------------------


def test_what_replaces_a_part_of_a_state_stays_usable():
    state = ft.init_state(TASK, {"w": np.ones(3, np.float32)})
    mine, numpy = {"w": jnp.full(3, 2.0)}, {"w": np.full(3, 2.0, np.float32)}
    for given in (mine, numpy):
        after, _ = ft.train_step(TASK, state.replace(params=given), X)
        assert np.asarray(given["w"]).tolist() == [2.0] * 3
        assert not np.array_equal(after.params["w"], given["w"])
        state = ft.init_state(TASK, {"w": np.ones(3, np.float32)})
    # What the state has already is not copied, and one array at two places does not meet itself.
    assert state.replace(params=state.params).params["w"] is state.params["w"]
    two = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ (p["a"] + p["b"]), b[:, 0]), ft.optimizers.sgd(0.1))
    state = ft.init_state(two, {"a": mine["w"], "b": mine["w"]})
    ft.train_step(two, state.replace(params={"a": mine["w"], "b": mine["w"]}), X)


def test_what_a_step_has_consumed_is_named_wherever_it_comes_in():
    state = ft.init_state(TASK, {"w": np.ones(3, np.float32)})
    spent = state.params
    state, _ = ft.train_step(TASK, state, X)
    with pytest.raises(ft.ConfigError, match="`params` leaf `w` was consumed by a train step"):
        ft.init_state(TASK, spent)
    with pytest.raises(ft.ConfigError, match="`params` leaf `w` was consumed by a train step"):
        state.replace(params=spent)


def test_numbers_that_an_nnx_module_shares_with_a_state_are_gone_and_those_of_module_are_not():
    model = ft.models.nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    task = ft.supervised(model)
    state = ft.init_state(task, model.init)
    shared, own = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), model.module(state)
    nnx.update(shared, state.params)
    wanted = np.asarray(own(X))
    np.testing.assert_array_equal(shared(X), wanted)
    ft.train_step(task, state, (X, Y))
    np.testing.assert_array_equal(own(X), wanted)
    assert shared.kernel.get_value().is_deleted()  # as the page on models says


# -- evaluation that is training -------------------------------------------------------------------------------------


STUCK = {
    "NNX's dropout": (lambda: ft.models.nnx(lambda r: NNXNet(r, "drop")), "Flax NNX: `drop/rngs/count` changes in"),
    "NNX's norm": (lambda: ft.models.nnx(lambda r: NNXNet(r, "norm")), "Flax NNX: `norm/mean` changes in"),
    "Linen's dropout": (lambda: ft.models.linen(LinenNet("drop"), X), "Linen: `Dropout_0` drops in"),
    "Haiku's function": (
        lambda: ft.models.haiku(hk.transform(lambda x: hk.Linear(2)(hk.dropout(hk.next_rng_key(), 0.5, x))), X),
        "Haiku: the function draws in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STUCK)
def test_a_module_that_trains_in_evaluation_is_told(name):
    make, message = STUCK[name]
    model = make()
    variables = model.init(jax.random.key(0))
    with pytest.warns(UserWarning, match=f"{message} evaluation as in training"):
        called(model, variables, train=False)
    called(model, variables, train=True)


def test_a_norm_of_linen_that_trains_in_evaluation_is_refused_by_name():
    model = ft.models.linen(LinenNet("norm"), X)
    with pytest.raises(
        ft.ConfigError, match="Linen's `BatchNorm_0` takes the batch's own statistics in evaluation"
    ):
        called(model, model.init(jax.random.key(0)), train=False)


def called(model, variables, train):
    ctx = ft.Context(jax.random.key(1), train, jnp.zeros((), jnp.int32), variables.model_state)
    with warnings.catch_warnings():
        if train:
            warnings.simplefilter("error")
        return model.apply(variables.params, X, ctx=ctx)[0]


@pytest.mark.parametrize("name", ["nnx", "linen", "equinox"])
def test_a_module_that_was_given_in_either_mode_is_set_by_the_step(name):
    """NNX's `train()` and Equinox's `inference` are in the module; a step sets them, whichever way they came."""
    if name == "nnx":
        made, other = NNXNet(nnx.Rngs(0)), NNXNet(nnx.Rngs(0))
        made.train(), other.eval()
        a, b = ft.models.nnx(made), ft.models.nnx(other)
    elif name == "equinox":
        made = eqx.nn.Sequential([eqx.nn.Dropout(0.5), eqx.nn.Linear(3, 2, key=jax.random.key(0))])
        a, b = ft.models.equinox(made), ft.models.equinox(eqx.nn.inference_mode(made))
    else:
        a = b = ft.models.linen(LinenNet(), X)
    variables = a.init(jax.random.key(0))
    for train in (True, False):
        np.testing.assert_array_equal(called(a, variables, train), called(b, variables, train))
    assert np.abs(called(a, variables, True) - called(a, variables, False)).max() > 1e-2


# -- dtypes ----------------------------------------------------------------------------------------------------------


class EquinoxNet(eqx.Module):
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self, key, mode="batch"):
        self.norm, self.last = eqx.nn.BatchNorm(3, "rows", mode=mode), eqx.nn.Linear(3, 2, key=key)

    def __call__(self, x, state):
        x, state = self.norm(x, state)
        return self.last(x), state


@pytest.mark.parametrize("name", ["nnx", "linen", "equinox", "equinox, averaged"])
def test_statistics_stay_as_they_are_under_a_policy(name):
    model = {
        "nnx": lambda: ft.models.nnx(NNXNet),
        "linen": lambda: ft.models.linen(LinenNet(), X),
        "equinox": lambda: ft.models.equinox(eqx.nn.make_with_state(EquinoxNet)),
        "equinox, averaged": lambda: ft.models.equinox(lambda key: eqx.nn.make_with_state(EquinoxNet)(key, "ema")),
    }[name]()  # fmt: skip
    task = ft.supervised(model, policy="bf16")
    state = ft.init_state(task, model.init)
    before = jax.tree.map(np.asarray, state.model_state)
    state, metrics = ft.train_step(task, state, (X, Y))
    assert np.isfinite(ft.compute_metrics(task, metrics)["loss"])
    after = jax.tree.map(np.asarray, state.model_state)
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(before)]
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}


def test_a_gradient_of_bfloat16_is_no_other_for_an_integer_and_a_function_beside():
    class Mixed(eqx.Module):
        weight: jax.Array
        table: jax.Array
        activation: object
        nothing: None = None
        scale: float = 2.0

        def __call__(self, x):
            return self.activation(x @ self.weight) * self.scale + self.table[0]

    module = Mixed(jnp.ones((3, 2)), jnp.arange(2), jax.nn.relu)
    model = ft.models.equinox(module)
    task = ft.supervised(model)
    state = ft.init_state(task, model.init)
    assert ft.tree.paths(state.params) == ["table", "weight"]
    state, _ = ft.train_step(task, state, (X, Y))
    back = model.module(state)
    assert (back.activation, back.nothing, back.scale) == (jax.nn.relu, None, 2.0)
    assert back.table.tolist() == [0, 1]
    assert not np.array_equal(back.weight, module.weight)
