"""Cross-entropy: of classes, and of yes-or-no labels."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.typing import ArrayLike
from .inputs import (
    are_distributions,
    at_least_tiny,
    floating,
    over_rows,
    readable,
    same_shape,
    weighted_sum,
    within_unit,
)
from .loss import Loss


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | Sequence[float] | None = None,
    ignore_index: int | None = None,
    from_logits: bool = True,
) -> Loss:
    r"""Cross-entropy between labels and predicted distributions over C classes.

    With integer labels :math:`y`, :math:`\log p` = `log_softmax(logits)`, class weights :math:`w` (ones if
    None) and label smoothing :math:`\epsilon`, the mean is torch's:

    .. math:: \ell_i = -(1 - \epsilon) \log p_{i y_i}
                       - \frac{\epsilon}{C} \sum_c \frac{w_c}{w_{y_i}} \log p_{ic},
              \qquad L = \frac{\sum_i w_{y_i} \ell_i}{\sum_i w_{y_i}}

    Both sums leave out labels equal to `ignore_index`, smoothing included, and labels whose own class weighs
    zero. (Torch's unreduced losses are `values * weights`.) With labels that are distributions :math:`t`,
    smoothed to :math:`t' = (1 - \epsilon) t + \epsilon / C`, torch divides by the number of rows:

    .. math:: \ell_i = -\sum_c w_c\, t'_{ic} \log p_{ic}, \qquad L = \frac1N \sum_i \ell_i

    Everything is computed in float32 at least, relative to each row's largest logit.

    Args:
      logits: `[…, C]`, floating-point: scores of any scale, or probabilities if `from_logits` is False.
      labels: integers `[…]`, or distributions `[…, C]`, floating-point.
      label_smoothing: ε, the mass spread evenly over the classes, in [0, 1].
      class_weights: `[C]`, >= 0.
      ignore_index: the integer label of what is not counted (`-100` in torch). Logits there may hold anything,
        and get no gradient.
      from_logits: False takes `logits` as probabilities, which are not normalised again; those below the
        smallest normal float32 count as that.

    Returns:
      A Loss with values `[…]`. Its weights are the class weights of the labels, zero where ignored; None if
      there is neither. A label that is no class is an error where it can be read, else its value is NaN.

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
    smoothing = float(label_smoothing)
    logits, labels = floating("logits", logits, "labels"), jnp.asarray(labels)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise DataError(f"`logits` must have the classes on their last axis, got shape {list(logits.shape)}")
    classes = logits.shape[-1]
    weights = None if class_weights is None else _class_weights(class_weights, classes, logits.dtype)
    of_classes = jnp.issubdtype(labels.dtype, jnp.integer)
    counted = None
    if ignore_index is not None:
        if not of_classes:
            raise ConfigError(
                "`ignore_index` needs integer labels; weigh distributions by `Loss(values, weights)`"
            )
        counted = labels.astype(jnp.int32) != check.integer("ignore_index", ignore_index)
    _check_labels(labels, logits.shape, ignore_index)
    if counted is not None:  # before anything is computed: a NaN there must not reach the gradient either
        logits = jnp.where(counted[..., None], logits, 0 if from_logits else 1 / classes)
    if not from_logits and readable(logits) and not are_distributions(np.asarray(logits)):
        warnings.warn(
            "with `from_logits=False`, rows of `logits` must be >= 0 and sum to 1, and some do not; "
            "pass logits with `from_logits=True`?",
            stacklevel=2,
        )
    logp = jax.nn.log_softmax(logits) if from_logits else jnp.log(at_least_tiny(logits))
    if not of_classes:
        targets = labels.astype(logits.dtype) * (1 - smoothing) + smoothing / classes
        if weights is not None:
            targets = targets * over_rows(weights, targets.ndim)
        return Loss(-weighted_sum(logp, targets))

    labels = labels.astype(jnp.int32)
    known = (labels >= 0) & (labels < classes)
    index = jnp.where(known, labels, 0)
    values = -jnp.take_along_axis(logp, index[..., None], axis=-1)[..., 0]
    # A label that is no class keeps a weight, so that its NaN is not taken for something left out.
    own = None if weights is None else jnp.where(known, weights[index], 1)
    if smoothing:
        if weights is None or own is None:
            spread = -jnp.mean(logp, axis=-1)
        else:
            spread = -weighted_sum(logp, weights) / (classes * jnp.where(own > 0, own, 1))
        values = (1 - smoothing) * values + smoothing * spread
    values = jnp.where(known, values, jnp.nan)
    if counted is not None:
        values = jnp.where(counted, values, 0)
        own = jnp.where(counted, 1 if own is None else own, jnp.zeros((), logits.dtype))
    return Loss(values, own)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array, *, from_logits: bool = True) -> Loss:
    r"""Cross-entropy of yes-or-no labels, element by element.

    .. math:: \ell = -t \log p - (1 - t) \log (1 - p), \qquad p = \sigma(z)

    with logits by :math:`-\log \sigma(z) = \log(1 + e^{-z})`, in float32 at least: no overflow, and exact to the
    last digits for confident logits.

    Args:
      logits: `[…]`, floating-point, or probabilities if `from_logits` is False.
      labels: of the same shape: integers or booleans, or probabilities in [0, 1].
      from_logits: False takes `logits` as probabilities; p and 1 - p below the smallest normal float32 count
        as that.

    Returns:
      A Loss with values of that shape (several labels a row have several values).

    Raises:
      DataError: if the shapes differ, or labels that can be read are not in [0, 1].

    Warns:
      UserWarning: if `from_logits=False` and values that can be read are not in [0, 1].

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> loss = ft.losses.binary_cross_entropy(jnp.array([0.0, 100.0, -100.0]), jnp.array([1, 1, 1]))
      >>> [round(float(v), 4) for v in loss.values]
      [0.6931, 0.0, 100.0]
    """
    z, labels = floating("logits", logits, "labels"), jnp.asarray(labels)
    same_shape("logits", z, "labels", labels)
    if readable(labels) and not within_unit(np.asarray(labels)):
        raise DataError("`labels` must be in [0, 1]")
    t = labels.astype(z.dtype)
    if from_logits:
        yes, no = t * jax.nn.softplus(-z), (1 - t) * jax.nn.softplus(z)
        return Loss(jnp.where(t > 0, yes, 0) + jnp.where(t < 1, no, 0))  # 0 * inf is 0 here
    if readable(z) and not within_unit(np.asarray(z)):
        warnings.warn(
            "with `from_logits=False`, `logits` must be in [0, 1], and some are not; "
            "pass logits with `from_logits=True`?",
            stacklevel=2,
        )
    return Loss(-t * jnp.log(at_least_tiny(z)) - (1 - t) * jnp.log(at_least_tiny(1 - z)))


