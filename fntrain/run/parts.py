"""The parts of a run: each time that `fit` was at work for it, from which step to which, and how that ended."""

import contextlib
import mmap
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .goodput import CELLS, PHASES, Meter, lost_since

FILE = "heartbeat"
"""The file of numbers that a run counts in while it runs: what is in it when the process is killed, stays."""


class Parts:
    """The parts of a run, of which the last one is this process's.

    What a part did is counted in a file that is mapped into memory: a number there costs no call of the system, and
    outlives a `kill -9`. So the next part knows how far a killed one had come, and what of it is lost.

    Args:
      directory: the run's.
      before: the parts before, as `config.json` has them.
      saved: what the checkpoint that the run goes on from says of the part that saved it; None without one.
      step: the step of that checkpoint, or 0.
    """

    def __init__(
        self, directory: Path, before: list[dict[str, Any]], saved: Mapping[str, Any] | None, step: int
    ):
        self.path: Path = directory / FILE
        self.before: list[dict[str, Any]] = [dict(part) for part in before]
        self.now: dict[str, Any] = {"started": _now(), "from": step}
        self._map: mmap.mmap | None = None
        self._cells: memoryview[float] | None = None
        self._meter: Meter | None = None
        if self.before and "ended" not in self.before[-1]:
            self._take_up(self.before[-1])
        known = dict(saved or {})
        number = known.get("number", 0 if saved is None else len(self.before))
        for i, part in enumerate(self.before[number:]):
            self._lose(part, known.get("seconds", {}) if i == 0 else {}, step)

    def _take_up(self, part: dict[str, Any]) -> None:
        """A part that has not said how it ended was killed; how far it had come is in the file."""
        part["ended"] = "killed"
        cells = _read(self.path)
        if cells is not None:
            part["seconds"], part["to"] = dict(zip(PHASES, cells)), int(cells[-1])

    @staticmethod
    def _lose(part: dict[str, Any], saved: Mapping[str, float], step: int) -> None:
        """What a part did behind the step from which the run goes on."""
        first = max(step, part.get("from", 0))
        if part.get("to", 0) > first and "seconds" in part:
            part["lost_steps"] = part["to"] - first
            part["lost"] = lost_since(part["seconds"], saved)

    def begin(self, meter: Meter) -> None:
        """Count in the file from here on, if there can be one."""
        self._meter = meter
        with contextlib.suppress(OSError, ValueError):  # it is a help, and no more
            with open(self.path, "w+b") as file:
                file.truncate(8 * CELLS)
                self._map = mmap.mmap(file.fileno(), 8 * CELLS)
            self._cells = memoryview(self._map).cast("d")
            meter.keep_in(self._cells)
        meter.cells[-1] = self.now["from"]

    @property
    def mark(self) -> dict[str, Any]:
        """What a checkpoint has to know of the part that saves it."""
        seconds = {} if self._meter is None else self._meter.seconds
        return {"number": len(self.before), "seconds": seconds}

    def end(
        self,
        status: str,
        error: BaseException | None,
        received: int | None,
        reason: str | None,
        recompiled: list[str],
    ) -> None:
        """Say how this part ended: by an error, by a signal, for a reason of its own, or as it was to."""
        if self._meter is None or "ended" in self.now:
            return
        how = status
        if error is not None:
            how = f"{type(error).__name__}: {error}".rstrip(": ").splitlines()[0]
        elif received is not None:
            how = f"{status} ({signal.Signals(received).name})"
        elif status == "stopped":
            how = f"stopped: {reason}"
        self.now |= {"to": int(self._meter.cells[-1]), "ended": how}
        self.now |= {"recompiled": recompiled} if recompiled else {}

    @property
    def all(self) -> list[dict[str, Any]]:
        """All parts, this one as far as it has come."""
        if self._meter is not None and "ended" in self.now:
            self.now["seconds"] = self._meter.seconds
        return [*self.before, self.now]

    def close(self) -> None:
        """Let go of the file."""
        if self._meter is not None:
            self._meter.keep_in([0.0] * CELLS)
        if self._cells is not None:
            self._cells.release()
        if self._map is not None:
            self._map.close()
        self._cells = self._map = None


def parts_in(directory: Path, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a run as its directory tells them; one that has not said how it ended is as far as its file says."""
    parts = [dict(part) for part in config.get("parts", [])]
    if parts and "ended" not in parts[-1]:
        cells = _read(directory / FILE)
        parts[-1]["ended"] = "not yet, or killed"
        if cells is not None:
            parts[-1] |= {"seconds": dict(zip(PHASES, cells)), "to": int(cells[-1])}
    return parts


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _read(path: Path) -> list[float] | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return [float(x) for x in memoryview(data).cast("d")] if len(data) == 8 * CELLS else None
