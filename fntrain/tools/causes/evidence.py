"""Evidence: what a run has left behind, and what can be asked of its task with a batch at hand."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from ... import tree
from ..._core.typing import Batch
from ...run.goodput import Goodput
from ...run.history import UNFINISHED
from ...step import programs
from ...step.state import TrainState
from ...step.step import compute_gradients, train_step
from ...step.task import Task
from ..curvature import Curvature, curvature


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What rules look at; whatever is not there is None or empty."""

    rows: list[dict[str, Any]]
    config: dict[str, Any]
    goodput: Goodput | None
    recompiled: list[str]
    task: Task | None = None
    state: TrainState | None = None
    batch: Batch = None
    weight: Any = None

    def column(self, name: str) -> list[float]:
        """The values of a column over the epochs that have ended; those that are no number are left out."""
        rows = [row for row in self.rows if self.has_ended(row)]
        found = [row.get(name) for row in rows]
        return [math.nan if x is None else float(x) for x in found if isinstance(x, int | float | None)]

    def finite(self, name: str) -> list[float]:
        """Those of them that are finite."""
        return [x for x in self.column(name) if math.isfinite(x)]

    @staticmethod
    def has_ended(row: dict[str, Any]) -> bool:
        """Whether the row is that of a whole epoch, and not of a validation inside one."""
        return not row.get(UNFINISHED)

    def few(self, many: int, *names: str) -> str:
        """What is missing of so many epochs with finite values of all these columns; empty if nothing is."""
        least = min(names, key=lambda name: len(self.finite(name)))
        there = len(self.finite(least))
        if there >= many:
            return ""
        has = f"has {there}" if there else "has none"
        if not there and least == "val_loss":
            has = "had no `validation_data`"
        return f"it takes {many} epoch{'s' * (many > 1)} with a finite `{least}`, and the run {has}"

    @property
    def words(self) -> str:
        """The optimizer as text; empty where nothing says."""
        if self.task is not None:
            return repr(self.task.tx)
        return str((self.config.get("task") or {}).get("tx", ""))

    @property
    def at_hand(self) -> tuple[Task, TrainState, Batch, Any] | None:
        """What a step takes, if all of it is there."""
        if self.task is None or self.state is None or self.batch is None:
            return None
        return self.task, self.state, self.batch, self.weight

    @property
    def lacks(self) -> str:
        """Which argument would put a step at hand, in words; empty if one is."""
        if self.task is None:
            return "it takes a step: give `task=` and `data=` (`fntrain doctor RUN --task MODULE:ATTRIBUTE`)"
        if self.batch is None:
            return "it takes a batch: give `data=`"
        return (
            "" if self.state is not None else "it takes parameters, and no checkpoint has them: give `state=`"
        )

    @property
    def lacks_classes(self) -> str:
        """Why the number of classes is not known; empty if it is."""
        if self.classes is not None:
            return ""
        return self.lacks or (
            "the loss hands on no `logits` with `labels` of one dimension less (`.with_outputs(logits=, labels=)`)"
        )

    @functools.cached_property
    def gradient(self) -> Any:
        """The gradient of the batch at hand, or None."""
        return None if self.at_hand is None else compute_gradients(*self.at_hand)[1]

    @functools.cached_property
    def stepped(self) -> TrainState | None:
        """The state behind a step on the batch at hand, or None."""
        if self.at_hand is None:
            return None
        task, state, batch, weight = self.at_hand
        return train_step(task, programs.copied(state), batch, weight)[0]

    @functools.cached_property
    def outputs(self) -> dict[str, Any]:
        """What the loss hands to the metrics for the batch at hand; empty where that is no dict."""
        if self.at_hand is None or self.at_hand[0].predict_fn is not None:
            return {}
        found = programs.outputs_of(*self.at_hand)
        return jax.device_get(found) if isinstance(found, dict) else {}

    @property
    def classes(self) -> int | None:
        """How many classes a classifier has; None where it is none, or nobody says."""
        logits, labels = self.outputs.get("logits"), self.outputs.get("labels")
        if logits is None or labels is None or np.ndim(logits) != np.ndim(labels) + 1:
            return None
        return int(np.shape(logits)[-1])

    @functools.cached_property
    def curvature(self) -> Curvature | None:
        """The curvature for the batch at hand."""
        return None if self.at_hand is None else curvature(*self.at_hand, iterations=12)

    def leaves(self) -> list[tuple[str, Any]]:
        """The trained parameters by path."""
        return [] if self.state is None else tree.items(tree.split(self.state.params)[0])
