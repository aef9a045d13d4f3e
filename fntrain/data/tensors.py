"""The columns of other libraries as arrays that are indexed by position: what data is at the door, and never after.

Rows are drawn by position. What is known to be indexed so stays as it is, on a disk too; all else is made an array
here, or refused by name.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core.check import is_concrete
from .._core.dtypes import check_numeric
from .._core.errors import DataError
from .._core.typing import Batch, PyTree

_SCALARS = bool | int | float | complex | str | bytes | np.generic


class Stored:
    """An array in a file, of h5py or zarr, say, whose rows are read when they are asked for, in any order."""

    def __init__(self, array: Any):
        self.array = array
        self.shape = tuple(array.shape)
        self.ndim = len(self.shape)
        self.dtype = np.dtype(array.dtype)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        # In the file's order and each row once, which is all that h5py takes, and the fastest for others.
        ordered, places = np.unique(rows, return_inverse=True)
        if len(ordered) and ordered[-1] - ordered[0] + 1 == len(ordered):
            read = self.array[int(ordered[0]) : int(ordered[-1]) + 1]
        else:
            read = getattr(self.array, "oindex", self.array)[ordered]
        return np.asarray(read)[places.reshape(-1)]


def columns(data: PyTree, name: str, *, numeric: bool = True) -> PyTree:
    """`data` with arrays for leaves, NumPy's, JAX's or `Stored`, which are indexed by position.

    They hold numbers, unless `numeric` is False. A list of numbers, or of lists of them, is a column; a mapping of
    another library is a dict.

    Raises:
      DataError: naming the leaf that is none, and what to do about it.
    """

    def one(path: Any, x: Any) -> Any:
        path_name = tree.path_name(path)
        return column(x, f"`{name}` leaf `{path_name}`" if path_name else f"`{name}`", numeric)

    return jax.tree_util.tree_map_with_path(one, _opened(data), is_leaf=is_leaf)


def is_column(x: Any) -> bool:
    """Whether this is an array, or what a library has in the place of one: a frame, a series, a tensor."""
    return any(hasattr(x, name) for name in ("dtype", "__array__", "__dlpack__", "todense"))


def to_numpy(batch: Batch, name: str = "batch") -> Batch:
    """A batch whose leaves are NumPy arrays of its own: copies, which a loader that reuses its buffers leaves alone.

    JAX's arrays stay what they are. Tensors of torch, wherever they are, come to the host without their
    gradient; bfloat16 stays bfloat16.

    Raises:
      DataError: naming the leaf that is no array of numbers.

    Examples:
      >>> to_numpy({"x": [1, 2]})["x"]
      array([1, 2])
    """
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else np.array(at(x)), columns(batch, name))


def at(x: Any, rows: Any = None) -> Any:
    """The rows of a column at some positions, None for all, as an array in the machine's byte order."""
    if isinstance(x, Stored) and rows is None:
        rows = np.arange(x.shape[0])
    x = np.asarray(x if rows is None else x[rows])
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def column(x: Any, where: str, numeric: bool = True) -> Any:
    """One leaf as an array that is indexed by position; `where` names it in messages."""
    array, given = _array(x, where)
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.extended):
        raise DataError(
            f"{where} holds PRNG keys: a loss has its own, `ctx.key`; or give `jax.random.key_data(x)`"
        )
    if array.dtype == object and array.ndim == 0:
        raise DataError(f"{where} must be an array of numbers, got {type(x).__name__}")
    if numeric:
        check_numeric(where, np.dtype(array.dtype), given)
    return array


def _array(x: Any, where: str) -> tuple[Any, Any]:
    """The leaf as an array, and the name that its own library has for its dtype, if that is another."""
    if isinstance(x, jax.Array):
        if not is_concrete(x) or not x.is_deleted():
            return x, None
        raise DataError(f"{where} is an array whose memory was given to a step (donated); keep a copy of it")
    if isinstance(x, np.ma.MaskedArray):
        _refuse_missing(int(np.ma.count_masked(x)), where, "`x.filled(value)`")
        return np.asarray(x.data), None
    if isinstance(x, np.ndarray):  # a map of a file stays one
        return x if type(x) in (np.ndarray, np.memmap) else np.asarray(x), None
    if isinstance(x, Stored):
        return x, None
    if hasattr(x, "todense"):
        raise DataError(
            f"{where} is sparse, {type(x).__name__}, and a batch is dense: give `x.toarray()` (`todense()`), or "
            f"batches of it from a function `epoch -> iterable`"
        )
    try:
        return _of_others(x, where)
    except DataError:
        raise
    except Exception as error:  # whatever a library raises in a conversion that it does not have
        rows = "; its rows differ in length: pad them to one" if isinstance(x, list) else ""
        raise DataError(f"{where}: no array could be made of {type(x).__name__}{rows} ({error})") from error


