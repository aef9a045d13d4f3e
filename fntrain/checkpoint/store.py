"""Bytes on disk: one commit by Orbax of a flat dict of arrays and a JSON document, read back by TensorStore."""

import functools
import math
import os
import threading
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._core.errors import (
    CheckpointCorruptError,
    CheckpointError,
)
from .paths import below, key_of

FORMAT = 1


META = Path("meta", "checkpoint.json")


# Orbax: one commit of a flat dict of arrays and a JSON document.


_orbax_lock = (
    threading.Lock()
)  # two saves at once, of two directories even, take each other's signals in Orbax


def orbax_save(path: Path, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> None:
    """Commit one step: arrays and document are there as a whole, or not at all."""
    import orbax.checkpoint as ocp

    handler = ocp.CompositeCheckpointHandler(
        arrays=ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False),
        meta=ocp.JsonCheckpointHandler(filename=META.name),
    )
    # new each time: a failed save must not fail the next
    with _orbax_lock, ocp.Checkpointer(handler) as checkpointer:
        args = ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(document))
        checkpointer.save(path, args=args)


def read_arrays(step: Path, infos: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    """Read arrays with TensorStore, as Orbax does; here each failure names its leaf, and no event loop is needed.

    All are read at once; each is handed out as it comes, so that the caller works on it meanwhile.
    """
    import tensorstore as ts

    def result(path: str, future: Any) -> Any:
        try:
            return future.result()
        except ValueError as error:
            raise CheckpointCorruptError(f"{step}: leaf `{below(path)}`: {reason(error)}") from error

    needed = sum(math.prod(info["shape"]) * jnp.dtype(info["dtype"]).itemsize for info in infos.values())
    if needed > _memory():
        raise CheckpointError(f"{step} needs {needed / 2**30:,.1f} GiB of memory, more than this machine has")
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{step / 'arrays'}/"}}
    context = ts.Context()
    opening = {
        path: ts.open(
            {"driver": "zarr", "kvstore": {**store, "path": f"{key_of(path)}/"}}, open=True, context=context
        )
        for path, info in infos.items()
        if 0 not in info["shape"]
    }
    arrays = {path: result(path, future) for path, future in opening.items()}
    for path, array in arrays.items():  # before memory is asked for
        if array.shape != tuple(infos[path]["shape"]) or array.dtype.name != infos[path]["dtype"]:
            raise CheckpointCorruptError(
                f"{step}: leaf `{below(path)}` is stored as {array.dtype}{array.shape}"
            )
    reading = {path: array.read() for path, array in arrays.items()}
    for path, info in infos.items():
        if path in reading:
            yield path, result(path, reading.pop(path))
        else:
            yield path, np.empty(info["shape"], jnp.dtype(info["dtype"]))


def _memory() -> float:
    """Bytes of memory of this machine, or infinity where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def reason(error: BaseException) -> str:
    """The first cause of an error, short."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@functools.cache
def version_of(package: str) -> str:
    """The version of a package that is installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
