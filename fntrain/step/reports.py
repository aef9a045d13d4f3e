"""What a step reports: the loss, the user's metrics, and what the transforms recorded."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core.typing import Accumulator
from ..metrics import basic, exact
from . import members
from .batch_loss import BatchLossState, batch_loss
from .task import Task, check_recorded


class Latest(NamedTuple):
    """The value of the highest step seen: mergeable in any order, unlike "the last one"."""

    step: jax.Array  # int32, shape (); -1 is nothing yet
    value: jax.Array


class StepMetrics(NamedTuple):
    """Accumulators, not values: `merge` joins two, `compute` reads one."""

    loss: BatchLossState
    metrics: Accumulator  # the user's, collected
    parts: dict[str, basic.MeanState]  # of a combined loss, by `loss/<name>`
    recorded: dict[str, Any]  # by name: Latest; `skipped` a Count; `grad_norm_max` a float32


def _members(metrics: StepMetrics) -> int | None:
    """How many members these are of, in the leading axis of every accumulator; None for one run."""
    shape = metrics.loss.batches.low.shape
    return shape[0] if shape else None


def merge(task: Task, a: StepMetrics, b: StepMetrics) -> StepMetrics:
    """The metrics of two sets of batches from the metrics of each, in any order."""
    if _members(a) is not None:
        return jax.vmap(functools.partial(merge, task))(a, b)
    return StepMetrics(
        loss=batch_loss().merge(a.loss, b.loss),
        metrics=task.collected.merge(a.metrics, b.metrics),
        parts={name: basic.merge(a.parts[name], b.parts[name]) for name in a.parts},
        recorded={name: _merge_recorded(a.recorded[name], b.recorded[name]) for name in a.recorded},
    )


def _merge_recorded(a: Any, b: Any) -> Any:
    if isinstance(a, Latest):
        later = b.step > a.step
        return Latest(jnp.maximum(a.step, b.step), jnp.where(later, b.value, a.value))
    if isinstance(a, exact.Count):
        return exact.merge_counts(a, b)
    return jnp.maximum(a, b)  # propagates NaN: a norm that was not finite is not forgotten


def empty_like(task: Task, metrics: StepMetrics) -> StepMetrics:
    """The identity of `merge` in the structure of `metrics` (arrays or their shapes)."""

    def nothing(x: Any) -> Any:
        if isinstance(x, Latest):
            return Latest(jnp.full((), -1, jnp.int32), jnp.zeros(x.value.shape, x.value.dtype))
        return exact.empty_count() if isinstance(x, exact.Count) else jnp.full((), -jnp.inf, jnp.float32)

    number = _members(metrics)
    if number is not None:
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), metrics)
        return jax.tree.map(lambda x: jnp.tile(x, (number, *[1] * x.ndim)), empty_like(task, one))
    return StepMetrics(
        loss=batch_loss().empty(),
        metrics=task.collected.empty(),
        parts={name: basic.empty() for name in metrics.parts},
        recorded={name: nothing(x) for name, x in metrics.recorded.items()},
    )


def record(task: Task, values: dict[str, jax.Array], step: jax.Array) -> dict[str, Any]:
    """Accumulators of one step's recorded values.

    Raises:
      ConfigError: if one has the name of a metric.
    """
    out: dict[str, Any] = {}
    for name, value in values.items():
        if name == "skipped":
            out[name] = exact.add_to_count(exact.empty_count(), value.astype(jnp.uint32))
            continue
        out[name] = Latest(step, value)
        if name == "grad_norm":
            out["grad_norm_max"] = value
    check_recorded(task, out)
    return out


def compute(task: Task, metrics: StepMetrics) -> dict[str, Any]:
    """Values from accumulators, the one place where anything is divided; of a population, a Spread each."""
    if _members(metrics) is not None:
        each = jax.vmap(functools.partial(compute, task))(metrics)
        return {name: members.spread(x) for name, x in each.items()}
    out = {"loss": batch_loss().compute(metrics.loss)}
    out.update(task.collected.compute(metrics.metrics))
    out.update({name: basic.compute(acc) for name, acc in metrics.parts.items()})
    for name, x in metrics.recorded.items():
        if isinstance(x, Latest):
            out[name] = x.value
        else:
            out[name] = exact.read_count(x) if isinstance(x, exact.Count) else x
    return out
