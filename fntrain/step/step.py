"""The verbs: train_step, train_steps, eval_step, compute_gradients, flush. Steps are compiled here and nowhere else.

Each verb is a pure function of `(task, state, batch)` with the task static and the state donated, so it can be
called as it is, or nested in a `jit`, `vmap`, `scan` or `shard_map` of the user's own.
"""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import precision, tree
from .._core.check import one_of
from .._core.errors import ConfigError, DataError
from .._core.typing import Batch, PyTree
from ..sharding import manual
from ..transforms import loss_scale, types as transforms
from . import gradients, reports
from .numerical import numerical_gradient
from .packed import Packed, packed, unpacked
from .reports import StepMetrics
from .state import TrainState, check_state
from .task import Context, Task, fold_in_name


def train_step(
    task: Task, state: TrainState, batch: Batch, weight: jax.Array | None = None
) -> tuple[TrainState, Packed]:
    r"""One step: gradient of the weighted mean loss, transformed, added to the parameters.

    .. math:: g = \nabla_p \frac{\sum_i w_i\, \ell_i(p)}{\sum_i w_i}, \qquad (p, s) \leftarrow T(g, s, p)

    The state is donated: use the one returned. `state.step` advances by one, `state.updates` by one if the
    transform applied an update.

    Args:
      task: the Task.
      state: a TrainState; its arrays are consumed.
      batch: a tree of arrays that share their leading axis, `[B, …]`.
      weight: a weight per example, `[B]`; 0 marks padding, whose rows may hold anything. None is ones.

    Returns:
      `(state, metrics)`; the metrics are accumulators, for `merge_metrics` and `compute_metrics`. Nothing here
      waits for the device.

    Raises:
      ConfigError: if the state was consumed before, or `loss_fn` returns something else than a loss.
      DataError: if leaves disagree on their leading axis, the weight does not fit, or a weight meets a scalar
        loss.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b["x"] * p["w"], b["y"]), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.zeros(())})
      >>> state, metrics = ft.train_step(task, state, {"x": jnp.array([1.0, 2.0]), "y": jnp.array([2.0, 4.0])})
      >>> float(state.params["w"]), float(ft.compute_metrics(task, metrics)["loss"])
      (1.0, 10.0)
    """
    check_task(task)
    check_state(state, "train_step")
    check_batch(batch)
    return train_into(task, state, None, batch, weight)


def train_steps(
    task: Task, state: TrainState, batches: Batch, weights: jax.Array | None = None
) -> tuple[TrainState, Packed]:
    """K steps in one dispatch: a `lax.scan` of `train_step` over a leading axis.

    Args:
      task: the Task.
      state: a TrainState; its arrays are consumed.
      batches: a tree of arrays `[K, B, …]`.
      weights: weights per example, `[K, B]`, or None.

    Returns:
      `(state, metrics)`: the state after K steps, and the metrics of all K, merged.

    Raises:
      As `train_step`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.zeros(())})
      >>> state, metrics = ft.train_steps(task, state, jnp.ones((3, 4)))
      >>> int(state.step)
      3
    """
    check_task(task)
    check_state(state, "train_steps")
    check_batch(batches)
    steps = tree.leading_axis(batches, name="batches")
    if weights is not None and (np.ndim(weights) != 2 or np.shape(weights)[0] != steps):
        raise DataError(f"`weights` must have shape [{steps}, batch], got {list(np.shape(weights))}")
    if steps == 0:
        raise DataError("`batches` must hold at least one batch along their leading axis, got 0")
    return train_many_into(task, state, None, batches, weights)


def eval_step(task: Task, state: TrainState, batch: Batch, weight: jax.Array | None = None) -> Packed:
    """The metrics of a batch, with `ctx.train` False; nothing is changed and nothing donated.

    Args:
      task: the Task.
      state: a TrainState.
      batch: a tree of arrays `[B, …]`.
      weight: a weight per example, `[B]`; 0 marks padding. None is ones.

    Returns:
      Accumulators, for `merge_metrics` and `compute_metrics`.

    Raises:
      As `train_step`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.zeros(())})
      >>> float(ft.compute_metrics(task, ft.eval_step(task, state, jnp.array([1.0, 3.0])))["loss"])
      5.0
    """
    check_task(task)
    check_state(state, "eval_step")
    check_batch(batch)
    return eval_into(task, state, None, batch, weight)


