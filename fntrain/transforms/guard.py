"""Guards: steps that must not be taken."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .._core.typing import Params, PyTree
from . import notes
from .adapt import adapt
from .branch import either, either_noting
from .types import Guard, Transform, increment, skipped, transform


class _SkipNonfinite(NamedTuple):
    skipped: jax.Array  # int32, shape (): 1 if the last call was skipped, else 0
    total_skipped: jax.Array  # int32, shape (): calls skipped so far
    bad: jax.Array  # int32, [2 + 4 * leaves]: what `bad_step` reads
    inner_state: Any


class SkipNonfiniteState(Guard, _SkipNonfinite):
    """What became of the last call, of all calls, and the inner transform's state."""

    records: ClassVar[tuple[str, ...]] = ("skipped",)


@transform
def skip_nonfinite(tx: optax.GradientTransformation, check_updates: bool = False) -> Any:
    r"""Skip a step whose gradient or loss is not finite, so that it leaves no trace.

    .. math:: (p, s) \leftarrow \begin{cases} T(g, s, p) & \text{if } g \text{ and the loss are finite} \\
                                               (p, s) & \text{otherwise} \end{cases}

    A skipped call changes no bit of the parameters or of the inner state, schedule counts included; only the
    two counters here move, and a note of what was not finite, for `bad_step` to read. It never gives up: when to
    stop is for the host to decide. `update` returns zeros for a skipped call. The last call's skip is reported by
    the step as `skipped` (a sum, over several steps).

    Around `MultiSteps`, a bad micro-step is left out of its window; inside it, a window whose mean is bad is
    dropped whole. Both together are fine too.

    Args:
      tx: the inner transform.
      check_updates: also skip where finite gradients lead to what is not: updates (a schedule that returns NaN,
        say), or a number in the state of `tx` that was finite (1e20, whose square is infinite in Adam's second
        moment, so that the entry would never move again). The step is then computed twice, once to look at and
        once to take; around `MultiSteps` that is each micro-step, and inside it,
        `MultiSteps(skip_nonfinite(tx, True), k)`, each window.

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
    tx = adapt(tx)

    def start():
        return SkipNonfiniteState(zero(), zero(), zero(), ())

    def judge(updates, state, params, seen, sound, extra):
        del state, params, seen
        return sound & finite_step(updates, extra), {}

    return guarded(tx, start, judge, check_updates)


class _SkipSpikes(NamedTuple):
    grad_norm: jax.Array  # float32, shape (): the norm of the last call
    norms: jax.Array  # float32, [window]: a ring of the last norms that were let through
    count: jax.Array  # int32, shape (): how many were let through so far; past 2^31 - 1, so many less
    skipped: jax.Array  # int32, shape (): 1 if the last call was skipped, else 0
    total_skipped: jax.Array  # int32, shape (): calls skipped so far
    bad: jax.Array  # int32, [2 + 4 * leaves]: what `bad_step` reads
    inner_state: Any


class SkipSpikesState(Guard, _SkipSpikes):
    """The norms that later ones are measured by, and what became of the last call and of all calls."""

    records: ClassVar[tuple[str, ...]] = ("grad_norm", "skipped")


LARGEST = int(jnp.iinfo(jnp.int32).max)


@transform
def skip_spikes(tx: optax.GradientTransformation, factor: float = 10.0, window: int = 128) -> Any:
    r"""Skip a step whose gradient norm is far above the usual, or not finite, so that it leaves no trace.

    .. math:: \text{skip} \iff \lVert g_t \rVert > c \cdot \frac{1}{n} \sum_{i=1}^{n} r_i
              \;\text{ or }\; \lVert g_t \rVert \notin \mathbb{R}

    The :math:`r_i` are the last `n` norms that were let through. A norm that was skipped, NaN and infinity
    among them, never becomes one of them, so a spike does not make the next one look usual. Until `n` norms
    are in, nothing is measured by them, and only what is not finite is skipped. If norms rise for good, every
    step from there on is skipped: when to stop is for the host to decide (`callbacks.NaNGuard`).

    Skipping is that of `skip_nonfinite`, which is then not needed, and so are the nestings with `MultiSteps`.
    The norm and the skip are recorded, as `grad_norm` and `skipped`.

    Args:
      tx: the inner transform.
      factor: c, how many times the mean of the window is too much, > 1.
      window: n, how many norms are remembered, >= 1.

    Returns:
      A Transform.

    Raises:
      ConfigError: if `tx` is no transform, or an argument is out of range.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.skip_spikes(ft.optimizers.sgd(1.0), factor=4.0, window=2)
      >>> p = jnp.array([0.0])
      >>> state = tx.init(p)
      >>> for g in [1.0, 2.0, 6.5, 5.5]:
      ...     p, state, applied = tx.apply(jnp.array([g]), state, p)
      ...     print(p.tolist(), bool(applied))
      [-1.0] True
      [-3.0] True
      [-3.0] False
      [-8.5] True
    """
    tx = adapt(tx)
    check.number("factor", factor, above=1)
    window = check.integer("window", window, at_least=1)

    def start():
        norm, norms = jnp.zeros((), jnp.float32), jnp.zeros((window,), jnp.float32)
        return SkipSpikesState(norm, norms, zero(), zero(), zero(), zero(), ())

    def judge(updates, state, params, seen, sound, extra):
        del params
        norm = tree.norm(updates).astype(jnp.float32)
        usual = jnp.mean(state.norms)
        spike = (state.count >= window) & (norm > jnp.float32(factor) * usual)
        good = sound & (norm < jnp.inf) & finite_step((), extra) & ~spike
        counts = good & seen
        at = state.count % window
        norms = state.norms.at[at].set(jnp.where(counts, norm, state.norms[at]))
        seen_norm = jnp.where(seen, norm, state.grad_norm)
        # Past the largest int32 it starts again at the window's length, at the same place of the ring.
        count = jnp.where(state.count < LARGEST, state.count + 1, window + (LARGEST % window + 1) % window)
        return good, dict(grad_norm=seen_norm, norms=norms, count=jnp.where(counts, count, state.count))

    return guarded(tx, start, judge)


def guarded(
    tx: Transform,
    start: Callable[[], Any],
    judge: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
    check_updates: bool = False,
) -> Transform:
    """A transform that takes a step with `tx` or, where `judge` says no, leaves no trace of it.

    Args:
      tx: the inner transform.
      start: the guard's first state, fresh arrays, with fields `skipped`, `total_skipped`, `bad` and `inner_state`.
      judge: `(updates, state, params, seen, sound, extra) -> (good, changes)`: whether to take the step, and new
        values of the guard's own fields; `seen` is False for a batch that weighs nothing, which is neither good nor
        bad, and `sound` False if what it is given came from, or leads to, numbers that are not finite.
      check_updates: whether the updates and state of a good step are computed once more, to look at.
    """
    if tx.looks_late:
        raise ConfigError(
            f"`tx` {tx!r} takes a gradient of its own when a window closes, where a guard around the window cannot "
            f"see it: put the guard inside, `MultiSteps(skip_nonfinite(sam(tx)), k)`"
        )
    # What evaluates the loss elsewhere may find there what the gradient given to it does not say.
    own = _Guarded(tx, start, judge, check_updates or tx.evaluates)
    return Transform(
        own.init,
        own.update,
        own.apply,
        {"inner": tx},
        own.flush if tx.holds_back else None,
        look=own.look if tx.looks else None,
        passed=own.passed,
        gates=True,
    )


@dataclasses.dataclass(frozen=True)
class _Guarded:
    """The functions behind one guard."""

    tx: Transform
    start: Callable[[], Any]
    judge: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    looks_ahead: bool

    def init(self, params: Params) -> Any:
        notes.announce(params)
        bad = notes.nothing(len(jax.tree.leaves(params)))
        return self.start()._replace(bad=bad, inner_state=self.tx.init(params))

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, extra, _, good, changes = self._judged(updates, state, params, extra)

        def take(inner: Any) -> Any:
            return self.tx.update(updates, inner, params, **extra)

        shapes = jax.eval_shape(take, state.inner_state)[0]

        def leave(inner: Any) -> Any:
            return tree.zeros_like(shapes), inner

        note = _noting(updates, state, params, extra)
        (new, inner), bad = either_noting(good, take, leave, note, state.bad, state.inner_state)
        return new, _counted(state, good, good, bad, inner, changes)

    def apply(self, updates: Any, state: Any, params: Params, **extra: Any) -> tuple[Params, Any, jax.Array]:
        updates, extra, seen, good, changes = self._judged(updates, state, params, extra)
        # A batch of weight zero is no step either (and no skip); a `tx` that owns `apply` sees to that itself.
        taken = good if self.tx.owns_apply else good & seen

        def take(params: Params, inner: Any) -> Any:
            if self.tx.owns_apply:
                return self.tx.apply(updates, inner, params, **extra)
            new, after = self.tx.update(updates, inner, params, **extra)
            return tree.add(params, new), after, self.tx.passed(after)

        def leave(params: Params, inner: Any) -> Any:
            return params, inner, jnp.asarray(False)

        note, given = _noting(updates, state, params, extra), (params, state.inner_state)
        (params, inner, applied), bad = either_noting(taken, take, leave, note, state.bad, *given)
        return params, _counted(state, good, taken, bad, inner, changes), applied

    def flush(self, state: Any, params: Params, **extra: Any) -> tuple[Any, Any]:
        updates, inner = self.tx.flush(state.inner_state, params, **extra)
        return updates, state._replace(inner_state=inner)

    def look(self, updates: Any, state: Any, params: Params, **extra: Any) -> tuple[Any, dict[str, Any]]:
        return self.tx.look(updates, state.inner_state, params, **extra)

    def passed(self, state: Any) -> jax.Array:
        return state.applied & self.tx.passed(state.inner_state)

    def _sound(self, updates: Any, inner: Any, params: Any, extra: dict[str, Any]) -> jax.Array:
        """Whether the updates are finite, and all numbers in the state that are so before."""
        new, after = self.tx.update(updates, inner, params, **extra)
        good = all_finite(new)
        for was, now in zip(jax.tree.leaves(inner), jax.tree.leaves(after)):
            if was is not now:  # what is handed on as it is needs no look
                good &= all_finite(now) | ~all_finite(was)
        return good

    def _judged(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> Any:
        """What is judged is what arrives: a second gradient, where `tx` takes one."""
        weight = extra.get("weight")
        seen = jnp.asarray(True) if weight is None else jnp.asarray(weight) > 0
        sound = finite_step(updates, extra) if self.tx.looks else jnp.asarray(True)
        updates, extra = self.tx.look(updates, state.inner_state, params, **extra)
        if self.looks_ahead:
            sound = either(
                sound & finite_step(updates, extra),
                lambda: self._sound(updates, state.inner_state, params, extra),
                lambda: jnp.asarray(False),
            )
        good, changes = self.judge(updates, state, params, seen, sound, extra)
        return updates, extra, seen, good, changes


def _noting(updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> Callable[[jax.Array], jax.Array]:
    """What a guard knows of its first bad call, after a bad one."""

    def note(bad: jax.Array) -> jax.Array:
        found = notes.note(extra.get("step"), extra.get("value"), updates, params)
        # What began a run of skipped calls stays, and a spike of finite numbers is none of them.
        return jnp.where((found[1] > 0) & (state.skipped == 0), found, bad)

    return note


def _counted(state: Any, good: jax.Array, taken: jax.Array, bad: jax.Array, inner: Any, changes: Any) -> Any:
    left_out = ~good
    inside = skipped(inner)  # a guard further in may have skipped what this one took
    if inside is not None:
        left_out |= taken & inside
    total = jnp.where(left_out, increment(state.total_skipped), state.total_skipped)
    left_out = left_out.astype(jnp.int32)
    return state._replace(skipped=left_out, total_skipped=total, bad=bad, inner_state=inner, **changes)


def zero() -> jax.Array:
    """A count of nothing, in a buffer of its own, which can be donated."""
    return jnp.copy(jnp.zeros((), jnp.int32))


def finite_step(updates: PyTree, extra: dict[str, Any]) -> jax.Array:
    """Whether the gradient, and the loss where it is known, are finite."""
    good = all_finite(updates)
    return good if extra.get("value") is None else good & all_finite(extra["value"])


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
