"""Muon and SOAP: what an update costs, and how many updates they need: `python -m benchmarks.matrices [--rounds N]`.

Speed is one update of the matrices of a small transformer, ours beside optax's Muon and a form of it in plain JAX, with
the same five steps in float32, interleaved. Steps are those that a small language model over bytes takes to the
loss that AdamW has at its end, each optimizer at the best of its rates, over seeds.
"""

import argparse
import datetime
import platform
import statistics
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fntrain as ft
from benchmarks._measure import interleaved, table
from benchmarks.optimizer import Jax

WIDTH, LAYERS = 256, 4


def shapes() -> dict[str, tuple[int, ...]]:
    """The matrices of a transformer: 12 a layer, of three shapes."""
    out: dict[str, tuple[int, ...]] = {}
    for i in range(LAYERS):
        out |= {f"{i}/{name}": (WIDTH, WIDTH) for name in ("query", "key", "value", "output")}
        out |= {f"{i}/up": (WIDTH, 4 * WIDTH), f"{i}/down": (4 * WIDTH, WIDTH)}
    return out


def plain_muon(rate: float = 0.02) -> optax.GradientTransformation:
    """As its authors write it, leaf by leaf."""

    def orthogonal(g):
        x = g.T if g.shape[0] > g.shape[1] else g
        x = x / (jnp.linalg.norm(x) + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return x.T if g.shape[0] > g.shape[1] else x

    def update(grads, mu, params=None):
        mu = jax.tree.map(lambda g, m: 0.95 * m + 0.05 * g, grads, mu)
        ahead = jax.tree.map(lambda g, m: 0.05 * g + 0.95 * m, grads, mu)
        return jax.tree.map(
            lambda x: -rate * orthogonal(x) * max(1, x.shape[1] / x.shape[0]) ** 0.5, ahead
        ), mu

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def speed(rounds: int) -> str:
    """A table of an update's time and of the products in it."""
    own = shapes()
    multiplied = sum(2 * 5 * (2 * min(s) ** 2 * max(s) + min(s) ** 3) for s in own.values())
    muon = dict(coefficients="jordan", weight_decay=0.0)
    contenders = {
        "optax muon": Jax(optax.contrib.muon(0.02), own),
        "plain JAX muon": Jax(plain_muon(), own),
        "fntrain muon": Jax(ft.optimizers.muon(0.02, dtype="float32", **muon), own),
        "fntrain muon, bfloat16": Jax(ft.optimizers.muon(0.02, **muon), own),
        "fntrain soap": Jax(ft.optimizers.soap(3e-3), own),
        "fntrain soap, one-sided": Jax(ft.optimizers.soap(3e-3, one_sided=True), own),
        "fntrain adamw": Jax(ft.optimizers.adamw(1e-3), own),
        "fntrain adamw, eight bits": Jax(ft.transforms.quantize_state(ft.optimizers.adamw(1e-3)), own),
    }
    medians = interleaved(contenders, rounds=rounds, warmup=2)
    rows = []
    for name, seconds in medians.items():
        c = contenders[name]
        flops = c.step.lower(c.grads, c.params, c.state).compile().cost_analysis()["flops"]
        ratio = f"{flops / multiplied:.2f}" if "muon" in name else ""
        rows.append([name, f"{seconds * 1e3:.1f}", f"{seconds / medians['optax muon']:.2f}", ratio])
    return table(
        rows, ["an update", "ms", "ratio to optax muon", "operations / those of the products stated"]
    )


# A language model over bytes, small enough to be trained a few hundred times.

TEXT = (
    (ft.__doc__ or "")
    + "".join(
        getattr(module, "__doc__", None) or ""
        for module in (np, np.linalg.svd, np.einsum, jax.jit, jax.vmap, jax.lax.scan)
    )
    + "".join(getattr(np, name).__doc__ or "" for name in dir(np)[:160] if callable(getattr(np, name, None)))
)
BYTES = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int32)
LENGTH, BATCH, HIDDEN = 32, 16, 32


