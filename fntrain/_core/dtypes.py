"""Which dtypes a device takes, and what to do about one that it does not."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .errors import DataError


def is_numeric(dtype: np.dtype) -> bool:
    """Whether a device takes it, in whatever byte order: bools and numbers, of at most 64 bits a part."""
    numeric = dtype == np.bool_ or jnp.issubdtype(dtype, np.number)
    return numeric and dtype.type not in (np.longdouble, np.clongdouble, np.timedelta64)  # a number to NumPy


def check_numeric(where: str, dtype: np.dtype, given: Any = None) -> None:
    """Refuse a dtype that no device takes.

    Args:
      where: the argument and the leaf, for the message.
      dtype: NumPy's.
      given: the name that the library it came from has for it, if that is another.

    Raises:
      DataError: with what to do about it.
    """
    if not is_numeric(dtype):
        shown = dtype if given is None else given
        raise DataError(f"{where} has dtype {shown}, which no device takes; {_way_out(dtype)}")


def _way_out(dtype: np.dtype) -> str:
    if dtype.names:
        return "give its fields as columns, `{name: x[name] for name in x.dtype.names}`"
    if dtype.kind in "fc":
        return f"convert it, `x.astype(np.{'float64' if dtype.kind == 'f' else 'complex128'})`"
    return {
        "U": "encode it as numbers, `np.unique(x, return_inverse=True)[1]`",
        "S": "encode it as numbers, `np.unique(x, return_inverse=True)[1]`",
        "M": "encode it as numbers, `(x - x.min()) / np.timedelta64(1, 's')`",
        "m": "encode it as numbers, `x / np.timedelta64(1, 's')`",
        "O": "encode it as numbers: `np.unique(x, return_inverse=True)[1]` of text, `x.astype(np.float32)` of numbers",
    }.get(dtype.kind, "encode it as numbers")
