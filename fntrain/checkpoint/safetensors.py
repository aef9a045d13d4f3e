"""One file of weights: written and read as safetensors, for who wants the parameters and nothing else."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core import check
from .._core.digest import sha256
from .._core.errors import CheckpointCorruptError, CheckpointError, ConfigError
from .._core.files import replacing
from .._core.typing import Params, PyTree
from ..step.state import TrainState
from .fitting import fitted
from .leaves import copy_to_host, crc_of, info_of, on_device
from .pack import as_arrays, canonical, pack, unpack
from .paths import below
from .store import FORMAT, reason

# The format's names of dtypes.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}


def export(state: TrainState | PyTree, file: str | os.PathLike[str]) -> None:
    """Write parameters to one safetensors file, replacing it as a whole.

    Arrays stand under their paths (`layers/0/kernel`) in their own dtypes, bfloat16 included, for any program
    that reads safetensors. The header also holds the tree's structure and a digest of every array, by which `load`
    gives the same tree back, verified.

    Args:
      state: a TrainState, of which the parameters are taken, or any tree of arrays.
      file: the file; its directory is made.

    Raises:
      ConfigError: if a leaf cannot be stored, two have the same path, or a TrainState has a `model_state`, which
        its parameters alone would lose; or if safetensors is not installed.
      CheckpointError: if the file cannot be written.

    Examples:
      >>> import tempfile, pathlib, jax.numpy as jnp
      >>> file = pathlib.Path(tempfile.mkdtemp(), "model.safetensors")
      >>> params = {"layers": [{"w": jnp.ones((2, 2), jnp.bfloat16)}, {"w": jnp.zeros(2)}]}
      >>> export(params, file)
      >>> load(file)["layers"][0]["w"].dtype.name
      'bfloat16'

    References:
      The safetensors format, https://github.com/huggingface/safetensors.
    """
    save_file = _library().numpy.save_file
    file = check.path("file", file)
    if isinstance(state, TrainState):
        if jax.tree.leaves(state.model_state):
            raise ConfigError(
                "`state` has a `model_state`, which its parameters alone would lose: "
                'export({"params": state.params, "model_state": state.model_state}, file)'
            )
        state = state.params
    arrays: dict[str, Any] = {}
    packed = pack(as_arrays(state), "root", arrays)
    for path, x in arrays.items():
        name = "uint32" if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.dtype(x.dtype).name
        if name not in _DTYPES.values():
            raise ConfigError(
                f"`state` leaf `{below(path)}` has dtype {name}, which safetensors has no name for"
            )
        if below(path) == "__metadata__":
            raise ConfigError("`state` leaf `__metadata__` has a name that safetensors keeps for itself")
    host = copy_to_host(arrays)
    infos = {path: info_of(path, x, arrays[path]) for path, x in host.items()}
    text = canonical({"format": FORMAT, "tree": packed, "arrays": infos})
    header = {"fntrain": text, "fntrain_sha256": sha256(text)}
    try:
        with replacing(file) as temporary:
            save_file({_name(path): np.asarray(x, order="C") for path, x in host.items()}, temporary, header)
    except UnicodeEncodeError as error:
        raise ConfigError(f"`state` has a leaf whose name is no text: {error.object!r}") from None
    except Exception as error:  # safetensors has an error of its own for all that goes wrong
        raise CheckpointError(f"cannot write {file}: {reason(error)}") from error


def load(file: str | os.PathLike[str], like: PyTree | None = None) -> Params:
    """Read the parameters in a safetensors file.

    Nothing in the file is ever run or unpickled.

    Args:
      file: what `export` wrote, or any safetensors file.
      like: a tree to restore into, strictly by path: structure, shapes and dtypes are compared, and each leaf
        comes back as what it is there, with its sharding. None gives the tree that was exported, as dicts, lists
        and tuples; of another program's file, a flat dict by name.

    Returns:
      The parameters; without `like`, as JAX arrays, or NumPy arrays of a dtype JAX has switched off.

    Raises:
      CheckpointError: if there is no such file, it is no safetensors file, or it is of a newer format.
      CheckpointCorruptError: if a digest disagrees.
      CheckpointMismatchError: if it does not fit `like`, with a table of the differences.
      ConfigError: if safetensors is not installed.
    """
    library = _library()
    file = check.path("file", file)
    if isinstance(like, TrainState):
        raise ConfigError("`like` must be parameters: pass `state.params`")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    try:
        found = {name: _array(entry) for name, entry in library.deserialize(content)}
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__") or {}
    except Exception as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file: {reason(error)}; no other kind is read, and nothing unpickled"
        ) from error
    packed, infos = _document(file, header, found)
    arrays = {path: found[_name(path)] for path in infos}
    if like is not None:
        return fitted(like, {below(path): (x, infos[path]) for path, x in arrays.items()}, str(file))
    return on_device(unpack(packed, infos, arrays))


def _document(
    file: Path, header: dict[str, str], found: dict[str, np.ndarray]
) -> tuple[Any, dict[str, dict[str, Any]]]:
    """(tree, infos) of what was read, verified; another program's file is a flat dict."""
    if "fntrain" not in header:
        packed = {"$dict": [[name, {"$array": f"root/{name}"}] for name in found]}
        return packed, {
            f"root/{n}": {"dtype": x.dtype.name, "shape": list(x.shape)} for n, x in found.items()
        }
    text = header["fntrain"]
    if sha256(text) != header.get("fntrain_sha256"):
        raise CheckpointCorruptError(f"{file}: the header is damaged")
    document = json.loads(text)
    if document["format"] > FORMAT:
        raise CheckpointError(f"{file} has format {document['format']}; this version reads up to {FORMAT}")
    infos = document["arrays"]
    if {_name(path) for path in infos} != found.keys():
        raise CheckpointCorruptError(f"{file}: the header is damaged")
    bad = [below(path) for path, info in infos.items() if crc_of(path, found[_name(path)]) != info["crc32"]]
    if bad:
        raise CheckpointCorruptError(f"{file}: the digest disagrees for {tree.some(bad)}")
    return document["tree"], infos


def _name(path: str) -> str:
    """An array's name in the file; a tree that is one array has no path."""
    return below(path) or "array"


def _array(entry: dict[str, Any]) -> np.ndarray:
    dtype = jnp.dtype(_DTYPES[entry["dtype"]])
    if 0 in entry["shape"]:  # of an empty buffer NumPy makes no array
        return np.empty(entry["shape"], dtype)
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ConfigError('safetensors is not installed: pip install "fntrain[export]"') from None
    return safetensors
