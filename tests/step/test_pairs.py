"""`[B, 1] - [B]` in a loss of one's own is said, once, by name."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def make(loss_fn, **kwargs):
    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1), **kwargs)
    return task, ft.init_state(task, {"w": jnp.zeros((3, 1))})


def own_loss(params, batch, ctx):
    x, y = batch
    return jnp.square(x @ params["w"] - y[None, :])  # [6, 1] - [1, 6]


def test_a_loss_of_pairs_is_warned_about_once_and_by_name():
    task, state = make(own_loss)
    with pytest.warns(UserWarning, match=r"`own_loss` returned values of shape \[6, 6\] .* pair of examples"):
        ft.train_step(task, state, (X, X[:, 0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task, state = make(own_loss)
        ft.eval_step(task, state, (X, X[:, 0]))
        task, state = make(own_loss, microbatches=3)
        ft.train_step(task, state, (X, X[:, 0]))


def test_what_is_meant_is_not_warned_about():
    def per_example(params, batch, ctx):
        return ft.losses.mse((batch[0] @ params["w"])[:, 0], batch[1])

    def several(params, batch, ctx):
        return ft.Loss(jnp.square(batch[0]) + jnp.sum(params["w"]))

    def tokens(params, batch, ctx):
        return ft.losses.cross_entropy(jnp.zeros((6, 6, 3)) + jnp.sum(params["w"]), batch)

    def shifted(params, batch, ctx):
        return ft.losses.cross_entropy(jnp.zeros((6, 6, 3)) + jnp.sum(params["w"]), batch[:, 1:])

    def weighed(params, batch, ctx):
        return ft.Loss(batch + jnp.sum(params["w"]), jnp.tril(jnp.ones((6, 6))))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss_fn, batch in (
            (weighed, np.zeros((6, 6), np.float32)),
            (per_example, (X, X[:, 0])),
            (several, (X, X[:, 0])),
            (tokens, np.zeros((6, 6), np.int32)),
            (shifted, np.zeros((6, 7), np.int32)),
            (own_loss, (X[:1], X[:1, 0])),
        ):
            ft.train_step(*make(loss_fn), batch)
