"""What XLA makes of our programs for a GPU, where there is none: `python -m benchmarks.kernels`.

Programs are compiled ahead of time for an H100 and read: kernels, those of each turn of a loop apart, branches that the
host has to be told of, and bytes of temporaries, beside the same work by hand. No kernel is tuned, as that takes the
card, so products are not those that run in the end; everything around them is.

Needs JAX's plugin for CUDA, of jaxlib's own version, and ptxas and libdevice of a CUDA toolkit, at `CUDA_ROOT`:

    pip install --no-deps jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2
"""

import collections
import dataclasses
import datetime
import functools
import os
import re
import sys
from collections.abc import Callable
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={os.environ.get('CUDA_ROOT', '/usr/local/cuda')}"
)

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import fntrain as ft
from benchmarks import loop
from benchmarks._measure import table
from benchmarks.gpt import CLIP, DECAY, RATE, decayed
from examples import gpt
from fntrain.step import programs
from fntrain.step.picked import Picked

# What the compiler asks of a card, in the form of XLA's own descriptions of them.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element"}  # of no kernel
STEPS = 28  # of a dispatch of several


@dataclasses.dataclass
class Program:
    """A compiled program, read."""

    kernels: int = 0
    turn: int = 0  # kernels of one turn of its loops
    branches: int = 0  # whose predicate the host is told
    temporaries: float = 0.0


@functools.cache
def card() -> SingleDeviceSharding:
    return SingleDeviceSharding(
        topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1").devices[0]
    )


def read(function: Callable[..., Any], *given: Any, donate: tuple[int, ...] = ()) -> Program:
    """The program of a function of arrays, or of their shapes."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=card()), given)
    traced = jax.jit(function, donate_argnums=donate).trace(*shapes)
    compiled = traced.lower(lowering_platforms=("cuda",)).compile()
    found = Program(temporaries=compiled.memory_analysis().temp_size_in_bytes / 2**20)  # type: ignore[union-attr]
    bodies, entry = computations(compiled.as_text())
    count(found, bodies, entry, inside=False)
    return found


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation of a program, and which of them is the program."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    name = entry = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
        elif re.match(r"\s+(ROOT )?%", line):
            found[name].append(line)
    return found, entry


def count(found: Program, bodies: dict[str, list[str]], name: str, inside: bool) -> None:
    for line in bodies[name]:
        operation = re.search(r"[)\]}] ([a-z][a-z0-9\-]*)\(", line)
        assert operation is not None, line
        if operation[1] == "while":
            count(found, bodies, re.search(r"body=%?([\w.\-]+)", line)[1], inside=True)  # type: ignore[index]
        elif operation[1] == "conditional":
            found.branches += 1
        elif operation[1] not in FREE and not inside:
            found.kernels += 1
        elif operation[1] not in FREE:
            found.turn += 1


def update(tx: Any) -> Callable[..., Any]:
    def by_hand(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return by_hand


def small_steps() -> dict[str, Program]:
    """The digits' MLP of `benchmarks.loop`: a step, and one of several of a dispatch."""
    problem = loop.Problem(loop.digits(), (128,), 32, 1, 1)
    params = jax.tree.map(jnp.asarray, problem.params())
    batch = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((32,), jnp.int32)
    several = jax.tree.map(lambda x: jax.ShapeDtypeStruct((STEPS, *x.shape), x.dtype), batch)

    def by_hand(tx: Any) -> Callable[..., Any]:
        def step(params: Any, state: Any, sums: Any, x: Any, y: Any) -> Any:
            def loss_fn(params: Any) -> Any:
                logits = loop.apply(params, x)
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

            (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            hits = jnp.sum(jnp.argmax(logits, -1) == y)
            return *update(tx)(params, state, grads), (sums[0] + loss * len(y), sums[1] + hits)

        return step

    def scanned(step: Callable[..., Any]) -> Callable[..., Any]:
        def steps(params: Any, state: Any, sums: Any, xs: Any, ys: Any) -> Any:
            return jax.lax.scan(lambda c, b: (step(*c, *b), None), (params, state, sums), (xs, ys))[0]

        return steps

    numbers = jax.ShapeDtypeStruct((1797,), jnp.int32)
    there = Picked(
        (jax.ShapeDtypeStruct((1797, 64), jnp.float32), numbers),
        numbers,
        jax.ShapeDtypeStruct((32,), jnp.int32),
        jax.ShapeDtypeStruct((STEPS,), jnp.int32),
    )

    def ours(task: ft.Task, log_every: int | None = None, fed: Any = several, weight: Any = None) -> Program:
        state = ft.init_state(task, problem.params())
        impl, bits = programs._words(state)
        one = None if weight is None else jax.ShapeDtypeStruct((32,), jnp.float32)
        metrics = None if log_every is None else programs.empty_metrics(task, state, batch, one, train=True)
        step: Any = programs._train_step if log_every is None else programs._train_steps

        def run(*given: Any) -> Any:
            return step.__wrapped__(task, impl, None, *given, *([] if log_every is None else [log_every]))

        fed = batch if log_every is None else fed
        given = state.step, *programs._donated(state), bits, fed, weight, metrics
        return read(run, *given, donate=(1, 2, 3, 4, 8) if log_every is not None else (1, 2, 3, 4))

    found, start = {}, (jnp.zeros(()), jnp.zeros((), jnp.int32))
    for name, tx in (("optax's transforms", loop.optax_chain()), ("our transforms", loop.our_chain())):
        given, task = (params, tx.init(params), start), loop.make_task(tx)
        found |= {
            f"by hand, {name}": read(by_hand(tx), *given, *batch, donate=(0, 1, 2)),
            f"`train_step`, {name}": ours(task),
            f"a scan by hand, {name}": read(scanned(by_hand(tx)), *given, *several, donate=(0, 1, 2)),
            f"`train_steps`, {name}": ours(task, 0),
            f"`fit`'s dispatch with a log every 10 steps, {name}": ours(task, 10),
        }
    weight = jax.ShapeDtypeStruct((STEPS, 32), jnp.float32)
    found["… of rows that are on the device, weighed, our transforms"] = ours(task, 10, there, weight)
    return found


def optimizers() -> dict[str, Program]:
    """An update of GPT-2's parameters, 124 M."""
    size = gpt.SIZES["gpt2"]
    params = jax.eval_shape(lambda: gpt.init_params(size, jax.random.key(0), stacked=False))
    theirs = optax.adamw(RATE, weight_decay=DECAY)
    ours = ft.optimizers.adamw(RATE, weight_decay=DECAY)
    chains = {
        "clip + AdamW, optax": optax.chain(optax.clip_by_global_norm(CLIP), theirs),
        "clip + AdamW": ft.chain(ft.clip_by_norm(CLIP), ours),
        "AdamW, optax": theirs,
        "AdamW": ours,
    }
    found = {
        name: read(update(tx), params, jax.eval_shape(tx.init, params), params, donate=(0, 1))
        for name, tx in chains.items()
    }
    gated = {
        "AdamW, in a step whose batch may weigh nothing": ours,
        "`MultiSteps(AdamW, 4)`, likewise": ft.MultiSteps(ours, 4),
        "`skip_nonfinite(AdamW)`, likewise": ft.skip_nonfinite(ours),
        "`lookahead(AdamW)`, likewise": ft.lookahead(ours),
    }
    weight = jax.ShapeDtypeStruct((), jnp.float32)
    for name, tx in gated.items():

        def apply(params: Any, state: Any, grads: Any, weight: Any, tx: Any = tx) -> Any:
            return tx.apply(grads, state, params, weight=weight)

        found[name] = read(apply, params, jax.eval_shape(tx.init, params), params, weight, donate=(0, 1))
    return found | {
        "the norm, optax": read(optax.tree.norm, params),
        "the norm, safe of overflow": read(ft.tree.norm, params),
    }


def heads() -> dict[str, Program]:
    """The head of GPT-2, 32 rows of 1,024 tokens: loss and gradients."""
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((32768, 768), (768, 50304)))
    labels = jax.ShapeDtypeStruct((32768,), jnp.int32)

    def whole(x: Any, kernel: Any, labels: Any) -> Any:
        logits = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def chunked(x: Any, kernel: Any, labels: Any) -> Any:
        return ft.losses.linear_cross_entropy(x, kernel, labels, chunk=4096).mean()

    return {
        name: read(jax.value_and_grad(f, argnums=(0, 1)), x, kernel, labels)
        for name, f in (("all logits, optax", whole), ("`linear_cross_entropy`", chunked))
    }


