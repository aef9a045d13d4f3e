"""Different transforms for different leaves, chosen by regex over the leaf paths."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._core.check import said
from .._core.errors import ConfigError
from .._core.typing import PyTree
from .adapt import adapt
from .types import Transform, check_stages, kept, transform

# What is not selected is None in the trees that the inner transform sees. None is a tree without leaves, so the
# inner transform has no state for such leaves, and does not count them in a norm.


@transform
def by_path(groups: Mapping[str, optax.GradientTransformation]) -> Any:
    r"""Give each leaf to the transform of the first regex found in its path.

    .. math:: u_\ell = T_{i(\ell)}(g)_\ell, \qquad
              i(\ell) = \min\,\{\, i : \text{pattern}_i \text{ is found in the path of } \ell \,\}

    Each transform sees its own leaves and nothing else: a `clip_by_norm` inside clips the norm of its group. To
    clip by the norm of all leaves, put it in front: `chain(clip_by_norm(1.0), by_path({...}))`.

    Args:
      groups: `{regex: transform}`, in order. A regex is searched anywhere in paths such as `layers/0/kernel`; end
        with `".*"` for the rest.

    Returns:
      A Transform whose state is a dict by regex.

    Raises:
      ConfigError: if a regex is not one, matches no leaf, or only leaves that those before it take; or a leaf is
        matched by no regex.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.by_path({"bias": ft.optimizers.sgd(1.0), ".*": ft.optimizers.sgd(0.1)})
      >>> p = {"bias": jnp.ones(1), "kernel": jnp.ones(1)}
      >>> u, _ = tx.update(p, tx.init(p), p)
      >>> u["bias"].tolist(), u["kernel"].tolist()
      ([-1.0], [-0.10000000149011612])
    """
    if not isinstance(groups, Mapping) or not groups:
        raise ConfigError(
            f"`groups` must be a dict {{regex: transform}} with at least one entry, got {said(groups)}"
        )
    stages = {pattern: adapt(tx, f"groups[{pattern!r}]") for pattern, tx in groups.items()}
    for pattern in stages:
        tree.compiled(pattern, "groups")
    return side_by_side(stages, first_of(stages), partial(_check_groups, list(stages)))


def side_by_side(
    stages: dict[str, Transform], choose: "Choice", looked_at: Callable[[PyTree], None] = lambda params: None
) -> Transform:
    """Transforms that have a part of the leaves each: those for which `choose(path, leaf)` is their place.

    `looked_at` refuses parameters that do not fit.
    """
    own = _Groups(stages, choose, looked_at)
    inner = list(stages.values())
    return Transform(
        own.init,
        own.update,
        own.apply if any(tx.owns_apply for tx in inner) else None,
        stages,
        own.flush if any(tx.holds_back for tx in inner) else None,
        look=own.look if any(tx.looks for tx in inner) else None,
        sees=own.seen,
        side_by_side=True,
        passed=own.passed,
    )


@dataclasses.dataclass(frozen=True)
class _Groups:
    """The functions behind one `by_path`."""

    stages: dict[str, Transform]
    choose: "Choice"
    looked_at: Callable[[PyTree], None]

    def _parts(self, x: PyTree) -> list[PyTree]:
        return divided(self.choose, len(self.stages), x)

    def init(self, params: PyTree) -> Any:
        self.looked_at(params)
        own = self._parts(params)
        return kept({p: tx.init(part) for (p, tx), part in zip(self.stages.items(), own)})

    def _members(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> Iterator[Any]:
        check_stages(state, self.stages)
        own = zip(self.stages.items(), self._parts(updates), self._parts(params))
        for (pattern, tx), u, p in own:
            yield pattern, tx, u, self._state_of(state, pattern), p, _seen_from(p, params, extra)

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        new, new_state = [], {}
        for pattern, tx, u, s, p, told in self._members(updates, state, params, extra):
            u, new_state[pattern] = tx.update(u, s, p, **told)
            new.append(u)
        return joined(*new), kept(new_state)

    def apply(self, updates: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any, jax.Array]:
        new, new_state, applied = [], {}, jnp.asarray(False)
        for pattern, tx, u, s, p, told in self._members(updates, state, params, extra):
            p, new_state[pattern], stepped = tx.apply(u, s, p, **told)
            new.append(p)
            applied |= stepped
        return joined(*new), kept(new_state), applied

    def flush(self, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        new, new_state = [], {}
        for pattern, tx, u, s, p, told in self._members(nothing(params, wide=True), state, params, extra):
            new_state[pattern] = s
            if tx.holds_back:
                u, new_state[pattern] = tx.flush(s, p, **told)
            new.append(u)
        return joined(*new), kept(new_state)

    def look(self, updates: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, dict[str, Any]]:
        new, found = [], {}
        for _, tx, u, s, p, told in self._members(updates, state, params, extra):
            u, after = tx.look(u, s, p, **told)
            found.update({name: x for name, x in after.items() if name not in extra})
            new.append(u)
        return joined(*new), {**extra, **found}

    def passed(self, state: Any) -> jax.Array:
        # One group that let its part through is an update.
        found = [tx.passed(self._state_of(state, pattern)) for pattern, tx in self.stages.items()]
        return jnp.any(jnp.stack(found))

    def seen(self, pattern: str, params: PyTree) -> PyTree:
        return dict(zip(self.stages, self._parts(params)))[pattern]

    def _state_of(self, state: Any, pattern: str) -> Any:
        return state.get(pattern, optax.EmptyState())


@transform
def freeze(tx: optax.GradientTransformation, regex: str | Sequence[str]) -> Any:
    r"""Keep the leaves whose path a regex is found in as they are; `tx` has the rest.

    .. math:: p_\ell \leftarrow \begin{cases} p_\ell & \text{if a pattern is found in the path of } \ell \\
                                              T(g, s, p)_\ell & \text{otherwise} \end{cases}

    Frozen leaves stay bit for bit as they are, have no state in `tx`, and count in no norm that `tx` takes. Their
    gradients are used by nobody, so XLA drops what only they need from the backward pass; to keep it so, stand
    `clip_by_norm` or `skip_nonfinite` inside: `freeze(chain(clip_by_norm(1.0), tx), regex)`.

    Args:
      tx: the inner transform.
      regex: a regex, or several, searched anywhere in the leaf paths (`"^encoder/"`).

    Returns:
      A Transform with the state of `tx`. Its updates for frozen leaves are zeros.

    Raises:
      ConfigError: if a regex is not one, or matches no leaf.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.freeze(ft.optimizers.sgd(1.0), "encoder")
      >>> p = {"encoder": jnp.ones(1), "head": jnp.ones(1)}
      >>> p, state, applied = tx.apply(p, tx.init(p), p)
      >>> p["encoder"].tolist(), p["head"].tolist()
      ([1.0], [0.0])
    """
    tx = adapt(tx)
    patterns = [regex] if isinstance(regex, str) else list(regex) if isinstance(regex, Sequence) else []
    if not patterns:
        got = said(regex) if regex else "none"
        raise ConfigError(
            f"`regex` must be a regex or several, got {got}; leave `freeze` out to freeze nothing"
        )
    for pattern in patterns:
        tree.compiled(pattern, "regex")
    split = partial(split_frozen, patterns)

    def init_fn(params):
        tree.regex_mask(patterns, params, name="regex")  # for its errors
        return tx.init(split(params)[1])

    def update_fn(updates, state, params=None, **extra):
        (frozen, updates), part = split(updates), split(params)[1]
        updates, state = tx.update(updates, state, part, **_seen_from(part, params, extra))
        return joined(updates, nothing(frozen)), state

    def apply_fn(updates, state, params, **extra):
        frozen, part = split(params)
        extra = _seen_from(part, params, extra)
        part, state, applied = tx.apply(split(updates)[1], state, part, **extra)
        return joined(part, frozen), state, applied

    def flush_fn(state, params, **extra):
        frozen, part = split(params)
        updates, state = tx.flush(state, part, **_seen_from(part, params, extra))
        return joined(updates, nothing(frozen, wide=True)), state

    def look_fn(updates, state, params, **extra):
        (frozen, updates), part = split(updates), split(params)[1]
        updates, told = tx.look(updates, state, part, **_seen_from(part, params, extra))
        new = {name: x for name, x in told.items() if name not in extra}
        return joined(updates, nothing(frozen)), {**extra, **new}

    return Transform(
        init_fn,
        update_fn,
        apply_fn,
        {"inner": tx},
        flush_fn if tx.holds_back else None,
        look=look_fn if tx.looks else None,
        sees=lambda _, params: split(params)[1],
        passed=tx.passed,
    )


def parts(patterns: Iterable[str], x: PyTree) -> list[PyTree]:
    """`x` once for each pattern, with None for the leaves whose first match is another one."""
    patterns = list(patterns)
    return divided(first_of(patterns), len(patterns), x)


Choice = Callable[[str, Any], int | None]
"""`(path, leaf) -> the place of the one that has it`; None if nobody has."""


def first_of(patterns: Iterable[str]) -> Choice:
    """The place of the first pattern that is found in the path."""
    searches = [tree.compiled(pattern, "groups").search for pattern in patterns]
    return lambda path, leaf: next((i for i, search in enumerate(searches) if search(path)), None)


def divided(choose: Choice, n: int, x: PyTree) -> list[PyTree]:
    """`x` n times, with None for the leaves that are another's."""

    def part(i: int) -> PyTree:
        return tree.map_with_path(lambda path, leaf: leaf if choose(path, leaf) == i else None, x)

    return [part(i) for i in range(n)]


