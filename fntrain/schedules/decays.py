"""Schedules that go from one value to another, or on for ever."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import ConfigError
from .arithmetic import LARGEST, cosine_mix, fractions, look_up, mix, passed, power_of, rounded, to_float
from .types import schedule, updates


@schedule
def linear(start: float, end: float, steps: int | float):
    r"""Go in a straight line from `start` to `end`, and stay there.

    .. math:: \eta_t = a + (b - a) \frac{\min(t, T)}{T}

    Args:
      start: a, the value at update 0, >= 0.
      end: b, the value from update `steps` on, >= 0.
      steps: T, the length in updates, >= 1, or as a fraction of the run in (0, 1].

    Returns:
      A Schedule of length `steps`.

    Raises:
      ConfigError: if a value is not a finite number >= 0, or `steps` no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.schedules.linear(1.0, 0.0, 4)(jnp.arange(6)).tolist()
      [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    check.number("start", start, at_least=0)
    check.number("end", end, at_least=0)
    steps = updates("steps", steps)
    return lambda step: mix(start, end, *fractions(step, steps)), steps, (steps,)


@schedule
def cosine(start: float, steps: int | float, end: float = 0.0):
    r"""Go along half a cosine from `start` to `end`, and stay there.

    .. math:: \eta_t = b + \frac{a - b}{2} \left(1 + \cos\frac{\pi \min(t, T)}{T}\right)

    Args:
      start: a, the value at update 0, >= 0.
      steps: T, the length in updates, >= 1, or as a fraction of the run in (0, 1].
      end: b, the value from update `steps` on, >= 0.

    Returns:
      A Schedule of length `steps`.

    Raises:
      ConfigError: if a value is not a finite number >= 0, or `steps` no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> values = ft.schedules.cosine(1.0, 4, end=0.5)(jnp.array([0, 1, 2, 4, 5]))
      >>> [round(v, 3) for v in values.tolist()]
      [1.0, 0.927, 0.75, 0.5, 0.5]

    References:
      Loshchilov, Hutter, *SGDR: Stochastic gradient descent with warm restarts*, 2017: one period of it.
    """
    check.number("start", start, at_least=0)
    check.number("end", end, at_least=0)
    steps = updates("steps", steps)
    return lambda step: cosine_mix(start, end, *fractions(step, steps)), steps, (steps,)


@schedule
def polynomial(start: float, end: float, steps: int | float, power: float):
    r"""Go along a power of a line from `start` to `end`, and stay there.

    .. math:: \eta_t = b + (a - b) \left(1 - \frac{\min(t, T)}{T}\right)^p

    Args:
      start: a, the value at update 0, >= 0.
      end: b, the value from update `steps` on, >= 0.
      steps: T, the length in updates, >= 1, or as a fraction of the run in (0, 1].
      power: p, > 0; 1 is `linear`.

    Returns:
      A Schedule of length `steps`.

    Raises:
      ConfigError: if a value is not a finite number >= 0, `steps` no integer >= 1, or `power` not > 0.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.schedules.polynomial(4.0, 0.0, 4, 2.0)(jnp.arange(0, 6, 2)).tolist()
      [4.0, 1.0, 0.0]
    """
    check.number("start", start, at_least=0)
    check.number("end", end, at_least=0)
    check.number("power", power, above=0)
    steps = updates("steps", steps)

    def function(step):
        gone, left = fractions(step, steps)
        p = jnp.asarray(power, jnp.float32)
        # 1 - left**p would cancel near the start, and that is all there is if `start` is zero.
        return mix(start, end, -jnp.expm1(p * jnp.log1p(-gone)), left**p)

    return function, steps, (steps,)


@schedule
def exponential(start: float, rate: float, every: int = 1, staircase: bool = False):
    r"""Multiply by `rate` in every `every` updates, smoothly or at once.

    .. math:: \eta_t = a \, r^{t / k}, \qquad \text{staircase: } \eta_t = a \, r^{\lfloor t / k \rfloor}

    The power is right to a few units in the last place at any count of updates.

    Args:
      start: a, the value at update 0, >= 0.
      rate: r, > 0; below 1 it is a decay.
      every: k, in updates, >= 1.
      staircase: stay constant between multiples of `every`.

    Returns:
      A Schedule without end.

    Raises:
      ConfigError: if `start` is not a finite number >= 0, `rate` not > 0, or `every` no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.schedules.exponential(1.0, 0.5, every=10)(jnp.array([0, 10, 20])).tolist()
      [1.0, 0.5, 0.25]
    """
    check.number("start", start, at_least=0)
    check.number("rate", rate, above=0)
    every = updates("every", every)
    if staircase:
        power = power_of(start, rate, 1)
        return lambda step: power(step // every), None, range(every, LARGEST, every)[:64]
    return power_of(start, rate, every)


@schedule
def step_decay(start: float, factor: float, every: int):
    r"""Multiply by `factor` at each multiple of `every` updates.

    .. math:: \eta_t = a \, f^{\lfloor t / k \rfloor}

    Update `every` is the first with the new value.

    Args:
      start: a, the value at update 0, >= 0.
      factor: f, > 0.
      every: k, in updates, >= 1.

    Returns:
      A Schedule without end.

    Raises:
      ConfigError: if `start` is not a finite number >= 0, `factor` not > 0, or `every` no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.schedules.step_decay(1.0, 0.5, every=10)(jnp.array([9, 10, 19, 20])).tolist()
      [1.0, 0.5, 0.5, 0.25]
    """
    check.number("factor", factor, above=0)
    return exponential(start, factor, every, staircase=True)


@schedule
def piecewise(start: float, factors: Mapping[int, float]):
    r"""Multiply by a factor at each of the given updates.

    .. math:: \eta_t = a \prod_{b \le t} f_b

    The update named by a boundary is the first with the new value.

    Args:
      start: a, the value at update 0, >= 0.
      factors: from the boundary b, an update >= 1, to the factor, >= 0.

    Returns:
      A Schedule without end.

    Raises:
      ConfigError: if `start` or a factor is not a finite number >= 0, a boundary is no integer >= 1, or
        `factors` is empty.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.schedules.piecewise(1.0, {10: 0.5, 20: 0.5})(jnp.array([9, 10, 19, 20])).tolist()
      [1.0, 0.5, 0.5, 0.25]
    """
    check.number("start", start, at_least=0)
    if not isinstance(factors, Mapping) or not factors:
        raise ConfigError(f"`factors` must map updates to factors, {{30: 0.1, 60: 0.1}} say, got {factors!r}")
    boundaries = sorted(updates("boundary in factors", b) for b in factors)
    for b in boundaries:
        check.number(f"factors[{b}]", factors[b], at_least=0)
    values = rounded(start, np.cumprod([1.0, *(float(factors[b]) for b in boundaries)]))
    return lambda step: look_up(values, passed(boundaries, step)), None, boundaries


@schedule
def rsqrt(peak: float, steps_offset: int):
    r"""Decay with the inverse square root of the update.

    .. math:: \eta_t = p \sqrt{\frac{k}{k + t}}

    Under `warmup(rsqrt(p, k), k)` this is the Transformer's schedule: a rise to the peak over k updates, and
    from there :math:`p \sqrt{k / t}`.

    Args:
      peak: p, the value at update 0, >= 0.
      steps_offset: k, in updates, >= 1: after 3k updates the value is half the peak.

    Returns:
      A Schedule without end.

    Raises:
      ConfigError: if `peak` is not a finite number >= 0, or `steps_offset` no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.schedules.rsqrt(1.0, 100)(jnp.array([0, 300])).tolist()
      [1.0, 0.5]

    References:
      Vaswani et al., *Attention is all you need*, 2017.
    """
    check.number("peak", peak, at_least=0)
    offset = updates("steps_offset", steps_offset)

    def function(step):
        total = (step.astype(jnp.uint32) + jnp.uint32(offset)).astype(jnp.float32)  # below 2^32
        return to_float(peak) * jnp.sqrt(to_float(offset) / total)

    return function
