"""The order of an epoch's examples: a function of the seed, the epoch and their number, on the host or on a device.

Both sort the words of one bit generator, Philox of 64 bits in ten rounds, whose stream NumPy guarantees (its
`permutation` it may change: a run resumed after an upgrade must see the same order). What formed the order does not
show in it, so a run may go on wherever its data lies.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Word: TypeAlias = tuple[Any, Any]
"""64 bits as two uint32 arrays, the upper half first: JAX has no others where `jax_enable_x64` is off."""

_ROUNDS = 10
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


def on_host(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The rows of a data set in the order in which an epoch takes them, int64."""
    return np.argsort(np.random.Philox(_sequence(seed, epoch)).random_raw(rows), kind="stable")


def on_device(keys: np.ndarray, rows: int) -> jax.Array:
    """The same, int32, from the `round_keys` of seed and epoch; for a program of one's own."""
    blocks = jnp.arange(1, -(-rows // 4) + 1, dtype=jnp.uint32)  # Philox counts before it gives
    zero = jnp.zeros_like(blocks)
    counter = (zero, blocks), (zero, zero), (zero, zero), (zero, zero)
    words, _ = jax.lax.scan(lambda x, key: (_round(x, key), None), counter, keys)
    high, low = (jnp.stack([word[half] for word in words], -1).ravel()[:rows] for half in (0, 1))
    numbers = jnp.arange(rows, dtype=jnp.int32)
    return jax.lax.sort((high, low, numbers), num_keys=2, is_stable=True)[2]


def round_keys(seed: int, epoch: int) -> np.ndarray:
    """What is mixed in, round by round: two words of 64 bits each, uint32 `[10, 2, 2]`, upper halves first."""
    key = [int(word) for word in _sequence(seed, epoch).generate_state(2, np.uint64)]
    rounds = [[(k + i * w) % 2**64 for k, w in zip(key, _WEYL)] for i in range(_ROUNDS)]
    return np.array([[divmod(word, 2**32) for word in words] for words in rounds], np.uint32)


def _sequence(seed: int, epoch: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, epoch])


def _round(x: tuple[Word, ...], key: Any) -> tuple[Word, ...]:
    (upper0, lower0), (upper1, lower1) = map(_times, (x[0], x[2]), _MULTIPLIERS)
    mixed = partial(jax.tree.map, lambda *halves: halves[0] ^ halves[1] ^ halves[2])
    return (
        mixed(upper1, x[1], (key[0, 0], key[0, 1])),
        lower1,
        mixed(upper0, x[3], (key[1, 0], key[1, 1])),
        lower0,
    )


def _times(x: Word, constant: int) -> tuple[Word, Word]:
    """The 128 bits of a product, as its upper and its lower word."""
    (high, low), (upper, lower) = x, divmod(constant, 2**32)
    (a1, a0), (b1, b0), (c1, c0), (d1, d0) = (
        _product(half, by) for half in (low, high) for by in (lower, upper)
    )
    one, carried = _sum(a1, b0, c0)
    two, more = _sum(b1, c1, d0, carried)
    return (d1 + more, two), (one, a0)


def _product(x: Any, constant: int) -> Word:
    """The 64 bits of a product of two words of 32, by halves of 16, whose products fit."""
    (upper, lower), (high, low) = divmod(constant, 2**16), (x >> 16, x & 0xFFFF)
    least, middle, other = low * np.uint32(lower), low * np.uint32(upper), high * np.uint32(lower)
    carried = (least >> 16) + (middle & 0xFFFF) + (other & 0xFFFF)
    most = high * np.uint32(upper) + (middle >> 16) + (other >> 16) + (carried >> 16)
    return most, carried << 16 | least & 0xFFFF


def _sum(*words: Any) -> tuple[Any, Any]:
    """A sum of words of 32 bits, and how often it went over."""
    total, carried = words[0], np.uint32(0)
    for word in words[1:]:
        total = total + word
        carried = carried + (total < word).astype(jnp.uint32)
    return total, carried