def compute_gradients(
    task: Task,
    state: TrainState,
    batch: Batch,
    weight: jax.Array | None = None,
    *,
    method: str = "autodiff",
    epsilon: float = 1e-5,
) -> tuple[jax.Array, PyTree]:
    r"""The loss of a batch and its gradient, as `train_step` forms them, before any transform.

    Args:
      task: the Task.
      state: a TrainState; it stays usable.
      batch: a tree of arrays `[B, …]`.
      weight: a weight per example, `[B]`, or None.
      method: `"autodiff"`; `"numerical"`, central differences one parameter entry at a time,
        :math:`(L(p + \epsilon) - L(p - \epsilon)) / 2 \epsilon`; or `"numerical_batch"`, the same with many
        entries in one vectorised forward pass.
      epsilon: ε of the differences. They are formed in float64 where JAX has it enabled; in float32 a warning
        says how much round-off leaves of them.

    Returns:
      `(loss, grads)`: the weighted mean, float32, and a tree like `state.params` in its dtypes, with None for
      leaves that are not trained.

    Raises:
      ConfigError: if `method` is unknown or `epsilon` not positive.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.zeros(())})
      >>> loss, grads = ft.compute_gradients(task, state, jnp.array([1.0, 3.0]))
      >>> float(loss), float(grads["w"])
      (5.0, -10.0)
    """
    check_task(task)
    check_state(state, "compute_gradients")
    check_batch(batch)
    one_of("method", method, ("autodiff", "numerical", "numerical_batch"))
    if method == "autodiff":
        with manual.mesh_context(task.axis_name, state.step):
            return _autodiff(task, state, batch, weight)
    return numerical_gradient(
        task, state, batch, weight, step_key(state), epsilon, together=method != "numerical"
    )


def flush(task: Task, state: TrainState) -> TrainState:
    """Close an open accumulation window: apply what `MultiSteps` holds back, divided by its own weight.

    Args:
      task: the Task.
      state: a TrainState; it stays usable.

    Returns:
      The state after that update, `updates` advanced by one; an equal state if no window is open.

    Raises:
      ConfigError: if the window is of optax's own `MultiSteps`, which cannot be closed early.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.MultiSteps(ft.optimizers.sgd(1.0), 4)
      >>> task = ft.Task(lambda p, b, ctx: b * p["w"], tx)
      >>> state = ft.init_state(task, {"w": jnp.zeros(())})
      >>> state, _ = ft.train_step(task, state, jnp.array([2.0]))
      >>> float(state.params["w"]), float(ft.flush(task, state).params["w"])
      (0.0, -2.0)
    """
    check_task(task)
    check_state(state, "flush")
    return _flush(task, state)


def merge_metrics(task: Task, a: Packed, b: Packed) -> Packed:
    """The metrics of two sets of batches from the metrics of each, in any order.

    Args:
      task: the Task that made both.
      a: what `train_step`, `train_steps` or `eval_step` returned.
      b: the same, from other batches.

    Returns:
      Metrics of the same structure.

    Raises:
      ConfigError: if one comes from training and the other from evaluation, or from another task.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: b * p["w"], ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.ones(())})
      >>> a, b = (ft.eval_step(task, state, jnp.array(x)) for x in ([1.0, 2.0], [6.0]))
      >>> float(ft.compute_metrics(task, ft.merge_metrics(task, a, b))["loss"])
      3.0
    """
    check_task(task)
    for name, x in (("a", a), ("b", b)):
        _check_metrics(x, name)
    if a.form is not b.form:
        one, other = ([*x.paths().recorded, *x.paths().parts] for x in (a, b))
        raise ConfigError(
            f"`a` and `b` must come from the same verb of the same task: one reports {sorted(one)}, the other "
            f"{sorted(other)}"
        )
    return _merge(task, a, b)


