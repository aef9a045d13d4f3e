"""The memory a run will take, told before anything is allocated, against what it then takes."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import fntrain as ft

SHAPES = {"up": (32, 64), "down": (64, 32), "scale": (1, 32)}


def init_params(key):
    del key
    return {name: jnp.ones(shape) for name, shape in SHAPES.items()}


def perceptron_loss(params, batch, ctx):
    hidden = jnp.tanh(batch["x"] @ params["up"])
    return ft.losses.mse(hidden @ params["down"] * params["scale"], batch["x"])


TASK = ft.Task(perceptron_loss, ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-3)))
TENSOR = [("up", P(None, "model")), ("down", P("model")), (".*", P())]


def held(tree):
    """Bytes on the first device, counted on the arrays themselves."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "rules", [None, TENSOR, ft.sharding.fsdp(min_size=64)], ids=["whole", "tensor", "fsdp"]
)
def test_it_is_what_the_state_then_takes(rules):
    mesh = ft.sharding.mesh(data=4, model=2)
    batch = {"x": np.ones((30, 32), np.float32)}
    plan = ft.sharding.plan(TASK, init_params, mesh, rules, batch=batch)
    state = ft.init_state(TASK, init_params, mesh=mesh, rules=rules)
    assert plan.size == sum(np.prod(shape) for shape in SHAPES.values())
    assert plan.parameters == held(state.params) == plan.gradients
    assert plan.optimizer_state == held(state.opt_state)
    assert plan.batch == 8 * 32 * 4  # 30 rows over 4 devices: 8 each
    assert plan.total == sum(
        (plan.parameters, plan.gradients, plan.optimizer_state, plan.activations, plan.batch)
    )
    # The same from sizes, from shapes, and from arrays.
    shapes = jax.eval_shape(init_params, 0)
    for params in (shapes, state.params):
        assert ft.sharding.plan(TASK, params, {"data": 4, "model": 2}, rules, batch=batch) == plan


def test_activations_are_what_the_backward_pass_keeps():
    def plan(rows, loss=perceptron_loss, **options):
        task = ft.Task(loss, ft.optimizers.sgd(0.1), **options)
        batch = {"x": jax.ShapeDtypeStruct((rows, 32), jnp.float32)}
        return ft.sharding.plan(task, init_params, {"data": 4}, batch=batch).activations

    # Eight rows a device: twice the hidden units (tanh's input to the product, and its derivative), and of the
    # output what mse and the scale need; the batch itself is counted apart.
    row = plan(64) - plan(32)
    assert row % 8 == 0
    per_row = row // 8
    assert 4 * (64 + 2 * 32) <= per_row <= 4 * (2 * 64 + 3 * 32)
    assert plan(64, microbatches=2) == plan(32)
    whole = plan(32)

    def remembered(params, batch, ctx):
        return jax.checkpoint(lambda p, b: perceptron_loss(p, b, ctx).values)(params, batch)

    assert plan(32, remembered) < whole / 4


def test_copies_in_the_compute_dtype_are_split_like_their_parameters():
    def copies(sizes, rules):
        task = ft.Task(perceptron_loss, ft.optimizers.sgd(0.1), policy="bf16")
        batch = {"x": jax.ShapeDtypeStruct((sizes["data"], 32), jnp.float32)}
        return ft.sharding.plan(task, init_params, sizes, rules, batch=batch).activations

    whole, share = copies({"data": 1, "model": 1}, TENSOR), copies({"data": 1, "model": 8}, TENSOR)
    # Kept are those of `down` and `scale`: without a gradient of the batch, nobody asks for `up` again.
    held = (2 * 64 * 32 / 8 + 32) / (2 * 64 * 32 + 32)
    assert whole - share == pytest.approx(2 * (64 * 32 + 32) * (1 - held), abs=1)


LLAMA = dict(layers=80, width=8192, hidden=28672, heads=64, shared=8, head=128, words=128_256)


