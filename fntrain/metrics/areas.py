"""Areas under curves of ranked scores, and how far off they can be."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import DataError
from . import exact
from .base import ratio

ROUNDING = 2.0**-19


"""What float32 can add to a bound: a few roundings a term, and one for each level of a sum by halves."""


class Bounded(NamedTuple):
    """A value and how far off it can be: the truth lies within `value ± bound`."""

    value: jax.Array  # float32
    bound: jax.Array  # float32, the same shape


def averaged(
    of_bins: Callable[..., Any],
    of_kept: Callable[..., Any],
    num_classes: int | None,
    average: str | None,
    weighted: bool,
    kept: bool,
) -> Callable[[Any], Bounded]:
    """`compute` for a curve: each class's area and bound, then their average."""
    check.one_of("average", average, ("macro", "weighted", None))
    kind = exact.tally(weighted)

    def areas(acc):
        if not kept:
            negative, positive = (jax.tree.map(lambda x, i=i: x[:, i], acc.counts) for i in (0, 1))
            return of_bins(kind, positive, negative)
        capacity = acc.scores.shape[0]
        _check_capacity(acc.rows, capacity)
        value, positives = jax.vmap(lambda s, m: of_kept(s, m, weighted), in_axes=1)(acc.scores, acc.marks)
        fits = acc.rows <= capacity
        value = jnp.where(fits, value, jnp.nan)
        bound = jnp.where(jnp.isnan(value), jnp.nan, jnp.float32(ROUNDING))
        return Bounded(value, jnp.where(fits, bound, jnp.inf)), positives

    def compute(acc):
        each, positives = areas(acc)
        valid = exact.read_count(acc.invalid) == 0
        each = Bounded(*(jnp.where(valid, x, jnp.nan) for x in each))
        if num_classes is None:
            return Bounded(each.value[0], each.bound[0])
        if average is None:
            return each
        if average == "macro":
            return Bounded(jnp.mean(each.value), jnp.mean(each.bound))
        share = ratio(positives, jnp.sum(positives))
        return Bounded(*(jnp.sum(jnp.where(share == 0, 0, x * share)) for x in each))

    return compute


def _check_capacity(rows: jax.Array, capacity: int) -> None:
    if check.is_concrete(rows) and rows.is_fully_addressable and bool(np.any(np.asarray(rows) > capacity)):
        raise DataError(
            f"more than `capacity={capacity}` rows were seen, so the area would not be exact; raise `capacity`, or "
            f"leave out `exact=True` for an area with a bound"
        )


def binned_auc(kind: exact.Tally, positive: Any, negative: Any) -> tuple[Bounded, jax.Array]:
    """Areas under the ROC curves of binned scores, `[C]`, and the numbers of positives."""
    p_through, n_through = _through(kind, positive), _through(kind, negative)
    total_p, total_n = p_through[:, -1:], n_through[:, -1:]
    p, n = ratio(kind.read(positive), total_p), ratio(kind.read(negative), total_n)
    n_below = ratio(_before(n_through), total_n)
    value = _tree_sum(p * (n_below + 0.5 * n))
    return Bounded(value, 0.5 * _tree_sum(p * n) + ROUNDING), total_p[:, 0]


def binned_ap(kind: exact.Tally, positive: Any, negative: Any) -> tuple[Bounded, jax.Array]:
    """Average precisions of binned scores, `[C]`, and the numbers of positives."""
    positive, negative = (jax.tree.map(lambda x: x[:, ::-1], side) for side in (positive, negative))
    p_through, n_through = _through(kind, positive), _through(kind, negative)
    p, n = kind.read(positive), kind.read(negative)
    p_above, n_above = _before(p_through), _before(n_through)
    total = p_through[:, -1:]
    # What the first positive of a bin weighs at least.
    one = jnp.minimum(0.0 if isinstance(positive, exact.Sum) else 1.0, p)

    def precision(p_in, n_in):
        true = p_above + p_in
        return true / jnp.maximum(true + n_above + n_in, jnp.finfo(jnp.float32).tiny)

    def mixed(
        p_in,
    ):  # after a part of the positives, as large a part of the negatives, the last half of one less
        return precision(p_in, n * (p_in - 0.5 * one) / jnp.where(p > 0, p, 1))

    high = precision(p, jnp.zeros_like(n))
    # The precision after each of the positives, all negatives before them, rises ever more slowly, so that its
    # mean is at least that of the first and the last.
    low = 0.5 * (precision(one, n) + precision(p, n))
    first = jnp.maximum(one, p / 64)
    middle = (mixed(first) + 4 * mixed(0.5 * (first + p)) + mixed(p)) / 6
    share = ratio(p, total)
    upper, lower, value = (_tree_sum(share * x) for x in (high, low, jnp.clip(middle, low, high)))
    return Bounded(value, jnp.maximum(upper - value, value - lower) + ROUNDING), total[:, 0]


