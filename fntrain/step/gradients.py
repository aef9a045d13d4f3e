"""From a batch to its loss, gradient and metrics: sums and weights, and one division at the end.

Whatever way a batch is cut (micro-batches, devices, a padded tail), each part contributes the sum of its
weighted values, the gradient of that sum, and its weight. All three add up exactly as the whole batch's do.
"""

import dataclasses
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from .. import precision, tree
from .._core.errors import ConfigError, DataError
from .._core.typing import Batch, Params, PyTree
from ..losses.loss import Loss
from ..metrics import basic
from ..sharding import manual
from ..sharding.explicit import automatic
from .batch_loss import add_loss, batch_loss
from .pairs import warn_of_pairs
from .reports import StepMetrics, empty_like, merge
from .task import Context, Task


class Evaluated(NamedTuple):
    """One loss evaluation, as sums."""

    total: jax.Array  # the sum of values times weights
    weight: Any  # the total weight: a float where it is known while tracing, else float32
    outputs: dict[str, Any]  # what the metrics read
    counted: jax.Array | None  # the weights of metrics
    parted: jax.Array | None  # the weights of the parts of a combined loss
    model_state: PyTree
    size: int  # how many values


# Scopes: what operations of a compiled step are called by, and traces tell apart.
FORWARD, OPTIMIZER, METRICS = "loss", "optimizer", "metrics"
VALUES = "fntrain loss values"  # what they are called in a step's trace, for `step.cost` to find; nothing is computed


class Partial(NamedTuple):
    """What a part of a batch contributes."""

    grads: PyTree  # of the sum, float32 at least; None for leaves that are not trained
    total: jax.Array
    weight: Any
    metrics: StepMetrics
    model_state: PyTree
    spread: Any = (
        None  # of micro-batches, where the transform asks: the sum of |g|^2 / w over them, and how many
    )


def evaluate(task: Task, params: Params, batch: Batch, ctx: Context, weight: jax.Array | None) -> Evaluated:
    """Run the loss on one (micro-)batch and reduce it to sums."""
    policy = task.policy
    if weight is not None:
        # What stands in a row of weight zero must not matter, not even as NaN that 0 * NaN would bring back in
        # the gradient. Zeros, and not a copy of another row, since that would be a collective on a split batch.
        batch = jax.tree.map(lambda x: _without_padding(x, weight), batch)
    ctx = dataclasses.replace(ctx, weight=weight)
    with jax.named_scope(FORWARD):  # autodiff names its transposition by it
        loss = _call(task, params, batch, ctx)
    rows = tree.leading_axis(batch) if weight is not None else None
    values = loss.values
    if policy.output is not None:  # type: ignore[union-attr]
        values = values.astype(policy.output)  # type: ignore[union-attr]
    values = checkpoint_name(tree.wide(values), VALUES)
    if rows is not None and (values.ndim == 0 or values.shape[0] != rows):
        raise _not_per_example(values, rows)
    warn_of_pairs(task.loss_fn, loss, batch)
    total, total_weight, counted = _reduce(values, loss.weights, weight)
    outputs = precision.cast(dict(loss.outputs), policy.output)  # type: ignore[union-attr]
    parted = _full(loss.weights, weight, values) if any(map(_is_part, outputs)) else None
    model_state = _next_model_state(ctx, loss.model_state, total_weight)
    return Evaluated(total, total_weight, outputs, counted, parted, model_state, values.size)


def _is_part(name: str) -> bool:
    """Whether an output is the values of one part of a combined loss."""
    return name.startswith("loss/")


def metrics_of(task: Task, result: Evaluated) -> StepMetrics:
    """What is counted of a loss evaluation; beside its gradient and not within, where it would be differentiated."""
    outputs = result.outputs
    with jax.named_scope(METRICS):
        return StepMetrics(
            loss=add_loss(batch_loss().empty(), result.total, result.weight),
            metrics=automatic(task.collected.update, task.collected.empty(), outputs, result.counted),
            parts={
                name: basic.fold(basic.empty(), outputs[name], result.parted)
                for name in outputs
                if _is_part(name)
            },
            recorded={},
        )


