"""Callbacks that look inside: gradients, memory and time, traces."""

import os
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import _check, _step, tree
from ..._task import Task
from ..._typing import PyTree
from ._protocol import Histogram, LoopContext, last_of

BINS = 64


class GradientStats:
    r"""Measure gradients and updates of each layer, at the end of epochs.

    What is measured is the step that the epoch's last batch would give from the parameters as they are then: a
    second pass over that batch in a program of its own, run only when it is due, that changes nothing. The
    epoch's row gets

    - `gradient_norm`: :math:`\lVert g \rVert`, before any transform;
    - `update_ratio`: :math:`\lVert \Delta p \rVert / \lVert p \rVert`, 0 where an accumulation window stays
      open, NaN or infinite where :math:`p` is zero;
    - `layer_gradient_norm` and `layer_update_ratio`: the same for each layer, as a dict. A layer is all trained
      leaves that share their path but for its last part: `layers/0` of `layers/0/kernel`.

    Args:
      every: measure every so many epochs, >= 1.
      histograms: also form, in the same pass, the histograms of each layer's gradients and parameters, in 64 bins
        from the smallest to the largest. They are no part of the row: a `TensorBoardLogger` that stands after this
        one writes them.

    Raises:
      ConfigError: if `every` is no integer >= 1.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], 0 * b), ft.optimizers.sgd(0.25))
      >>> state = ft.init_state(task, {"w": np.float32(2)})
      >>> stats = ft.callbacks.GradientStats()
      >>> data = np.ones(4, np.float32)
      >>> history = ft.fit(task, state, data, epochs=1, callbacks=[stats], progress=False).history
      >>> history["gradient_norm"], history["update_ratio"], history["layer_gradient_norm"]
      ([2.0], [0.5], [{'w': 2.0}])
    """

    wants_batch = True

    def __init__(self, every: int = 1, histograms: bool = False):
        self.every = _check.integer("every", every, at_least=1)
        self.histograms = bool(histograms)

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Measure, if that is due."""
        if ctx.epoch % self.every or ctx.last_batch is None:
            return
        batch, weight, stacked = ctx.last_batch
        if stacked:
            batch, weight = last_of((batch, weight))
        values, histograms = jax.device_get(_measured(ctx.task, self.histograms, ctx.state, batch, weight))
        ctx.logs.update(jax.tree.map(float, values))
        for name, (counts, low, high, *sums) in histograms.items():
            if counts.any():
                edges = np.linspace(float(low), float(high), BINS + 1)
                ctx.histograms[name] = Histogram(counts, edges, *map(float, sums))


@partial(jax.jit, static_argnums=(0, 1))
def _measured(task: Task, histograms: bool, state: Any, batch: PyTree, weight: Any) -> tuple[dict, dict]:
    _, grads = _step.compute_gradients(task, state, batch, weight)
    after, _ = _step.train_step(task, state, batch, weight)
    before = tree.split(state.params)[0]
    change = jax.tree.map(
        lambda new, old: tree.wide(new) - tree.wide(old), tree.split(after.params)[0], before
    )
    gradient, update, size = map(_by_layer, (grads, change, before))
    values = {
        "gradient_norm": tree.norm(gradient),
        "update_ratio": tree.norm(update) / tree.norm(size),
        "layer_gradient_norm": {layer: tree.norm(x) for layer, x in gradient.items()},
        "layer_update_ratio": {layer: tree.norm(x) / tree.norm(size[layer]) for layer, x in update.items()},
    }
    drawn = {"gradients": gradient, "params": size} if histograms else {}
    return values, {
        f"{kind}/{layer}".rstrip("/"): _histogram(x)
        for kind, layers in drawn.items()
        for layer, x in layers.items()
    }


def _histogram(leaves: list[jax.Array]) -> tuple[jax.Array, ...]:
    """Counts in equal bins, the ends of these, and the sums of the finite numbers and of their squares."""
    x = jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves])
    finite = jnp.isfinite(x)
    low = jnp.min(x, where=finite, initial=jnp.inf)
    high = jnp.max(x, where=finite, initial=-jnp.inf)
    half = jnp.where(
        high > low, jnp.float32(0), jnp.float32(0.5)
    )  # numbers that are all equal stand in the middle
    low, high = low - half, high + half
    x = jnp.where(finite, x, low)
    # Halved before they are subtracted: the range of finite numbers may be infinite.
    place = (x / 2 - low / 2) / (high / 2 - low / 2) * BINS
    index = jnp.clip(place.astype(jnp.int32), 0, BINS - 1)
    counts = jnp.zeros(BINS, jnp.int32).at[index].add(finite.astype(jnp.int32))
    x = jnp.where(finite, x, jnp.float32(0))
    return counts, low, high, jnp.sum(x), jnp.sum(jnp.square(x))


def _by_layer(params: PyTree) -> dict[str, list[jax.Array]]:
    layers: dict[str, list[jax.Array]] = {}
    for path, leaf in tree.items(params):
        layers.setdefault(path.rpartition("/")[0] or path, []).append(leaf)
    return layers


class ResourceMonitor:
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


class Profiler:
    """Trace some steps with JAX's profiler, for TensorBoard's profile page, XProf or Perfetto.

    Steps are counted from where this process starts. Where `steps_per_call` is more than one, the trace begins
    and ends between calls. The loop waits for the device at the beginning and the end of the trace.

    Args:
      directory: where the trace goes; made if need be.
      start: how many steps go by before it; the first compiles. >= 1.
      steps: how many are traced, >= 1.

    Raises:
      ConfigError: if a number is no integer >= 1.
    """

    adds_logs = False

    def __init__(self, directory: str | os.PathLike[str], start: int = 10, steps: int = 5):
        self.directory = Path(directory).expanduser()
        self.start = _check.integer("start", start, at_least=1)
        self.steps = _check.integer("steps", steps, at_least=1)
        self._tracing = self._done = False

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start anew."""
        del ctx
        self.close()
        self._done = False

    def on_step_end(self, ctx: LoopContext) -> None:
        """Begin or end the trace, if it is time to."""
        if self._done:
            return
        gone = ctx.step - ctx.resumed_step
        if self._tracing and gone >= self._until:
            jax.block_until_ready(ctx.state)
            self.close()
        elif not self._tracing and gone >= self.start:
            jax.block_until_ready(ctx.state)
            jax.profiler.start_trace(str(self.directory))
            self._tracing, self._until = True, gone + self.steps

    def on_fit_end(self, ctx: LoopContext) -> None:
        """End the trace; say so if there is none."""
        if not self._tracing and not self._done:
            warnings.warn(
                f"Profiler: the run ended after {ctx.step - ctx.resumed_step} steps, before its trace was to begin "
                f"(start={self.start})",
                stacklevel=2,
            )
        jax.block_until_ready(ctx.state)
        self.close()

    def close(self) -> None:
        """End the trace, if there is one."""
        if self._tracing:
            self._tracing, self._done = False, True
            jax.profiler.stop_trace()
