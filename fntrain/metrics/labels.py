"""What metrics of classes read: scores and labels, which class was predicted, and whether that was right."""

import jax
import jax.numpy as jnp

from .._core.errors import DataError
from .._core.typing import Outputs
from .base import read_output


def totals(chosen: list[jax.Array], amounts: jax.Array) -> jax.Array:
    """What the chosen elements amount to, choice by choice."""
    zero = jnp.zeros((), amounts.dtype)
    return jnp.stack([jnp.sum(jnp.where(x, amounts, zero)) for x in chosen])


def zero_ratio(top: jax.Array, bottom: jax.Array) -> jax.Array:
    """`top / bottom`, 0 where the bottom is zero."""
    return jnp.where(bottom == 0, 0, top / jnp.where(bottom == 0, 1, bottom))


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
    return scores, y.astype(jnp.int32)


def predicted_classes(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """The highest score's class, the first of equals; integer predictions are taken as they are."""
    if scores.ndim == labels.ndim:
        return scores.astype(jnp.int32)
    # argmax in two plain reductions, which XLA:CPU does in vectors: the first of the largest, or of the NaN.
    highest = jnp.max(scores, axis=-1, keepdims=True)
    places = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    chosen = (scores == highest) | jnp.isnan(scores)
    return jnp.min(jnp.where(chosen, places, jnp.int32(scores.shape[-1])), axis=-1)


def yes_or_no(
    outputs: Outputs, logits: str, labels: str, cut: float, reader: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether predicted, whether true, and whether the label says either, element by element."""
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
    return z.astype(jnp.float32) >= jnp.float32(cut), y == 1, (y == 0) | (y == 1)


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
