"""A run directory: what a run is (`config.json`), what it measured (`metrics.*`), and its checkpoints."""

import json
import logging
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .. import sharding, tree
from .._core import check
from .._core.errors import CheckpointCorruptError, CheckpointError, ConfigError, RunMismatchError
from .._core.files import keep_aside, write_text
from .._core.lenient import Lenient, say
from .._core.ranking import Direction
from .._core.typing import PyTree
from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.keep import Keep
from ..checkpoint.pack import check_state
from ..data.cut import in_words, place_of
from ..data.position import Position
from ..step.reports import StepMetrics
from ..step.state import TrainState
from .history import UNFINISHED, History
from .identity import check_identity, check_versions, versions
from .lock import RunLock
from .parts import Parts
from .writers import CSVWriter, JSONLWriter

_LOG = logging.getLogger("fntrain")


class RunDirectory:
    """`config.json`, `metrics.jsonl`, `metrics.csv` and `checkpoints/` of one run, locked while it is open.

    Args:
      directory: made if it does not exist.
      identity: what makes the run this one (task, data, batch size, seed); compared on a resume.
      config: more for `config.json`, for people to read.
      resume: whether to go on with what is there; `"must"` if there has to be something.
      task: the task in words, for `config.json`.
      override: what may differ from the run that is resumed, of `identity.OVERRIDES`; what does is noted in
        `config.json`, under `overridden`.
      keep: which checkpoints stay; None is `Keep()`.

    Raises:
      ConfigError: if `directory` is no path or a file, or is in use and `resume` is False.
      RunMismatchError: if it holds a run of another identity; the differences are listed.
      RunLockedError: if a run is going on in it, in this process or another.
      CheckpointError: if it cannot be written to, its newest checkpoint is of a newer format, or there is none
        with `resume="must"`.
      CheckpointCorruptError: if there are checkpoints, and all are damaged.
    """

    def __init__(
        self,
        directory: Any,
        identity: dict[str, Any],
        config: dict[str, Any],
        resume: bool | Literal["must"],
        task: dict[str, Any] | None = None,
        override: Collection[str] = (),
        keep: Keep | None = None,
    ):
        check.one_of("resume", resume, (False, True, "must"))
        self.path: Path = check.path("run_dir", directory)
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"`run_dir` must be a directory, and {self.path} is a file")
        if resume == "must" and not self.path.exists():
            raise self._nothing()
        self.identity: dict[str, Any] = identity
        self._task = task or {}
        self._keep = Keep() if keep is None else keep
        self.override: tuple[str, ...] = tuple(override)
        self._changes: list[str] = []
        self.extra: dict[str, Any] | None = None
        self._retried = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"`run_dir` {self.path} cannot be made: {error.strerror}") from error
        # Of several processes the first holds it for all.
        self._lock = RunLock(self.path) if jax.process_index() == 0 else None
        self._steps_lock: RunLock | None = None
        try:
            self._open(config, resume)
            self._lock_steps()
        except BaseException:
            self._unlock()
            raise

    def _lock_steps(self) -> None:
        """Hold `checkpoints/` too, which is locked like any other directory that somebody saves steps in."""
        if self._lock is not None:
            self.checkpointer.directory.mkdir(exist_ok=True)
            self._steps_lock = RunLock(self.checkpointer.directory, stays=False)

    def _unlock(self) -> None:
        if self._steps_lock is not None:
            self._steps_lock.release()
        if self._lock is not None:
            self._lock.release()

    def _open(self, config: dict[str, Any], resume: bool | Literal["must"]) -> None:
        self.checkpointer: Checkpointer = Checkpointer(self.path / "checkpoints", self._keep)
        rows, document = self.path / "metrics.jsonl", self._existing_config()
        if not resume and (rows.exists() or (self.path / "config.json").exists()):
            raise ConfigError(
                f"`run_dir` {self.path} is in use: it holds a run. Go on with it by `resume=True`, or choose another"
            )
        latest = self.checkpointer.latest_step
        gone = [step for step in self.checkpointer.emptied() if latest is None or step > latest]
        if resume and gone:
            names = tree.some([f"step {step}" for step in gone])
            said = f"the files of {names} are gone from {self.checkpointer.directory}"
            if latest is None:
                raise CheckpointCorruptError(
                    f"{said}, and there is no other checkpoint; to start anew, choose another `run_dir` or remove it"
                )
            say(f"{said}; the run goes on from step {latest}")
        if resume and latest is not None:
            self.extra = self.checkpointer.extra()
            self._check_identity(self.extra["identity"], self.extra)
            self._changes += check_versions(self.extra.get("versions", {}), self.path, self.override)
            self._compare_processes(self.extra)
        elif resume == "must":
            raise self._nothing()
        elif "identity" in document and rows.exists() and rows.stat().st_size:
            self._check_identity(document["identity"], None)
            _LOG.warning(
                "`resume`: the run in %s has rows of metrics and no checkpoint: it starts anew, and they are dropped",
                self.path,
            )
        sharding.meet()  # of several processes all have looked before the first one writes
        # What others have added there (a program's own options) stays.
        task = {"task": self._task} if self._task else {}
        self.config: dict[str, Any] = {**document, **config, **task, "identity": self.identity}
        saved = None if self.extra is None else self.extra.get("part", {})
        self.parts: Parts = Parts(self.path, document.get("parts", []), saved, latest or 0 if resume else 0)
        self.note_changes(self._changes)
        self.writers: list[tuple[Any, Lenient]] = []
        self._rows: list[dict[str, Any]] = []
        if self._lock is None:
            return
        self.checkpointer.prepare()
        if self.extra is not None:
            self._rows = [_thawed(row) for row in self.extra["history"]]
        for make, path in ((JSONLWriter, rows), (CSVWriter, self.path / "metrics.csv")):
            lenient = Lenient(str(path))
            with lenient:
                if path.is_dir():  # nothing that stands there keeps a run from going on
                    say(f"{path} is a directory; it is kept as {keep_aside(path).name}")
                writer = make(path)
                self.writers.append((writer, lenient))
                writer.begin(self._rows, resumed=self.extra is not None)

    def note(self, **more: Any) -> None:
        """Write more about the run into `config.json`, where what others have written meanwhile stays."""
        self.config = {**self._existing_config(), **self.config, **more}
        if self._lock is not None:
            try:
                write_text(self.path / "config.json", json.dumps(self.config, indent=2, default=str) + "\n")
            except OSError as error:
                raise CheckpointError(f"cannot write to {self.path}: {error.strerror}") from error

    def note_changes(self, changes: list[str]) -> None:
        """Write down what is not as it was before the resume."""
        known = self.config.get("overridden", [])
        step = self.checkpointer.latest_step if self.extra else 0
        self.note(**({"overridden": [*known, {"step": step, "changes": changes}]} if changes else {}))

    def _nothing(self) -> CheckpointError:
        return CheckpointError(f'`resume="must"`: there is no checkpoint in {self.path}')

    def _existing_config(self) -> dict[str, Any]:
        path = self.path / "config.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
        except (ValueError, TypeError):  # torn by a crash, or no document of ours; it is written anew
            return {}

    def _check_identity(self, saved: dict[str, Any], extra: dict[str, Any] | None) -> None:
        position = Position(0, 0) if extra is None else Position(*extra["position"])
        parts = check_identity(saved, self.identity, self._task, self.path, self.override)
        fixed = ["data", "seed"]
        if "batch_size" not in self.identity.get("data", {}):
            fixed.append("batch_size")  # batches come as they are, and are what is counted
        order = [part for part in fixed if part in parts]
        if order and position.index > 0:
            raise RunMismatchError(
                f"`override`: another `{order[0]}` would give the rest of an epoch other batches, and the run in "
                f"{self.path} was saved inside epoch {position.epoch + 1}, behind its batch {position.index}: first go "
                f"on without it to that epoch's end, by `epochs={position.epoch + 1}`, and from there with it"
            )
        if extra is not None and "batch_size" in parts and "batch_size" not in fixed:
            place, sizes = place_of(extra), (in_words(x.get("batch_size")) for x in (saved, self.identity))
            said = "saved {}, now {}".format(*sizes)
            line = f"batch_size: {said}, from example {place.example} of epoch {place.epoch + 1} on"
            parts["batch_size"] = [line]
            self._say(line)
        self._changes += [line for lines in parts.values() for line in lines]

    def _compare_processes(self, extra: dict[str, Any]) -> None:
        """Note that others share the batches now: the same batches, whose sums may round otherwise."""
        before, now = extra.get("processes"), jax.process_count()
        if before not in (None, now):
            self._changes.append(f"processes: saved {before}, now {now}")
            self._say(self._changes[-1])

    def _say(self, line: str) -> None:
        """Say what is not as it was before the resume, once."""
        if jax.process_index() == 0:
            _LOG.warning("`resume`: the run in %s goes on otherwise: %s", self.path, line)

    def check(self, state: PyTree) -> None:
        """Check that the state can be saved, before the first step.

        Raises:
          ConfigError: naming the leaf that cannot.
        """
        check_state(state)

    def restore(
        self, state: TrainState, metrics: StepMetrics
    ) -> tuple[TrainState, StepMetrics, Position, History]:
        """The saved run, in the types and on the devices of the state and metrics given."""
        assert self.extra is not None
        state = self.checkpointer.restore(state)
        position = Position(*self.extra["position"])
        metrics = measured_so_far(self.extra, metrics, self.path)
        return (
            state,
            metrics,
            position,
            History([_thawed(row) for row in self.extra["history"]]),
        )

    def save(
        self,
        state: TrainState,
        step: int,
        metrics: StepMetrics,
        position: Position,
        history: History,
        callbacks: list[dict[str, Any]],
        data_state: Any = None,
        measured: Mapping[str, Any] | None = None,
    ) -> None:
        """A checkpoint of the whole run, in the background; it is ranked by what was measured at its step, if any.

        If the save before this one failed, a warning says so and this one takes its place; a second failure in
        a row is raised.

        Raises:
          CheckpointError: if two saves in a row failed, or this one cannot start.
        """
        try:
            self.checkpointer.wait()
        except CheckpointError as error:
            if self._retried:
                raise
            self._retried = True
            warnings.warn(f"{error}; step {step} is saved in its place", RuntimeWarning, stacklevel=2)
        else:
            self._retried = False
        extra = {
            "identity": self.identity,
            "versions": versions(),
            "position": list(position),
            "history": [_frozen(row) for row in history.rows()],
            "accumulators": dict(tree.items(metrics)),
            "callbacks": callbacks,
            "data_state": data_state,
            "steps_per_call": self.config.get("steps_per_call"),
            "part": self.parts.mark,
            "processes": jax.process_count(),
        }
        ranked = {k: v for k, v in (measured or {}).items() if isinstance(v, int | float) and k != UNFINISHED}
        self.checkpointer.save(state, step=step, metrics=ranked, extra=extra, overwrite=True)

    @property
    def ranked(self) -> tuple[str, Direction]:
        """The column by which the best checkpoint is found, and which of its values are better."""
        return self._keep.best  # type: ignore[return-value]

    def failed(self, wait: bool = False) -> bool:
        """Whether the last save has failed, so that the current step is to be saved in its place."""
        return self.checkpointer.failed(wait)

    def checkpoints(self) -> list[int]:
        """The steps that are on disk, once the last save is."""
        return self.checkpointer.steps()

    def write(self, row: dict[str, Any]) -> None:
        """An epoch's row, into both files; what fails there is said once, and made good as soon as it can be."""
        self._rows.append(dict(row))
        for writer, lenient in self.writers:
            with lenient:
                if writer.torn:
                    writer.begin(self._rows)
                else:
                    writer.write(row)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            for writer, lenient in self.writers:
                with lenient:
                    writer.close()
            self.checkpointer.__exit__(*exception)
        finally:
            self.parts.close()
            self._unlock()