def evaluate_batch(task: Task, params: Params, batch: Batch, ctx: Context, weight: Any) -> StepMetrics:
    """The metrics of the whole batch: over the mapped axis too, if the task names one."""
    if task.axis_name is None:
        return metrics_of(task, evaluate(task, params, batch, ctx, weight))

    def shard(shared: Any, rows: Any) -> StepMetrics:
        params, key, step, model_state = shared
        here = Context(key, ctx.train, step, model_state)
        return merge_over_axis(task, metrics_of(task, evaluate(task, params, rows[0], here, rows[1])))

    names, shared = _names(task.axis_name), (params, ctx.key, ctx.step, ctx.model_state)
    if manual.is_mapped(names):
        return shard(shared, (batch, weight))
    return manual.over_rows(shard, names, shared, (batch, weight))


def _call(task: Task, params: Params, batch: Batch, ctx: Context) -> Loss:
    dtype = task.policy.compute  # type: ignore[union-attr]
    given = precision.cast(params, dtype), precision.cast(batch, dtype)
    try:
        result = task.loss_fn(*given, ctx)
    except Exception as error:  # theirs stays what it is, and says what their function was called with
        name = getattr(task.loss_fn, "__name__", type(task.loss_fn).__name__)
        error.add_note(
            f"raised by the loss_fn `{name}`, called with batch = {_structure(batch)} and params = {_structure(params)}"
        )
        raise
    return _as_loss(result, task)


def _structure(x: Any) -> str:
    return tree.describe(x) if hasattr(x, "dtype") else f"{type(x).__name__}({tree.describe(x)})"


def outputs(task: Task, params: Params, batch: Batch, ctx: Context) -> PyTree:
    """What the task says of each row: by its `predict_fn`, or by the outputs of its loss."""
    policy: Any = task.policy
    if task.predict_fn is None:
        found = {k: v for k, v in _call(task, params, batch, ctx).outputs.items() if not _is_part(k)}
    else:
        dtype = policy.compute
        found = task.predict_fn(precision.cast(params, dtype), precision.cast(batch, dtype), ctx)
    return precision.cast(found, policy.output)


def _without_padding(x: Any, weight: jax.Array) -> Any:
    if np.ndim(x) == 0 or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return x
    keep = (weight != 0).reshape(weight.shape + (1,) * (np.ndim(x) - 1))
    return jnp.where(keep, x, jnp.zeros((), x.dtype))


def _as_loss(result: Any, task: Task) -> Loss:
    if isinstance(result, Loss):
        return result
    name = getattr(task.loss_fn, "__name__", "loss_fn")
    if isinstance(result, tuple):
        raise ConfigError(
            f"`loss_fn` must return an array or a Loss, got a tuple of {len(result)}; give outputs for metrics "
            f"with `return loss.with_outputs(logits=logits)`, new model state with `loss.with_state(model_state)`"
        )
    if result is None:
        raise ConfigError(
            f"`loss_fn` must return an array or a Loss, got None; is a `return` missing in `{name}`?"
        )
    if not isinstance(result, jax.Array | np.ndarray | np.generic):
        raise ConfigError(f"`loss_fn` must return an array or a Loss, got {type(result).__name__}")
    if not jnp.issubdtype(result.dtype, jnp.floating):
        raise ConfigError(
            f"`loss_fn` must return floating-point values, got {result.dtype.name}{list(result.shape)}"
        )
    return Loss(jnp.asarray(result))


class ScalarLossError(DataError):
    """A weight a row meets a loss of one value for the whole batch."""


def _not_per_example(values: jax.Array, rows: int) -> DataError:
    if values.ndim == 0:
        return ScalarLossError(
            "`weight` needs a loss with one value per example, but `loss_fn` returned a scalar: leave the mean to "
            "the step, `return fntrain.losses.mse(predictions, targets)` or an array of shape [batch], and not "
            "`.mean()` of it"
        )
    return DataError(
        f"`loss_fn` must return one value per example, {rows} for this batch, along the first axis; got shape "
        f"{list(values.shape)}"
    )


def _full(weights: jax.Array | None, weight: jax.Array | None, values: jax.Array) -> jax.Array | None:
    """The loss's weights times the step's, in the shape of the values; None if there are neither."""
    if weights is None and weight is None:
        return None
    full = jnp.ones(values.shape, jnp.float32)
    if weights is not None:
        w = jax.lax.stop_gradient(weights.astype(jnp.float32))
        full = jnp.broadcast_to(w.reshape((1,) * (values.ndim - w.ndim) + w.shape), values.shape)
    if weight is not None:
        full = full * weight.astype(jnp.float32).reshape(weight.shape + (1,) * (values.ndim - 1))
    return full


