"""Schedules made of schedules."""

from collections.abc import Sequence

import jax.numpy as jnp

from .._core import check
from .._core.errors import ConfigError
from .._core.typing import ScheduleLike
from .._core.value import show
from .arithmetic import LARGEST, cosine_mix, fractions, increasing, mix, to_float
from .types import Schedule, as_schedule, constant, fraction, schedule, updates

SHAPES = ("linear", "sqrt", "cosine")
"""How a cool-down falls."""


@schedule
def warmup(schedule: ScheduleLike, steps: int | float, start: float = 0.0):
    r"""Rise in a straight line to a schedule's first value, then run the schedule from its beginning.

    .. math:: \eta_t = \begin{cases} a + (s_0 - a)\, t / w & t < w \\ s_{t - w} & t \ge w \end{cases}

    Args:
      schedule: s, which is shifted by `steps`: its update 0 is update w here.
      steps: w, the length of the warm-up in updates, >= 1, or as a fraction of the run in (0, 1].
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
    inner = as_schedule("schedule", schedule)
    steps = updates("steps", steps)
    check.number("start", start, at_least=0)
    if inner.steps is not None and steps > inner.steps:
        raise ConfigError(
            f"`steps` of a warm-up must be at most the length of what it leads to, {inner.steps} updates, "
            f"got {steps}; if it is meant, `join([(linear(0.0, peak, {steps}), {steps}), (schedule, None)])`"
        )

    def function(step):
        # Up to update `steps` the schedule stands at its first value, which is where the line goes.
        return mix(start, inner(step - steps), *fractions(step, steps))

    total = None if inner.steps is None else steps + inner.steps
    return function, total, increasing([steps, *(steps + b for b in inner.boundaries)])


@schedule
def cooldown(
    schedule: ScheduleLike,
    steps: int | float,
    end: float = 0.0,
    *,
    start_at: int | float | None = None,
    shape: str = "linear",
):
    r"""Run a schedule to its end (or to `start_at`), then go from there to `end`.

    .. math:: \eta_t = \begin{cases} s_t & t < c \\ s_c + (b - s_c)\, f(x) & t \ge c \end{cases}, \qquad
              x = \frac{\min(t - c, n)}{n}, \qquad
              f(x) = x,\; \sqrt{x} \;\text{or}\; \frac{1 - \cos \pi x}{2}

    Args:
      schedule: s, what is run first.
      steps: n, the length of the cool-down in updates, >= 1, or as a fraction of the run in (0, 1].
      end: b, the value from update c + n on, >= 0.
      start_at: c, the update at which the cool-down starts, >= 0, or a fraction; None is the length of `schedule`.
      shape: f: `"linear"`, a straight line; `"sqrt"`, steep at first; or `"cosine"`.

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
    inner = as_schedule("schedule", schedule)
    steps = updates("steps", steps)
    check.number("end", end, at_least=0)
    check.one_of("shape", shape, SHAPES)
    if start_at is None and inner.steps is None:
        raise ConfigError(
            f"`schedule` must have an end for the cool-down to begin at, and {show(schedule)} has none: say "
            f"where with `cooldown(schedule, {steps}, start_at=1000)`, or give it a length with "
            f"`join([(schedule, 1000)])`"
        )
    turn = updates("start_at", inner.steps if start_at is None else start_at, at_least=0)

    def function(step):
        # From update `turn` on the schedule stands at what it had come to, which is where the line begins.
        start, (gone, left) = inner(jnp.minimum(step, turn)), fractions(step - turn, steps)
        if shape == "cosine":
            return cosine_mix(start, end, gone, left)
        if shape == "sqrt":
            root = jnp.sqrt(gone)
            gone, left = root, left / (1 + root)  # 1 - root, which would cancel near the end
        return mix(start, end, gone, left)

    before = [b for b in inner.boundaries if b < turn]
    return function, turn + steps, increasing([*before, turn, turn + steps])


