"""What a transform makes of a gradient, held against that gradient: only where the two agree, or with its norm."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._core.errors import ConfigError
from .._core.typing import Params
from .adapt import Adapted, adapt
from .types import Transform, Window, like, nodes, transform


@transform
def cautious(tx: optax.GradientTransformation) -> Any:
    r"""Take the updates of `tx` only where they go down the gradient at hand, and the more there.

    .. math:: u = T(g), \qquad \phi_i = [u_i\, g_i \text{ goes downhill}], \qquad
              u \leftarrow \frac{u \circ \phi}{\max(\operatorname{mean}(\phi), 0.001)} \quad\text{leaf by leaf}

    A momentum may still go where the gradient no longer points; such entries rest for a step. A transform that does
    not say whether its updates are added to the parameters as they are, one of optax's say, is taken for a whole
    optimizer, behind its learning rate.

    Args:
      tx: the inner transform. One that holds gradients back stands outside: `MultiSteps(cautious(tx), k)`.

    Returns:
      A Transform with the state of `tx`.

    Raises:
      ConfigError: if `tx` is no transform, or holds gradients back, or takes others than it is given (`sam`).

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.transforms.cautious(ft.optimizers.sgd(1.0, momentum=0.5))
      >>> p = jnp.zeros(2)
      >>> _, state = tx.update(jnp.array([4.0, 1.0]), tx.init(p), p)
      >>> tx.update(jnp.array([-1.0, 1.0]), state, p)[0].tolist()  # of [-1.0, -1.5]
      [0.0, -3.0]

    References:
      Liang et al., *Cautious optimizers: improving training with one line of code*, 2024.
    """
    tx = alone(tx, "cautious")
    downhill = -1 if tx.descends is False else 1

    def masked(path, u, g):
        del path
        wide = tree.wide(u)
        agree = like(-downhill * jnp.sign(wide) * jnp.sign(like(g, wide)) > 0, wide)
        part = jnp.maximum(jnp.mean(agree), like(1e-3, wide)) if u.size else jnp.ones((), wide.dtype)
        return like(jnp.where((agree > 0) | jnp.isnan(wide), wide / part, jnp.zeros((), wide.dtype)), u)

    return after(tx, masked, "cautious", rescales=True)


@transform
def keep_norm(tx: optax.GradientTransformation) -> Any:
    r"""Give the updates of `tx` the norms of what it was given, leaf by leaf: its direction, their length.

    .. math:: u_\ell = \lVert g_\ell \rVert_2 \, \frac{T(g)_\ell}{\lVert T(g)_\ell \rVert_2}

    So a preconditioner may stand in a chain whose learning rate is that of plain gradients, and behind
    a momentum it is that of the momentum. Where `tx` gives zeros, they are zeros.

    Args:
      tx: the inner transform. One that holds gradients back stands outside: `MultiSteps(keep_norm(tx), k)`.

    Returns:
      A Transform with the state of `tx`. Norms are float32 at least, and neither overflow nor underflow.

    Raises:
      ConfigError: if `tx` is no transform, or holds gradients back, or takes others than it is given (`sam`).

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.transforms.keep_norm(ft.transforms.scale_by_lion())
      >>> g = jnp.array([3.0, -4.0, 0.0])
      >>> [round(x, 4) for x in tx.update(g, tx.init(g))[0].tolist()]
      [3.5355, -3.5355, 0.0]

    References:
      Agarwal et al., *Disentangling adaptive gradient methods from learning rates*, 2020 (layer-wise grafting).
    """
    tx = alone(tx, "keep_norm")

    def scaled(path, u, g):
        del path
        wide = tree.wide(u)
        own, own_scale = _norm_parts(wide)
        given, given_scale = _norm_parts(like(g, wide))
        unit = wide * own_scale / jnp.where(own == 0, jnp.ones((), own.dtype), own)
        return like(unit * given / given_scale, u)

    return after(tx, scaled, "keep_norm", rescales=None)


def _norm_parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(root, scale)` of one leaf, the norm being `root / scale`: the largest entry scaled to about 1."""
    largest = jnp.max(jnp.abs(x), initial=0)
    scale = jnp.where(largest > 0, 1 / largest, jnp.ones((), x.dtype))
    # Of numbers so small or large that the inverse is none, the entry itself is the best there is.
    scale = jnp.where((scale > 0) & jnp.isfinite(scale), scale, jnp.ones((), x.dtype))
    return jnp.sqrt(jnp.sum(jnp.square(x * scale))), scale


def alone(tx: Any, name: str) -> Transform:
    """The transform, if what it returns belongs to what it is given."""
    tx = adapt(tx)
    if tx.holds_back and not isinstance(tx, Adapted):
        raise _held(tx, name)
    if tx.looks or tx.looks_late:
        raise ConfigError(f"`tx` {tx!r} takes a gradient of its own: put it outside, `sam({name}(tx))`")
    return tx


def _held(tx: Transform, name: str) -> ConfigError:
    return ConfigError(
        f"`tx` {tx!r} holds gradients back, and its updates are of several: `MultiSteps({name}(tx), k)`"
    )


def after(
    tx: Transform,
    change: Callable[[str, jax.Array, jax.Array], jax.Array],
    name: str,
    rescales: bool | None,
    looked_at: Callable[[Params], None] = lambda params: None,
) -> Transform:
    """`tx`, whose updates are changed by `change(path, update, gradient)`; `looked_at` refuses parameters."""

    def init_fn(params):
        looked_at(params)
        state = tx.init(params)
        if nodes(state, Window):  # one of optax's says so in its state alone
            raise _held(tx, name)
        return state

    def update_fn(updates, state, params=None, **extra):
        new, state = tx.update(updates, state, params, **extra)
        return tree.map_with_path(change, new, updates), state

    return Transform(
        init_fn,
        update_fn,
        stages={"inner": tx},
        rescales=rescales,
        passed=tx.passed,
    )