def _reduce(values: jax.Array, weights: Any, weight: Any) -> tuple[jax.Array, Any, jax.Array | None]:
    """`(sum, total weight, weight for metrics)`."""
    full = _full(weights, weight, values)
    if full is None:
        return jnp.sum(values), float(values.size), None
    kept = jnp.where(full != 0, values, jnp.zeros((), values.dtype))
    total = jnp.sum(kept * full.astype(values.dtype))
    counted = weight
    if weights is not None:  # metrics count what the loss counts, but class weights are the loss's alone
        counted = _full((_full(weights, None, values) != 0), weight, values)
    return total, jnp.sum(full), counted


def _next_model_state(ctx: Context, new: PyTree, weight: Any) -> PyTree:
    old = ctx.model_state
    if new is None:
        if ctx.train and jax.tree.leaves(old):
            warnings.warn(
                f"`loss_fn` returns no model state in training, so that {tree.describe(old)} in the "
                f"TrainState stays as it was initialized: return `loss.with_state(model_state)`, or "
                f"`loss.with_state(ctx.model_state)` if that is meant",
                stacklevel=2,
            )
        return old
    new = jax.lax.stop_gradient(new)
    if old is None:
        raise ConfigError(
            "`loss_fn` returned a model state, but the TrainState has none: give the first one to "
            "`init_state(..., model_state=...)`"
        )
    difference = tree.structure_difference(old, new)
    if difference:
        raise ConfigError(f"`loss_fn` returned a model state of another structure: it {difference}")
    for (path, a), b in zip(tree.items(old), jax.tree.leaves(new)):
        if a.shape != b.shape:
            raise ConfigError(
                f"model state `{path}` was {list(a.shape)} and `loss_fn` returned {list(b.shape)}"
            )
    new = tree.cast_like(new, old)
    if isinstance(weight, float):
        return new
    # A batch that weighs nothing leaves no trace here either.
    return jax.tree.map(lambda a, b: jnp.where(weight > 0, a, b), new, old)


def partial_gradient(
    task: Task,
    params: Params,
    model_state: PyTree,
    batch: Batch,
    key: Any,
    step: jax.Array,
    weight: Any,
    loss_scale: jax.Array | None = None,
) -> Partial:
    """One (micro-)batch's contribution, by autodiff."""
    trained, carried = tree.split(params)

    def total(trained: PyTree) -> tuple[jax.Array, tuple[Evaluated, Any]]:
        ctx = Context(key=key, train=True, step=step, model_state=model_state)
        result = evaluate(task, tree.combine(trained, carried), batch, ctx, weight)
        scale = _seed_scale(task, result, loss_scale)
        return result.total if scale is None else result.total * scale, (result, scale)

    (_, (result, scale)), grads = jax.value_and_grad(total, has_aux=True)(trained)
    # In float32 before anything is done with them, the division by the scale included.
    grads = jax.tree.map(tree.wide, grads)
    if scale is not None:
        grads = jax.tree.map(lambda g: g * (1 / scale), grads)
    return Partial(grads, result.total, result.weight, metrics_of(task, result), result.model_state)


def _seed_scale(task: Task, result: Evaluated, loss_scale: jax.Array | None) -> Any:
    """What goes into the backward pass is multiplied by this; None is one.

    The gradient of a sum over the batch overflows float16 where that of the mean does not, so there the sum is
    brought down to about the mean. By a power of two, which rounds nothing. So it is elsewhere where the weight is
    known to be one: undone here and done in `mean`, the two cancel in compilation, and the mean costs no pass.
    """
    policy: Any = task.policy
    if loss_scale is None and "float16" not in (policy.params, policy.compute):
        weight = result.weight
        return 1 / weight if isinstance(weight, float) and math.frexp(weight)[0] == 0.5 else None
    down = 2.0 ** -(max(result.size, 1).bit_length() - 1)
    return down if loss_scale is None else loss_scale * down


