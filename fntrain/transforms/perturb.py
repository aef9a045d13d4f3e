"""What is done to a gradient by itself: its mean taken out, noise put in."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core import check
from .._core.digest import crc32
from .._core.typing import ScheduleLike
from .scheduled import counted_init, counted_update
from .types import Transform, increment, like, transform


@transform
def centralize():
    r"""Take the mean over a unit's inputs out of each gradient.

    .. math:: u_{i j} = g_{i j} - \frac{1}{n} \sum_{k=1}^{n} g_{k j}

    For leaves of two axes or more, the mean over all but the last of them, which is that of the units; others pass as
    they are. (optax's takes it over all but the first, which is that of kernels kept as `[out, in]`.)

    Returns:
      A Transform without state; shapes and dtypes are kept. Means are float32 at least.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.transforms.centralize()
      >>> tx.update({"w": jnp.array([[1.0, 2.0], [3.0, 6.0]])}, tx.init(None))[0]["w"].tolist()
      [[-1.0, -2.0], [1.0, 2.0]]

    References:
      Yong et al., *Gradient centralization: a new optimization technique for deep neural networks*, 2020.
    """

    def centre(g):
        wide = tree.wide(g)
        return (
            g if g.ndim < 2 else like(wide - jnp.mean(wide, axis=tuple(range(g.ndim - 1)), keepdims=True), g)
        )

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        return jax.tree.map(centre, updates), state

    return Transform(lambda params: (), update_fn, rescales=False, descends=False)


class NoiseState(NamedTuple):
    """How often noise was added; the noise itself is a function of that."""

    count: jax.Array  # int32, shape ()
    scale: object = ()  # the standard deviation of the last update, where it is a schedule


@transform
def noise(scale: ScheduleLike, decay: float = 0.55, seed: int = 0):
    r"""Add Gaussian noise whose variance falls with the updates.

    .. math:: u = g + \mathcal{N}\left(0,\; \frac{\sigma^2}{(1 + t)^\gamma}\right)

    The noise is a function of the seed, the count of updates and the leaf's path: a resumed run has the same.

    Args:
      scale: σ, >= 0, or a schedule of it over updates.
      decay: γ, >= 0; 0 keeps the variance.
      seed: a whole number >= 0.

    Returns:
      A Transform; shapes and dtypes are kept. The noise is float32 at least.

    Raises:
      ConfigError: if an argument is out of range.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.transforms.noise(0.0)
      >>> tx.update(jnp.array([1.0]), tx.init(jnp.zeros(1)))[0].tolist()
      [1.0]

    References:
      Neelakantan et al., *Adding gradient noise improves learning for very deep networks*, 2015.
    """
    check.number_or_schedule("scale", scale, at_least=0)
    check.number("decay", decay, at_least=0)
    seed = check.integer("seed", seed, at_least=0)

    def init_fn(params):
        del params
        return NoiseState(jnp.zeros((), jnp.int32), counted_init(noise_scale=scale))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        now, counted = counted_update(state.scale, noise_scale=scale)
        key = jax.random.fold_in(jax.random.key(seed), state.count)

        def shaken(path, g):
            wide = tree.wide(g)
            own = jax.random.fold_in(key, crc32(np.frombuffer(path.encode(), np.uint8)))
            drawn = jax.random.normal(own, g.shape, wide.dtype)
            t = 1 + state.count.astype(wide.dtype)
            return like(wide + like(now["noise_scale"], wide) * t ** like(-decay / 2, wide) * drawn, g)

        return tree.map_with_path(shaken, updates), NoiseState(increment(state.count), counted)

    return Transform(init_fn, update_fn, rescales=False, descends=False)
