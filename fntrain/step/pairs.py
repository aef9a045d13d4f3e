"""A loss of every pair of examples where one of every example was meant: `[B, 1] - [B]` is `[B, B]`."""

import contextlib
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.typing import Batch
from ..losses.loss import Loss

_SAID: "weakref.WeakSet[Callable[..., Any]]" = weakref.WeakSet()


def warn_of_pairs(loss_fn: Callable[..., Any], loss: Loss, batch: Batch) -> None:
    """Warn, once for a loss function, of values whose second axis is as long as the batch.

    Silent where that axis is of tokens: the loss weighs each, or the batch has it too (integers, or more than two
    axes), or one more, of which inputs and targets are made by a shift. And for one example.

    Warns:
      UserWarning: naming the function, the shape and the usual slip.
    """
    values, weighs = loss.values, loss.weights is not None and loss.weights.ndim > 1
    rows = values.shape[0] if values.ndim > 1 and not weighs else 0
    if rows < 2 or values.shape[1] != rows or loss_fn in _SAID:
        return
    leaves = [x for x in jax.tree.leaves(batch) if np.ndim(x) > 0]
    if any(np.shape(x)[0] != rows for x in leaves) or any(_has_tokens(x, rows) for x in leaves):
        return
    with contextlib.suppress(TypeError):  # what has no weak reference is said again when it is traced again
        _SAID.add(loss_fn)
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    warnings.warn(
        f"`{name}` returned values of shape {list(values.shape)} for a batch of {rows} examples: one for every pair of "
        f"examples. Was `[{rows}, 1]` taken from `[{rows}]`? Take `predictions[:, 0]`, or a loss of `fntrain.losses`, "
        f"which refuses such shapes",
        stacklevel=2,
    )


def _has_tokens(x: Any, rows: int) -> bool:
    token = np.ndim(x) > 2 or not jnp.issubdtype(x.dtype, jnp.floating)
    return np.ndim(x) > 1 and np.shape(x)[1] in (rows, rows + 1) and token
