"""GPT-2 on the source text of Python's standard library: 124 million parameters on a GPU, a small one on a laptop.

    python examples/gpt.py                                           a small one: half a minute on two cores
    python examples/gpt.py --size gpt2 --policy bf16 --steps 200     124 M, on a GPU
    python examples/gpt.py --size medium --policy bf16 --fsdp        355 M, split over all devices
    python examples/gpt.py --virtual 8 --fsdp --microbatches 2       the same on eight CPU devices

Plain functions throughout. The layers are one scan over stacked parameters, or with `--unroll` written out one after
the other: slower to compile, sometimes faster to run. The logits of the head are never there as a whole.
"""

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import fntrain as ft


class Size(NamedTuple):
    layers: int
    width: int
    heads: int
    length: int
    vocabulary: int


SIZES = {
    "tiny": Size(2, 64, 4, 64, 256),
    "small": Size(6, 384, 6, 256, 256),
    "gpt2": Size(12, 768, 12, 1024, 50304),  # 50,257 in the paper: a multiple of 128 is faster
    "medium": Size(24, 1024, 16, 1024, 50304),
    "large": Size(36, 1280, 20, 1024, 50304),
}


def init_params(size, key, stacked=True):
    """Parameters as GPT-2 draws them; what a layer adds to the stream is drawn smaller the more layers there are."""
    width, heads, depth = size.width, size.heads, size.width // size.heads

    def normal(key, *shape, scale=0.02):
        return scale * jax.random.normal(key, shape)

    def layer(key):
        qkv, out, up, down = jax.random.split(key, 4)
        last = 0.02 / (2 * size.layers) ** 0.5
        return {
            "norm_1": norm_params(),
            "qkv": {
                "kernel": normal(qkv, width, 3, heads, width // heads),
                "bias": jnp.zeros((3, heads, width // heads)),
            },
            "out": {
                "kernel": normal(out, heads, depth, width, scale=last),
                "bias": jnp.zeros(width),
            },
            "norm_2": norm_params(),
            "up": {"kernel": normal(up, width, 4 * width), "bias": jnp.zeros(4 * width)},
            "down": {"kernel": normal(down, 4 * width, width, scale=last), "bias": jnp.zeros(width)},
        }

    def norm_params():
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    token, position, layers = jax.random.split(key, 3)
    keys = jax.random.split(layers, size.layers)
    return {
        "token": {"kernel": normal(token, size.vocabulary, width)},  # the embedding, and the head
        "position": {"kernel": normal(position, size.length, width, scale=0.01)},
        "layers": jax.vmap(layer)(keys) if stacked else [layer(k) for k in keys],
        "norm": norm_params(),
    }


def norm(x, p):
    """Layer normalisation, in float32 whatever the policy computes in."""
    y = jax.nn.standardize(x.astype(jnp.float32), epsilon=1e-5)
    return (y * p["scale"] + p["bias"]).astype(x.dtype)


def attention(x, p):
    q, k, v = jnp.moveaxis(jnp.einsum("btd,dchk->btchk", x, p["qkv"]["kernel"]) + p["qkv"]["bias"], 2, 0)
    fused = jax.default_backend() == "gpu" and x.dtype in (
        jnp.bfloat16,
        jnp.float16,
    )  # what cuDNN's kernels take
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn" if fused else "xla")
    return jnp.einsum("bthk,hkd->btd", y, p["out"]["kernel"]) + p["out"]["bias"]


def block(x, p):
    x = x + attention(norm(x, p["norm_1"]), p)
    y = jax.nn.gelu(norm(x, p["norm_2"]) @ p["up"]["kernel"] + p["up"]["bias"])
    return x + y @ p["down"]["kernel"] + p["down"]["bias"]


def hidden(params, tokens, remat=False):
    """What the head reads of each token, `[B, T, width]`."""
    x = params["token"]["kernel"][tokens] + params["position"]["kernel"][: tokens.shape[1]]
    step = jax.checkpoint(block) if remat else block
    if isinstance(params["layers"], list):
        for layer in params["layers"]:
            x = step(x, layer)
    else:
        x, _ = jax.lax.scan(lambda x, p: (step(x, p), None), x, params["layers"])
    return norm(x, params["norm"])


def make_task(rate, *, policy="float32", microbatches=1, chunk=4096, remat=False):
    def loss_fn(params, batch, ctx):
        """Cross-entropy of the next token, one value a token."""
        batch = batch.astype(jnp.int32)
        x = hidden(params, batch[:, :-1], remat)
        return ft.losses.linear_cross_entropy(x, params["token"]["kernel"].T, batch[:, 1:], chunk=chunk)

    adam = ft.optimizers.adamw(rate, b2=0.95, weight_decay=0.1, mask="kernel")
    return ft.Task(loss_fn, ft.chain(ft.clip_by_norm(1.0), adam), microbatches=microbatches, policy=policy)


def text(length):
    """The library's own text, bytes as tokens: rows `[N, length + 1]`."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    found = np.frombuffer(b"\n".join(path.read_bytes() for path in files), np.uint8)
    return found[: len(found) // (length + 1) * (length + 1)].reshape(-1, length + 1)


def options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=3e-3, help="the largest learning rate (6e-4 for gpt2)")
    parser.add_argument("--policy", default="float32", help="bf16 computes in bfloat16")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=4096, help="tokens whose logits are there at once")
    parser.add_argument("--unroll", action="store_true", help="layers one after the other, not scanned")
    parser.add_argument("--remat", action="store_true", help="compute a layer again on the way back")
    parser.add_argument("--fsdp", action="store_true", help="split large parameters over the devices")
    parser.add_argument("--virtual", type=int, help="make so many CPU devices")
    return parser.parse_args()


def main():
    args = options()
    if args.virtual:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.virtual)
    size = SIZES[args.size]
    rate = ft.schedules.warmup(ft.schedules.cosine(args.rate, args.steps), max(1, args.steps // 10))
    task = make_task(
        rate, policy=args.policy, microbatches=args.microbatches, chunk=args.chunk, remat=args.remat
    )
    rules = ft.sharding.fsdp() if args.fsdp else [(".*", P())]
    state = ft.init_state(
        task, lambda key: init_params(size, key, not args.unroll), mesh=ft.sharding.mesh(), rules=rules
    )
    print(
        f"{ft.tree.size(state.params) / 1e6:.1f} M parameters on {jax.device_count()} {jax.default_backend()}"
    )
    rows = text(size.length)
    held_out = np.arange(len(rows)) % max(20, len(rows) // 512) == 0
    start = time.perf_counter()
    state, _ = ft.fit(task, state, rows[~held_out], steps=args.steps, batch_size=args.batch, progress=False)
    jax.block_until_ready(state)
    tokens = args.steps * args.batch * size.length / (time.perf_counter() - start)
    loss = ft.evaluate(task, state, rows[held_out], batch_size=args.batch)["loss"]
    print(f"{tokens:,.0f} tokens a second, compiling included; held out: {loss / np.log(2):.3f} bits a byte")


if __name__ == "__main__":
    main()
