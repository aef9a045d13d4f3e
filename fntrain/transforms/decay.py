"""Weight decay and the learning rate: the two transforms that multiply by a number."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .._core.typing import ScheduleLike
from .scheduled import counted_init, counted_update
from .types import Recording, Transform, at_step, increment, like, transform


@transform
def add_weight_decay(rate: ScheduleLike, mask: Any = None):
    r"""Add `rate` times the parameters to the updates.

    .. math:: u = g + \lambda\, p

    Its place in the chain says what it means. Before the preconditioner it is L2 regularisation (the gradient
    of :math:`\tfrac{\lambda}{2}\lVert p \rVert^2`); after it, and before the learning rate, it is decoupled
    decay, as in AdamW.

    Args:
      rate: λ, >= 0, or a schedule of it over optimizer updates, whose value the step reports as `weight_decay`.
      mask: which leaves decay: a regex (or list of them) searched in the leaf paths, a tree of bools, or a
        function from the parameters to one. None is all.

    Returns:
      A Transform; its `update` needs `params`. Updates keep their shapes and dtypes; λ is never rounded to
      the parameters' dtype.

    Raises:
      ConfigError: if `rate` is negative, or the mask matches nothing or has another structure.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.add_weight_decay(0.1, mask="kernel")
      >>> p = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
      >>> u, _ = tx.update({"kernel": jnp.zeros(2), "bias": jnp.zeros(2)}, tx.init(p), p)
      >>> u["kernel"].tolist(), u["bias"].tolist()
      ([0.10000000149011612, 0.10000000149011612], [0.0, 0.0])

    References:
      Loshchilov, Hutter, *Decoupled weight decay regularization*, 2019.
    """
    check.number_or_schedule("rate", rate, at_least=0)

    def init_fn(params):
        tree.mask_leaves(mask, params)  # a mask that fits nothing is refused here, not at the first update
        return counted_init(weight_decay=rate)

    def update_fn(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ConfigError(
                "`params` is needed by add_weight_decay: call `tx.update(grads, state, params)`"
            )
        now, state = counted_update(state, weight_decay=rate)
        decay = now["weight_decay"]
        chosen = jax.tree.unflatten(jax.tree.structure(params), tree.mask_leaves(mask, params))

        def add(g, p, m):
            if not m or g is None:
                return g
            wide = tree.wide(g)
            return like(wide + like(decay, wide) * like(p, wide), g)

        return jax.tree.map(add, updates, params, chosen, is_leaf=lambda x: x is None), state

    return Transform(init_fn, update_fn, rescales=False, descends=False)


class _ScaleByLearningRate(NamedTuple):
    count: jax.Array  # int32, shape (): updates applied
    learning_rate: jax.Array  # float32, shape (): the rate of the last update, multiplier included
    multiplier: jax.Array  # float32, shape (): 1 unless a controller changed it


class ScaleByLearningRateState(Recording, _ScaleByLearningRate):
    """Where the schedule stands, and the multiplier that controllers on the host may set."""

    records: ClassVar[tuple[str, ...]] = ("learning_rate",)


@transform
def scale_by_learning_rate(learning_rate: ScheduleLike):
    r"""Multiply by minus the learning rate: the step from a direction to an update.

    .. math:: u = -\eta(t)\, m\, g

    :math:`t` counts applied updates from 0, and :math:`m` is a multiplier in the state, 1 unless a controller
    (a plateau rule, a callback) sets it. The rate used is recorded and reported by the step as
    `learning_rate`.

    Args:
      learning_rate: a number >= 0, an array of one, or a schedule.

    Returns:
      A Transform. The rate is float32 at least, whatever the updates' dtype.

    Raises:
      ConfigError: if the rate is negative or not finite.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.transforms.scale_by_learning_rate(0.5)
      >>> tx.update(jnp.array([2.0]), tx.init(None))[0].tolist()
      [-1.0]
    """
    check.number_or_schedule("learning_rate", learning_rate, at_least=0)

    def init_fn(params):
        del params
        count = jnp.zeros((), jnp.int32)
        rate = jnp.asarray(at_step(learning_rate, count), jnp.float32)
        return ScaleByLearningRateState(count, rate, jnp.ones((), jnp.float32))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        now = at_step(learning_rate, state.count)

        def rate(x):
            """The rate in the dtype of `x`."""
            return like(now, x) * like(state.multiplier, x)

        def scale(g):
            wide = tree.wide(g)
            return like(-rate(wide) * wide, g)

        new_state = ScaleByLearningRateState(increment(state.count), rate(state.multiplier), state.multiplier)
        return jax.tree.map(scale, updates), new_state

    return Transform(init_fn, update_fn, rescales=False, descends=True)
