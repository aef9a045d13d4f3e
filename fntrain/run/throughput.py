"""How fast a run is: examples and tokens a second, the share of the device's arithmetic, its memory.

Measured where the loop waits anyway, and said of a run, never in it: it is no part of the history, which is the same
for the same run (law 11).
"""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from ..show.text import number_text
from ..step.cost import cost_of
from ..step.state import TrainState
from ..step.task import Task

# Products and sums a second of dense bfloat16 matrices, as vendors give them, by what JAX calls the device.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "Tesla V100": 125e12,
    "Tesla V100-PCIE": 112e12,
    "Tesla T4": 65e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


class Throughput(NamedTuple):
    """How fast the steps up to one were.

    Attributes:
      step: the last of them.
      steps: how many.
      seconds: that they took.
      examples_per_second: rows of batches, padding included.
      mfu: the operations of the step's matrix products and convolutions, each `cond` by its cheapest branch, as a share
        of what the devices could do in bfloat16; None where that is not known, as on a CPU.
      memory_bytes: the most that was in use on a device so far; None where the device does not say.
      tokens_per_second: values of the loss, where it has several for an example, as that of a language model has one
        for each position: masked ones and padding included. None elsewhere.
    """

    step: int
    steps: int
    seconds: float
    examples_per_second: float
    mfu: float | None
    memory_bytes: int | None
    tokens_per_second: float | None = None

    def __str__(self) -> str:
        """One line: the rates that are known."""
        tokens = self.tokens_per_second
        said = [
            f"{number_text(self.steps / self.seconds)} steps/s",
            f"{number_text(self.examples_per_second)} examples/s",
            "" if tokens is None else f"{number_text(tokens)} tokens/s",
            "" if self.mfu is None else f"{self.mfu:.1%} MFU",
        ]
        return ", ".join(filter(None, said))


class Mark(NamedTuple):
    """A moment when the steps up to one were done."""

    seconds: float
    step: int


Sizes = Callable[[int, int], Mapping[int, int]]
"""How many of the steps behind one, up to another, are of batches of which size."""


class Speed:
    """What turns two moments into a Throughput.

    Args:
      rows: of a batch.
      flops: of a step, or by the rows of its batch; None where nobody could say what share of the device's they are.
      peak: operations a second of all devices together.
      device: one of them.
      clock: seconds, from wherever.
      sizes: where not all batches have as many rows, which have how many.
      values: of the loss, for a row; None where that has none of its own.
    """

    def __init__(
        self,
        rows: int,
        flops: int | Mapping[int, int] | None = None,
        peak: float | None = None,
        device: Any = None,
        clock: Callable[[], float] | None = None,
        sizes: Sizes | None = None,
        values: int | None = None,
    ):
        self._rows = rows
        self._tokens = values if values is not None and values > 1 else None  # one is the example itself
        self._flops = {rows: flops} if isinstance(flops, int) else flops
        self._peak = peak
        self._device = device
        self._clock = clock
        self._sizes = sizes

    def mark(self, step: int) -> Mark:
        """Now, with the steps up to this one done."""
        return Mark((self._clock or time.perf_counter)(), step)

    def since(self, before: Mark | None, step: int) -> Throughput | None:
        """The throughput from a moment to now; None if no time has passed, or no step."""
        if before is None:
            return None
        now = self.mark(step)
        steps, seconds = step - before.step, now.seconds - before.seconds
        if steps <= 0 or not seconds > 0:
            return None
        sizes = {self._rows: steps} if self._sizes is None else self._sizes(before.step, step)
        rows, mfu = sum(size * number for size, number in sizes.items()), None
        if self._flops is not None and self._peak is not None:
            mfu = sum(self._flops[size] * number for size, number in sizes.items()) / self._peak / seconds
        memory = (
            None if self._device is None else (self._device.memory_stats() or {}).get("peak_bytes_in_use")
        )
        rate = rows / seconds
        tokens = None if self._tokens is None else rate * self._tokens
        return Throughput(step, steps, seconds, rate, mfu, memory, tokens)


def speed_of(task: Task, state: TrainState, forms: Mapping[int, Any], sizes: Sizes | None = None) -> Speed:
    """The Speed of a run's steps; what they cost, and of how many values, is read from their program.

    Args:
      task: the Task.
      state: where the run starts; only its form counts.
      forms: the forms of a batch and its weight, by their rows.
      sizes: where there are several, which steps have how many.
    """
    rows = next(iter(forms))
    devices = jax.tree.leaves(state)[0].sharding.device_set
    device = next((x for x in devices if x.process_index == jax.process_index()), None)
    peak = None if device is None else peak_of(device.device_kind)
    if peak is None:
        return Speed(rows, device=device, sizes=sizes, values=cost_of(task, state, *forms[rows]).values)
    costs = {size: cost_of(task, state, *form) for size, form in forms.items()}
    flops = {size: cost.least_flops for size, cost in costs.items()}
    return Speed(rows, flops, peak * len(devices), device, sizes=sizes, values=costs[rows].values)


def peak_of(kind: str) -> float | None:
    """Operations a second of a device by its kind, the longest name in the table that it begins with.

    The name ends where a word of the kind does: an L40 is no L4.
    """
    known = [name for name in PEAKS if re.match(rf"{re.escape(name)}(?![0-9A-Za-z])", kind)]
    return PEAKS[max(known, key=len)] if known else None
