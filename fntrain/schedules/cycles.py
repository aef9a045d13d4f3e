"""Schedules that rise and fall."""

import math

import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import ConfigError
from .arithmetic import LARGEST, cosine_mix, fractions, look_up, passed, rounded
from .types import schedule, updates


@schedule
def one_cycle(
    peak: float,
    steps: int | float,
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
    check.number("peak", peak, at_least=0)
    steps = updates("steps", steps, at_least=2)
    check.number("pct_start", pct_start, above=0, below=1)
    check.number("div_factor", div_factor, above=0)
    check.number("final_div_factor", final_div_factor, above=0)
    turn, last = float(pct_start) * steps - 1, steps - 1
    if not 0 < turn < last:
        raise ConfigError(
            f"`pct_start` of `steps` must be more than one update and not all of them, got {pct_start} of "
            f"{steps}: a rise needs a `pct_start` above 1 / {steps}"
        )
    whole = math.floor(turn)
    part = turn - whole
    first = rounded(peak, np.float64(1 / div_factor))
    final = rounded(peak, np.float64(1 / (div_factor * final_div_factor)))

    def function(step):
        rise = cosine_mix(first, peak, *fractions(step, whole, part))
        # Counted back from the last update: there the integer is, and the fraction at the peak.
        left, gone = fractions(last - step, last - whole - 1, 1.0 - part)
        return jnp.where(step <= whole, rise, cosine_mix(peak, final, gone, left))

    return function, steps, sorted({math.ceil(turn), last})


@schedule
def sgdr(start: float, steps: int | float, multiplier: int = 1, end: float = 0.0, cycles: int | None = None):
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
    check.number("start", start, at_least=0)
    steps = updates("steps", steps)
    multiplier = updates("multiplier", multiplier)
    check.number("end", end, at_least=0)
    if cycles is not None:
        cycles = updates("cycles", cycles)

    if multiplier == 1:
        starts = range(0, LARGEST + 1, steps)[:cycles]
        total = None if cycles is None else steps * cycles

        def function(step):
            cycle = jnp.minimum(step // steps, len(starts) - 1)
            return cosine_mix(start, end, *fractions(step - cycle * steps, steps))

    else:
        starts, lengths = [0], [steps]
        while starts[-1] + lengths[-1] <= LARGEST and (cycles is None or len(starts) < cycles):
            starts.append(starts[-1] + lengths[-1])
            lengths.append(lengths[-1] * multiplier)
        total = starts[-1] + lengths[-1] if len(starts) == cycles else None
        begins = np.asarray(starts, np.int32)
        # The last length may be past int32: what is too much of it is added as a float, which loses nothing.
        reachable = np.asarray([min(n, LARGEST) for n in lengths], np.int32)
        excess = np.asarray([n - min(n, LARGEST) for n in lengths], np.float32)

        def function(step):
            cycle = passed(starts[1:], step)
            begin, length, extra = (look_up(x, cycle) for x in (begins, reachable, excess))
            return cosine_mix(start, end, *fractions(step - begin, length, extra))

    ends = () if total is None or total > LARGEST else (total,)
    return function, total, (*starts[1:65], *ends)
