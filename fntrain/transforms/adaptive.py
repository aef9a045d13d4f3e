"""Adaptive preconditioners: Adam, RMSprop, Lion."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core import check
from .._core.typing import PyTree, ScheduleLike
from .scheduled import scheduled
from .types import Transform, at_step, increment, like, transform


class ScaleByAdamState(NamedTuple):
    """The two moments, in float32, and how many updates made them."""

    count: jax.Array  # int32, shape ()
    mu: PyTree  # float32, the parameters' shapes
    nu: PyTree  # float32, the parameters' shapes
    scheduled: Any = ()  # the values of the last update, where there are schedules


def _decay(b: ScheduleLike, count: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`(b, 1 - b, 1 - b**t)` in float32.

    The differences are formed before rounding: float32(1 - 0.999) is right to eight digits, 1 - float32(0.999)
    to five. `b**t` goes by expm1, for the same reason.
    """
    if callable(b) or not isinstance(b, int | float):
        beta = at_step(b, count)
        rest, log = 1 - beta, jnp.log(beta)
    else:
        beta, rest, log = (jnp.float32(x) for x in (b, 1 - b, math.log(b) if b > 0 else -math.inf))
    return beta, rest, -jnp.expm1(t.astype(jnp.float32) * log)


def _nonzero(bottom: jax.Array, eps: ScheduleLike) -> jax.Array:
    """A divisor without zeros: with eps 0, and nothing seen, there is no direction rather than 0/0."""
    positive = isinstance(eps, int | float) and np.float32(eps) > 0
    return bottom if positive else jnp.where(bottom > 0, bottom, jnp.float32(1.0))


@transform
def scale_by_adam(b1: ScheduleLike = 0.9, b2: ScheduleLike = 0.999, eps: ScheduleLike = 1e-8):
    r"""Adam's direction: the mean gradient over the root of its mean square.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        u_t &= \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    ε stands outside the root, as in the paper and in torch. Moments and hyperparameters are float32 whatever
    the parameters' dtype, so a zero gradient gives a zero update in float16 too.

    Args:
      b1: β₁, in [0, 1), or a schedule of it over updates.
      b2: β₂, in [0, 1), or a schedule.
      eps: ε, >= 0, or a schedule.

    Returns:
      A Transform; updates keep their shapes and dtypes.

    Raises:
      ConfigError: if a number is out of range.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.scale_by_adam()
      >>> g = jnp.array([0.3, -2.0])
      >>> [round(u, 4) for u in tx.update(g, tx.init(g))[0].tolist()]
      [1.0, -1.0]

    References:
      Kingma, Ba, *Adam: a method for stochastic optimization*, 2015.
    """
    check.number_or_schedule("b1", b1, at_least=0, below=1)
    check.number_or_schedule("b2", b2, at_least=0, below=1)
    check.number_or_schedule("eps", eps, at_least=0)

    def values(count):
        return scheduled(count, b1=b1, b2=b2, eps=eps)

    def init_fn(params):
        count, zeros = jnp.zeros((), jnp.int32), tree.zeros_like(params, jnp.float32)
        return ScaleByAdamState(count, zeros, tree.zeros_like(params, jnp.float32), values(count))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        count = increment(state.count)
        beta1, rest1, correction1 = _decay(b1, state.count, count)
        beta2, rest2, correction2 = _decay(b2, state.count, count)
        g32 = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
        mu = jax.tree.map(lambda g, m: beta1 * m + rest1 * g, g32, state.mu)
        nu = jax.tree.map(lambda g, v: beta2 * v + rest2 * jnp.square(g), g32, state.nu)

        epsilon = at_step(eps, state.count)

        def direction(g, m, v):
            bottom = jnp.sqrt(v / correction2) + epsilon
            return like((m / correction1) / _nonzero(bottom, eps), g)

        return jax.tree.map(direction, updates, mu, nu), ScaleByAdamState(count, mu, nu, values(state.count))

    return Transform(init_fn, update_fn, rescales=True)


class ScaleByRmsState(NamedTuple):
    """The running moments, in float32."""

    count: jax.Array  # int32, shape ()
    nu: PyTree  # float32: the mean square, or, centered, the variance
    mu: PyTree  # float32: the mean, where centered; else ()
    scheduled: Any = ()  # as in Adam's


