"""Task and Context: what is trained, and what a loss may know besides parameters and batch."""

import dataclasses
import types
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import metrics as metrics_lib, optimizers, tree
from .._core import check
from .._core.errors import ConfigError
from .._core.fingerprint import fingerprint
from .._core.typing import Batch, Params, PyTree
from .._core.value import Value, show
from ..metrics.base import checked as checked_metric
from ..precision import Policy, policy as as_policy
from ..transforms.adapt import adapt
from ..transforms.types import Transform
from .batch_loss import batch_loss

REPORTED = ("loss", "learning_rate", "grad_norm", "grad_norm_max", "clip_factor", "skipped", "loss_scale")
"""Names that steps report by themselves, whatever the optimizer, so no metric may take them."""

COLUMNS = ("epoch", "step", "updates", "unfinished")
"""Names that a run's rows have already."""

_AS_IT_IS = Policy()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a loss may need besides parameters and batch.

    Attributes:
      key: a PRNG key, a function of the run's root key and the step; constant in evaluation.
      train: True in training, a Python bool, so `if ctx.train:` is decided while tracing.
      step: batches consumed before this one, int32, shape ().
      model_state: the mutable collections (batch statistics, say) that the state carries.
      weight: one weight a row of the batch at hand, `[B]`, zero for padding; None where every row counts as one. The
        step applies it by itself; it is here for what looks at the whole batch, as a batch norm does.
    """

    key: jax.Array
    train: bool = dataclasses.field(metadata=dict(static=True))
    step: jax.Array
    model_state: PyTree
    weight: jax.Array | None = None

    def stream(self, name: str) -> jax.Array:
        """A key of its own for a named use (`"dropout"`), independent of every other name."""
        return fold_in_name(self.key, name)


def fold_in_name(key: jax.Array, name: str) -> jax.Array:
    """`fold_in` of a string: the same name gives the same key, on every machine."""
    return jax.random.fold_in(key, jnp.uint32(zlib.crc32(name.encode())))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Task(Value):
    """What is trained: a loss, a transform, metrics. Static, frozen, and hashed by value.

    Building an equal task again, or running a notebook cell twice, compiles nothing again; only the identity
    of `loss_fn` itself counts.

    Args:
      loss_fn: `(params, batch, ctx) -> array or Loss`; an array is a scalar or has one value per example.
      tx: a gradient transform, ours or optax's.
      metrics: metrics by name. `"loss"`, the weighted mean of the loss's values, is always there.
      microbatches: how many parts `train_step` cuts a batch into, to save memory. The result is the whole
        batch's; a batch that does not divide is padded with weight 0.
      policy: dtypes of parameters, computation and outputs, a Policy or `"float32"`, `"bf16"`, `"fp16"`.
      axis_name: inside `shard_map` or `pmap`, the mapped axis (or axes) to sum gradients, loss and metrics over.
        Elsewhere an axis of the mesh that the state is on: the step maps over it by itself, so that a loss sees
        the rows of one device, and the gradient of several micro-batches crosses the mesh once.
      predict_fn: `(params, batch, ctx) -> tree of arrays [B, …]`, what `predict` gives; None takes the loss's outputs.

    Raises:
      ConfigError: if an argument is of the wrong kind; a factory passed instead of its result is named.

    Examples:
      >>> import fntrain as ft
      >>> def loss_fn(params, batch, ctx):
      ...     return ft.losses.mse(batch["x"] @ params["w"], batch["y"])
      >>> task = ft.Task(loss_fn, ft.optimizers.sgd(0.1))
      >>> task == ft.Task(loss_fn, ft.optimizers.sgd(learning_rate=0.1))
      True
    """

    loss_fn: Callable[[Params, Batch, Context], Any]
    tx: optax.GradientTransformation
    metrics: Mapping[str, metrics_lib.Metric] = dataclasses.field(default_factory=dict)
    _: dataclasses.KW_ONLY
    microbatches: int = 1
    policy: Policy | str = _AS_IT_IS
    axis_name: str | tuple[str, ...] | None = None
    predict_fn: Callable[[Params, Batch, Context], Any] | None = None
    collected: metrics_lib.Metric = dataclasses.field(init=False)  # the user's metrics, as one reducer

    def __post_init__(self) -> None:
        check.function("loss_fn", self.loss_fn, "(params, batch, ctx) -> Array | Loss", takes=3)
        if not isinstance(self.metrics, Mapping):
            raise ConfigError(
                f"`metrics` must map names to metrics, `{{'accuracy': fntrain.metrics.accuracy()}}`, "
                f"got {self.metrics!r}"
            )
        axes = self.axis_name if isinstance(self.axis_name, tuple) else (self.axis_name or "data",)
        if not axes or not all(isinstance(axis, str) for axis in axes):
            raise ConfigError(
                f"`axis_name` must be the name of an axis, or a tuple of them, got {self.axis_name!r}"
            )
        if isinstance(self.tx, str):
            raise ConfigError(
                f"`tx` must be a gradient transform, got {self.tx!r}; by name it is `fntrain.optimizers.get(name)`"
                + check.did_you_mean(self.tx, optimizers.OPTIMIZERS)
            )
        user = {name: m for name, m in self.metrics.items() if not (name == "loss" and m == batch_loss())}
        for name, m in user.items():
            if not isinstance(name, str):
                raise ConfigError(f"`metrics` must have strings as names, got {name!r}")
            check.name("metrics", name)  # it becomes a column, a tag, a file
            if name in REPORTED or name.startswith("loss/"):
                raise ConfigError(
                    f"`metrics`: the name {name!r} is one the step reports itself; choose another"
                )
            if name in COLUMNS or name.startswith("val_"):
                raise ConfigError(
                    f"`metrics`: the name {name!r} is a column of the history already ({', '.join(COLUMNS)}, "
                    f"and `val_…` for the validation's); choose another"
                )
            if isinstance(m, str):
                raise ConfigError(
                    f"`metrics`: {name!r} must be a Metric, got {m!r}; write `{{{name!r}: fntrain.metrics.{m}(...)}}`"
                    + check.did_you_mean(m, metrics_lib.__all__) * (m not in metrics_lib.__all__)
                )
            checked_metric(m, name)
        if self.predict_fn is not None:
            check.function("predict_fn", self.predict_fn, "(params, batch, ctx) -> outputs")
        put = object.__setattr__
        put(self, "tx", adapt(self.tx))
        put(self, "metrics", types.MappingProxyType({"loss": batch_loss(), **user}))
        put(self, "microbatches", check.integer("microbatches", self.microbatches, at_least=1))
        put(self, "policy", as_policy(self.policy))
        # One reducer for all of them, so that those which share their counting do it once.
        put(self, "collected", metrics_lib.collect(**user))

    @property
    def transform(self) -> Transform:
        """`tx` as what it is here, whatever it was at the door."""
        return self.tx  # type: ignore[return-value]

    def _parts(self) -> tuple[Any, ...]:
        return (
            self.loss_fn,
            self.tx,
            self.metrics,
            self.microbatches,
            self.policy,
            self.axis_name,
            self.predict_fn,
        )

    def fingerprint(self) -> dict[str, Any]:
        """What is trained, as JSON: equal for equal tasks, in every process; see `_core.fingerprint`.

        Not `predict_fn`, which has no part in a run.
        """
        names = ("loss_fn", "tx", "metrics", "microbatches", "policy", "axis_name")
        return {name: fingerprint(part) for name, part in zip(names, self._parts())}

    def __reduce__(self) -> tuple[Any, ...]:
        if self.call is not None:
            return self.call.remake()
        loss_fn, tx, metrics, *keywords = self._parts()
        return _make_task, (loss_fn, tx, dict(metrics), *keywords)

    def __repr__(self) -> str:
        if self.call is not None:
            return repr(self.call)
        names = ", ".join(self.metrics)
        loss = getattr(self.loss_fn, "__name__", repr(self.loss_fn))
        return f"Task({loss}, {show(self.tx)}, metrics=[{names}], microbatches={self.microbatches})"


def check_recorded(task: Task, names: Iterable[str]) -> None:
    """Refuse an optimizer that records something under the name of a metric, whose value it would take the place of.

    Raises:
      ConfigError: naming it.
    """
    both = [name for name in names if name in task.metrics]
    if both:
        raise ConfigError(
            f"`metrics`: {tree.some(both)} is what the optimizer records as well: give the metric another name. "
            f"The optimizer is {task.tx!r}"
        )


jax.tree_util.register_static(Task)  # so a task may also go through a jit of the user's own


def _make_task(loss_fn, tx, metrics, microbatches, policy, axis_name, predict_fn=None):
    return Task(
        loss_fn,
        tx,
        metrics,
        microbatches=microbatches,
        policy=policy,
        axis_name=axis_name,
        predict_fn=predict_fn,
    )
