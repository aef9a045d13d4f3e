"""profile_step: where the time of a step goes."""

import math
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._core import check
from .._core.errors import ConfigError
from .._core.typing import Batch
from ..step import checks, gradients, programs
from ..step.compiled import compiled
from ..step.state import TrainState, check_state
from ..step.step import compute_gradients, train_step
from ..step.task import Context, Task
from .timeline import PARTS, parts_of, seconds_of, trace


class Profile(dict[str, float]):
    """Milliseconds by part of a step, and `how` they were found: from a `"trace"`, or from three `"programs"`."""

    how: str

    def __init__(self, times: dict[str, float], how: str):
        super().__init__(times)
        self.how = how

    def __repr__(self) -> str:
        return f"Profile({super().__repr__()}, how={self.how!r})"


def profile_step(
    task: Task, state: TrainState, batch: Batch, weight: Any = None, *, repeats: int = 10
) -> Profile:
    """Where the time of a step goes, in milliseconds.

    The step that runs train by is traced, and each of its operations counts where it belongs. A fusion of several
    belongs to what most of it does; what has no name, gaps between operations and the dispatch are unattributed.

    Where the trace does not tell operations apart, three programs are timed in turn by the clock instead: the loss,
    the loss with its gradient, and the whole step. What each takes more than the one before is the backward pass and
    the optimizer, with the metrics; `how` says so. A compiler that treats the three differently makes this wrong.

    Args:
      task: the Task.
      state: a TrainState; it stays usable, and a copy of it is stepped.
      batch: a batch, placed on the mesh if the state is.
      weight: a weight per example, or None.
      repeats: runs of each; the shortest counts for the total, and the mean of the traced ones for the parts.

    Returns:
      A dict of `forward_ms`, `backward_ms`, `optimizer_ms`, `metrics_ms`, `unattributed_ms`, and `total_ms`, which
      the others add up to; its `how` is `"trace"` or `"programs"`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.zeros((32, 32))})
      >>> times = ft.tools.profile_step(task, state, jnp.ones((8, 32)), repeats=2)
      >>> list(times)
      ['forward_ms', 'backward_ms', 'optimizer_ms', 'metrics_ms', 'unattributed_ms', 'total_ms']
    """
    checks.check_task(task)
    check_state(state, "profile_step")
    check.integer("repeats", repeats, at_least=1)
    return _by_trace(task, state, batch, weight, repeats) or _by_programs(task, state, batch, weight, repeats)


def _by_trace(task: Task, state: TrainState, batch: Batch, weight: Any, repeats: int) -> Profile | None:
    """From one trace of the step; None where it does not say which operation is which, or none can be recorded."""
    _, program = compiled(task, state, batch, weight)
    parts = parts_of(program.as_text())
    if not {"forward", "backward"} <= set(parts.values()):
        return None  # from a cache on disk, or compiled where JAX was told to keep no names
    given = jax.device_put((state, batch, weight), program.input_shardings[0])
    stepped, *rest = programs.copied(given[0]), *given[1:]

    def run() -> float:
        nonlocal stepped
        start = time.perf_counter()
        stepped, metrics = program(stepped, *rest)
        jax.block_until_ready((stepped, metrics))
        return time.perf_counter() - start

    run()
    shortest = min(run() for _ in range(repeats))
    with tempfile.TemporaryDirectory() as directory:
        try:
            with trace(directory) as path:
                traced = sum(run() for _ in range(repeats))
        except ConfigError:  # somebody is recording
            return None
        found = seconds_of(path, parts)
    if not sum(found.values()):
        return None
    # Being traced makes a step longer, by as much for each operation.
    share = min(1.0, shortest * repeats / traced) / repeats
    times = {part: 1e3 * share * seconds for part, seconds in found.items()}
    total = max(1e3 * shortest, sum(times.values()))  # operations side by side may add up to more
    return _profile(times, total, "trace")


def _profile(times: dict[str, float], total: float, how: str) -> Profile:
    rest = max(0.0, total - sum(times.values()))
    named = {f"{part}_ms": times.get(part, 0.0) for part in PARTS}
    return Profile({**named, "unattributed_ms": rest, "total_ms": total}, how)


def _by_programs(task: Task, state: TrainState, batch: Batch, weight: Any, repeats: int) -> Profile:
    """By the clock, from three programs."""

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
    times = {
        "forward": best["forward"],
        "backward": gradient - best["forward"],
        "optimizer": total - gradient,
    }
    return _profile(times, total, "programs")
