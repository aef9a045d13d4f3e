"""The laws of whole steps, and of their randomness.

Below the tasks stand broken specimens: things that break one law each, which the same check must refuse,
with the right words. A check that lets its specimen pass proves nothing about the rows above it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain import testing
from fntrain.testing import LawError

RNG = np.random.default_rng(0)

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
