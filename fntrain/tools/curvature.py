"""curvature: the extreme eigenvalues of the loss's Hessian, and what they say of a learning rate."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .. import tree
from .._core import check
from .._core.typing import Batch
from ..step import checks, gradients, programs
from ..step.state import TrainState, check_state
from ..step.task import Task


@dataclasses.dataclass(frozen=True)
class Curvature:
    """The curvature of a loss at some parameters.

    Attributes:
      sharpness: the largest eigenvalue of the Hessian.
      lowest: the smallest one found; below zero in a direction in which the loss bends down.
      eigenvalues: Ritz values, from the largest to the smallest: the outermost are the Hessian's.
      error: how far the sharpness may be off: the norm of the residual of its eigenvector.
      direction: that eigenvector, as the trained parameters are, of norm 1; None in place of the others.
    """

    sharpness: float
    lowest: float
    eigenvalues: np.ndarray
    error: float
    direction: Any

    @property
    def largest_rate(self) -> float:
        """Plain gradient descent diverges along `direction` beyond this rate, 2 / sharpness."""
        return 2 / self.sharpness if self.sharpness > 0 else float("inf")

    def __str__(self) -> str:
        rate = f"gradient descent diverges above a rate of {self.largest_rate:.3g}"
        return f"sharpness {self.sharpness:.4g} ± {self.error:.1g}, lowest {self.lowest:.4g}; {rate}"


def curvature(
    task: Task,
    state: TrainState,
    batch: Batch,
    weight: Any = None,
    *,
    iterations: int = 20,
    seed: int = 0,
) -> Curvature:
    r"""The extreme eigenvalues of the Hessian of a batch's mean loss, by Lanczos iteration.

    .. math:: H = \nabla^2_p \frac{\sum_i w_i\, \ell_i(p)}{\sum_i w_i}, \qquad H v = \nabla_p (g^\top v)

    The loss is that of the step to come, with its randomness; nothing is updated. An iteration costs about two
    gradients, and a vector of the parameters' size is kept of each; every vector is made orthogonal to all before
    it, twice, so that no eigenvalue is found again. On a quadratic with m distinct eigenvalues m iterations are exact.

    Args:
      task: the Task.
      state: a TrainState; it stays usable.
      batch: a tree of arrays `[B, …]`.
      weight: a weight per example, `[B]`, or None.
      iterations: at most so many, >= 1; the iteration ends before, where there is nothing left to find.
      seed: of the vector that it begins with.

    Returns:
      A Curvature; `print` it for a line.

    Raises:
      ConfigError: if `iterations` is out of range, or the state was consumed.
      DataError: as `train_step`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> def loss_fn(p, b, ctx):
      ...     return 0.5 * b @ jnp.square(p["w"])
      >>> task = ft.Task(loss_fn, ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.ones(3)})
      >>> found = ft.tools.curvature(task, state, jnp.array([[1.0, 2.0, 5.0]]))
      >>> [round(float(x), 4) for x in found.eigenvalues], round(found.largest_rate, 4)
      ([5.0, 2.0, 1.0], 0.4)

    References:
      Cohen et al., *Gradient descent on neural networks typically occurs at the edge of stability*, 2021.
    """
    checks.check_task(task)
    check_state(state, "curvature")
    checks.check_batch(batch)
    check.integer("iterations", iterations, at_least=1)
    flat, unflatten = ravel_pytree(_wide(tree.split(state.params)[0]))
    at = state, batch, weight
    vector = jax.random.normal(jax.random.key(seed), flat.shape, flat.dtype)
    vector = vector / jnp.linalg.norm(vector)
    most = min(iterations, flat.size)
    basis = jnp.zeros((most, flat.size), flat.dtype)  # of one shape, so that an iteration compiles nothing
    diagonal: list[float] = []
    beside: list[float] = []
    for i in range(most):
        basis = basis.at[i].set(vector)
        image = _product(task, *at, vector)
        diagonal.append(float(vector @ image))
        rest = _orthogonal(image, basis)
        beside.append(float(jnp.linalg.norm(rest)))
        if not beside[-1] > 1e-6 * max(abs(x) for x in [*diagonal, *beside[:-1], 1e-30]):
            break
        vector = rest / beside[-1]
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1))
    direction = unflatten(jnp.asarray(vectors[:, -1], flat.dtype) @ basis[: len(values)])
    error = abs(beside[-1] * vectors[-1, -1])
    return Curvature(float(values[-1]), float(values[0]), values[::-1], float(error), direction)


def _wide(trained: Any) -> Any:
    return jax.tree.map(tree.wide, trained)


@partial(jax.jit, static_argnums=0)
def _product(task: Task, state: TrainState, batch: Batch, weight: Any, vector: jax.Array) -> jax.Array:
    """The Hessian times a vector, both flat."""
    trained, carried = tree.split(state.params)
    flat, unflatten = ravel_pytree(_wide(trained))
    key = programs.step_key(state)

    def gradient(flat: jax.Array) -> jax.Array:
        params = tree.combine(tree.cast_like(unflatten(flat), trained), carried)
        part = gradients.batch_gradient(task, params, state.model_state, batch, key, state.step, weight)
        return ravel_pytree(_wide(gradients.mean(part)[1]))[0]

    return jax.jvp(gradient, (flat,), (vector,))[1]


@jax.jit
def _orthogonal(vector: jax.Array, basis: jax.Array) -> jax.Array:
    """What of a vector is orthogonal to all of a basis; twice is enough."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector
