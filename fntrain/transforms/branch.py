"""Work that is done at some updates only, in a population too."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._core.typing import PyTree


def branch(due: jax.Array, f: Callable[[PyTree], PyTree], kept: PyTree) -> PyTree:
    """`f(kept)` where it is due, and `kept` where not.

    Under `vmap` a `cond` whose condition differs by row computes both sides for all rows, always. Here it does so when
    it is due for any row: members that count alike pay at the updates at which each of them would pay alone.

    Args:
      due: bool, shape ().
      f: a function whose result has the types of `kept`.
      kept: a tree of arrays.
    """

    def work(kept):
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), f(kept), kept)

    return jax.lax.cond(_for_any(due), work, lambda kept: kept, kept)


# Of the condition alone, and not of the branch, so that what is computed can be differentiated.
@jax.custom_batching.custom_vmap
def _for_any(due: jax.Array) -> jax.Array:
    """Under `vmap` whether it is due for any row, which is one condition for all."""
    return due


@_for_any.def_vmap
def _rows(size, mapped, due):
    del size, mapped
    return _for_any(jnp.any(due)), False  # rows may have rows
