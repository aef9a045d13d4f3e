"""chain: transforms in order, each on the updates of the one before."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._core.errors import ConfigError
from .adapt import adapt
from .types import (
    Transform,
    check_stages,
    has_gate,
    holds_gradients,
    is_positive,
    kept,
    transform,
)


@transform
def chain(*txs: optax.GradientTransformation, **named: optax.GradientTransformation) -> Any:
    r"""Apply transforms in order, each to the updates of the one before.

    .. math:: u_0 = g, \quad u_i = T_i(u_{i-1}), \quad \text{updates} = u_n

    The state is a dict by name, so a checkpoint survives an edit of the chain: positional transforms are named
    by their factory (`clip_by_norm`; a second one `clip_by_norm_2`), keyword ones by the keyword. A transform
    without state leaves no entry.

    What one of them holds back (`MultiSteps`) or skips (`skip_nonfinite`) is held back or skipped for all that stand
    behind it: they do not run, and none of their counts moves.

    Args:
      *txs: transforms, ours or optax's.
      **named: more transforms, after the positional ones, under these names.

    Raises:
      ConfigError: if an argument is no transform, or the same name comes twice; if one that takes a gradient of its
        own (`sam`) stands behind one that changes the gradient, which would then have no effect; if one that holds
        back a part of the parameters alone (a window in a group of `by_path`) is not the last.

    Examples:
      >>> import fntrain as ft
      >>> ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(3e-4))
      chain(clip_by_norm(max_norm=1.0), adamw(learning_rate=0.0003))
    """
    stages: dict[str, Transform] = {}
    for i, tx in enumerate(txs):
        tx = adapt(tx, f"chain argument {i}")
        base = name = tx.name
        n = 1
        while name in stages:
            n += 1
            name = f"{base}_{n}"
        stages[name] = tx
    for name, tx in named.items():
        if name in stages:
            raise ConfigError(
                f"`{name}=` in chain: a transform of that name stands before it; choose another"
            )
        stages[name] = adapt(tx, name)
    _check_order(list(stages.items()))

    def init_fn(params):
        return kept({name: tx.init(params) for name, tx in stages.items()})

    def run(updates, state, params, extra, members):
        """`(updates, new states, whether they got through)`, the last None where nothing stands in the way."""
        new_state = {}
        for i, (name, tx) in enumerate(members):
            updates, new_state[name] = tx.update(updates, _state_of(state, name), params, **extra)
            rest = members[i + 1 :]
            if has_gate(new_state[name]):
                through = tx.passed(new_state[name])
                if not rest:
                    return updates, new_state, through
                updates, later, passed = _if(through, run, updates, state, params, extra, rest)
                return updates, {**new_state, **later}, through if passed is None else through & passed
        return updates, new_state, None

    def update_fn(updates, state, params=None, **extra):
        check_stages(state, stages)
        updates, new_state, _ = run(updates, state, params, extra, list(stages.items()))
        return updates, kept(new_state)

    *first, (last_name, last) = list(stages.items()) or [("", adapt(optax.identity()))]

    def apply_fn(updates, state, params, **extra):
        check_stages(state, stages)
        updates, before, through = run(updates, state, params, extra, first)
        weight = extra.get("weight")
        if weight is not None and not is_positive(weight):
            old = {name: state[name] for name in before if name in state}
            before = {**before, **tree.where(jnp.asarray(weight) > 0, kept(before), old)}
        inner = _state_of(state, last_name)
        if through is None:
            params, after, applied = last.apply(updates, inner, params, **extra)
        else:
            params, after, applied = jax.lax.cond(
                through,
                lambda params, inner: last.apply(updates, inner, params, **extra),
                lambda params, inner: (params, inner, jnp.asarray(False)),
                params,
                inner,
            )
        return params, kept({**before, last_name: after}), applied

    def flush_fn(state, params, **extra):
        check_stages(state, stages)
        new_state, updates, open_ = dict(state), None, jnp.asarray(False)
        for name, tx in stages.items():
            inner = _state_of(state, name)
            if updates is None:
                if tx.holds_back:
                    updates, new_state[name] = tx.flush(inner, params, **extra)
                    open_ = holds_gradients(inner)
            else:  # what stands behind sees an update only if there was one to see
                after, after_state = tx.update(updates, inner, params, **extra)
                updates = tree.where(open_, after, updates)
                new_state[name] = tree.where(open_, after_state, inner)
        return updates, kept(new_state)

    def look_fn(updates, state, params, **extra):
        return looking[1].look(updates, _state_of(state, looking[0]), params, **extra)

    def passed(state):
        through = jnp.asarray(True)
        for name, tx in stages.items():
            through &= tx.passed(_state_of(state, name))
        return through

    looking: Any = next(((name, tx) for name, tx in stages.items() if tx.looks), None)
    return Transform(
        init_fn,
        update_fn,
        apply_fn if last.owns_apply else None,
        stages,
        flush_fn if any(tx.holds_back for tx in stages.values()) else None,
        look=look_fn if looking else None,
        passed=passed,
    )


def _state_of(state: Any, name: str) -> Any:
    return state.get(name, optax.EmptyState())


def _check_order(members: Sequence[tuple[str, Transform]]) -> None:
    for i, (name, tx) in enumerate(members):
        if tx.mixed and i < len(members) - 1:
            raise ConfigError(
                f"`{name}` holds back or skips a part of the parameters alone, and what stands behind it in the chain "
                f"would go on with that part: put it last, or the rest of the chain into its groups"
            )
        changing = [other for other, before in members[:i] if not before.observes]
        if (tx.looks or tx.looks_late) and changing:
            raise ConfigError(
                f"`{name}` takes a gradient of its own, so `{changing[0]}` before it in the chain would have no effect "
                f"on what is applied: put it inside, `sam(chain({changing[0]}(...), tx))`"
            )


def _if(through: jax.Array, run: Any, updates: Any, state: Any, params: Any, extra: Any, rest: Any) -> Any:
    """`run` on the stages behind a gate, where it lets through; else zeros, and their states as they are."""
    own = {name: state[name] for name, _ in rest if name in state}

    def go(updates, own):
        updates, new_state, passed = run(updates, own, params, extra, rest)
        return updates, kept(new_state), jnp.asarray(True) if passed is None else passed

    shapes = jax.eval_shape(go, updates, own)[0]

    def leave(updates, own):
        del updates
        return tree.zeros_like(shapes), own, jnp.asarray(False)

    return jax.lax.cond(through, go, leave, updates, own)
