"""Where a run's time went: one phase at a time, and nothing in between."""

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from ..step.state import TrainState

PHASES = ("start", "compile", "data", "step", "validation", "checkpoint", "callbacks", "other")
START, COMPILE, DATA, STEP, VALIDATION, CHECKPOINT, CALLBACKS, OTHER = range(len(PHASES))
CELLS = len(PHASES) + 1
"""A number for each phase, and the step that the run has come to."""

_COMPILED = "/jax/core/compile/backend_compile_duration"
_COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    _COMPILED,
)
_METERS: list["Meter"] = []  # of the runs in progress, the innermost last


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Where the time of a run went, in seconds, over all the times that it was resumed.

    Attributes:
      total: all the time that `fit` was at work for the run; waiting between two parts of it is nobody's.
      step: steps, as the host sees them: their dispatch, the waiting for them at log points and edges, the loop itself.
      data: waiting for batches.
      compile: tracing and compiling, for whatever it was.
      validation: validations, from the last step before to their values.
      checkpoint: saves, as far as the loop waited for them, and rows of metrics.
      callbacks: callbacks, the progress bar among them.
      start: all that is before the first step: data at the door, the run directory, a restore.
      lost: what was done since the last checkpoint when the run was killed, and had to be done again.
      unattributed: what is none of these.
      lost_steps: the steps that were lost so.
      parts: how many times `fit` was at work for it.
    """

    total: float
    step: float
    data: float
    compile: float
    validation: float
    checkpoint: float
    callbacks: float
    start: float
    lost: float
    unattributed: float
    lost_steps: int
    parts: int

    @property
    def share(self) -> float:
        """The share of the time that went into steps that count."""
        return self.step / self.total if self.total > 0 else 0.0

    def __str__(self) -> str:
        """One line: the share, and the phases from the longest to the shortest."""
        names = ("step", "compile", "data", "validation", "checkpoint", "callbacks", "start", "lost")
        seconds = {name: getattr(self, name) for name in names}
        seconds["the rest"] = self.unattributed
        told = sorted((x for x in seconds.items() if x[1] >= 0.005 * self.total), key=lambda x: -x[1])
        many = f" in {self.parts} parts" if self.parts > 1 else ""
        lost = f"; {self.lost_steps} steps were lost" if self.lost_steps else ""
        shown = ", ".join(f"{name} {value:.3g} s" for name, value in told)
        return f"{100 * self.share:.0f} % of {self.total:.3g} s{many}: {shown}{lost}"


def goodput_of(parts: list[dict[str, Any]]) -> Goodput | None:
    """The sum over a run's parts, as its directory keeps them; None if nothing was measured.

    Args:
      parts: each with `seconds` by phase, and, if something of it was lost, `lost` likewise and `lost_steps`.
    """
    measured = [part for part in parts if part.get("seconds")]
    if not measured:
        return None

    def sum_of(key: str, name: str) -> float:
        return sum(part.get(key, {}).get(name, 0.0) for part in measured)

    kept = {name: sum_of("seconds", name) - sum_of("lost", name) for name in PHASES}
    return Goodput(
        total=sum(sum_of("seconds", name) for name in PHASES),
        lost=sum(sum_of("lost", name) for name in PHASES),
        unattributed=kept.pop("other"),
        lost_steps=sum(part.get("lost_steps", 0) for part in measured),
        parts=len(parts),
        **kept,
    )


class Meter:
    """A stopwatch with a hand for each phase, of which one runs at any time.

    Args:
      clock: seconds, from wherever.

    Attributes:
      cells: seconds by phase, and the step that the run has come to.
      compiles: how many programs were compiled.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.cells: list[float] | memoryview[float] = [0.0] * CELLS
        self.compiles = 0
        self.phase = START
        self._since = clock()
        self._thread = threading.get_ident()
        self._compiled: list[tuple[float, float]] = []  # when it was compiled, the newest last

    def to(self, phase: int) -> int:
        """From here on it is another phase; which it was."""
        now, was = self.clock(), self.phase
        self.cells[was] += now - self._since
        self._since, self.phase = now, phase
        return was

    @contextmanager
    def during(self, phase: int, after: TrainState | None = None) -> Iterator[None]:
        """A phase for as long as this is entered; the steps to this state are waited for before, and no part of it."""
        if after is not None:
            jax.block_until_ready(after.updates)
        was = self.to(phase)
        try:
            yield
        finally:
            self.to(was)

    @property
    def seconds(self) -> dict[str, float]:
        """By phase, up to now."""
        self.to(self.phase)
        return dict(zip(PHASES, self.cells))

    def keep_in(self, cells: "list[float] | memoryview[float]") -> None:
        """Count on in other cells, such as those of a file, which outlive the process."""
        for i, seconds in enumerate(self.cells):
            cells[i] = seconds
        self.cells = cells

    def compiled(self, seconds: float) -> None:
        """So much of the time up to now was compiling, and of no other phase; what lies within counts once."""
        end = self.clock()
        start, known = end - seconds, 0.0
        while self._compiled and self._compiled[-1][0] >= start:
            before = self._compiled.pop()
            known += before[1] - before[0]
        self._compiled.append((start, end))
        self.cells[COMPILE] += seconds - known
        self.cells[self.phase] -= seconds - known

    def __enter__(self) -> "Meter":
        _listen()
        _METERS.append(self)
        return self

    def __exit__(self, *exception: Any) -> None:
        self.to(OTHER)
        _METERS.remove(self)

    def heard(self, event: str, seconds: float) -> None:
        """What JAX says of its own work."""
        if event in _COMPILING and threading.get_ident() == self._thread:
            self.compiles += event == _COMPILED
            self.compiled(seconds)


@functools.cache
def _listen() -> None:
    """Once a process: JAX tells when it compiles, so that nobody has to look."""

    def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if _METERS:
            _METERS[-1].heard(event, duration_secs)

    jax.monitoring.register_event_duration_secs_listener(heard)


def lost_since(seconds: Mapping[str, float], saved: Mapping[str, float]) -> dict[str, float]:
    """What a part did behind a checkpoint, by phase."""
    return {name: max(0.0, seconds[name] - saved.get(name, 0.0)) for name in PHASES}
