"""ResourceMonitor: what an epoch took of time and memory."""

import os
import time
from pathlib import Path

import jax

from .._core.made import Made
from ..run.context import LoopContext


class ResourceMonitor(Made):
    """Add to each epoch's row what it took: time and memory.

    - `epoch_seconds`: from the epoch's beginning to its end, validation and, in the first, compiling included;
    - `step_time_ms`: the same over the number of steps;
    - `data_seconds`: how much of it the loop waited for batches;
    - `host_memory_mib`: the resident memory of this process, on Linux;
    - `device_memory_mib`, `device_memory_peak_mib`: of the first local device, where its backend says.

    What is not known is not in the row.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": np.float32(2)})
      >>> monitor = ft.callbacks.ResourceMonitor()
      >>> data = np.ones(4, np.float32)
      >>> history = ft.fit(task, state, data, epochs=2, callbacks=[monitor], progress=False).history
      >>> len(history["step_time_ms"]), min(history["step_time_ms"]) > 0
      (2, True)
    """

    def __init__(self) -> None:
        self._began, self._step, self._waited = time.monotonic(), 0, 0.0

    def on_epoch_begin(self, ctx: LoopContext) -> None:
        """Start the clock."""
        self._began, self._step, self._waited = time.monotonic(), ctx.step, ctx.data_seconds or 0.0

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Read clock and memory."""
        seconds = time.monotonic() - self._began
        ctx.logs["epoch_seconds"] = seconds
        if ctx.step > self._step:
            ctx.logs["step_time_ms"] = 1e3 * seconds / (ctx.step - self._step)
        if ctx.data_seconds is not None:
            ctx.logs["data_seconds"] = ctx.data_seconds - self._waited
        device = jax.local_devices()[0].memory_stats() or {}
        found = {
            "host_memory_mib": resident_bytes(),
            "device_memory_mib": device.get("bytes_in_use"),
            "device_memory_peak_mib": device.get("peak_bytes_in_use"),
        }
        ctx.logs.update({name: x / 2**20 for name, x in found.items() if x is not None})


def resident_bytes() -> int | None:
    """The memory of this process that is in RAM; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
