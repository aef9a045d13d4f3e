"""Regression: errors, and the share of the variance that they leave."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._core.errors import DataError
from .._core.typing import Outputs
from . import basic, exact
from .base import element_weights, masked, metric, read_output, reading
from .exact import Count, Sum


@metric(better="min")
def mse(predictions: str = "predictions", targets: str = "targets"):
    r"""Mean squared error over all elements.

    .. math:: \frac{\sum_i w_i (\hat y_i - y_i)^2}{\sum_i w_i}

    Args:
      predictions: the key of the predictions, `[…]`.
      targets: the key of the targets, of the same shape.

    Returns:
      A Metric whose value is a float32 scalar.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.mse()
      >>> outputs = {"predictions": jnp.array([1.0, 4.0]), "targets": jnp.array([0.0, 1.0])}
      >>> float(m.compute(m.update(m.empty(), outputs)))
      5.0
    """
    return reading(_squared_errors(predictions, targets), basic.compute)


@metric(better="min")
def rmse(predictions: str = "predictions", targets: str = "targets"):
    r"""Root of the mean squared error over all elements, in the units of the targets.

    .. math:: \sqrt{\frac{\sum_i w_i (\hat y_i - y_i)^2}{\sum_i w_i}}

    Args:
      predictions: the key of the predictions, `[…]`.
      targets: the key of the targets, of the same shape.

    Returns:
      A Metric whose value is a float32 scalar.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.rmse()
      >>> outputs = {"predictions": jnp.array([3.0, 4.0]), "targets": jnp.array([0.0, 0.0])}
      >>> round(float(m.compute(m.update(m.empty(), outputs))), 4)
      3.5355
    """
    return reading(_squared_errors(predictions, targets), lambda acc: jnp.sqrt(basic.compute(acc)))


@metric(better="min")
def mae(predictions: str = "predictions", targets: str = "targets"):
    r"""Mean absolute error over all elements.

    .. math:: \frac{\sum_i w_i |\hat y_i - y_i|}{\sum_i w_i}

    Args:
      predictions: the key of the predictions, `[…]`.
      targets: the key of the targets, of the same shape.

    Returns:
      A Metric whose value is a float32 scalar.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.mae()
      >>> outputs = {"predictions": jnp.array([1.0, 4.0]), "targets": jnp.array([0.0, 1.0])}
      >>> float(m.compute(m.update(m.empty(), outputs)))
      2.0
    """

    def update(acc, outputs, weight=None):
        p, y = _read(outputs, predictions, targets, "mae")
        return basic.fold(acc, jnp.abs(p - y), weight)

    return basic.empty, update, basic.merge, basic.compute


@metric
def _squared_errors(predictions: str, targets: str):
    def update(acc, outputs, weight=None):
        p, y = _read(outputs, predictions, targets, "mse")
        return basic.fold(acc, jnp.square(p - y), weight)

    return basic.empty, update, basic.merge, basic.compute


class R2State(NamedTuple):
    """Residuals, and the targets' mean and spread about it, all weighted."""

    residual: Sum  # sum of squared errors
    spread: Sum  # sum of squared deviations from the mean
    mean: Sum  # in two words: a mean near 1e4 keeps its last digits
    weight: Sum
    count: Count