def llama(layers, width, hidden, heads, shared, head, words):
    """A 70 B decoder's parameters as shapes, and its loss."""
    blocks = {
        "query": (layers, width, heads, head),
        "key": (layers, width, shared, head),
        "value": (layers, width, shared, head),
        "out": (layers, heads, head, width),
        "gate": (layers, width, hidden),
        "up": (layers, width, hidden),
        "down": (layers, hidden, width),
        "norm": (layers, 2, width),
    }
    shapes = {"embed": (words, width), "head": (width, words), "norm": (width,), "blocks": blocks}
    params = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )

    def norm(x, scale):
        return (
            x
            * scale.reshape(1, 1, -1)
            * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5).astype(x.dtype)
        )

    def block(x, p):
        y = norm(x, p["norm"][0])
        q, k, v = (jnp.einsum("btd,dhk->bthk", y, p[name]) for name in ("query", "key", "value"))
        x = x + jnp.einsum("bthk,hkd->btd", jax.nn.dot_product_attention(q, k, v, is_causal=True), p["out"])
        y = norm(x, p["norm"][1])
        return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"], None

    def loss(params, batch, ctx):
        x, _ = jax.lax.scan(jax.checkpoint(block), params["embed"][batch], params["blocks"])
        return ft.losses.cross_entropy(norm(x, params["norm"]) @ params["head"], batch)

    return params, loss


def test_seventy_billion_parameters_are_planned_in_seconds():
    params, loss = llama(**LLAMA)
    rules = [
        ("query|key|value", P(None, "data", "model")),
        ("out", P(None, "model", None, "data")),
        ("gate|up", P(None, "data", "model")),
        ("down", P(None, "model", "data")),
        ("embed", P("model", "data")),
        ("head", P("data", "model")),
        (".*", P()),
    ]
    task = ft.Task(loss, ft.optimizers.adamw(1e-4), policy="bf16", microbatches=2)
    batch = jax.ShapeDtypeStruct((128, 4096), jnp.int32)
    before, start = len(jax.live_arrays()), time.monotonic()
    with jax.numpy_dtype_promotion("standard"):  # which JAX's own attention is written for
        plan = ft.sharding.plan(task, params, {"data": 64, "model": 8}, rules, batch=batch)
    print(plan)
    assert time.monotonic() - start < 20
    assert len(jax.live_arrays()) <= before + 2  # nothing but a key was made
    assert plan.size == 70_553_706_496
    norms = (80 * 2 + 1) * 8192  # on every device whole; everything else over all 512
    assert plan.parameters == 4 * ((plan.size - norms) // 512 + norms)
    assert plan.optimizer_state - 2 * plan.parameters in range(64)
    # Remembered: each layer's input, one sequence of bfloat16 a device, and the logits' making.
    layers = 80 * 4096 * 8192 * 2
    logits = 4096 * 128_256 * 4
    copies = plan.parameters // 2
    assert layers + copies < plan.activations < layers + copies + 4 * logits
    assert "70,553,706,496 parameters on 512 devices (data 64 x model 8)" in str(plan)


def test_without_a_batch_activations_are_not_known():
    plan = ft.sharding.plan(TASK, init_params, {"data": 8})
    assert plan.activations is None
    assert "activations     not known: pass `batch`" in str(plan)


def test_errors_name_what_is_wrong():
    with pytest.raises(ft.ConfigError, match="`task`"):
        ft.sharding.plan(perceptron_loss, init_params, {"data": 8})
    for mesh in (8, {}, None, {"data": 0}, {"data": 2.0}):
        with pytest.raises(ft.ConfigError, match="mesh"):
            ft.sharding.plan(TASK, init_params, mesh)
    with pytest.raises(ft.ConfigError, match="does not divide"):
        ft.sharding.plan(TASK, init_params, {"data": 3}, [(".*", P("data"))])
    with pytest.raises(ft.ConfigError, match="cover no leaf"):
        ft.sharding.plan(TASK, init_params, {"data": 2}, [("up", P())])
