"""Dice loss: how much of two regions is not common to both."""

import jax
import jax.numpy as jnp

from .._core import check
from .._core.errors import DataError
from .._core.typing import ArrayLike
from .inputs import floating, kept, loss_weights, same_shape, weighted
from .labels import counted, yes_or_no
from .loss import Loss


def dice(
    logits: jax.Array,
    labels: jax.Array,
    *,
    smooth: float = 1.0,
    from_logits: bool = True,
    weights: ArrayLike | None = None,
) -> Loss:
    r"""One minus the soft Dice coefficient of predicted and true regions: one value per example.

    .. math:: \ell_i = 1 - \frac{2 \sum_d w_{id}\, p_{id} t_{id} + s}{\sum_d w_{id} (p_{id} + t_{id}) + s}

    over all axes d of an example. With integer labels of C classes, p is the softmax, t one-hot, and the coefficient
    the mean of the classes' own.

    Args:
      logits: `[B, …]`, floating-point, for yes-or-no labels; `[B, …, C]` for integer labels `[B, …]`. Probabilities
        if `from_logits` is False.
      labels: of the logits' shape: booleans, integers 0 and 1, or probabilities in [0, 1]; or integers of classes.
      smooth: s, >= 0, which an example without a region needs: with 0, two empty regions are at distance 0.
      from_logits: False takes `logits` as probabilities.
      weights: one an example, `[B]`, or one a pixel, of the labels' shape, >= 0: pixels of weight zero belong to
        no region and may hold anything; an example of which no pixel counts does not count. None is ones.

    Returns:
      A Loss with values `[B]`; NaN where a label that cannot be read is not in [0, 1], or no class.

    Raises:
      ConfigError: if `smooth` is negative.
      DataError: if shapes do not fit, or labels that can be read are not in [0, 1], or no class.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> logits, labels = jnp.array([[9.0, 9.0, -9.0], [9.0, -9.0, -9.0]]), jnp.array([[1, 1, 0], [0, 0, 1]])
      >>> [round(float(v), 3) for v in ft.losses.dice(logits, labels).values]
      [0.0, 0.667]

    References:
      Milletari et al., *V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation*, 2016.
    """
    check.number("smooth", smooth, at_least=0)
    z = floating("logits", logits, "labels")
    labels = jnp.asarray(labels)
    if z.ndim == 0:
        raise DataError("`logits` must have examples on their first axis, got shape []")
    of_classes = z.ndim > 1 and labels.shape == z.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer)
    if not of_classes:
        same_shape("logits", z, "labels", labels)
    w = loss_weights(weights, labels.shape[:1], z.dtype, labels.shape)
    pixels = (
        None
        if w is None
        else jnp.broadcast_to(w.reshape(w.shape + (1,) * (labels.ndim - w.ndim)), labels.shape)
    )
    if of_classes:
        z, y, _ = counted(z, labels, None, pixels)
        z, y = kept(pixels, z, 0 if from_logits else 1 / z.shape[-1]), kept(pixels, y)
        p, t = jax.nn.softmax(z) if from_logits else z, jax.nn.one_hot(y, z.shape[-1], dtype=z.dtype)
        known = (y >= 0) & (y < z.shape[-1])
    else:
        z, t, _ = yes_or_no("logits", z, labels, pixels)
        known = (t >= 0) & (t <= 1)
        p, t = (jax.nn.sigmoid(z) if from_logits else z)[..., None], t[..., None]
    rest = tuple(range(1, known.ndim))
    by_pixel = w is not None and w.ndim > 1  # else an example's weight, which is none of its pixels'
    share = jnp.ones((), p.dtype) if pixels is None or not by_pixel else pixels[..., None]
    common, both = (jnp.sum(x * share, axis=rest) for x in (p * t, p + t))
    s = jnp.asarray(smooth).astype(p.dtype)
    some = both + s != 0
    overlap = jnp.where(some, (2 * common + s) / jnp.where(some, both + s, 1), 1)
    values = jnp.where(jnp.all(known, axis=rest), jnp.mean(1 - overlap, axis=-1), jnp.nan)
    if w is not None and by_pixel:
        w = jnp.any(w != 0, axis=rest).astype(p.dtype)
    return weighted(values, w)
