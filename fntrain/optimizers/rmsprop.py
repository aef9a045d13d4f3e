"""RMSprop."""

from .. import transforms
from .._core import check
from .._core.typing import ScheduleLike
from ..transforms import chain
from ..transforms.types import is_zero
from .aliases import optimizer


@optimizer
def rmsprop(
    learning_rate: ScheduleLike = 0.001,
    decay: ScheduleLike = 0.9,
    eps: float = 1e-8,
    momentum: ScheduleLike = 0.0,
    centered: bool = False,
    eps_in_sqrt: bool = False,
):
    r"""RMSprop.

    .. math::
        v_t &= \alpha\, v_{t-1} + (1 - \alpha)\, g_t^2, \qquad
        b_t = \mu\, b_{t-1} + \frac{g_t}{\sqrt{v_t} + \epsilon} \\
        p_t &= p_{t-1} - \eta\, b_t

    torch's rule, whose default α is 0.99. optax has ε inside the root: `eps_in_sqrt=True`.

    Args:
      learning_rate: η, a number >= 0, an array of one, or a schedule.
      decay: α, in [0, 1), or a schedule.
      eps: ε, >= 0.
      momentum: μ, in [0, 1), or a schedule; 0 keeps no velocity.
      centered: divide by the running standard deviation, :math:`\sqrt{v_t - m_t^2}`.
      eps_in_sqrt: :math:`\sqrt{v_t + \epsilon}` in place of :math:`\sqrt{v_t} + \epsilon`.

    Returns:
      A Transform: `chain(scale_by_rms, momentum, scale_by_learning_rate)`, momentum only where it is not 0.

    Raises:
      ConfigError: if a number is out of range, or two spellings of one argument meet.

    Examples:
      >>> import fntrain as ft
      >>> ft.optimizers.rmsprop(alpha=0.99)
      rmsprop(decay=0.99)

    References:
      Tieleman, Hinton, *Lecture 6.5: rmsprop*, 2012; torch.optim.RMSprop.
    """
    check.number_or_schedule("momentum", momentum, at_least=0, below=1)
    stages = [transforms.scale_by_rms(decay, eps, eps_in_sqrt, centered)]
    if not is_zero(momentum):
        stages.append(transforms.momentum(momentum))
    return chain(*stages, transforms.scale_by_learning_rate(learning_rate))
