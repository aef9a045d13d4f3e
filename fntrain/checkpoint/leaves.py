"""One array on its way to disk and back: its kind, its digest, its copy on the host, its place on a device."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import sharding
from .._core import check
from .._core.digest import crc32
from .._core.errors import (
    CheckpointMismatchError,
    ConfigError,
    ConsumedStateError,
)
from .._core.typing import Params
from ..step import programs
from . import parts


def on_device(params: Params) -> Params:
    """NumPy arrays as JAX's, but for those of a dtype that JAX has switched off."""
    return jax.tree.map(lambda x: jax.device_put(x) if _fits_jax(x) else x, params)


def kind(path: str, leaf: Any) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) of a leaf of a state, or an error that names it."""
    if isinstance(leaf, bool | int | float | complex):
        leaf = np.asarray(leaf)
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
        raise ConfigError(f"`state` leaf `{path}` must be an array or a number, got a {type(leaf).__name__}")
    return leaf.dtype.name, tuple(leaf.shape)


def saved_kind(info: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) of a leaf as it was saved."""
    return info.get("key", info)["dtype"], tuple(info.get("key", info)["shape"])


def _is_key(x: Any) -> bool:
    return not isinstance(x.dtype, np.dtype) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def check_array(path: str, x: Any) -> None:
    """Refuse what is no array of numbers that can be read here."""
    if not (_is_key(x) or x.dtype.kind in "biufc" or jnp.issubdtype(x.dtype, np.number)):
        raise ConfigError(f"`{path}` must hold numbers, got an array of dtype {x.dtype}")
    if not check.is_concrete(x):
        raise ConfigError(f"`{path}` is being traced: save outside jit")
    if isinstance(x, jax.Array) and x.is_deleted():
        raise ConsumedStateError(f"`{path}` was donated to a later step: save the state that step returned")


def copy_to_host(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """NumPy copies that share no memory with the arrays; all transfers run at once."""
    device = {path: jax.random.key_data(x) if _is_key(x) else x for path, x in arrays.items()}
    out: dict[str, np.ndarray] = {}
    for path, host in jax.device_get(device).items():
        # On accelerators device_get has copied; on the CPU it may be a view of a buffer that is then donated.
        shared = not isinstance(device[path], jax.Array) or (
            sharding.on_host(device[path]) and not host.flags.owndata
        )
        native = host.dtype.newbyteorder("=")
        out[path] = np.array(host, native, copy=True, order="C") if shared else host
    return out


def set_aside(arrays: Mapping[str, Any]) -> Callable[[], dict[str, np.ndarray]]:
    """What gives `copy_to_host` of the arrays as they are now, in any thread, whatever becomes of them.

    On an accelerator with room for it that is a second copy there, for which nothing waits: the transfer goes on while
    the next steps run. All else is copied to the host at once.
    """
    words = {path: jax.random.key_data(x) if _is_key(x) else x for path, x in arrays.items()}
    there = {path: x for path, x in words.items() if isinstance(x, jax.Array) and not sharding.on_host(x)}
    if not there or not _has_room(there):
        there = {}
    here = copy_to_host({path: x for path, x in words.items() if path not in there})
    copies = [programs.copied(there)]
    for x in copies[0].values():
        x.copy_to_host_async()

    def on_host() -> dict[str, np.ndarray]:
        there = copy_to_host(copies.pop())  # and the device has the room back
        return {path: there[path] if path in there else here[path] for path in arrays}

    return on_host


def _has_room(arrays: Mapping[str, jax.Array]) -> bool:
    """Whether a second copy fits beside the most that the arrays' devices have held so far."""
    size: dict[Any, int] = {}
    for x in arrays.values():
        for part in x.addressable_shards:
            size[part.device] = size.get(part.device, 0) + part.data.nbytes

    def room(device: Any) -> int:
        memory = device.memory_stats() or {}
        return memory.get("bytes_limit", 0) - memory.get("peak_bytes_in_use", 0)

    return all(size[device] <= room(device) for device in size)


def info_of(path: str, host: Any, leaf: Any, split: list[Any] | None = None) -> dict[str, Any]:
    """What is said of an array: its digest, or, of one that was split over processes, those of its parts."""
    digest = {"crc32": crc_of(path, host)} if split is None else {"parts": split}
    info = {"dtype": host.dtype.name, "shape": list(host.shape), **digest}
    if _is_key(leaf):
        impl = str(jax.random.key_impl(leaf))
        info["key"] = {"dtype": leaf.dtype.name, "shape": list(leaf.shape), "impl": impl}
    return info


def is_intact(path: str, host: np.ndarray, info: Mapping[str, Any]) -> bool:
    """Whether an array is the one that its digest was taken of."""
    if "parts" not in info:
        return crc_of(path, host) == info["crc32"]
    return all(crc_of(path, parts.part_of(host, part)) == digest for part, digest in info["parts"])


def crc_of(path: str, host: np.ndarray) -> int:
    """32 bits that differ, nearly always, where path, dtype, shape or content do."""
    head = f"{path} {host.dtype.name} {host.shape}".encode(errors="surrogatepass")
    return crc32(host, zlib.crc32(head))


def with_key(host: np.ndarray, key: Mapping[str, Any] | None) -> Any:
    """An array, or the typed key whose words it is."""
    return host if key is None else jax.random.wrap_key_data(jnp.asarray(host), impl=key["impl"])


def _fits_jax(x: Any) -> bool:
    return isinstance(x, np.ndarray) and jax.dtypes.canonicalize_dtype(x.dtype) == x.dtype


def can_cast(saved: str, wanted: str) -> bool:
    """Whether both are floats, both integers or both complex."""
    kinds = (np.floating, np.integer, np.complexfloating)
    try:
        a, b = jnp.dtype(saved), jnp.dtype(wanted)
    except TypeError:  # a key's dtype
        return False
    return any(jnp.issubdtype(a, kind) and jnp.issubdtype(b, kind) for kind in kinds)


def converted(path: str, host: np.ndarray, dtype: str) -> np.ndarray:
    """An array in another dtype; integers that do not fit are refused."""
    if dtype == host.dtype.name or dtype.startswith("key<"):
        return host
    with np.errstate(over="ignore"):
        out = host.astype(jnp.dtype(dtype))
    if jnp.issubdtype(out.dtype, np.integer) and not np.array_equal(out.astype(host.dtype), host):
        raise CheckpointMismatchError(f"`{path}` holds {host.dtype} numbers that {dtype} cannot hold")
    return out


def placed(host: np.ndarray, key: Mapping[str, Any] | None, like: Any) -> Any:
    """An array as what stands at its place in `like`."""
    if isinstance(like, np.generic):
        return host[()]
    if isinstance(like, np.ndarray):
        return host
    if not hasattr(like, "dtype"):
        return type(like)(host.item())
    return sharding.put_like(with_key(host, key), like)
