"""What an exponential average forgets and takes in at one update, and how much it has seen."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp

from .._core.typing import ScheduleLike
from .types import at_step, like


class Decay(NamedTuple):
    """A decay at one update, and what is left for the new: plain numbers, or arrays."""

    kept: Any
    added: Any

    def fold(self, old: jax.Array, new: jax.Array) -> jax.Array:
        """`kept * old + added * new`, in the dtype of `old`."""
        return like(self.kept, old) * old + like(self.added, old) * new

    def weigh(self, weight: jax.Array) -> jax.Array:
        r"""What all the weights of an average add up to, after this update: :math:`1 - \prod_{i \le t} \beta_i`.

        Folded as the average itself is, like one of ones: it neither cancels nor overflows, however the decay changes.
        """
        return self.fold(weight, jnp.ones((), weight.dtype))


def decay_at(b: ScheduleLike, count: jax.Array) -> Decay:
    """`(b, 1 - b)` at an update.

    The difference is formed before rounding: float32(1 - 0.999) is right to eight digits, 1 - float32(0.999)
    to five.
    """
    kept = at_step(b, count)
    if isinstance(kept, float):
        return Decay(kept, 1 - kept)
    return Decay(kept, 1 - kept.astype(float))  # in float64 where there is one: the difference is then exact


def is_plain(b: ScheduleLike) -> TypeGuard[float]:
    """Whether a decay is a number that will stay what it is; a schedule will not, nor one held in a state."""
    return isinstance(b, int | float)


def power_seen(b: float, count: jax.Array) -> Callable[[Any], jax.Array]:
    """`1 - b**count` as a function of a dtype: what `weigh` comes to for a plain number.

    By expm1, for the sake of its digits.
    """
    log = math.log(b) if b > 0 else -math.inf
    return lambda dtype: -jnp.expm1(count.astype(dtype) * jnp.asarray(log, dtype))
