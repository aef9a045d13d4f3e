"""Optimizer updates side by side with optax and torch: `python -m benchmarks.optimizer [--rounds N] [--tree NAME]`.

What is timed is one update of the parameters, donated, as `train_step` runs it: gradients in, parameters and state
out. Peers are run in the way their documentation recommends. torch is optional (CPU build).
"""

import argparse
import datetime
import os
import platform
from typing import Any

# torch's workers would otherwise spin after each of its updates, on the cores that the next contender needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fntrain as ft
from benchmarks._measure import interleaved, table


def transformer(width: int = 512, layers: int = 6) -> dict[str, tuple[int, ...]]:
    """24.5 M parameters in 146 leaves, shaped as a small transformer's."""
    shapes: dict[str, tuple[int, ...]] = {"embed": (10_752, width), "norm": (width,)}
    for i in range(layers):
        for name in ("query", "key", "value", "output"):
            for head in range(4):
                shapes[f"{i}/{name}/{head}"] = (width, width // 4)
        shapes |= {
            f"{i}/up": (width, 4 * width),
            f"{i}/down": (4 * width, width),
            f"{i}/up_bias": (4 * width,),
            f"{i}/down_bias": (width,),
            f"{i}/scale_1": (width,),
            f"{i}/scale_2": (width,),
            f"{i}/bias_1": (width,),
            f"{i}/bias_2": (width,),
        }
    return shapes


TREES = {
    "transformer": transformer(),
    "1000 small": {f"leaf{i}": (64, 16) if i % 2 else (64,) for i in range(1000)},
    "one 25M": {"w": (5000, 5000)},
}


def arrays(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: (rng.standard_normal(s, np.float32) * 0.02).astype(np.float32) for k, s in shapes.items()}


def updated(tx: Any):
    """One update as `train_step` does it: state and parameters donated, gradients read."""

    def step(grads, params, state):
        if isinstance(tx, ft.Transform):
            params, state, _ = tx.apply(grads, state, params)
        else:
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    return jax.jit(step, donate_argnums=(1, 2))


def accumulate(grads, params, state):
    """What no accumulation can do without: read the gradient, add it in place."""
    return params, jax.tree.map(jnp.add, state, grads)


def pass_through(grads, params, state):
    """What JAX itself takes to hand so many buffers in and out: nothing is computed."""
    return params, state


class Jax:
    """A contender that keeps its own parameters and state, on the device."""

    def __init__(self, tx: Any, shapes: dict, step: Any = None, init: Any = None):
        self.grads = jax.device_put(arrays(shapes, 1))
        self.params = jax.tree.map(jnp.array, arrays(shapes, 0))
        self.state = (init or tx.init)(self.params)
        self.step = step or updated(tx)

    def memory(self) -> float:
        """Temporaries over parameter bytes, from XLA's own analysis."""
        analysis = self.step.lower(self.grads, self.params, self.state).compile().memory_analysis()
        return analysis.temp_size_in_bytes / sum(p.nbytes for p in jax.tree.leaves(self.params))

    def __call__(self) -> None:
        self.params, self.state = self.step(self.grads, self.params, self.state)
        jax.block_until_ready((self.params, self.state))


class Torch:
    """torch's fused optimizers, with clipping where asked."""

    def __init__(self, make: Any, shapes: dict, clip: float | None = None):
        import torch

        self.torch = torch
        self.params = [torch.tensor(x).requires_grad_() for x in arrays(shapes, 0).values()]
        for p, g in zip(self.params, arrays(shapes, 1).values()):
            p.grad = torch.tensor(g)
        self.optimizer = make(torch, self.params)
        self.clip = clip

    def memory(self) -> float:
        return float("nan")

    def __call__(self) -> None:
        if self.clip is not None:
            self.torch.nn.utils.clip_grad_norm_(self.params, self.clip, foreach=True)
        self.optimizer.step()


def groups(shapes: dict, torch_too: bool) -> dict[str, dict[str, Any]]:
    """Contenders by group; the first of each group is the baseline of its ratios."""
    adamw = dict(learning_rate=1e-3, weight_decay=1e-4)
    out: dict[str, dict[str, Any]] = {}
    out["clip_by_norm(1) + adamw"] = {
        "optax": Jax(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(**adamw)), shapes),
        "fntrain": Jax(ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(**adamw)), shapes),
        "optax adamw alone": Jax(optax.adamw(**adamw), shapes),
    }
    out["nesterov"] = {
        "optax": Jax(optax.sgd(0.1, 0.9, nesterov=True), shapes),
        "fntrain": Jax(ft.optimizers.sgd(0.1, 0.9, nesterov=True), shapes),
    }
    # A window that never closes while it is timed: every call is a micro-step.
    k = 1_000_000
    ours = ft.MultiSteps(ft.optimizers.adamw(**adamw), k)
    theirs = optax.MultiSteps(optax.adamw(**adamw), k).gradient_transformation()
    plain = jax.jit(accumulate, donate_argnums=(1, 2))
    out["MultiSteps micro-step"] = {
        "optax": Jax(theirs, shapes),
        "fntrain": Jax(ours, shapes),
        "plain accumulate": Jax(None, shapes, plain, lambda p: jax.tree.map(jnp.zeros_like, p)),
        "pass through": Jax(ours, shapes, jax.jit(pass_through, donate_argnums=(1, 2))),
    }
    if torch_too:
        out["clip_by_norm(1) + adamw"]["torch fused"] = Torch(
            lambda torch, p: torch.optim.AdamW(p, 1e-3, weight_decay=1e-4, fused=True), shapes, 1.0
        )
        out["nesterov"]["torch fused"] = Torch(
            lambda torch, p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, fused=True), shapes
        )
    return out


