"""fit_memory: into how many micro-batches a batch has to be cut, found by compiling and not by crashing."""

import dataclasses
from typing import Any

from .._core import check
from .._core.sizes import bytes_text
from .._core.typing import Batch
from ..step import checks
from ..step.compiled import device_budget, fewest_microbatches
from ..step.state import TrainState, check_state
from ..step.task import Task


class FittedMemory(int):
    """A number of micro-batches, and what it was chosen by.

    Attributes:
      task: the Task with so many.
      budget: bytes that a device may hold.
      peak_bytes: of the choice.
      tried: peak bytes by number of micro-batches, of all that were compiled; the last one is the choice.
    """

    task: Task
    budget: int
    tried: dict[int, int]

    @property
    def peak_bytes(self) -> int:
        """Bytes that a device holds in a step."""
        return self.tried[int(self)]

    def __str__(self) -> str:
        """A line for each number that was tried."""
        lines = [f"{number:>6} micro-batches {bytes_text(peak):>10}" for number, peak in self.tried.items()]
        return "\n".join([*lines, f"budget {bytes_text(self.budget)}: {int(self)}"])


def fit_memory(
    task: Task, state: TrainState, batch: Batch, budget: int | None = None, *, weight: Any = None
) -> FittedMemory:
    """The fewest micro-batches, a power of two, with which a step fits in memory.

    The step is compiled for 1, 2, 4, … micro-batches until the program says that it fits; none is run. Loss and
    gradient are the same with any number (a sum over the parts, divided once), so that only the memory changes, and
    the time a little.

    Args:
      task: the Task; its own `microbatches` does not count.
      state: a TrainState; it stays usable. `jax.eval_shape` of one will do, with a budget.
      batch: a batch or its shapes.
      budget: bytes a device may hold: state, batch, gradient and what the backward pass keeps. None is the memory of
        the state's device, but for a tenth.
      weight: a weight per example or its shape, or None.

    Returns:
      A FittedMemory, which is the number: `Task(..., microbatches=found)`, or `found.task`.

    Raises:
      DataError: if one row at a time does not fit.
      ConfigError: if `budget` is no positive number, or None where the device does not say.

    Examples:
      >>> import fntrain as ft, jax, jax.numpy as jnp
      >>> def loss_fn(p, b, ctx):
      ...     return ft.losses.mse(jnp.tanh(jnp.tanh(b @ p["w"]) @ p["w"]), b)
      >>> task = ft.Task(loss_fn, ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.zeros((16, 16))})
      >>> batch = jax.ShapeDtypeStruct((4096, 16), jnp.float32)
      >>> whole = ft.tools.compile_report(task, state, batch).peak_bytes
      >>> found = ft.tools.fit_memory(task, state, batch, whole - 1)
      >>> found > 1, found.peak_bytes < whole, found.task.microbatches == found
      (True, True, True)
    """
    checks.check_task(task)
    check_state(state, "fit_memory")
    if budget is not None:
        check.number("budget", budget, above=0)
    limit = device_budget(state) if budget is None else int(budget)
    number, tried = fewest_microbatches(task, state, batch, weight, limit)
    found = FittedMemory(number)
    found.task, found.budget, found.tried = dataclasses.replace(task, microbatches=number), limit, tried
    return found
