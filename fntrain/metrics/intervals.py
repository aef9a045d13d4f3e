"""bootstrap: what a metric would be on other data of the same kind, accumulated along with it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.interval import Interval
from .._core.typing import Accumulator
from .areas import Bounded
from .base import Metric, checked, metric, read_output

MOST = 8
"""A row stands at most that often in a replicate; a Poisson number is larger once in a million."""


class BootstrapState(NamedTuple):
    """The metric's own accumulator, and one a replicate, `[R, …]`."""

    whole: Accumulator
    replicates: Accumulator


@metric
def bootstrap(
    metric: Metric, replicates: int = 200, confidence: float = 0.95, *, key: str | None = None, seed: int = 0
):
    r"""A metric and the interval it is known to: the bootstrap, without keeping the data.

    .. math:: w_{ir} \sim \text{Poisson}(1), \qquad
              [\,Q_{\alpha / 2}(m_1, \dots, m_R),\; Q_{1 - \alpha / 2}(m_1, \dots, m_R)\,]

    Replicate r sees row i :math:`w_{ir}` times. That number is a function of `seed`, r and what the row is, so the
    replicates are the same, bit for bit, however the data is cut, ordered, padded and spread over devices. A row with
    an inner axis (tokens) stands or falls as one.

    What a row is, its outputs say, all of them and every bit; rows that are alike in all are one to it, which makes the
    interval too wide. Where outputs are few and coarse, or come from a program whose rounding depends on the batch,
    give the rows a number of their own, `key`.

    Args:
      metric: which one.
      replicates: R, >= 20.
      confidence: :math:`1 - \alpha`, in (0, 1).
      key: the output, integers `[B]`, that tells rows apart; None takes all outputs.
      seed: of the replicates, >= 0.

    Returns:
      A Metric whose value is an `Interval`, `(value, low, high)`; of a metric that is a dict, one by each key. Of a
      value with a bound, the interval is of the value.

    Raises:
      ConfigError: if `metric` is none, or a number is out of range.
      DataError: when outputs disagree on their rows.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> m = ft.metrics.bootstrap(ft.metrics.mean("x"), replicates=400)
      >>> value, low, high = m.compute(m.update(m.empty(), {"x": jnp.arange(100.0)}))
      >>> float(value), bool(40 < low < 46), bool(53 < high < 59)  # the standard error is 2.9
      (49.5, True, True)

    References:
      Efron, *Bootstrap methods*, 1979; Chamandy et al., *Estimating uncertainty for massive data streams*, 2012.
    """
    checked(metric, "metric")
    number = check.integer("replicates", replicates, at_least=20)
    check.number("confidence", confidence, above=0, below=1)
    seed = check.integer("seed", seed, at_least=0)
    if key is not None and not isinstance(key, str):
        raise ConfigError(f"`key` must be the name of an output, got {check.said(key)}")
    # Of R replicates the r-th smallest is the quantile r / (R + 1): so a 95 % interval holds 95 % of new values.
    tails = [((number + 1) * q - 1) / (number - 1) for q in ((1 - confidence) / 2, (1 + confidence) / 2)]
    tails = (max(tails[0], 0.0), min(tails[1], 1.0))

    def empty():
        whole = metric.empty()
        many = jax.tree.map(lambda x: jnp.tile(x, (number, *[1] * jnp.ndim(x))), metric.empty())
        return BootstrapState(whole, many)

    def update(acc, outputs, weight=None):
        rows = _digest(outputs if key is None else {key: read_output(outputs, key, "bootstrap")})
        times = _poisson(rows, number, seed)
        given = jnp.ones(times.shape[1:], jnp.float32) if weight is None else jnp.asarray(weight)

        def one(acc, times):
            # A metric may take a weight for a mask, and so a row that stands there twice comes twice.
            def again(i, acc):
                there = (times > i).reshape(times.shape + (1,) * (given.ndim - 1))
                return metric.update(acc, outputs, jnp.where(there, given, jnp.zeros((), given.dtype)))

            return jax.lax.fori_loop(0, MOST, again, acc)

        return BootstrapState(metric.update(acc.whole, outputs, weight), jax.vmap(one)(acc.replicates, times))

    def merge(a, b):
        return BootstrapState(
            metric.merge(a.whole, b.whole), jax.vmap(metric.merge)(a.replicates, b.replicates)
        )

    def compute(acc):
        return _intervals(metric.compute(acc.whole), jax.vmap(metric.compute)(acc.replicates), tails)

    return Metric(empty, update, merge, compute, better=metric.better)


def _intervals(whole: Any, replicates: Any, tails: tuple[float, float]) -> Any:
    if isinstance(whole, Mapping):
        return {name: _intervals(x, replicates[name], tails) for name, x in whole.items()}
    if isinstance(whole, Bounded):
        whole, replicates = whole.value, replicates.value
    # A replicate that has none of the rows that a value takes says nothing of it; a value that is none has no interval.
    low, high = jnp.nanquantile(replicates.astype(jnp.float32), jnp.array(tails, jnp.float32), axis=0)
    known = ~jnp.isnan(whole.astype(jnp.float32))
    return Interval(whole, jnp.where(known, low, jnp.nan), jnp.where(known, high, jnp.nan))


def _digest(outputs: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """64 bits a row, of all that it holds: a sum of mixed words, whose order does not matter."""
    arrays = {name: jnp.asarray(x) for name, x in outputs.items()}
    arrays = {name: x for name, x in arrays.items() if x.ndim}
    sizes = {x.shape[0] for x in arrays.values()}
    if len(sizes) != 1:
        shapes = {name: list(x.shape) for name, x in arrays.items()}
        raise DataError(f"`outputs` must share their first axis, the rows, for a bootstrap; got {shapes}")
    halves = [jnp.zeros(next(iter(sizes)), jnp.uint32)] * 2
    for i, name in enumerate(sorted(arrays)):
        words = _words(arrays[name])
        places = jnp.arange(words.shape[1], dtype=jnp.uint32)[None] + jnp.uint32(i << 24)
        for half, salt in enumerate((0x9E3779B9, 0x85EBCA6B)):
            mixed = _mixed(words ^ _mixed(places + jnp.uint32(salt)))
            halves[half] = halves[half] + jnp.sum(mixed, 1, dtype=jnp.uint32)
    return halves[0], halves[1]


def _words(x: jax.Array) -> jax.Array:
    """An array's rows as words of 32 bits, `[B, n]`."""
    x = x.reshape(x.shape[0], -1)
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.float32)
        return jax.lax.bitcast_convert_type(jnp.where(x == 0, jnp.zeros((), x.dtype), x), jnp.uint32)  # no -0
    return x.astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """Each bit out depends on each bit in: the finalizer of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _poisson(rows: tuple[jax.Array, jax.Array], number: int, seed: int) -> jax.Array:
    """How often each row stands in each replicate, `[R, B]`: its uniform number, read off the distribution."""
    first, second = rows
    which = _mixed(jnp.arange(number, dtype=jnp.uint32) + jnp.uint32((seed * 0x9E3779B1) % 2**32))[:, None]
    uniform = _mixed(_mixed(first[None] ^ which) + _mixed(second[None] + which))
    terms = np.exp(-1.0) / np.cumprod([1.0, *range(1, MOST)])
    steps = np.minimum(np.cumsum(terms) * 2.0**32, 2.0**32 - 1).astype(np.uint32)
    return sum((uniform >= jnp.uint32(step)).astype(jnp.int32) for step in steps)  # type: ignore[return-value]
