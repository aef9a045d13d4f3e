"""Metric and collect, and what every reducer asks of its outputs and weights.

A metric is a pure reducer, a commutative monoid with a reading: `empty()` is the identity, `update` folds one
batch in, `merge` joins two accumulators in any order, and only `compute` divides. So a metric over an epoch is
the metric of the epoch's data, however it was cut into batches, devices or padded tails.
"""

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, overload

import jax
import jax.numpy as jnp
import numpy as np

from .._core.check import did_you_mean
from .._core.errors import ConfigError, DataError
from .._core.ranking import Direction
from .._core.typing import Accumulator, Outputs
from .._core.value import Value, factory

Better = Direction | Mapping[str, Any] | None


class Metric(Value):
    """A pure reducer `(empty, update, merge, compute)` that knows the call that made it.

    To write one, return the four functions from a function decorated with `fntrain.metrics.metric`.

    Attributes:
      empty: `() -> acc`, the identity of `merge`.
      update: `(acc, outputs, weight=None) -> acc`: folds one batch in. `outputs` maps keys to arrays; `weight`
        has the elements' leading axes (`[B]`, or `[B, T]` for tokens), None is ones. Elements of weight zero
        are left out, whatever they hold.
      merge: `(acc, acc) -> acc`, associative and commutative.
      compute: `acc -> value`; NaN where nothing was seen.
      base: the metric whose accumulator this one reads, if it is a `reading`; else the metric itself.
      better: `"max"` or `"min"`, whichever values are better, by key where the value is a dict; None if not known.
    """

    def __init__(
        self,
        empty: Callable[[], Accumulator],
        update: Callable[..., Accumulator],
        merge: Callable[[Accumulator, Accumulator], Accumulator],
        compute: Callable[[Accumulator], Any],
        base: "Metric | None" = None,
        better: Better = None,
    ):
        self.empty = empty
        self.update = update
        self.merge = merge
        self.compute = compute
        self.base: Metric = self if base is None else base
        self.better: Better = better

    def _parts(self) -> tuple[Any, ...]:
        return (self.empty, self.update, self.merge, self.compute)


jax.tree_util.register_static(Metric)

P = ParamSpec("P")


@overload
def metric(function: Callable[P, Any], /) -> Callable[P, Metric]: ...


@overload
def metric(*, better: Better = None) -> Callable[[Callable[P, Any]], Callable[P, Metric]]: ...


def metric(function: Any = None, /, *, better: Better = None) -> Any:
    """Decorator: a function that returns `(empty, update, merge, compute)` makes Metrics.

    Args:
      function: what is decorated; None makes a decorator.
      better: `"max"` or `"min"`: which values of such a metric are better, so that monitors need not be told; by
        key, if its value is a dict. None where that is not known, or makes no sense.

    Examples:
      >>> @metric(better="min")
      ... def worst(key: str):
      ...     def update(acc, outputs, weight=None):
      ...         return jnp.maximum(acc, jnp.max(outputs[key]))
      ...
      ...     return lambda: jnp.float32(-jnp.inf), update, jnp.maximum, lambda acc: acc
      >>> worst("error"), worst("error").better
      (worst(key='error'), 'min')
    """
    if function is None:
        return factory(Metric, better=better)
    return factory(Metric)(function)


def reading(base: Metric, compute: Callable[[Accumulator], Any]) -> tuple[Any, ...]:
    """The parts of a metric that accumulates what `base` does and reads it in another way.

    Metrics with equal bases share one accumulator when they are collected.
    """
    return base.empty, base.update, base.merge, compute, base


