"""Stochastic gradient descent."""

from .. import transforms
from .._core import check
from .._core.errors import ConfigError
from .._core.typing import ScheduleLike
from ..transforms import chain
from ..transforms.types import is_zero
from .aliases import optimizer


@optimizer
def sgd(
    learning_rate: ScheduleLike = 0.01,
    momentum: ScheduleLike = 0.0,
    dampening: ScheduleLike = 0.0,
    weight_decay: ScheduleLike = 0.0,
    nesterov: bool = False,
):
    r"""Stochastic gradient descent, with momentum and L2 decay as torch has them.

    .. math::
        g_t &\leftarrow g_t + \lambda\, p_{t-1} \\
        v_1 &= g_1, \qquad v_t = \mu\, v_{t-1} + (1 - \tau)\, g_t \\
        p_t &= p_{t-1} - \eta\, v_t \quad\text{or, with Nesterov,}\quad
        p_t = p_{t-1} - \eta\, (g_t + \mu\, v_t)

    Args:
      learning_rate: η, a number >= 0, an array of one, or a schedule.
      momentum: μ, in [0, 1), or a schedule; 0 keeps no velocity.
      dampening: τ, in [0, 1], or a schedule; without momentum there is nothing to dampen, and it has no effect.
      weight_decay: λ, >= 0, or a schedule: L2, added to the gradient *before* the momentum.
      nesterov: Nesterov's form; needs momentum, and no dampening.

    Returns:
      A Transform: `chain(add_weight_decay, momentum, scale_by_learning_rate)`, each of the first two only
      where it is not 0.

    Raises:
      ConfigError: if a number is out of range, Nesterov comes without momentum or with dampening, or two
        spellings of one argument meet.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.optimizers.sgd(0.5, weight_decay=0.5)
      >>> p = jnp.array([2.0])
      >>> tx.update(jnp.array([1.0]), tx.init(p), p)[0].tolist()
      [-1.0]

    References:
      Sutskever et al., *On the importance of initialization and momentum*, 2013; torch.optim.SGD.
    """
    check.number_or_schedule("momentum", momentum, at_least=0, below=1)
    check.number_or_schedule("weight_decay", weight_decay, at_least=0)
    check.number_or_schedule("dampening", dampening, at_least=0, at_most=1)
    if nesterov and is_zero(momentum):
        raise ConfigError(f"`nesterov=True` needs `momentum` > 0, got {momentum!r}; say `momentum=0.9`")
    stages = []
    if not is_zero(weight_decay):
        stages.append(transforms.add_weight_decay(weight_decay))
    if not is_zero(momentum):
        stages.append(transforms.momentum(momentum, nesterov=nesterov, dampening=dampening))
    return chain(*stages, transforms.scale_by_learning_rate(learning_rate))
