"""Clipping: by the global norm, by that of each leaf, by value, by the weights' own size; and the norm alone."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from .. import tree
from .._core import check, norms
from .._core.errors import ConfigError
from .._core.typing import ScheduleLike
from .scheduled import counted_init, counted_update
from .types import Recording, Transform, like, transform


class _ClipByNorm(NamedTuple):
    grad_norm: jax.Array  # float32, shape (): the global norm before clipping
    clip_factor: jax.Array  # float32, shape (): what the updates were multiplied by
    schedule: Any = ()  # where the limit is a schedule: its count and its value


class ClipByNormState(Recording, _ClipByNorm):
    """What the last clip saw and did."""

    records: ClassVar[tuple[str, ...]] = ("grad_norm", "clip_factor")


@transform
def clip_by_norm(max_norm: ScheduleLike):
    r"""Scale all updates together so that their global norm is at most `max_norm`.

    .. math:: u = g \cdot \min\left(1, \frac{c}{\lVert g \rVert_2}\right), \qquad
              \lVert g \rVert_2 = \sqrt{\textstyle\sum_i g_i^2}

    The norm is taken over all leaves at once, in float32 at least whatever their dtype, and neither overflows nor
    divides by zero: whatever is finite comes out with the norm it should have. A norm that does not exceed
    `max_norm` leaves the updates bit for bit as they were. Infinite or NaN updates become NaN everywhere, visibly,
    for `skip_nonfinite` (or you) to see: no finite factor could repair them. The norm before clipping and the factor
    are recorded in float32, and reported by the step as `grad_norm` and `clip_factor`.

    Args:
      max_norm: the largest norm let through, > 0, or a schedule of it over optimizer updates.

    Returns:
      A Transform whose updates keep their shapes and dtypes.

    Raises:
      ConfigError: if `max_norm` is not a finite number > 0.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.clip_by_norm(1.0)
      >>> g = {"w": jnp.array([3.0, 4.0])}
      >>> tx.update(g, tx.init(g))[0]["w"].tolist()
      [0.6000000238418579, 0.800000011920929]

    References:
      Pascanu, Mikolov, Bengio, *On the difficulty of training recurrent neural networks*, 2013.
    """
    check.number_or_schedule("max_norm", max_norm, above=0)

    def init_fn(params):
        del params
        start = counted_init(max_norm=max_norm)
        return ClipByNormState(jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32), start)

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        now, schedule = counted_update(state.schedule, max_norm=max_norm)
        root, scale = tree.norm_parts(updates)
        first, second = _factors(root, scale, now["max_norm"])
        new = jax.tree.map(lambda g: _times(g, first, second), updates)
        return new, ClipByNormState(_float32(root / scale), _float32(first * second), schedule)

    return Transform(init_fn, update_fn, rescales=False, descends=False)


def _factors(root: jax.Array, scale: jax.Array, limit: Any) -> tuple[jax.Array, jax.Array]:
    """Two factors, to be applied one after the other, that bring norms of `root / scale` to the limit.

    The first is 1, except where their product would be too small for the dtype: zero, though what it is to scale
    is large, and comes out near the limit. NaN for a norm that is not finite.
    """
    far = jnp.asarray(norms.RANGES[root.dtype].far, root.dtype)
    norm, limit = root / scale, like(limit, root)
    reduced = root * (far / scale)  # far times the norm, which is finite even where the norm is not
    is_far = (reduced > limit) | (norm == jnp.inf)
    one = jnp.ones((), root.dtype)
    ratio = limit / jnp.where(is_far, reduced, jnp.maximum(norm, limit))
    second = jnp.where(is_far | (norm > limit), ratio, one)
    return jnp.where(is_far, far, one), jnp.where(jnp.isfinite(root), second, jnp.nan)


def _times(g: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    wide = tree.wide(g)
    return like(wide * like(first, wide) * like(second, wide), g)


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


@transform
def clip_by_value(max_value: ScheduleLike):
    r"""Clip every entry of the updates to `[-max_value, max_value]`.

    .. math:: u_i = \min(\max(g_i, -c), c)

    NaN stays NaN; infinity becomes the limit, as in every clip by value.

    Args:
      max_value: the largest magnitude let through, > 0, or a schedule of it over optimizer updates.

    Returns:
      A Transform, without state unless it is scheduled; shapes and dtypes are kept.

    Raises:
      ConfigError: if `max_value` is not a finite number > 0.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.clip_by_value(0.5)
      >>> tx.update(jnp.array([-2.0, 0.25]), tx.init(None))[0].tolist()
      [-0.5, 0.25]
    """
    check.number_or_schedule("max_value", max_value, above=0)

    def init_fn(params):
        del params
        return counted_init(max_value=max_value)

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        now, state = counted_update(state, max_value=max_value)
        limit = now["max_value"]

        def clip(g):
            wide = tree.wide(g)
            return like(jnp.clip(wide, -like(limit, wide), like(limit, wide)), g)

        return jax.tree.map(clip, updates), state

    return Transform(init_fn, update_fn, rescales=False, descends=False)


@transform
def clip_by_leaf_norm(max_norm: ScheduleLike):
    r"""Scale each leaf by itself so that its norm is at most `max_norm`.

    .. math:: u_\ell = g_\ell \cdot \min\left(1, \frac{c}{\lVert g_\ell \rVert_2}\right)

    As `clip_by_norm`, leaf by leaf: norms in float32 at least, a norm that does not exceed `max_norm` is the
    identity, and a leaf that is not finite becomes NaN, while the others are as they would be. The *global* norm before
    clipping and the smallest factor are recorded, as `grad_norm` and `clip_factor`.

    Args:
      max_norm: the largest norm of a leaf let through, > 0, or a schedule of it over optimizer updates.

    Returns:
      A Transform whose updates keep their shapes and dtypes.

    Raises:
      ConfigError: if `max_norm` is not a finite number > 0.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.clip_by_leaf_norm(1.0)
      >>> g = {"a": jnp.array([0.0, 4.0]), "b": jnp.array([0.5])}
      >>> u, _ = tx.update(g, tx.init(g))
      >>> u["a"].tolist(), u["b"].tolist()
      ([0.0, 1.0], [0.5])
    """
    check.number_or_schedule("max_norm", max_norm, above=0)

    def init_fn(params):
        del params
        start = counted_init(max_norm=max_norm)
        return ClipByNormState(jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32), start)

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        now, schedule = counted_update(state.schedule, max_norm=max_norm)
        leaves, structure = jax.tree.flatten(updates)
        roots, scales = _leaf_norms(leaves)
        first, second = _factors(roots, scales, now["max_norm"])
        factors = zip(leaves, jnp.unstack(first), jnp.unstack(second))
        clipped = [_times(g, a, b) for g, a, b in factors]
        least = _float32(jnp.min(first * second, initial=1.0))
        state = ClipByNormState(_float32(tree.norm(roots / scales)), least, schedule)
        return jax.tree.unflatten(structure, clipped), state

    return Transform(init_fn, update_fn, rescales=False, descends=False)


def _leaf_norms(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """`(roots, scales)` of the leaves, `[len(leaves)]` both, as `tree.norm_parts` has them."""
    kind = jnp.dtype(tree.widest(leaves))
    if not leaves:
        return jnp.zeros((0,), kind), jnp.ones((0,), kind)
    return norms.each(leaves, kind)


@transform
def clip_by_agc(clipping: ScheduleLike = 0.01, eps: float = 1e-3):
    r"""Clip the gradient of each unit to a part of the norm of that unit's weights.

    .. math:: u_j = g_j \cdot \min\left(1,
              \frac{\lambda \max(\lVert p_j \rVert_2, \epsilon)}{\lVert g_j \rVert_2}\right)

    A unit is what the last axes give out: a column of a matrix, a place in the last two axes of a leaf of three
    (`[width, heads, size]`), a channel of a convolution; all of a leaf of fewer than two axes. What is not finite stays
    so, visibly. Keep it off the last layer: `by_path({"head": tx, ".*": chain(clip_by_agc(), tx)})`.

    Args:
      clipping: λ, > 0, or a schedule of it over optimizer updates.
      eps: ε, > 0: the least norm of weights, so that zeros may move.

    Returns:
      A Transform whose updates keep their shapes and dtypes; its `update` needs `params`. Norms are float32 at least.

    Raises:
      ConfigError: if an argument is out of range, or `update` gets no `params`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.transforms.clip_by_agc(0.5)
      >>> p = jnp.array([[3.0, 0.3], [4.0, 0.4]])
      >>> tx.update(jnp.array([[1.0, 3.0], [0.0, 4.0]]), tx.init(p), p)[0].tolist()
      [[1.0, 0.15000000596046448], [0.0, 0.20000000298023224]]

    References:
      Brock et al., *High-performance large-scale image recognition without normalization*, 2021.
    """
    check.number_or_schedule("clipping", clipping, above=0)
    check.number("eps", eps, above=0)

    def init_fn(params):
        del params
        return counted_init(clipping=clipping)

    def update_fn(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ConfigError("`params` is needed by clip_by_agc: call `tx.update(grads, state, params)`")
        now, state = counted_update(state, clipping=clipping)

        def clip(g, p):
            wide = tree.wide(g)
            least = like(eps, wide)
            limit = like(now["clipping"], wide) * jnp.maximum(_unit_norms(like(p, wide)), least)
            norm = _unit_norms(wide)
            return like(wide * jnp.where(norm > limit, limit / norm, jnp.ones((), wide.dtype)), g)

        return jax.tree.map(clip, updates, params), state

    return Transform(init_fn, update_fn, rescales=False, descends=False)


def _unit_norms(x: jax.Array) -> jax.Array:
    """The norm of each unit of a leaf, with axes of one in place of those it is over; NaN if it is not finite."""
    axes = None if x.ndim < 2 else 0 if x.ndim == 3 else tuple(range(x.ndim - 1))
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0)
    scaled = x / jnp.where(largest > 0, largest, jnp.ones((), x.dtype))  # no square overflows, or underflows
    return largest * jnp.sqrt(jnp.sum(jnp.square(scaled), axis=axes, keepdims=True))


class _RecordNorms(NamedTuple):
    grad_norm: jax.Array  # float32, shape ()


class RecordNormsState(Recording, _RecordNorms):
    """The norm of what last went through."""

    records: ClassVar[tuple[str, ...]] = ("grad_norm",)


@transform
def record_norms():
    r"""Record the global norm of the gradients, and let them through as they are.

    .. math:: u = g, \qquad \text{grad\_norm} = \sqrt{\textstyle\sum_i g_i^2}

    For those who do not clip; `clip_by_norm` records it too. It stands where the norm is wanted: first in the
    chain for that of the gradient.

    Returns:
      A Transform. The norm is float32, and neither overflows nor underflows.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.record_norms()
      >>> g = jnp.array([3.0, 4.0])
      >>> float(tx.update(g, tx.init(g))[1].grad_norm)
      5.0
    """

    def init_fn(params):
        del params
        return RecordNormsState(jnp.zeros((), jnp.float32))

    def update_fn(updates, state, params=None, **extra):
        del state, params, extra
        return updates, RecordNormsState(_float32(tree.norm(updates)))

    return Transform(init_fn, update_fn, rescales=False, descends=False, observes=True)
