"""A byte-level language model on the source text of Python's standard library, on one device or many.

The model, the task and the loop do not know how many devices there are: a mesh and `RULES` say what is split.

    python examples/sharded_lm.py                            one device (or all there are, split over the data)
    python examples/sharded_lm.py --virtual 8 --model 2      eight CPU devices: the batch over 4, every layer over 2
    python examples/sharded_lm.py --virtual 2 --address localhost:1234 --processes 2 --process 0 &
    python examples/sharded_lm.py --virtual 2 --address localhost:1234 --processes 2 --process 1
    srun python examples/sharded_lm.py --cluster             whatever Slurm has started
"""

import argparse
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import fntrain as ft

WIDTH, HEADS, LAYERS, LENGTH = 64, 4, 2, 64

# Attention is split by heads, the perceptron by its hidden units; each then adds up its output once.
RULES = [
    ("query|key|value|up", P(None, None, "model")),
    ("out|down", P(None, "model")),
    (".*", P()),
]


def init_params(key):
    keys = iter(jax.random.split(key, 8))

    def normal(*shape, fan_in=WIDTH):
        return jax.random.normal(next(keys), shape) / fan_in**0.5

    blocks = {name: normal(LAYERS, WIDTH, HEADS, WIDTH // HEADS) for name in ("query", "key", "value")}
    blocks["out"] = normal(LAYERS, HEADS, WIDTH // HEADS, WIDTH)
    blocks["up"] = normal(LAYERS, WIDTH, 4 * WIDTH)
    blocks["down"] = normal(LAYERS, 4 * WIDTH, WIDTH, fan_in=4 * WIDTH)
    embed, position = normal(256, WIDTH, fan_in=1), normal(LENGTH, WIDTH, fan_in=1)
    return {"embed": embed, "position": position, "blocks": blocks}


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def block(x, p):
    y = norm(x)
    q, k, v = (jnp.einsum("btd,dhk->bthk", y, p[name]) for name in ("query", "key", "value"))
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    x = x + jnp.einsum("bthk,hkd->btd", y, p["out"])
    return x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"], None


def loss_fn(params, batch, ctx):
    """Cross-entropy of the next byte, one value a byte."""
    tokens, targets = batch[:, :-1].astype(jnp.int32), batch[:, 1:].astype(jnp.int32)
    x = params["embed"][tokens] + params["position"]
    x, _ = jax.lax.scan(jax.checkpoint(block), x, params["blocks"])
    logits = norm(x) @ params["embed"].T / WIDTH**0.5
    return ft.losses.cross_entropy(logits, targets).with_outputs(logits=logits, labels=targets)


def windows(rows):
    """Windows of the library's own text, bytes `[rows, LENGTH + 1]`, from all over it."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    text = np.frombuffer(b"\n".join(path.read_bytes() for path in files), np.uint8)
    starts = np.linspace(0, len(text) - LENGTH - 1, rows).astype(int)
    return text[starts[:, None] + np.arange(LENGTH + 1)]


def options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4096, help="windows in the data set")
    parser.add_argument("--model", type=int, default=1, help="devices that share each layer")
    parser.add_argument("--virtual", type=int, help="make so many CPU devices")
    parser.add_argument("--cluster", action="store_true", help="join the processes the cluster started")
    parser.add_argument("--address", help="without a cluster: host:port of process 0")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    args = options()
    if args.virtual:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.virtual)
    if args.cluster or args.address:
        ft.sharding.initialize(args.address, args.processes, args.process)
    mesh = ft.sharding.mesh(data=-1, model=args.model)
    tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(3e-3))
    task = ft.Task(loss_fn, tx, {"accuracy": ft.metrics.accuracy()})
    data = windows(args.rows)
    if jax.process_index() == 0:
        print(ft.sharding.plan(task, init_params, mesh, RULES, batch=data[:32]))
    state = ft.init_state(task, init_params, mesh=mesh, rules=RULES)
    result = ft.fit(task, state, data, epochs=args.epochs, batch_size=32, progress=False)
    bits = np.array(result.history["loss"]) / np.log(2)
    print("bits a byte, epoch by epoch:", " ".join(f"{b:.6f}" for b in bits))