def _class_weights(class_weights: Any, classes: int, dtype: Any) -> jax.Array:
    weights = jnp.asarray(class_weights).astype(dtype)
    if weights.shape != (classes,):
        raise ConfigError(
            f"`class_weights` must have shape [{classes}], one a class, got {list(weights.shape)}"
        )
    if readable(weights) and not (np.asarray(weights) >= 0).all():
        raise ConfigError(f"`class_weights` must be >= 0, got {np.asarray(weights).tolist()}")
    return weights


def _check_labels(labels: jax.Array, logits_shape: tuple[int, ...], ignore_index: int | None) -> None:
    rows, classes = logits_shape[:-1], logits_shape[-1]
    floating = jnp.issubdtype(labels.dtype, jnp.floating) and labels.shape == logits_shape
    if floating:
        return
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != rows:
        hint = "; cast one-hot labels to a floating-point dtype" if labels.shape == logits_shape else ""
        raise DataError(
            f"`labels` must be integers of shape {list(rows)} or floating-point distributions of shape "
            f"{list(logits_shape)}, got {labels.dtype.name}{list(labels.shape)}{hint}"
        )
    if readable(labels):
        host = np.asarray(labels)
        wrong = ((host < 0) | (host >= classes)) & (host != ignore_index)
        if wrong.any():
            label, row = host[wrong][0], np.argwhere(wrong)[0].tolist()
            raise DataError(
                f"`labels` must be in [0, {classes}), got {label} at {row}"
                + f"; leave such rows out with `ignore_index={label}`" * bool(label < 0)
            )
