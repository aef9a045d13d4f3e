"""The verbs: train_step, train_steps, eval_step, compute_gradients, flush.

Each verb is a pure function of `(task, state, batch)` with the task static and the state donated, so it can be
called as it is, or nested in a `jit`, `vmap`, `scan` or `shard_map` of the user's own.
"""

from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.check import flag, one_of
from .._core.errors import ConfigError, DataError
from .._core.typing import ArrayLike, Batch, PyTree
from ..sharding import manual
from . import programs
from .checks import check_batch, check_metrics, check_task, refused_batch
from .members import each_of
from .numerical import numerical_gradient
from .packed import Packed
from .programs import (
    eval_into,
    flushed,
    gradient,
    in_order,
    merged,
    step_key,
    train_into,
    train_many_into,
    values_of,
)
from .state import TrainState, check_state, is_traced
from .task import Task


def train_step(
    task: Task, state: TrainState, batch: Batch, weight: ArrayLike | None = None
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
    try:
        return train_into(task, state, None, batch, weight, keep=is_traced(state))
    except Exception:
        # JAX takes no such batch either: a step with one that is fine does not pay for the question.
        refused = refused_batch(batch)
        if refused is None:
            raise
        raise refused from None


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
    return train_many_into(task, state, None, batches, weights, keep=is_traced(state))


def eval_step(task: Task, state: TrainState, batch: Batch, weight: ArrayLike | None = None) -> Packed:
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
    weight: ArrayLike | None = None,
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
            return gradient(task, state, batch, weight)
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
    check_task(task, "(task, state)")
    check_state(state, "flush")
    return flushed(task, state)


def empty_metrics(
    task: Task, state: TrainState, batch: Batch, weight: ArrayLike | None = None, *, train: bool = True
) -> Packed:
    """The metrics of no batch at all: what `merge_metrics` starts from, in a `lax.scan` of your own say.

    The step is traced for it, and nothing is computed.

    Args:
      task: the Task.
      state: a TrainState; it stays usable.
      batch: one such as the steps will take, `[B, …]`; its form counts alone, `jax.ShapeDtypeStruct` does.
      weight: a weight per example, `[B]`, or None.
      train: for the metrics of `train_step`; False is for those of `eval_step`.

    Returns:
      Metrics of the structure that the verb returns, zero.

    Raises:
      As `train_step`.

    Examples:
      >>> import fntrain as ft, jax, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.zeros(())})
      >>> batches = jnp.arange(12.0).reshape(3, 4)
      >>> def body(carry, batch):
      ...     state, metrics = carry
      ...     state, new = ft.train_step(task, state, batch)
      ...     return (state, ft.merge_metrics(task, metrics, new)), None
      >>> start = state, ft.empty_metrics(task, state, batches[0])
      >>> (state, metrics), _ = jax.lax.scan(body, start, batches)
      >>> int(state.step), sorted(ft.compute_metrics(task, metrics))
      (3, ['learning_rate', 'loss'])
    """
    check_task(task)
    check_state(state, "empty_metrics")
    check_batch(batch)
    return programs.empty_metrics(task, state, batch, weight, train=flag("train", train))


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
    check_task(task, "(task, a, b)")
    for name, x in (("a", a), ("b", b)):
        check_metrics(x, name)
    if a.form is not b.form:
        one, other = ([*x.paths().recorded, *x.paths().parts] for x in (a, b))
        raise ConfigError(
            f"`a` and `b` must come from the same verb of the same task: one reports {sorted(one)}, the other "
            f"{sorted(other)}"
        )
    return merged(task, a, b)


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
    check_task(task, "(task, metrics)")
    check_metrics(metrics, "metrics")
    values = in_order(task, values_of(task, metrics))
    return {name: each_of(x) for name, x in values.items()}
