"""The compiled programs of the engine: steps are compiled here and nowhere else.

Each takes the task as a static argument and donates the state, and is unchecked: the verbs in `step.step` look at
their arguments first, and the loop at its own once a run.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from .. import precision, tree
from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.typing import Batch, PyTree
from ..sharding import manual, stacks
from ..sharding.place import Layout, layout_of, pinned
from ..transforms import loss_scale, types as transforms
from . import gradients, members, replaced, reports
from .packed import Packed, packed, unpacked
from .picked import apart, gathered, together
from .reports import StepMetrics
from .rootkey import Words
from .state import TrainState, check_optimizer
from .task import Context, Task, fold_in_name


def in_order(task: Task, values: dict[str, Any]) -> dict[str, Any]:
    """The loss first, then the task's metrics, then the rest: a dict comes out of jit sorted by key."""
    return {name: values[name] for name in [*task.metrics, *(n for n in values if n not in task.metrics)]}


def empty_metrics(task: Task, state: TrainState, batch: Batch, weight: Any, *, train: bool) -> Packed:
    """Nothing yet, in the structure that steps on such batches report: what a loop starts to accumulate from.

    The step is traced for it, by the same trace that compiling it takes, and nothing is run.

    Raises:
      ScalarLossError: if there is a weight, and the loss gives one value for the whole batch.
    """
    with _mesh_context(task, state):
        one = partial(one_step if train else _one_evaluation, task)
        shapes = jax.eval_shape(lambda *given: one(*given)[1], state, batch, weight)
    leaves, structure = jax.tree.flatten(shapes)
    return _empty(task, structure, tuple(leaves))()


