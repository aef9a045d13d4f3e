"""Type aliases and protocols of the whole library, in one leaf module."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

PyTree: TypeAlias = Any
"""Any nesting of dicts, lists, tuples, dataclasses registered with JAX, and leaves."""

Params: TypeAlias = PyTree
"""A tree of arrays. Floating-point leaves are trained, all others are carried along."""

Batch: TypeAlias = PyTree
"""A tree of arrays whose leaves share their leading axis, the examples."""

ArrayLike: TypeAlias = jax.Array | np.ndarray | np.generic | float | int | bool

ScheduleLike: TypeAlias = float | jax.Array | np.ndarray | Callable[[Any], Any]
"""A number, or a function from the count of optimizer updates to a number."""

Outputs: TypeAlias = Mapping[str, Any]
"""What a loss hands to the metrics, by key."""

Accumulator: TypeAlias = PyTree
"""What a metric carries between `update` and `compute`: a tree of arrays of constant structure."""
