"""GPT-2 side by side with the same network by hand: `python -m benchmarks.gpt [--size gpt2 --policy bf16]`.

The network, its data and its task are those of `examples/gpt.py`. By hand is a jitted, donated step with optax's clip
and AdamW over `optax.softmax_cross_entropy_with_integer_labels` of all logits, as one would write it, and once more
with our loss in it, so that what the engine costs stands apart from what the head saves. `torch.compile` of the same
network, with fused AdamW, is in where torch is installed. Contenders take turns within one process; a unit is `--steps`
steps over batches that are on the device already, waited for at its end; `fit` takes them from the host, as a user
would, and has an epoch's edge in each unit.

Tokens a second are of the median; MFU counts 6 operations a parameter and token, and attention, of the card's own
peak (`--peak` in TFLOP/s; known for some cards by name).
"""

import argparse
import datetime
import functools
import importlib.util
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fntrain as ft
from benchmarks._measure import interleaved, table
from examples import gpt

RATE, DECAY, CLIP = 6e-4, 0.1, 1.0
PEAKS = {"H100": 989, "H200": 989, "A100": 312, "L4": 121, "B200": 2250}  # bfloat16, dense, TFLOP/s

Contender = tuple[Callable[[], Any], float, float]  # a unit of work, seconds to compile, bytes of temporaries


class Problem:
    """A size, the batches, and what is computed in."""

    def __init__(self, arguments: argparse.Namespace):
        self.size = gpt.SIZES[arguments.size]
        if arguments.vocabulary:
            self.size = self.size._replace(vocabulary=arguments.vocabulary)
        self.stacked, self.steps, self.batch = not arguments.unroll, arguments.steps, arguments.batch
        self.policy, self.chunk, self.microbatches = arguments.policy, arguments.chunk, arguments.microbatches
        rows = gpt.text(self.size.length)
        picked = np.random.default_rng(0).permutation(len(rows))[: self.batch * self.steps]
        self.rows = np.resize(rows[picked], (self.batch * self.steps, self.size.length + 1))
        self.batches = [jnp.asarray(x) for x in np.split(self.rows, self.steps)]

    @property
    def tokens(self) -> int:
        return self.steps * self.batch * self.size.length

    def params(self) -> Any:
        return jax.jit(lambda: gpt.init_params(self.size, jax.random.key(0), self.stacked))()

    def flops(self, parameters: int) -> int:
        """Operations of the products a token, forward and back: embeddings count once, as the head."""
        looked_up = self.size.length * self.size.width
        attention = 12 * self.size.layers * self.size.width * self.size.length // 2  # half of it is masked
        return 6 * (parameters - looked_up) + attention


def ours(problem: Problem) -> Contender:
    task = task_of(problem)
    state = ft.init_state(task, problem.params())
    report = ft.tools.compile_report(task, state, problem.batches[0])
    start = time.perf_counter()
    state, _ = ft.train_step(task, state, problem.batches[0])
    jax.block_until_ready(state)
    compiling = time.perf_counter() - start

    def run() -> None:
        nonlocal state
        for batch in problem.batches:
            state, _ = ft.train_step(task, state, batch)
        jax.block_until_ready(state)

    return run, compiling, report.temporary_bytes


def fitted(problem: Problem) -> Contender:
    task = task_of(problem)
    state = ft.init_state(task, problem.params())
    start = time.perf_counter()
    state = ft.fit(
        task, state, problem.rows, epochs=1, batch_size=problem.batch, progress=False, donate=True
    ).state
    jax.block_until_ready(state)
    compiling = time.perf_counter() - start

    def run() -> None:
        nonlocal state
        fresh = state.replace(step=jnp.zeros_like(state.step))
        result = ft.fit(
            task, fresh, problem.rows, epochs=1, batch_size=problem.batch, progress=False, donate=True
        )
        state = result.state
        jax.block_until_ready(state)

    return run, compiling, float("nan")


def task_of(problem: Problem) -> ft.Task:
    return gpt.make_task(RATE, policy=problem.policy, microbatches=problem.microbatches, chunk=problem.chunk)


def by_hand(problem: Problem, our_loss: bool = False) -> Contender:
    adam = optax.adamw(RATE, b2=0.95, weight_decay=DECAY, mask=decayed)
    tx = optax.chain(optax.clip_by_global_norm(CLIP), adam)
    low = jnp.bfloat16 if problem.policy == "bf16" else jnp.float32

    def loss_fn(params: Any, batch: Any) -> Any:
        params = jax.tree.map(lambda x: x.astype(low), params)
        tokens, targets = batch[:, :-1].astype(jnp.int32), batch[:, 1:].astype(jnp.int32)
        x, kernel = gpt.hidden(params, tokens), params["token"]["kernel"].T
        if our_loss:
            return ft.losses.linear_cross_entropy(x, kernel, targets, chunk=problem.chunk).mean()
        logits = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = problem.params()
    opt_state = tx.init(params)
    start = time.perf_counter()
    program = step.lower(params, opt_state, problem.batches[0]).compile()
    compiling = time.perf_counter() - start
    memory: Any = program.memory_analysis()

    def run() -> None:
        nonlocal params, opt_state
        for batch in problem.batches:
            params, opt_state, _ = program(params, opt_state, batch)
        jax.block_until_ready(params)

    return run, compiling, memory.temp_size_in_bytes


