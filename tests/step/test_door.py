"""What `init_state` says of an optimizer that climbs, and of leaves that one path names."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft

PARAMS = {"w": jnp.ones(2), "b": jnp.ones(())}


def loss_fn(params, batch, ctx):
    return batch * jnp.sum(params["w"]) + params["b"]


lr = ft.transforms.scale_by_learning_rate
UPHILL = {
    "a clip": lambda: ft.clip_by_norm(1.0),
    "a chain without a rate": lambda: ft.chain(
        ft.clip_by_norm(1.0), ft.scale_by_adam(), ft.add_weight_decay(0.1)
    ),
    "nothing": lambda: ft.chain(),
    "two rates": lambda: ft.chain(ft.optimizers.adamw(1e-3), ft.optimizers.sgd(0.1)),
    "inside a window": lambda: ft.MultiSteps(ft.momentum(0.9), 2),
    "inside a guard": lambda: ft.skip_nonfinite(ft.scale_by_rms()),
    "a group": lambda: ft.by_path({"w": ft.optimizers.sgd(0.1), ".*": ft.clip_by_norm(1.0)}),
    "frozen": lambda: ft.freeze(ft.nesterov(0.9), "b"),
    "sam": lambda: ft.sam(ft.scale_by_lion()),
    "held": lambda: ft.with_hyperparams(ft.clip_by_norm, max_norm=1.0),
}


@ft.transforms.transform
def own():
    return lambda params: (), lambda updates, state, params=None, **extra: (updates, state)


SILENT = {
    "sgd": lambda: ft.optimizers.sgd(0.1),
    "a rate in front": lambda: ft.chain(lr(0.1), ft.clip_by_norm(1.0)),
    "around all": lambda: ft.skip_nonfinite(
        ft.MultiSteps(ft.chain(ft.lookahead(ft.optimizers.adamw()), ft.ema(0.9)), 2)
    ),
    "groups": lambda: ft.by_path({"w": ft.optimizers.sgd(0.1), ".*": ft.optimizers.lion()}),
    "a window in front": lambda: ft.chain(ft.MultiSteps(ft.clip_by_norm(1.0), 2), ft.optimizers.sgd(0.1)),
    "a plateau": lambda: ft.chain(ft.optimizers.adafactor(), ft.reduce_on_plateau()),
    # Of these nobody knows.
    "foreign": lambda: optax.scale(-0.1),
    "foreign in a chain": lambda: ft.chain(ft.clip_by_norm(1.0), optax.scale(-0.1)),
    "own": lambda: ft.chain(ft.clip_by_norm(1.0), own()),
}


@pytest.mark.parametrize("name", UPHILL)
def test_an_optimizer_that_climbs_is_warned_of(name):
    tx = UPHILL[name]()
    with pytest.warns(UserWarning, match=r"`tx` .*adds its updates along the gradient"):
        state = ft.init_state(ft.Task(loss_fn, tx), PARAMS)
    assert int(state.step) == 0


def test_and_it_does_climb():
    tx = UPHILL["a clip"]()
    with pytest.warns(UserWarning, match=re.escape(repr(tx))) as found:
        state = ft.init_state(task := ft.Task(loss_fn, tx), PARAMS)
    assert found[0].filename == __file__  # it points at the caller's line
    before = ft.eval_step(task, state, jnp.ones(4))
    state, _ = ft.train_step(task, state, jnp.ones(4))
    after = ft.eval_step(task, state, jnp.ones(4))
    assert ft.compute_metrics(task, after)["loss"] > ft.compute_metrics(task, before)["loss"]


@pytest.mark.parametrize("name", SILENT)
def test_one_that_does_not_or_may_not_is_not(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ft.init_state(ft.Task(loss_fn, SILENT[name]()), PARAMS)


TWICE = {"a/b": {"c": jnp.ones(1)}, "a": {"b/c": jnp.ones(1)}}
DOORS = {
    "init_state": lambda: ft.init_state(ft.Task(loss_fn, ft.optimizers.sgd(0.1)), TWICE),
    "a function": lambda: ft.init_state(ft.Task(loss_fn, ft.optimizers.sgd(0.1)), lambda key: TWICE),
    "freeze": lambda: ft.freeze(ft.optimizers.sgd(0.1), "^a/b/c$").init(TWICE),
    "by_path": lambda: ft.by_path({".*": ft.optimizers.sgd(0.1)}).init(TWICE),
    "a mask": lambda: ft.add_weight_decay(0.1, mask="a").init(TWICE),
    "rules": lambda: ft.sharding.report(ft.sharding.rules.specs(TWICE, ft.sharding.mesh(data=8), None)),
    "a list and a text": lambda: ft.freeze(ft.optimizers.sgd(0.1), "0").init(
        {"a": [jnp.ones(1)], "a/0": jnp.ones(1)}
    ),
}


@pytest.mark.parametrize("name", DOORS)
def test_two_leaves_of_one_path_are_refused(name):
    with pytest.raises(ft.ConfigError, match=r"two leaves of the path `a/(b/c|0)`"):
        DOORS[name]()


def test_slashes_alone_are_no_fault():
    params = {"mlp/~/linear": {"w": jnp.ones(1)}, "mlp": {"w": jnp.ones(1)}}
    tx = ft.freeze(ft.optimizers.sgd(1.0), "linear")
    u, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(u["mlp/~/linear"]["w"], [0.0])
    np.testing.assert_array_equal(u["mlp"]["w"], [-1.0])


@pytest.mark.parametrize("start", [2**24, 2**31 - 2])
def test_counts_are_exact_and_do_not_wrap(start):
    task = ft.Task(loss_fn, ft.optimizers.adam(lambda t: jnp.where(t == start, 0.5, 0.25)))
    state = ft.init_state(task, PARAMS)
    here = jnp.int32(start)
    put = lambda x: jnp.copy(here) if x.dtype == jnp.int32 else x
    state = state.replace(
        step=jnp.copy(here), updates=jnp.copy(here), opt_state=jax.tree.map(put, state.opt_state)
    )
    rates = []
    for _ in range(3):
        state, metrics = ft.train_step(task, state, jnp.ones(4))
        rates.append(float(ft.compute_metrics(task, metrics)["learning_rate"]))
    last = min(start + 3, 2**31 - 1)
    assert (int(state.step), int(state.updates)) == (last, last)
    assert rates == [0.5, 0.25, 0.25]
    assert {int(x) for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.int32} == {last}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