@schedule
def wsd(
    peak: float,
    steps: int | float,
    warmup: int | float = 0,
    cooldown: int | float = 0.2,
    end: float = 0.0,
    shape: str = "linear",
):
    r"""Warm up, stay, and decay at the end: a run whose length need not be known before its decay.

    .. math:: \eta_t = \begin{cases} p\, t / w & t < w \\ p & w \le t < T - n \\
              p + (b - p)\, f\left(\frac{\min(t, T) - (T - n)}{n}\right) & t \ge T - n \end{cases}

    Args:
      peak: p, the value between the two, >= 0.
      steps: T, the length of the whole in updates, >= 1, or as a fraction of the run in (0, 1]: 1.0 is all of it.
      warmup: w, in updates, >= 0, or as a fraction of T in (0, 1].
      cooldown: n, in updates, >= 1, or as a fraction of T in (0, 1].
      end: b, the value from update T on, >= 0.
      shape: f, as in `cooldown`: `"linear"`, `"sqrt"` or `"cosine"`.

    Returns:
      A Schedule of length T.

    Raises:
      ConfigError: if a value is not a finite number >= 0, a length none in its bounds, or w + n is more than T.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> s = ft.schedules.wsd(1.0, 10, warmup=2, cooldown=0.4)
      >>> s(jnp.arange(11)).tolist()
      [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]

    References:
      Hu et al., *MiniCPM*, 2024; Hägele et al., *Scaling laws and compute-optimal training beyond fixed training
      durations*, 2024 (`"sqrt"`).
    """
    total = updates("steps", steps)
    rise = max(1, round(warmup * total)) if fraction(warmup) else updates("warmup", warmup, at_least=0)
    fall = max(1, round(cooldown * total)) if fraction(cooldown) else updates("cooldown", cooldown)
    if rise + fall > total:
        raise ConfigError(
            f"`warmup` and `cooldown` must fit into `steps`, {total} updates: they are {rise} and {fall}"
        )
    level = constant(peak)
    risen = _warmed(level, rise) if rise else level
    whole = _cooled(risen, fall, end, start_at=total - fall, shape=shape)
    return whole.function, whole.steps, whole.boundaries


_warmed, _cooled = warmup, cooldown  # under the names that `wsd` has for its lengths


@schedule
def join(parts: Sequence[tuple[ScheduleLike, int | float | None]]):
    r"""Run schedules one after the other, each counting from its own 0.

    .. math:: \eta_t = s^{(i)}_{t - c_i} \quad \text{for } c_i \le t < c_{i+1}, \qquad c_0 = 0,
              \quad c_{i+1} = c_i + n_i

    After the last length the last part goes on: that length only says where the whole ends, for `cooldown`
    and for plots.

    Args:
      parts: pairs of a schedule and its length n in updates, >= 1, or a fraction of the run; the last may be None.

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
        if begin > LARGEST:
            raise ConfigError(
                f"`parts`: the first {i} lengths must add up to at most {LARGEST}, the largest count of "
                f"updates, got {begin}"
            )
        if not isinstance(part, list | tuple) or len(part) != 2:
            raise ConfigError(f"`parts[{i}]` must be a pair (schedule, steps), got {show(part)}")
        inner, last = as_schedule(f"parts[{i}]", part[0]), i == len(parts) - 1
        length = inner.steps if last and part[1] is None else updates(f"steps of parts[{i}]", part[1])
        final = LARGEST if last or length is None else length - 1
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

    return function, total, increasing([*boundaries, total or 0])


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
    inner = as_schedule("schedule", schedule)
    if not callable(factor):
        check.number("factor", factor)
        return lambda step: inner(step) * to_float(factor), inner.steps, inner.boundaries
    other = as_schedule("factor", factor)
    total = None if inner.steps is None or other.steps is None else max(inner.steps, other.steps)
    boundaries = increasing(inner.boundaries + other.boundaries)
    return lambda step: inner(step) * other(step), total, boundaries


@schedule
def offset(schedule: ScheduleLike, steps: int = 0, *, value: float = 0.0):
    r"""Begin a schedule later, or in its middle; and add to its values.

    .. math:: \eta_t = s_{\max(t - n, 0)} + b

    Args:
      schedule: s, which stands at its first value until update n.
      steps: n, the update at which it begins; below 0 it begins as if it had run for that many.
      value: b, any number.

    Returns:
      A Schedule, longer than `schedule` by `steps`.

    Raises:
      ConfigError: if `steps` is no integer, or takes away all of the schedule's length, or `value` is not finite.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.schedules.offset(ft.schedules.linear(1.0, 0.0, 4), 2)(jnp.arange(7)).tolist()
      [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
      >>> ft.schedules.offset(ft.schedules.linear(1.0, 0.0, 4), -2, value=1.0)(jnp.arange(3)).tolist()
      [1.5, 1.25, 1.0]
    """
    inner = as_schedule("schedule", schedule)
    steps = check.integer("steps", steps)
    check.number("value", value)
    if abs(steps) > LARGEST:
        raise ConfigError(f"`steps` must be at most {LARGEST}, the largest count of updates, got {steps}")
    total = None if inner.steps is None else inner.steps + steps
    if total is not None and total < 1:
        raise ConfigError(
            f"`steps` must leave some of the schedule, which is {inner.steps} updates long, got {steps}"
        )

    def function(step):
        # The largest count of all must not wrap around.
        own = step - steps if steps >= 0 else jnp.minimum(step, LARGEST + steps) - steps
        return inner(own) + to_float(value)

    moved = (b + steps for b in inner.boundaries)
    return function, total, increasing([steps] * (steps > 0) + [b for b in moved if 0 < b <= LARGEST])


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
    inner = as_schedule("schedule", schedule)
    k = updates("steps_per_epoch", steps_per_epoch)
    total = None if inner.steps is None else inner.steps * k
    return lambda step: inner(step // k), total, increasing(b * k for b in inner.boundaries)
