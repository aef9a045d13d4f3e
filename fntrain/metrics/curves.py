"""Areas under ROC and precision-recall curves: streamed in fixed memory with a bound, or exact up to a capacity.

A streamed curve counts positives and negatives in bins of the score. Pairs in different bins are in a known
order; only those that share a bin are not, so the counts say how wrong the area can be.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _check
from .._check import ConfigError, DataError
from .._typing import Outputs
from . import _base
from ._base import Metric, Tally, metric, reading

ROUNDING = 2.0**-19
"""What float32 can add to a bound: a few roundings a term, and one for each level of a sum by halves."""


class Bounded(NamedTuple):
    """A value and how far off it can be: the truth lies within `value ± bound`."""

    value: jax.Array  # float32
    bound: jax.Array  # float32, the same shape


@metric
def roc_auc(
    num_classes: int | None = None,
    average: str | None = "macro",
    *,
    multilabel: bool = False,
    bins: int | None = None,
    exact: bool = False,
    capacity: int | None = None,
    from_logits: bool = True,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""The area under the ROC curve: how likely a positive scores above a negative, ties counting half.

    .. math:: A = P(s_+ > s_-) + \tfrac12 P(s_+ = s_-)

    Scores are counted in bins that are narrow near 0 and grow with the score's size; rounding to a bin never
    changes an order. With :math:`p_b` and :math:`n_b` the shares of positives and negatives in bin b,

    .. math:: \hat A = \sum_b p_b \Big(\sum_{c < b} n_c + \tfrac12 n_b\Big), \qquad
              |A - \hat A| \le \tfrac12 \sum_b p_b n_b

    to which `bound` adds float32's rounding, 2e-6. Several classes are taken one against the rest. A class's
    score is then its log-odds, :math:`z_c - \log \sum_{j \ne c} e^{z_j}`, which orders rows as its probability
    does.

    Args:
      num_classes: None for two classes, else C.
      average: over classes: `"macro"`, `"weighted"` (by their numbers of positives) or None for all of them.
      multilabel: True for `num_classes` labels a row, each of them yes or no, with a logit each.
      bins: a power of two up to 65,536; None is 16,384, or 1,024 a class. With logits the bound is about
        2.6 / bins; it grows where scores crowd together.
      exact: True keeps the scores instead of counting them in bins.
      capacity: how many rows `exact=True` keeps. More is a DataError in `compute`; where that is traced, as in a
        step's metrics, a value of NaN with a bound of infinity, which `fit` and `evaluate` raise as that error.
      from_logits: False for probabilities in [0, 1], which are binned finely near 0 and 1.
      logits: the key of the scores: `[…]` or `[…, 2]` for two classes (any score that orders the rows will do in
        `[…]`), `[…, C]` for more.
      labels: the key of the labels: 0 or 1, `[…]`; integers `[…]` for `num_classes`; `[…, C]` if `multilabel`.
      weighted: True weighs elements by the real weights, in float32; False takes weights as a mask and counts,
        exactly.

    Returns:
      A Metric whose value is `Bounded(value, bound)`: float32 scalars, or `[C]` for `average=None`. NaN where a
      class has no positives or no negatives, a score is NaN, or a label is no class.

    Raises:
      ConfigError: if an argument is out of range, or `exact` and `capacity` do not go together.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.roc_auc()
      >>> outputs = {"logits": jnp.array([0.1, 0.4, 0.35, 0.8]), "labels": jnp.array([0, 0, 1, 1])}
      >>> area = m.compute(m.update(m.empty(), outputs))
      >>> round(float(area.value), 4), bool(area.bound < 1e-5)
      (0.75, True)

    References:
      Hanley, McNeil, *The Meaning and Use of the Area under a ROC Curve*, 1982.
    """
    base = _scores(num_classes, multilabel, bins, exact, capacity, from_logits, logits, labels, weighted)
    return reading(base, _averaged(base, _binned_auc, _exact_auc, num_classes, average, weighted, exact))


