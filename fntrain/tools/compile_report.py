"""compile_report: what a step needs, read from the compiled program before any step is paid for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from .._core.typing import Batch
from ..step import checks
from ..step.compiled import compiled, memory_of
from ..step.cost import products
from ..step.state import TrainState, check_state
from ..step.task import Task
from .collectives import Collective, collectives


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
    checks.check_task(task)
    check_state(state, "compile_report")

    traced, program = compiled(task, state, batch, weight)
    arguments, output, temporary = memory_of(program)
    cost: Any = program.cost_analysis() or {}
    return CompileReport(
        flops=products(traced.jaxpr.jaxpr),
        bytes_accessed=int(cost.get("bytes accessed", 0)),
        argument_bytes=arguments,
        output_bytes=output,
        temporary_bytes=temporary,
        peak_bytes=arguments + output + temporary,
        collectives=collectives(program.as_text() or ""),
    )