def batch_gradient(
    task: Task,
    params: Params,
    model_state: PyTree,
    batch: Batch,
    key: Any,
    step: jax.Array,
    weight: Any,
    loss_scale: jax.Array | None = None,
) -> Partial:
    """The whole batch's sums: over micro-batches, and over the mapped axis if the task names one.

    Outside of `shard_map`, that axis is one of the mesh in context, and the shards are mapped over here: each device
    then adds up its micro-batches by itself, and the gradient crosses the mesh once a step.
    """
    rows = tree.leading_axis(batch)
    if weight is not None:
        weight = jnp.asarray(weight)
        if weight.shape != (rows,):
            raise DataError(
                f"`weight` must have one entry a row of the batch, shape [{rows}], got {list(weight.shape)}"
            )
        weight = weight.astype(jnp.float32)
    if task.axis_name is not None and not manual.is_mapped(_names(task.axis_name)):

        def shard(shared: Any, rows: Any) -> Partial:
            params, model_state, key, step, loss_scale = shared
            return _arrays(
                _shard_gradient(task, params, model_state, rows[0], key, step, rows[1], loss_scale)
            )

        shared = params, model_state, key, step, loss_scale
        return manual.over_rows(shard, _names(task.axis_name), shared, (batch, weight))
    return _shard_gradient(task, params, model_state, batch, key, step, weight, loss_scale)


def _shard_gradient(
    task: Task,
    params: Params,
    model_state: PyTree,
    batch: Batch,
    key: Any,
    step: jax.Array,
    weight: Any,
    loss_scale: jax.Array | None,
) -> Partial:
    rows = tree.leading_axis(batch)
    varying = manual.axes((params, model_state, batch, key, weight))
    if task.axis_name is not None:
        key = jax.random.fold_in(
            key, jax.lax.axis_index(task.axis_name)
        )  # each shard draws its own randomness
        varying |= frozenset(_names(task.axis_name))
    # Each shard's own gradient: of parameters that did not vary, JAX would sum it over the axis by itself.
    params, model_state, key = manual.vary((params, model_state, key), varying)
    if task.microbatches == 1:
        result = partial_gradient(task, params, model_state, batch, key, step, weight, loss_scale)
    else:
        result = _over_microbatches(task, params, model_state, batch, key, step, weight, rows, loss_scale)
    return result if task.axis_name is None else _over_axis(task, result)


def _over_microbatches(
    task: Task,
    params: Params,
    model_state: PyTree,
    batch: Batch,
    key: Any,
    step: Any,
    weight: Any,
    rows: int,
    loss_scale: jax.Array | None,
) -> Partial:
    k = task.microbatches
    padding = -rows % k
    if padding and weight is None:
        ctx = Context(key=key, train=True, step=step, model_state=model_state)
        if jax.eval_shape(lambda b: _call(task, params, b, ctx).values, batch).ndim == 0:
            raise DataError(
                f"`microbatches={k}` does not divide the batch's {rows} rows, and `loss_fn` returns a scalar, in which "
                f"padding cannot be told from examples: return one value per example, or choose a batch that divides"
            )
        weight = jnp.ones(rows, jnp.float32)

    def cut(x: Any) -> Any:
        if np.ndim(x) == 0:
            return x
        if padding:
            x = jnp.concatenate([x, jnp.zeros((padding, *x.shape[1:]), x.dtype)])
        # Row i goes to micro-batch i mod k, so that a batch split over devices stays where it is.
        return jnp.moveaxis(jnp.reshape(x, (-1, k, *x.shape[1:])), 1, 0)

    with_rows = jax.tree.map(lambda x: cut(x) if np.ndim(x) else None, batch)
    without = jax.tree.map(lambda x: None if np.ndim(x) else x, batch)
    weights = None if weight is None else cut(weight)

    def one(model_state: PyTree, index: jax.Array, rows: Any, weight: Any) -> Partial:
        micro = tree.combine(rows, without)
        return partial_gradient(
            task, params, model_state, micro, jax.random.fold_in(key, index), step, weight, loss_scale
        )

    def body(carry: Partial, x: Any) -> tuple[Partial, None]:
        part = spread(one(carry.model_state, *x))
        return _arrays(_add(task, carry, part)), None

    def spread(part: Partial) -> Partial:
        return part._replace(spread=_spread(part)) if task.transform.spreads else part

    known: list[Any] = []

    def shape_of(model_state: PyTree, x: Any) -> Partial:
        part = spread(one(model_state, *x))
        known.append(part.weight)
        return _arrays(part)

    xs = (jnp.arange(k, dtype=jnp.uint32), with_rows, weights)
    shape = jax.eval_shape(shape_of, model_state, jax.tree.map(lambda x: x[0], xs))
    start = Partial(
        grads=tree.zeros_like(shape.grads),
        total=jnp.zeros((), shape.total.dtype),
        weight=jnp.zeros((), jnp.float32),
        metrics=empty_like(task, shape.metrics),
        model_state=model_state,
        spread=tree.zeros_like(shape.spread),
    )
    result, _ = manual.scan(body, start, xs)
    # Equal, unweighted micro-batches: the total is known while tracing, with no zero to guard against.
    return result._replace(weight=known[0] * k) if isinstance(known[0], float) else result


