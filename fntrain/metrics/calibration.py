"""How far probabilities can be believed: calibration error, and the Brier score."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.typing import Outputs
from . import basic, exact
from .base import element_weights, masked, metric, ratio, read_output
from .labels import predicted_classes, scores_and_labels


class CalibrationState(NamedTuple):
    """By bin of confidence."""

    cells: Any  # [2, bins], hits and elements; a `Count`, or a `Sum` if weighted
    confidence: exact.Sum  # [bins]
    lost: exact.Count  # []: NaN scores, and labels that are no class


@metric(better="min")
def expected_calibration_error(
    bins: int = 15,
    *,
    from_logits: bool = True,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""How far confidence and accuracy are apart, on average over bins of the confidence.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \left| \mathrm{acc}_b - \mathrm{conf}_b \right|

    The confidence of a prediction is its probability, :math:`\max_c p_c`, and bin b of B holds those in
    :math:`(b / B, (b + 1) / B]`. Of two classes, a yes-or-no logit z stands for the logits (0, z).

    Args:
      bins: B, bins of equal width over [0, 1].
      from_logits: False takes scores as probabilities.
      logits: the key of the logits, `[…, C]`, or `[…]` for two classes.
      labels: the key of the labels, integers or booleans, `[…]`.
      weighted: True weighs elements by the real weights, in float32; False takes weights as a mask.

    Returns:
      A Metric whose value is a float32 scalar in [0, 1]; NaN if nothing was seen, a score was NaN, or a label was no
      class.

    Raises:
      ConfigError: if `bins` is no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.expected_calibration_error(from_logits=False)
      >>> p, y = jnp.array([0.9, 0.9, 0.9, 0.9]), jnp.array([1, 1, 1, 0])
      >>> round(float(m.compute(m.update(m.empty(), {"logits": p, "labels": y}))), 4)
      0.15

    References:
      Guo et al., *On Calibration of Modern Neural Networks*, 2017.
    """
    check.integer("bins", bins, at_least=1)
    kind = exact.tally(weighted)

    def empty():
        return CalibrationState(kind.empty((2, bins)), exact.empty_sum((bins,)), exact.empty_count())

    def update(acc, outputs, weight=None):
        p, y = _probabilities(outputs, logits, labels, from_logits, "expected_calibration_error")
        w = element_weights(weight, y.shape, "expected_calibration_error")
        known = (y >= 0) & (y < p.shape[-1]) & ~jnp.isnan(jnp.max(p, axis=-1))
        lost = jnp.sum((w != 0) & ~known, dtype=jnp.uint32)
        w = jnp.where(known, w, 0) if weighted else ((w != 0) & known).astype(jnp.float32)
        confidence = masked(jnp.max(p, axis=-1), w)
        cell = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
        amounts = kind.amounts(w)
        none = jnp.zeros(bins, amounts.dtype)
        hits = jnp.where(predicted_classes(p, y) == y, amounts, jnp.zeros((), amounts.dtype))
        return CalibrationState(
            kind.add(acc.cells, jnp.stack([none.at[cell].add(hits), none.at[cell].add(amounts)])),
            exact.add_to_sum(acc.confidence, jnp.zeros(bins, jnp.float32).at[cell].add(confidence * w)),
            exact.add_to_count(acc.lost, lost),
        )

    def merge(a, b):
        return CalibrationState(
            kind.merge(a.cells, b.cells),
            exact.merge_sums(a.confidence, b.confidence),
            exact.merge_counts(a.lost, b.lost),
        )

    def compute(acc):
        hits, elements = kind.read(acc.cells)
        apart = jnp.sum(jnp.abs(hits - exact.read_sum(acc.confidence)))
        return jnp.where(exact.read_count(acc.lost) == 0, ratio(apart, jnp.sum(elements)), jnp.nan)

    return empty, update, merge, compute


@metric(better="min")
def brier(
    *,
    scale_by_half: bool | None = None,
    from_logits: bool = True,
    logits: str = "logits",
    labels: str = "labels",
):
    r"""The Brier score: the mean squared distance of the probabilities from what happened.

    .. math:: \frac{\sum_i w_i \sum_c (p_{ic} - [y_i = c])^2}{\sum_i w_i}

    halved for two classes, so that it is :math:`(p - y)^2` of a yes-or-no probability.

    Args:
      scale_by_half: True halves it, False does not; None halves it for two classes only, as scikit-learn.
      from_logits: False takes scores as probabilities.
      logits: the key of the logits, `[…, C]`, or `[…]` for two classes.
      labels: the key of the labels, integers or booleans, `[…]`. A label that is no class gives NaN.

    Returns:
      A Metric whose value is a float32 scalar.

    Raises:
      ConfigError: if `scale_by_half` is neither a bool nor None.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.brier(from_logits=False)
      >>> outputs = {"logits": jnp.array([0.1, 0.9, 0.8, 0.3]), "labels": jnp.array([0, 1, 1, 0])}
      >>> round(float(m.compute(m.update(m.empty(), outputs))), 4)
      0.0375

    References:
      Brier, *Verification of Forecasts Expressed in Terms of Probability*, 1950; scikit-learn's `brier_score_loss`.
    """
    if scale_by_half is not None and not isinstance(scale_by_half, bool):
        raise ConfigError(f"`scale_by_half` must be True, False or None, got {scale_by_half!r}")

    def update(acc, outputs, weight=None):
        p, y = _probabilities(outputs, logits, labels, from_logits, "brier")
        known = (y >= 0) & (y < p.shape[-1])
        happened = jax.nn.one_hot(y, p.shape[-1], dtype=jnp.float32)
        half = p.shape[-1] == 2 if scale_by_half is None else scale_by_half
        apart = jnp.sum(jnp.square(p - happened), axis=-1) * (0.5 if half else 1.0)
        return basic.fold(acc, jnp.where(known, apart, jnp.nan), weight)

    return basic.empty, update, basic.merge, basic.compute


def _probabilities(
    outputs: Outputs, logits: str, labels: str, from_logits: bool, reader: str
) -> tuple[jax.Array, jax.Array]:
    """Probabilities `[…, C]`, float32, and int32 labels `[…]`."""
    z = read_output(outputs, logits, reader)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise DataError(
            f"output {logits!r} must hold floating-point scores, got {z.dtype.name}{list(z.shape)}"
        )
    z = z.astype(jnp.float32)
    if z.shape == read_output(outputs, labels, reader).shape:
        z = jnp.stack([jnp.zeros_like(z) if from_logits else 1 - z, z], axis=-1)
    z, y = scores_and_labels({logits: z, labels: outputs[labels]}, logits, labels, reader)
    return jax.nn.softmax(z) if from_logits else z, y
