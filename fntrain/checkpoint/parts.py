"""Arrays that several processes save together: each writes and digests its own parts of them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import sharding

Part = list[list[int]]
"""`[[start, stop], …]`, one pair an axis."""


def whole_or_split(x: Any) -> Any:
    """A NumPy array of what every process has whole; an array that is split over processes as it is.

    PRNG keys as their words.
    """
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return x if is_split(x) else sharding.to_host(x)


def is_split(x: Any) -> bool:
    """Whether no process has all of an array."""
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def digests(
    arrays: Mapping[str, jax.Array], digest: Callable[[str, np.ndarray], int]
) -> dict[str, list[tuple[Part, int]]]:
    """The parts of split arrays and their digests, all of them on every process.

    Args:
      arrays: by path.
      digest: of a path and an array, 32 bits.
    """
    if not arrays:
        return {}
    parts = {path: _parts(x) for path, x in arrays.items()}
    mine: list[int] = []
    for path, x in arrays.items():
        here = {
            _key(shard.index, x.shape): np.asarray(shard.data)
            for shard in x.addressable_shards
            if shard.replica_id == 0
        }
        mine += [digest(path, here[part]) if part in here else 0 for part in parts[path]]
    known = iter(sharding.combined(np.array(mine, np.uint32)))  # each from the one process that has it
    return {
        path: [([list(pair) for pair in part], int(next(known))) for part in parts[path]] for path in arrays
    }


def are_finite(arrays: Iterable[Any]) -> bool:
    """Whether all numbers are, of split arrays those that this process has."""
    for x in arrays:
        if jnp.issubdtype(x.dtype, jnp.inexact):
            here = [np.asarray(shard.data) for shard in x.addressable_shards] if is_split(x) else [x]
            if not all(np.isfinite(part).all() for part in here):
                return False
    return True


def _parts(x: jax.Array) -> list[tuple[tuple[int, int], ...]]:
    """The distinct parts of an array, over all devices, in order."""
    return sorted({_key(index, x.shape) for index in x.sharding.devices_indices_map(x.shape).values()})


def _key(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape))


def part_of(host: np.ndarray, part: Part) -> np.ndarray:
    """One part of a whole array."""
    return host[tuple(slice(start, stop) for start, stop in part)]