@lru_cache(maxsize=64)
def _empty(task: Task, structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Any:
    return jax.jit(lambda: packed(reports.empty_like(task, jax.tree.unflatten(structure, leaves))))


def takes_weights(task: Task, state: TrainState, batch: Batch, *, train: bool) -> bool:
    """Whether the loss gives one value per example, so that padding can be weighed out; else it is a scalar."""
    weight = jax.ShapeDtypeStruct((tree.leading_axis(batch),), jnp.float32)
    with _mesh_context(task, state):
        one = partial(one_step if train else _one_evaluation, task)
        try:
            jax.eval_shape(one, state, batch, weight)
        except gradients.ScalarLossError:
            return False
    return True


def train_into(
    task: Task, state: TrainState, metrics: Packed | None, batch: Batch, weight: Any, *, keep: bool = False
) -> Any:
    """`train_step`, unchecked, and the merge of its metrics into `metrics` (donated too), in one dispatch.

    With `keep` nothing is donated, as where the state is being differentiated: behind its tracers are the caller's
    own arrays.
    """
    impl, bits = words = _words(state)
    layout = _layout(state)
    run = _kept_step if keep else _train_step
    given = (
        *(task, impl, layout, state.step, state.updates, state.params, state.opt_state, state.model_state),
        *(bits, batch, weight, metrics),
    )
    if task.axis_name is None and not state.step.shape:  # what `_mesh_context` finds in most steps
        *parts, metrics, step = run(*given)
    else:
        with _mesh_context(task, state):
            *parts, metrics, step = run(*given)
    return _of_parts(step, parts, words, layout), metrics


def peak_bytes(task: Task, state: TrainState, metrics: Packed | None, batch: Batch, weight: Any) -> int:
    """The memory of `train_into` on a device, as its compiled program says it; the step is compiled, and not run."""
    impl, bits = _words(state)
    layout = _layout(state)
    with _mesh_context(task, state):
        given = task, impl, layout, state.step, *_donated(state), bits, batch, weight, metrics
        memory: Any = _train_step.lower(*given).compile().memory_analysis()
    inside = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + inside


def train_many_into(
    task: Task,
    state: TrainState,
    metrics: Packed | None,
    batches: Batch,
    weights: Any,
    log_every: int = 0,
    *,
    keep: bool = False,
) -> Any:
    """`train_steps`, likewise.

    With `log_every` also the values of the metrics, packed, after the steps whose number it divides, a row for each in
    order; a row more may follow, of steps that are not due yet.
    """
    impl, bits = _words(state)
    layout = _layout(state)
    with _mesh_context(task, state):
        *parts, metrics, values, step = (_kept_steps if keep else _train_steps)(
            task, impl, layout, state.step, *_donated(state), bits, batches, weights, metrics, log_every
        )
    state = _of_parts(step, parts, Words(impl, bits), layout)
    return (state, metrics, values) if log_every else (state, metrics)


def eval_into(task: Task, state: TrainState, metrics: Packed | None, batch: Batch, weight: Any) -> Packed:
    """`eval_step`, likewise."""
    impl, bits = _words(state)
    with _mesh_context(task, state):
        if replaced.evaluates_itself(task):
            return _own_eval_step(task, state, batch, weight, metrics)
        return _eval_step(
            task, impl, state.step, state.params, state.model_state, bits, batch, weight, metrics
        )


def outputs_of(task: Task, state: TrainState, batch: Batch, weight: Any) -> PyTree:
    """What a task predicts for a batch: of its `predict_fn`, or the outputs of its loss."""
    impl, bits = _words(state)
    with _mesh_context(task, state):
        return _outputs(task, impl, state.step, state.params, state.model_state, bits, batch, weight)


def _of_parts(step: jax.Array, parts: list[Any], key: Words, layout: Layout | None) -> TrainState:
    state = TrainState.tree_unflatten(
        key.impl, (step, *parts, key.words)
    )  # half as long as its constructor takes
    if layout is not None:  # it was pinned there, so the next step need not ask
        object.__setattr__(state, "_layout", layout)
    return state


def _layout(state: TrainState) -> Layout | None:
    """Where a state's arrays lie, so that a step gives them back there: nothing, on one device.

    Left to the compiler, a bias that the rules keep whole comes back split, and the next step compiles anew.
    """
    if not (
        check.is_concrete(state.step) and isinstance(getattr(state.step, "sharding", None), NamedSharding)
    ):
        return None
    return state.__dict__.get("_layout") or layout_of((*_donated(state), state.step))


def _words(state: TrainState) -> Words:
    """The kind of a state's key and its words.

    jit takes the slow way round for typed keys, as arguments and as results; a step costs twice as much for it.
    The root key never changes, so a step gets the words, and its new state the same words again.
    """
    return state.__dict__["_words"]


@jax.jit
def copied(tree: PyTree) -> PyTree:
    """A copy of every array, with the same shardings: for who wants to keep what a step will consume."""
    return jax.tree.map(jnp.copy, tree)


picked: Callable[..., Any] = jax.jit(gathered)
"""The arrays of a batch that a step would gather itself, for who wants to see them."""

opened: Callable[..., Any] = jax.jit(unpacked)
"""A step's metrics by name, for who stores them."""

closed: Callable[..., Any] = jax.jit(packed)
"""The metrics that `opened` gave, as steps take them."""


def step_key(state: TrainState) -> jax.Array:
    """The key of the batch that comes next: a function of the root key and the step alone."""
    return jax.random.fold_in(state.key, state.step)


def _donated(state: TrainState) -> tuple[Any, ...]:
    # All but `step`, four bytes that stay readable, so that a spent state can say which step consumed it, and the
    # key, which the next state has too. Results come in this order too, the step after them: JAX pairs donated
    # buffers with results in order, and a result in front would shift every counter into its neighbour's memory.
    return state.updates, state.params, state.opt_state, state.model_state


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4, 5, 6, 7, 11))
def _train_step(
    task, impl, layout, step, updates, params, opt_state, model_state, bits, batch, weight, metrics
):
    key = jax.random.wrap_key_data(bits, impl=impl)
    state = TrainState(step, updates, params, opt_state, model_state, key)
    with stacks.context(layout):
        state, new = one_step(task, state, gathered(batch), weight)
    *parts, step = pinned((*_donated(state), state.step), layout)
    return *parts, _joined(task, metrics, new), step


def _joined(task: Task, metrics: Packed | None, new: StepMetrics) -> Packed:
    with jax.named_scope(gradients.METRICS):
        return _whole(packed(new if metrics is None else reports.merge(task, unpacked(metrics), new)))


def _mesh_context(task: Task, state: TrainState) -> AbstractContextManager[Any]:
    """The mesh in context, where a task names its axes, or members are split over it."""
    of_members = None if members.count(state) is None else members.AXIS
    return manual.mesh_context(task.axis_name or of_members, state.step)


def _whole(metrics: Packed) -> Packed:
    """Accumulators of members that are split over a mesh, whole on each device, as those are that a run begins with.

    Wherever else the compiler leaves them, the second step would be compiled anew.
    """
    if members.AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return metrics
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), metrics)


