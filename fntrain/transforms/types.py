"""Transform, and chain, the way to compose them.

A transform is optax's pair `(init, update)`: gradients in, updates out. Ours adds three things to the pair: the
call that made it (so equal transforms are equal, and print as their call), `apply`, which a transform may own
when adding its updates to the parameters itself saves memory traffic, and `records`, names of scalars in its
state that the step reports.
"""

import html
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._core.errors import ConfigError
from .._core.typing import Params, PyTree, ScheduleLike
from .._core.value import Value, closure_name, factory


class Transform(Value, optax.GradientTransformationExtraArgs):
    """A gradient transform that knows the call that made it.

    It is an `optax.GradientTransformationExtraArgs`, so it can stand in any `optax.chain`, and any optax
    transform can stand in `fntrain.chain`. To write one, return `(init_fn, update_fn)` from a function
    decorated with `fntrain.transforms.transform`.

    Attributes:
      init: `params -> state`.
      update: `(updates, state, params=None, **extra) -> (updates, state)`; unknown extra arguments are ignored.
      apply: `(updates, state, params, **extra) -> (params, state, applied)`: one whole step on the parameters;
        `applied` is a scalar bool array, False if this call changed no parameter on purpose (a window of
        `MultiSteps` that stays open, say).
      stages: the transforms this one is made of, by name; empty for a plain one.
    """

    stages: Mapping[str, optax.GradientTransformation]
    _apply: Callable[..., Any] | None
    _flush: Callable[..., Any] | None

    def __new__(
        cls,
        init: Callable[..., Any],
        update: Callable[..., Any],
        apply: Callable[..., Any] | None = None,
        stages: Mapping[str, optax.GradientTransformation] | None = None,
        flush: Callable[..., Any] | None = None,
    ):
        """Make one; see the class for what the functions are."""
        self = super().__new__(cls, init, update)  # type: ignore[call-arg]
        self._apply = apply
        self._flush = flush
        self.stages = dict(stages or {})
        return self

    def _parts(self) -> tuple:
        return (self.init, self.update)

    @property
    def owns_apply(self) -> bool:
        """True if the transform adds its updates to the parameters itself."""
        return self._apply is not None

    def apply(self, updates: Any, state: Any, params: Params, **extra: Any) -> tuple[Params, Any, jax.Array]:
        """One step on the parameters: `(params, state, applied)`.

        Extra arguments as in `update`. A `weight` (the total weight behind the gradient) of zero means that
        nothing was seen: nothing changes, not even a decay or a count.
        """
        if self._apply is not None:
            return self._apply(updates, state, params, **extra)
        return update_and_add(self, updates, state, params, **extra)

    @property
    def holds_back(self) -> bool:
        """True if the transform may hold gradients back for later, so that `flush` has something to do."""
        return self._flush is not None

    def flush(self, state: Any, params: Params, **extra: Any) -> tuple[Any, Any]:
        """Close what is held back: `(updates, state)`; zero updates if nothing is."""
        if self._flush is None:
            return tree.zeros_like(params), state
        return self._flush(state, params, **extra)

    def _repr_html_(self) -> str:
        """The table a notebook shows: one row a stage, with its arguments."""
        rows = "".join(
            f"<tr><td style='text-align:left'><code>{html.escape(name)}</code></td>"
            f"<td style='text-align:left'><code>{html.escape(what)}</code></td>"
            f"<td style='text-align:left'>{html.escape(arguments)}</td></tr>"
            for name, what, arguments in stage_rows(self)
        )
        head = "".join(f"<th style='text-align:left'>{h}</th>" for h in ("stage", "transform", "arguments"))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


jax.tree_util.register_static(Transform)  # a transform inside a pytree is structure, not data

transform = factory(Transform)
"""Decorator: a function that returns `(init_fn, update_fn)` (or a fresh Transform) makes Transforms."""


