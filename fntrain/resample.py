"""Whole arrays drawn again: an interval for any score, and two sets of predictions compared pair by pair."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._core import check
from ._core.errors import ConfigError, DataError
from ._core.interval import Interval

Score = Callable[..., Any]


class Comparison(NamedTuple):
    """What two sets of predictions differ by: the score of `b` less that of `a`, with its interval and p-value."""

    difference: float
    low: float
    high: float
    p_value: float
    a: float
    b: float


def bootstrap(
    score: Score,
    *arrays: Any,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Any:
    r"""A score of whole arrays with the interval it is known to: the percentile bootstrap.

    .. math:: [\,Q_{\alpha / 2}(s_1, \dots, s_R),\; Q_{1 - \alpha / 2}(s_1, \dots, s_R)\,], \qquad
              s_r = \text{score of N rows drawn with replacement}

    Args:
      score: `(*arrays) -> number`, or a dict of numbers: `scores.classification_metrics`, `np.mean`, scikit-learn's.
      *arrays: what it takes, one entry an example along the first axis, `(y_true, y_pred)` say.
      replicates: R, >= 20.
      confidence: :math:`1 - \alpha`, in (0, 1).
      seed: of the draws.

    Returns:
      An `Interval`, `(value, low, high)`, floats; of a dict, a dict of them. Replicates whose score is NaN (no example
      of a class was drawn) do not count.

    Raises:
      ConfigError: if `score` is no function, or a number is out of range.
      DataError: if there is no array, or they differ in length, or are empty.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> value, low, high = ft.scores.bootstrap(np.mean, np.arange(100.0))
      >>> value, 42 < low < 46, 53 < high < 57  # the standard error is 2.9
      (49.5, True, True)

    References:
      Efron, *Bootstrap methods: another look at the jackknife*, 1979.
    """
    check.function("score", score, "(*arrays) -> number", takes=len(arrays) or None)
    tails, rng = _drawn(replicates, confidence, seed)
    rows = _rows(**{f"arrays[{i}]": x for i, x in enumerate(arrays)})
    size = len(rows[0])
    draws = (rng.integers(0, size, size) for _ in range(replicates))
    return _interval(score(*rows), [score(*(x[draw] for x in rows)) for draw in draws], tails)


def compare(
    a: Any,
    b: Any,
    y_true: Any = None,
    score: Score | None = None,
    *,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    r"""Two sets of predictions of the same examples: by how much `b` scores higher than `a`, and whether by chance.

    .. math:: d = s(b) - s(a), \qquad p = \frac{1 + \#\{r : |d_r| \ge |d|\}}{1 + R}

    The interval is that of pairs drawn with replacement; :math:`d_r` is the difference after each pair was swapped or
    not, by a coin: what there would be to see, if which is which did not matter. What is hard for both takes no part
    in either, so that a pair says far more than two intervals side by side.

    Args:
      a: predictions, `[N, …]`; without `y_true`, a number an example (its loss, or whether it was right).
      b: the others, of the same examples.
      y_true: what is to be predicted, `[N, …]`; None compares the means of `a` and `b`.
      score: `(y_true, y_pred) -> number`; None is the accuracy.
      replicates: R, >= 20.
      confidence: of the interval, in (0, 1).
      seed: of the draws.

    Returns:
      A Comparison: `difference`, `low`, `high`, `p_value`, and the scores `a` and `b`, floats.

    Raises:
      ConfigError: if `score` is no function or comes without `y_true`, or a number is out of range.
      DataError: if the arrays are empty or differ in length or form.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> y = np.arange(200) % 2
      >>> a, b = np.where(np.arange(200) < 30, 1 - y, y), np.where(np.arange(200) < 10, 1 - y, y)
      >>> found = ft.scores.compare(a, b, y)
      >>> round(found.difference, 3), found.low > 0, found.p_value < 0.01
      (0.1, True, True)

    References:
      Good, *Permutation, parametric and bootstrap tests of hypotheses*, 2005.
    """
    tails, rng = _drawn(replicates, confidence, seed)
    if score is not None and y_true is None:
        raise ConfigError(
            "`score` is of predictions against `y_true`: give it, `compare(a, b, y_true, score)`"
        )
    if y_true is None:
        a, b = _rows(a=a, b=b)
        truth, score = None, _mean_of_second
    else:
        a, b, truth = _rows(a=a, b=b, y_true=y_true)
        score = _accuracy if score is None else score
        check.function("score", score, "(y_true, y_pred) -> number", takes=2)
    if a.shape != b.shape:
        raise DataError(f"`a` and `b` must have one form, got {list(a.shape)} and {list(b.shape)}")
    size = len(a)

    def difference(rows: Any, a: np.ndarray, b: np.ndarray) -> float:
        y = truth if truth is None or rows is None else truth[rows]
        return float(score(y, b) - score(y, a))

    found = difference(None, a, b)
    drawn, swapped = [], []
    for _ in range(replicates):
        rows = rng.integers(0, size, size)
        drawn.append(difference(rows, a[rows], b[rows]))
        coin = rng.integers(0, 2, size).astype(bool).reshape((size,) + (1,) * (a.ndim - 1))
        swapped.append(difference(None, np.where(coin, b, a), np.where(coin, a, b)))
    _, low, high = _interval(found, drawn, tails)
    # Sums in another order differ by a rounding, and are the same difference.
    as_far = np.sum(np.abs(swapped) >= abs(found) * (1 - 1e-9))
    p = (1 + float(as_far)) / (1 + replicates)
    return Comparison(found, low, high, p, float(score(truth, a)), float(score(truth, b)))


def _accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    return float(np.mean(y_true == y_pred))


def _mean_of_second(_: Any, values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64))


def _drawn(replicates: int, confidence: float, seed: int) -> tuple[tuple[float, float], np.random.Generator]:
    check.integer("replicates", replicates, at_least=20)
    check.number("confidence", confidence, above=0, below=1)
    check.integer("seed", seed, at_least=0)
    return ((1 - confidence) / 2, (1 + confidence) / 2), np.random.default_rng(seed)


def _rows(**arrays: Any) -> list[np.ndarray]:
    found = {name: np.asarray(x) for name, x in arrays.items()}
    if not found:
        raise DataError("`arrays` must hold at least one array, `bootstrap(score, y_true, y_pred)`")
    shapes = ", ".join(f"`{name}` {list(x.shape)}" for name, x in found.items())
    if len({x.shape[:1] for x in found.values()}) != 1 or not next(iter(found.values())).size:
        raise DataError(
            f"arrays must share a first axis that is not empty, one entry an example, got {shapes}"
        )
    return list(found.values())


def _interval(whole: Any, replicates: list[Any], tails: tuple[float, float]) -> Any:
    if isinstance(whole, Mapping):
        return {name: _interval(x, [each[name] for each in replicates], tails) for name, x in whole.items()}
    values = np.array(replicates, np.float64)
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, tails, method="weibull") if len(values) else (np.nan, np.nan)
    return Interval(float(whole), float(low), float(high))