def compute_metrics(task: Task, metrics: Packed) -> dict[str, Any]:
    """Values from accumulators: the one place where anything is divided.

    Args:
      task: the Task.
      metrics: what a step returned, or `merge_metrics` joined.

    Returns:
      A dict: `"loss"`, the task's metrics by name, the parts of a combined loss as `"loss/<name>"`, and, after
      training steps, what the transforms recorded (`"learning_rate"`, `"grad_norm"`, …): the last step's value,
      except `"skipped"`, a sum, and `"grad_norm_max"`. Arrays on the device; nothing here waits for it.

    Raises:
      ConfigError: if `metrics` is not what a step returns.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: b * p["w"], ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.ones(())})
      >>> float(ft.compute_metrics(task, ft.eval_step(task, state, jnp.array([1.0, 2.0])))["loss"])
      1.5
    """
    check_task(task)
    _check_metrics(metrics, "metrics")
    return in_order(task, _compute(task, metrics))


def in_order(task: Task, values: dict[str, Any]) -> dict[str, Any]:
    """The loss first, then the task's metrics, then the rest: a dict comes out of jit sorted by key."""
    return {name: values[name] for name in [*task.metrics, *(n for n in values if n not in task.metrics)]}


def _check_metrics(metrics: Any, name: str) -> None:
    if not isinstance(metrics, Packed):
        raise ConfigError(f"`{name}` must be the metrics that a step returned, got {type(metrics).__name__}")


def empty_metrics(task: Task, state: TrainState, batch: Batch, weight: Any, *, train: bool) -> Packed:
    """Nothing yet, in the structure that steps on such batches report: what a loop starts to accumulate from."""
    with manual.mesh_context(task.axis_name, state.step):
        return _empty_metrics(task, train, state, batch, weight)


def is_per_example(task: Task, state: TrainState, batch: Batch, *, train: bool) -> bool:
    """Whether the loss gives one value per example, so that padding can be weighed out; else it is a scalar."""
    return len(jax.eval_shape(_values_of(task, train), state, batch).shape) > 0


@lru_cache(maxsize=64)
def _values_of(task: Task, train: bool) -> Any:
    # The same function for the same task: JAX remembers by it what it has traced.
    return lambda state, batch: gradients.values_of(task, state, batch, train)


def train_into(task: Task, state: TrainState, metrics: Packed | None, batch: Batch, weight: Any) -> Any:
    """`train_step`, unchecked, and the merge of its metrics into `metrics` (donated too), in one dispatch."""
    impl, bits = _raw(state.key)
    with manual.mesh_context(task.axis_name, state.step):
        *parts, metrics, step = _train_step(
            task, impl, state.step, *_donated(state), bits, batch, weight, metrics
        )
    return TrainState(step, *parts, key=state.key), metrics


def train_many_into(
    task: Task,
    state: TrainState,
    metrics: Packed | None,
    batches: Batch,
    weights: Any,
    log_every: int = 0,
) -> Any:
    """`train_steps`, likewise.

    With `log_every` also the values of the metrics, packed, `[K, …]`, after the steps whose number it divides; they
    are computed after those steps alone, and the other rows hold nothing.
    """
    impl, bits = _raw(state.key)
    with manual.mesh_context(task.axis_name, state.step):
        *parts, metrics, values, step = _train_steps(
            task, impl, state.step, *_donated(state), bits, batches, weights, metrics, log_every
        )
    state = TrainState(step, *parts, key=state.key)
    return (state, metrics, values) if log_every else (state, metrics)


def eval_into(task: Task, state: TrainState, metrics: Packed | None, batch: Batch, weight: Any) -> Packed:
    """`eval_step`, likewise."""
    impl, bits = _raw(state.key)
    with manual.mesh_context(task.axis_name, state.step):
        return _eval_step(
            task, impl, state.step, state.params, state.model_state, bits, batch, weight, metrics
        )


