"""chain: transforms in order, each on the updates of the one before."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._core.errors import ConfigError
from .._core.typing import Params
from .adapt import adapt
from .branch import either
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
    own = _Chain(stages)
    return Transform(
        own.init,
        own.update,
        own.apply if stages and own.last.owns_apply else None,
        stages,
        own.flush if any(tx.holds_back for tx in stages.values()) else None,
        look=own.look if own.looking else None,
        descends=None if stages else False,
        passed=own.passed,
    )


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


class _Chain:
    """The functions behind one chain."""

    def __init__(self, stages: dict[str, Transform]):
        self.stages = stages
        self.members = list(stages.items())
        self.last_name, self.last = self.members[-1] if stages else ("", adapt(optax.identity()))
        self.looking: Any = next(((name, tx) for name, tx in self.members if tx.looks), None)

    def init(self, params: Params) -> Any:
        return kept({name: tx.init(params) for name, tx in self.members})

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        check_stages(state, self.stages)
        updates, new_state, _ = _run(updates, state, params, extra, self.members)
        return updates, kept(new_state)

    def apply(self, updates: Any, state: Any, params: Params, **extra: Any) -> tuple[Params, Any, jax.Array]:
        check_stages(state, self.stages)
        updates, before, through = _run(updates, state, params, extra, self.members[:-1])
        weight = extra.get("weight")
        if weight is not None and not is_positive(weight):
            old = {name: state[name] for name in before if name in state}
            before = {**before, **tree.where(jnp.asarray(weight) > 0, kept(before), old)}

        def last(params: Params, inner: Any) -> tuple[Params, Any, jax.Array]:
            return self.last.apply(updates, inner, params, **extra)

        def none(params: Params, inner: Any) -> tuple[Params, Any, jax.Array]:
            return params, inner, jnp.asarray(False)

        inner = _state_of(state, self.last_name)
        if through is None:
            params, after, applied = last(params, inner)
        else:
            params, after, applied = either(through, last, none, params, inner, rarely=True)
        return params, kept({**before, self.last_name: after}), applied

    def flush(self, state: Any, params: Params, **extra: Any) -> tuple[Any, Any]:
        check_stages(state, self.stages)
        new_state, updates, open_ = dict(state), None, jnp.asarray(False)
        for name, tx in self.members:
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

    def look(self, updates: Any, state: Any, params: Params, **extra: Any) -> tuple[Any, dict[str, Any]]:
        name, tx = self.looking
        return tx.look(updates, _state_of(state, name), params, **extra)

    def passed(self, state: Any) -> jax.Array:
        through = jnp.asarray(True)
        for name, tx in self.members:
            through &= tx.passed(_state_of(state, name))
        return through


def _state_of(state: Any, name: str) -> Any:
    return state.get(name, optax.EmptyState())


Members = list[tuple[str, Transform]]


def _run(updates: Any, state: Any, params: Any, extra: dict[str, Any], members: Members) -> Any:
    """`(updates, new states, whether they got through)`, the last None where nothing stands in the way."""
    new_state = {}
    for i, (name, tx) in enumerate(members):
        updates, new_state[name] = tx.update(updates, _state_of(state, name), params, **extra)
        if has_gate(new_state[name]):
            through, rest = tx.passed(new_state[name]), members[i + 1 :]
            if rest:
                updates, later, passed = _behind(through, updates, state, params, extra, rest)
                new_state, through = {**new_state, **later}, through & passed
            return updates, new_state, through
    return updates, new_state, None


def _behind(
    through: jax.Array, updates: Any, state: Any, params: Any, extra: dict[str, Any], rest: Members
) -> Any:
    """The stages behind a gate, where it lets through; else zeros, and their states as they are."""
    own = {name: state[name] for name, _ in rest if name in state}

    def go(updates: Any, own: Any) -> Any:
        updates, new_state, passed = _run(updates, own, params, extra, rest)
        return updates, kept(new_state), jnp.asarray(True) if passed is None else passed

    shapes = jax.eval_shape(go, updates, own)[0]

    def leave(updates: Any, own: Any) -> Any:
        del updates
        return tree.zeros_like(shapes), own, jnp.asarray(False)

    return either(through, go, leave, updates, own, rarely=True)
