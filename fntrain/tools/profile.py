"""profile_step: where the time of a step goes, by the clock."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._core import check
from .._core.typing import Batch
from ..step import checks, gradients, programs
from ..step.state import TrainState, check_state
from ..step.step import compute_gradients, train_step
from ..step.task import Context, Task


def profile_step(
    task: Task, state: TrainState, batch: Batch, weight: Any = None, *, repeats: int = 10
) -> dict[str, float]:
    """Where the time of a step goes, in milliseconds, by the clock.

    Three programs are timed in turn: the loss, the loss with its gradient, and the whole step. What each takes more
    than the one before is the backward pass and the optimizer; the shortest of the runs counts.

    Args:
      task: the Task.
      state: a TrainState; it stays usable, and a copy of it is stepped.
      batch: a batch, placed on the mesh if the state is.
      weight: a weight per example, or None.
      repeats: runs of each.

    Returns:
      `{"forward_ms", "backward_ms", "optimizer_ms", "total_ms"}`; the first three add up to the last.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.zeros((32, 32))})
      >>> sorted(ft.tools.profile_step(task, state, jnp.ones((8, 32)), repeats=2))
      ['backward_ms', 'forward_ms', 'optimizer_ms', 'total_ms']
    """
    checks.check_task(task)
    check_state(state, "profile_step")
    check.integer("repeats", repeats, at_least=1)

    @jax.jit
    def forward(state: TrainState, batch: Batch, weight: Any) -> jax.Array:
        ctx = Context(programs.step_key(state), True, state.step, state.model_state)
        weight = None if weight is None else jnp.asarray(weight, jnp.float32)
        return gradients.evaluate(task, state.params, batch, ctx, weight).total

    stepped = programs.copied(state)

    def step() -> Any:
        nonlocal stepped
        stepped, metrics = train_step(task, stepped, batch, weight)
        return stepped, metrics

    runs: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(state, batch, weight),
        "gradient": lambda: compute_gradients(task, state, batch, weight),
        "step": step,
    }
    best = dict.fromkeys(runs, math.inf)
    for repeat in range(repeats + 1):  # the first compiles, and is not counted
        for name, run in runs.items():
            jax.block_until_ready(stepped)
            start = time.perf_counter()
            jax.block_until_ready(run())
            if repeat:
                best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    gradient = max(best["forward"], best["gradient"])
    total = max(gradient, best["step"])
    return {
        "forward_ms": best["forward"],
        "backward_ms": gradient - best["forward"],
        "optimizer_ms": total - gradient,
        "total_ms": total,
    }
