"""Dynamic loss scaling: float16 gradients that neither vanish nor overflow."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .._core.typing import PyTree
from .adapt import adapt
from .guard import finite_step, guarded, zero
from .types import Guard, transform


class _DynamicLossScale(NamedTuple):
    loss_scale: jax.Array  # float32, shape (): what the next step multiplies its loss by
    good_steps: jax.Array  # int32, shape (): finite calls since the scale last changed
    skipped: jax.Array  # int32, shape (): 1 if the last call was skipped, else 0
    total_skipped: jax.Array  # int32, shape (): calls skipped so far
    bad: jax.Array  # int32, [2 + 4 * leaves]: what `bad_step` reads
    inner_state: Any


class DynamicLossScaleState(Guard, _DynamicLossScale):
    """The scale, what became of the last call and of all calls, and the inner transform's state."""

    records: ClassVar[tuple[str, ...]] = ("loss_scale", "skipped")


@transform
def dynamic_loss_scale(
    tx: optax.GradientTransformation,
    init: float = 2**15,
    growth: float = 2,
    interval: int = 2000,
    min: float = 1,
    max: float = 2**24,
) -> Any:
    r"""Scale the loss before the backward pass as far up as float16 allows, and skip what overflows.

    .. math:: g = \tfrac{1}{s} \nabla (s L), \qquad
              s \leftarrow \begin{cases} \max(s / \gamma, s_{\min}) & \text{if } g \text{ or } L \text{ is not finite}
              \\ \min(s \gamma, s_{\max}) & \text{after } n \text{ finite steps in a row} \\
              s & \text{otherwise} \end{cases}

    `train_step` finds the scale in the optimizer's state, multiplies what goes into the backward pass by it, and
    divides the float32 gradients by it: everything behind, clipping and accumulation included, sees the gradient
    itself, wherever this transform stands. Powers of two make both exact. A step whose gradient or loss is not
    finite is skipped as by `skip_nonfinite`, which is then not needed: it leaves no trace but the smaller scale
    and the counters, and is no update.

    Around `MultiSteps`, a micro-step that overflows is left out of its window, and the next one has the smaller
    scale; inside it, the window is dropped whole, and the scale follows windows. The scale after the step is
    recorded as `loss_scale`. In a loop without `train_step`, multiply the loss by `loss_scale(opt_state)` and
    divide the gradients, in float32, before `update`.

    Args:
      tx: the inner transform.
      init: the first scale.
      growth: γ, > 1.
      interval: n, finite steps in a row after which the scale grows, >= 1. A batch of weight zero is no step.
      min: the smallest scale, > 0.
      max: the largest.

    Returns:
      A Transform.

    Raises:
      ConfigError: if `tx` is no transform, an argument is out of range, or not `min <= init <= max`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> def loss_fn(params, batch, ctx):  # a gradient of 1e-8, which is 0 in float16
      ...     return batch * params["w"] * jnp.float16(1e-4)
      >>> tx = ft.dynamic_loss_scale(ft.optimizers.sgd(1.0))
      >>> task = ft.Task(loss_fn, tx, policy="fp16")
      >>> state = ft.init_state(task, {"w": jnp.zeros(())})
      >>> state, metrics = ft.train_step(task, state, jnp.array([1e-4]))
      >>> f"{float(state.params['w']):.3g}", float(ft.compute_metrics(task, metrics)["loss_scale"])
      ('-1e-08', 32768.0)

    References:
      Micikevicius et al., *Mixed precision training*, 2018.
    """
    tx = adapt(tx)
    check.number("growth", growth, above=1)
    interval = check.integer("interval", interval, at_least=1)
    check.number("min", min, above=0)
    check.number("max", max, at_least=float(min))
    check.number("init", init, at_least=float(min), at_most=float(max))

    def start():
        scale = jnp.full((), init, jnp.float32)
        return DynamicLossScaleState(scale, zero(), zero(), zero(), zero(), ())

    def judge(updates, state, params, seen, sound, extra):
        del params
        good = sound & finite_step(updates, extra)
        run = jnp.where(good, state.good_steps + seen.astype(jnp.int32), 0)
        grows = run >= interval
        up = jnp.minimum(state.loss_scale * jnp.float32(growth), jnp.float32(max))
        down = jnp.maximum(state.loss_scale / jnp.float32(growth), jnp.float32(min))
        scale = jnp.where(good, jnp.where(grows, up, state.loss_scale), down)
        return good, dict(loss_scale=scale, good_steps=jnp.where(grows, 0, run))

    return guarded(tx, start, judge)


def loss_scale(opt_state: PyTree) -> jax.Array | None:
    """The scale that a `dynamic_loss_scale` anywhere in an optimizer state holds, float32; None if there is none.

    Raises:
      ConfigError: if there are two.
    """
    found = [
        (path, node.loss_scale)
        for path, node in tree.named_nodes(opt_state)
        if isinstance(node, DynamicLossScaleState)
    ]
    if len(found) > 1:
        where = tree.some([path or "the outermost" for path, _ in found])
        raise ConfigError(f"`dynamic_loss_scale` must stand in a transform once, and stands at {where}")
    return found[0][1] if found else None