def stage_rows(tx: optax.GradientTransformation, prefix: str = "") -> list[tuple[str, str, str]]:
    """`(name, transform, arguments)` of every stage in order, nested ones by path."""
    call = tx.call if isinstance(tx, Transform) else None
    name = prefix or (call.name if call else closure_name(tx) or type(tx).__name__)
    stages = tx.stages if isinstance(tx, Transform) else {}
    what = call.name if call else f"{closure_name(tx)} (optax)"
    inner = {repr(s) for s in stages.values()}
    shown = (
        {k: v for k, v in call.shown().items() if v not in inner and not k.startswith("*")} if call else {}
    )
    rows = [(name, what, ", ".join(f"{k}={v}" for k, v in shown.items()))]
    if what == "chain":  # the chain itself says nothing its stages don't
        rows = []
    for key, stage in stages.items():
        rows += stage_rows(stage, f"{prefix}/{key}" if prefix else key)
    return rows


def update_and_add(
    tx: optax.GradientTransformation, updates: Any, state: Any, params: Params, **extra: Any
) -> tuple[Params, Any, jax.Array]:
    """`update`, then addition to the parameters, with nothing changed where the weight is zero."""
    weight = extra.get("weight")
    if weight is None or is_positive(weight):
        new_updates, new_state = call_update(tx, updates, state, params, **extra)
        return tree.add(params, new_updates), new_state, has_updated(state, new_state)
    seen = jnp.asarray(weight) > 0

    def run(updates: Any, state: Any) -> tuple[Any, Any]:
        new_updates, new_state = call_update(tx, updates, state, params, **extra)
        return tree.cast_like(new_updates, updates), new_state

    # The gradients' slot carries the updates out, and the parameters stay outside: other forms of this branch
    # make XLA copy what they do not change (measured on CPU: one to two times the parameters).
    updates, new_state = jax.lax.cond(seen, run, lambda *kept: kept, updates, state)
    params = jax.tree.map(lambda new, p: jnp.where(seen, new, p), tree.add(params, updates), params)
    return params, new_state, has_updated(state, new_state) & seen


def has_updated(old: Any, new: Any) -> jax.Array:
    """Whether the wrappers in a state, ours (which say so in `applied`) and optax's, let this call through."""
    applied = jnp.asarray(True)
    for (_, before), (_, after) in zip(tree.named_nodes(old), tree.named_nodes(new)):
        if hasattr(after, "applied"):
            applied &= after.applied
        elif isinstance(after, optax.MultiStepsState):
            applied &= after.gradient_step > before.gradient_step
        elif isinstance(after, optax.ApplyIfFiniteState):
            applied &= after.last_finite
    return applied


def call_update(
    tx: optax.GradientTransformation, updates: Any, state: Any, params: Params | None, **extra: Any
) -> tuple[Any, Any]:
    """`tx.update` for a transform of ours or of optax's.

    Ours take float32 gradients for parameters of any dtype. A foreign one makes its state in the parameters'
    dtype and expects gradients in it (else its state would change dtype), so it gets them that way.
    """
    if isinstance(tx, Transform):
        updates, new_state = tx.update(updates, state, params, **extra)
    else:
        updates, new_state = _call_foreign(tx, updates, state, params, extra)
    difference = tree.aval_difference(state, new_state)
    if difference:
        raise ConfigError(
            f"`{stage_name(tx)}` changes the type of its state in an update, which would compile every step anew: "
            f"the state {difference}"
        )
    return updates, new_state


def _call_foreign(
    tx: optax.GradientTransformation, updates: Any, state: Any, params: Any, extra: dict
) -> Any:
    if params is not None:
        updates = tree.cast_like(updates, params)
    # Standard promotion is what optax is written for; a strict setting is the user's, for their own code.
    with jax.numpy_dtype_promotion("standard"):
        updates, new_state = optax.with_extra_args_support(tx).update(updates, state, params, **extra)
    if jax.tree.structure(state) == jax.tree.structure(new_state):
        new_state = tree.cast_like(new_state, state)
    return updates, new_state