@transform
def scale_by_rms(
    decay: ScheduleLike = 0.9, eps: ScheduleLike = 1e-8, eps_in_sqrt: bool = False, centered: bool = False
):
    r"""RMSprop's direction: the gradient over the root of its running mean square.

    .. math::
        v_t &= \alpha\, v_{t-1} + (1 - \alpha)\, g_t^2, \qquad
        m_t = \alpha\, m_{t-1} + (1 - \alpha)\, g_t \\
        u_t &= \frac{g_t}{\sqrt{v_t} + \epsilon} \quad\text{or}\quad \frac{g_t}{\sqrt{v_t + \epsilon}},
        \qquad v_t \to v_t - m_t^2 \text{ where centered}

    torch puts ε outside the root and optax inside: `eps_in_sqrt` says which; no bias correction, as in both.
    The variance is kept as such, by :math:`\sigma_t^2 = \alpha\, (\sigma_{t-1}^2 + (1 - \alpha)(g_t -
    m_{t-1})^2)`, which equals :math:`v_t - m_t^2` and cannot cancel.

    Args:
      decay: α, in [0, 1), or a schedule of it over updates.
      eps: ε, >= 0, or a schedule.
      eps_in_sqrt: ε inside the root.
      centered: divide by the running standard deviation instead.

    Returns:
      A Transform; updates keep their shapes and dtypes. Moments and hyperparameters are float32.

    Raises:
      ConfigError: if a number is out of range.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.scale_by_rms(0.75)
      >>> g = jnp.array([2.0, -0.5])
      >>> [round(u, 4) for u in tx.update(g, tx.init(g))[0].tolist()]
      [2.0, -2.0]

    References:
      Tieleman, Hinton, *Lecture 6.5: rmsprop*, 2012; Graves, *Generating sequences with recurrent neural
      networks*, 2013 (centered); torch.optim.RMSprop.
    """
    check.number_or_schedule("decay", decay, at_least=0, below=1)
    check.number_or_schedule("eps", eps, at_least=0)

    def values(count):
        return scheduled(count, decay=decay, eps=eps)

    def init_fn(params):
        count, zeros = jnp.zeros((), jnp.int32), tree.zeros_like(params, jnp.float32)
        mean = tree.zeros_like(params, jnp.float32) if centered else ()
        return ScaleByRmsState(count, zeros, mean, values(count))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        alpha, rest = _kept_and_added(decay, state.count)
        mu = state.mu
        if centered:
            nu = jax.tree.map(
                lambda g, v, m: alpha * (v + rest * jnp.square(g.astype(jnp.float32) - m)),
                updates,
                state.nu,
                mu,
            )
            mu = jax.tree.map(lambda g, m: m + rest * (g.astype(jnp.float32) - m), updates, mu)
        else:
            nu = jax.tree.map(
                lambda g, v: alpha * v + rest * jnp.square(g.astype(jnp.float32)), updates, state.nu
            )

        epsilon = at_step(eps, state.count)

        def direction(g, v):
            bottom = jnp.sqrt(v + epsilon) if eps_in_sqrt else jnp.sqrt(v) + epsilon
            return like(g.astype(jnp.float32) / _nonzero(bottom, eps), g)

        state = ScaleByRmsState(increment(state.count), nu, mu, values(state.count))
        return jax.tree.map(direction, updates, nu), state

    return Transform(init_fn, update_fn, rescales=True)


class ScaleByLionState(NamedTuple):
    """The momentum, in float32."""

    count: jax.Array  # int32, shape ()
    mu: PyTree  # float32, the parameters' shapes
    scheduled: Any = ()  # as in Adam's


@transform
def scale_by_lion(b1: ScheduleLike = 0.9, b2: ScheduleLike = 0.99):
    r"""Lion's direction: the sign of a momentum that looks one gradient ahead.

    .. math:: u_t = \operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t), \qquad
              m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t

    Args:
      b1: β₁, in [0, 1), or a schedule: how much of the past the sign sees.
      b2: β₂, in [0, 1), or a schedule: how much of it is kept.

    Returns:
      A Transform; updates keep their shapes and dtypes. The momentum is float32 whatever the parameters' dtype.

    Raises:
      ConfigError: if a number is out of range.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.scale_by_lion()
      >>> g = jnp.array([0.3, 0.0, -2.0])
      >>> tx.update(g, tx.init(g))[0].tolist()
      [1.0, 0.0, -1.0]

    References:
      Chen et al., *Symbolic discovery of optimization algorithms*, 2023.
    """
    check.number_or_schedule("b1", b1, at_least=0, below=1)
    check.number_or_schedule("b2", b2, at_least=0, below=1)

    def values(count):
        return scheduled(count, b1=b1, b2=b2)

    def init_fn(params):
        count = jnp.zeros((), jnp.int32)
        return ScaleByLionState(count, tree.zeros_like(params, jnp.float32), values(count))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        beta1, rest1 = _kept_and_added(b1, state.count)
        beta2, rest2 = _kept_and_added(b2, state.count)
        new = jax.tree.map(
            lambda g, m: like(jnp.sign(beta1 * m + rest1 * g.astype(jnp.float32)), g), updates, state.mu
        )
        mu = jax.tree.map(lambda g, m: beta2 * m + rest2 * g.astype(jnp.float32), updates, state.mu)
        return new, ScaleByLionState(increment(state.count), mu, values(state.count))

    return Transform(init_fn, update_fn, rescales=True)


def _kept_and_added(b: ScheduleLike, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(b, 1 - b)` in float32, the difference formed before rounding where it can be."""
    beta = at_step(b, count)
    return beta, jnp.float32(1 - b) if isinstance(b, int | float) else 1 - beta
