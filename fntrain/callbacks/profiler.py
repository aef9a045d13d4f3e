"""Profiler: a trace of some steps."""

import os
import warnings
from pathlib import Path

import jax

from .._core import check
from .._core.made import Made
from ..run.context import LoopContext


class Profiler(Made):
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
    needs_every_step = False

    def __init__(self, directory: str | os.PathLike[str], start: int = 10, steps: int = 5):
        self.directory: Path = check.path("directory", directory)
        self.start: int = check.integer("start", start, at_least=1)
        self.steps: int = check.integer("steps", steps, at_least=1)
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
