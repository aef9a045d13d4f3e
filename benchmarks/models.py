"""A step over each library's model beside the same network as a plain function: `python -m benchmarks.models`.

One network, 64-128-10 with a ReLU, on digits-sized batches of 32. What is timed is a loop of `train_step` by hand over
the same batches, waited for at its end. The NNX way by hand is `nnx.jit` over the module and an `nnx.Optimizer`, as
Flax's documentation shows it.
"""

import argparse
import datetime
import platform
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn, nnx

import fntrain as ft
from benchmarks._measure import interleaved, table

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 64)).astype(np.float32)
Y = RNG.integers(0, 10, 32).astype(np.int32)


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(64, 128, rngs=rngs), nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x)))


def plain_init(key):
    first, last = jax.random.split(key)
    w1, w2 = jax.random.normal(first, (64, 128)) / 8, jax.random.normal(last, (128, 10)) / 8
    return {"w1": w1, "b1": jnp.zeros(128), "w2": w2, "b2": jnp.zeros(10)}


def plain_apply(params, x):
    return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


MODELS = {
    "a plain function": lambda: ft.models.plain(plain_init, plain_apply),
    "models.nnx": lambda: ft.models.nnx(NNXNet),
    "models.linen": lambda: ft.models.linen(LinenNet(), X[:1]),
    "models.equinox": lambda: ft.models.equinox(lambda key: eqx.nn.MLP(64, 10, 128, depth=1, key=key)),
    "models.haiku": lambda: ft.models.haiku(hk.transform(lambda x: hk.nets.MLP([128, 10])(x)), X[:1]),
}


def ours(make: Any, steps: int):
    model = make()
    task = ft.supervised(model, optimizer=ft.optimizers.adamw(1e-3), metrics=())
    state = ft.init_state(task, model.init)

    def run():
        nonlocal state
        for _ in range(steps):
            state, _ = ft.train_step(task, state, (X, Y))
        jax.block_until_ready(state)

    return run


def nnx_by_hand(steps: int):
    model = NNXNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    def run():
        for _ in range(steps):
            step(model, optimizer, X, Y)
        jax.block_until_ready(nnx.state(model))

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    contenders = {name: ours(make, options.steps) for name, make in MODELS.items()}
    contenders["NNX by hand (`nnx.jit`)"] = nnx_by_hand(options.steps)
    times = interleaved(contenders, rounds=options.rounds)
    base = times["a plain function"]
    rows = [[name, f"{t / options.steps * 1e6:.0f}", f"{t / base:.2f}"] for name, t in times.items()]
    print(
        f"{datetime.date.today()}, {platform.machine()}, JAX {jax.__version__}, {jax.devices()[0].device_kind}\n"
    )
    print(f"Median of {options.rounds} interleaved rounds of {options.steps} steps.\n")
    print(table(rows, ["`train_step` over", "µs a step", "ratio to a plain function"]))


if __name__ == "__main__":
    main()
