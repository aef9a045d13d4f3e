"""Labels: of classes, as integers or distributions, and of yes or no."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.integers import HIGHEST, LOWEST, saturated
from .inputs import floating, kept, loss_weights, readable, same_shape, together, within_unit


def ignored_label(ignore_index: Any, labels: jax.Array) -> int | None:
    """The label that is not counted, as an int that labels can hold."""
    if ignore_index is None:
        return None
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ConfigError("`ignore_index` needs integer labels; weigh distributions by `weights=`")
    label = check.integer("ignore_index", ignore_index)
    if not LOWEST < label < HIGHEST:
        raise ConfigError(
            f"`ignore_index` must be a 32-bit integer, in [{LOWEST + 1}, {HIGHEST - 1}], got {label}"
        )
    return label


def counted(
    logits: jax.Array, labels: Any, ignore_index: Any, weights: Any
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Logits, checked labels, and the weights that leave out ignored labels (zero there); labels stay as they came.

    Raises:
      DataError: if shapes or dtypes do not fit, or a label that counts and can be read is no class.
    """
    soft = jnp.asarray(labels)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise DataError(f"`logits` must have the classes on their last axis, got shape {list(logits.shape)}")
    if jnp.issubdtype(soft.dtype, jnp.floating) and soft.shape == logits.shape:
        ignored_label(ignore_index, soft)
        logits, soft = together(logits, soft)
        return logits, soft, loss_weights(weights, logits.shape[:-1], logits.dtype)
    return logits, *counted_classes(logits.shape, logits.dtype, labels, ignore_index, weights)


def counted_classes(
    shape: tuple[int, ...], dtype: Any, given: Any, ignore_index: Any, weights: Any, soft: bool = True
) -> tuple[jax.Array, jax.Array | None]:
    """Checked labels that are classes, for logits `[…, C]` of this shape, and the weights that leave out ignored ones.

    Whether distributions could have been given too (`soft`) is said in the errors.

    Raises:
      DataError: if shapes or dtypes do not fit, or a label that counts and can be read is no class.
    """
    labels = jnp.asarray(given)
    rows, classes = shape[:-1], shape[-1]
    ignore = ignored_label(ignore_index, labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != rows:
        also = f" or floating-point distributions of shape {list(shape)}" if soft else ""
        hint = "; cast one-hot labels to a floating-point dtype" if soft and labels.shape == shape else ""
        raise DataError(
            f"`labels` must be integers of shape {list(rows)}{also}, "
            f"got {labels.dtype.name}{list(labels.shape)}{hint}"
        )
    w = loss_weights(weights, rows, dtype)
    if readable(labels) and (w is None or readable(w)):
        # What came, if it is NumPy's: 64-bit labels have lost digits on their way to the device.
        host = np.asarray(labels if isinstance(given, jax.Array) else given)
        wrong = ((host < 0) | (host >= classes)) & (host != ignore)
        wrong &= w is None or np.asarray(w) != 0
        if wrong.any():
            label, row = host[wrong][0], np.argwhere(wrong)[0].tolist()
            raise DataError(
                f"`labels` must be in [0, {classes}), got {label} at {row}"
                + f"; leave such rows out with `ignore_index={label}`" * bool(label < 0)
            )
    labels = saturated(labels)
    if ignore is not None:
        own = (labels != ignore).astype(dtype)
        w = own if w is None else own * w
    return labels, w


def yes_or_no(name: str, z: Any, labels: Any, weights: Any) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Scores and labels of one shape and dtype, zeros where the weight is, and the weights.

    Raises:
      DataError: if the shapes differ, or labels that count and can be read are not in [0, 1].
    """
    z, labels = floating(name, z, "labels"), jnp.asarray(labels)
    same_shape(name, z, "labels", labels)
    z, t = together(z, labels)
    w = loss_weights(weights, z.shape, z.dtype)
    z, t = kept(w, z), kept(w, t)
    if labels.dtype != jnp.bool_ and readable(t) and not within_unit(np.asarray(t)):
        raise DataError("`labels` must be in [0, 1]")
    return z, t, w


def class_weights(name: str, given: Any, classes: int, dtype: Any) -> jax.Array:
    """One number a class, >= 0."""
    if isinstance(given, Mapping):
        raise ConfigError(
            f"`{name}` must be {classes} numbers, one a class in order, got a dict: write it as "
            f"`[weights.get(c, 1.0) for c in range({classes})]`"
        )
    weights = jnp.asarray(given).astype(dtype)
    if weights.shape != (classes,):
        raise ConfigError(f"`{name}` must have shape [{classes}], one a class, got {list(weights.shape)}")
    if readable(weights) and not (np.asarray(weights) >= 0).all():
        raise ConfigError(f"`{name}` must be >= 0, got {np.asarray(weights).tolist()}")
    return weights
