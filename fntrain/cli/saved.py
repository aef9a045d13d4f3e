"""What a run directory says of its run: its configuration, its rows."""

import json
from pathlib import Path
from typing import Any

from .._core.errors import ConfigError, DataError


def config_of(run: Path) -> dict[str, Any]:
    """What `config.json` says, if it is there."""
    path = _in_run(run, "config.json")
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None


def task_in_words(config: dict[str, Any]) -> dict[str, Any]:
    """The run's task as text; the first version kept it in the identity."""
    return config.get("task") or config.get("identity", {}).get("task", {})


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; none if the run has just begun."""
    from ..run.writers import read_rows

    path = _in_run(run, "metrics.jsonl")
    return read_rows(path) if path.exists() else []


def _in_run(run: Path, name: str) -> Path:
    if not run.is_dir():
        raise ConfigError(f"there is no directory {run}")
    if not ((run / "config.json").exists() or (run / "metrics.jsonl").exists()):
        raise ConfigError(f"{run} holds no run: neither config.json nor metrics.jsonl is in it")
    return run / name
