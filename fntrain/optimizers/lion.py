"""Lion."""

from typing import Any

from .. import transforms
from .._core import check
from .._core.typing import ScheduleLike
from ..transforms import chain
from .aliases import optimizer


@optimizer
def lion(
    learning_rate: ScheduleLike = 1e-4,
    b1: ScheduleLike = 0.9,
    b2: ScheduleLike = 0.99,
    weight_decay: ScheduleLike = 1e-3,
    mask: Any = None,
):
    r"""Lion: the sign of a momentum, with decoupled weight decay.

    .. math::
        p_t &= p_{t-1} - \eta \left( \operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t)
               + \lambda\, p_{t-1} \right) \\
        m_t &= \beta_2 m_{t-1} + (1 - \beta_2) g_t

    Every entry moves by η, so η wants to be 3 to 10 times smaller than Adam's, and λ as much larger.

    Args:
      learning_rate: η, a number >= 0, an array of one, or a schedule; it scales the decay too.
      b1: β₁, in [0, 1), or a schedule.
      b2: β₂, in [0, 1), or a schedule.
      weight_decay: λ, >= 0, or a schedule: decoupled.
      mask: which leaves decay, as in `add_weight_decay`; None is all.

    Returns:
      A Transform: `chain(scale_by_lion, add_weight_decay, scale_by_learning_rate)`.

    Raises:
      ConfigError: if a number is out of range, the mask fits nothing, or two spellings of one argument meet.

    Examples:
      >>> import fntrain as ft
      >>> ft.optimizers.lion(3e-5)
      lion(learning_rate=3e-05)

    References:
      Chen et al., *Symbolic discovery of optimization algorithms*, 2023.
    """
    check.number_or_schedule("weight_decay", weight_decay, at_least=0)
    return chain(
        transforms.scale_by_lion(b1, b2),
        transforms.add_weight_decay(weight_decay, mask),
        transforms.scale_by_learning_rate(learning_rate),
    )
