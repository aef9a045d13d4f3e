"""Which dtype parameters are kept in, computed in, and handed out in."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ._core.check import did_you_mean, flag
from ._core.errors import ConfigError
from ._core.public import surface
from ._core.typing import PyTree
from .tree import is_trained


@dataclasses.dataclass(frozen=True)
class Policy:
    """Dtypes for the three places where they matter; None leaves a place as it is.

    Args:
      params: dtype that `init_state` keeps floating-point parameters in.
      compute: dtype that parameters and floating-point batch leaves are cast to before `loss_fn`.
      output: dtype that the loss's values and floating-point outputs are cast to after it.
      stochastic_rounding: round updated parameters up or down at random, so that the mean is what was to be
        stored; for `params="bfloat16"`, where an update smaller than half a unit in the last place (1/512 of the
        parameter) is otherwise lost every time. The randomness is the step's. The updates are then added in
        float32, which takes that much memory for the while.

    Whatever the policy, gradients are summed in float32, and norms, moments, hyperparameters and metrics are
    float32. The short forms `"float32"`, `"bf16"` and `"fp16"` keep float32 parameters and outputs and compute
    in the dtype they name.

    Raises:
      ConfigError: if a name is no floating-point dtype, or stochastic rounding is wanted to another than bfloat16.

    Examples:
      >>> import fntrain as ft
      >>> ft.precision.policy("bf16")
      Policy(params='float32', compute='bfloat16', output='float32')
    """

    params: str | None = None
    compute: str | None = None
    output: str | None = None
    stochastic_rounding: bool = False

    def __post_init__(self) -> None:
        for field in ("params", "compute", "output"):
            value = getattr(self, field)
            if value is None:
                continue
            try:
                dtype = jnp.dtype(value)
            except TypeError:
                dtype = None
            if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
                short = _SHORT.get(value) if isinstance(value, str) else None
                hint = did_you_mean(value if short is None else short.compute, _DTYPES)
                raise ConfigError(
                    f"`{field}` must name a floating-point dtype ('bfloat16', say), got {value!r}{hint}"
                )
            object.__setattr__(self, field, dtype.name)
        flag("stochastic_rounding", self.stochastic_rounding)
        if self.stochastic_rounding and self.params != "bfloat16":
            raise ConfigError(
                f"`stochastic_rounding` is to bfloat16: give `params='bfloat16'` with it, got params={self.params!r}"
            )

    def __repr__(self) -> str:
        said = f"params={self.params!r}, compute={self.compute!r}, output={self.output!r}"
        return f"Policy({said}{', stochastic_rounding=True' * self.stochastic_rounding})"

    def __enter__(self) -> None:
        raise ConfigError(
            "a Policy is no context: in which dtype a task computes is a part of it, `Task(loss_fn, tx, policy='bf16')`"
        )

    def __exit__(self, *exception: object) -> None:
        """There is nothing to leave."""


_DTYPES = ("bfloat16", "float16", "float32", "float64")
_SHORT = {
    "float32": Policy("float32", "float32", "float32"),
    "bf16": Policy("float32", "bfloat16", "float32"),
    "fp16": Policy("float32", "float16", "float32"),
}


def policy(value: Policy | str) -> Policy:
    """A Policy from itself or from a short form (`"float32"`, `"bf16"`, `"fp16"`).

    Raises:
      ConfigError: if it is neither.
    """
    if isinstance(value, Policy):
        return value
    if isinstance(value, str) and value in _SHORT:
        return _SHORT[value]
    raise ConfigError(
        f"`policy` must be a Policy or one of {', '.join(map(repr, _SHORT))}, got {value!r}{_meant(value)}"
    )


def autocast(dtype: Any = "bfloat16") -> Policy:
    """Mixed precision, by the name that it has as a context elsewhere: the Policy that computes in a dtype.

    Args:
      dtype: `"bfloat16"`, `"float16"` or `"float32"`, or such a dtype.

    Returns:
      A Policy for `Task(policy=)`: parameters, sums and statistics stay float32. float16 wants a
      `dynamic_loss_scale` too.

    Raises:
      ConfigError: if it is another; and of `with autocast():`, for a policy is a part of the task, and no context.

    Examples:
      >>> import fntrain as ft
      >>> ft.precision.autocast() == ft.precision.policy("bf16")
      True
    """
    short = {str(made.compute): made for made in _SHORT.values()}
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype))
    name = name.removeprefix("torch.")
    if name not in short:
        raise ConfigError(
            f"`dtype` must be one of {', '.join(map(repr, short))}, got {dtype!r}{did_you_mean(name, short)}"
        )
    return short[name]


_NAMES = {
    "float32": ("fp32", "f32", "float", "single", "full", "none"),
    "bf16": ("bfloat16", "mixed_bfloat16", "bf16-mixed", "mixed", "amp"),
    "fp16": ("float16", "half", "f16", "mixed_float16", "16-mixed"),
}


def _meant(value: Any) -> str:
    """What another library's word is here: it may mean parameters in that dtype too, so it is not taken for it."""
    name = value if isinstance(value, str) else getattr(value, "__name__", getattr(value, "name", str(value)))
    for short, names in _NAMES.items():
        if str(name).lower() in (short, *names):
            dtype = _SHORT[short].compute
            more = f" It computes in {dtype}; `Policy(params={dtype!r})` keeps the parameters in it, too"
            return f"; did you mean {short!r}?{more * (short != 'float32')}"
    return did_you_mean(value, _SHORT)


def cast(tree: PyTree, dtype: str | None) -> PyTree:
    """Floating-point leaves in `dtype`; all others, and None as dtype, as they are."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda x: x.astype(dtype) if is_trained(x) else x, tree)


def round_stochastically(tree: PyTree, like: PyTree, key: jax.Array) -> PyTree:
    r"""Float32 leaves as bfloat16 where the same leaf of `like` is, rounded at random without bias.

    .. math:: P(\text{up}) = \frac{x - \lfloor x \rfloor}{\lceil x \rceil - \lfloor x \rfloor}

    A number that bfloat16 holds exactly, NaN and infinity among them, stays what it is.
    """

    def one(index: int, x: jax.Array, y: jax.Array) -> jax.Array:
        if y.dtype != jnp.bfloat16:
            return x.astype(y.dtype)
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        noise = jax.random.bits(jax.random.fold_in(key, index), x.shape, jnp.uint16).astype(jnp.uint32)
        # The sixteen bits that are to go, plus as many random ones, carry over as often as they are large.
        cut = jax.lax.bitcast_convert_type(((bits + noise) >> 16).astype(jnp.uint16), jnp.bfloat16)
        return jnp.where(jnp.isfinite(x), cut, x.astype(jnp.bfloat16))

    leaves, structure = jax.tree.flatten(tree)
    rounded = [one(i, x, y) for i, (x, y) in enumerate(zip(leaves, jax.tree.leaves(like)))]
    return jax.tree.unflatten(structure, rounded)


__all__ = [
    "Policy",
    "autocast",
    "cast",
    "policy",
    "round_stochastically",
]

surface(__name__)
