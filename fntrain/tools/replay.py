"""Take a step of a run again: any one from the nearest checkpoint, or a bad one from its capsule."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

import numpy as np

from .. import tree
from .._core import check
from .._core.errors import CheckpointError, ConfigError, DataError, RunMismatchError
from .._core.typing import Batch
from ..checkpoint.checkpointer import Checkpointer
from ..data import feed as feed_lib
from ..data.arrays import ArrayLoader, Arrays
from ..data.cut import Stage, as_json, from_json, largest
from ..data.feed import Feed
from ..data.position import Position
from ..data.source import as_source, fingerprint
from ..run.again import Before, taken_again
from ..run.capsule import digests, examine, load_capsule, saved_form
from ..run.directory import measured_so_far
from ..run.epoch import fetched
from ..run.fit import FitResult
from ..run.history import plain
from ..run.identity import compared, identity_of, in_words
from ..run.prepare import of_this_length, steps_of
from ..run.writers import read_rows
from ..step import programs
from ..step.provenance import BadStep
from ..step.state import TrainState, check_state
from ..step.step import train_step
from ..step.task import Task
from .births import Birth, find_nonfinite


@dataclasses.dataclass(frozen=True)
class Replay:
    """What `replay` found.

    Attributes:
      step: which step was taken again.
      bad: what is not finite in it, or None.
      differs: paths of the state after the step whose bits are not those of the capsule; empty if it was
        reproduced bitwise, None if there is nothing to compare with.
      births: where the numbers that ended up in the loss, or else in a gradient, went bad: the first infinity or
        NaN, and the first NaN after an infinity. Empty if, one operation at a time, all of them stay finite.
    """

    step: int
    bad: BadStep | None
    differs: tuple[str, ...] | None
    births: tuple[Birth, ...]

    def __str__(self) -> str:
        lines = [str(self.bad) if self.bad is not None else f"step {self.step}: loss and gradient are finite"]
        if self.differs is not None:
            same = "the step was reproduced bitwise"
            lines.append(
                same if not self.differs else f"the step came out otherwise: {tree.some(self.differs)}"
            )
        for word, birth in zip(("first", "then"), self.births):
            lines.append(f"{word}: {birth}")
        if self.bad is not None and not self.births:
            lines.append("one operation at a time it stays finite: compiled, it is rounded in another way")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class ReplayedStep:
    """A step of a run, taken again by `replay`.

    Attributes:
      step: which: the `step` of its row in the logs, 1 for the first.
      epoch: of which epoch, from 1.
      index: which of its batches, from 0.
      metrics: what the run logs after it: the means of the epoch so far, and what the transforms recorded.
      alone: the same of this step's batch alone.
      before: the state before it.
      after: the state after it.
      batch: its batch, on the device.
      weight: a weight per example, or None.
      checkpoint: the step of the checkpoint that it was taken again from; None where that was the state given.
      bad: what is not finite in it, or None.
      differs: where the run's files say otherwise, at this step or on the way to it, a line each; empty if the step
        came out as it was, as far as they know.
    """

    step: int
    epoch: int
    index: int
    metrics: dict[str, Any]
    alone: dict[str, Any]
    before: TrainState
    after: TrainState
    batch: Batch
    weight: Any
    checkpoint: int | None
    bad: BadStep | None
    differs: tuple[str, ...]

    def __str__(self) -> str:
        start = "the start" if self.checkpoint is None else f"the checkpoint of step {self.checkpoint}"
        lines = [f"step {self.step}: batch {self.index} of epoch {self.epoch}, from {start}"]
        for name, value in self.alone.items():
            if isinstance(value, float):
                mean = self.metrics[name]
                more = f", epoch so far {mean:.6g}" if mean != value else ""
                lines.append(f"  {name} {value:.6g}{more}")
        lines += [str(self.bad)] if self.bad is not None else []
        return "\n".join([*lines, *self.differs] if self.differs else lines)


@overload
def replay(run: Task, capsule: str | os.PathLike[str], *, like: TrainState | None = None) -> Replay: ...
@overload
def replay(
    run: str | os.PathLike[str] | FitResult,
    *,
    step: int,
    task: Task,
    data: Any,
    state: TrainState | None = None,
) -> ReplayedStep: ...
@overload
def replay(*, task: Task, capsule: str | os.PathLike[str], like: TrainState | None = None) -> Replay: ...
def replay(
    run: Any = None,
    capsule: str | os.PathLike[str] | None = None,
    *,
    step: int | None = None,
    task: Task | None = None,
    data: Any = None,
    state: TrainState | None = None,
    like: TrainState | None = None,
) -> Replay | ReplayedStep:
    """Take a step of a run again: `replay(run_dir, step=n, task=task, data=data)`, or `replay(task, capsule)`.

    **Any step.** From the nearest checkpoint before it the run's own steps are taken again, in the data's own order,
    up to the one that was asked for. Its metrics are those that the run logged, bit for bit on one kind of machine.
    A run directory holds no code and no data: both are given, and refused if they are not the run's. Callbacks are
    not called; where one changed the state on the way (a learning rate, a rollback), the rows of the run that were
    passed say otherwise, and `differs` says so.

    **A bad step.** What `fit` kept of it, in `run_dir/capsules/step_<n>`, needs neither the data nor the steps before.
    It is run compiled, on a copy, and its result compared bit by bit with what the capsule says it gave; then its loss
    and gradient are computed one operation at a time, and the first operation is named whose result is not finite
    though its operands are, and that the bad loss or gradient depends on.

    Args:
      run: a run directory, or what `fit` returned; or the Task of a capsule.
      capsule: the directory of a capsule.
      step: which step, as the rows of the logs count them, from 1.
      task: the Task of the run.
      data: its training data, as `fit` was given it. What can be read only once cannot be replayed.
      state: the state that the run started from, for steps before its first checkpoint, and where the parameters are
        not dicts, lists and tuples of arrays; it stays usable.
      like: a state of the form of the capsule's, where the parameters are none of these.

    Returns:
      A ReplayedStep, or of a capsule a Replay; their text is the report.

    Raises:
      CheckpointError: if there is no run or capsule, it is damaged, or does not fit the task.
      RunMismatchError: if the task or the data is another than the run's; what differs is listed.
      ConfigError: if an argument that is needed is missing, or the task of a capsule has an `axis_name`.
      DataError: if the data ends before the step.

    Examples:
      >>> import fntrain as ft, numpy as np, tempfile
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], 0 * b), ft.optimizers.sgd(0.1))
      >>> state, data = ft.init_state(task, {"w": np.float32(1)}), np.ones(8, np.float32)
      >>> run = tempfile.mkdtemp() + "/run"
      >>> _ = ft.fit(task, state, data, batch_size=2, epochs=1, run_dir=run, progress=False)
      >>> print(ft.tools.replay(run, step=2, task=task, data=data, state=state))
      step 2: batch 1 of epoch 1, from the start
        loss 0.64, epoch so far 0.82
        learning_rate 0.1

      >>> import jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: jnp.log(b * p["w"]), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.ones(())})
      >>> path = ft.tools.save_capsule(tempfile.mkdtemp(), task, state, jnp.array([1.0, 0.0]))
      >>> found = ft.tools.replay(task, path)
      >>> found.differs, found.births[0].primitive, found.births[0].what
      ((), 'log', 'infinite')
    """
    if isinstance(run, Task) or capsule is not None:
        task = task if run is None else run
        if capsule is not None and step is None and data is None:
            return _of_capsule(task, capsule, like)  # type: ignore[arg-type]
    missing = [name for name, x in (("step", step), ("task", task), ("data", data)) if x is None]
    if run is None or missing or capsule is not None or isinstance(run, Task):
        what = (
            f"`{missing[0]}` is missing" if run is not None and missing else "`run` must be a run directory"
        )
        raise ConfigError(
            f"{what}: `replay(run_dir, step=n, task=task, data=data)` takes a step of a run again (a directory "
            f"holds no code and no data), `replay(task, capsule)` a bad one that was kept"
        )
    where = check.path("run", run.run_dir if isinstance(run, FitResult) else run)
    assert task is not None
    assert step is not None
    return _of_run(where, check.integer("step", step, at_least=1), task, data, state)


def _of_capsule(task: Task, capsule: str | os.PathLike[str], like: TrainState | None) -> Replay:
    held = load_capsule(capsule, task, like)
    if task.axis_name is not None:
        raise ConfigError("`task` must have no `axis_name`: a replay runs on one device")
    bad = examine(task, held.state, held.batch, held.weight)
    after, _ = train_step(task, programs.copied(held.state), held.batch, held.weight)
    before, now = held.about["after"], digests(after)
    differs = tuple(path for path in dict.fromkeys([*before, *now]) if before.get(path) != now.get(path))
    births = find_nonfinite(task, held.state, held.batch, held.weight)
    return Replay(int(held.state.step), bad, differs, births)


def _of_run(where: Path, step: int, task: Task, data: Any, given: TrainState | None) -> ReplayedStep:
    config = _config(where)
    cut = config.get("identity", {}).get("data", {})
    batch_size, seed = from_json(config.get("batch_size", 32)), config.get("seed", 0)
    if isinstance(data, ArrayLoader):
        batch_size = largest(batch_size)  # it has its own
    source = as_source(data, batch_size, shuffle=cut.get("shuffle", True), seed=seed)
    if (
        isinstance(source, Arrays) and "cut" in config
    ):  # that of the whole run, on whatever sizes it was resumed
        source.cut_as(map(Stage._make, config["cut"]))
    task = _as_run(task, config, source)
    _check_same(task, config, source, where)
    if given is not None:
        check_state(given, "replay")
    checkpoints = Checkpointer(where / "checkpoints")
    there = [saved for saved in checkpoints.steps() if saved < step]
    if not there and given is None:
        raise ConfigError(
            f"`state` is missing: {where} has no checkpoint from before step {step} (but of "
            f"{tree.some([str(n) for n in checkpoints.steps()]) or 'none'}): give the state that the run started from"
        )
    position, extra = Position(0, 0), None
    if there:
        like = saved_form(checkpoints, task, there[-1]) if given is None else given
        state, extra = checkpoints.restore(like, step=there[-1]), checkpoints.extra(step=there[-1])
        position = Position(*extra["position"])
        if restore := getattr(source, "restore", None):
            restore(extra.get("data_state") or {})
    else:
        state = programs.copied(given)
    training = Feed(task, state, source, train=True, name="data")
    metrics = programs.started(training.empty, state)
    if extra is not None:
        metrics = programs.closed(measured_so_far(extra, programs.opened(metrics), where))
    walk = _Walk(task, training, {row["step"]: row for row in _rows(where) if row.get("step", 0) > 0})
    before = walk.until(step, taken_again(task, training, state, metrics, position), where)
    return walk.taken(before, there[-1] if there else None)


class _Walk:
    """The way to a step, with an eye on what the run wrote down of it."""

    def __init__(self, task: Task, training: Feed, rows: dict[int, dict[str, Any]]):
        self.task, self.training, self.rows = task, training, rows
        self.differs: list[str] = []

    def until(self, step: int, steps: Iterator[Before], where: Path) -> Before:
        """Where the run stands before the step."""
        begun = None
        for before in steps:
            known = before.metrics if before.ended is None else before.ended
            if before.step in self.rows and begun is not None:
                self.compare(before.step, plain(fetched(programs.reported(self.task, known))))
            if before.step >= step - 1:
                return before
            begun = before.step
        raise DataError(f"`data` ends before step {step}: {where} is of a run that had more of it")

    def compare(self, step: int, values: dict[str, Any]) -> None:
        """Compare what the run wrote down at a step with what came out here."""
        row = self.rows.get(step, {})
        others = [name for name, x in values.items() if name in row and not _same(row[name], x)]
        if others:
            self.differs.append(f"at step {step} the run wrote other values down of {tree.some(others)}")

    def taken(self, before: Before, checkpoint: int | None) -> ReplayedStep:
        """Take the step: once on the metrics so far, as the run did, and once alone."""
        piece, start = before.piece, programs.copied(before.state)
        bad = examine(self.task, start, piece.batch, piece.weight)
        empty = programs.started(self.training.empty, start)
        _, alone, _ = feed_lib.train(self.task, programs.copied(start), empty, piece)
        after, metrics, _ = feed_lib.train(self.task, before.state, before.metrics, piece)
        alone, values = (plain(fetched(programs.reported(self.task, x))) for x in (alone, metrics))
        self.compare(before.step + 1, values)
        where = before.step + 1, before.position.epoch + 1, before.position.index
        given = piece.batch, piece.weight, checkpoint, bad, tuple(self.differs)
        return ReplayedStep(*where, values, alone, start, after, *given)


def _same(saved: Any, now: Any) -> bool:
    a, b = np.asarray(saved), np.asarray(now)
    if a.dtype == object or a.shape != b.shape:
        return saved is None and bool(np.all(~np.isfinite(b)))
    return bool(np.array_equal(a, b, equal_nan=True))


def _config(where: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((where / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"`run` {where} holds no run that can be read: {error}") from None


def _rows(where: Path) -> list[dict[str, Any]]:
    path = where / "metrics.jsonl"
    return read_rows(path) if path.is_file() else []


def _as_run(task: Task, config: dict[str, Any], source: Any) -> Task:
    """The task as the run had it: cut into as many parts, with the lengths of its schedules."""
    number = config.get("microbatches") or task.microbatches
    if number != task.microbatches:
        task = dataclasses.replace(task, microbatches=number)
    return of_this_length(task, steps_of(source, config.get("steps"), config.get("epochs")))


def _check_same(task: Task, config: dict[str, Any], source: Any, where: Path) -> None:
    """Refuse another task or data than the run's."""
    batch_size = (
        as_json(source.loader.batch_size) if isinstance(source, Arrays) else config.get("batch_size", 32)
    )
    now = identity_of(task, fingerprint(source), batch_size, config.get("seed", 0))
    parts = compared(config.get("identity", {}), now, in_words(task), where)
    lines = [line for part in parts.values() for line in part]
    if lines:
        raise RunMismatchError(
            f"`task` and `data` must be those of the run in {where}; what differs:\n  "
            + "\n  ".join(lines[:10])
        )