def _spread(part: Partial) -> tuple[jax.Array, jax.Array]:
    """What a micro-batch adds to `spread`: the square of its mean gradient by its weight, and one."""
    weight = jnp.asarray(part.weight, jnp.float32)
    seen = weight > 0
    square = jnp.square(tree.norm(part.grads)).astype(jnp.float32) / jnp.where(seen, weight, jnp.float32(1))
    return jnp.where(seen, square, jnp.float32(0)), seen.astype(jnp.float32)


def _arrays(part: Partial) -> Partial:
    return part._replace(weight=jnp.asarray(part.weight, jnp.float32))


def _add(task: Task, a: Partial, b: Partial) -> Partial:
    return Partial(
        grads=jax.tree.map(jnp.add, a.grads, b.grads),
        total=a.total + b.total,
        weight=a.weight + b.weight,
        metrics=merge(task, a.metrics, b.metrics),
        model_state=b.model_state,
        spread=jax.tree.map(jnp.add, a.spread, b.spread),
    )


def _names(axis_name: str | tuple[str, ...]) -> tuple[str, ...]:
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


def _over_axis(task: Task, part: Partial) -> Partial:
    """Add up the shards' contributions: what each returns is then the whole batch's."""
    names = _names(task.axis_name)  # type: ignore[arg-type]

    def average(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jax.lax.pmean(x, names)
        return jax.lax.pmax(x, names)

    return Partial(
        grads=jax.tree.map(lambda g: jax.lax.psum(g, names), part.grads),
        total=jax.lax.psum(part.total, names),
        weight=jax.lax.psum(part.weight, names),
        metrics=merge_over_axis(task, part.metrics),
        model_state=jax.tree.map(average, part.model_state),
        spread=jax.tree.map(lambda x: jax.lax.psum(x, names), part.spread),
    )


def merge_over_axis(task: Task, metrics: StepMetrics) -> StepMetrics:
    """Merge the shards' accumulators, whatever they are made of, so that each shard has the whole."""
    names = _names(task.axis_name)  # type: ignore[arg-type]
    index, size = jax.lax.axis_index(names), jax.lax.axis_size(names)

    def gather(x: jax.Array) -> jax.Array:
        # Each shard fills its own row and the rows are added: a gather whose result is the same everywhere by
        # type as well as by value. Adding zeros is exact.
        rows = jnp.zeros((size, *x.shape), x.dtype).at[index].set(x)
        return jax.lax.psum(rows, names)

    rows = jax.tree.map(gather, metrics)
    parts = [jax.tree.map(lambda x, i=i: x[i], rows) for i in range(size)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge(task, merged, part)
    return merged


def mean(part: Partial) -> tuple[jax.Array, PyTree]:
    """`(loss, gradient)`: the one division. A total weight of zero is loss 0 and gradient zero."""
    if isinstance(part.weight, float):
        return part.total / part.weight, jax.tree.map(lambda g: g / part.weight, part.grads)
    seen = part.weight > 0
    divisor = jnp.where(seen, part.weight, jnp.float32(1))

    def divide(x: jax.Array) -> jax.Array:
        return jnp.where(seen, x / divisor.astype(x.dtype), jnp.zeros((), x.dtype))

    return divide(part.total), jax.tree.map(divide, part.grads)