def large_steps() -> dict[str, Program]:
    """GPT-2, 124 M, in bfloat16; attention is XLA's own, as cuDNN's takes the card."""
    size = gpt.SIZES["gpt2"]
    tx = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adamw(RATE, b2=0.95, weight_decay=DECAY, mask=decayed)
    )
    task = gpt.make_task(RATE, policy="bf16")
    batch = jax.ShapeDtypeStruct((32, size.length + 1), jnp.uint8)

    def loss_fn(params: Any, batch: Any) -> Any:
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        tokens, targets = batch[:, :-1].astype(jnp.int32), batch[:, 1:].astype(jnp.int32)
        x = gpt.hidden(params, tokens)
        logits = jnp.matmul(x, params["token"]["kernel"].T, preferred_element_type=jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def by_hand(params: Any, state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        return *update(tx)(params, state, grads), loss

    def ours(*given: Any) -> Any:
        return programs._train_step.__wrapped__(task, "threefry2x32", None, *given, None, None)

    found = {}
    for stacked in (True, False):
        init = functools.partial(gpt.init_params, size, stacked=stacked)
        state = jax.eval_shape(lambda init=init: ft.init_state(task, init))
        given = state.step, *programs._donated(state), jax.ShapeDtypeStruct((2,), jnp.uint32), batch
        layers = "scanned" if stacked else "unrolled"
        moments = jax.eval_shape(tx.init, state.params)
        found |= {
            f"by hand, optax, layers {layers}": read(by_hand, state.params, moments, batch, donate=(0, 1)),
            f"`train_step`, layers {layers}": read(ours, *given, donate=(1, 2, 3, 4)),
        }
    return found


def main() -> None:
    device = next(iter(card().device_set))
    print(
        f"{datetime.date.today()}, compiled for {device.device_kind}, jax {jax.__version__}, optax {optax.__version__}"
    )
    for make in (small_steps, optimizers, heads, large_steps):
        print(f"\n## {(make.__doc__ or '').rstrip('.')}\n")
        rows = [
            [name, str(x.kernels), str(x.turn or ""), str(x.branches or ""), f"{x.temporaries:,.1f}"]
            for name, x in make().items()
        ]
        print(table(rows, ["program", "kernels", "a turn of its loops", "branches", "temporaries, MiB"]))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