def measured_so_far(extra: Mapping[str, Any], metrics: StepMetrics, where: Path) -> StepMetrics:
    """The metrics of the epoch that a checkpoint was saved in, in the types and on the devices of those given."""
    saved, position = extra["accumulators"], Position(*extra["position"])
    if position.index == 0:  # an epoch begins with none
        return metrics
    if set(tree.paths(metrics)) != set(saved):
        raise CheckpointError(
            f"the metrics saved in {where}, inside epoch {position.epoch + 1}, are "
            f"{tree.some(list(saved))}, this task's are {tree.some(tree.paths(metrics))}: first go on as the "
            f"run was to that epoch's end, by `epochs={position.epoch + 1}`"
        )
    leaves = [sharding.put_like(saved[path], x) for path, x in tree.items(metrics)]
    return jax.tree.unflatten(jax.tree.structure(metrics), leaves)


def _frozen(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the history without arrays, of which a checkpoint would make a leaf each."""
    return {
        k: {"values": v.tolist(), "dtype": v.dtype.name} if isinstance(v, np.ndarray) else v
        for k, v in row.items()
    }


def _thawed(row: dict[str, Any]) -> dict[str, Any]:
    return {k: np.asarray(v["values"], jnp.dtype(v["dtype"])) if _is_frozen(v) else v for k, v in row.items()}


def _is_frozen(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"values", "dtype"}
