"""What a run directory says of its run, for who reads it and writes nothing."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.ranking import Direction, best_of
from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.keep import Keep
from ..show.text import best_index, is_number, number_text
from .history import UNFINISHED, declared
from .lock import is_held
from .writers import read_rows

NAMES = ("config.json", "metrics.jsonl")
"""The files by which a directory is known to hold a run."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run as its directory tells it; the directory is looked at, and never changed.

    Attributes:
      path: the directory.
      config: what `config.json` says; empty if it is not there.
      rows: the rows of `metrics.jsonl`, those inside epochs too; none if the run has just begun.
    """

    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    @property
    def status(self) -> str:
        """How the run ended; `"running"` while somebody holds the directory, `"killed"` where nobody does any more."""
        said = self.config.get("status") or "unknown"
        return "killed" if said == "running" and not is_held(self.path) else said

    @property
    def last(self) -> dict[str, Any]:
        """The last row; empty if there is none."""
        return self.rows[-1] if self.rows else {}

    @property
    def epochs(self) -> int:
        """How many epochs have ended."""
        return int(self.last.get("epoch") or 0) - bool(self.last.get(UNFINISHED))

    @property
    def step(self) -> int:
        """The step of the last row."""
        return int(self.last.get("step") or 0)

    @property
    def task(self) -> dict[str, Any]:
        """The run's task in words; nothing where the configuration does not say."""
        return task_in_words(self.config)

    @property
    def when(self) -> float:
        """When something was last written of it, in seconds since 1970."""
        there = [path for name in NAMES if (path := self.path / name).exists()]
        return max(path.stat().st_mtime for path in there)

    @functools.cached_property
    def columns(self) -> dict[str, list[Any]]:
        """What the run measured, by column, one entry a row; None where a row has no such value."""
        return {name: [row.get(name) for row in self.rows] for row in self.rows for name in row}

    @property
    def ranked(self) -> tuple[str, Direction]:
        """The column by which the best checkpoint is found, and which of its values are better."""
        said = self.config.get("best") or {}
        try:
            return Keep(best=(said["column"], said["mode"])).best  # type: ignore[return-value]
        except (KeyError, TypeError, ConfigError):  # an earlier version's run, or no document of ours
            return Keep().best  # type: ignore[return-value]

    @property
    def told(self) -> str:
        """The column that tells most of the run in one number: by which it is ranked, or `loss` if it has not that."""
        column, _ = self.ranked
        return column if column in self.columns else "loss"

    @functools.cached_property
    def checkpointer(self) -> Checkpointer:
        """What is saved, to be read; it ranks as the run did."""
        return Checkpointer(self.path / "checkpoints", Keep(best=self.ranked))

    @functools.cached_property
    def checkpoints(self) -> list[int]:
        """The steps that are saved."""
        return self.checkpointer.steps()

    @functools.cached_property
    def best_checkpoint(self) -> int | None:
        """The saved step that is the best by `ranked`; None if there is none."""
        return self.checkpointer.best_step

    def best_index(self, column: str, values: list[Any]) -> int | None:
        """Which of a column's values is the best finite one; None where there is none, or nothing says what is better.

        That is for the run's metrics to say, and the name decides only for a run that has not kept what they said.
        """
        if column == self.ranked[0]:
            return best_of(dict(enumerate(values)), self.ranked[1])
        betters = self.config.get("better")
        if betters is None:
            return best_index(column, values)
        known = declared(betters, column, self.config.get("prefixes", ("val_",)))
        return None if known is None else best_of(dict(enumerate(values)), known)

    def best(self, column: str) -> dict[str, Any] | None:
        """The row with the best finite value of a column; None where `best_index` has none."""
        values = [x if is_number(x) else None for x in self.columns.get(column, [])]
        found = self.best_index(column, values)
        return None if found is None else self.rows[found]

    def saved(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The checkpoints as a table, its head and its rows: step, epoch, the value by which, which is best."""
        column, (best, newest) = self.told, (self.best_checkpoint, max(self.checkpoints, default=None))
        at = {row.get("step"): row for row in self.rows}  # a step within an epoch may have none
        rows = []
        for step in self.checkpoints:
            row = at.get(step, {})
            said = ["best"] * (step == best) + ["newest"] * (step == newest)
            value = number_text(row[column]) if column in row else ""
            rows.append((str(step), str(row.get("epoch", "")), value, ", ".join(said)))
        return ("step", "epoch", column, ""), rows


def read_run(path: Any) -> RunRecord:
    """Read what a run has left.

    Args:
      path: its directory.

    Raises:
      ConfigError: if there is no such directory, or no run in it.
      DataError: if a file of it is damaged.
    """
    path = Path(check.path("run", path)) if not isinstance(path, Path) else path
    return RunRecord(path, config_of(path), rows_of(path))


def find_runs(directory: Path) -> list[RunRecord | tuple[Path, str]]:
    """The runs in and below a directory, the one that was last written first; of one that is damaged, what is wrong.

    Directories within a run are its own, and not looked into.
    """
    if not directory.is_dir():
        raise ConfigError(f"there is no directory {directory}")
    found: list[RunRecord | tuple[Path, str]] = []
    waiting = [directory]
    while waiting:
        here = waiting.pop()
        if is_run(here):
            try:
                found.append(read_run(here))
            except (DataError, OSError) as error:
                found.append((here, str(error)))
            continue
        waiting += [child for child in here.iterdir() if child.is_dir() and not child.name.startswith(".")]
    return sorted(found, key=lambda run: -run.when if isinstance(run, RunRecord) else 0.0)


def is_run(path: Path) -> bool:
    """Whether a directory holds a run."""
    return any((path / name).exists() for name in NAMES)


def config_of(run: Path) -> dict[str, Any]:
    """What `config.json` says, if it is there."""
    path = _in_run(run, "config.json")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def task_in_words(config: Mapping[str, Any]) -> dict[str, Any]:
    """The run's task as text; the first version kept it in the identity."""
    return config.get("task") or config.get("identity", {}).get("task", {})


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; none if the run has just begun."""
    path = _in_run(run, "metrics.jsonl")
    return read_rows(path) if path.exists() else []


def _in_run(run: Path, name: str) -> Path:
    if not run.is_dir():
        raise ConfigError(f"there is no directory {run}")
    if not is_run(run):
        raise ConfigError(f"{run} holds no run: neither config.json nor metrics.jsonl is in it")
    return run / name
