"""The gradient's noise scale, from the micro-batches of a step: how large a batch still pays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .types import Recording, Transform, transform


class _NoiseScale(NamedTuple):
    variance: (
        jax.Array
    )  # float32, shape (): the mean of the trace of an example's covariance, short of 1 by decay^n
    square: jax.Array  # float32, shape (): likewise of the true gradient's squared norm


class NoiseScaleState(Recording, _NoiseScale):
    """Means of what the last steps said; what both are short of, cancels in their ratio."""

    def recorded(self) -> dict[str, jax.Array]:
        """The ratio; infinity where no gradient stands out of the noise."""
        clear = self.square > 0
        ratio = jnp.maximum(self.variance, 0) / jnp.where(clear, self.square, 1)
        return {"noise_scale": jnp.where(clear, ratio, jnp.inf)}


@transform
def record_noise_scale(decay: float = 0.99):
    r"""Record the simple noise scale of the gradient, and let the updates through as they are.

    .. math:: B = \frac{\operatorname{tr} \Sigma}{\lVert G \rVert^2}, \qquad
              \operatorname{tr} \Sigma \approx
              \frac{\sum_i w_i \lVert g_i \rVert^2 - W \lVert g \rVert^2}{k - 1}, \qquad
              \lVert G \rVert^2 \approx \lVert g \rVert^2 - \frac{\operatorname{tr} \Sigma}{W}

    of the gradients :math:`g_i` of the step's k micro-batches with their weights :math:`w_i`, and that of the whole
    batch, :math:`g` with :math:`W`. Both are free of bias, and averaged over steps before they are divided. A batch of
    B examples has as much noise as gradient: below it a larger batch takes about as many steps fewer, above it hardly.

    It takes what the micro-batches gave from the step, wherever it stands in a chain, and costs a norm of each. In
    front of `MultiSteps`, not within.

    Args:
      decay: of the averages over steps, in [0, 1).

    Returns:
      A Transform that records `noise_scale`, in examples (or whatever the loss weighs); infinity where the averages
      have no gradient that stands out of the noise. float32.

    Raises:
      ConfigError: if `decay` is out of range; and from a step, if the task has no micro-batches.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.chain(ft.transforms.record_noise_scale(), ft.optimizers.sgd(0.1))
      >>> task = ft.Task(lambda p, b, ctx: b @ p, tx, microbatches=2)
      >>> state = ft.init_state(task, jnp.zeros(2))
      >>> state, metrics = ft.train_step(task, state, jnp.array([[3.0, 0.0], [1.0, 0.0]]))
      >>> float(ft.compute_metrics(task, metrics)["noise_scale"])  # variance 2 of the mean's square 4 - 1
      0.6666666865348816

    References:
      McCandlish, Kaplan, Amodei, *An empirical model of large-batch training*, 2018.
    """
    check.number("decay", decay, at_least=0, below=1)

    def init_fn(params):
        del params
        zero = jnp.zeros((), jnp.float32)
        return NoiseScaleState(zero, zero)

    def update_fn(updates, state, params=None, *, grad=None, weight=None, spread=None, **extra):
        del params, extra
        if spread is None:
            raise ConfigError(
                "record_noise_scale needs the gradients of micro-batches, and the step has none: `Task(..., "
                "microbatches=k)` with k >= 2"
            )
        weighed, parts = spread
        total = jnp.asarray(1.0 if weight is None else weight, jnp.float32)
        norm = jnp.square(tree.norm(updates if grad is None else grad)).astype(jnp.float32)
        enough = (parts > 1) & (total > 0)
        one = jnp.ones((), jnp.float32)
        total = jnp.where(total > 0, total, one)
        variance = (weighed - total * norm) / jnp.where(enough, parts - 1, one)
        square = norm - variance / total

        def mean(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(enough, decay * old + (1 - decay) * new, old)

        return updates, NoiseScaleState(mean(state.variance, variance), mean(state.square, square))

    return Transform(init_fn, update_fn, rescales=False, descends=False, observes=True, spreads=True)
