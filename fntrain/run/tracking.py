"""A Tracker in a run: which rows it is given, in which order, and what it is told of the run's end."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from .._core.files import write_text
from .._core.lenient import Lenient
from ..protocols import Tracker
from ..show.text import is_number
from ..step.task import COLUMNS
from .context import LoopContext
from .history import UNFINISHED
from .identity import in_words
from .record import read_run

THROUGHPUT = ("examples_per_second", "tokens_per_second", "mfu", "memory_bytes")
"""What is sent of a run's throughput, under `throughput/`."""

NOTES = "trackers.json"
"""The file of a run directory in which trackers write what they need to go on with it."""


class Tracking:
    """A Tracker as a callback, which `callbacks=[tracker]` makes of it.

    A step is logged once, with all that was measured at it: the running means under `running/`, a validation inside an
    epoch, the epoch's row. Steps ascend strictly, over kills and resumes too: what the tracker holds already is not
    sent again, as a resumed run measures the same. Running means come late, so a row is held back for as long as one
    of a lower step may follow.

    Rows are logged in a thread, one after the other: the loop does not wait for a database. A tracker that cannot be
    reached in the midst of a run is warned of, once, and ends nothing; what fails at its beginning is raised.
    """

    adds_logs = False

    def __init__(self, tracker: Tracker):
        self.tracker = tracker
        self._pool: ThreadPoolExecutor | None = None  # of one thread; there is none where nothing is open
        self._waiting: dict[int, dict[str, Any]] = {}  # rows by step, of which lower ones may still come
        self._sent = -1
        self._lenient = Lenient(type(tracker).__name__, (Exception,))

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Begin, or go on where the tracker stands."""
        self.close()
        if jax.process_index() != 0:
            return
        self._waiting = {}
        self._lenient = Lenient(type(self.tracker).__name__, (Exception,))
        begin = getattr(self.tracker, "begin", None)
        has: Any = begin(ctx.run_dir, since(ctx)) if callable(begin) else None
        self._sent = max(since(ctx) - 1 if ctx.step else -1, -1 if has is None else int(has))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fntrain-tracker")
        self.tracker.config(configuration(ctx))

    def on_log(self, ctx: LoopContext) -> None:
        """Take the running means, and send what nothing lower can follow."""
        step = int(ctx.logs.get("step", ctx.step))
        row = {**ctx.logs, **_throughput(ctx)}
        self._take(step, {f"running/{name}": x for name, x in row.items() if name not in COLUMNS})
        self._send(min(step, ctx.step - 1))  # at this very step an epoch may end

    def on_validation_end(self, ctx: LoopContext) -> None:
        """Take what a validation inside an epoch measured."""
        if ctx.validated:
            self._take(ctx.step, {name: x for name, x in ctx.logs.items() if name in ctx.validated})

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Send the epoch's row."""
        self._take(ctx.step, {**ctx.logs, **_throughput(ctx), **ctx.histograms, **ctx.samples})
        self._send(ctx.step)

    def on_fit_end(self, ctx: LoopContext) -> None:
        """Send what is left, and the checkpoints if they are wanted, and say how the run ended."""
        if ctx.logs.get(UNFINISHED):
            self._take(ctx.step, ctx.logs)
        self._send(ctx.step)
        if self._pool and ctx.run_dir is not None and getattr(self.tracker, "checkpoints", False):
            self._pool.shutdown()  # what was measured comes first
            with self._lenient:
                saved = read_run(ctx.run_dir).checkpointer
                for step in sorted({saved.best_step, saved.latest_step} - {None}):  # type: ignore[type-var]
                    self.tracker.artifact(saved.path(step), f"checkpoints/{step}")  # type: ignore[attr-defined,arg-type]
        self.close(ctx.status)

    def close(self, status: str = "failed") -> None:
        """End the tracker's run; called without a word, the run has failed."""
        if self._pool:
            self._send(max(self._waiting, default=-1))
            self._pool.shutdown()
            self._pool = None
            with self._lenient:
                self.tracker.close(status)

    def _take(self, step: int, row: Mapping[str, Any]) -> None:
        if self._pool and step > self._sent:
            row = {name: x for name, x in row.items() if name not in (*COLUMNS, UNFINISHED) and x is not None}
            self._waiting.setdefault(step, {}).update(row)

    def _send(self, last: int) -> None:
        """Log what waits, up to a step."""
        for step in sorted(self._waiting):
            if step > last or self._pool is None:
                return
            self._sent = step
            self._pool.submit(self._log, self._waiting.pop(step), step)

    def _log(self, row: dict[str, Any], step: int) -> None:
        with self._lenient:
            self.tracker.log(row, step)


def since(ctx: LoopContext) -> int:
    """The first step whose row is still to come: what was measured here was logged before, unless it is still to be."""
    return ctx.step + (ctx.epoch_step == 0 or ctx.history.last.get("step") == ctx.step)


def numbers_of(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a row, those of an entry that is a dict under `name/key`."""
    found: dict[str, float] = {}
    for name, x in row.items():
        x = jax.device_get(x) if isinstance(x, jax.Array) else x
        if isinstance(x, Mapping):
            found.update(numbers_of(x, f"{prefix}{name}/"))
        elif is_number(x):
            found[prefix + name] = float(x)
    return found


def _throughput(ctx: LoopContext) -> dict[str, Any]:
    """How fast the steps were, which no row has, as it is another each time."""
    if ctx.throughput is None:
        return {}
    measured = {name: getattr(ctx.throughput, name) for name in THROUGHPUT}
    return {"throughput": {name: x for name, x in measured.items() if x is not None}}


def noted(run_dir: Path | None, tracker: str) -> dict[str, Any]:
    """What a tracker has written down in a run directory; nothing, if there is none or that cannot be read."""
    try:
        return dict(_notes(run_dir).get(tracker, {})) if run_dir is not None else {}
    except (OSError, ValueError, TypeError):
        return {}


def note(run_dir: Path | None, tracker: str, **what: Any) -> None:
    """Write down what a tracker needs to go on with a run."""
    if run_dir is not None:
        try:
            notes = _notes(run_dir)
        except ValueError:  # torn; it is written anew
            notes = {}
        write_text(run_dir / NOTES, json.dumps({**notes, tracker: what}, indent=2) + "\n")


def _notes(run_dir: Path) -> dict[str, Any]:
    path = run_dir / NOTES
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def configuration(ctx: LoopContext) -> dict[str, Any]:
    """What the run directory says of the run; without one, what is known of it here."""
    path = None if ctx.run_dir is None else Path(ctx.run_dir) / "config.json"
    try:
        if path is not None and path.exists():
            said = dict(json.loads(path.read_text(encoding="utf-8")))
            said.pop("parts", None)  # how it went
            return said
    except ValueError:
        pass
    return {
        "task": in_words(ctx.task),
        "epochs": ctx.epochs,
        "steps": ctx.steps,
        "batch_size": ctx.batch_size,
        "jax": jax.__version__,
    }
