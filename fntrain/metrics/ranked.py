"""Scores in order: counted in bins of fixed memory, or kept as they are up to a capacity."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.typing import Outputs
from . import exact
from .base import Metric, element_weights, metric, read_output


def ranked_scores(
    num_classes: int | None,
    multilabel: bool,
    bins: int | None,
    exact: bool,
    capacity: int | None,
    from_logits: bool,
    logits: str,
    labels: str,
    weighted: bool,
) -> Metric:
    """What a curve accumulates: equal for equal arguments, so that curves collected together share it."""
    if num_classes is not None:
        check.integer("num_classes", num_classes, at_least=1 if multilabel else 2)
    elif multilabel:
        raise ConfigError("`multilabel=True` needs `num_classes`, the number of labels a row")
    if exact != (capacity is not None):
        raise ConfigError(
            f"`exact=True` needs `capacity`, the number of rows to keep, and nothing else does; "
            f"got exact={exact}, capacity={capacity}"
        )
    if capacity is not None:
        if bins is not None:
            raise ConfigError("`bins` and `exact=True` exclude each other")
        check.integer("capacity", capacity, at_least=1)
        return _kept(num_classes, multilabel, capacity, from_logits, logits, labels, weighted)
    bins = (16_384 if num_classes is None else 1_024) if bins is None else bins
    if check.integer("bins", bins, at_least=2) > 65_536 or bins & (bins - 1):
        raise ConfigError(f"`bins` must be a power of two up to 65536, got {bins}")
    return _binned(num_classes, multilabel, bins, from_logits, logits, labels, weighted)


class BinsState(NamedTuple):
    """Negatives and positives by class and bin; `Count`s, or `Sum`s if weighted."""

    counts: Any  # [C, 2, bins]
    invalid: exact.Count  # []: NaN scores, and labels that are no class


@metric
def _binned(
    num_classes: int | None,
    multilabel: bool,
    bins: int,
    from_logits: bool,
    logits: str,
    labels: str,
    weighted: bool,
):
    kind = exact.tally(weighted)
    columns = num_classes or 1

    def empty():
        return BinsState(kind.empty((columns, 2, bins)), exact.empty_count())

    def update(acc, outputs, weight=None):
        x, positive, w, bad = _read(outputs, weight, num_classes, multilabel, from_logits, logits, labels)
        amounts = jnp.broadcast_to(kind.amounts(w), x.shape)
        side = jnp.arange(columns, dtype=jnp.int32)[None, :] * 2 + positive.astype(jnp.int32)
        cell = side * bins + (_bin_of_score if from_logits else _bin_of_probability)(x, bins)
        new = jnp.zeros(columns * 2 * bins, amounts.dtype).at[cell.reshape(-1)].add(amounts.reshape(-1))
        return BinsState(
            kind.add(acc.counts, new.reshape(columns, 2, bins)), exact.add_to_count(acc.invalid, bad)
        )

    def merge(a, b):
        return BinsState(kind.merge(a.counts, b.counts), exact.merge_counts(a.invalid, b.invalid))

    def compute(acc):
        return kind.values(acc.counts)

    return empty, update, merge, compute


class KeptState(NamedTuple):
    """The scores themselves, compact at the front."""

    scores: jax.Array  # float32 [capacity, C]
    marks: jax.Array  # float32 [capacity, C]: the weight, negative for negatives, 0 for what is left out
    rows: jax.Array  # int32 []: how many are kept; capacity + 1 once there were more
    invalid: exact.Count  # []


@metric
def _kept(
    num_classes: int | None,
    multilabel: bool,
    capacity: int,
    from_logits: bool,
    logits: str,
    labels: str,
    weighted: bool,
):
    columns = num_classes or 1

    def empty():
        # Arrays of their own each, so that they can be donated.
        scores, marks = (jnp.zeros((capacity, columns), jnp.float32) for _ in range(2))
        return KeptState(scores, marks, jnp.zeros((), jnp.int32), exact.empty_count())

    def append(acc, scores, marks, keep, invalid):
        """Put the rows to keep behind those that are there; what does not fit is dropped, and seen in `rows`."""
        place = jnp.where(keep, acc.rows + jnp.cumsum(keep, dtype=jnp.int32) - 1, capacity)
        rows = jnp.minimum(acc.rows + jnp.sum(keep, dtype=jnp.int32), capacity + 1)
        return KeptState(
            acc.scores.at[place].set(scores, mode="drop"),
            acc.marks.at[place].set(marks, mode="drop"),
            rows,
            invalid,
        )

    def update(acc, outputs, weight=None):
        x, positive, w, bad = _read(outputs, weight, num_classes, multilabel, from_logits, logits, labels)
        w = w if weighted else (w != 0).astype(jnp.float32)
        marks = jnp.where(positive, w, -w)
        bad = exact.add_to_count(acc.invalid, bad)
        return append(acc, jnp.where(w != 0, x, 0), marks, jnp.any(w != 0, axis=1), bad)

    def merge(a, b):
        # More than its capacity in one of them is more in both, whatever is appended.
        keep = jnp.arange(capacity, dtype=jnp.int32) < b.rows
        joined = append(a, b.scores, b.marks, keep, exact.merge_counts(a.invalid, b.invalid))
        return joined._replace(rows=jnp.minimum(a.rows + b.rows, capacity + 1))

    def compute(acc):
        return acc.scores, acc.marks

    return empty, update, merge, compute


def _read(
    outputs: Outputs,
    weight: Any,
    num_classes: int | None,
    multilabel: bool,
    from_logits: bool,
    logits: str,
    labels: str,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Scores and whether positive, `[n, C]` (one column for two classes); weights, `[n, C]` or `[n, 1]`.

    What has no place in an order, or no label, is left out and counted last.
    """
    reader = "an area under a curve"
    z, y = read_output(outputs, logits, reader), read_output(outputs, labels, reader)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise DataError(
            f"output {logits!r} must hold floating-point scores, got {z.dtype.name}{list(z.shape)}"
        )
    wanted = {y.shape} if multilabel else {(*y.shape, num_classes)}
    if num_classes is None:
        wanted = {y.shape, (*y.shape, 2)}
    if z.shape not in wanted or (multilabel and z.shape[-1:] != (num_classes,)):
        raise DataError(
            f"output {logits!r} of shape {list(z.shape)} does not fit the labels of shape {list(y.shape)} for "
            f"num_classes={num_classes}, multilabel={multilabel}"
        )
    z = z.astype(jnp.float32)
    w = element_weights(weight, y.shape, reader)
    if multilabel:
        z, y, w = (x.reshape(-1, x.shape[-1]) for x in (z, y, w))
        positive, usable = _yes_or_no(y, z)
    elif num_classes is None:
        if z.ndim > y.ndim:
            z = z[..., 1] - z[..., 0] if from_logits else z[..., 1]
        z, y, w = (x.reshape(-1, 1) for x in (z, y, w))
        positive, usable = _yes_or_no(y, z)
    else:
        if not jnp.issubdtype(y.dtype, jnp.integer):
            raise DataError(f"output {labels!r} must hold integers, got {y.dtype.name}{list(y.shape)}")
        z, y, w = z.reshape(-1, num_classes), y.reshape(-1, 1).astype(jnp.int32), w.reshape(-1, 1)
        positive = y == jnp.arange(num_classes, dtype=jnp.int32)[None, :]
        # Of the whole row, on the highest logit alone: the log-odds are then computed for their bins only.
        top = jnp.max(z, axis=-1, keepdims=True)
        usable = (jnp.isfinite(top) if from_logits else ~jnp.isnan(top)) & (y >= 0) & (y < num_classes)
        z = _log_odds(z) if from_logits else z
    bad = jnp.sum((w != 0) & ~usable, dtype=jnp.uint32)
    return z, positive, jnp.where(usable, w, 0), bad