@metric
def collect(**metrics: Metric):
    """Several metrics as one, whose value is a dict by name.

    Metrics that read the same counts in different ways (accuracy, precision and F1 of the classes, their confusion
    matrix) are counted once.

    Args:
      **metrics: metrics by name.

    Returns:
      A Metric; its value is a dict with these names. Its accumulator is a dict too, with one entry for each
      distinct accumulator, under the first name that reads it.

    Raises:
      ConfigError: if an argument is no metric.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> both = ft.metrics.collect(a=ft.metrics.mean("x"), b=ft.metrics.mean("y"))
      >>> acc = both.update(both.empty(), {"x": jnp.array([1.0, 3.0]), "y": jnp.array([0.0, 1.0])})
      >>> {k: float(v) for k, v in both.compute(acc).items()}
      {'a': 2.0, 'b': 0.5}
    """
    for name, member in metrics.items():
        checked(member, name)

    bases: dict[Metric, str] = {}
    for name, member in metrics.items():
        bases.setdefault(member.base, name)

    def empty():
        return {name: base.empty() for base, name in bases.items()}

    def update(acc, outputs, weight=None):
        return {name: base.update(acc[name], outputs, weight) for base, name in bases.items()}

    def merge(a, b):
        return {name: base.merge(a[name], b[name]) for base, name in bases.items()}

    def compute(acc):
        return {name: m.compute(acc[bases[m.base]]) for name, m in metrics.items()}

    better = {name: m.better for name, m in metrics.items() if m.better is not None}
    return Metric(empty, update, merge, compute, better=better or None)


def checked(value: Any, name: str) -> Metric:
    """`value` itself if it is a metric.

    Raises:
      ConfigError: if it is something else, with the usual cause.
    """
    if isinstance(value, Metric):
        return value
    call = getattr(value, "__name__", None)
    hint = f"; it looks like a factory: call it, `{call}(...)`" if callable(value) and call else ""
    raise ConfigError(
        f"metric `{name}` must be a Metric (`fntrain.metrics.accuracy()`, say), got {value!r}{hint}"
    )


def ratio(top: jax.Array, bottom: jax.Array) -> jax.Array:
    """`top / bottom`, NaN where the bottom is zero: nothing was seen there."""
    return jnp.where(bottom != 0, top / jnp.where(bottom != 0, bottom, 1), jnp.nan)


def read_output(outputs: Outputs, key: str, reader: str) -> jax.Array:
    """The array under a key of the loss's outputs.

    Raises:
      ConfigError: if the key is not there; the message lists those that are, and shows how to add it.
    """
    if not hasattr(outputs, "keys"):
        raise ConfigError(f"`outputs` must be a mapping from keys to arrays, got {type(outputs).__name__}")
    if not isinstance(key, str):
        raise ConfigError(f"{reader} must be given the key of an output, a string, got {key!r}")
    if key not in outputs:
        have = ", ".join(map(repr, sorted(outputs))) or "none"
        raise ConfigError(
            f"{reader} reads the output {key!r}, which the loss did not give; it gave {have}"
            f"{did_you_mean(key, list(outputs))}. Return it with `loss.with_outputs({key}=...)`, or name another key"
        )
    return jnp.asarray(outputs[key])


def element_weights(weight: Any, shape: tuple[int, ...], reader: str = "metric") -> jax.Array:
    """`weight`, float32, for elements of `shape`, whose leading axes it shares.

    None is ones. Missing trailing axes are broadcast. Surplus trailing axes (token weights for a metric with one
    element a row) are reduced: a row counts, with its largest weight, if any of its tokens does.

    Raises:
      DataError: if the shared axes differ.
    """
    if weight is None:
        return jnp.ones(shape, jnp.float32)
    w = jnp.asarray(weight).astype(jnp.float32)
    if w.ndim > len(shape):
        w = jnp.max(w, axis=tuple(range(len(shape), w.ndim)))
    if any(a not in (1, b) for a, b in zip(w.shape, shape)):
        raise DataError(
            f"`weight` of shape {list(np.shape(weight))} does not fit the {list(shape)} elements that {reader} reads: "
            f"leading axes must be equal"
        )
    return jnp.broadcast_to(w.reshape(w.shape + (1,) * (len(shape) - w.ndim)), shape)


def masked(values: jax.Array, weight: jax.Array) -> jax.Array:
    """`values` where the weight is not zero, else 0: selected, so NaN in what is left out does not leak."""
    return jnp.where(weight != 0, values, jnp.zeros((), values.dtype))
