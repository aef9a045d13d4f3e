"""Gradients by central differences: the independent check of autodiff."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core import check
from .._core.typing import Batch, PyTree
from . import gradients
from .state import TrainState
from .task import Context, Task


def numerical_gradient(
    task: Task, state: TrainState, batch: Batch, weight: Any, key: Any, epsilon: float, *, together: bool
) -> tuple[jax.Array, PyTree]:
    """`(loss, grads)` by central differences, 64 entries a forward pass if `together`, else one.

    Warns:
      UserWarning: in float32, with the relative size of what round-off leaves at this `epsilon`.
    """
    check.number("epsilon", epsilon, above=0)
    x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    loss, flat = flat_loss(task, state, batch, weight, key, jnp.float64 if x64 else jnp.float32)
    trained, _ = tree.split(state.params)
    value = jax.jit(loss)(flat)
    size = min(64, flat.size) if together else 1
    slopes, _ = differences(loss, flat, jnp.arange(flat.size, dtype=jnp.int32), epsilon, size)
    if not x64:
        left = round_off(value, epsilon)
        warnings.warn(
            f"numerical gradients in float32: at epsilon={epsilon:g} and loss {float(value):.3g}, round-off alone "
            f"leaves errors of about {left:.1g} in every entry; use a larger epsilon (1e-2, say), or enable float64 "
            f"with jax.config.update('jax_enable_x64', True)",
            UserWarning,
            stacklevel=3,
        )
    return value, tree.cast_like(unflattened(slopes, trained), trained)


def flat_loss(
    task: Task, state: TrainState, batch: Batch, weight: Any, key: Any, dtype: Any
) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
    """`(loss, flat)`: the mean loss as a function of all trained entries in one vector, and that vector.

    Parameters and floating-point leaves of the batch are in `dtype`.
    """
    trained, carried = tree.split(state.params)
    flat = jnp.concatenate([jnp.ravel(x).astype(dtype) for x in jax.tree.leaves(trained)])
    if weight is not None:
        weight = jnp.asarray(weight).astype(jnp.float32)

    def widen(x: Any) -> Any:
        return x.astype(dtype) if tree.is_trained(x) else x

    batch = jax.tree.map(widen, jax.tree.map(jnp.asarray, batch))

    def loss(flat: jax.Array) -> jax.Array:
        params = unflattened(flat, trained)
        ctx = Context(key=key, train=True, step=state.step, model_state=state.model_state)
        result = gradients.evaluate(task, tree.combine(params, carried), batch, ctx, weight)
        divisor = jnp.asarray(result.weight, jnp.float32)
        safe = jnp.where(divisor > 0, divisor, jnp.float32(1)).astype(result.total.dtype)
        return jnp.where(divisor > 0, result.total / safe, jnp.zeros((), result.total.dtype))

    return loss, flat


def unflattened(flat: jax.Array, like: PyTree) -> PyTree:
    """A vector of all entries as the leaves of `like`, in the vector's dtype."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([x.size for x in leaves])
    parts = jnp.split(flat, ends[:-1])
    return jax.tree.unflatten(structure, [p.reshape(x.shape) for p, x in zip(parts, leaves)])


def differences(
    loss: Callable[[jax.Array], jax.Array], flat: jax.Array, indices: jax.Array, epsilon: float, size: int
) -> tuple[jax.Array, jax.Array]:
    """Central differences at some entries, `size` of them a forward pass, and how far apart the points were."""

    def difference(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        step = jnp.zeros_like(flat).at[i].set(jnp.asarray(epsilon, flat.dtype))
        up, down = flat + step, flat - step
        # The distance between the two points as represented, not the one asked for.
        apart = (up - down)[i]
        return (loss(up) - loss(down)).astype(flat.dtype) / apart, apart

    return jax.jit(lambda i: jax.lax.map(difference, i, batch_size=size))(indices)


def round_off(value: Any, epsilon: float) -> float:
    """What the rounding of the loss, in its dtype, alone leaves of a difference."""
    return float(jnp.finfo(value.dtype).eps) * max(abs(float(value)), 1e-30) / epsilon
