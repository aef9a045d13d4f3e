"""supervised: the usual task over `(inputs, targets)`, by names."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import jax.numpy as jnp
import numpy as np

from .. import losses, metrics as metrics_lib, optimizers, schedules, tree
from .._core import check
from .._core.arguments import checked
from .._core.errors import ConfigError, DataError
from .._core.value import factory
from ..losses.names import ALIASES as LOSS_NAMES
from ..metrics.base import Metric, metric
from ..metrics.names import canonical
from ..optimizers.names import OPTIMIZERS, PRESETS
from ..step.modules import door, refuse_torchs
from ..step.task import Task
from ..transforms import MultiSteps, add_weight_decay, chain, clip_by_norm, clip_by_value
from .model import Model

P = ParamSpec("P")

ALIASES = {
    "accumulation_steps": "accumulate_gradients",
    "clipnorm": "clip_norm",
    "clipvalue": "clip_value",
    "every_k_schedule": "accumulate_gradients",
    "gradient_accumulation_steps": "accumulate_gradients",
    "gradient_clip": "clip_norm",
    "gradient_clip_val": "clip_norm",
    "lr": "learning_rate",
    "max_grad_norm": "clip_norm",
    "scheduler": "lr_schedule",
    "total_steps": "steps",
    "warmup_steps": "warmup",
}
"""Other names of an option: one of the two may be given."""

_CLASSES = ("cross_entropy", "focal")
_YES_OR_NO = ("binary_cross_entropy", "binary_focal", "hinge", "squared_hinge")
_AVERAGED = ("dice", "f1", "fbeta", "iou", "precision", "recall", "specificity")
_OF_CLASSES = (
    *_AVERAGED,
    "balanced_accuracy",
    "cohen_kappa",
    "confusion_matrix",
    "mcc",
    "per_class_accuracy",
)


def _each_under_one_name(function: Callable[P, Task]) -> Callable[P, Task]:
    """The function, with the spellings of ALIASES too: two of one option are refused, whatever their values."""
    fitting = checked(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Task:
        spelled: dict[str, str] = {}
        for spelling in kwargs:
            name = ALIASES.get(spelling, spelling)
            if name in spelled:
                one, other = sorted((spelled[name], spelling), key=lambda word: word == name)
                raise ConfigError(f"`{one}` and `{other}` are the same option; give one of them")
            spelled[name] = spelling
        return fitting(*args, **{name: kwargs[spelling] for name, spelling in spelled.items()})  # type: ignore[arg-type]

    return call


@_each_under_one_name
def supervised(
    model: Any,
    loss: str | Callable[..., Any] = "cross_entropy",
    optimizer: Any = "adam",
    metrics: Sequence[str] | Mapping[str, Any] = ("accuracy",),
    *,
    learning_rate: Any = None,
    lr_schedule: Any = None,
    warmup: int = 0,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    weight_decay: float | None = None,
    nesterov: bool = False,
    momentum: float | None = None,
    accumulate_gradients: int = 1,
    steps: int | None = None,
    class_weights: Any = None,
    class_counts: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    num_classes: int | None = None,
    microbatches: int = 1,
    policy: Any = "float32",
    **options: Any,
) -> Task:
    """The usual task: a model, over batches `(inputs, targets)`, with everything by its name.

    What it makes is an ordinary Task. Its gradient is accumulated, clipped by value, then by norm, and handed to the
    optimizer. Batches are pairs; inputs that are a tuple are the model's several arguments.

    Args:
      model: a `models.Model`, or a function `(params, inputs) -> outputs`.
      loss: a name of `losses.get`, or a function `(outputs, targets) -> Loss`.
      optimizer: a name of `optimizers.get`, or a transform, which then has its own rate.
      metrics: names of `metrics.get`, or metrics by name. `"accuracy"` is None where the loss is not one of classes.
      learning_rate: a number or a schedule; None is the optimizer's own.
      lr_schedule: a schedule, a name or a tuple of `schedules.get`: `("cosine", 1e-3, 1e-5)`.
      warmup: updates over which the rate rises from 0; the schedule begins after them.
      clip_value: largest absolute value of a gradient's entry; None, 0 are off.
      clip_norm: largest norm of the gradient; None, 0 are off.
      weight_decay: as the optimizer has it: decoupled for `adamw`, `lion` and `adafactor`, otherwise L2, the gradient
        of lambda / 2 ||w||^2.
      nesterov: of `sgd`.
      momentum: of `sgd` and `rmsprop`.
      accumulate_gradients: batches an update (`MultiSteps`).
      steps: updates of the whole run, for schedules that need its length.
      class_weights: `[C]`, a dict from class to weight (1 elsewhere), or `"balanced"`, with `class_counts`.
      class_counts: examples of each class, `[C]`: `numpy.bincount(labels)`.
      label_smoothing: of `cross_entropy`.
      ignore_index: a label that does not count, of `cross_entropy`.
      num_classes: for metrics that count classes.
      microbatches: of the Task.
      policy: of the Task.
      **options: the optimizer's other arguments (`b1=0.95`), and those of ALIASES, as `lr`.

    Raises:
      ConfigError: if a name is unknown (the nearest is said), one argument comes under two names, or the optimizer or
        loss has no such option.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> model = ft.models.plain(lambda key: {"w": jnp.zeros((4, 3))}, lambda params, x: x @ params["w"])
      >>> task = ft.supervised(model, "cross_entropy", "sgd", lr=0.1, clip_norm=1.0, warmup=10)
      >>> task.tx
      chain(clip_by_norm(max_norm=1.0), sgd(learning_rate=warmup(schedule=0.1, steps=10)))
      >>> state = ft.init_state(task, model.init)
      >>> x, y = jnp.eye(4), jnp.array([0, 1, 2, 0])
      >>> state, history = ft.fit(task, state, (x, y), epochs=2, progress=False)
      >>> ft.predict(task, state, x).shape
      (4, 3)
    """
    given = {name: value for name, value in locals().items() if name not in ("model", "options")}
    return _supervised(model, **given, **options)


def _spelled_as_public(function: Callable[..., Any]) -> Callable[..., Any]:
    """What it makes prints as the call of `supervised`, with the options that are not at their defaults."""
    function.__signature__ = inspect.signature(supervised)  # type: ignore[attr-defined]
    function.__name__ = "supervised"
    return function


@factory(Task)
@_spelled_as_public
def _supervised(
    model,
    loss,
    optimizer,
    metrics,
    learning_rate,
    lr_schedule,
    warmup,
    clip_value,
    clip_norm,
    weight_decay,
    nesterov,
    momentum,
    accumulate_gradients,
    steps,
    class_weights,
    class_counts,
    label_smoothing,
    ignore_index,
    num_classes,
    microbatches,
    policy,
    **options,
):
    apply = _applied(model)
    weights = _class_weights(class_weights, class_counts)
    kind, loss_of = _loss(loss, weights, label_smoothing, ignore_index)
    rate = _rate(learning_rate, lr_schedule, warmup, steps)
    made = _optimizer(optimizer, rate, weight_decay, nesterov, momentum, options)
    tx = _stages(made, clip_value, clip_norm, accumulate_gradients)

    def outputs_of(params: Any, batch: Any, ctx: Any) -> tuple[Any, Any]:
        inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
        return apply(params, *(inputs if isinstance(inputs, tuple) else (inputs,)), ctx=ctx)

    def loss_fn(params: Any, batch: Any, ctx: Any) -> losses.Loss:
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise ConfigError(
                f"`supervised` wants batches `(inputs, targets)`, got {tree.describe(batch)}; for others write a "
                f"`loss_fn` of your own and a `Task`"
            )
        out, model_state = outputs_of(params, batch, ctx)
        if isinstance(loss, str) and kind != "classes":
            _check_shapes(out, batch[1])
        result = loss_of(out, batch[1])
        return result.with_outputs(**_named(kind, out, batch[1])).with_state(model_state)

    def predict_fn(params: Any, batch: Any, ctx: Any) -> Any:
        return outputs_of(params, batch, ctx)[0]

    return Task(
        loss_fn,
        tx,
        _metrics(metrics, kind, num_classes),
        microbatches=microbatches,
        policy=policy,
        predict_fn=predict_fn,
    )


def _check_shapes(out: Any, targets: Any) -> None:
    """Refuse a column where a vector is, or the other way round, with what to do about it here."""
    given, wanted = jnp.shape(out), jnp.shape(targets)
    said = f"the model gives {list(given)} for targets {list(wanted)}"
    if given == (*wanted, 1):
        raise DataError(
            f"`model` and targets must have one shape, and {said}: end the model with `lambda x: x[..., 0]`, or give "
            f"the targets that axis, `(x, y[..., None])`"
        )
    if wanted == (*given, 1):
        raise DataError(
            f"`model` and targets must have one shape, and {said}: give the targets without that axis, `(x, y[..., 0])`"
        )


def _applied(model: Any) -> Callable[..., tuple[Any, Any]]:
    if isinstance(model, Model):
        return model.apply
    refuse_torchs("model", model)
    found = door(model)
    if found:
        raise ConfigError(
            f"`model` is a module of {found[0]}; wrap it, `{found[1]}`, and start from `init_state(task, model.init)`"
        )
    check.function("model", model, "(params, inputs) -> outputs")
    names = inspect.signature(model).parameters

    def apply(params: Any, *inputs: Any, ctx: Any) -> tuple[Any, Any]:
        return (model(params, *inputs, ctx=ctx) if "ctx" in names else model(params, *inputs)), None

    return apply


def _class_weights(given: Any, counts: Any) -> Any:
    if isinstance(given, str):
        check.one_of("class_weights", given, ["balanced"])
        if counts is None:
            raise ConfigError(
                '`class_weights="balanced"` needs the examples of each class: `class_counts=numpy.bincount(labels)`'
            )
        counts = np.asarray(counts, np.float64)
        if counts.ndim != 1 or not (counts > 0).all():
            raise ConfigError(f"`class_counts` must hold a number > 0 for each class, got {counts.tolist()}")
        return (counts.sum() / (len(counts) * counts)).astype(np.float32)  # as scikit-learn
    if counts is not None:
        raise ConfigError('`class_counts` are for `class_weights="balanced"`')
    for label, weight in given.items() if isinstance(given, Mapping) else ():
        check.integer("class_weights", label, at_least=0)
        check.number(f"class_weights[{label}]", weight, at_least=0)
    return given


def _of_each_class(given: Mapping[int, float], classes: int) -> np.ndarray:
    """The weights of a dict for classes 0, 1, …: 1 where it says nothing."""
    beyond = [label for label in given if label >= classes]
    if beyond:
        raise ConfigError(f"`class_weights` has class {beyond[0]}, and the model gives {classes} classes")
    return np.array([given.get(label, 1.0) for label in range(classes)], np.float32)


def _loss(loss: Any, class_weights: Any, label_smoothing: float, ignore_index: int | None) -> tuple[str, Any]:
    """What kind of outputs the loss is of, and the loss."""
    options = {
        "class_weights": class_weights,
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
    }
    options = {
        name: x for name, x in options.items() if not (x is None or (name == "label_smoothing" and x == 0))
    }
    if not isinstance(loss, str):
        if options:
            raise ConfigError(f"{tree.some(list(options))}: give a loss of your own its options itself")
        check.function("loss", loss, "(outputs, targets) -> Loss")
        name = getattr(loss.func if isinstance(loss, functools.partial) else loss, "__name__", "")
        found = loss
    else:
        name = LOSS_NAMES.get(loss, loss)
        by_class = isinstance(class_weights, Mapping)  # as many as the outputs say
        found = _with_weights_of(loss, options) if by_class else losses.get(loss, **options)
    return "classes" if name in _CLASSES else "yes or no" if name in _YES_OR_NO else "values", found


def _with_weights_of(loss: str, options: dict[str, Any]) -> Callable[..., Any]:
    losses.get(loss, **options)  # whether it is there, and has these

    def weighted(outputs: Any, targets: Any) -> losses.Loss:
        each = _of_each_class(options["class_weights"], jnp.shape(outputs)[-1])
        return losses.get(loss, **{**options, "class_weights": each})(outputs, targets)

    return weighted


def _named(kind: str, out: Any, targets: Any) -> dict[str, Any]:
    """Outputs under the names that metrics read."""
    if kind == "values":
        return {"predictions": out, "targets": targets}
    named = {"logits": out, "labels": targets}
    if kind == "classes":
        return named
    # As scores of two classes, so that NaN stays NaN; one half is a yes, as in `binary_stats`.
    yes = jnp.where(out == 0, jnp.ones((), out.dtype), out)
    return {**named, "scores": jnp.stack([jnp.zeros_like(yes), yes], axis=-1)}


def _metrics(given: Any, kind: str, num_classes: int | None) -> dict[str, Metric]:
    if isinstance(given, str):
        given = (given,)
    pairs = given.items() if isinstance(given, Mapping) else ((str(m), m) for m in given)
    return {name: m if isinstance(m, Metric) else _metric(m, kind, num_classes) for name, m in pairs}


def _metric(name: str, kind: str, num_classes: int | None) -> Metric:
    meant = canonical(name)
    if meant == "accuracy" and kind == "values":
        return _no_accuracy()
    options: dict[str, Any] = {}
    if kind == "yes or no" and meant in ("accuracy", *_OF_CLASSES):
        options["logits"] = "scores"
    if kind == "yes or no" and meant in _AVERAGED:
        options["classes"] = (1,)  # of "yes", as scikit-learn's `average="binary"`
    classes = inspect.signature(metrics_lib.METRICS[meant]).parameters.get("num_classes")
    if classes is not None and classes.default is classes.empty:
        options["num_classes"] = 2 if kind == "yes or no" else num_classes
        if options["num_classes"] is None:
            raise ConfigError(f"the metric `{name}` counts classes: say how many, `num_classes=`")
    return metrics_lib.get(meant, **options)


@metric(better="max")
def _no_accuracy():
    """Nothing: where targets are no classes, no share of them is right."""
    return (lambda: None), (lambda acc, outputs, weight=None: None), (lambda a, b: None), (lambda acc: None)


def _rate(learning_rate: Any, lr_schedule: Any, warmup: int, steps: int | None) -> Any:
    rate = learning_rate
    if lr_schedule is not None:
        tupled = isinstance(lr_schedule, tuple | list) or not isinstance(lr_schedule, str)
        if tupled and learning_rate is not None:
            raise ConfigError("`learning_rate` and `lr_schedule` both say the rate; give one of them")
        rest = None if steps is None else check.integer("steps", steps, at_least=1) - (warmup or 0)
        rate = schedules.get(lr_schedule, rate=learning_rate, steps=rest)
    if not warmup:
        return rate
    if rate is None:
        raise ConfigError("`warmup` rises to a rate: give `learning_rate` or `lr_schedule`")
    return schedules.warmup(rate, check.integer("warmup", warmup, at_least=1))


def _optimizer(
    optimizer: Any, rate: Any, weight_decay: Any, nesterov: bool, momentum: Any, options: dict[str, Any]
) -> list[Any]:
    named = {
        "learning_rate": rate,
        "weight_decay": weight_decay,
        "momentum": momentum,
        "nesterov": nesterov or None,
    }
    named = {name: x for name, x in named.items() if x is not None}
    if not isinstance(optimizer, str):
        if named or options:
            raise ConfigError(
                f"{tree.some([*named, *options])}: an `optimizer` that is a transform has its own; these go with a name"
            )
        return [optimizer]
    check.one_of("optimizer", optimizer, [*OPTIMIZERS, *PRESETS])
    taken = inspect.signature(OPTIMIZERS[optimizer.split("/")[0]]).parameters
    for name in options:
        known = [*taken, *ALIASES, *optimizers.ALIASES, *inspect.signature(supervised).parameters]
        if name not in taken and optimizers.ALIASES.get(name) not in taken:
            raise ConfigError(
                f"`{name}` is no option of `supervised`, and no argument of {optimizer}, which has "
                f"{tree.some(list(taken), 20)}" + check.did_you_mean(name, known)
            )
    for name in ("nesterov", "momentum"):
        if name in named and name not in taken:
            raise ConfigError(f"`{name}`: {optimizer} has none; it has {tree.some(list(taken), 20)}")
    before = []
    if (
        "weight_decay" in named and "weight_decay" not in taken
    ):  # L2: in the gradient, before the preconditioner
        before = [add_weight_decay(named.pop("weight_decay"))]
    return [*before, optimizers.get(optimizer, **named, **options)]


def _stages(made: list[Any], clip_value: Any, clip_norm: Any, accumulate: int) -> Any:
    clips = [clip(x) for clip, x in ((clip_by_value, clip_value), (clip_by_norm, clip_norm)) if x]
    stages = [*clips, *made]
    tx = stages[0] if len(stages) == 1 else chain(*stages)
    k = check.integer("accumulate_gradients", accumulate, at_least=1)
    return tx if k == 1 else MultiSteps(tx, k)
