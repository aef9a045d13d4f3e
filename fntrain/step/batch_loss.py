"""The loss as a metric: the weighted mean of its values, and how many batches it has seen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..metrics import basic, exact
from ..metrics.base import element_weights, masked, metric, read_output


class BatchLossState(NamedTuple):
    """The running mean of the loss, and how many batches it has seen."""

    mean: basic.MeanState
    batches: exact.Count


@metric(better="min")
def batch_loss():
    """The weighted mean of the loss's values: what `Task.metrics["loss"]` is.

    Batches are counted, so that one of total weight zero reads as loss 0, and only nothing at all as NaN.
    """

    def empty():
        return BatchLossState(basic.empty(), exact.empty_count())

    def update(acc, outputs, weight=None):
        values = read_output(outputs, "loss", "the loss").astype(jnp.float32)
        w = element_weights(weight, values.shape, "the loss")
        return add_loss(acc, jnp.sum(masked(values, w) * w), jnp.sum(w))

    def merge(a, b):
        return BatchLossState(basic.merge(a.mean, b.mean), exact.merge_counts(a.batches, b.batches))

    def compute(acc):
        weight = exact.read_sum(acc.mean.weight)
        empty_batches = (weight == 0) & (exact.read_count(acc.batches) > 0)
        return jnp.where(empty_batches, jnp.float32(0), basic.compute(acc.mean))

    return empty, update, merge, compute


def add_loss(acc: BatchLossState, total: jax.Array, weight: Any) -> BatchLossState:
    """One batch's sum of weighted values, and its total weight, into the running mean."""
    mean = basic.MeanState(
        exact.add_to_sum(acc.mean.total, total),
        exact.add_to_sum(acc.mean.weight, jnp.asarray(weight, jnp.float32)),
    )
    return BatchLossState(mean, exact.add_to_count(acc.batches, jnp.ones((), jnp.uint32)))
