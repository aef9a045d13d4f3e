"""What a user writes today: batch norm and dropout, AdamW, three epochs with a ragged last batch, and an evaluation.

One function a library, with optax alone; `docs/models.md` counts their lines. Each returns the loss over the data.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


def with_nnx(net, x, y):
    model = net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    @nnx.jit
    def total(model, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).sum()

    for epoch in range(3):
        order = np.random.default_rng(epoch).permutation(len(x))
        for rows in np.split(order, range(32, len(x), 32)):
            step(model, optimizer, x[rows], y[rows])
    model.eval()
    parts = [(x[i : i + 32], y[i : i + 32]) for i in range(0, len(x), 32)]
    return sum(float(total(model, *part)) for part in parts) / len(x)


def with_linen(net, x, y):
    variables = net.init(jax.random.key(0), x[:1], train=False)
    params, stats = variables["params"], variables["batch_stats"]
    tx = optax.adamw(3e-3)
    state, key = tx.init(params), jax.random.key(1)

    @jax.jit
    def step(params, stats, state, key, x, y):
        def loss(params):
            out, after = net.apply({"params": params, "batch_stats": stats}, x, train=True,
                                   rngs={"dropout": key}, mutable=["batch_stats"])  # fmt: skip
            return optax.softmax_cross_entropy_with_integer_labels(out, y).mean(), after["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state

    @jax.jit
    def total(params, stats, x, y):
        out = net.apply({"params": params, "batch_stats": stats}, x, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(out, y).sum()

    for epoch in range(3):
        order = np.random.default_rng(epoch).permutation(len(x))
        for rows in np.split(order, range(32, len(x), 32)):
            key, now = jax.random.split(key)
            params, stats, state = step(params, stats, state, now, x[rows], y[rows])
    parts = [(x[i : i + 32], y[i : i + 32]) for i in range(0, len(x), 32)]
    return sum(float(total(params, stats, *part)) for part in parts) / len(x)


def with_equinox(net, x, y):
    model, stats = eqx.nn.make_with_state(net)(jax.random.key(0))
    tx = optax.adamw(3e-3)
    state, key = tx.init(eqx.filter(model, eqx.is_inexact_array)), jax.random.key(1)

    def forward(model, stats, x, keys):
        return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, stats, key=keys)

    @eqx.filter_jit
    def step(model, stats, state, key, x, y):
        def loss(model):
            out, after = forward(model, stats, x, jax.random.split(key, len(x)))
            return optax.softmax_cross_entropy_with_integer_labels(out, y).mean(), after

        grads, stats_after = eqx.filter_grad(loss, has_aux=True)(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), stats_after, state

    @eqx.filter_jit
    def total(model, stats, x, y):
        out, _ = forward(eqx.nn.inference_mode(model), stats, x, jax.random.split(jax.random.key(0), len(x)))
        return optax.softmax_cross_entropy_with_integer_labels(out, y).sum()

    for epoch in range(3):
        order = np.random.default_rng(epoch).permutation(len(x))
        for rows in np.split(order, range(32, len(x), 32)):
            key, now = jax.random.split(key)
            model, stats, state = step(model, stats, state, now, jnp.asarray(x[rows]), jnp.asarray(y[rows]))
    parts = [(x[i : i + 32], y[i : i + 32]) for i in range(0, len(x), 32)]
    return sum(float(total(model, stats, *part)) for part in parts) / len(x)
