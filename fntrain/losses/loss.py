"""Loss: values, weights, and what else a loss function has to say."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.errors import ConfigError
from .._core.typing import PyTree
from ..tree import wide


@dataclasses.dataclass(frozen=True)
class Loss:
    r"""What a loss function returns: one value per example (or token), weighted, and not yet averaged.

    .. math:: L = \frac{\sum_i w_i\, \ell_i}{\sum_i w_i}

    The step forms both sums over whatever a batch was cut into and divides once. A pytree; frozen, so the
    `with_…` methods return a new one.

    Args:
      values: floating-point, a scalar or one value per example or token, `[B, …]`.
      weights: numbers or a mask >= 0, broadcastable to `values` and taken as constants by gradients; None is
        ones. Values of weight zero are left out, NaN included: they add nothing to the sum, and their gradient is
        zero. But that zero then goes back through what computed the value, and autodiff multiplies it by the
        derivatives there: 0 * NaN is NaN, so a NaN in a target of weight zero ends in every parameter, though the
        loss is finite. Give the weights to the loss itself, `mse(predictions, targets, weights=w)`, which masks
        what it is given before it computes anything; in a loss of your own, `jnp.where` the inputs.
      outputs: arrays by name, for metrics to read.
      model_state: new mutable collections (batch statistics, say); None leaves the state's as they are.

    Raises:
      ConfigError: if `values` is not floating-point, or `weights` does not broadcast to it.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss = Loss(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1.0, 3.0, 0.0]))
      >>> float(loss.mean()), float(loss.sum())
      (1.75, 7.0)
    """

    values: jax.Array
    weights: jax.Array | None = None
    _: dataclasses.KW_ONLY
    outputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_state: PyTree = None

    def __post_init__(self) -> None:
        values = _array("values", self.values)
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise ConfigError(f"`values` must be floating-point, got {values.dtype.name}{list(values.shape)}")
        object.__setattr__(self, "values", values)
        if self.weights is not None:
            weights = _array("weights", self.weights)
            if not _broadcasts(weights.shape, values.shape):
                raise ConfigError(
                    f"`weights` must broadcast to the values, {list(values.shape)}, got {list(weights.shape)}"
                    + "; did you mean `weights[:, None]`?" * (weights.shape == values.shape[:1])
                )
            object.__setattr__(self, "weights", weights)
        if not isinstance(self.outputs, Mapping):
            raise ConfigError(
                f"`outputs` must be a mapping from names to arrays, got {type(self.outputs).__name__}"
            )

    def mean(self) -> jax.Array:
        """The weighted mean, float32 at least; 0 where the total weight is zero."""
        if self.weights is None:
            return jnp.mean(wide(self.values)) if self.values.size else jnp.zeros((), wide(self.values).dtype)
        total = jnp.sum(self._weights())
        seen = total != 0
        return jnp.where(seen, self.sum() / jnp.where(seen, total, 1), 0)

    def sum(self) -> jax.Array:
        """The weighted sum, float32 at least."""
        if self.weights is None:
            return jnp.sum(wide(self.values))
        w = self._weights()
        # Selected, not multiplied by zero: what is left out may be NaN.
        return jnp.sum(jnp.where(w != 0, wide(self.values), 0) * w)

    def with_outputs(self, **outputs: Any) -> "Loss":
        """This loss with more outputs for metrics to read; a name given again is replaced."""
        return dataclasses.replace(self, outputs={**self.outputs, **outputs})

    def with_state(self, model_state: PyTree) -> "Loss":
        """This loss with the new model state, which the step puts into its TrainState."""
        return dataclasses.replace(self, model_state=model_state)

    def _weights(self) -> jax.Array:
        w = jax.lax.stop_gradient(jnp.asarray(self.weights).astype(wide(self.values).dtype))
        return jnp.broadcast_to(w, self.values.shape)


def _array(name: str, x: Any) -> jax.Array:
    if isinstance(x, float):  # not weakly typed: a step's types must not depend on how a zero was written
        return jnp.asarray(x, jnp.float32)
    if not isinstance(x, jax.Array | np.ndarray | np.generic):
        raise ConfigError(f"`{name}` must be an array, got {type(x).__name__}")
    return jnp.asarray(x)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape[::-1], to[::-1]))


_FIELDS = tuple(field.name for field in dataclasses.fields(Loss))


def _flatten(loss: Loss) -> tuple[list[Any], None]:
    return [(jax.tree_util.GetAttrKey(name), getattr(loss, name)) for name in _FIELDS], None


def _unflatten(_: None, children: Any) -> Loss:
    # Past the checks: JAX also builds Losses of axis numbers, shapes and booleans, and under `vmap` the weights of
    # a batch no longer broadcast to the values.
    loss = object.__new__(Loss)
    for name, child in zip(_FIELDS, children):
        object.__setattr__(loss, name, child)
    return loss


jax.tree_util.register_pytree_with_keys(Loss, _flatten, _unflatten)
