"""Check a task's gradients: autodiff against central differences, leaf by leaf."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core import check
from .._core.typing import Batch
from ..step import checks, numerical as _numerical, programs
from ..step.state import TrainState, check_state
from ..step.task import Task


@dataclasses.dataclass(frozen=True)
class LeafCheck:
    """One leaf's gradient, both ways.

    Attributes:
      path: the leaf.
      entries: how many of its entries were compared.
      largest: the largest magnitude among them, by autodiff or by differences.
      error: the largest difference between the two.
      verdict: `"right"`, `"wrong"`, or `"unresolved"`, where the difference is no larger than what round-off does.
    """

    path: str
    entries: int
    largest: float
    error: float
    verdict: str


@dataclasses.dataclass(frozen=True)
class GradientCheck:
    """What `check_gradients` found; true if every leaf is right.

    Attributes:
      leaves: one LeafCheck a trained leaf.
      dtype: what the loss was computed in.
      epsilon: the step of the differences.
      round_off: the error that rounding the loss leaves in each difference.
      advice: what to do about the epsilon, or empty.
    """

    leaves: tuple[LeafCheck, ...]
    dtype: str
    epsilon: float
    round_off: float
    advice: str

    @property
    def verdict(self) -> str:
        """`"wrong"` if any leaf is, else `"unresolved"` if any is, else `"right"`."""
        said = {leaf.verdict for leaf in self.leaves}
        return next((word for word in ("wrong", "unresolved") if word in said), "right")

    def __bool__(self) -> bool:
        return self.verdict == "right"

    def __str__(self) -> str:
        width = max(len("leaf"), *(len(leaf.path) for leaf in self.leaves))
        rows = [f"{'leaf':{width}}  entries   largest     error  verdict"]
        for x in self.leaves:
            rows.append(f"{x.path:{width}}  {x.entries:7d}  {x.largest:8.2e}  {x.error:8.2e}  {x.verdict}")
        rows.append(
            f"{self.verdict}: in {self.dtype}, epsilon {self.epsilon:g}, round-off {self.round_off:.1e}"
        )
        return "\n".join([*rows, *([self.advice] if self.advice else [])])


def check_gradients(
    task: Task,
    state: TrainState,
    batch: Batch,
    weight: Any = None,
    *,
    epsilon: float | None = None,
    entries: int = 16,
    tolerance: float | None = None,
    seed: int = 0,
) -> GradientCheck:
    r"""Compare the gradient by autodiff with central differences, at some entries of each leaf.

    .. math:: \frac{\partial L}{\partial p_i} \approx \frac{L(p + \epsilon e_i) - L(p - \epsilon e_i)}{2 \epsilon}

    Both are computed in float64, whatever the dtypes of the state and the task's policy, and whether or not JAX has
    it enabled; a loss that cannot be run in it is checked in float32. A leaf is right if no entry differs by more
    than `tolerance` of the leaf's largest; where a difference is that of round-off, nothing can be said, and the
    advice is a larger epsilon. At a kink (a ReLU at zero) the two differ with reason.

    Args:
      task: the Task.
      state: a TrainState; it stays usable.
      batch: a tree of arrays `[B, …]`; a few rows will do.
      weight: a weight per example, `[B]`, or None.
      epsilon: the step, > 0; None takes 1e-5 in float64, 1e-2 in float32.
      entries: how many entries of each leaf are compared, drawn at random, >= 1; smaller leaves as a whole.
      tolerance: relative to the leaf's largest entry; None takes 1e-5 in float64, 2e-2 in float32.
      seed: of the draw.

    Returns:
      A GradientCheck, which is true if all is right, and prints as a table.

    Raises:
      ConfigError: if an argument is out of range.

    Examples:
      >>> import fntrain as ft, jax, jax.numpy as jnp
      >>> @jax.custom_vjp
      ... def square(x):
      ...     return x * x
      >>> square.defvjp(lambda x: (x * x, x), lambda x, g: (x * g,))  # a factor of two is missing
      >>> task = ft.Task(lambda p, b, ctx: square(b * p["w"]) + p["b"], ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.float32(0.5), "b": jnp.float32(0)})
      >>> check = ft.tools.check_gradients(task, state, jnp.array([1.0, 2.0]))
      >>> bool(check), [(leaf.path, leaf.verdict) for leaf in check.leaves]
      (False, [('b', 'right'), ('w', 'wrong')])
    """
    checks.check_task(task)
    check_state(state, "check_gradients")
    checks.check_batch(batch)
    for name, value in (("epsilon", epsilon), ("tolerance", tolerance)):
        if value is not None:
            check.number(name, value, above=0)
    entries = check.integer("entries", entries, at_least=1)
    plain = Task(task.loss_fn, task.tx)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        try:
            return _checked(plain, state, batch, weight, epsilon, entries, tolerance, seed, jnp.float64)
        except TypeError:  # something in the loss insists on float32
            pass
    return _checked(plain, state, batch, weight, epsilon, entries, tolerance, seed, jnp.float32)


def _checked(
    task: Task,
    state: Any,
    batch: Any,
    weight: Any,
    epsilon: Any,
    entries: int,
    tolerance: Any,
    seed: int,
    dtype: Any,
) -> GradientCheck:
    loss, flat = _numerical.flat_loss(task, state, batch, weight, programs.step_key(state), dtype)
    value, gradient = jax.jit(jax.value_and_grad(loss))(flat)
    # A loss may compute in float32 all the same: its own rounding counts.
    fine = value.dtype == jnp.float64
    epsilon = (1e-5 if fine else 1e-2) if epsilon is None else epsilon
    tolerance = (1e-5 if fine else 2e-2) if tolerance is None else tolerance
    rng = np.random.default_rng(seed)
    chosen, start = [], 0
    leaves = tree.items(tree.split(state.params)[0])
    for _, x in leaves:
        chosen.append(start + np.sort(rng.choice(x.size, min(entries, x.size), replace=False)))
        start += x.size
    indices = jnp.asarray(np.concatenate(chosen), jnp.int32)
    slopes, apart = _numerical.differences(loss, flat, indices, epsilon, min(64, indices.size))
    noise = _numerical.round_off(value, epsilon)
    rows, ends = [], np.cumsum([len(part) for part in chosen])
    by_autodiff, by_differences = np.asarray(gradient[indices], float), np.asarray(slopes, float)
    moved = np.asarray(apart) != 0
    for (path, _), part in zip(leaves, np.split(np.arange(len(indices)), ends[:-1])):
        a, n = by_autodiff[part], by_differences[part]
        largest = float(np.max(np.abs(np.where(np.isfinite([a, n]), [a, n], 0)), initial=0))
        error = float(np.max(np.abs(a - n))) if np.isfinite(a - n).all() else float("inf")
        verdict = "wrong"
        if not moved[part].all() or (error > tolerance * largest and error <= 8 * noise):
            verdict = "unresolved"
        elif error <= tolerance * largest:
            verdict = "right"
        rows.append(LeafCheck(path, len(part), largest, error, verdict))
    advice, name = "", value.dtype.name
    if not moved.all():
        advice = (
            f"epsilon {epsilon:g} is too small for {flat.dtype.name}: it changes nothing when it is added"
        )
    elif any(row.verdict == "unresolved" for row in rows):
        least = min(row.largest for row in rows if row.verdict == "unresolved")
        wanted = epsilon * noise / max(tolerance * least, 1e-30) * 10
        advice = (
            f"epsilon {epsilon:g} is too small for {name}: round-off leaves {noise:.1e} of every difference"
        )
        advice += (
            f"; use about {wanted:.0e}" if wanted < 0.1 else "; these gradients are too small to be checked"
        )
    return GradientCheck(tuple(rows), name, float(epsilon), noise, advice)