@metric
def average_precision(
    num_classes: int | None = None,
    average: str | None = "macro",
    *,
    multilabel: bool = False,
    bins: int | None = None,
    exact: bool = False,
    capacity: int | None = None,
    from_logits: bool = True,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""Average precision: the area under the precision-recall curve, by steps.

    .. math:: \mathrm{AP} = \sum_k (R_k - R_{k-1}) P_k

    over the distinct scores in falling order. It is the mean, over positives, of the precision among all that
    score no less. Within a bin, that is highest if the bin's positives come first and together, and lowest if they
    come last and one by one: `bound` is the distance to the farther of the two, and 2e-6 for float32's rounding.
    The value takes the bin's positives and negatives as evenly mixed.

    Args:
      num_classes: as in `roc_auc`, and so are all others.
      average: over classes: `"macro"`, `"weighted"` (by their numbers of positives) or None for all of them.
      multilabel: True for `num_classes` labels a row.
      bins: a power of two up to 65,536.
      exact: True keeps the scores.
      capacity: how many rows `exact=True` keeps.
      from_logits: False for probabilities.
      logits: the key of the scores.
      labels: the key of the labels.
      weighted: True weighs elements by the real weights.

    Returns:
      A Metric whose value is `Bounded(value, bound)`; NaN where a class has no positives.

    Raises:
      ConfigError: if an argument is out of range.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.average_precision()
      >>> outputs = {"logits": jnp.array([0.1, 0.4, 0.35, 0.8]), "labels": jnp.array([0, 0, 1, 1])}
      >>> round(float(m.compute(m.update(m.empty(), outputs)).value), 4)
      0.8333
    """
    base = _scores(num_classes, multilabel, bins, exact, capacity, from_logits, logits, labels, weighted)
    return reading(base, _averaged(base, _binned_ap, _exact_ap, num_classes, average, weighted, exact))


@metric
def mean_average_precision(
    num_classes: int,
    *,
    multilabel: bool = False,
    bins: int | None = None,
    exact: bool = False,
    capacity: int | None = None,
    from_logits: bool = True,
    logits: str = "logits",
    labels: str = "labels",
    weighted: bool = False,
):
    r"""The mean over classes of `average_precision`, one class against the rest, or over labels.

    .. math:: \mathrm{mAP} = \frac1C \sum_c \mathrm{AP}_c

    Args:
      num_classes: C, and the other arguments as in `roc_auc`.
      multilabel: True for `num_classes` labels a row.
      bins: a power of two up to 65,536.
      exact: True keeps the scores.
      capacity: how many rows `exact=True` keeps.
      from_logits: False for probabilities.
      logits: the key of the scores.
      labels: the key of the labels.
      weighted: True weighs elements by the real weights.

    Returns:
      A Metric whose value is `Bounded(value, bound)`; NaN if a class has no positives
      (`average_precision(C, average=None)` says which).

    Raises:
      ConfigError: if an argument is out of range.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.mean_average_precision(2, multilabel=True)
      >>> outputs = {"logits": jnp.array([[2.0, 1.0], [0.0, 0.0], [1.0, 2.0]]),
      ...            "labels": jnp.array([[1, 1], [0, 0], [1, 0]])}
      >>> round(float(m.compute(m.update(m.empty(), outputs)).value), 4)
      0.75
    """
    _check.integer("num_classes", num_classes, at_least=1)
    base = _scores(num_classes, multilabel, bins, exact, capacity, from_logits, logits, labels, weighted)
    return reading(base, _averaged(base, _binned_ap, _exact_ap, num_classes, "macro", weighted, exact))


def _scores(
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
        _check.integer("num_classes", num_classes, at_least=1 if multilabel else 2)
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
        _check.integer("capacity", capacity, at_least=1)
        return _kept(num_classes, multilabel, capacity, from_logits, logits, labels, weighted)
    bins = (16_384 if num_classes is None else 1_024) if bins is None else bins
    if _check.integer("bins", bins, at_least=2) > 65_536 or bins & (bins - 1):
        raise ConfigError(f"`bins` must be a power of two up to 65536, got {bins}")
    return _binned(num_classes, multilabel, bins, from_logits, logits, labels, weighted)


class BinsState(NamedTuple):
    """Negatives and positives by class and bin; `Count`s, or `Sum`s if weighted."""

    counts: Any  # [C, 2, bins]
    invalid: _base.Count  # []: NaN scores, and labels that are no class


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
    kind = _base.tally(weighted)
    columns = num_classes or 1

    def empty():
        return BinsState(kind.empty((columns, 2, bins)), _base.empty_count())

    def update(acc, outputs, weight=None):
        x, positive, w, bad = _read(outputs, weight, num_classes, multilabel, from_logits, logits, labels)
        amounts = jnp.broadcast_to(kind.amounts(w), x.shape)
        side = jnp.arange(columns, dtype=jnp.int32)[None, :] * 2 + positive.astype(jnp.int32)
        cell = side * bins + (_bin_of_score if from_logits else _bin_of_probability)(x, bins)
        new = jnp.zeros(columns * 2 * bins, amounts.dtype).at[cell.reshape(-1)].add(amounts.reshape(-1))
        return BinsState(
            kind.add(acc.counts, new.reshape(columns, 2, bins)), _base.add_to_count(acc.invalid, bad)
        )

    def merge(a, b):
        return BinsState(kind.merge(a.counts, b.counts), _base.merge_counts(a.invalid, b.invalid))

    def compute(acc):
        return kind.values(acc.counts)

    return empty, update, merge, compute


class KeptState(NamedTuple):
    """The scores themselves, compact at the front."""

    scores: jax.Array  # float32 [capacity, C]
    marks: jax.Array  # float32 [capacity, C]: the weight, negative for negatives, 0 for what is left out
    rows: jax.Array  # int32 []: how many are kept; capacity + 1 once there were more
    invalid: _base.Count  # []


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
        return KeptState(scores, marks, jnp.zeros((), jnp.int32), _base.empty_count())

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
        bad = _base.add_to_count(acc.invalid, bad)
        return append(acc, jnp.where(w != 0, x, 0), marks, jnp.any(w != 0, axis=1), bad)

    def merge(a, b):
        # More than its capacity in one of them is more in both, whatever is appended.
        keep = jnp.arange(capacity, dtype=jnp.int32) < b.rows
        joined = append(a, b.scores, b.marks, keep, _base.merge_counts(a.invalid, b.invalid))
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
    z, y = _base.read(outputs, logits, reader), _base.read(outputs, labels, reader)
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
    w = _base.weights(weight, y.shape, reader)
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


def _averaged(
    base: Metric,
    of_bins: Callable,
    of_kept: Callable,
    num_classes: int | None,
    average: str | None,
    weighted: bool,
    exact: bool,
) -> Callable[[Any], Bounded]:
    """`compute` for a curve: each class's area and bound, then their average."""
    _check.one_of("average", average, ("macro", "weighted", None))
    kind = _base.tally(weighted)

    def areas(acc):
        if not exact:
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
        valid = _base.read_count(acc.invalid) == 0
        each = Bounded(*(jnp.where(valid, x, jnp.nan) for x in each))
        if num_classes is None:
            return Bounded(each.value[0], each.bound[0])
        if average is None:
            return each
        if average == "macro":
            return Bounded(jnp.mean(each.value), jnp.mean(each.bound))
        share = _base.ratio(positives, jnp.sum(positives))
        return Bounded(*(jnp.sum(jnp.where(share == 0, 0, x * share)) for x in each))

    return compute


def _check_capacity(rows: jax.Array, capacity: int) -> None:
    if _check.is_concrete(rows) and rows.is_fully_addressable and bool(np.any(np.asarray(rows) > capacity)):
        raise DataError(
            f"more than `capacity={capacity}` rows were seen, so the area would not be exact; raise `capacity`, or "
            f"leave out `exact=True` for an area with a bound"
        )


def _binned_auc(kind: Tally, positive: Any, negative: Any) -> tuple[Bounded, jax.Array]:
    """Areas under the ROC curves of binned scores, `[C]`, and the numbers of positives."""
    p_through, n_through = _through(kind, positive), _through(kind, negative)
    total_p, total_n = p_through[:, -1:], n_through[:, -1:]
    p, n = _base.ratio(kind.read(positive), total_p), _base.ratio(kind.read(negative), total_n)
    n_below = _base.ratio(_before(n_through), total_n)
    value = _tree_sum(p * (n_below + 0.5 * n))
    return Bounded(value, 0.5 * _tree_sum(p * n) + ROUNDING), total_p[:, 0]


def _binned_ap(kind: Tally, positive: Any, negative: Any) -> tuple[Bounded, jax.Array]:
    """Average precisions of binned scores, `[C]`, and the numbers of positives."""
    positive, negative = (jax.tree.map(lambda x: x[:, ::-1], side) for side in (positive, negative))
    p_through, n_through = _through(kind, positive), _through(kind, negative)
    p, n = kind.read(positive), kind.read(negative)
    p_above, n_above = _before(p_through), _before(n_through)
    total = p_through[:, -1:]
    # What the first positive of a bin weighs at least.
    one = jnp.minimum(0.0 if isinstance(positive, _base.Sum) else 1.0, p)

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
    share = _base.ratio(p, total)
    upper, lower, value = (_tree_sum(share * x) for x in (high, low, jnp.clip(middle, low, high)))
    return Bounded(value, jnp.maximum(upper - value, value - lower) + ROUNDING), total[:, 0]


def _through(kind: Tally, counts: Any) -> jax.Array:
    """Running totals along the bins, each rounded to float32 once or twice, however large the counts."""
    if isinstance(counts, _base.Sum):
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


def _exact_auc(scores: jax.Array, marks: jax.Array, weighted: bool) -> tuple[jax.Array, jax.Array]:
    """The area under the ROC curve of scores `[N]`, and the total of the positives."""
    last, p_through, n_through = _sorted_totals(scores, marks, weighted)
    p, n = p_through.astype(jnp.float32), n_through.astype(jnp.float32)
    total_p, total_n = p[-1], n[-1]
    # At the last of each run of ties; in between, the value of the run before.
    p_done, n_done = (jax.lax.cummax(jnp.where(last, x, 0)) for x in (p, n))
    p_share, n_share = _base.ratio(p_done, total_p), _base.ratio(n_done, total_n)
    p_before, n_before = _shift(p_share), _shift(n_share)
    area = _tree_sum(jnp.where(last, (n_share - n_before) * 0.5 * (p_share + p_before), 0))
    defined = (total_p > 0) & (total_n > 0)
    return jnp.where(defined, area, jnp.nan), total_p


def _exact_ap(scores: jax.Array, marks: jax.Array, weighted: bool) -> tuple[jax.Array, jax.Array]:
    """The average precision of scores `[N]`, and the total of the positives."""
    last, p_through, n_through = _sorted_totals(scores, marks, weighted)
    p, n = p_through.astype(jnp.float32), n_through.astype(jnp.float32)
    total = p[-1]
    share = _base.ratio(jax.lax.cummax(jnp.where(last, p, 0)), total)
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
