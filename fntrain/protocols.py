"""What each kind of thing is to the toolkit, as a Protocol: what a checker, or `isinstance`, can be asked.

Nothing has to derive from these. A callback is `fntrain.callbacks.Callback`, which says the same of its events.

Examples:
  >>> import fntrain as ft
  >>> isinstance(ft.optimizers.sgd(0.1), Optimizer), isinstance(ft.metrics.accuracy(), Metric)
  (True, True)
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ._core.typing import Batch, Params

__all__ = ["EvalStep", "LossFn", "Metric", "Optimizer", "Schedule", "Tracker", "TrainStep"]


@runtime_checkable
class Optimizer(Protocol):
    """A gradient transform, an optimizer being one whose updates can be added: optax's protocol."""

    @property
    def init(self) -> Any:
        """`params -> state`."""
        ...

    @property
    def update(self) -> Any:
        """`(updates, state, params=None, **extra) -> (updates, state)`."""
        ...


@runtime_checkable
class Schedule(Protocol):
    """A value for each update."""

    def __call__(self, step: Any, /) -> Any:
        """The value at a count of updates, a number or an array, traced or not."""
        ...


@runtime_checkable
class Metric(Protocol):
    """A commutative monoid of accumulators, and what is read from one."""

    @property
    def empty(self) -> Any:
        """`() -> accumulator`, of which nothing has been seen."""
        ...

    @property
    def update(self) -> Any:
        """`(accumulator, outputs, weight=None) -> accumulator`."""
        ...

    @property
    def merge(self) -> Any:
        """`(accumulator, accumulator) -> accumulator`."""
        ...

    @property
    def compute(self) -> Any:
        """`accumulator -> value`."""
        ...


@runtime_checkable
class LossFn(Protocol):
    """What a Task trains by."""

    def __call__(self, params: Params, batch: Batch, ctx: Any, /) -> Any:
        """An array, a scalar or one value a row, or a `losses.Loss`."""
        ...


@runtime_checkable
class TrainStep(Protocol):
    """`train_step`, or what `fit(..., train_step=)` takes in its place."""

    def __call__(self, task: Any, state: Any, batch: Batch, weight: Any = None, /) -> tuple[Any, Any]:
        """`(state, metrics)`."""
        ...


@runtime_checkable
class EvalStep(Protocol):
    """`eval_step`, or what `fit(..., eval_step=)` takes in its place."""

    def __call__(self, task: Any, state: Any, batch: Batch, weight: Any = None, /) -> Any:
        """Metrics."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """Where a run's numbers are sent to: MLflow, Weights & Biases, a table of one's own. `fit(callbacks=[tracker])`.

    It may also have `begin(run_dir, since) -> step`, called before everything else: with the run directory (a Path, or
    None), and the first step whose row is still to come; it returns the last step that it holds of this run already,
    or None. And, with an attribute `checkpoints` that is true, `artifact(path, name)`, called at a run's end with the
    directories of its best and its newest checkpoint.
    """

    def config(self, values: Mapping[str, Any], /) -> None:
        """What the run is: nested dicts of text, numbers, lists; called once, before the first row."""
        ...

    def log(self, row: Mapping[str, Any], step: int, /) -> None:
        """What was measured at a step; steps ascend strictly, over resumes too. `fit` calls this from a thread.

        Values are numbers, arrays, text, dicts of such, and what other callbacks hand on: `callbacks.Histogram` and
        `callbacks.Sample`.
        """
        ...

    def close(self, status: str = "failed") -> None:
        """The run is over: `"done"`, `"stopped"`, `"interrupted"`, `"diverged"`, or `"failed"`, by an exception."""
        ...