def call_apply(
    tx: optax.GradientTransformation, updates: Any, state: Any, params: Params, **extra: Any
) -> tuple[Params, Any, jax.Array]:
    """`tx.apply` for a transform of ours, and what it would be for one of optax's."""
    step = tx.apply if isinstance(tx, Transform) else partial(update_and_add, tx)
    return step(updates, state, params, **extra)


def call_init(tx: optax.GradientTransformation, params: Params) -> Any:
    """`tx.init` for a transform of ours or of optax's."""
    with jax.numpy_dtype_promotion("standard"):
        return jax.tree.map(jnp.asarray, tx.init(params))


def checked(tx: Any, name: str = "tx") -> optax.GradientTransformation:
    """`tx` itself if it is a transform (or optax's `MultiSteps` object, which offers one).

    Raises:
      ConfigError: if it is something else, with the usual cause.
    """
    if isinstance(tx, optax.GradientTransformation):
        return tx
    if isinstance(tx, optax.MultiSteps):
        return tx.gradient_transformation()
    hint = ""
    if callable(tx):
        hint = f"; it looks like a factory: call it, `{getattr(tx, '__name__', 'factory')}(...)`"
    elif isinstance(tx, list | tuple):
        hint = "; pass several transforms as `chain(*transforms)`"
    raise ConfigError(f"`{name}` must be a gradient transform with `init` and `update`, got {tx!r}{hint}")


def stage_name(tx: optax.GradientTransformation) -> str:
    """The name a transform has in a chain's state: that of its factory."""
    if isinstance(tx, Transform) and tx.call is not None:
        return tx.call.name
    return closure_name(tx) or type(tx).__name__.lower()


@transform
def chain(*txs: optax.GradientTransformation, **named: optax.GradientTransformation) -> Any:
    r"""Apply transforms in order, each to the updates of the one before.

    .. math:: u_0 = g, \quad u_i = T_i(u_{i-1}), \quad \text{updates} = u_n

    The state is a dict by name, so a checkpoint survives an edit of the chain: positional transforms are named
    by their factory (`clip_by_norm`; a second one `clip_by_norm_2`), keyword ones by the keyword. A transform
    without state leaves no entry.

    Args:
      *txs: transforms, ours or optax's.
      **named: more transforms, after the positional ones, under these names.

    Raises:
      ConfigError: if an argument is no transform, or the same name comes twice.

    Examples:
      >>> import fntrain as ft
      >>> ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(3e-4))
      chain(clip_by_norm(max_norm=1.0), adamw(learning_rate=0.0003))
    """
    stages: dict[str, optax.GradientTransformation] = {}
    for i, tx in enumerate(txs):
        tx = checked(tx, f"chain argument {i}")
        base = name = stage_name(tx)
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
        stages[name] = checked(tx, name)

    def init_fn(params):
        return kept({name: call_init(tx, params) for name, tx in stages.items()})

    def run(updates, state, params, extra, members):
        check_stages(state, stages)
        new_state = {}
        for name, tx in members:
            inner = state.get(name, optax.EmptyState())
            updates, new_state[name] = call_update(tx, updates, inner, params, **extra)
        return updates, new_state

    def update_fn(updates, state, params=None, **extra):
        updates, new_state = run(updates, state, params, extra, stages.items())
        return updates, kept(new_state)

    *first, (last_name, last) = list(stages.items()) or [("", optax.identity())]

    def apply_fn(updates, state, params, **extra):
        updates, before = run(updates, state, params, extra, first)
        weight = extra.get("weight")
        if weight is not None and not is_positive(weight):
            old = {name: state[name] for name in before if name in state}
            before = {**before, **tree.where(jnp.asarray(weight) > 0, kept(before), old)}
        inner = state.get(last_name, optax.EmptyState())
        params, after, applied = last.apply(updates, inner, params, **extra)  # type: ignore[attr-defined]
        return params, kept({**before, last_name: after}), applied

    def flush_fn(state, params, **extra):
        check_stages(state, stages)
        new_state, updates, open_ = dict(state), None, jnp.asarray(False)
        for name, tx in stages.items():
            inner = state.get(name, optax.EmptyState())
            if updates is None:
                if isinstance(tx, Transform) and tx.holds_back:
                    updates, new_state[name] = tx.flush(inner, params, **extra)
                    open_ = holds_gradients(inner)
            else:  # what stands behind sees an update only if there was one to see
                after, after_state = call_update(tx, updates, inner, params, **extra)
                updates = tree.where(open_, after, updates)
                new_state[name] = tree.where(open_, after_state, inner)
        return updates, kept(new_state)

    owns = isinstance(last, Transform) and last.owns_apply
    holds = any(isinstance(tx, Transform) and tx.holds_back for tx in stages.values())
    return Transform(init_fn, update_fn, apply_fn if owns else None, stages, flush_fn if holds else None)


