"""Regression: errors, and the share of the variance that they leave."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._core.errors import DataError
from .._core.typing import Outputs
from . import basic, exact, moments
from .base import element_weights, masked, metric, ratio, read_output, reading
from .exact import Sum


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

    def compute(acc):
        unit = moments.power_of_two(acc.exponent)
        return _mean_square(acc) * unit * unit

    return reading(_squared_errors(predictions, targets), compute)


@metric(better="min")
def rmse(predictions: str = "predictions", targets: str = "targets"):
    r"""Root of the mean squared error over all elements, in the units of the targets.

    Right for errors whose squares underflow or overflow, too.

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

    def compute(acc):
        return jnp.sqrt(_mean_square(acc)) * moments.power_of_two(acc.exponent)

    return reading(_squared_errors(predictions, targets), compute)


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


@metric(better="min")
def mape(predictions: str = "predictions", targets: str = "targets"):
    r"""Mean absolute percentage error, as a fraction: 0.1 is ten percent.

    .. math:: \frac1{\sum_i w_i} \sum_i w_i \frac{|\hat y_i - y_i|}{\max(|y_i|, \epsilon)}, \qquad \epsilon = 2^{-52}

    Args:
      predictions: the key of the predictions, `[…]`.
      targets: the key of the targets, of the same shape; those near zero make it huge, as in scikit-learn.

    Returns:
      A Metric whose value is a float32 scalar.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.mape()
      >>> outputs = {"predictions": jnp.array([1.5, 3.0]), "targets": jnp.array([1.0, 4.0])}
      >>> float(m.compute(m.update(m.empty(), outputs)))
      0.375
    """

    def update(acc, outputs, weight=None):
        p, y = _read(outputs, predictions, targets, "mape")
        # Nothing is divided by what it is not relative to: a target of weight zero may be zero, or NaN.
        return basic.fold(acc, jnp.abs(p - y) / jnp.maximum(jnp.abs(y), jnp.float32(2.0**-52)), weight)

    return basic.empty, update, basic.merge, basic.compute


class SquaresState(NamedTuple):
    """A weighted sum of squares in units of a power of two, so that they neither overflow nor vanish."""

    total: Sum
    exponent: jax.Array  # int32 []
    weight: Sum


@metric
def _squared_errors(predictions: str, targets: str):
    def update(acc, outputs, weight=None):
        p, y = _read(outputs, predictions, targets, "mse")
        w = element_weights(weight, y.shape, "mse")
        return _merge_squares(acc, _squares(*_errors(p, y, w), w))

    return _no_squares, update, _merge_squares, _mean_square


def _no_squares() -> SquaresState:
    return SquaresState(exact.empty_sum(), jnp.full((), moments.LOWEST, jnp.int32), exact.empty_sum())


def _squares(e: jax.Array, unit: jax.Array, w: jax.Array) -> SquaresState:
    e, own = moments.scaled(e, w)
    zero = jnp.zeros((), jnp.float32)
    return SquaresState(Sum(jnp.sum(jnp.square(e) * w), zero), unit + own, Sum(jnp.sum(w), zero))


def _merge_squares(a: SquaresState, b: SquaresState) -> SquaresState:
    exponent = jnp.maximum(a.exponent, b.exponent)
    factors = [moments.power_of_two(x.exponent - exponent) for x in (a, b)]
    totals = [moments.times(moments.times(x.total, f), f) for x, f in zip((a, b), factors)]
    return SquaresState(exact.merge_sums(*totals), exponent, exact.merge_sums(a.weight, b.weight))


def _mean_square(acc: SquaresState) -> jax.Array:
    """In the accumulator's units."""
    return ratio(exact.read_sum(acc.total), exact.read_sum(acc.weight))


