"""Work that is done at some updates only, in a population too."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._core.typing import PyTree


def branch(due: jax.Array, f: Callable[..., PyTree], kept: PyTree, *others: PyTree) -> PyTree:
    """`f(kept, *others)` where it is due, and `kept` where not.

    Under `vmap` a `cond` whose condition differs by row computes both sides for all rows, always. Here it does so when
    it is due for any row: members that count alike pay at the updates at which each of them would pay alone.

    Args:
      due: bool, shape ().
      f: a function that closes over no array; what it returns has the types of `kept`.
      kept: a tree of arrays.
      *others: what else it needs, trees of arrays.
    """

    @jax.custom_batching.custom_vmap
    def run(due, kept, others):
        return jax.lax.cond(due, lambda: f(kept, *others), lambda: kept)

    @run.def_vmap
    def rows(size, mapped, due, kept, others):
        spread = jax.tree.map(
            lambda x, yes: x if yes else jnp.broadcast_to(x, (size, *x.shape)), kept, mapped[1]
        )
        axes = tuple(jax.tree.map(lambda yes: 0 if yes else None, x) for x in mapped[2])
        each = jax.vmap(f, in_axes=(0, *axes), axis_size=size)
        if not mapped[0]:
            return branch(due, each, spread, *others), jax.tree.map(lambda _: True, spread)

        def chosen(kept, due, *others):
            return jax.vmap(lambda yes, a, b: jax.tree.map(lambda a, b: jnp.where(yes, a, b), a, b))(
                due, each(kept, *others), kept
            )

        return branch(jnp.any(due), chosen, spread, due, *others), jax.tree.map(lambda _: True, spread)

    return run(due, kept, others)
