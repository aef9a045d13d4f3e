"""Several processes as one: joining them, handing them arrays, and reading what is spread over them."""

import atexit
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from .._core import check
from .._core.errors import ConfigError
from .._core.typing import PyTree


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    local_device_ids: int | Sequence[int] | None = None,
    *,
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 100,
) -> None:
    """Join the processes of a run into one, before anything else touches a device.

    Afterwards `jax.devices()` and every mesh span all processes. On a cluster that JAX knows (Slurm, Open MPI, a TPU
    pod, Kubernetes) every argument is found there; elsewhere, and for several processes on one machine, the first
    three are given. Calling it again is harmless; so is one process that says so, `num_processes=1`.

    Args:
      coordinator_address: `"host:port"` of process 0, the same on every process. On the loopback interface the
        coordinator listens there alone; on any other it listens on all interfaces, unauthenticated.
      num_processes: how many processes there are.
      process_id: which one this is, from 0.
      local_device_ids: the devices of this machine that are this process's; None is all.
      initialization_timeout: seconds to wait for the other processes to come up.
      heartbeat_timeout: seconds after which a process that has died takes the others down, with a message that
        names it, instead of leaving them waiting for ever. One that ends by an exception dies at once, once its
        traceback is printed, and does not wait for the others to end too.

    Raises:
      ConfigError: if the arguments do not fit each other, no cluster is found that would say what was not given,
        or JAX has started its devices already.

    Examples:
      >>> import fntrain as ft
      >>> ft.sharding.initialize(num_processes=1)

    References:
      `jax.distributed.initialize`, which does the work.
    """
    if num_processes is not None:
        check.integer("num_processes", num_processes, at_least=1)
    if process_id is not None:
        check.integer("process_id", process_id, at_least=0)
        if num_processes is not None and process_id >= num_processes:
            raise ConfigError(
                f"`process_id` counts from 0 and must be below {num_processes}, got {process_id}"
            )
    for name, value in (
        ("initialization_timeout", initialization_timeout),
        ("heartbeat_timeout", heartbeat_timeout),
    ):
        check.integer(name, value, at_least=1)
    if coordinator_address is not None:
        _check_address(coordinator_address)
    if num_processes == 1:
        return
    if jax.distributed.is_initialized():
        for name, value, now in (
            ("num_processes", num_processes, jax.process_count()),
            ("process_id", process_id, jax.process_index()),
        ):
            if value is not None and value != now:
                raise ConfigError(f"`{name}` is {now} since the first call of `initialize`, got {value}")
        return
    options: dict[str, Any] = {}
    if coordinator_address is not None and _is_loopback(coordinator_address):
        options["coordinator_bind_address"] = os.environ.get(
            "JAX_COORDINATOR_BIND_ADDRESS", coordinator_address
        )
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            local_device_ids,
            initialization_timeout=initialization_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            **options,
        )
    except (ValueError, TypeError) as error:
        # JAX found no cluster to ask, or one that does not say everything.
        given = dict(
            coordinator_address=coordinator_address, num_processes=num_processes, process_id=process_id
        )
        missing = " and ".join(f"`{name}`" for name, value in given.items() if value is None)
        raise ConfigError(
            f"no cluster was found that says {missing or 'how its processes are joined'} ({error}); give all three, "
            f'`initialize("host:1234", num_processes=2, process_id=0)`, or leave the call out for one process'
        ) from error
    except RuntimeError as error:
        if "before any JAX" not in str(error):
            raise
        raise ConfigError(
            "`initialize` must be called first: something has started JAX's devices already (an array made, "
            "`jax.devices()`); move the call to the top of the program"
        ) from error
    _die_of_exceptions()


def _die_of_exceptions() -> None:
    """After an exception, leave without JAX's farewell, in which the living would be waited for, and they for us."""
    failed, show = [], sys.excepthook

    def note(*exception: Any) -> None:
        failed.append(exception)
        show(*exception)

    def leave() -> None:
        if failed and not hasattr(sys, "ps1"):  # at a prompt, life goes on after an exception
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    sys.excepthook = note
    atexit.register(leave)  # after JAX registered its own, so that it runs before


def _check_address(address: Any) -> None:
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(f'`coordinator_address` must be "host:port", got {address!r}')


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0]
    return host in ("localhost", "[::1]") or host.startswith("127.")


def to_host(arrays: PyTree) -> PyTree:
    """NumPy arrays of the whole values, on every process, wherever they live.

    An array that every process has whole is read there; one that is split over processes is gathered, so that
    every process must make the call. PRNG keys come as their raw words.

    Args:
      arrays: a tree of arrays.

    Returns:
      The tree, with NumPy arrays for leaves.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.sharding.to_host({"w": jnp.arange(3)})
      {'w': array([0, 1, 2], dtype=int32)}
    """

    def local(x: Any) -> Any:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        return x.addressable_data(0) if x.is_fully_replicated else _whole(x)

    return jax.tree.map(np.asarray, jax.device_get(jax.tree.map(local, arrays)))


def _whole(x: jax.Array) -> Any:
    return multihost_utils.process_allgather(x, tiled=True)


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array, the same on every process, with this sharding: each process fills its own devices."""
    spread = isinstance(x, jax.Array) and not x.is_fully_addressable
    if spread or sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def combined(values: np.ndarray) -> np.ndarray:
    """The largest of the processes' values, one by one; all processes must ask, and have each other's answer then."""
    if jax.process_count() == 1:
        return values
    return np.max(multihost_utils.process_allgather(values), axis=0)


def largest(value: int) -> int:
    """The largest of the processes' integers, as `combined`."""
    return int(combined(np.array([value], np.int32))[0])


def meet() -> None:
    """Wait until every process is here."""
    largest(0)
