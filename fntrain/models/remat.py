"""Economical backpropagation, by name: what a layer's backward pass computes again instead of keeping it."""

from collections.abc import Callable
from typing import Any

import jax

from .._core import check

KEPT = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.dots_saveable,
    "weight products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What may be kept, by name, as the policy that says so."""


def remat(function: Callable[..., Any], keep: str | Callable[..., bool] = "nothing") -> Callable[..., Any]:
    """A function, a layer of a model say, whose backward pass computes its inside again instead of keeping it.

    Values and gradients are the same. Each layer by itself, one inside is alive at a time: around a whole model,
    all of it is, and nothing is saved.

    Args:
      function: a function of trees of arrays.
      keep: what is kept all the same: `"nothing"`, but for what goes in; `"products"`, the results of matrix products,
        so that none is computed twice; `"weight products"`, of those without a batch axis alone, as of weights and not
        of attention; or a policy of `jax.checkpoint_policies`.

    Returns:
      A function of the same arguments.

    Raises:
      ConfigError: if `function` is none, or `keep` unknown.

    Examples:
      >>> import fntrain as ft, jax, jax.numpy as jnp
      >>> layer = ft.models.remat(lambda x, w: jnp.tanh(x @ w))
      >>> weights = jnp.stack([jnp.eye(2)] * 3)
      >>> forward = lambda weights: jax.lax.scan(lambda x, w: (layer(x, w), None), jnp.ones(2), weights)[0].sum()
      >>> jax.grad(forward)(weights).shape
      (3, 2, 2)

    References:
      Chen et al., *Training deep nets with sublinear memory cost*, 2016; `jax.checkpoint`, which does the work.
    """
    check.function("function", function, "(*inputs) -> outputs")
    if not callable(keep):
        check.one_of("keep", keep, tuple(KEPT))
    policy = KEPT[keep] if isinstance(keep, str) else keep
    return jax.checkpoint(function, policy=policy)  # type: ignore[attr-defined]
