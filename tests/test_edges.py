"""The edge table: gradients of zero, tiny, huge, infinite and NaN numbers, for every transform and dtype.

Zero and small ones make finite updates; what is not finite, under a guard, changes nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fntrain import optimizers, transforms as T

BAD = [np.nan, np.inf, -np.inf]


def params(dtype):
    return {"a": jnp.array([-0.0, 1.0, -2.0], dtype), "b": jnp.array([[0.5]], dtype)}


def bits(tree):
    return [(x.dtype.name, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


EDGES = {
    "clip_by_norm": lambda: T.clip_by_norm(1.0),
    "clip_by_leaf_norm": lambda: T.clip_by_leaf_norm(1.0),
    "clip_by_value": lambda: T.clip_by_value(0.5),
    "adamw": lambda: optimizers.adamw(1e-3),
    "rmsprop": lambda: optimizers.rmsprop(1e-3, momentum=0.9, centered=True),
    "sgd": lambda: optimizers.sgd(0.1, momentum=0.9, nesterov=True),
    "lion": lambda: optimizers.lion(1e-4),
    "MultiSteps": lambda: T.MultiSteps(optimizers.adamw(1e-3), 1),
    "ema": lambda: T.chain(optimizers.sgd(0.1), T.ema(0.9)),
    "lookahead": lambda: T.lookahead(optimizers.sgd(0.1), 1),
    "with_hyperparams": lambda: T.with_hyperparams(optimizers.adamw, learning_rate=1e-3),
    "dynamic_loss_scale": lambda: T.dynamic_loss_scale(optimizers.adamw(1e-3)),
    "skip_spikes": lambda: T.skip_spikes(optimizers.adamw(1e-3), 1e30, 1),
}


@pytest.mark.parametrize("name", EDGES)
def test_edge_table(name):
    tx = T.skip_nonfinite(EDGES[name]())
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        p, info = params(dtype), jnp.finfo(dtype)
        apply = jax.jit(tx.apply)
        state = tx.init(p)
        for value in (0.0, float(info.tiny), float(info.smallest_subnormal), 1.0):
            g = jax.tree.map(lambda x, v=value: jnp.full(x.shape, v, dtype), p)
            q, after, applied = apply(g, state, p)
            assert applied, (value, dtype)
            assert all(
                np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves((q, after)) if x.size
            )
        huge = jax.tree.map(lambda x: jnp.full(x.shape, info.max, dtype), p)
        q, after, _ = apply(
            huge, state, p
        )  # finite: taken, and whatever overflows is the transform's own doing
        assert int(after.skipped) == (
            name == "skip_spikes" and dtype != jnp.float16
        )  # whose norm is infinite
        p, state = jax.tree.map(jnp.copy, (p, state))
        for bad in BAD:
            g = {**huge, "b": huge["b"].at[0, 0].set(bad)}
            q, after, applied = apply(g, state, p)
            assert not applied
            assert bits((q, after.inner_state)) == bits((p, state.inner_state))
            assert int(after.total_skipped) == 1