@metric(better="max")
def r2(predictions: str = "predictions", targets: str = "targets"):
    r"""The coefficient of determination, over all elements as one sample.

    .. math:: R^2 = 1 - \frac{\sum_i w_i (y_i - \hat y_i)^2}{\sum_i w_i (y_i - \bar y)^2}

    The spread about the mean is formed from deviations and merged by Chan's formula, never as a difference of
    large sums, so labels far from zero cost no digits; and in units of its own, so labels of 1e-30 or 1e30 have the
    same value. Constant targets give 1 if every prediction is exact,
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

    def compute(acc):
        seen = exact.read_count(acc.moments.count) >= 2
        left = exact.read_sum(acc.squares.total)
        return jnp.where(seen, _share_explained(acc, left, acc.squares.exponent), jnp.nan)

    return reading(_regression(predictions, targets), compute)


@metric(better="max")
def explained_variance(predictions: str = "predictions", targets: str = "targets"):
    r"""The share of the targets' variance that the predictions explain, a constant error forgiven.

    .. math:: 1 - \frac{\operatorname{Var}_w(y - \hat y)}{\operatorname{Var}_w(y)}

    `r2` less what a wrong mean costs there. Constant targets give 1 if the error is constant, else 0, as in
    scikit-learn. The same at any scale of the targets.

    Args:
      predictions: the key of the predictions, `[…]`.
      targets: the key of the targets, of the same shape.

    Returns:
      A Metric whose value is a float32 scalar.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.explained_variance()
      >>> outputs = {"predictions": jnp.array([11.0, 12.0, 13.0]), "targets": jnp.array([1.0, 2.0, 3.0])}
      >>> float(m.compute(m.update(m.empty(), outputs)))
      1.0
    """

    def compute(acc):
        seen = exact.read_count(acc.moments.count) >= 1
        left = exact.read_sum(acc.moments.spread)[1]
        return jnp.where(seen, _share_explained(acc, left, acc.moments.exponent[1]), jnp.nan)

    return reading(_regression(predictions, targets), compute)


@metric(better="max")
def pearson(predictions: str = "predictions", targets: str = "targets"):
    r"""Pearson's correlation of predictions and targets, over all elements as one sample.

    .. math:: r = \frac{\sum_i w_i (\hat y_i - \bar{\hat y}) (y_i - \bar y)}
                       {\sqrt{\sum_i w_i (\hat y_i - \bar{\hat y})^2} \sqrt{\sum_i w_i (y_i - \bar y)^2}}

    The same at any scale and offset of either. NaN where one of them is constant.

    Args:
      predictions: the key of the predictions, `[…]`.
      targets: the key of the targets, of the same shape.

    Returns:
      A Metric whose value is a float32 scalar in [-1, 1].

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.pearson()
      >>> outputs = {"predictions": jnp.array([1.0, 2.0, 4.0]), "targets": jnp.array([10.0, 20.0, 30.0])}
      >>> round(float(m.compute(m.update(m.empty(), outputs))), 4)
      0.982
    """

    def compute(acc):
        y, p = jnp.sqrt(exact.read_sum(acc.spread))
        return jnp.clip(ratio(exact.read_sum(acc.cross), y * p), -1, 1)

    return reading(_pair(predictions, targets), compute)


@metric
def _pair(predictions: str, targets: str):
    """The moments of targets and predictions."""

    def update(acc, outputs, weight=None):
        p, y = _read(outputs, predictions, targets, "pearson")
        return moments.merge(acc, moments.of_batch(y, p, element_weights(weight, y.shape, "pearson")))

    def compute(acc):
        return exact.read_sum(acc.cross)

    return moments.empty, update, moments.merge, compute


class RegressionState(NamedTuple):
    """Squared errors, and the moments of targets and errors."""

    squares: SquaresState
    moments: moments.MomentsState


@metric
def _regression(predictions: str, targets: str):
    """What shares of the targets' variance are read from."""

    def empty():
        return RegressionState(_no_squares(), moments.empty())

    def update(acc, outputs, weight=None):
        p, y = _read(outputs, predictions, targets, "a metric of regression")
        w = element_weights(weight, y.shape, "a metric of regression")
        e, unit = _errors(p, y, w)
        new = moments.of_batch(y, e, w)
        units = jnp.stack([jnp.zeros_like(unit), unit])
        return merge(acc, RegressionState(_squares(e, unit, w), new._replace(exponent=new.exponent + units)))

    def merge(a, b):
        return RegressionState(_merge_squares(a.squares, b.squares), moments.merge(a.moments, b.moments))

    def compute(acc):
        return exact.read_sum(acc.moments.spread)

    return empty, update, merge, compute


def _errors(p: jax.Array, y: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Errors of what counts, in units of a power of two, and its exponent: they cannot overflow."""
    _, unit = moments.scaled(jnp.maximum(jnp.abs(p), jnp.abs(y)), w)
    factor = moments.power_of_two(-unit)
    return masked(p, w) * factor - masked(y, w) * factor, unit


def _share_explained(acc: RegressionState, left: jax.Array, exponent: jax.Array) -> jax.Array:
    """One minus the share of the targets' spread that is left, a sum in units of its own."""
    spread = exact.read_sum(acc.moments.spread)[0]
    unit = moments.power_of_two(exponent - acc.moments.exponent[0])
    constant = jnp.where(jnp.isnan(left), jnp.nan, jnp.where(left == 0, jnp.float32(1), jnp.float32(0)))
    return jnp.where(spread == 0, constant, 1 - left / jnp.where(spread == 0, 1, spread) * unit * unit)


def _read(outputs: Outputs, predictions: str, targets: str, reader: str) -> tuple[jax.Array, jax.Array]:
    """Both in float32, of one shape."""
    p, y = read_output(outputs, predictions, reader), read_output(outputs, targets, reader)
    if p.shape != y.shape:
        raise DataError(
            f"{reader} needs {predictions!r} and {targets!r} of one shape, got {list(p.shape)} and {list(y.shape)}"
        )
    return p.astype(jnp.float32), y.astype(jnp.float32)
