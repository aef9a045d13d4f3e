"""A step over a model is, bit for bit, that over the library's own way to take a module apart and put it together."""

import equinox as eqx
import haiku as hk
import jax
import numpy as np
import pytest
from flax import linen as nn, nnx

import fntrain as ft

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int32)


@pytest.fixture(autouse=True)
def usual_promotion():
    """Their layers are written for JAX's own defaults, and not for the strict ones of these tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](nnx.relu(self.norm(self.layers[0](x))))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x)))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class EquinoxNet(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    last: eqx.nn.Linear
    activation: object = jax.nn.relu

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.first, self.last = eqx.nn.Linear(4, 8, key=a), eqx.nn.Linear(8, 2, key=b)
        self.norm, self.drop = eqx.nn.BatchNorm(8, "rows", mode="batch"), eqx.nn.Dropout(0.5)

    def __call__(self, x, state, *, key):
        x, state = self.norm(self.first(x), state)
        return self.last(self.drop(self.activation(x), key=key)), state


def haiku_net(x, is_training):
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training))
    return hk.Linear(2)(hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x)


def nnx_by_hand():
    module = NNXNet(nnx.Rngs(3))
    graph, params, stats = nnx.split(module, nnx.Param, ...)

    def apply(params, stats, x, ctx):
        net = nnx.merge(graph, params, stats, copy=True)
        (net.train if ctx.train else net.eval)()
        return net(x), nnx.state(net, nnx.BatchStat)

    return ft.models.nnx(module), params, stats, apply


def linen_by_hand():
    module = LinenNet()
    model = ft.models.linen(module, X[:1])
    params, stats = model.init(jax.random.key(3))

    def apply(params, stats, x, ctx):
        variables, keys = {"params": params, **stats}, {"dropout": ctx.stream("dropout")}
        if not ctx.train:
            return module.apply(variables, x, train=False), stats
        return module.apply(variables, x, train=True, rngs=keys, mutable=["batch_stats"])

    return model, params, stats, apply


def equinox_by_hand():
    module, stats = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(3))
    params, static = eqx.partition(module, eqx.is_array)

    def apply(params, stats, x, ctx):
        net = eqx.nn.inference_mode(eqx.combine(params, static), value=not ctx.train)
        keys = jax.random.split(ctx.stream("equinox"), len(x))
        return jax.vmap(net, axis_name="rows", in_axes=(0, None), out_axes=(0, None))(x, stats, key=keys)

    return ft.models.equinox(module, stats), params, stats, apply


def haiku_by_hand():
    function = hk.transform_with_state(haiku_net)
    model = ft.models.haiku(function, X[:1])
    params, stats = model.init(jax.random.key(3))

    def apply(params, stats, x, ctx):
        return function.apply(params, stats, ctx.stream("haiku"), x, ctx.train)

    return model, params, stats, apply


BY_HAND = {"nnx": nnx_by_hand, "linen": linen_by_hand, "equinox": equinox_by_hand, "haiku": haiku_by_hand}


def numbers(tree):
    """The arrays of a tree by bits, whatever the order and the names of its nodes."""
    return sorted((str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", BY_HAND)
def test_steps_and_evaluations_are_bitwise_those_by_hand(name):
    model, params, stats, apply = BY_HAND[name]()

    def by_hand(params, batch, ctx):
        out, after = apply(params, ctx.model_state, batch[0], ctx)
        return ft.losses.cross_entropy(out, batch[1]).with_state(after if ctx.train else ctx.model_state)

    def over_model(params, batch, ctx):
        out, after = model.apply(params, batch[0], ctx=ctx)
        return ft.losses.cross_entropy(out, batch[1]).with_state(after)

    hand, ours = (ft.Task(f, ft.optimizers.adamw(0.01)) for f in (by_hand, over_model))
    theirs = ft.init_state(hand, params, model_state=stats)
    mine = ft.init_state(ours, model.init(jax.random.key(3)))
    assert numbers(mine.params) == numbers(theirs.params)
    first = numbers((mine.params, mine.model_state))
    for _ in range(3):  # where dropout, if there is any, draws anew
        theirs, theirs_said = ft.train_step(hand, theirs, (X, Y))
        mine, mine_said = ft.train_step(ours, mine, (X, Y))
        assert ft.compute_metrics(hand, theirs_said) == ft.compute_metrics(ours, mine_said)
    assert numbers(mine.params) == numbers(theirs.params)
    assert numbers(mine.model_state) == numbers(theirs.model_state)
    assert numbers((mine.params, mine.model_state)) != first
    assert ft.compute_metrics(hand, ft.eval_step(hand, theirs, (X, Y))) == ft.compute_metrics(
        ours, ft.eval_step(ours, mine, (X, Y))
    )


def test_restored_parameters_are_what_update_and_apply_take(tmp_path):
    for name in ("nnx", "linen"):
        model = BY_HAND[name]()[0]
        task = ft.supervised(model)
        with ft.Checkpointer(tmp_path / name) as checkpoints:
            state, _ = ft.train_step(task, ft.init_state(task, model.init), (X, Y))
            checkpoints.save(state)
        params = ft.restore_params(tmp_path / name)
        if name == "nnx":
            net = NNXNet(nnx.Rngs(7))
            nnx.update(net, params)  # lists by their places, as NNX has them
            nnx.update(net, jax.tree.map(jax.numpy.copy, state.model_state))
            net.eval()
            got, wanted = net(X), model.module(state)(X)
        else:
            got = LinenNet().apply({"params": params, **state.model_state}, X, train=False)
            wanted = model.module(state)(X, train=False)
        np.testing.assert_array_equal(got, wanted)