def init_params(key: jax.Array) -> dict[str, Any]:
    """Two blocks of one head."""
    keys = iter(jax.random.split(key, 32))

    def normal(*shape):
        return jax.random.normal(next(keys), shape) / shape[0] ** 0.5

    def block():
        square = {name: normal(HIDDEN, HIDDEN) for name in ("query", "key", "value", "output")}
        return {**square, "up": normal(HIDDEN, 4 * HIDDEN), "down": normal(4 * HIDDEN, HIDDEN)}

    embeddings = {"embed": normal(256, HIDDEN) * 4, "place": normal(LENGTH, HIDDEN)}
    return embeddings | {"head": normal(HIDDEN, 256), "blocks": [block(), block()]}


def normed(x: jax.Array) -> jax.Array:
    """Without a mean, and of one size."""
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def loss_fn(params, batch, ctx):
    """The mean surprise of each byte."""
    x = params["embed"][batch[:, :-1]] + params["place"][None]
    mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))[None]
    for block in params["blocks"]:
        y = normed(x)
        scores = jnp.einsum("bqd,bkd->bqk", y @ block["query"], y @ block["key"]) / HIDDEN**0.5
        x = x + jax.nn.softmax(jnp.where(mask, scores, -1e9)) @ (y @ block["value"]) @ block["output"]
        x = x + jax.nn.gelu(normed(x) @ block["up"]) @ block["down"]
    return ft.losses.cross_entropy(normed(x) @ params["head"], batch[:, 1:])


OPTIMIZERS = {  # with the rate that others multiply
    "adamw": (ft.optimizers.adamw, 3e-3, dict(b2=0.95)),
    "muon": (ft.optimizers.muon, 0.02, dict(adam_rate=3e-3, matrices="blocks/", dtype="float32")),
    "soap": (ft.optimizers.soap, 3e-3, dict(max_dim=200)),
}


@partial(jax.jit, static_argnums=0)
def losses(task: ft.Task, state: ft.TrainState, batches: Any) -> jax.Array:
    """The training loss of every step."""

    def one(state, batch):
        state, metrics = ft.train_step(task, state, batch)
        return state, ft.compute_metrics(task, metrics)["loss"]

    return jax.lax.scan(one, state, batches)[1]


def curve(name: str, factor: float, seed: int, steps: int) -> np.ndarray:
    """The loss over a run, averaged over the last 20 steps; one program for all rates and seeds."""
    factory, rate, others = OPTIMIZERS[name]
    task = ft.Task(loss_fn, ft.transforms.with_hyperparams(factory, learning_rate=rate, **others))
    state = ft.init_state(task, init_params, key=seed)
    state = state.replace(
        opt_state=ft.transforms.set_hyperparams(state.opt_state, learning_rate=factor * rate)
    )
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, len(BYTES) - LENGTH - 1, size=(steps, BATCH))
    batches = BYTES[starts[..., None] + np.arange(LENGTH + 1)]
    return np.convolve(np.asarray(losses(task, state, batches)), np.ones(20) / 20, "valid")


def steps_needed(steps: int, seeds: int) -> str:
    """A table of the steps to AdamW's final loss."""
    best: dict[str, float] = {}
    for name in OPTIMIZERS:
        finals = {factor: float(curve(name, factor, 100, steps)[-1]) for factor in (0.25, 0.5, 1.0, 2.0)}
        best[name] = min(finals, key=lambda factor: finals[factor])
    found: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for seed in range(seeds):
        target = curve("adamw", best["adamw"], seed, steps)[-1]
        for name in OPTIMIZERS:
            reached = np.flatnonzero(curve(name, best[name], seed, steps) <= target)
            found[name].append((reached[0] + 20) / steps if len(reached) else float("inf"))
    rows = [
        [
            name,
            f"{best[name] * OPTIMIZERS[name][1]:g}",
            f"{statistics.median(x):.2f}",
            f"{min(x):.2f} to {max(x):.2f}",
        ]
        for name, x in found.items()
    ]
    return table(
        rows, ["optimizer", "best of four rates", f"steps to AdamW's loss after {steps}, ratio", "seeds"]
    )


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    kind = jax.devices()[0].device_kind
    print(
        f"{datetime.date.today()}, {platform.machine()}, {kind}, jax {jax.__version__}, optax {optax.__version__}\n"
    )
    print(speed(arguments.rounds), flush=True)
    print()
    print(steps_needed(arguments.steps, arguments.seeds))


if __name__ == "__main__":
    main()
