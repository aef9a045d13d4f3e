"""A run directory: what a run is (`config.json`), what it measured (`metrics.*`), and its checkpoints."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import tree
from .._check import CheckpointError, ConfigError
from .._metrics import StepMetrics
from .._state import TrainState
from .checkpoint import Checkpointer, Keep
from .data import Position
from .history import History
from .writers import CSVWriter, JSONLWriter, atomic_write


class RunDirectory:
    """`config.json`, `metrics.jsonl`, `metrics.csv` and `checkpoints/` of one run.

    Args:
      directory: made if it does not exist.
      identity: what makes the run this one (task, data, batch size, seed); compared on a resume.
      config: more for `config.json`, for people to read.
      resume: whether to go on with what is there.

    Raises:
      ConfigError: if the directory is in use and `resume` is False, or holds a run of another identity.
    """

    def __init__(self, directory: Any, identity: dict[str, Any], config: dict[str, Any], resume: bool):
        self.path = Path(directory).expanduser()
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"`run_dir` must be a directory, and {self.path} is a file")
        self.checkpointer = Checkpointer(self.path / "checkpoints", Keep())
        self.identity = identity
        self.extra: dict[str, Any] | None = None
        used = (self.path / "metrics.jsonl").exists() or (self.path / "config.json").exists()
        if used and not resume:
            raise ConfigError(
                f"`run_dir` {self.path} is in use: it holds a run. Go on with it by `resume=True`, or choose another"
            )
        if resume and self.checkpointer.latest_step is not None:
            self.extra = self.checkpointer.extra()
            self._check_identity(self.extra["identity"])
        self.path.mkdir(parents=True, exist_ok=True)
        # What others have added there (a program's own options) stays.
        document = {**self._existing_config(), **config, "identity": identity}
        atomic_write(self.path / "config.json", json.dumps(document, indent=2, default=str) + "\n")
        done = len(self.extra["history"]) if self.extra else 0
        self.writers = [JSONLWriter(self.path / "metrics.jsonl"), CSVWriter(self.path / "metrics.csv")]
        for writer in self.writers:
            # A run that was killed may have written rows that its last checkpoint knows nothing of.
            writer.truncate(after_epoch=done)

    def _existing_config(self) -> dict[str, Any]:
        path = self.path / "config.json"
        try:
            return dict(json.loads(path.read_text())) if path.exists() else {}
        except ValueError:  # torn by a crash; it is written anew
            return {}

    def _check_identity(self, saved: dict[str, Any]) -> None:
        # Through JSON and back, as the saved one went.
        now = json.loads(json.dumps(self.identity, default=str))
        lines = _differences(json.loads(json.dumps(saved, default=str)), now)
        if lines:
            raise ConfigError(
                f"`resume`: the run in {self.path} is another one than this call describes:\n  "
                + "\n  ".join(lines)
            )

    def restore(
        self, state: TrainState, metrics: StepMetrics
    ) -> tuple[TrainState, StepMetrics, Position, History]:
        """The saved run, in the types and on the devices of the state and metrics given."""
        assert self.extra is not None
        state = self.checkpointer.restore(state)
        saved = self.extra["accumulators"]
        if set(tree.paths(metrics)) != set(saved):
            raise CheckpointError(
                f"the metrics saved in {self.path} are {tree.some(list(saved))}, this task's are "
                f"{tree.some(tree.paths(metrics))}"
            )
        leaves = [jax.device_put(saved[path], x.sharding) for path, x in tree.items(metrics)]
        metrics = jax.tree.unflatten(jax.tree.structure(metrics), leaves)
        return state, metrics, Position(*self.extra["position"]), History(self.extra["history"])

    def save(
        self,
        state: TrainState,
        step: int,
        metrics: StepMetrics,
        position: Position,
        history: History,
        callbacks: list[dict[str, Any]],
    ) -> None:
        """A checkpoint of the whole run, in the background."""
        rows = [{k: v for k, v in row.items() if not isinstance(v, np.ndarray)} for row in history.rows()]
        extra = {
            "identity": self.identity,
            "position": list(position),
            "history": rows,
            "accumulators": dict(tree.items(metrics)),
            "callbacks": callbacks,
        }
        latest = {k: v for k, v in rows[-1].items() if isinstance(v, int | float)} if rows else {}
        self.checkpointer.save(state, step=step, metrics=latest, extra=extra, overwrite=True)

    def write(self, row: dict[str, Any]) -> None:
        """An epoch's row, into both files."""
        for writer in self.writers:
            writer.write(row)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *exception: Any) -> None:
        for writer in self.writers:
            writer.close()
        self.checkpointer.__exit__(*exception)


def _differences(saved: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*saved, *now]))
        return [
            line
            for k in keys
            for line in _differences(saved.get(k), now.get(k), f"{path}.{k}" if path else str(k))
        ]
    return [] if saved == now else [f"{path}: saved {saved!r}, now {now!r}"]
