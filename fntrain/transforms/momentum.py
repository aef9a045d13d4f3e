"""Momentum: the heavy ball and Nesterov's form of it."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .._core.typing import PyTree, ScheduleLike
from .scheduled import scheduled
from .types import Moments, Transform, at_step, increment, is_zero, like, transform


class _Momentum(NamedTuple):
    count: jax.Array  # int32, shape ()
    velocity: PyTree  # float32 at least, the parameters' shapes
    scheduled: Any = ()  # the values of the last update, where there are schedules


@transform
def momentum(decay: ScheduleLike, nesterov: bool = False, dampening: ScheduleLike = 0.0):
    r"""A decaying sum of past gradients.

    .. math::
        v_1 = g_1, \qquad v_t = \mu\, v_{t-1} + (1 - \tau)\, g_t \\
        u_t = v_t \quad\text{or, with Nesterov,}\quad u_t = g_t + \mu\, v_t

    Dampening :math:`\tau` starts at the second step, as in torch's SGD.

    Args:
      decay: μ, in [0, 1), or a schedule of it over optimizer updates.
      nesterov: look ahead by one step.
      dampening: τ, in [0, 1], or a schedule of it.

    Returns:
      A Transform. The velocity is float32 at least; updates keep their dtypes.

    Raises:
      ConfigError: if a number is out of range, or Nesterov meets dampening (their combination is undefined).

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.momentum(0.5)
      >>> g = jnp.array([1.0])
      >>> u, state = tx.update(g, tx.init(g))
      >>> tx.update(g, state)[0].tolist()
      [1.5]

    References:
      Polyak 1964; Sutskever et al., *On the importance of initialization and momentum*, 2013; torch.optim.SGD.
    """
    check.number_or_schedule("decay", decay, at_least=0, below=1)
    check.number_or_schedule("dampening", dampening, at_least=0, at_most=1)
    dampened = not is_zero(dampening)
    if nesterov and dampened:
        raise ConfigError(f"`nesterov=True` needs `dampening=0`, got {dampening!r}; drop one of the two")

    def values(count):
        return scheduled(count, momentum=decay, dampening=dampening)

    def init_fn(params):
        count = jnp.zeros((), jnp.int32)
        return MomentumState(count, tree.wide_zeros(params), values(count))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        mu = at_step(decay, state.count)
        gain = jnp.float32(1.0)
        if dampened:
            rest = 1 - jnp.asarray(at_step(dampening, state.count), float)  # float64 where there is one
            gain = jnp.where(state.count == 0, jnp.ones((), rest.dtype), rest)

        def fold(g, v):
            g = like(g, v)
            return like(mu, v) * v + (like(gain, v) * g if dampened else g)

        velocity = jax.tree.map(fold, updates, state.velocity)

        def step(g, v):
            return like(like(g, v) + like(mu, v) * v if nesterov else v, g)

        state = MomentumState(increment(state.count), velocity, values(state.count))
        return jax.tree.map(step, updates, velocity), state

    return Transform(init_fn, update_fn, rescales=True, descends=False)


@transform
def nesterov(decay: ScheduleLike):
    r"""Nesterov momentum: `momentum(decay, nesterov=True)`.

    .. math:: v_t = \mu\, v_{t-1} + g_t, \qquad u_t = g_t + \mu\, v_t

    Args:
      decay: μ, in [0, 1), or a schedule of it.

    Returns:
      A Transform, as `momentum`.

    Raises:
      ConfigError: if μ is out of range.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.nesterov(0.5)
      >>> g = jnp.array([1.0])
      >>> tx.update(g, tx.init(g))[0].tolist()
      [1.5]

    References:
      Nesterov 1983, in the form of Sutskever et al. 2013.
    """
    return momentum(decay, nesterov=True)


class MomentumState(Moments, _Momentum):
    """The velocity, in float32 at least, and how many updates made it."""

    moments: ClassVar[tuple[str, ...]] = ("velocity",)
