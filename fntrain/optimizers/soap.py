"""SOAP, with decoupled weight decay."""

from collections.abc import Mapping
from typing import Any

from .. import transforms
from .._core import check
from .._core.typing import ScheduleLike
from ..transforms import chain
from .aliases import optimizer


@optimizer
def soap(
    learning_rate: ScheduleLike = 3e-3,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: ScheduleLike = 0.01,
    mask: Any = None,
    precondition_frequency: int = 10,
    max_dim: int = 8192,
    one_sided: bool = False,
    basis_decay: float | None = None,
    axes: Mapping[str, str] | None = None,
):
    r"""SOAP: AdamW in the eigenbasis of Shampoo's preconditioner.

    .. math:: p_t = p_{t-1} - \eta \left( Q_L \operatorname{adam}(Q_L^\top g_t Q_R)\, Q_R^\top
              + \lambda\, p_{t-1} \right)

    with the bases of `transforms.scale_by_soap`. The first update is zero but for the decay: its gradient makes the
    bases.

    Args:
      learning_rate: η, a number >= 0, an array of one, or a schedule; it scales the decay too.
      b1: β₁, in [0, 1).
      b2: β₂, in [0, 1).
      eps: ε, > 0, outside the root.
      weight_decay: λ, >= 0, or a schedule: decoupled.
      mask: which leaves decay, as in `add_weight_decay`; None is all.
      precondition_frequency: updates from one turn of the bases to the next, >= 1.
      max_dim: axes longer than this are not turned (an embedding's, say).
      one_sided: turn the shorter axis of a matrix alone.
      basis_decay: how much of the second moments that make the bases is kept, in [0, 1); None is β₂.
      axes: which axes are rows and columns, `{regex: letters}`, as in `transforms.orthogonalize`.

    Returns:
      A Transform: `chain(scale_by_soap, add_weight_decay, scale_by_learning_rate)`.

    Raises:
      ConfigError: if an argument is out of range, the mask fits nothing, or two spellings of one argument meet.

    Examples:
      >>> import fntrain as ft
      >>> ft.optimizers.soap(1e-3, precondition_frequency=5)
      soap(learning_rate=0.001, precondition_frequency=5)

    References:
      Vyas et al., *SOAP: improving and stabilizing Shampoo using Adam*, 2024.
    """
    check.number_or_schedule("weight_decay", weight_decay, at_least=0)
    return chain(
        transforms.scale_by_soap(b1, b2, eps, precondition_frequency, max_dim, one_sided, basis_decay, axes),
        transforms.add_weight_decay(weight_decay, mask),
        transforms.scale_by_learning_rate(learning_rate),
    )