def _raw(key: jax.Array) -> tuple[Any, jax.Array]:
    """A typed key's implementation and its words.

    jit takes the slow way round for typed keys, as arguments and as results; a step costs twice as much for it.
    The root key never changes, so a step gets the words, and its new state the same key again.
    """
    words = getattr(key, "_base_array", None)  # what key_data reads, without a dispatch
    if words is None:  # a tracer's
        return jax.random.key_impl(key), jax.random.key_data(key)
    impl = _IMPLEMENTATIONS.get(key.dtype)
    if impl is None:
        impl = _IMPLEMENTATIONS[key.dtype] = jax.random.key_impl(key)
    return impl, words


_IMPLEMENTATIONS: dict[Any, Any] = {}  # by the dtype of keys: asked for at every step


@jax.jit
def copied(tree: PyTree) -> PyTree:
    """A copy of every array, with the same shardings: for who wants to keep what a step will consume."""
    return jax.tree.map(jnp.copy, tree)


opened = jax.jit(unpacked)
"""A step's metrics by name, for who stores them."""

closed = jax.jit(packed)
"""The metrics that `opened` gave, as steps take them."""


def check_task(task: Any) -> None:
    """Refuse what is no Task, the usual cause being swapped arguments."""
    if not isinstance(task, Task):
        raise ConfigError(
            f"`task` must be a Task, got {type(task).__name__}; the order is (task, state, batch)"
        )


_NUMBERS: set[type] = set()  # types of leaves found to be fine: looking them up is faster than `isinstance`


def check_batch(batch: Any) -> None:
    """Refuse leaves that cannot be arrays on a device, by path."""
    for i, x in enumerate(jax.tree.leaves(batch)):
        kind = type(x)
        if kind in _NUMBERS or (kind is np.ndarray and x.dtype.kind not in "OUSMm"):
            continue
        if isinstance(x, jax.Array | float | int):
            _NUMBERS.add(kind)
            continue
        path = tree.paths(batch)[i]  # asked for only here: paths cost more than the rest of a dispatch
        if not hasattr(x, "dtype"):
            raise DataError(f"`batch` leaf `{path}` must be an array, got {type(x).__name__}")
        if np.dtype(x.dtype).kind in "OUSMm":
            raise DataError(
                f"`batch` leaf `{path}` has dtype {x.dtype}, which no device takes; encode it as numbers"
            )


def step_key(state: TrainState) -> jax.Array:
    """The key of the batch that comes next: a function of the root key and the step alone."""
    return jax.random.fold_in(state.key, state.step)


def _donated(state: TrainState) -> tuple:
    # All but `step`, four bytes that stay readable, so that a spent state can say which step consumed it, and the
    # key, which the next state has too. Results come in this order too, the step after them: JAX pairs donated
    # buffers with results in order, and a result in front would shift every counter into its neighbour's memory.
    return state.updates, state.params, state.opt_state, state.model_state


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4, 5, 6, 10))
def _train_step(task, impl, step, updates, params, opt_state, model_state, bits, batch, weight, metrics):
    key = jax.random.wrap_key_data(bits, impl=impl)
    state = TrainState(step, updates, params, opt_state, model_state, key)
    state, new = _one_step(task, state, batch, weight)
    return *_donated(state), _joined(task, metrics, new), state.step


def _joined(task: Task, metrics: Packed | None, new: StepMetrics) -> Packed:
    return packed(new if metrics is None else reports.merge(task, unpacked(metrics), new))


@partial(jax.jit, static_argnums=(0, 1, 11), donate_argnums=(3, 4, 5, 6, 10))
def _train_steps(
    task, impl, step, updates, params, opt_state, model_state, bits, batches, weights, metrics, log_every
):
    key = jax.random.wrap_key_data(bits, impl=impl)
    state = TrainState(step, updates, params, opt_state, model_state, key)
    if metrics is None:
        first = jax.tree.map(lambda x: x[0], (batches, weights))
        shapes = jax.eval_shape(lambda s, x: _one_step_metrics(task, s, *x), state, first)
        accumulated = reports.empty_like(task, shapes)
    else:
        accumulated = unpacked(metrics)

    def body(carry, x):
        state, metrics = carry
        state, new = _one_step(task, state, *x)
        metrics = reports.merge(task, metrics, new)
        return (state, metrics), _due_values(task, state.step, metrics, log_every) if log_every else None

    (state, accumulated), values = manual.scan(body, (state, accumulated), (batches, weights))
    return *_donated(state), packed(accumulated), values, state.step