def _of_others(x: Any, where: str) -> tuple[Any, Any]:
    torch: Any = sys.modules.get("torch")  # who has a tensor has imported it
    if torch is not None and isinstance(x, torch.Tensor):
        return _of_torch(torch, x, where), None
    if hasattr(x, "__array__") and hasattr(x, "columns") and not hasattr(x, "dtype"):
        return _of_frame(x, where), None
    if hasattr(x, "chunks") and hasattr(x, "dtype") and hasattr(x, "shape"):  # h5py, zarr and their like
        return Stored(x), None
    if hasattr(x, "__array__"):
        return _of_series(x, where)
    if hasattr(x, "__dlpack__"):
        return np.from_dlpack(x), None
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        # A slice goes by position wherever there is one; a list of numbers may mean labels.
        return _slice(x, where), None
    return np.asarray(x), None


def _of_series(x: Any, where: str) -> tuple[np.ndarray, Any]:
    """By its values in their order: a series of pandas is indexed by labels, which is why it does not stay one."""
    dtype = getattr(x, "dtype", None)
    name = None if isinstance(dtype, np.dtype) else dtype
    if str(name).lower().startswith(("category", "categorical", "enum")):
        raise DataError(
            f"{where} has dtype {name}: give its codes (pandas `x.cat.codes`, polars `x.to_physical()`)"
        )
    missing = getattr(x, "null_count", 0)
    missing = missing() if callable(missing) else missing
    if name is not None and hasattr(x, "isna"):
        missing = int(np.sum(np.asarray(x.isna())))
    _refuse_missing(int(missing), where, "`fillna`, `fill_null`")
    array = np.asarray(x)
    if array.dtype == object and name is not None and hasattr(x, "to_numpy"):
        array = x.to_numpy()  # which some libraries do better
    return array, name


def _of_frame(x: Any, where: str) -> np.ndarray:
    """A frame as the matrix of its columns."""
    names = list(x.columns)
    one = (lambda i: x.iloc[:, i]) if hasattr(x, "iloc") else (lambda i: x[:, i])
    parts = [at(column(one(i), f"{where} column {name!r}")) for i, name in enumerate(names)]
    if not parts:
        raise DataError(f"{where} is a frame without columns")
    return np.stack(parts, axis=1)


def _refuse_missing(count: int, where: str, way: str) -> None:
    if count:
        raise DataError(
            f"{where} marks {count} values as missing, which an array cannot: fill them ({way}; NaN where they are to "
            f"stay visible), and give the marks as a column or as weights if the loss needs them"
        )


def _of_torch(torch: Any, x: Any, where: str) -> np.ndarray:
    if x.is_nested:
        raise DataError(
            f"{where} is a nested tensor, whose rows differ in length: give `x.to_padded_tensor(0)`, and mark what is "
            f"padding with weights in the loss"
        )
    if x.layout != torch.strided:
        raise DataError(f"{where} has the layout {x.layout}, and a batch is dense: give `x.to_dense()`")
    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:  # which NumPy has from JAX, and torch cannot hand over
        return x.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
    return x.resolve_conj().resolve_neg().numpy()


def _slice(x: Any, where: str) -> np.ndarray:
    rows = x.shape[0]
    read = x[0:rows]
    if not isinstance(read, np.ndarray) or read.shape != tuple(x.shape):
        raise DataError(
            f"{where} is a {type(x).__name__}, of which it is not known that it is indexed by position: give an array "
            f"(`np.asarray(x)`)"
        )
    return read


def _opened(data: Any) -> Any:
    """Mappings that JAX does not look into (an `.npz`, an h5py file) as dicts."""

    def one(x: Any) -> Any:
        return {k: _opened(v) for k, v in x.items()} if isinstance(x, Mapping) else x

    return jax.tree.map(one, data, is_leaf=is_leaf)


def is_leaf(x: Any) -> bool:
    """Where a tree of data ends here, and for JAX does not: at a sparse matrix, a list of numbers, an iterator."""
    return hasattr(x, "todense") or isinstance(x, Iterator) or is_rows(x)


def is_rows(x: Any) -> bool:
    """Whether this is a column as a list: of numbers or text, or of lists of them."""
    return isinstance(x, list) and (_are_scalars(x) or _are_scalars(jax.tree.leaves(x)))


def _are_scalars(values: list[Any]) -> bool:
    kinds = set(map(type, values))
    return bool(kinds) and all(issubclass(kind, _SCALARS) for kind in kinds)
