"""Losses by name."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .classification import binary_cross_entropy, cross_entropy
from .divergence import kl_divergence
from .focal import binary_focal, focal
from .loss import Loss
from .margin import hinge, squared_hinge
from .overlap import dice
from .regression import cosine_distance, huber, log_cosh, mae, mse

LOSSES: dict[str, Callable[..., Loss]] = {
    f.__name__: f
    for f in (
        binary_cross_entropy,
        binary_focal,
        cosine_distance,
        cross_entropy,
        dice,
        focal,
        hinge,
        huber,
        kl_divergence,
        log_cosh,
        mae,
        mse,
        squared_hinge,
    )
}
"""The losses that `get` knows, by name."""

ALIASES = {
    "bce": "binary_cross_entropy",
    "binary_crossentropy": "binary_cross_entropy",
    "categorical_crossentropy": "cross_entropy",
    "ce": "cross_entropy",
    "crossentropy": "cross_entropy",
    "kl": "kl_divergence",
    "l1": "mae",
    "mean_absolute_error": "mae",
    "mean_squared_error": "mse",
    "smooth_l1": "huber",
    "sparse_categorical_crossentropy": "cross_entropy",
}
"""Other libraries' names of a loss."""


def get(name: str, **options: Any) -> Callable[..., Loss]:
    """A loss by name, with some of its options given.

    Args:
      name: of LOSSES, or one of ALIASES.
      **options: the loss's own, `label_smoothing=0.1` say.

    Returns:
      `(predictions, targets) -> Loss`.

    Raises:
      ConfigError: if there is no loss of that name, or no option.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> loss = ft.losses.get("huber", delta=0.5)
      >>> loss(jnp.zeros(2), jnp.array([0.5, 3.0])).values.tolist()
      [0.125, 1.375]
    """
    if isinstance(name, str):
        name = ALIASES.get(name, name)
    check.one_of("loss", name, list(LOSSES))
    loss = LOSSES[name]
    known = list(inspect.signature(loss).parameters)[2:]  # after outputs and targets
    for option in options:
        if option not in known:
            raise ConfigError(
                f"`{option}` is no option of {name}, which has {tree.some(known, len(known))}"
                + check.did_you_mean(option, known)
            )
    return functools.partial(loss, **options) if options else loss
