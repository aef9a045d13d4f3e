"""A byte-level language model in Equinox: its weights' running average, resumed in the middle, judged by the average.

Run it: python examples/equinox_transformer.py
"""

import argparse
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import fntrain as ft

WIDTH, HEADS, LENGTH = 64, 4, 64


class Block(eqx.Module):
    norms: list
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.norms = [eqx.nn.LayerNorm(WIDTH), eqx.nn.LayerNorm(WIDTH)]
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=first)
        self.mlp = eqx.nn.MLP(WIDTH, WIDTH, 4 * WIDTH, depth=1, activation=jax.nn.gelu, key=second)

    def __call__(self, x):
        mask = jnp.tril(jnp.ones((len(x), len(x)), bool))
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y, mask=mask)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    place: jax.Array
    blocks: list
    norm: eqx.nn.LayerNorm

    def __init__(self, key):
        first, second, third = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(256, WIDTH, key=first)
        self.place = 0.1 * jax.random.normal(second, (LENGTH, WIDTH))
        self.blocks = [Block(k) for k in jax.random.split(third, 2)]
        self.norm = eqx.nn.LayerNorm(WIDTH)

    def __call__(self, tokens):
        x = jax.vmap(self.embed)(tokens) + self.place
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.norm)(x) @ self.embed.weight.T / WIDTH**0.5


def text():
    """Rows of bytes from the standard library's own source, `[N, LENGTH + 1]`."""
    folder = Path(argparse.__file__).parent
    found = b"".join(path.read_bytes() for path in sorted(folder.glob("a*.py")))
    rows = np.frombuffer(found, np.uint8)[: len(found) // (LENGTH + 1) * (LENGTH + 1)]
    return rows.reshape(-1, LENGTH + 1).astype(np.int32)[:2048]


def main(steps=150):
    rows = text()
    train, held_out = (rows[:-256, :-1], rows[:-256, 1:]), (rows[-256:, :-1], rows[-256:, 1:])
    model = ft.models.equinox(Transformer)
    tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(3e-3), ft.ema(0.95, debias=True))
    task = ft.supervised(model, optimizer=tx, metrics=["perplexity", "accuracy"])
    with tempfile.TemporaryDirectory() as folder:
        for until in (steps // 2, steps):  # stopped half way, and gone on with
            state = ft.init_state(task, model.init, key=0)
            result = ft.fit(task, state, train, steps=until, batch_size=32, run_dir=folder, resume=True)
    state = result.state
    last = ft.evaluate(task, state, held_out)
    mean = ft.evaluate(task, state.replace(params=ft.averaged(state)), held_out)
    print(
        f"loss of the last weights {last['loss']:.3f}, of their average {mean['loss']:.3f} (uniform: 5.545)"
    )


if __name__ == "__main__":
    main()
