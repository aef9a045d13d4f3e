"""Muon and SOAP: what an update costs: `python -m benchmarks.matrices [--rounds N]`.

One update of the matrices of a small transformer, ours beside optax's Muon and beside forms of both in plain JAX, leaf
by leaf, as their authors write them; Muon with the same five steps in float32. Interleaved. How many updates they need
is in `benchmarks.convergence`.
"""

import argparse
import datetime
import platform
from typing import NamedTuple

import jax
import jax.numpy as jnp
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


class Soap(NamedTuple):
    """A leaf's state."""

    m: jax.Array
    v: jax.Array
    left: jax.Array
    right: jax.Array
    ql: jax.Array
    qr: jax.Array


def plain_soap(rate: float = 3e-3, every: int = 10) -> optax.GradientTransformation:
    """As its authors write it, leaf by leaf."""

    def begin(p):
        n, m = p.shape
        zeros = jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros((n, n)), jnp.zeros((m, m))
        return Soap(*zeros, jnp.eye(n), jnp.eye(m))

    def one(g, s, count):
        m = 0.95 * s.m + 0.05 * g
        v = 0.95 * s.v + 0.05 * jnp.square(s.ql.T @ g @ s.qr)
        turned = (s.ql.T @ m @ s.qr) / (jnp.sqrt(v) + 1e-8)
        u = -rate * s.ql @ turned @ s.qr.T
        left, right = 0.95 * s.left + 0.05 * g @ g.T, 0.95 * s.right + 0.05 * g.T @ g
        which = jnp.where(count == 0, 2, jnp.where(count % every == 0, 1, 0))
        turns = [
            lambda *_: (s.ql, s.qr),
            lambda left, right: (jnp.linalg.qr(left @ s.ql)[0], jnp.linalg.qr(right @ s.qr)[0]),
            lambda left, right: (jnp.linalg.eigh(left)[1], jnp.linalg.eigh(right)[1]),
        ]
        return u, Soap(m, v, left, right, *jax.lax.switch(which, turns, left, right))

    def update(grads, state, params=None):
        count, states = state
        out = {name: one(g, states[name], count) for name, g in grads.items()}
        return {name: u for name, (u, _) in out.items()}, (
            count + 1,
            {name: s for name, (_, s) in out.items()},
        )

    def init(params):
        return jnp.zeros((), jnp.int32), {name: begin(p) for name, p in params.items()}

    return optax.GradientTransformation(init, update)


def products(own: dict[str, tuple[int, ...]]) -> dict[str, float]:
    """Operations of the products that an update is stated to take."""
    sides = [(min(s), max(s)) for s in own.values()]
    muon = sum(2 * 5 * (2 * r**2 * c + r**3) for r, c in sides)
    # Four products of g and of the direction with each basis, two second moments; a turn of the bases stands in the
    # program too, as the branch that most updates do not take.
    soap = sum(2 * 4 * (r**2 * c + r * c**2) + 2 * (r**3 + c**3) for r, c in sides)
    return {"muon": muon, "soap": soap}


def speed(rounds: int) -> str:
    """A table of an update's time and of the products in it."""
    own = shapes()
    stated = products(own)
    muon = dict(coefficients="jordan", weight_decay=0.0)
    contenders = {
        "optax muon": Jax(optax.contrib.muon(0.02), own),
        "plain JAX muon": Jax(plain_muon(), own),
        "fntrain muon": Jax(ft.optimizers.muon(0.02, dtype="float32", **muon), own),
        "fntrain muon, bfloat16": Jax(ft.optimizers.muon(0.02, **muon), own),
        "plain JAX soap": Jax(plain_soap(), own),
        "fntrain soap": Jax(ft.optimizers.soap(3e-3, weight_decay=0.0), own),
        "fntrain soap, one-sided": Jax(ft.optimizers.soap(3e-3, one_sided=True), own),
        "fntrain adamw": Jax(ft.optimizers.adamw(1e-3), own),
        "fntrain adamw, eight bits": Jax(ft.transforms.quantize_state(ft.optimizers.adamw(1e-3)), own),
    }
    medians = interleaved(contenders, rounds=rounds, warmup=2)
    rows = []
    for name, seconds in medians.items():
        c = contenders[name]
        flops = c.step.lower(c.grads, c.params, c.state).compile().cost_analysis()["flops"]
        kind = next((kind for kind in stated if name.endswith((kind, f"{kind}, bfloat16"))), None)
        ratio = "" if kind is None else f"{flops / stated[kind]:.2f}"
        rows.append([name, f"{seconds * 1e3:.1f}", f"{seconds / medians['optax muon']:.2f}", ratio])
    return table(
        rows, ["an update", "ms", "ratio to optax muon", "operations / those of the products stated"]
    )


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    kind = jax.devices()[0].device_kind
    print(
        f"{datetime.date.today()}, {platform.machine()}, {kind}, jax {jax.__version__}, optax {optax.__version__}\n"
    )
    print(speed(arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
