"""What a step costs: from the compiled program, before any step is paid for, and from the clock."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import NamedSharding, PartitionSpec

from .. import _check, _gradients, _step, sharding
from .._state import TrainState, check_state
from .._task import Context, Task
from .._typing import Batch
from ..loop.data import mesh_of


class Collective(NamedTuple):
    """The collectives of one kind that a step runs."""

    count: int  # how many run, those in loops as often as the loop runs
    bytes: int  # of their larger side (what an all-gather gives, a reduce-scatter takes), on one device, together


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """What the compiled train step needs; `print` it for a table. All but `flops` is for one device.

    Attributes:
      flops: floating-point operations of matrix products and convolutions, on all devices together; in loops as
        often as they run, where that is known.
      bytes_accessed: bytes read and written as XLA counts them, which takes a loop's body once.
      argument_bytes: of state and batch.
      output_bytes: of what is returned and is not in a donated argument's place.
      temporary_bytes: what the step needs besides.
      peak_bytes: of the three together, which XLA sets aside for the step.
      collectives: by kind (`"all-reduce"`, `"all-gather"`, …).
    """

    flops: int
    bytes_accessed: int
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    peak_bytes: int
    collectives: Mapping[str, Collective]

    def __str__(self) -> str:
        """A table, a line for each number."""
        lines = [f"{'matrix products':<18}{self.flops:>19,} FLOP, all devices"]
        for name in (
            "bytes_accessed",
            "argument_bytes",
            "output_bytes",
            "temporary_bytes",
            "peak_bytes",
        ):
            lines.append(f"{name.replace('_', ' '):<18}{getattr(self, name):>19,} B a device")
        for kind, (count, n) in self.collectives.items():
            lines.append(f"{kind:<18}{n:>19,} B a device, in {count}")
        return "\n".join(lines if self.collectives else [*lines, "no collectives"])


def compile_report(task: Task, state: TrainState, batch: Batch, weight: Any = None) -> CompileReport:
    """What `train_step` needs on this batch, read from the compiled program; no step is run.

    Args:
      task: the Task.
      state: a TrainState; it stays usable. `jax.eval_shape` of one will do.
      batch: a batch or its shapes; on a mesh, one that is not placed yet is taken as split by `shard_batch`.
      weight: a weight per example or its shape, or None.

    Returns:
      A CompileReport, for `print`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.zeros((32, 32))})
      >>> report = ft.tools.compile_report(task, state, jnp.ones((8, 32)))
      >>> report.flops == 2 * (2 * 8 * 32 * 32), report.collectives  # forward, and the weights' gradient
      (True, {})
    """
    _step.check_task(task)
    check_state(state, "compile_report")

    def step(state: TrainState, batch: Batch, weight: Any) -> Any:
        return _step.train_step(task, state, batch, weight)

    arguments = jax.tree.map(_abstract, state), *_placed(state, batch, weight)
    mesh: Any = getattr(arguments[0].step.sharding, "mesh", None)
    with nullcontext() if mesh is None else jax.set_mesh(mesh):
        traced = jax.jit(step, donate_argnums=0).trace(*arguments)
        program = traced.lower().compile()
    memory: Any = program.memory_analysis()
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    cost: Any = program.cost_analysis() or {}
    return CompileReport(
        flops=_products(traced.jaxpr.jaxpr),
        bytes_accessed=int(cost.get("bytes accessed", 0)),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=output,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.argument_size_in_bytes + output + memory.temp_size_in_bytes,
        collectives=collectives(program.as_text() or ""),
    )


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    where = x.sharding if getattr(x, "committed", True) else None
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where, weak_type=getattr(x, "weak_type", False))


def _placed(state: TrainState, batch: Batch, weight: Any) -> Any:
    mesh = mesh_of(jax.tree.map(_abstract, state))

    def one(x: Any) -> jax.ShapeDtypeStruct:
        if not isinstance(x, jax.Array | jax.ShapeDtypeStruct):
            x = jax.eval_shape(jnp.asarray, x)
        where = x.sharding if getattr(x, "committed", True) else None
        if mesh is None or isinstance(where, NamedSharding):
            return _abstract(x)
        axis = sharding.data_axis(mesh)
        rows = [-(-x.shape[0] // mesh.shape[axis]) * mesh.shape[axis]] if x.shape else []
        spec = PartitionSpec(axis) if x.shape else PartitionSpec()
        return jax.ShapeDtypeStruct((*rows, *x.shape[1:]), x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(one, (batch, weight))


def _products(program: core.Jaxpr) -> int:
    """Floating-point operations of the matrix products and convolutions of a program."""
    total: int = 0
    for equation in program.eqns:
        shapes: list[Any] = [getattr(x.aval, "shape", ()) for x in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[0][i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"]
            channels = shapes[1][numbers.rhs_spec[0]]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[1]) // channels
        inner = [_products(p) for p in _programs(equation.params)]
        if equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inner)
        elif equation.primitive.name == "cond":
            total += max(inner, default=0)
        else:
            total += sum(inner)
    return total


def _programs(params: Mapping[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if isinstance(x, core.ClosedJaxpr):
                found.append(x.jaxpr)
            elif isinstance(x, core.Jaxpr):
                found.append(x)
    return found


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
_COLLECTIVE = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|\w+_computations?)=\{?([^,}\s]+(?:, [^,}\s]+)*)")
_BITS = re.compile(r"\d+")


def collectives(hlo: str) -> dict[str, Collective]:
    """The collectives of a compiled program, by kind, from its text; of a conditional, its costliest branch."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if line[:1] not in ("", " ", "}") and line.rstrip().endswith("{"):
            words = line.split()
            name = words[words[0] == "ENTRY"].lstrip("%")
            entry = name if words[0] == "ENTRY" else entry
        lines.setdefault(name, []).append(line)

    def inside(name: str) -> dict[str, Collective]:
        found: dict[str, Collective] = {}
        for line in lines.get(name, ()):
            match = _COLLECTIVE.search(line)
            if match:
                _count(found, {match[2]: Collective(1, _size(match, line))})
                continue
            called = [other.lstrip("%") for m in _CALLED.finditer(line) for other in m[1].split(", ")]
            if not called:
                continue
            parts = [inside(other) for other in called]
            if " conditional(" in line:
                parts = [max(parts, key=lambda part: sum(c.bytes for c in part.values()))]
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for part in parts:
                _count(found, part, int(trips[1]) if trips else 1)
        return found

    return inside(entry)


def _count(found: dict[str, Collective], more: dict[str, Collective], times: int = 1) -> None:
    for kind, (count, n) in more.items():
        have = found.get(kind, Collective(0, 0))
        found[kind] = Collective(have.count + times * count, have.bytes + times * n)


def _size(match: re.Match[str], line: str) -> int:
    sizes = [
        math.prod(int(n) for n in dims.split(",") if n) * _width(dtype)
        for dtype, dims in _ARRAY.findall(match[1])
    ]
    if match[3] and match[2] in ("all-gather", "collective-permute"):
        sizes = sizes[len(sizes) // 2 :]  # an operation under way holds what it takes, then what it gives
    total = sum(sizes)
    if match[2] == "reduce-scatter":
        groups = re.search(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\])", line)
        if groups:
            total *= int(groups[2]) if groups[2] else len(groups[1].split(","))
    return total


def _width(dtype: str) -> int:
    if dtype == "pred":
        return 1
    bits = _BITS.search(dtype)
    return max(1, int(bits[0]) // 8) if bits else 1


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
    _step.check_task(task)
    check_state(state, "profile_step")
    _check.integer("repeats", repeats, at_least=1)

    @jax.jit
    def forward(state: TrainState, batch: Batch, weight: Any) -> jax.Array:
        ctx = Context(_step.step_key(state), True, state.step, state.model_state)
        weight = None if weight is None else jnp.asarray(weight, jnp.float32)
        return _gradients.evaluate(task, state.params, batch, ctx, weight).total

    stepped = _step.copied(state)

    def step() -> Any:
        nonlocal stepped
        stepped, metrics = _step.train_step(task, stepped, batch, weight)
        return stepped, metrics

    runs: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(state, batch, weight),
        "gradient": lambda: _step.compute_gradients(task, state, batch, weight),
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