@metric(better="max")
def r2(predictions: str = "predictions", targets: str = "targets"):
    r"""The coefficient of determination, over all elements as one sample.

    .. math:: R^2 = 1 - \frac{\sum_i w_i (y_i - \hat y_i)^2}{\sum_i w_i (y_i - \bar y)^2}

    The spread about the mean is formed from deviations and merged by Chan's formula, never as a difference of
    large sums, so labels far from zero cost no digits. Constant targets give 1 if every prediction is exact,
    else 0, as in scikit-learn; less than two elements give NaN.

    Args:
      predictions: the key of the predictions, `[…]`.
      targets: the key of the targets, of the same shape.

    Returns:
      A Metric whose value is a float32 scalar.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.r2()
      >>> outputs = {"predictions": jnp.array([1.0, 2.0, 4.0]), "targets": jnp.array([1.0, 2.0, 3.0])}
      >>> float(m.compute(m.update(m.empty(), outputs)))
      0.5

    References:
      Chan, Golub, LeVeque, *Updating Formulae and a Pairwise Algorithm for Computing Sample Variances*, 1979.
    """

    def empty():
        # Arrays of their own each, so that they can be donated.
        residual, spread, mean, weight = (exact.empty_sum() for _ in range(4))
        return R2State(residual, spread, mean, weight, exact.empty_count())

    def update(acc, outputs, weight=None):
        p, y = _read(outputs, predictions, targets, "r2")
        return merge(acc, _moments(p, y, element_weights(weight, y.shape, "r2")))

    def merge(a, b):
        weight = exact.merge_sums(a.weight, b.weight)
        wa, wb, w = (exact.read_sum(x) for x in (a.weight, b.weight, weight))
        part = wb / jnp.where(w == 0, 1, w)
        # Means are two words each, so that their difference is exact where they are close.
        delta = (b.mean.value - a.mean.value) + (b.mean.error - a.mean.error)
        between = jnp.square(delta) * wa * part
        # From the heavier mean: with an empty accumulator it is then the other's, to the bit.
        step = jnp.where(wb > wa, -delta * (wa / jnp.where(w == 0, 1, w)), delta * part)
        start = jax.tree.map(lambda x, y: jnp.where(wb > wa, y, x), a.mean, b.mean)
        return R2State(
            residual=exact.merge_sums(a.residual, b.residual),
            spread=exact.add_to_sum(exact.merge_sums(a.spread, b.spread), between),
            mean=exact.add_to_sum(start, step),
            weight=weight,
            count=exact.merge_counts(a.count, b.count),
        )

    def compute(acc):
        residual, spread = exact.read_sum(acc.residual), exact.read_sum(acc.spread)
        constant = jnp.where(residual == 0, jnp.float32(1), jnp.float32(0))
        value = jnp.where(spread == 0, constant, 1 - residual / jnp.where(spread == 0, 1, spread))
        return jnp.where(exact.read_count(acc.count) >= 2, value, jnp.nan)

    return empty, update, merge, compute


def _moments(p: jax.Array, y: jax.Array, w: jax.Array) -> R2State:
    """One batch's sums, about a mean of its own."""
    kept = w != 0
    weight = jnp.sum(w)
    by = jnp.where(weight == 0, 1, weight)
    rough = jnp.sum(masked(y, w) * w) / by
    # Within the range of the targets, so that constant ones deviate by exactly nothing.
    lowest = jnp.min(jnp.where(kept, y, jnp.inf), initial=jnp.inf)
    highest = jnp.max(jnp.where(kept, y, -jnp.inf), initial=-jnp.inf)
    rough = jnp.where(jnp.any(kept), jnp.clip(rough, lowest, highest), 0)
    off = masked(y - rough, w)
    fine = jnp.sum(off * w) / by
    spread = jnp.sum(jnp.square(masked(off - fine, w)) * w)
    residual = jnp.sum(jnp.square(masked(p - y, w)) * w)
    zero = jnp.zeros((), jnp.float32)
    count = exact.add_to_count(exact.empty_count(), jnp.sum(kept, dtype=jnp.uint32))
    return R2State(Sum(residual, zero), Sum(spread, zero), Sum(rough, fine), Sum(weight, zero), count)


def _read(outputs: Outputs, predictions: str, targets: str, reader: str) -> tuple[jax.Array, jax.Array]:
    """Both in float32, of one shape."""
    p, y = read_output(outputs, predictions, reader), read_output(outputs, targets, reader)
    if p.shape != y.shape:
        raise DataError(
            f"{reader} needs {predictions!r} and {targets!r} of one shape, got {list(p.shape)} and {list(y.shape)}"
        )
    return p.astype(jnp.float32), y.astype(jnp.float32)
