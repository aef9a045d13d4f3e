"""What `init_state` takes for parameters: pairs and callable trees are; model state is said by its type."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.step.state import Variables

SGD = ft.optimizers.sgd(0.5)
ONES = np.ones(2, np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A model as a tree that can be called, as of Equinox."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return x * self.weight[None] + self.bias[None]


def test_a_pair_is_parameters_and_both_halves_are_trained():
    task = ft.Task(lambda p, b, c: ft.losses.mse(b @ p[0] + p[1][0], b[:, 0]), SGD)
    given = ft.init_state(task, (jnp.ones(2), jnp.ones(1)))
    made = ft.init_state(task, lambda key: (jnp.ones(2), jnp.ones(1)))
    assert made.model_state is None
    assert jax.tree.structure(made) == jax.tree.structure(given)
    state, _ = ft.train_step(task, made, np.array([[1, 2], [3, 4]], np.float32))
    for before, after in zip(given.params, state.params):
        assert not np.array_equal(before, after)


def test_variables_say_which_is_which():
    task = ft.Task(lambda p, b, c: ft.losses.mse(b * p["w"], b), SGD)
    made = ft.init_state(task, lambda key: Variables({"w": jnp.ones(2)}, {"mean": jnp.zeros(2)}))
    given = ft.init_state(task, Variables({"w": ONES}, {"mean": 0 * ONES}))
    for state in (made, given):
        assert list(state.params) == ["w"]
        np.testing.assert_array_equal(state.model_state["mean"], 0)
    with pytest.warns(DeprecationWarning, match="Variables"):
        state = ft.init_state(task, lambda key: ({"w": jnp.ones(2)}, {"seen": jnp.zeros((), jnp.int32)}))
    assert int(state.model_state["seen"]) == 0


def test_a_callable_tree_is_parameters_and_is_not_called():
    task = ft.Task(lambda p, b, c: ft.losses.mse(p(b), b), SGD)
    state = ft.init_state(task, Module(ONES, ONES), key=0)
    assert isinstance(state.params, Module)
    state, _ = ft.train_step(task, state, np.ones((3, 2), np.float32))
    # The mean over two columns: d/dw (w x + b - x)^2 / 2 = (w x + b - x) x = 1.
    np.testing.assert_allclose(state.params.weight, 0.5)
    plan = ft.sharding.plan(task, Module(ONES, ONES), {"data": 1})
    assert plan is not None


def test_functions_of_a_key_are_called():
    task = ft.Task(lambda p, b, c: ft.losses.mse(b * p["w"], b), SGD)
    make = lambda scale, key: {"w": scale * jax.random.normal(key, (2,))}

    class Init:
        def __call__(self, key):
            return make(2.0, key)

    forms = [
        functools.partial(make, 2.0),
        jax.tree_util.Partial(make, 2.0),
        Init(),
        lambda key: make(2.0, key),
    ]
    states = [ft.init_state(task, form, key=3) for form in forms]
    for state in states:
        np.testing.assert_array_equal(state.params["w"], states[0].params["w"])


def test_a_mask_that_is_a_callable_tree_is_a_mask():
    tx = ft.chain(ft.add_weight_decay(0.1, mask=Module(True, False)), SGD)
    params = Module(jnp.ones(2), jnp.ones(2))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates.weight, -0.05)
    np.testing.assert_array_equal(updates.bias, 0)
