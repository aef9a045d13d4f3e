"""Perplexity: the exponential of the mean cross-entropy."""

import jax
import jax.numpy as jnp

from .._core.errors import DataError
from . import basic
from .base import metric
from .labels import scores_and_labels


@metric(better="min")
def perplexity(logits: str = "logits", labels: str = "labels"):
    r"""The exponential of the mean cross-entropy: among how many equal guesses the model hesitates.

    .. math:: \exp\left(-\frac{\sum_i w_i \log p_{i y_i}}{\sum_i w_i}\right)

    Args:
      logits: the key of the logits, `[…, C]`.
      labels: the key of the integer labels, `[…]`. A label that is no class gives NaN.

    Returns:
      A Metric whose value is a float32 scalar.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.perplexity()
      >>> acc = m.update(m.empty(), {"logits": jnp.zeros((2, 8)), "labels": jnp.array([3, 5])})
      >>> round(float(m.compute(acc)), 4)
      8.0
    """

    def update(acc, outputs, weight=None):
        z, y = scores_and_labels(outputs, logits, labels, "perplexity")
        if z.ndim == y.ndim:
            raise DataError(
                f"perplexity needs logits for all classes in {logits!r}, got {z.dtype.name}{list(z.shape)}"
            )
        known = (y >= 0) & (y < z.shape[-1])
        logp = jax.nn.log_softmax(z.astype(jnp.float32))
        own = jnp.take_along_axis(logp, jnp.where(known, y, 0)[..., None], axis=-1)[..., 0]
        return basic.fold(acc, jnp.where(known, -own, jnp.nan), weight)

    def compute(acc):
        return jnp.exp(basic.compute(acc))

    return basic.empty, update, basic.merge, compute
