"""A task whose steps are functions of the user's own."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .._core.fingerprint import fingerprint
from .._core.typing import Batch
from ..transforms import types as transforms
from .packed import Packed, unpacked
from .state import TrainState
from .task import Task

Step = Callable[..., Any]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Replaced(Task):
    """A Task with steps of its own, each with the signature of ours; made by `replaced`.

    Attributes:
      train_step: `(task, state, batch, weight) -> (state, metrics)`, or None for ours.
      eval_step: `(task, state, batch, weight) -> metrics`, or None for ours.
      plain: the Task without them, which they are called with.
    """

    _: dataclasses.KW_ONLY
    plain: Task
    train_step: Step | None = None
    eval_step: Step | None = None

    def _parts(self) -> tuple[Any, ...]:
        return self.plain, self.train_step, self.eval_step

    def fingerprint(self) -> dict[str, Any]:
        """That of the plain task, and of the steps that are not ours."""
        own = {name: getattr(self, name) for name in ("train_step", "eval_step")}
        steps = {name: fingerprint(step) for name, step in own.items() if step is not None}
        return {**self.plain.fingerprint(), **steps}

    def __reduce__(self) -> tuple[Any, ...]:
        return replaced, self._parts()

    def __repr__(self) -> str:
        own = [
            f"{name}={_name(step)}" for name in ("train_step", "eval_step") if (step := getattr(self, name))
        ]
        return f"{self.plain!r} with {', '.join(own)}"


jax.tree_util.register_static(Replaced)


def replaced(task: Task, train_step: Step | None = None, eval_step: Step | None = None) -> Task:
    """The task with steps of the user's own in the place of ours; itself, where there are none.

    Raises:
      ConfigError: if one is no function of `(task, state, batch, weight)`.
    """
    form = "(task, state, batch, weight)"
    if train_step is not None:
        check.function("train_step", train_step, f"{form} -> (state, metrics)", takes=4)
    if eval_step is not None:
        check.function("eval_step", eval_step, f"{form} -> metrics", takes=4)
    if train_step is None and eval_step is None:
        return task
    if isinstance(task, Replaced):
        plain = task.plain
        train_step, eval_step = train_step or task.train_step, eval_step or task.eval_step
    else:
        plain = task
    return Replaced(
        plain.loss_fn,
        plain.tx,
        plain.metrics,
        microbatches=plain.microbatches,
        policy=plain.policy,
        axis_name=plain.axis_name,
        predict_fn=plain.predict_fn,
        plain=plain,
        train_step=train_step,
        eval_step=eval_step,
    )


def trains_itself(task: Task) -> bool:
    """Whether a task has a training step of its own."""
    return isinstance(task, Replaced) and task.train_step is not None


def evaluates_itself(task: Task) -> bool:
    """Whether a task has an evaluation of its own."""
    return isinstance(task, Replaced) and task.eval_step is not None


def trained(task: Task, state: TrainState, batch: Batch, weight: Any) -> tuple[TrainState, Any]:
    """The user's step, traced: its state, one step on, and its metrics.

    The count of steps and the root key are the loop's, whatever the function does with them.

    Raises:
      ConfigError: if it returns something else than a state of the same types and a step's metrics.
    """
    assert isinstance(task, Replaced)
    assert task.train_step is not None
    given = task.train_step(task.plain, state, batch, weight)
    name = _name(task.train_step)
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], TrainState)):
        raise ConfigError(
            f"`train_step` must return `(state, metrics)`, as `fntrain.train_step` does, got {_kind(given)} "
            f"from `{name}`"
        )
    new, metrics = given
    new = new.replace(step=transforms.increment(state.step), key=state.key)
    difference = tree.aval_difference(state, new)
    if difference:
        raise ConfigError(
            f"`train_step` must return a state of the types that it was given, or each step would compile anew: "
            f"{difference}, from `{name}`"
        )
    return new, _opened(metrics, "train_step", name)


def evaluated(task: Task, state: TrainState, batch: Batch, weight: Any) -> Any:
    """The user's evaluation, traced: its metrics.

    Raises:
      ConfigError: if it returns something else than a step's metrics.
    """
    assert isinstance(task, Replaced)
    assert task.eval_step is not None
    metrics = task.eval_step(task.plain, state, batch, weight)
    return _opened(metrics, "eval_step", _name(task.eval_step))


def _opened(metrics: Any, argument: str, name: str) -> Any:
    if not isinstance(metrics, Packed):
        raise ConfigError(
            f"`{argument}` must return the metrics of a step, as `fntrain.train_step` and `fntrain.eval_step` make "
            f"them, got {_kind(metrics)} from `{name}`"
        )
    return unpacked(metrics)


def _kind(x: Any) -> str:
    if isinstance(x, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in x)}"
    return type(x).__name__


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
