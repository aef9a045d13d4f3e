"""Several losses as one."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import ConfigError
from .._core.typing import ArrayLike
from ..tree import wide
from .inputs import (
    readable,
)
from .loss import Loss


def combine(parts: Mapping[str, tuple[ArrayLike, Loss | jax.Array]]) -> Loss:
    r"""A weighted sum of several losses, each of which the step also reports, unscaled, as `loss/<name>`.

    .. math:: \ell_i = \sum_k c_k\, \ell_{ki}

    All parts must have the same weights, since a mean has one denominator. A scalar part without weights (a
    penalty on the parameters, say) is added to every value. A part with coefficient 0 does not count, whatever
    it holds.

    Args:
      parts: `{name: (coefficient, loss)}`; a loss is a Loss or an array of values.

    Returns:
      A Loss with the sum's values, the common weights, the outputs of all parts, each part's values under
      `loss/<name>`, and the model state of the part that has one.

    Raises:
      ConfigError: if there is no part, a part is no `(coefficient, loss)`, shapes or weights differ, or two
        parts give the same output or both a model state. Weights that cannot be read, being traced, and prove
        to differ make the sum NaN.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> fit = ft.losses.mse(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0]))
      >>> loss = ft.losses.combine({"fit": (1.0, fit), "l2": (0.1, jnp.array(5.0))})
      >>> loss.values.tolist(), sorted(loss.outputs)
      ([1.5, 4.5], ['loss/fit', 'loss/l2'])
    """
    if not isinstance(parts, Mapping) or not parts:
        raise ConfigError(
            f"`parts` must be `{{name: (coefficient, loss)}}` with one part at least, got {parts!r}"
        )
    losses: dict[str, Loss] = {}
    for name, part in parts.items():
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise ConfigError(f"part `{name}` must be `(coefficient, loss)`, got {part!r}")
        check.number(f"coefficient of `{name}`", part[0])
        losses[name] = part[1] if isinstance(part[1], Loss) else Loss(part[1])
    first = max(losses, key=lambda name: losses[name].values.ndim)
    shape, weights = losses[first].values.shape, losses[first].weights
    scaled: list[jax.Array] = []
    outputs: dict[str, Any] = {}
    states = [loss.model_state for loss in losses.values() if loss.model_state is not None]
    if len(states) > 1:
        raise ConfigError(
            "only one part may have a `model_state`; drop the others with `loss.with_state(None)`"
        )
    for name, loss in losses.items():
        if loss.values.shape == () and loss.weights is None:
            values = jnp.broadcast_to(wide(loss.values), shape)
        elif loss.values.shape == shape:
            values = wide(loss.values)
            weights = _common_weights(weights, loss.weights, first, name)
        else:
            raise ConfigError(
                f"parts must have values of one shape (or scalars): `{first}` has {list(shape)}, `{name}` "
                f"{list(loss.values.shape)}"
            )
        coefficient = jnp.asarray(parts[name][0]).astype(values.dtype)
        scaled.append(jnp.where(coefficient != 0, coefficient * values, 0))
        for key, value in {**loss.outputs, f"loss/{name}": values}.items():
            if key in outputs and outputs[key] is not value:
                raise ConfigError(f"two parts give the output {key!r}; one of them must rename it")
            outputs[key] = value
    total = functools.reduce(jnp.add, scaled)
    return Loss(total, weights, outputs=outputs, model_state=states[0] if states else None)


def _common_weights(a: jax.Array | None, b: jax.Array | None, first: str, name: str) -> jax.Array | None:
    if a is b:
        return a
    if a is None or b is None or a.shape != b.shape:
        shapes = ["none" if w is None else list(w.shape) for w in (a, b)]
        raise ConfigError(
            f"parts must have the same weights: `{first}` has {shapes[0]}, `{name}` has {shapes[1]}; a mean has "
            f"one denominator. Add a part's `.mean()` to weigh it on its own"
        )
    equal = a.astype(jnp.float32) == b.astype(jnp.float32)
    if readable(equal):
        if not np.asarray(equal).all():
            raise ConfigError(f"parts must have the same weights, and those of `{first}` and `{name}` differ")
        return a
    return jnp.where(equal, a.astype(jnp.float32), jnp.nan)