def _through(kind: exact.Tally, counts: Any) -> jax.Array:
    """Running totals along the bins, each rounded to float32 once or twice, however large the counts."""
    if isinstance(counts, exact.Sum):
        return jnp.cumsum(kind.read(counts), axis=-1)
    # Sums of 16-bit limbs over at most 2^16 bins fit into 32 bits.
    limbs = [part for word in (counts.high, counts.low) for part in (word >> 16, word & jnp.uint32(0xFFFF))]
    total = jnp.zeros(counts.low.shape, jnp.float32)
    for limb in limbs:
        total = total * jnp.float32(2.0**16) + jnp.cumsum(limb, axis=-1, dtype=jnp.uint32).astype(jnp.float32)
    return total


def _before(through: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.zeros_like(through[:, :1]), through[:, :-1]], axis=1)


def _tree_sum(x: jax.Array) -> jax.Array:
    """Sum the last axis by halves, so that the rounding is known to be small: one a level."""
    width = 1 << (x.shape[-1] - 1).bit_length()
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])
    shifts = jnp.asarray([1 << level for level in range(width.bit_length() - 1)], jnp.int32)
    return jax.lax.scan(_add_rolled, x, shifts)[0][..., 0]


def _add_rolled(x: jax.Array, by: jax.Array) -> tuple[jax.Array, None]:
    return x + jnp.roll(x, by, axis=-1), None


def exact_auc(scores: jax.Array, marks: jax.Array, weighted: bool) -> tuple[jax.Array, jax.Array]:
    """The area under the ROC curve of scores `[N]`, and the total of the positives."""
    last, p_through, n_through = _sorted_totals(scores, marks, weighted)
    p, n = p_through.astype(jnp.float32), n_through.astype(jnp.float32)
    total_p, total_n = p[-1], n[-1]
    # At the last of each run of ties; in between, the value of the run before.
    p_done, n_done = (jax.lax.cummax(jnp.where(last, x, 0)) for x in (p, n))
    p_share, n_share = ratio(p_done, total_p), ratio(n_done, total_n)
    p_before, n_before = _shift(p_share), _shift(n_share)
    area = _tree_sum(jnp.where(last, (n_share - n_before) * 0.5 * (p_share + p_before), 0))
    defined = (total_p > 0) & (total_n > 0)
    return jnp.where(defined, area, jnp.nan), total_p


def exact_ap(scores: jax.Array, marks: jax.Array, weighted: bool) -> tuple[jax.Array, jax.Array]:
    """The average precision of scores `[N]`, and the total of the positives."""
    last, p_through, n_through = _sorted_totals(scores, marks, weighted)
    p, n = p_through.astype(jnp.float32), n_through.astype(jnp.float32)
    total = p[-1]
    share = ratio(jax.lax.cummax(jnp.where(last, p, 0)), total)
    precision = p / jnp.maximum(p + n, jnp.finfo(jnp.float32).tiny)
    area = _tree_sum(jnp.where(last, (share - _shift(share)) * precision, 0))
    return jnp.where(total > 0, area, jnp.nan), total


def _shift(x: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])


def _sorted_totals(
    scores: jax.Array, marks: jax.Array, weighted: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """By falling score: whether it is the last of its ties, and positives and negatives up to it."""
    falling = -scores
    bits, below = jax.lax.bitcast_convert_type(falling, jnp.uint32), falling < 0
    size = bits & jnp.uint32(0x7FFFFFFF)  # of which the two zeros have the same
    if weighted:
        key = jnp.where(below, ~bits, bits | jnp.uint32(1 << 31))
        key, marks = jax.lax.sort((key, marks), num_keys=1, is_stable=False)
        positive, negative = jnp.maximum(marks, 0), jnp.maximum(-marks, 0)
    else:
        # Single words sort several times faster than pairs. Sorting the two signs apart frees a bit for the label.
        packed = jnp.where(below, jnp.uint32(0x7FFFFFFF) - size, size) << 1 | (marks > 0).astype(jnp.uint32)
        nothing = jnp.uint32(0xFFFFFFFF)  # no number's, and behind them all
        sides = [jnp.where((marks != 0) & side, packed, nothing) for side in (below, ~below)]
        packed = jnp.concatenate([jax.lax.sort(side, is_stable=False) for side in sides])
        key, label = packed >> 1, (packed & 1).astype(jnp.int32)
        positive, negative = (jnp.where(packed != nothing, x, 0) for x in (label, 1 - label))
    last = jnp.concatenate([key[1:] != key[:-1], jnp.ones(1, jnp.bool_)])
    return last, jnp.cumsum(positive), jnp.cumsum(negative)