def decayed(params: Any) -> Any:
    return ft.tree.regex_mask("kernel", params)


def by_torch(problem: Problem) -> Contender:
    """The same network in torch, with its fused attention and optimizer, compiled."""
    import torch
    from torch.nn import functional as F

    where = "cuda" if torch.cuda.is_available() else "cpu"
    size, heads = problem.size, problem.size.heads

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = size.width
            self.norm_1, self.norm_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
            self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
            self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            parts = self.qkv(self.norm_1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)
            x = x + self.out(y)
            return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = torch.nn.Embedding(size.vocabulary, size.width)
            self.position = torch.nn.Embedding(size.length, size.width)
            self.blocks = torch.nn.ModuleList(Block() for _ in range(size.layers))
            self.norm = torch.nn.LayerNorm(size.width)

        def forward(self, tokens: Any, targets: Any) -> Any:
            x = self.token(tokens) + self.position.weight
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.norm(x), self.token.weight)
            return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    torch.set_float32_matmul_precision("high")
    net = Net().to(where)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.02) if p.ndim > 1 else None
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)
    compiled = torch.compile(net)
    batches = [torch.as_tensor(np.asarray(x), device=where).long() for x in problem.batches]

    def step(batch: Any) -> None:
        with torch.autocast(where, torch.bfloat16, enabled=problem.policy == "bf16"):
            loss = compiled(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        adam.step()
        adam.zero_grad(set_to_none=True)

    def wait() -> None:
        torch.cuda.synchronize() if where == "cuda" else None

    start = time.perf_counter()
    step(batches[0])
    wait()
    compiling = time.perf_counter() - start
    held = torch.cuda.memory_allocated() if where == "cuda" else 0
    if where == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step(batches[0])
        wait()

    def run() -> None:
        for batch in batches:
            step(batch)
        wait()

    peak = torch.cuda.max_memory_allocated() - held if where == "cuda" else float("nan")
    return run, compiling, peak


CONTENDERS: dict[str, Callable[[Problem], Contender]] = {
    "by hand": by_hand,
    "by hand, our loss": functools.partial(by_hand, our_loss=True),
    "`train_step`": ours,
    "`fit`": fitted,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=gpt.SIZES, default="tiny")
    parser.add_argument("--vocabulary", type=int, help="another than the size's own")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="steps of one unit of work")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--policy", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--chunk", type=int, default=4096)
    parser.add_argument("--microbatches", type=int, default=1, help="of `train_step` and `fit`")
    parser.add_argument("--unroll", action="store_true")
    parser.add_argument("--peak", type=float, help="of the device, in TFLOP/s")
    arguments = parser.parse_args()
    problem = Problem(arguments)
    kind = jax.devices()[0].device_kind
    peak = arguments.peak or next((value for name, value in PEAKS.items() if name in kind), None)
    makers = dict(CONTENDERS)
    if importlib.util.find_spec("torch"):
        makers["`torch.compile`"] = by_torch
    made = {name: make(problem) for name, make in makers.items()}
    seconds = interleaved(
        {name: run for name, (run, _, _) in made.items()}, rounds=arguments.rounds, warmup=1
    )
    parameters = ft.tree.size(problem.params())
    flops = problem.flops(parameters) * problem.tokens
    rows = [
        [
            name,
            f"{s / problem.steps * 1e3:.1f}",
            f"{s / seconds['by hand']:.3f}",
            f"{problem.tokens / s:,.0f}",
            f"{flops / s / peak / 1e12:.1%}" if peak else "",
            "" if np.isnan(made[name][2]) else f"{made[name][2] / 2**20:,.1f}",
            f"{made[name][1]:.1f}",
        ]
        for name, s in seconds.items()
    ]
    print(
        f"{datetime.date.today()}, {platform.machine()}, {kind}, jax {jax.__version__}, optax {optax.__version__}\n"
    )
    print(
        f"{arguments.size}: {parameters / 1e6:.1f} M parameters, {problem.size.length} tokens a row, batch "
        f"{problem.batch}, vocabulary {problem.size.vocabulary}, {problem.policy}, layers "
        f"{'scanned' if problem.stacked else 'unrolled'}, chunks of {problem.chunk} tokens; medians of "
        f"{arguments.rounds} interleaved rounds of {problem.steps} steps.\n"
    )
    header = ["loop", "ms a step", "ratio to by hand", "tokens/s", "MFU", "temporaries, MiB", "first step, s"]
    print(table(rows, header))
    if "torch" not in "".join(made):
        print("\nleft out: torch (not installed)")


if __name__ == "__main__":
    main()
