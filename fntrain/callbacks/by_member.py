"""What a callback remembers of each member of a population: NumPy's arrays `[N, …]` where one run has numbers."""

from typing import Any, TypeVar

import jax
import numpy as np

from .._core.errors import ConfigError

T = TypeVar("T")


def of_each(remembered: T, value: Any) -> T:
    """A tree of numbers as arrays `[N]`, where `value` is one for each member; else as it is.

    Raises:
      ConfigError: if it is of another number of members.
    """
    shape = np.shape(value)
    known = {np.shape(x) for x in jax.tree.leaves(remembered)}
    if known <= {(), shape}:
        return remembered if shape == () else jax.tree.map(lambda x: np.broadcast_to(x, shape), remembered)
    raise ConfigError(
        f"the callback remembers {next(iter(known))[0]} members, and the population has {shape[0] if shape else 1}: "
        f"whoever replaces members tells each callback which are there now, `callback.regroup(parents)`, as "
        f"`population.fit(..., controller=...)` does"
    )


def picked(remembered: T, parents: np.ndarray) -> T:
    """What a population's members remember, for those that there are now; of one for all, that."""
    return jax.tree.map(lambda x: x[parents] if np.ndim(x) else x, remembered)
