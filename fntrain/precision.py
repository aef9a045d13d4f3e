"""Which dtype parameters are kept in, computed in, and handed out in."""

import dataclasses

import jax
import jax.numpy as jnp

from ._check import ConfigError
from ._typing import PyTree
from .tree import is_trained


@dataclasses.dataclass(frozen=True)
class Policy:
    """Dtypes for the three places where they matter; None leaves a place as it is.

    Args:
      params: dtype that `init_state` keeps floating-point parameters in.
      compute: dtype that parameters and floating-point batch leaves are cast to before `loss_fn`.
      output: dtype that the loss's values and floating-point outputs are cast to after it.

    Whatever the policy, gradients are summed in float32, and norms, moments, hyperparameters and metrics are
    float32. The short forms `"float32"`, `"bf16"` and `"fp16"` keep float32 parameters and outputs and compute
    in the dtype they name.

    Raises:
      ConfigError: if a name is no floating-point dtype.

    Examples:
      >>> import fntrain as ft
      >>> ft.precision.policy("bf16")
      Policy(params='float32', compute='bfloat16', output='float32')
    """

    params: str | None = None
    compute: str | None = None
    output: str | None = None

    def __post_init__(self):
        for field in ("params", "compute", "output"):
            value = getattr(self, field)
            if value is None:
                continue
            try:
                dtype = jnp.dtype(value)
            except TypeError:
                dtype = None
            if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
                raise ConfigError(
                    f"`{field}` must name a floating-point dtype ('bfloat16', say), got {value!r}"
                )
            object.__setattr__(self, field, dtype.name)


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
    raise ConfigError(f"`policy` must be a Policy or one of {', '.join(map(repr, _SHORT))}, got {value!r}")


def cast(tree: PyTree, dtype: str | None) -> PyTree:
    """Floating-point leaves in `dtype`; all others, and None as dtype, as they are."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda x: x.astype(dtype) if is_trained(x) else x, tree)