@partial(jax.jit, static_argnums=(0, 1, 2, 12), donate_argnums=(4, 5, 6, 7, 11))
def _train_steps(
    task,
    impl,
    layout,
    step,
    updates,
    params,
    opt_state,
    model_state,
    bits,
    batches,
    weights,
    metrics,
    log_every,
):
    key = jax.random.wrap_key_data(bits, impl=impl)
    state = TrainState(step, updates, params, opt_state, model_state, key)
    shared, batches = apart(batches)
    if metrics is None:
        first = jax.tree.map(lambda x: x[0], (batches, weights))
        shapes = jax.eval_shape(lambda s, x: one_step(task, s, together(shared, x[0]), x[1])[1], state, first)
        metrics = packed(reports.empty_like(task, shapes))

    before = members.first(step)
    logs = _logs_for(metrics, len(jax.tree.leaves(batches)[0]), log_every)

    def body(carry, x):
        (*parts, step), metrics, logs = carry
        batch, weight = together(shared, x[0]), x[1]
        with stacks.context(layout):
            state, new = one_step(task, TrainState(step, *parts, key=key), batch, weight)
        # Packed from one step to the next as well: what is a kernel for two arrays would be one for every sum.
        metrics = _joined(task, metrics, new)
        if log_every:
            at = (members.first(state.step) - 1) // log_every - before // log_every
            logs = jax.tree.map(
                lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, at, 0), logs, metrics
            )
        parts = pinned((*_donated(state), state.step), layout)
        return (parts, metrics, logs), None

    start = (*_donated(state), state.step)
    ((*parts, step), metrics, logs), _ = manual.scan(body, (start, metrics, logs), (batches, weights))
    values = jax.vmap(lambda x: packed(reports.compute(task, unpacked(x))))(logs) if log_every else None
    return *parts, metrics, values, step


def _logs_for(metrics: Packed, steps: int, log_every: int) -> Packed | None:
    """Room for the accumulators of each log of so many steps.

    Every step writes into the room of the next log, so the step that is due has the last word there. A branch would
    write once, and on an accelerator wait for the host to take it.
    """
    if not log_every:
        return None
    most = -(-(steps - 1) // log_every) + 1
    return jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), metrics)


_kept_step = jax.jit(_train_step.__wrapped__, static_argnums=(0, 1, 2))  # type: ignore[attr-defined]
_kept_steps = jax.jit(_train_steps.__wrapped__, static_argnums=(0, 1, 2, 12))  # type: ignore[attr-defined]


# Traced once for a task and a form of state and batch, whoever asks: single steps, chunks, and what they report.
@partial(jax.jit, static_argnums=0, inline=True)
@members.over_members
def one_step(task: Task, state: TrainState, batch: Batch, weight: Any) -> tuple[TrainState, StepMetrics]:
    """The state after a step, and what it reports: what all programs that train are made of."""
    check_optimizer(task, state)
    if replaced.trains_itself(task):
        return replaced.trained(task, state, batch, weight)
    key = step_key(state)
    scale = loss_scale(state.opt_state)
    part = gradients.batch_gradient(
        task, state.params, state.model_state, batch, key, state.step, weight, scale
    )
    loss, grads = gradients.mean(part)
    trained, carried = tree.split(state.params)

    def value_and_grad_fn(trained: PyTree) -> tuple[jax.Array, PyTree]:
        """Loss and gradient of this batch, with this step's randomness, at other parameters."""
        params = tree.combine(tree.cast_like(trained, tree.split(state.params)[0]), carried)
        again = gradients.batch_gradient(
            task, params, state.model_state, batch, key, state.step, weight, scale
        )
        return gradients.mean(again)

    extra = dict(
        value=loss, grad=grads, weight=part.weight, step=state.step, value_and_grad_fn=value_and_grad_fn
    )
    if part.spread is not None:
        extra["spread"] = part.spread
    stochastic = task.policy.stochastic_rounding  # type: ignore[union-attr]
    if stochastic:
        # The updates are added in float32, and what holds back or skips changes nothing there either.
        kept, trained = trained, jax.tree.map(tree.wide, trained)
    with jax.named_scope(gradients.OPTIMIZER):
        trained, opt_state, applied = task.transform.apply(grads, state.opt_state, trained, **extra)
    if stochastic:
        trained = precision.round_stochastically(trained, kept, fold_in_name(key, "rounding"))
    recorded = transforms.recorded(opt_state)
    new_state = TrainState(
        step=transforms.increment(state.step),
        updates=jnp.where(applied, transforms.increment(state.updates), state.updates),
        params=tree.combine(trained, carried),
        opt_state=opt_state,
        model_state=_kept_model_state(state.model_state, part, opt_state),
        key=state.key,
    )
    difference = tree.aval_difference(state, new_state)
    if difference:
        raise ConfigError(
            f"the state changes its type in a step, which would recompile it every time: {difference}. "
            f"`{task.tx!r}` does not return the state it was given the types of"
        )
    return new_state, part.metrics._replace(recorded=reports.record(task, recorded, state.step))


def _kept_model_state(old: PyTree, part: gradients.Partial, opt_state: PyTree) -> PyTree:
    """The new model state, unless the batch weighed nothing or the step was skipped: those leave no trace."""
    new = part.model_state
    if not transforms.is_positive(part.weight):
        new = tree.where(part.weight > 0, new, old)
    skipped = transforms.skipped(opt_state)
    return new if skipped is None else tree.where(skipped, old, new)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=8)
