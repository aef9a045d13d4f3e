"""Named optimizers: each is a chain of transforms, so it can be read, taken apart and composed further."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import optax

from . import _check, transforms, tree
from ._check import ConfigError
from ._typing import PyTree, ScheduleLike
from ._value import Call
from .transforms import Transform, chain
from .transforms._base import call_init, call_update, is_zero

ALIASES = {
    "lr": "learning_rate",
    "beta1": "b1",
    "beta_1": "b1",
    "beta2": "b2",
    "beta_2": "b2",
    "epsilon": "eps",
    "alpha": "decay",
    "rho": "decay",
}
"""Other libraries' spellings of an argument: every optimizer takes them for the arguments it has."""

P = ParamSpec("P")


def _optimizer(function: Callable[P, Any]) -> Callable[P, Transform]:
    """`transform`, for a factory that takes the spellings of ALIASES too."""
    make = transforms.transform(function)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> Transform:
        made = make(*args, **_canonical(function.__name__, signature, args, kwargs))  # type: ignore[arg-type]
        # Pickle looks the factory up by its name, and finds this function there, not `make`.
        made.call = Call(named, signature, made.call.arguments)  # type: ignore[union-attr]
        return made

    return named


def _canonical(
    optimizer: str, signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Rename keyword arguments to their canonical spelling.

    Raises:
      ConfigError: if one argument comes twice, or the optimizer has none of that name.
    """
    names = list(signature.parameters)
    given = {name: name for name in names[: len(args)]}
    out = {}
    for spelling, value in kwargs.items():
        name = ALIASES.get(spelling, spelling)
        if name not in names:
            raise ConfigError(
                f"`{spelling}` is no argument of {optimizer}, which has {tree.some(names, len(names))}"
                + _check.did_you_mean(spelling, names)
            )
        if name in given:
            raise ConfigError(
                f"`{given[name]}` and `{spelling}` of {optimizer} are the same argument; give one of them"
            )
        given[name] = spelling
        out[name] = value
    return out


@_optimizer
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
    _check.number_or_schedule("dampening", dampening, at_least=0, at_most=1)
    if nesterov and is_zero(momentum):
        raise ConfigError(f"`nesterov=True` needs `momentum` > 0, got {momentum!r}; say `momentum=0.9`")
    stages = []
    if not is_zero(weight_decay):
        stages.append(transforms.add_weight_decay(weight_decay))
    if not is_zero(momentum):
        stages.append(transforms.momentum(momentum, nesterov=nesterov, dampening=dampening))
    return chain(*stages, transforms.scale_by_learning_rate(learning_rate))


@_optimizer
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


@_optimizer
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
    return chain(
        transforms.scale_by_adam(b1, b2, eps),
        transforms.add_weight_decay(weight_decay, mask),
        transforms.scale_by_learning_rate(learning_rate),
    )


@_optimizer
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
    stages = [transforms.scale_by_rms(decay, eps, eps_in_sqrt, centered)]
    if not is_zero(momentum):
        stages.append(transforms.momentum(momentum))
    return chain(*stages, transforms.scale_by_learning_rate(learning_rate))


@_optimizer
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
    return chain(
        transforms.scale_by_lion(b1, b2),
        transforms.add_weight_decay(weight_decay, mask),
        transforms.scale_by_learning_rate(learning_rate),
    )


@_optimizer
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
    _check.integer("min_dim_size_to_factor", min_dim_size_to_factor, at_least=1)
    _check.number("decay_rate", decay_rate, above=0)
    _check.number("eps", eps, above=0)
    rms = optax.scale_by_factored_rms(
        decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor, epsilon=eps
    )
    stages = {"scale_by_factored_rms": _in_float32(rms)}
    if clipping_threshold is not None:
        _check.number("clipping_threshold", clipping_threshold, above=0)
        stages["clip_by_block_rms"] = _in_float32(optax.clip_by_block_rms(clipping_threshold))
    if multiply_by_parameter_scale:
        stages["scale_by_param_block_rms"] = _in_float32(optax.scale_by_param_block_rms())
    if not is_zero(weight_decay):
        stages["add_weight_decay"] = transforms.add_weight_decay(weight_decay, mask)
    return chain(**stages, scale_by_learning_rate=transforms.scale_by_learning_rate(learning_rate))


@transforms.transform
def _in_float32(tx: optax.GradientTransformation):
    """Show `tx` everything in float32; updates go out in the dtype they came in."""

    def wide(x: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), x)

    def init_fn(params):
        return call_init(tx, wide(params))

    def update_fn(updates, state, params=None, **extra):
        new, state = call_update(tx, wide(updates), state, wide(params), **extra)
        return jax.tree.map(lambda u, g: u.astype(g.dtype), new, updates), state

    return init_fn, update_fn


OPTIMIZERS = {f.__name__: f for f in (sgd, adam, adamw, rmsprop, lion, adafactor)}
"""The optimizers that `get` knows, by name."""

PRESETS: dict[str, dict[str, Any]] = {
    "sgd/basic": {},
    "sgd/momentum": {"momentum": 0.9},
    "sgd/fine_tuning": {"learning_rate": 0.001, "momentum": 0.9},
    "sgd/regularised": {"weight_decay": 1e-4},
}
"""Arguments that are usual together, as `get("sgd/momentum")`."""


def get(name: str, **kwargs: Any) -> Transform:
    """Make an optimizer by name.

    Args:
      name: `"sgd"`, `"adam"`, `"adamw"`, `"rmsprop"`, `"lion"`, `"adafactor"`, or a preset of PRESETS, as
        `"sgd/momentum"`.
      **kwargs: its arguments, in any spelling of ALIASES; they win over those of a preset.

    Returns:
      A Transform, equal to the one that the optimizer itself makes.

    Raises:
      ConfigError: if there is no optimizer of that name, or no argument.

    Examples:
      >>> import fntrain as ft
      >>> ft.optimizers.get("adamw", lr=1e-3) == ft.optimizers.adamw(1e-3)
      True
      >>> ft.optimizers.get("sgd/momentum", learning_rate=0.1)
      sgd(learning_rate=0.1, momentum=0.9)
    """
    _check.one_of("name", name, [*OPTIMIZERS, *PRESETS])
    optimizer = OPTIMIZERS[name.split("/")[0]]
    given = _canonical(name, inspect.signature(optimizer), (), kwargs)
    return optimizer(**{**PRESETS.get(name, {}), **given})
