"""What metrics of classes read: scores and labels, which class was predicted, and whether that was right."""

from typing import Any

import jax
import jax.numpy as jnp

from .._core.errors import ConfigError, DataError
from .._core.integers import saturated
from .._core.typing import Outputs
from .base import read_output


def totals(chosen: list[jax.Array], amounts: jax.Array) -> jax.Array:
    """What the chosen elements amount to, choice by choice."""
    zero = jnp.zeros((), amounts.dtype)
    return jnp.stack([jnp.sum(jnp.where(x, amounts, zero)) for x in chosen])


def zero_ratio(top: jax.Array, bottom: jax.Array, otherwise: float = 0.0) -> jax.Array:
    """`top / bottom`, 0, or what is said, where the bottom is zero."""
    return jnp.where(bottom == 0, jnp.float32(otherwise), top / jnp.where(bottom == 0, 1, bottom))


def checked_zero_division(value: Any) -> float:
    """What a ratio with nothing to divide by is: 0, 1 or NaN, as in scikit-learn."""
    if isinstance(value, int | float) and not isinstance(value, bool) and (value in (0, 1) or value != value):
        return float(value)
    raise ConfigError(f"`zero_division` must be 0, 1 or NaN, got {value!r}")


def scores_and_labels(outputs: Outputs, logits: str, labels: str, reader: str) -> tuple[jax.Array, jax.Array]:
    """Scores `[…, C]`, or integer predictions `[…]`, and int32 labels `[…]`."""
    scores, y = read_output(outputs, logits, reader), read_output(outputs, labels, reader)
    if not (jnp.issubdtype(y.dtype, jnp.integer) or y.dtype == jnp.bool_):
        raise DataError(f"output {labels!r} must hold integer labels, got {y.dtype.name}{list(y.shape)}")
    if jnp.issubdtype(scores.dtype, jnp.floating):
        fits, wanted = scores.ndim > 0 and scores.shape[:-1] == y.shape, [*y.shape, "classes"]
    else:
        fits, wanted = scores.shape == y.shape, list(y.shape)
    if not fits:
        raise DataError(
            f"output {logits!r} of shape {list(scores.shape)}, {scores.dtype.name}, does not fit the labels of shape "
            f"{list(y.shape)} that {reader} reads: expected {wanted}"
        )
    return scores, saturated(y)


def predicted_classes(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """The highest score's class, the first of equals; -1 if a score is NaN; integer predictions as they are."""
    if scores.ndim == labels.ndim:
        return saturated(scores)
    # argmax in two plain reductions, which XLA:CPU does in vectors: the first of the largest. NaN is the largest of
    # what it is among, and equal to nothing.
    highest = jnp.max(scores, axis=-1, keepdims=True)
    places = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    first = jnp.min(jnp.where(scores == highest, places, jnp.int32(scores.shape[-1])), axis=-1)
    return jnp.where(unordered(scores, labels), -1, first)


def unordered(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether one of a row's scores is NaN, so that no class is its first."""
    if scores.ndim == labels.ndim:
        return jnp.zeros(labels.shape, jnp.bool_)
    return jnp.isnan(jnp.max(scores, axis=-1))  # a reduction that predicted_classes has already


def yes_or_no(
    outputs: Outputs, logits: str, labels: str, cut: float, reader: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether predicted, whether true, and whether both can be said (no NaN, a label of 0 or 1), by element."""
    z, y = read_output(outputs, logits, reader), read_output(outputs, labels, reader)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise DataError(
            f"output {logits!r} must hold floating-point logits, got {z.dtype.name}{list(z.shape)}"
        )
    if z.shape == (*y.shape, 2):
        z = z[..., 1] - z[..., 0]
    if z.shape != y.shape:
        raise DataError(
            f"output {logits!r} of shape {list(z.shape)} does not fit the labels of shape {list(y.shape)} that "
            f"{reader} reads: expected one logit a label"
        )
    y = y.astype(jnp.float32)
    return z.astype(jnp.float32) >= jnp.float32(cut), y == 1, ((y == 0) | (y == 1)) & ~jnp.isnan(z)


def among_top(scores: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether fewer than `k` classes come before the label's: a comparison of each score, and no sort."""
    if scores.ndim == labels.ndim:
        raise DataError(
            f"`top_k={k}` needs scores for all classes, got integer predictions {list(scores.shape)}"
        )
    classes = jnp.arange(scores.shape[-1], dtype=jnp.int32).reshape((1,) * labels.ndim + (-1,))
    label = labels[..., None]
    own = jnp.max(jnp.where(classes == label, scores, -jnp.inf), axis=-1, keepdims=True)
    before = (scores > own) | ((scores == own) & (classes < label))
    known = (labels >= 0) & (labels < scores.shape[-1])
    return known & (jnp.sum(before, axis=-1, dtype=jnp.int32) < k)
