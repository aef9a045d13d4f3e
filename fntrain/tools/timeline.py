"""trace: what the devices did, for Perfetto and TensorBoard; and what of a step each operation is a part of."""

import collections
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from .._core import check
from .._core.errors import ConfigError
from ..step.gradients import FORWARD, METRICS, OPTIMIZER

PARTS: tuple[str, ...] = ("forward", "backward", "optimizer", "metrics")


@contextmanager
def trace(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Record what devices and host do within, for TensorBoard (`tensorboard --logdir`) and Perfetto (ui.perfetto.dev).

    Operations of a step stand in it under their scopes: `jvp(loss)`, `transpose(jvp(loss))` (the backward pass),
    `optimizer`, `metrics`. What was sent to the device within is waited for at the end.

    Args:
      directory: where it goes; made if need be.

    Yields:
      The directory.

    Raises:
      ConfigError: if `directory` is a file, or a trace is being recorded already.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp, tempfile
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.zeros(())})
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     with ft.tools.trace(directory) as path:
      ...         state, metrics = ft.train_step(task, state, jnp.ones(3))
      ...     len(list(path.rglob("*.trace.json.gz")))
      1
    """
    path = check.path("directory", directory)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"`directory` must be a directory, and {path} is a file")
    try:
        jax.profiler.start_trace(str(path), profiler_options=_quiet(), create_perfetto_trace=False)
    except RuntimeError as error:
        raise ConfigError(f"`trace` within a trace: one can be recorded at a time ({error})") from error
    try:
        yield path
        jax.block_until_ready(jax.live_arrays())
    finally:
        jax.profiler.stop_trace()


def _quiet() -> Any:
    """Without a frame for every call of Python, which would be most of the trace and of its cost."""
    options: Any = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


def parts_of(program: str) -> dict[str, str]:
    """Which part of a step each operation of its compiled text belongs to: `PARTS`; others are left out.

    A fusion belongs to what most of the operations in it belong to, as its own name is that of the last.
    """
    own: dict[str, str | None] = {}
    inside: dict[str, list[str | None]] = collections.defaultdict(list)
    calls: dict[str, str] = {}
    computation = ""
    for line in program.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = header[1]
        elif operation := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
            scope = re.search(r'op_name="([^"]*)"', line)
            part = part_of(scope[1]) if scope else None
            own[operation[1]] = part
            inside[computation].append(part)
            if called := re.search(r" fusion\(.* calls=%?([\w.\-]+)", line):
                calls[operation[1]] = called[1]
    found = {}
    for name, part in own.items():
        counts = collections.Counter(x for x in inside[calls[name]] if x) if name in calls else None
        part = counts.most_common(1)[0][0] if counts else part
        if part is not None:
            found[name] = part
    return found


def part_of(scope: str) -> str | None:
    """The part that a scope such as `jit(step)/transpose(jvp(loss))/dot_general` belongs to, by its outermost name."""
    for name in scope.split("/"):
        if name == OPTIMIZER:
            return "optimizer"
        if name == METRICS:
            return "metrics"
        if name.startswith("transpose("):
            return "backward"
        if name == FORWARD or name.startswith("jvp("):
            return "forward"
    return None


def seconds_of(directory: Path, parts: dict[str, str]) -> dict[str, float]:
    """Seconds by part, of all that a trace holds of the operations in `parts`; what they contain counts by itself."""
    total = dict.fromkeys(PARTS, 0.0)
    for path in directory.rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(path)).planes:
            lines = list(plane.lines)
            # A GPU's kernels stand on the lines of its streams, and once more on lines derived from these.
            streams = [line for line in lines if line.name.startswith("Stream")]
            for line in streams or lines:
                for name, seconds in _own_times(line.events):
                    if name in parts:
                        total[parts[name]] += seconds
    return total


def _own_times(events: Any) -> Iterator[tuple[str, float]]:
    """The operations on a line with the seconds that are theirs: those of operations inside them left out."""
    found = []
    for event in events:
        name = dict(event.stats).get("hlo_op")
        if name is not None and not event.name.startswith("end: "):
            found.append((event.start_ns, -event.duration_ns, str(name)))
    open_: list[list[Any]] = []  # [end, name, own]
    for start, minus, name in sorted(found):
        while open_ and open_[-1][0] <= start:
            _, done, own = open_.pop()
            yield done, 1e-9 * own
        if open_:
            open_[-1][2] += minus
        open_.append([start - minus, name, -minus])
    for _, done, own in open_:
        yield done, 1e-9 * own
