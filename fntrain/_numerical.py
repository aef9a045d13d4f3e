"""Gradients by central differences: the independent check of autodiff."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _check, _gradients, tree
from ._state import TrainState
from ._task import Context, Task
from ._typing import Batch, PyTree


def numerical_gradient(
    task: Task, state: TrainState, batch: Batch, weight: Any, key: Any, epsilon: float, *, together: bool
) -> tuple[jax.Array, PyTree]:
    """`(loss, grads)` by central differences, 64 entries a forward pass if `together`, else one.

    Warns:
      UserWarning: in float32, with the relative size of what round-off leaves at this `epsilon`.
    """
    _check.number("epsilon", epsilon, above=0)
    x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    dtype = jnp.float64 if x64 else jnp.float32
    trained, carried = tree.split(state.params)
    leaves, structure = jax.tree.flatten(trained)
    shapes = [x.shape for x in leaves]
    ends = np.cumsum([int(np.prod(s)) for s in shapes])
    flat = jnp.concatenate([jnp.ravel(x).astype(dtype) for x in leaves])
    if weight is not None:
        weight = jnp.asarray(weight).astype(jnp.float32)

    def widen(x: Any) -> Any:
        return x.astype(dtype) if tree.is_trained(x) else x

    batch = jax.tree.map(widen, jax.tree.map(jnp.asarray, batch))

    def loss(flat: jax.Array) -> jax.Array:
        parts = jnp.split(flat, ends[:-1])
        params = jax.tree.unflatten(structure, [p.reshape(s) for p, s in zip(parts, shapes)])
        ctx = Context(key=key, train=True, step=state.step, model_state=state.model_state)
        result = _gradients.evaluate(task, tree.combine(params, carried), batch, ctx, weight)
        divisor = jnp.asarray(result.weight, jnp.float32)
        safe = jnp.where(divisor > 0, divisor, jnp.float32(1)).astype(result.total.dtype)
        return jnp.where(divisor > 0, result.total / safe, jnp.zeros((), result.total.dtype))

    def difference(i: jax.Array) -> jax.Array:
        step = jnp.zeros_like(flat).at[i].set(jnp.asarray(epsilon, dtype))
        up, down = flat + step, flat - step
        # The distance between the two points as represented, not the one asked for.
        return (loss(up) - loss(down)).astype(dtype) / (up - down)[i]

    size = min(64, flat.size) if together else 1
    value = jax.jit(loss)(flat)
    indices = jnp.arange(flat.size, dtype=jnp.int32)
    slopes = jax.jit(lambda i: jax.lax.map(difference, i, batch_size=size))(indices)
    if not x64:
        left = float(jnp.finfo(jnp.float32).eps) * max(abs(float(value)), 1e-30) / epsilon
        warnings.warn(
            f"numerical gradients in float32: at epsilon={epsilon:g} and loss {float(value):.3g}, round-off alone "
            f"leaves errors of about {left:.1g} in every entry; use a larger epsilon (1e-2, say), or enable float64 "
            f"with jax.config.update('jax_enable_x64', True)",
            UserWarning,
            stacklevel=3,
        )
    parts = jnp.split(slopes, ends[:-1])
    grads = jax.tree.unflatten(structure, [p.reshape(s) for p, s in zip(parts, shapes)])
    return value, tree.cast_like(grads, trained)
