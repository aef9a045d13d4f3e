"""Norms and clips over the whole range of float32, and of the dtypes below it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

CLIPS = {"global": ft.clip_by_norm, "leaf": ft.clip_by_leaf_norm}
LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("limit", [1.0, 1e-3, 1e-20, 1e20])
@pytest.mark.parametrize("size", [2e-18, 1e-10, 1.0, 1e19, 1e20, 8.4e37, 8.6e37, 1e38, LARGEST])
def test_what_is_finite_comes_out_with_its_norm(clip, limit, size):
    g = np.array([size, -size / 2, 0.0], np.float32)
    tx = CLIPS[clip](limit)
    u, state = tx.update(jnp.asarray(g), tx.init(None))
    norm = np.sqrt((g.astype(np.float64) ** 2).sum())
    want = g.astype(np.float64) * min(1, limit / norm)
    np.testing.assert_allclose(u, want, rtol=1e-6)
    np.testing.assert_allclose(state.grad_norm, norm if norm < LARGEST else np.inf, rtol=1e-6)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_has_the_norm_of_float32(clip, dtype):
    g = jnp.full(
        (4096,), jnp.finfo(dtype).max, dtype
    )  # whose norm neither dtype, nor, for bfloat16, float32 holds
    u, _ = CLIPS[clip](1.0).update(g, CLIPS[clip](1.0).init(None))
    np.testing.assert_allclose(np.asarray(u, np.float32), 1 / 64, rtol=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", CLIPS)
def test_what_is_not_finite_shows(clip, bad):
    u, _ = CLIPS[clip](1.0).update(jnp.array([1.0, bad]), CLIPS[clip](1.0).init(None))
    assert np.isnan(np.asarray(u)).all()


def test_a_look_uphill_from_a_norm_that_float32_cannot_hold():
    g = jnp.full((4,), 3e38)
    seen = []
    tx = ft.sam(ft.optimizers.sgd(1.0), rho=2.0)

    def f(p):
        seen.append(np.asarray(p))
        return 0.0, jnp.ones(4)

    tx.update(g, tx.init(g), jnp.zeros(4), value_and_grad_fn=f)
    np.testing.assert_allclose(seen[0], 1.0, rtol=1e-6)


def test_a_clip_in_front_saves_the_second_moment():
    tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adam(0.1))
    p = jnp.ones(2)
    _, state, _ = tx.apply(jnp.array([2e38, 1.0]), tx.init(p), p)
    np.testing.assert_allclose(state["adam"]["scale_by_adam"].nu[0], 1e-3, rtol=1e-5)


def test_a_norm_under_shard_map_of_huge_numbers():
    mesh = ft.sharding.mesh(data=8)
    spec = jax.sharding.PartitionSpec("data")
    f = jax.shard_map(lambda x: ft.tree.norm(x)[None], mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(f(jnp.full((16,), 1e30)), np.sqrt(2) * 1e30, rtol=1e-6)
