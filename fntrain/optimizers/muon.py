"""Muon for the matrices, and AdamW for the rest."""

from collections.abc import Mapping, Sequence
from typing import Any

from .. import transforms, tree
from .._core import check
from .._core.errors import ConfigError
from .._core.typing import PyTree, ScheduleLike
from ..transforms import Transform, chain
from ..transforms.select import side_by_side
from ..transforms.types import is_zero
from .aliases import optimizer


@optimizer
def muon(
    learning_rate: ScheduleLike = 0.02,
    adam_rate: ScheduleLike = 3e-4,
    matrices: str | Sequence[str] | None = None,
    momentum: ScheduleLike = 0.95,
    nesterov: bool = True,
    weight_decay: ScheduleLike = 0.0,
    mask: Any = None,
    b1: ScheduleLike = 0.9,
    b2: ScheduleLike = 0.95,
    eps: float = 1e-8,
    steps: int = 5,
    coefficients: str | Sequence[Sequence[float]] = "polar_express",
    scaling: str = "aspect",
    axes: Mapping[str, str] | None = None,
    dtype: str = "bfloat16",
):
    r"""Muon for the matrices inside a network, and AdamW for all other leaves.

    .. math::
        p_t &= p_{t-1} - \eta \left( s\, \operatorname{orth}(\mu\, m_t + (1 - \mu)\, g_t) + \lambda\, p_{t-1} \right),
        \qquad m_t = \mu\, m_{t-1} + (1 - \mu)\, g_t \\
        p_t &= p_{t-1} - \eta_A \left( \operatorname{adam}(g_t) + \lambda\, p_{t-1} \right)
        \qquad\text{for all other leaves}

    Name the matrices: a token embedding and the last layer have two axes too, and are better left to AdamW, as is an
    attention bias `[heads, size]`. With `scaling="rms"` one rate does for both.

    Args:
      learning_rate: η, of the matrices: a number >= 0, an array of one, or a schedule.
      adam_rate: η of all other leaves, likewise.
      matrices: a regex, or several, searched in the leaf paths (`"layers/.*kernel"`): which leaves are matrices.
        None is every leaf of two axes or more.
      momentum: μ, in [0, 1), or a schedule.
      nesterov: look one gradient ahead.
      weight_decay: λ, >= 0, or a schedule: decoupled, and scaled by the rate, in both.
      mask: which leaves decay, as in `add_weight_decay`; None is all.
      b1: β₁ of Adam, in [0, 1), or a schedule.
      b2: β₂ of Adam, in [0, 1), or a schedule.
      eps: ε of Adam, >= 0.
      steps: of the iteration that orthogonalises, as in `transforms.orthogonalize`, and so are:
      coefficients: of its polynomials.
      scaling: s: `"aspect"`, `"rms"`, `"spectral"` or `"none"`.
      axes: which axes are rows and columns, `{regex: letters}`.
      dtype: what is iterated in.

    Returns:
      A Transform: `chain(directions, add_weight_decay, rates)`, the first and the last with two groups each, `matrices`
      and `others`; its `update` needs `params` where there is a decay.

    Raises:
      ConfigError: if an argument is out of range, a regex matches no leaf, or no leaf of two axes, or two spellings of
        one argument meet.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.optimizers.muon(0.1, 0.001, matrices="kernel")
      >>> p = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> u, _ = tx.update(p | {"bias": jnp.ones(2)}, tx.init(p), p)
      >>> [round(x, 4) for x in u["bias"].tolist()]
      [-0.001, -0.001]

    References:
      Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024; Liu et al., *Muon is scalable for
      LLM training*, 2025.
    """
    check.number_or_schedule("weight_decay", weight_decay, at_least=0)
    patterns = [matrices] if isinstance(matrices, str) else list(matrices or ())
    found = [tree.compiled(pattern, "matrices") for pattern in patterns]

    def is_matrix(path: str, leaf: Any) -> bool:
        return any(p.search(path) for p in found) if found else leaf.ndim > 1

    def looked_at(params: PyTree) -> None:
        if patterns:
            tree.regex_mask(patterns, params, name="matrices")  # for its errors
        if not any(is_matrix(path, x) for path, x in tree.items(params)):
            raise ConfigError(
                f"`params` hold no leaf of two axes or more, which muon is for ({tree.describe(params)}); use "
                f"`optimizers.adamw`"
            )

    def each(matrices: Transform, others: Transform) -> Transform:
        stages = {"matrices": matrices, "others": others}
        return side_by_side(stages, lambda path, leaf: 0 if is_matrix(path, leaf) else 1, looked_at)

    orthogonal = transforms.scale_by_muon(momentum, nesterov, steps, coefficients, scaling, axes, dtype)
    decay = (
        {} if is_zero(weight_decay) else {"add_weight_decay": transforms.add_weight_decay(weight_decay, mask)}
    )
    return chain(
        directions=each(orthogonal, transforms.scale_by_adam(b1, b2, eps)),
        **decay,
        rates=each(
            transforms.scale_by_learning_rate(learning_rate), transforms.scale_by_learning_rate(adam_rate)
        ),
    )
