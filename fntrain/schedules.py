"""Schedules: functions from the count of optimizer updates to a float32 value.

Every schedule subtracts, clips and divides the count as an integer, and makes a float of the result alone. So
values are exact where two pieces meet, and do not degrade past the 2^24 updates that float32 can count. The
first update is 0; a negative count is taken as 0.

Values of the plain schedules are >= 0, like every rate, decay, momentum and norm; `scale` can turn the sign.
Wherever a schedule is taken as an argument, a number or any function of the step will do.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _check
from ._check import ConfigError
from ._typing import ArrayLike, ScheduleLike
from ._value import Value, factory, show

_LARGEST = 2**31 - 1  # the largest count of updates: counts are int32


class Schedule(Value):
    """A function `step -> float32` that knows the call that made it.

    To write one, return the function from a function decorated with `fntrain.schedules.schedule`, alone or as
    `(function, steps, boundaries)`.

    Attributes:
      function: what is called with the step, an int32 array >= 0 of any shape; it returns a value, or an
        array of the step's shape.
      steps: the update at which the schedule has come to its end, or None if it has none.
      boundaries: the updates at which one piece ends and the next begins, increasing; of pieces that repeat
        for ever, the first 64.
    """

    def __init__(
        self,
        function: Callable[[jax.Array], Any],
        steps: int | None = None,
        boundaries: Iterable[int] = (),
    ):
        self.function = function
        self.steps = steps
        self.boundaries = tuple(boundaries)

    def _parts(self) -> tuple:
        return (self.function, self.steps, self.boundaries)

    def __call__(self, step: ArrayLike | Sequence[int]) -> jax.Array:
        """Evaluate the schedule at an update.

        Args:
          step: the count of updates before this one: a Python int, or an array of integers of any shape,
            traced or not. So `schedule(jnp.arange(n))` is the whole curve.

        Returns:
          A float32 array of the step's shape.

        Raises:
          ConfigError: if `step` is no integer: a float cannot count past 2^24.
        """
        count = _count(step)
        return jnp.broadcast_to(_float(self.function(count)), count.shape)


jax.tree_util.register_static(Schedule)

schedule = factory(Schedule)
"""Decorator: a function that returns `function` or `(function, steps, boundaries)` makes Schedules."""


@schedule
def constant(value: float):
    r"""Hold one value at every update.

    .. math:: \eta_t = v

    Args:
      value: v, >= 0.

    Returns:
      A Schedule without end.

    Raises:
      ConfigError: if `value` is not a finite number >= 0.

    Examples:
      >>> import fntrain as ft
      >>> float(ft.schedules.constant(0.5)(1000))
      0.5
    """
    _check.number("value", value, at_least=0)
    return lambda step: value


@schedule
def linear(start: float, end: float, steps: int):
    r"""Go in a straight line from `start` to `end`, and stay there.

    .. math:: \eta_t = a + (b - a) \frac{\min(t, T)}{T}

    Args:
      start: a, the value at update 0, >= 0.
      end: b, the value from update `steps` on, >= 0.
      steps: T, the length in updates, >= 1.

    Returns:
      A Schedule of length `steps`.

    Raises:
      ConfigError: if a value is not a finite number >= 0, or `steps` no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.schedules.linear(1.0, 0.0, 4)(jnp.arange(6)).tolist()
      [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    _check.number("start", start, at_least=0)
    _check.number("end", end, at_least=0)
    steps = _length("steps", steps)
    return lambda step: _mix(start, end, *_fractions(step, steps)), steps, (steps,)


@schedule
def cosine(start: float, steps: int, end: float = 0.0):
    r"""Go along half a cosine from `start` to `end`, and stay there.

    .. math:: \eta_t = b + \frac{a - b}{2} \left(1 + \cos\frac{\pi \min(t, T)}{T}\right)

    Args:
      start: a, the value at update 0, >= 0.
      steps: T, the length in updates, >= 1.
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
    _check.number("start", start, at_least=0)
    _check.number("end", end, at_least=0)
    steps = _length("steps", steps)
    return lambda step: _cosine_mix(start, end, *_fractions(step, steps)), steps, (steps,)


@schedule
def polynomial(start: float, end: float, steps: int, power: float):
    r"""Go along a power of a line from `start` to `end`, and stay there.

    .. math:: \eta_t = b + (a - b) \left(1 - \frac{\min(t, T)}{T}\right)^p

    Args:
      start: a, the value at update 0, >= 0.
      end: b, the value from update `steps` on, >= 0.
      steps: T, the length in updates, >= 1.
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
    _check.number("start", start, at_least=0)
    _check.number("end", end, at_least=0)
    _check.number("power", power, above=0)
    steps = _length("steps", steps)

    def function(step):
        gone, left = _fractions(step, steps)
        p = jnp.asarray(power, jnp.float32)
        # 1 - left**p would cancel near the start, and that is all there is if `start` is zero.
        return _mix(start, end, -jnp.expm1(p * jnp.log1p(-gone)), left**p)

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
    _check.number("start", start, at_least=0)
    _check.number("rate", rate, above=0)
    every = _length("every", every)
    if staircase:
        power = _power(start, rate, 1)
        return lambda step: power(step // every), None, range(every, _LARGEST, every)[:64]
    return _power(start, rate, every)


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
    _check.number("factor", factor, above=0)
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
    _check.number("start", start, at_least=0)
    if not isinstance(factors, Mapping) or not factors:
        raise ConfigError(f"`factors` must map updates to factors, {{30: 0.1, 60: 0.1}} say, got {factors!r}")
    boundaries = sorted(_length("boundary in factors", b) for b in factors)
    for b in boundaries:
        _check.number(f"factors[{b}]", factors[b], at_least=0)
    values = _rounded(start, np.cumprod([1.0, *(float(factors[b]) for b in boundaries)]))
    return lambda step: _look_up(values, _passed(boundaries, step)), None, boundaries


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
    _check.number("peak", peak, at_least=0)
    offset = _length("steps_offset", steps_offset)

    def function(step):
        total = (step.astype(jnp.uint32) + jnp.uint32(offset)).astype(jnp.float32)  # below 2^32
        return _float(peak) * jnp.sqrt(_float(offset) / total)

    return function


@schedule
def one_cycle(
    peak: float,
    steps: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
):
    r"""Rise along half a cosine to the peak, then fall along another to almost nothing.

    With :math:`e = p_s T - 1`, from :math:`\eta_0 = p / d` to :math:`p` over updates 0 to e, and on to
    :math:`\eta_0 / d_f` over updates e to T - 1, which is the last; the value then stays. Where e is no whole
    number, the peak lies between two updates.

    Args:
      peak: p, the largest value, >= 0.
      steps: T, the number of updates in the cycle, >= 2.
      pct_start: the fraction of the updates in the rise, in (0, 1).
      div_factor: d, the peak over the first value, > 0.
      final_div_factor: the first value over the last, > 0.

    Returns:
      A Schedule of length `steps`.

    Raises:
      ConfigError: if a number is out of its range, or the rise is not longer than one update.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> values = ft.schedules.one_cycle(1.0, 10, div_factor=4.0)(jnp.array([0, 1, 2, 5, 9, 10]))
      >>> [round(v, 3) for v in values.tolist()]
      [0.25, 0.625, 1.0, 0.611, 0.0, 0.0]

    References:
      Smith, Topin, *Super-convergence*, 2018; the formula is that of torch's `OneCycleLR`.
    """
    _check.number("peak", peak, at_least=0)
    steps = _length("steps", steps, at_least=2)
    _check.number("pct_start", pct_start, above=0, below=1)
    _check.number("div_factor", div_factor, above=0)
    _check.number("final_div_factor", final_div_factor, above=0)
    turn, last = float(pct_start) * steps - 1, steps - 1
    if not 0 < turn < last:
        raise ConfigError(
            f"`pct_start` of `steps` must be more than one update and not all of them, got {pct_start} of "
            f"{steps}: a rise needs a `pct_start` above 1 / {steps}"
        )
    whole = math.floor(turn)
    part = turn - whole
    first = _rounded(peak, np.float64(1 / div_factor))
    final = _rounded(peak, np.float64(1 / (div_factor * final_div_factor)))

    def function(step):
        rise = _cosine_mix(first, peak, *_fractions(step, whole, part))
        # Counted back from the last update: there the integer is, and the fraction at the peak.
        left, gone = _fractions(last - step, last - whole - 1, 1.0 - part)
        return jnp.where(step <= whole, rise, _cosine_mix(peak, final, gone, left))

    return function, steps, sorted({math.ceil(turn), last})


@schedule
def sgdr(start: float, steps: int, multiplier: int = 1, end: float = 0.0, cycles: int | None = None):
    r"""Repeat half a cosine from `start` to `end`, each `multiplier` times as long as the one before.

    .. math:: \eta_t = b + \frac{a - b}{2} \left(1 + \cos\frac{\pi (t - s_i)}{T_i}\right), \qquad
              T_i = T m^i, \quad s_{i+1} = s_i + T_i

    The update of a restart, s_i, has the value `start`; `end` is only reached where a last cycle ends.

    Args:
      start: a, the value at each restart, >= 0.
      steps: T, the length of the first cycle in updates, >= 1.
      multiplier: m, an integer >= 1.
      end: b, what each cycle falls to, >= 0.
      cycles: how many there are; the value then stays at `end`. None is for ever.

    Returns:
      A Schedule, its length that of all cycles; without end for `cycles=None`.

    Raises:
      ConfigError: if a value is not a finite number >= 0, or a count no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> values = ft.schedules.sgdr(1.0, 2, multiplier=2)(jnp.arange(7))
      >>> [round(v, 3) for v in values.tolist()]
      [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]

    References:
      Loshchilov, Hutter, *SGDR: Stochastic gradient descent with warm restarts*, 2017; torch's
      `CosineAnnealingWarmRestarts`.
    """
    _check.number("start", start, at_least=0)
    steps = _length("steps", steps)
    multiplier = _length("multiplier", multiplier)
    _check.number("end", end, at_least=0)
    if cycles is not None:
        cycles = _length("cycles", cycles)

    if multiplier == 1:
        starts = range(0, _LARGEST + 1, steps)[:cycles]
        total = None if cycles is None else steps * cycles

        def function(step):
            cycle = jnp.minimum(step // steps, len(starts) - 1)
            return _cosine_mix(start, end, *_fractions(step - cycle * steps, steps))

    else:
        starts, lengths = [0], [steps]
        while starts[-1] + lengths[-1] <= _LARGEST and (cycles is None or len(starts) < cycles):
            starts.append(starts[-1] + lengths[-1])
            lengths.append(lengths[-1] * multiplier)
        total = starts[-1] + lengths[-1] if len(starts) == cycles else None
        begins = np.asarray(starts, np.int32)
        # The last length may be past int32: what is too much of it is added as a float, which loses nothing.
        reachable = np.asarray([min(n, _LARGEST) for n in lengths], np.int32)
        excess = np.asarray([n - min(n, _LARGEST) for n in lengths], np.float32)

        def function(step):
            cycle = _passed(starts[1:], step)
            begin, length, extra = (_look_up(x, cycle) for x in (begins, reachable, excess))
            return _cosine_mix(start, end, *_fractions(step - begin, length, extra))

    ends = () if total is None or total > _LARGEST else (total,)
    return function, total, (*starts[1:65], *ends)


@schedule
def warmup(schedule: ScheduleLike, steps: int, start: float = 0.0):
    r"""Rise in a straight line to a schedule's first value, then run the schedule from its beginning.

    .. math:: \eta_t = \begin{cases} a + (s_0 - a)\, t / w & t < w \\ s_{t - w} & t \ge w \end{cases}

    Args:
      schedule: s, which is shifted by `steps`: its update 0 is update w here.
      steps: w, the length of the warm-up in updates, >= 1.
      start: a, the value at update 0, >= 0.

    Returns:
      A Schedule, longer than `schedule` by `steps`.

    Raises:
      ConfigError: if `steps` is no integer >= 1 or more than the schedule's own length, or `start` not >= 0.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> s = ft.schedules.warmup(ft.schedules.linear(1.0, 0.0, 4), 2)
      >>> s(jnp.arange(7)).tolist()
      [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
      >>> s
      warmup(schedule=linear(start=1.0, end=0.0, steps=4), steps=2)

    References:
      Goyal et al., *Accurate, large minibatch SGD*, 2017.
    """
    inner = _schedule("schedule", schedule)
    steps = _length("steps", steps)
    _check.number("start", start, at_least=0)
    if inner.steps is not None and steps > inner.steps:
        raise ConfigError(
            f"`steps` of a warm-up must be at most the length of what it leads to, {inner.steps} updates, "
            f"got {steps}; if it is meant, `join([(linear(0.0, peak, {steps}), {steps}), (schedule, None)])`"
        )

    def function(step):
        # Up to update `steps` the schedule stands at its first value, which is where the line goes.
        return _mix(start, inner(step - steps), *_fractions(step, steps))

    total = None if inner.steps is None else steps + inner.steps
    return function, total, _increasing([steps, *(steps + b for b in inner.boundaries)])


@schedule
def cooldown(schedule: ScheduleLike, steps: int, end: float = 0.0, *, start_at: int | None = None):
    r"""Run a schedule to its end (or to `start_at`), then go in a straight line from there to `end`.

    .. math:: \eta_t = \begin{cases} s_t & t < c \\ s_c + (b - s_c) \min(t - c, n) / n & t \ge c \end{cases}

    Args:
      schedule: s, what is run first.
      steps: n, the length of the cool-down in updates, >= 1.
      end: b, the value from update c + n on, >= 0.
      start_at: c, the update at which the cool-down starts, >= 0; None is the length of `schedule`.

    Returns:
      A Schedule of length c + n.

    Raises:
      ConfigError: if `schedule` has no length and `start_at` is not given, `steps` is no integer >= 1, or
        `end` not >= 0.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> s = ft.schedules.cooldown(ft.schedules.constant(1.0), 4, start_at=2)
      >>> s(jnp.arange(8)).tolist()
      [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]

    References:
      Hägele et al., *Scaling laws and compute-optimal training beyond fixed training durations*, 2024.
    """
    inner = _schedule("schedule", schedule)
    steps = _length("steps", steps)
    _check.number("end", end, at_least=0)
    if start_at is None and inner.steps is None:
        raise ConfigError(
            f"`schedule` must have an end for the cool-down to begin at, and {show(schedule)} has none: say "
            f"where with `cooldown(schedule, {steps}, start_at=1000)`, or give it a length with "
            f"`join([(schedule, 1000)])`"
        )
    turn = _length("start_at", inner.steps if start_at is None else start_at, at_least=0)

    def function(step):
        # From update `turn` on the schedule stands at what it had come to, which is where the line begins.
        return _mix(inner(jnp.minimum(step, turn)), end, *_fractions(step - turn, steps))

    before = [b for b in inner.boundaries if b < turn]
    return function, turn + steps, _increasing([*before, turn, turn + steps])


@schedule
def join(parts: Sequence[tuple[ScheduleLike, int | None]]):
    r"""Run schedules one after the other, each counting from its own 0.

    .. math:: \eta_t = s^{(i)}_{t - c_i} \quad \text{for } c_i \le t < c_{i+1}, \qquad c_0 = 0,
              \quad c_{i+1} = c_i + n_i

    After the last length the last part goes on: that length only says where the whole ends, for `cooldown`
    and for plots.

    Args:
      parts: pairs of a schedule and its length n in updates, >= 1; the last length may be None.

    Returns:
      A Schedule as long as the lengths together; for None, the last schedule's own length counts, if any.

    Raises:
      ConfigError: if `parts` is not a list of such pairs, is empty, or the lengths add up to 2^31 or more.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.schedules.join([(0.5, 2), (ft.schedules.linear(1.0, 0.0, 4), None)])(jnp.arange(6)).tolist()
      [0.5, 0.5, 1.0, 0.75, 0.5, 0.25]
    """
    if not isinstance(parts, list | tuple) or not parts:
        raise ConfigError(f"`parts` must be a list of (schedule, steps), at least one, got {parts!r}")
    pieces: list[tuple[int, int, Schedule]] = []
    boundaries: list[int] = []
    begin, length = 0, 0
    for i, part in enumerate(parts):
        begin += length or 0
        if begin > _LARGEST:
            raise ConfigError(
                f"`parts`: the first {i} lengths must add up to at most {_LARGEST}, the largest count of "
                f"updates, got {begin}"
            )
        if not isinstance(part, list | tuple) or len(part) != 2:
            raise ConfigError(f"`parts[{i}]` must be a pair (schedule, steps), got {show(part)}")
        inner, last = _schedule(f"parts[{i}]", part[0]), i == len(parts) - 1
        length = inner.steps if last and part[1] is None else _length(f"steps of parts[{i}]", part[1])
        final = _LARGEST if last or length is None else length - 1
        pieces.append((begin, final, inner))
        boundaries += [begin, *(begin + b for b in inner.boundaries if b <= final)]
    total = None if length is None else begin + length

    def function(step):
        value = None
        for begin, final, inner in pieces:
            # No part sees an update that is not its own: a foreign function may not be made for it.
            own = inner(jnp.clip(step - begin, 0, final))
            value = own if value is None else jnp.where(step >= begin, own, value)
        return value

    return function, total, _increasing([*boundaries, total or 0])


@schedule
def scale(schedule: ScheduleLike, factor: ScheduleLike):
    r"""Multiply a schedule by a factor.

    .. math:: \eta_t = f \, s_t

    Args:
      schedule: s.
      factor: f, any number, or a schedule.

    Returns:
      A Schedule of the length of `schedule`, or of `factor` if that is the longer; without end if one is.

    Raises:
      ConfigError: if `factor` is neither a finite number nor a schedule.

    Examples:
      >>> import fntrain as ft
      >>> float(ft.schedules.scale(ft.schedules.linear(1.0, 0.0, 4), 10.0)(1))
      7.5
    """
    inner = _schedule("schedule", schedule)
    if not callable(factor):
        _check.number("factor", factor)
        return lambda step: inner(step) * _float(factor), inner.steps, inner.boundaries
    other = _schedule("factor", factor)
    total = None if inner.steps is None or other.steps is None else max(inner.steps, other.steps)
    boundaries = _increasing(inner.boundaries + other.boundaries)
    return lambda step: inner(step) * other(step), total, boundaries


@schedule
def in_epochs(schedule: ScheduleLike, steps_per_epoch: int):
    r"""Run a schedule that is written in epochs: it counts those gone by, and is constant within one.

    .. math:: \eta_t = s_{\lfloor t / k \rfloor}

    Args:
      schedule: s, counting epochs from 0.
      steps_per_epoch: k, the updates in an epoch, >= 1 (with accumulation, not the batches).

    Returns:
      A Schedule, `steps_per_epoch` times as long.

    Raises:
      ConfigError: if `steps_per_epoch` is no integer >= 1.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.schedules.in_epochs(ft.schedules.linear(1.0, 0.0, 4), 10)(jnp.array([9, 10, 40])).tolist()
      [1.0, 0.75, 0.0]
    """
    inner = _schedule("schedule", schedule)
    k = _length("steps_per_epoch", steps_per_epoch)
    total = None if inner.steps is None else inner.steps * k
    return lambda step: inner(step // k), total, _increasing(b * k for b in inner.boundaries)


def _count(step: Any) -> jax.Array:
    """Make the count an int32 array; what is not in [0, 2^31 - 1] is moved to the nearest end."""
    numpy: Any = jnp if isinstance(step, jax.Array) else np
    step = numpy.asarray(step)
    if not jnp.issubdtype(step.dtype, jnp.integer):
        raise ConfigError(
            f"`step` must be a count of updates, an integer or an array of integers, got {step.dtype}"
            f"{list(step.shape)}; cast it, `schedule(step.astype(int))`"
        )
    largest = min(_LARGEST, int(jnp.iinfo(step.dtype).max))
    return jnp.asarray(numpy.clip(step, 0, largest).astype(np.int32))


def _length(name: str, value: Any, at_least: int = 1) -> int:
    """Check a number of updates, which an int32 must be able to count."""
    value = _check.integer(name, value, at_least=at_least)
    if value > _LARGEST:
        raise ConfigError(f"`{name}` must be at most {_LARGEST}, the largest count of updates, got {value}")
    return value


def _schedule(name: str, value: Any) -> Schedule:
    """Make what was given a Schedule."""
    if isinstance(value, Schedule):
        return value
    if not callable(value):
        _check.number(name, value, at_least=0)
        return constant(value)
    if getattr(value, "__module__", None) == __name__:
        call = getattr(value, "__name__", "factory")
        raise ConfigError(f"`{name}` must be a schedule, got the factory `{call}`: call it, `{call}(...)`")
    return Schedule(value)


def _float(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def _fractions(gone: jax.Array, steps: Any, extra: Any = 0.0) -> tuple[jax.Array, jax.Array]:
    """Divide what is gone and what is left by the whole, `steps + extra`.

    Both come from integers, so both have float32's relative precision: `1 - gone` would have lost the digits
    that matter near the end. `extra` is what the whole has beyond an int32, >= 0.
    """
    gone = jnp.clip(gone, 0, steps)
    whole = _float(steps) + _float(extra)
    return gone.astype(jnp.float32) / whole, ((steps - gone).astype(jnp.float32) + _float(extra)) / whole


def _mix(start: Any, end: Any, gone: jax.Array, left: jax.Array) -> jax.Array:
    """`start * left + end * gone`, and exactly `start` or `end` where nothing is gone or left."""
    start, end = _float(start), _float(end)
    return jnp.where(left <= 0, end, jnp.where(gone <= 0, start, start * left + end * gone))


def _cosine_mix(start: Any, end: Any, gone: jax.Array, left: jax.Array) -> jax.Array:
    """`_mix` with weights along half a cosine."""
    # (1 + cos πx) / 2 = sin² π(1 - x)/2, which does not cancel where it is small; the large one is the rest.
    small = jnp.square(jnp.sin(jnp.minimum(gone, left) * _float(math.pi / 2)))
    return _mix(start, end, *(jnp.where(x <= 0.5, small, 1 - small) for x in (gone, left)))


def _power(start: Any, rate: Any, every: int) -> Callable[[jax.Array], jax.Array]:
    """`n -> start * rate ** (n / every)`.

    A power taken in float32 is off by n times the rounding of its logarithm. So the powers of the 11-bit
    digits of n are made in float64 and looked up; each digit but the first costs two roundings.
    """
    tables = []
    for bits in (0, 11, 22):
        with np.errstate(over="ignore", under="ignore"):
            powers = np.power(float(rate), np.arange(2**11) * 2.0**bits / every)
        tables.append(_rounded(1.0 if bits else start, powers))

    def function(n):
        low, middle, high = (_look_up(t, (n >> 11 * i) & 2047) for i, t in enumerate(tables))
        return jnp.where(low > 0, low * middle * high, 0.0)  # a start of zero grows to zero, not to NaN

    return function


def _rounded(factor: Any, table: np.ndarray | np.float64) -> Any:
    """`factor * table` in float32, rounded once where the factor's value is known."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if _check.is_concrete(factor):
            return np.asarray(float(factor) * table, np.float32)
        return _float(factor) * np.asarray(table, np.float32)


def _look_up(table: Any, index: jax.Array) -> jax.Array:
    return jnp.asarray(table)[index]


def _passed(boundaries: Sequence[int], step: jax.Array) -> jax.Array:
    """How many of the boundaries are at or before the step."""
    return jnp.searchsorted(jnp.asarray(boundaries, jnp.int32), step, side="right", method="compare_all")


def _increasing(boundaries: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({b for b in boundaries if 0 < b <= _LARGEST}))