def _eval_step(task, impl, step, params, model_state, bits, batch, weight, metrics):
    state = _read_only(impl, step, params, model_state, bits)
    return _joined(task, metrics, _evaluation(task, state, gathered(batch), weight))


def _read_only(impl: Any, step: Any, params: Any, model_state: Any, bits: Any) -> TrainState:
    """The state of what does not train: without an optimizer's, which would cross the border for nothing."""
    return TrainState(step, step, params, None, model_state, jax.random.wrap_key_data(bits, impl=impl))


# It is given the whole state, the optimizer's too, which may hold an average.
@partial(jax.jit, static_argnums=0, donate_argnums=4)
def _own_eval_step(task, state, batch, weight, metrics):
    return _joined(task, metrics, replaced.evaluated(task, state, gathered(batch), weight))


def _one_evaluation(task: Task, state: TrainState, batch: Batch, weight: Any) -> tuple[None, StepMetrics]:
    if replaced.evaluates_itself(task):
        return None, replaced.evaluated(task, state, batch, weight)
    # In the form that `_eval_step` has, so that one trace serves both.
    state = dataclasses.replace(state, updates=state.step, opt_state=None)
    return None, _evaluation(task, state, batch, weight)


@partial(jax.jit, static_argnums=0, inline=True)
@members.over_members
def _evaluation(task, state, batch, weight):
    rows = tree.leading_axis(batch)
    if weight is not None:
        weight = jnp.asarray(weight)
        if weight.shape != (rows,):
            raise DataError(
                f"`weight` must have one entry a row of the batch, shape [{rows}], got {list(weight.shape)}"
            )
        weight = weight.astype(jnp.float32)
    key = fold_in_name(state.key, "eval")
    ctx = Context(key=key, train=False, step=state.step, model_state=state.model_state)
    return gradients.evaluate_batch(task, state.params, batch, ctx, weight)


@partial(jax.jit, static_argnums=(0, 1))
def _outputs(task, impl, step, params, model_state, bits, batch, weight):
    return _outputs_of(task, _read_only(impl, step, params, model_state, bits), batch, weight)


@partial(members.over_members, out=1)  # rows first
def _outputs_of(task, state, batch, weight):
    ctx = Context(fold_in_name(state.key, "eval"), False, state.step, state.model_state, weight)
    return gradients.outputs(task, state.params, batch, ctx)


@partial(jax.jit, static_argnums=0)
def merged(task, a, b):
    """`merge_metrics`."""
    return packed(reports.merge(task, unpacked(a), unpacked(b)))


@partial(jax.jit, static_argnums=0)
def values_of(task, metrics):
    """`compute_metrics`; of a population each value is a Spread."""
    return reports.compute(task, unpacked(metrics))


def reported(task: Task, metrics: Packed) -> dict[str, Any]:
    """`compute_metrics` for a loop's rows: of a population each value is a Spread."""
    return in_order(task, values_of(task, metrics))


def started(empty: Packed, state: TrainState) -> Packed:
    """A copy of empty accumulators, for as many members as the state has: some may have left a population."""
    number = members.count(state)
    return copied(empty) if number is None else _first_members(empty, number)


@partial(jax.jit, static_argnums=1)
def _first_members(metrics: Packed, number: int) -> Packed:
    return packed(jax.tree.map(lambda x: jnp.copy(x[:number]), unpacked(metrics)))


@partial(jax.jit, static_argnums=0)
def computed(task, metrics):
    """The values of `compute_metrics` as one array, with a leading axis of one, for who fetches them."""
    return jax.tree.map(lambda x: x[None], packed(reports.compute(task, unpacked(metrics))))


@partial(jax.jit, static_argnums=0)
@members.over_members
def gradient(task, state, batch, weight):
    """`compute_gradients`, by autodiff."""
    scale = loss_scale(state.opt_state)
    part = gradients.batch_gradient(
        task, state.params, state.model_state, batch, step_key(state), state.step, weight, scale
    )
    loss, grads = gradients.mean(part)
    return loss, tree.cast_like(grads, tree.split(state.params)[0])


@partial(jax.jit, static_argnums=0)
@members.over_members
def flushed(task, state):
    """`flush`."""
    check_optimizer(task, state)
    if not task.transform.holds_back:
        return state
    open_ = transforms.holds_gradients(state.opt_state)
    trained, carried = tree.split(state.params)
    updates, opt_state = task.transform.flush(state.opt_state, trained)
    trained = tree.where(open_, tree.add(trained, updates), trained)
    return state.replace(
        updates=state.updates + open_.astype(jnp.int32),
        params=tree.combine(trained, carried),
        opt_state=opt_state,
    )