def split_frozen(patterns: Sequence[str], x: PyTree) -> tuple[PyTree, PyTree]:
    """`(frozen, thawed)`: what any of the patterns matches, and the rest."""
    *frozen, thawed = parts([*patterns, ""], x)
    return joined(*frozen), thawed


def joined(*trees: PyTree) -> PyTree:
    """One tree from several that have their leaves in different places: the inverse of `parts`."""

    def first(*leaves: Any) -> Any:
        return next((leaf for leaf in leaves if leaf is not None), None)

    return jax.tree.map(first, *trees, is_leaf=lambda x: x is None)


def nothing(x: PyTree, wide: bool = False) -> PyTree:
    """Updates that change no bit of what they are added to: -0.0, since -0.0 + 0.0 is 0.0."""
    return jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, -0.0, tree.wide_dtype(leaf) if wide else leaf.dtype), x
    )


def _seen_from(part: PyTree, params: PyTree, extra: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments as those see them who know the leaves of `part` alone."""
    own = set(tree.paths(part))

    def of_part(grads: PyTree) -> PyTree:
        return tree.map_with_path(lambda path, leaf: leaf if path in own else None, grads)

    if extra.get("grad") is not None:
        extra = {**extra, "grad": of_part(extra["grad"])}
    function = extra.get("value_and_grad_fn")
    if function is None:
        return extra

    def value_and_grad_fn(moved: PyTree) -> tuple[jax.Array, PyTree]:
        value, grads = function(joined(moved, params))
        return value, of_part(grads)

    return {**extra, "value_and_grad_fn": value_and_grad_fn}


def _check_groups(patterns: list[str], params: PyTree) -> None:
    """Refuse patterns without a leaf of their own, leaves without a pattern, and two leaves of one path."""
    names = tree.names(params)
    groups = [tree.paths(part) for part in parts(patterns, params)]
    for pattern, group in zip(patterns, groups):
        matched = [name for name in names if tree.compiled(pattern, "groups").search(name)]
        if not matched:
            raise tree.unmatched(pattern, names, "groups")
        if not group:
            raise ConfigError(
                f"`groups`: {pattern!r} only matches leaves that patterns before it take ({tree.some(matched)}); "
                f"put it in front of them"
            )
    left = sorted(set(names) - {name for group in groups for name in group})
    if left:
        raise ConfigError(
            f"`groups`: no pattern matches {tree.some(left)}; end with `'.*': transform` for the rest"
        )