def _due_values(task: Task, step: jax.Array, metrics: StepMetrics, log_every: int) -> Packed:
    shapes = jax.eval_shape(lambda: packed(reports.compute(task, metrics)))
    return jax.lax.cond(
        step % log_every == 0,
        lambda: packed(reports.compute(task, metrics)),
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
    )


@partial(jax.jit, static_argnums=(0, 1))
def _empty_metrics(task, train, state, batch, weight):
    step = _one_step_metrics if train else _eval_step_metrics
    shapes = jax.eval_shape(lambda s, *x: step(task, s, *x), state, batch, weight)
    return packed(reports.empty_like(task, shapes))


def _eval_step_metrics(task: Task, state: TrainState, batch: Batch, weight: Any) -> StepMetrics:
    return unpacked(eval_into(task, state, None, batch, weight))


def _one_step_metrics(task: Task, state: TrainState, batch: Batch, weight: Any) -> StepMetrics:
    return _one_step(task, state, batch, weight)[1]


def _one_step(task: Task, state: TrainState, batch: Batch, weight: Any) -> tuple[TrainState, StepMetrics]:
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
    stochastic = task.policy.stochastic_rounding  # type: ignore[union-attr]
    if (
        stochastic
    ):  # the updates are added in float32, and what holds back or skips changes nothing there either
        kept, trained = trained, jax.tree.map(tree.wide, trained)
    trained, opt_state, applied = task.transform.apply(grads, state.opt_state, trained, **extra)
    if stochastic:
        trained = precision.round_stochastically(trained, kept, fold_in_name(key, "rounding"))
    recorded = transforms.recorded(opt_state)
    new_state = TrainState(
        step=transforms.increment(state.step),
        updates=state.updates + applied.astype(jnp.int32),
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
    return new_state, part.metrics._replace(recorded=reports.record(recorded, state.step))


def _kept_model_state(old: PyTree, part: gradients.Partial, opt_state: PyTree) -> PyTree:
    """The new model state, unless the batch weighed nothing or the step was skipped: those leave no trace."""
    new = part.model_state
    if not transforms.is_positive(part.weight):
        new = tree.where(part.weight > 0, new, old)
    skipped = transforms.skipped(opt_state)
    return new if skipped is None else tree.where(skipped, old, new)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=8)
def _eval_step(task, impl, step, params, model_state, bits, batch, weight, metrics):
    rows = tree.leading_axis(batch)
    if weight is not None:
        weight = jnp.asarray(weight)
        if weight.shape != (rows,):
            raise DataError(
                f"`weight` must have one entry a row of the batch, shape [{rows}], got {list(weight.shape)}"
            )
        weight = weight.astype(jnp.float32)
    key = fold_in_name(jax.random.wrap_key_data(bits, impl=impl), "eval")
    ctx = Context(key=key, train=False, step=step, model_state=model_state)
    new = gradients.evaluate_batch(task, params, batch, ctx, weight)
    return _joined(task, metrics, new)


@partial(jax.jit, static_argnums=0)
def _merge(task, a, b):
    return packed(reports.merge(task, unpacked(a), unpacked(b)))


@partial(jax.jit, static_argnums=0)
def _compute(task, metrics):
    return reports.compute(task, unpacked(metrics))


@partial(jax.jit, static_argnums=0)
def computed(task, metrics):
    """The values of `compute_metrics` as one array, with a leading axis of one, for who fetches them."""
    return jax.tree.map(lambda x: x[None], packed(reports.compute(task, unpacked(metrics))))


@partial(jax.jit, static_argnums=0)
def _autodiff(task, state, batch, weight):
    scale = loss_scale(state.opt_state)
    part = gradients.batch_gradient(
        task, state.params, state.model_state, batch, step_key(state), state.step, weight, scale
    )
    loss, grads = gradients.mean(part)
    return loss, tree.cast_like(grads, tree.split(state.params)[0])


@partial(jax.jit, static_argnums=0)
def _flush(task, state):
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
