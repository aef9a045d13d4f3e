"""The weighted mean, which everything else that averages is made of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from . import exact
from .base import element_weights, masked, metric, ratio, read_output
from .exact import Sum


class MeanState(NamedTuple):
    """Two sums; the division waits for `compute`."""

    total: Sum  # of value times weight
    weight: Sum


@metric
def mean(key: str):
    r"""The weighted mean of an output.

    .. math:: \bar x = \frac{\sum_i w_i x_i}{\sum_i w_i}

    Sums are float32 with compensation, so the mean is right to float32's last digits over any number of
    batches. Nothing seen (total weight zero) is NaN.

    Args:
      key: which output to average; an array whose leading axes the weight shares.

    Returns:
      A Metric whose value is a float32 scalar.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.mean("x")
      >>> acc = m.update(m.empty(), {"x": jnp.array([1.0, 2.0])}, jnp.array([1.0, 3.0]))
      >>> float(m.compute(acc))
      1.75
    """

    def update(acc, outputs, weight=None):
        return fold(acc, read_output(outputs, key, f"mean({key!r})"), weight)

    return empty, update, merge, compute


def empty() -> MeanState:
    """The mean of nothing."""
    return MeanState(exact.empty_sum(), exact.empty_sum())


def fold(acc: MeanState, values: jax.Array, weight: jax.Array | None) -> MeanState:
    """Add an array of values to a mean."""
    w = element_weights(weight, values.shape, "mean")
    total = jnp.sum(masked(values.astype(jnp.float32), w) * w)
    return MeanState(exact.add_to_sum(acc.total, total), exact.add_to_sum(acc.weight, jnp.sum(w)))


def merge(a: MeanState, b: MeanState) -> MeanState:
    """Join two means."""
    return MeanState(exact.merge_sums(a.total, b.total), exact.merge_sums(a.weight, b.weight))


def compute(acc: MeanState) -> jax.Array:
    """The mean, NaN where the total weight is zero."""
    return ratio(exact.read_sum(acc.total), exact.read_sum(acc.weight))
