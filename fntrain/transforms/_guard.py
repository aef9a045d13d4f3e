"""Guards: steps that must not be taken."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._typing import PyTree
from ._base import (
    Transform,
    call_apply,
    call_init,
    call_update,
    checked,
    has_updated,
    increment,
    transform,
)


class SkipNonfiniteState(NamedTuple):
    """What became of the last call, of all calls, and the inner transform's state."""

    skipped: jax.Array  # int32, shape (): 1 if the last call was skipped, else 0
    total_skipped: jax.Array  # int32, shape (): calls skipped so far
    inner_state: Any
    records = ("skipped",)

    @property
    def applied(self) -> jax.Array:
        """Whether the last call was let through."""
        return self.skipped == 0


@transform
def skip_nonfinite(tx: optax.GradientTransformation, check_updates: bool = False) -> Any:
    r"""Skip a step whose gradient or loss is not finite, so that it leaves no trace.

    .. math:: (p, s) \leftarrow \begin{cases} T(g, s, p) & \text{if } g \text{ and the loss are finite} \\
                                               (p, s) & \text{otherwise} \end{cases}

    A skipped call changes no bit of the parameters or of the inner state, schedule counts included; only the
    two counters here move. It never gives up: when to stop is for the host to decide. `update` returns zeros
    for a skipped call. The last call's skip is reported by the step as `skipped` (a sum, over several steps).

    Around `MultiSteps`, a bad micro-step is left out of its window; inside it, a window whose mean is bad is
    dropped whole. Both together are fine too.

    Args:
      tx: the inner transform.
      check_updates: also skip where finite gradients give updates that are not (a schedule that returns NaN,
        say). The updates are then computed twice, once to look at and once to take; a `tx` that applies its
        own updates (`MultiSteps`) needs the guard inside instead: `MultiSteps(skip_nonfinite(tx, True), k)`.

    Returns:
      A Transform. Gradients are read once more; what is skipped is not computed.

    Raises:
      ConfigError: if `tx` is no transform.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.skip_nonfinite(ft.optimizers.adamw(1e-3))
      >>> p = jnp.array([1.0])
      >>> p, state, applied = tx.apply(jnp.array([jnp.nan]), tx.init(p), p)
      >>> p.tolist(), bool(applied), int(state.total_skipped)
      ([1.0], False, 1)
    """
    tx = checked(tx)
    holds_back = isinstance(tx, Transform) and tx.holds_back
    owns_apply = isinstance(tx, Transform) and tx.owns_apply

    def init_fn(params):
        zero = jnp.zeros((), jnp.int32)
        return SkipNonfiniteState(zero, jnp.copy(zero), call_init(tx, params))

    def is_good(updates, state, params, extra):
        good = all_finite(updates)
        if extra.get("value") is not None:
            good &= all_finite(extra["value"])
        if check_updates and not owns_apply:
            good = jax.lax.cond(
                good,
                lambda: all_finite(call_update(tx, updates, state.inner_state, params, **extra)[0]),
                lambda: jnp.asarray(False),
            )
        return good

    # A cond, and not a selection between both outcomes: XLA would keep the old state and the new alive at once
    # (two copies of the parameters on CPU, and three times the time); a cond's branches work in place.

    def update_fn(updates, state, params=None, **extra):
        good = is_good(updates, state, params, extra)

        def take(inner):
            new, inner = call_update(tx, updates, inner, params, **extra)
            return tree.cast_like(new, updates), inner

        def leave(inner):
            return tree.zeros_like(updates), inner

        new, inner = jax.lax.cond(good, take, leave, state.inner_state)
        return new, _counted(state, good, inner)

    def apply_fn(updates, state, params, **extra):
        good = is_good(updates, state, params, extra)
        weight = extra.get("weight")
        # A batch of weight zero is no step either (and no skip); a `tx` that owns `apply` sees to that itself.
        seen = True if owns_apply or weight is None else jnp.asarray(weight) > 0

        def take(params, inner):
            if owns_apply:
                return call_apply(tx, updates, inner, params, **extra)
            new, after = call_update(tx, updates, inner, params, **extra)
            return tree.add(params, new), after, has_updated(inner, after)

        def leave(params, inner):
            return params, inner, jnp.asarray(False)

        params, inner, applied = jax.lax.cond(good & seen, take, leave, params, state.inner_state)
        return params, _counted(state, good, inner), applied

    def flush_fn(state, params, **extra):
        updates, inner = tx.flush(state.inner_state, params, **extra)  # type: ignore[union-attr]
        return updates, state._replace(inner_state=inner)

    return Transform(init_fn, update_fn, apply_fn, {"inner": tx}, flush_fn if holds_back else None)


def _counted(state: SkipNonfiniteState, good: jax.Array, inner: Any) -> SkipNonfiniteState:
    total = jnp.where(good, state.total_skipped, increment(state.total_skipped))
    return SkipNonfiniteState((~good).astype(jnp.int32), total, inner)


def all_finite(x: PyTree) -> jax.Array:
    """Whether no number in a tree is NaN or infinite: a scalar bool array.

    By the largest magnitude, which carries NaN along: a reduction that XLA does in one pass, where
    `isfinite(x).all()` writes a bool for every element first.
    """
    finite = jnp.asarray(True)
    for leaf in jax.tree.leaves(x):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            finite &= jnp.max(jnp.abs(leaf), initial=0) < jnp.inf
    return finite
