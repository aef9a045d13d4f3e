"""Adaptive preconditioners: Adam, RMSprop, Lion."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core import check
from .._core.typing import PyTree, ScheduleLike
from .folding import decay_at, is_plain, power_seen
from .scheduled import scheduled
from .types import Moments, Transform, at_step, increment, like, transform


class _ScaleByAdam(NamedTuple):
    count: jax.Array  # int32, shape ()
    mu: PyTree  # float32 at least, the parameters' shapes
    nu: PyTree  # float32 at least, the parameters' shapes
    scheduled: Any = ()  # the values of the last update, where there are schedules
    seen: Any = ()  # where b1 or b2 is no plain number: 1 - its product over the updates, by name


def _nonzero(bottom: jax.Array, eps: ScheduleLike) -> jax.Array:
    """A divisor without zeros: with eps 0, and nothing seen, there is no direction rather than 0/0."""
    positive = isinstance(eps, int | float) and np.asarray(eps, bottom.dtype) > 0
    return bottom if positive else jnp.where(bottom > 0, bottom, jnp.ones((), bottom.dtype))


@transform
def scale_by_adam(b1: ScheduleLike = 0.9, b2: ScheduleLike = 0.999, eps: ScheduleLike = 1e-8):
    r"""Adam's direction: the mean gradient over the root of its mean square.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        u_t &= \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    ε stands outside the root, as in the paper and in torch. Where a β is a schedule (or held in the state, by
    `with_hyperparams`), its power is the product :math:`\prod_{i \le t} \beta_i` of all the values that it had, which
    is kept in the state. Moments and hyperparameters are float32 at least, whatever the parameters' dtype, so a
    zero gradient gives a zero update in float16 too.

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

    changing = [name for name, b in (("b1", b1), ("b2", b2)) if not is_plain(b)]

    def init_fn(params):
        count, kind = jnp.zeros((), jnp.int32), tree.widest(params)
        seen = {name: jnp.zeros((), kind) for name in changing} or ()
        return ScaleByAdamState(count, tree.wide_zeros(params), tree.wide_zeros(params), values(count), seen)

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        count = increment(state.count)
        first, second = decay_at(b1, state.count), decay_at(b2, state.count)
        decays = {"b1": first, "b2": second}
        seen = {name: decays[name].weigh(state.seen[name]) for name in changing}
        bias1 = power_seen(b1, count) if is_plain(b1) else seen["b1"].astype
        bias2 = power_seen(b2, count) if is_plain(b2) else seen["b2"].astype
        mu = jax.tree.map(lambda g, m: first.fold(m, like(g, m)), updates, state.mu)
        nu = jax.tree.map(lambda g, v: second.fold(v, jnp.square(like(g, v))), updates, state.nu)

        epsilon = at_step(eps, state.count)
        # Once for each dtype, and not for each leaf: there may be a thousand.
        kinds = {v.dtype for v in jax.tree.leaves(nu)}
        biases = {kind: (bias1(kind), bias2(kind)) for kind in kinds}

        def direction(g, m, v):
            correction1, correction2 = biases[v.dtype]
            bottom = jnp.sqrt(v / correction2) + like(epsilon, v)
            return like((m / correction1) / _nonzero(bottom, eps), g)

        new = jax.tree.map(direction, updates, mu, nu)
        return new, ScaleByAdamState(count, mu, nu, values(state.count), seen or ())

    return Transform(init_fn, update_fn, rescales=True, descends=False)


class _ScaleByRms(NamedTuple):
    count: jax.Array  # int32, shape ()
    nu: PyTree  # float32 at least: the mean square, or, centered, the variance
    mu: PyTree  # float32 at least: the mean, where centered; else ()
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
      A Transform; updates keep their shapes and dtypes. Moments and hyperparameters are float32 at least.

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
        mean = tree.wide_zeros(params) if centered else ()
        count = jnp.zeros((), jnp.int32)
        return ScaleByRmsState(count, tree.wide_zeros(params), mean, values(count))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        alpha = decay_at(decay, state.count)
        mu = state.mu
        if centered:

            def variance(g, v, m):
                kept, added = like(alpha.kept, v), like(alpha.added, v)
                return kept * (v + added * jnp.square(like(g, v) - m))

            nu = jax.tree.map(variance, updates, state.nu, mu)
            mu = jax.tree.map(lambda g, m: m + like(alpha.added, m) * (like(g, m) - m), updates, mu)
        else:
            nu = jax.tree.map(lambda g, v: alpha.fold(v, jnp.square(like(g, v))), updates, state.nu)

        epsilon = at_step(eps, state.count)

        def direction(g, v):
            added = like(epsilon, v)
            bottom = jnp.sqrt(v + added) if eps_in_sqrt else jnp.sqrt(v) + added
            return like(like(g, v) / _nonzero(bottom, eps), g)

        state = ScaleByRmsState(increment(state.count), nu, mu, values(state.count))
        return jax.tree.map(direction, updates, nu), state

    return Transform(init_fn, update_fn, rescales=True, descends=False)


class _ScaleByLion(NamedTuple):
    count: jax.Array  # int32, shape ()
    mu: PyTree  # float32 at least, the parameters' shapes
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
      A Transform; updates keep their shapes and dtypes. The momentum is float32 at least, whatever the parameters'
      dtype.

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
        return ScaleByLionState(count, tree.wide_zeros(params), values(count))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        seen, held = decay_at(b1, state.count), decay_at(b2, state.count)
        new = jax.tree.map(lambda g, m: like(jnp.sign(seen.fold(m, like(g, m))), g), updates, state.mu)
        mu = jax.tree.map(lambda g, m: held.fold(m, like(g, m)), updates, state.mu)
        return new, ScaleByLionState(increment(state.count), mu, values(state.count))

    return Transform(init_fn, update_fn, rescales=True, descends=False)


class ScaleByAdamState(Moments, _ScaleByAdam):
    """The two moments, in float32 at least, and how many updates made them."""

    moments: ClassVar[tuple[str, ...]] = ("mu", "nu")


class ScaleByRmsState(Moments, _ScaleByRms):
    """The running moments, in float32 at least."""

    moments: ClassVar[tuple[str, ...]] = ("nu", "mu")


class ScaleByLionState(Moments, _ScaleByLion):
    """The momentum, in float32 at least."""

    moments: ClassVar[tuple[str, ...]] = ("mu",)
