"""diagnose: what is wrong with a run, by name, with a number, a threshold and advice."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..._core import check
from ..._core.errors import CheckpointError, ConfigError
from ...checkpoint.checkpointer import Checkpointer
from ...data.cut import from_json, largest
from ...data.source import as_source
from ...run.capsule import saved_form
from ...run.fit import FitResult
from ...run.goodput import goodput_of
from ...run.parts import parts_in
from ...run.writers import read_rows
from ...step.state import TrainState
from ...step.task import Task

# A family each, which puts its rules into RULES.
from . import data as data, learning as learning, optimizing as optimizing, time as time
from .evidence import Evidence
from .picture import Picture
from .rule import RULES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Finding:
    """One cause.

    Attributes:
      rule: the rule's name.
      number: what the run shows.
      threshold: beyond which it is a cause.
      says: what the number is, in words.
      advice: what to try.
      picture: the curve and its level, where one helps; `plot()` draws it, `picture.html` is a figure for a page.
    """

    rule: str
    number: float
    threshold: float
    says: str
    advice: str
    picture: Picture | None = dataclasses.field(default=None, repr=False, compare=False)

    def plot(self, path: str | PathLike[str] | None = None) -> "Figure":
        """Draw what was measured over the epochs, with the level that it is held to.

        Args:
          path: where to save it, as PNG or any format whose suffix Matplotlib knows.

        Returns:
          A Matplotlib figure.

        Raises:
          ConfigError: if there is no `picture` of it, or Matplotlib is missing.
        """
        if self.picture is None:
            raise ConfigError(f"`{self.rule}` has no picture: its number is all that there is, {self}")
        return self.picture.plot(path)

    def __str__(self) -> str:
        return f"{self.rule}: {self.says} ({self.number:.3g}; threshold {self.threshold:g}). {self.advice}"


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; `print` it for a report, and it is false where nothing was.

    Attributes:
      findings: the causes.
      unasked: the rules that could not be looked at, each with what it lacked.
    """

    findings: tuple[Finding, ...]
    unasked: Mapping[str, str]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, rule: str) -> Finding:
        """The finding of a rule."""
        return {finding.rule: finding for finding in self.findings}[rule]

    def __contains__(self, rule: object) -> bool:
        return any(finding.rule == rule for finding in self.findings)

    def __str__(self) -> str:
        """A line a finding, and a line a rule that could not be looked at, with the reason."""
        lines = [str(finding) for finding in self.findings] or ["nothing wrong was found"]
        lines += [f"not looked at, {rule}: {lack}" for rule, lack in self.unasked.items()]
        return "\n".join(lines)


def diagnose(
    run: Any, *, task: Task | None = None, state: TrainState | None = None, data: Any = None
) -> Diagnosis:
    """Why a run went as it did: rules that each name a cause, with number, threshold and advice.

    What the run wrote down is enough for many rules; those about its parameters, its labels and its curvature need the
    task and data too, and take a batch of it. Nothing of the run is changed, and what is healthy is left in silence.

    Args:
      run: a run directory, or what `fit` returned.
      task: the run's Task.
      state: the state to look at; None is that of the result, or of the newest checkpoint.
      data: the training data, or a part of it, as `fit` takes it.

    Returns:
      A Diagnosis, for `print`.

    Raises:
      ConfigError: if `run` is neither, or `data` comes without a `task`.
      CheckpointError: if the directory holds no run.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: b * p["w"] / 0 * 0, ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": np.float32(1)})
      >>> result = ft.fit(task, state, np.ones(8, np.float32), batch_size=4, epochs=2, progress=False)
      >>> found = ft.tools.diagnose(result)
      >>> [finding.rule for finding in found], found["never_finite"].number
      (['never_finite'], 1.0)
    """
    if data is not None and task is None:
        raise ConfigError("`data` is looked at with the run's `task`: give it too")
    if isinstance(run, FitResult):
        where = None if run.run_dir is None else Path(run.run_dir)
        known = run.history.rows(), run.goodput, run.recompiled
        state = run.state if state is None else state
    else:
        where, known = check.path("run", run), None
    config = {} if where is None else _config(where)
    if known is None:
        assert where is not None
        rows = where / "metrics.jsonl"
        parts = parts_in(where, config)
        again = [line for part in parts for line in part.get("recompiled", [])]
        known = read_rows(rows) if rows.is_file() else [], goodput_of(parts), again
        if task is not None and state is None:
            checkpoints = Checkpointer(where / "checkpoints")
            state = checkpoints.restore(saved_form(checkpoints, task)) if checkpoints.steps() else None
    batch = weight = None
    if data is not None:
        batch, weight = as_source(
            data, largest(from_json(config.get("batch_size", 64))), shuffle=True, seed=0
        ).peek()
        weight = None if (weight == 1).all() else weight
    rows, goodput, again = known
    return _asked(Evidence(rows, config, goodput, again, task, state, batch, weight))


def _config(where: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((where / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"`run` {where} holds no run that can be read: {error}") from None


def _asked(evidence: Evidence) -> Diagnosis:
    findings, unasked = [], {}
    for rule in RULES.values():
        seen = rule.look(evidence)
        if isinstance(seen, str):
            unasked[rule.name] = seen
        elif seen.number < rule.threshold if rule.below else seen.number > rule.threshold:
            known = seen.number, rule.threshold, seen.says, seen.advice, seen.picture()
            findings.append(Finding(rule.name, *known))
    return Diagnosis(tuple(findings), MappingProxyType(unasked))