def compile_times(shapes: dict) -> dict[str, tuple[float, int]]:
    """Seconds to compile, and the size of the optimized HLO in instructions, for clip + adamw."""
    import time

    contenders = {
        "optax": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
        "fntrain": ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-3)),
    }
    out = {}
    for name, tx in contenders.items():
        params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
        state = jax.eval_shape(tx.init, params)
        seconds = []
        for _ in range(3):
            jax.clear_caches()
            start = time.perf_counter()
            compiled = updated(tx).lower(params, params, state).compile()
            seconds.append(time.perf_counter() - start)
        out[name] = sorted(seconds)[1], compiled.as_text().count(" = ")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tree", choices=list(TREES), action="append")
    parser.add_argument("--no-torch", action="store_true")
    arguments = parser.parse_args()
    try:
        if arguments.no_torch:
            raise ImportError
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
        torch_version = torch.__version__
    except ImportError:
        torch_version = None
    print(
        f"{datetime.date.today()}, {platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"optax {optax.__version__}, torch {torch_version}, medians of {arguments.rounds} interleaved rounds\n"
    )
    rows = []
    for tree in arguments.tree or TREES:
        shapes = TREES[tree]
        for group, contenders in groups(shapes, torch_version is not None).items():
            medians = interleaved(contenders, rounds=arguments.rounds)
            base = medians["optax"]
            for name, seconds in medians.items():
                memory = contenders[name].memory()
                rows.append(
                    [
                        tree,
                        group,
                        name,
                        f"{seconds * 1e3:.2f}",
                        f"{seconds / base:.2f}",
                        "" if memory != memory else f"{memory:.2%}",
                    ]
                )
            del contenders
    print(table(rows, ["tree", "what", "who", "ms", "ratio to optax", "temporaries / parameters"]))
    print()
    compiled = compile_times(TREES["1000 small"])
    print(
        table(
            [[n, f"{s:.2f}", str(i)] for n, (s, i) in compiled.items()],
            ["1000 leaves", "compile s", "HLO instructions"],
        )
    )


if __name__ == "__main__":
    main()
