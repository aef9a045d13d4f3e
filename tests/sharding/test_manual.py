"""How JAX says what varies inside a `shard_map`: asked by name, and never read with a default."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.sharding import manual

SPEC = jax.sharding.PartitionSpec


def gradients():
    """The gradient of each shard by itself, of a step inside a `shard_map`, with a state that does not vary."""
    task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.5))
    state = ft.init_state(task, {"w": jnp.zeros(())})

    def one(state, batch):
        return jax.tree.map(lambda x: x[None], ft.compute_gradients(task, state, batch)[1])

    mesh = ft.sharding.mesh(data=8)
    mapped = jax.shard_map(one, mesh=mesh, in_specs=(SPEC(), SPEC("data")), out_specs=SPEC("data"))
    return np.asarray(mapped(state, jnp.arange(1.0, 9.0))["w"])


def test_each_shard_has_its_own_gradient():
    np.testing.assert_allclose(gradients(), -2 * np.arange(1.0, 9.0) ** 2)  # of (b w - b)^2 at w = 0


def test_a_name_that_were_gone_would_be_another_gradient(monkeypatch):
    """What the refusal below is for: a default in its place gives the sum over all shards to each of them."""
    jax.clear_caches()
    monkeypatch.setattr(manual, "_of_aval", lambda x: frozenset())
    assert not np.allclose(gradients(), -2 * np.arange(1.0, 9.0) ** 2)
    jax.clear_caches()


def test_a_jax_without_either_name_is_refused_at_import(monkeypatch):
    monkeypatch.setattr(manual.jax, "typeof", lambda x: types.SimpleNamespace(shape=(), dtype=np.float32))
    with pytest.raises(ImportError, match=f"mapped axes an array varies under JAX {jax.__version__}"):
        manual._reader()


def test_the_older_name_is_read_too(monkeypatch):
    aval = types.SimpleNamespace(vma=frozenset({"data"}))
    monkeypatch.setattr(manual.jax, "typeof", lambda x: aval)
    assert manual._reader()(aval) == {"data"}
