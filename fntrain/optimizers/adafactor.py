"""Adafactor."""

from typing import Any

import optax

from .. import transforms
from .._core import check
from .._core.typing import ScheduleLike
from ..transforms import chain
from ..transforms.adapt import adapt
from ..transforms.types import is_zero
from .aliases import optimizer


@optimizer
def adafactor(
    learning_rate: ScheduleLike = 0.001,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    eps: float = 1e-30,
    weight_decay: ScheduleLike = 0.0,
    mask: Any = None,
):
    r"""Adafactor: second moments kept as a row and a column for each matrix.

    .. math::
        V_t &= \hat\beta_t V_{t-1} + (1 - \hat\beta_t)(g_t^2 + \epsilon), \quad
               \hat\beta_t = 1 - t^{-c}, \quad V \approx \frac{r\, c^\top}{\operatorname{mean}(r)} \\
        u_t &= \frac{g_t}{\sqrt{V_t}}, \quad
        u_t \leftarrow \frac{u_t}{\max(1, \operatorname{rms}(u_t) / d)}, \quad
        p_t = p_{t-1} - \eta \left( \max(10^{-3}, \operatorname{rms}(p_{t-1}))\, u_t + \lambda\, p_{t-1} \right)

    optax's own stages, run in float32 whatever the parameters' dtype.

    Args:
      learning_rate: η, a number >= 0, an array of one, or a schedule. Relative to the size of each leaf where
        `multiply_by_parameter_scale`.
      min_dim_size_to_factor: leaves whose two largest axes are shorter keep a full second moment.
      decay_rate: c, the exponent of the decay's schedule.
      multiply_by_parameter_scale: scale the step of a leaf by its root mean square.
      clipping_threshold: d, the largest root mean square of a leaf's step before scaling; None is no limit.
      eps: ε, > 0, added to the squared gradient.
      weight_decay: λ, >= 0, or a schedule: decoupled, and scaled by η, as in `adamw` (not so in optax).
      mask: which leaves decay, as in `add_weight_decay`; None is all.

    Returns:
      A Transform; its `update` needs `params`.

    Raises:
      ConfigError: if a number is out of range, the mask fits nothing, or two spellings of one argument meet.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.optimizers.adafactor(0.1)
      >>> p = jnp.ones(2)
      >>> tx.update(p, tx.init(p), p)[0].tolist()
      [-0.10000000149011612, -0.10000000149011612]

    References:
      Shazeer, Stern, *Adafactor: adaptive learning rates with sublinear memory cost*, 2018; optax.adafactor.
    """
    check.integer("min_dim_size_to_factor", min_dim_size_to_factor, at_least=1)
    check.number("decay_rate", decay_rate, above=0)
    check.number("eps", eps, above=0)
    check.number_or_schedule("weight_decay", weight_decay, at_least=0)
    rms = optax.scale_by_factored_rms(
        decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor, epsilon=eps
    )
    stages = {"scale_by_factored_rms": adapt(rms, in_float32=True)}
    if clipping_threshold is not None:
        check.number("clipping_threshold", clipping_threshold, above=0)
        stages["clip_by_block_rms"] = adapt(optax.clip_by_block_rms(clipping_threshold), in_float32=True)
    if multiply_by_parameter_scale:
        stages["scale_by_param_block_rms"] = adapt(optax.scale_by_param_block_rms(), in_float32=True)
    if not is_zero(weight_decay):
        stages["add_weight_decay"] = transforms.add_weight_decay(weight_decay, mask)
    return chain(**stages, scale_by_learning_rate=transforms.scale_by_learning_rate(learning_rate))
