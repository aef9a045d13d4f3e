"""Adam, and Adam with decoupled weight decay."""

from typing import Any

from .. import transforms
from .._core import check
from .._core.typing import ScheduleLike
from ..transforms import chain
from .aliases import optimizer


@optimizer
def adam(
    learning_rate: ScheduleLike = 0.001,
    b1: ScheduleLike = 0.9,
    b2: ScheduleLike = 0.999,
    eps: float = 1e-8,
):
    r"""Adam.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        p_t &= p_{t-1} - \eta\, \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Args:
      learning_rate: η, a number >= 0, an array of one, or a schedule.
      b1: β₁, in [0, 1), or a schedule.
      b2: β₂, in [0, 1), or a schedule.
      eps: ε, >= 0, outside the root.

    Returns:
      A Transform: `chain(scale_by_adam, scale_by_learning_rate)`.

    Raises:
      ConfigError: if a number is out of range, or two spellings of one argument meet.

    Examples:
      >>> import fntrain as ft
      >>> ft.optimizers.adam(lr=0.01, beta_1=0.8, epsilon=1e-7)
      adam(learning_rate=0.01, b1=0.8, eps=1e-07)

    References:
      Kingma, Ba, *Adam: a method for stochastic optimization*, 2015.
    """
    return chain(transforms.scale_by_adam(b1, b2, eps), transforms.scale_by_learning_rate(learning_rate))


@optimizer
def adamw(
    learning_rate: ScheduleLike = 0.001,
    b1: ScheduleLike = 0.9,
    b2: ScheduleLike = 0.999,
    eps: float = 1e-8,
    weight_decay: ScheduleLike = 1e-4,
    mask: Any = None,
):
    r"""Adam with decoupled weight decay.

    .. math:: p_t = p_{t-1} - \eta \left(
        \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda\, p_{t-1} \right)

    with :math:`m_t`, :math:`v_t` as in `adam`.

    Args:
      learning_rate: η, a number >= 0, an array of one, or a schedule; it scales the decay too.
      b1: β₁, in [0, 1), or a schedule.
      b2: β₂, in [0, 1), or a schedule.
      eps: ε, >= 0, outside the root.
      weight_decay: λ, >= 0, or a schedule: decoupled, added *after* Adam's preconditioner.
      mask: which leaves decay, as in `add_weight_decay`; None is all.

    Returns:
      A Transform: `chain(scale_by_adam, add_weight_decay, scale_by_learning_rate)`.

    Raises:
      ConfigError: if a number is out of range, the mask fits nothing, or two spellings of one argument meet.

    Examples:
      >>> import fntrain as ft
      >>> ft.optimizers.adamw(3e-4, mask="kernel")
      adamw(learning_rate=0.0003, mask='kernel')

    References:
      Loshchilov, Hutter, *Decoupled weight decay regularization*, 2019.
    """
    check.number_or_schedule("weight_decay", weight_decay, at_least=0)
    return chain(
        transforms.scale_by_adam(b1, b2, eps),
        transforms.add_weight_decay(weight_decay, mask),
        transforms.scale_by_learning_rate(learning_rate),
    )