def holds_gradients(state: Any) -> jax.Array:
    """Whether an accumulation window stands open, with weight in it, anywhere in an optimizer state."""
    found = jnp.asarray(False)
    for _, node in tree.named_nodes(state):
        window = getattr(node, "window_open", None)
        if window is not None:
            found |= window()
    return found


def is_positive(weight: Any) -> bool:
    """True for a plain positive number: a weight known while tracing, which needs no guard against zero."""
    return isinstance(weight, int | float) and weight > 0


def kept(states: dict[str, Any]) -> dict[str, Any]:
    """The entries that hold something: a stateless stage leaves no trace in a checkpoint."""
    return {k: v for k, v in states.items() if not (isinstance(v, tuple) and len(v) == 0)}


def check_stages(state: Any, stages: Mapping[str, Any]) -> None:
    """Refuse the state of another transform, naming both."""
    if not isinstance(state, dict) or not set(state) <= set(stages):
        has = sorted(state) if isinstance(state, dict) else type(state).__name__
        raise ConfigError(
            f"`opt_state` belongs to another transform: it holds {has}, this chain has {list(stages)}; "
            f"make it with this chain's `init(params)`, or the whole with `init_state`"
        )


def at_step(value: ScheduleLike, count: jax.Array) -> jax.Array:
    """A hyperparameter's value at an update, in float32: a schedule is called, a number is itself."""
    if not callable(value):
        return jnp.asarray(value, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # a schedule of the user's may well write 0.5 * step
        return jnp.asarray(value(count), jnp.float32)


def is_zero(value: Any) -> bool:
    """True for a plain zero, which lets a factory leave a stage out; a schedule or traced value is not one."""
    return isinstance(value, bool | int | float) and value == 0


def like(x: jax.Array, reference: jax.Array) -> jax.Array:
    """`x` in the dtype of `reference`."""
    return x.astype(reference.dtype)


def increment(count: jax.Array) -> jax.Array:
    """`count + 1`, held at the largest int32 instead of wrapping."""
    largest = jnp.iinfo(jnp.int32).max
    return jnp.where(count < largest, count + 1, largest)


def recorded(opt_state: PyTree) -> dict[str, jax.Array]:
    """The scalars that transforms recorded in their states (`learning_rate`, `grad_norm`, …), by name.

    The outermost in the tree has the plain name; another of the same name is reported under its path too.
    """
    nodes = tree.named_nodes(opt_state)
    windows = [(f"{path}/".lstrip("/"), node.applied) for path, node in nodes if hasattr(node, "window_open")]
    out: dict[str, jax.Array] = {}
    for path, node in nodes:
        for name in getattr(node, "records", ()):
            value = getattr(node, name)
            for window, closed in windows:
                if name == "skipped" and path.startswith(window):
                    value = jnp.where(
                        closed, value, 0
                    )  # a guard inside a window that stays open was not asked
            out[name if name not in out else f"{path}/{name}"] = value
    return out
