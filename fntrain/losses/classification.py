"""Cross-entropy: of classes, and of yes-or-no labels."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import ConfigError
from .._core.typing import ArrayLike
from .inputs import (
    absorbed,
    are_distributions,
    at_least_tiny,
    floating,
    kept,
    over_rows,
    readable,
    weighted,
    weighted_sum,
    within_unit,
)
from .labels import class_weights as _class_weights, counted, yes_or_no
from .loss import Loss


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | Sequence[float] | None = None,
    ignore_index: int | None = None,
    from_logits: bool = True,
    weights: ArrayLike | None = None,
) -> Loss:
    r"""Cross-entropy between labels and predicted distributions over C classes.

    With integer labels :math:`y`, :math:`\log p` = `log_softmax(logits)`, class weights :math:`w` (ones if
    None) and label smoothing :math:`\epsilon`, the mean is torch's:

    .. math:: \ell_i = -(1 - \epsilon) \log p_{i y_i}
                       - \frac{\epsilon}{C} \sum_c \frac{w_c}{w_{y_i}} \log p_{ic},
              \qquad L = \frac{\sum_i w_{y_i} \ell_i}{\sum_i w_{y_i}}

    Both sums leave out labels equal to `ignore_index`, smoothing included, and labels whose own class weighs
    zero, of which torch still counts the smoothing. (Torch's unreduced losses are `values * weights`.) With labels
    that are distributions :math:`t`, smoothed to :math:`t' = (1 - \epsilon) t + \epsilon / C`, torch divides by the
    number of rows:

    .. math:: \ell_i = -\sum_c w_c\, t'_{ic} \log p_{ic}, \qquad L = \frac1N \sum_i \ell_i

    Everything is computed in float32 at least, relative to each row's largest logit.

    Args:
      logits: `[…, C]`, floating-point: scores of any scale, or probabilities if `from_logits` is False.
      labels: integers `[…]`, or distributions `[…, C]`, floating-point.
      label_smoothing: ε, the mass spread evenly over the classes, in [0, 1].
      class_weights: `[C]`, >= 0. With integer labels they weigh the mean, and are constants for gradients.
      ignore_index: the integer label of what is not counted (`-100` in torch). Logits there may hold anything,
        and get no gradient.
      from_logits: False takes `logits` as probabilities, which are not normalised again; those below the
        smallest normal float32 count as that.
      weights: what counts, and how much, broadcastable to `[…]`, >= 0; they multiply the class weights. Logits and
        labels of weight zero may hold anything, and get no gradient. None is ones.

    Returns:
      A Loss with values `[…]`. Its weights are `weights` times the class weights of the labels, zero where ignored;
      None if there are none of these. A label that is no class is an error where it can be read, else its value is NaN.

    Raises:
      ConfigError: if an option is out of range, `class_weights` is not `[C]`, or `ignore_index` meets
        distributions.
      DataError: if shapes or dtypes do not fit (swapped arguments among them), or a label is no class.

    Warns:
      UserWarning: if `from_logits=False` and rows that can be read are no distributions.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0], [5.0, 1.0]])
      >>> loss = ft.losses.cross_entropy(logits, jnp.array([0, 1, -100]), ignore_index=-100)
      >>> [round(float(v), 4) for v in loss.values], round(float(loss.mean()), 4)
      ([0.1269, 0.6931, 0.0], 0.41)

    References:
      Szegedy et al., *Rethinking the Inception Architecture for Computer Vision*, 2016 (label smoothing);
      `torch.nn.CrossEntropyLoss` (denominators).
    """
    check.number("label_smoothing", label_smoothing, at_least=0, at_most=1)
    logits, labels, w = counted(floating("logits", logits, "labels"), labels, ignore_index, weights)
    classes = logits.shape[-1]
    per_class = (
        None
        if class_weights is None
        else _class_weights("class_weights", class_weights, classes, logits.dtype)
    )
    smoothing = jnp.asarray(label_smoothing).astype(logits.dtype)
    logits = kept(w, logits, 0 if from_logits else 1 / classes)
    if not from_logits and readable(logits) and not are_distributions(np.asarray(logits)):
        warnings.warn(
            "with `from_logits=False`, rows of `logits` must be >= 0 and sum to 1, and some do not; "
            "pass logits with `from_logits=True`?",
            stacklevel=2,
        )
    logp = log_probabilities(logits, from_logits)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        targets = kept(w, labels) * (1 - smoothing) + smoothing / classes
        if per_class is not None:
            targets = targets * over_rows(per_class, targets.ndim)
        return weighted(-weighted_sum(logp, targets), w)

    known = (labels >= 0) & (labels < classes)
    values = -at_labels(logp, labels)
    # A label that is no class keeps a weight, so that its NaN is not taken for something left out.
    own = None
    if per_class is not None:
        per_class = jax.lax.stop_gradient(per_class)
        own = jnp.where(known, per_class[jnp.where(known, labels, 0)], 1)
    if not (check.is_concrete(label_smoothing) and label_smoothing == 0):
        if per_class is None or own is None:
            spread = -jnp.mean(logp, axis=-1)
        else:
            spread = -weighted_sum(logp, per_class) / (classes * jnp.where(own > 0, own, 1))
        values = absorbed(1 - smoothing, values) + absorbed(smoothing, spread)
    values = jnp.where(known, values, jnp.nan)
    if w is not None:
        values = jnp.where(w != 0, values, 0)
        own = w if own is None else jnp.where(w != 0, own * w, 0)
    return Loss(values, own)


def binary_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    pos_weight: ArrayLike | Sequence[float] | None = None,
    from_logits: bool = True,
    weights: ArrayLike | None = None,
) -> Loss:
    r"""Cross-entropy of yes-or-no labels, element by element.

    .. math:: \ell = -\omega\, t \log p - (1 - t) \log (1 - p), \qquad p = \sigma(z)

    with logits by :math:`-\log \sigma(z) = \log(1 + e^{-z})`, in float32 at least: no overflow, and exact to the
    last digits for confident logits.

    Args:
      logits: `[…]`, floating-point, or probabilities if `from_logits` is False.
      labels: of the same shape: integers or booleans, or probabilities in [0, 1].
      pos_weight: ω, what a positive costs more than a negative, >= 0: a number, or one for each label of a row,
        `[C]`. It is part of the values, as in torch: a mean divides by the number of elements. None is 1.
      from_logits: False takes `logits` as probabilities; p and 1 - p below the smallest normal float32 count
        as that.
      weights: broadcastable to `[…]`, >= 0; elements of weight zero may hold anything. None is ones.

    Returns:
      A Loss with values of that shape (several labels a row have several values). Where a label is not in [0, 1]
      (-1 and 1, 1 and 2, 0 and 255), that is an error if it can be read, else the value is NaN.

    Raises:
      ConfigError: if `pos_weight` is negative or does not broadcast.
      DataError: if the shapes differ, or labels that can be read are not in [0, 1].

    Warns:
      UserWarning: if `from_logits=False` and values that can be read are not in [0, 1].

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> loss = ft.losses.binary_cross_entropy(jnp.array([0.0, 100.0, -100.0]), jnp.array([1, 1, 1]))
      >>> [round(float(v), 4) for v in loss.values]
      [0.6931, 0.0, 100.0]
    """
    z, t, w = yes_or_no("logits", logits, labels, weights)
    positive = t if pos_weight is None else t * _positive_weight(pos_weight, z)
    if from_logits:
        yes, no = jax.nn.softplus(-z), jax.nn.softplus(z)
    else:
        if readable(z) and not within_unit(np.asarray(z)):
            warnings.warn(
                "with `from_logits=False`, `logits` must be in [0, 1], and some are not; "
                "pass logits with `from_logits=True`?",
                stacklevel=2,
            )
        yes, no = -jnp.log(at_least_tiny(z)), -jnp.log(at_least_tiny(1 - z))
    values = absorbed(positive, yes) + absorbed(1 - t, no)
    return weighted(jnp.where((t >= 0) & (t <= 1), values, jnp.nan), w)


def log_probabilities(logits: jax.Array, from_logits: bool) -> jax.Array:
    """Logarithms of the probabilities of classes on the last axis."""
    return jax.nn.log_softmax(logits) if from_logits else jnp.log(at_least_tiny(logits))


_FEW = 1024  # classes


def at_labels(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """The score of each row's label, `[…]` of `[…, C]`; anything where a label is no class.

    Of few classes by comparison, which is part of the loops around it, as its gradient is: a gather and the scatter
    on the way back are five small kernels, where a step on a small model has fifty.
    """
    classes = scores.shape[-1]
    if classes <= _FEW:
        place = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
        mine = labels[..., None] == place
        return jnp.sum(jnp.where(mine, scores, 0), axis=-1)
    index = jnp.where((labels >= 0) & (labels < classes), labels, 0)
    return jnp.take_along_axis(scores, index[..., None], axis=-1)[..., 0]


def _positive_weight(pos_weight: Any, z: jax.Array) -> jax.Array:
    weight = jnp.asarray(pos_weight).astype(z.dtype)
    if weight.ndim > z.ndim or any(a not in (1, b) for a, b in zip(weight.shape[::-1], z.shape[::-1])):
        raise ConfigError(
            f"`pos_weight` must be a number, or broadcast to the labels, {list(z.shape)}, got {list(weight.shape)}"
        )
    if readable(weight) and not (np.asarray(weight) >= 0).all():
        raise ConfigError(f"`pos_weight` must be >= 0, got {np.asarray(weight).tolist()}")
    return over_rows(weight, z.ndim)