def _yes_or_no(labels: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = labels.astype(jnp.float32)
    return y == 1, ((y == 0) | (y == 1)) & ~jnp.isnan(scores)


def _log_odds(z: jax.Array) -> jax.Array:
    """Log-odds of each class's softmax probability, without the cancellation of `1 - p` near 1."""
    shifted = z - jnp.max(z, axis=-1, keepdims=True)
    highest = shifted == 0
    e = jnp.exp(shifted)
    total = jnp.sum(e, axis=-1, keepdims=True)
    rest = jnp.sum(jnp.where(highest, 0, e), axis=-1, keepdims=True)
    # The sum over all other classes. Next to the one highest, nothing is subtracted from it; else it is at least 1.
    alone = total - rest < 1.5
    others = jnp.where(highest & alone, rest, total - e)
    return shifted - jnp.log(others)


def _bin_of_score(x: jax.Array, bins: int) -> jax.Array:
    """A monotone map of float32 onto `bins`: even steps within ±2^-10, then even steps of the logarithm.

    Adding 2^-10 to the magnitude and reading the bits does it: a sum's rounding is monotone, and so are the bits of
    positive floats as integers. Beyond ±2^14 all is one bin.
    """
    low, high = _bits(2.0**-10), _bits(2.0**14)
    half = bins // 2
    size = jax.lax.bitcast_convert_type(jnp.abs(x) + jnp.float32(2.0**-10), jnp.int32)
    step = jnp.clip(size - low, 0, high - low) // (-(-(high - low + 1) // half))
    return jnp.where(x < 0, half - 1 - step, half + step)


def _bin_of_probability(p: jax.Array, bins: int) -> jax.Array:
    """A monotone map of [0, 1] onto `bins`: even steps of the logarithm of p below 1/2, of 1 - p above.

    For p >= 1/2 float32 has 1 - p exactly.
    """
    low, high = _bits(2.0**-24), _bits(0.5 + 2.0**-24)
    half = bins // 2
    tail = jnp.maximum(jnp.where(p <= 0.5, p, 1 - p), 0)
    size = jax.lax.bitcast_convert_type(tail + jnp.float32(2.0**-24), jnp.int32)
    step = jnp.clip(size - low, 0, high - low) // (-(-(high - low + 1) // half))
    return jnp.where(p <= 0.5, step, bins - 1 - step)


def _bits(x: float) -> int:
    return int(np.float32(x).view(np.int32))
