"""Work that is done at some updates only: on every kind of device, and in a population too."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .. import tree
from .._core.typing import PyTree
from ..sharding import manual

_FEW_LEAVES, _FEW_NUMBERS = 64, 2**24  # counted in as long as a host takes to be told whether to


def either(
    due: jax.Array,
    take: Callable[..., PyTree],
    leave: Callable[..., PyTree],
    *given: PyTree,
    rarely: bool = False,
) -> PyTree:
    """`take(*given)` where it is due, `leave(*given)` where not: an update, that is, and what stays as it was.

    A branch works in place on a CPU, where a selection between both outcomes would keep the old and the new alive at
    once. Elsewhere it is the other way round: a branch copies what it is given, three times the parameters for AdamW,
    and a GPU waits until the host has been told the condition; a selection is fused into the loops that write the
    result. Only a TPU, which asks no host, gains by a branch that is rarely due.

    Args:
      due: bool, shape ().
      take: a function of `given`, computed always where this is a selection.
      leave: another, whose result has the same types.
      *given: trees of arrays.
      rarely: whether most calls are not due.
    """
    return _in_form(due, take, leave, lambda kept: kept, (), given, rarely)[0]


def either_noting(
    due: jax.Array,
    take: Callable[..., PyTree],
    leave: Callable[..., PyTree],
    note: Callable[[PyTree], PyTree],
    kept: PyTree,
    *given: PyTree,
) -> tuple[PyTree, PyTree]:
    """`either`, and what there is to know of calls that were not due: `(result, kept or note(kept))`.

    The note reads much, and is hardly ever made. So beside a selection it is a branch of its own, before anything is
    written over; or made always, where it reads little, which is sooner done than a host is told.

    Args:
      due: as for `either`, as are `take`, `leave` and `given`.
      take: likewise.
      leave: likewise.
      note: a function of `kept` whose result has the same types.
      kept: what is known so far.
      *given: likewise.
    """
    return _in_form(due, take, leave, note, kept, given, rarely=False)


def _in_form(due: Any, take: Any, leave: Any, note: Any, kept: Any, given: Any, rarely: bool) -> Any:
    # Jitted, so that each is traced once for both forms.
    functions = [jax.jit(f, inline=True) for f in (take, leave, note)]
    branch, selection = partial(_by_branch, *functions), partial(_by_selection, *functions)
    return jax.lax.platform_dependent(
        due, kept, given, cpu=branch, tpu=branch if rarely else selection, default=selection
    )


def _by_branch(take: Any, leave: Any, note: Any, due: jax.Array, kept: PyTree, given: Any) -> PyTree:
    found = jax.lax.cond(due, lambda *x: (take(*x), kept), lambda *x: (leave(*x), note(kept)), *given)
    return manual.vary(found, manual.axes(due))


def _by_selection(take: Any, leave: Any, note: Any, due: jax.Array, kept: PyTree, given: Any) -> PyTree:
    if jax.tree.leaves(kept):
        leaves = jax.tree.leaves(given)
        if len(leaves) <= _FEW_LEAVES and sum(x.size for x in leaves) <= _FEW_NUMBERS:
            kept = tree.where(due, kept, note(kept))
        else:
            kept = jax.lax.cond(due, lambda kept: kept, note, kept)
        given, kept = jax.lax.optimization_barrier((given, kept))
    return manual.vary((tree.where(due, take(*given), leave(*given)), kept), manual.axes(due))


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
