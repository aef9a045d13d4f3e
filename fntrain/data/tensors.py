"""Batches of other libraries as NumPy arrays."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.typing import Batch


def to_numpy(batch: Batch) -> Batch:
    """A batch whose leaves are NumPy arrays of its own: copies, which a loader that reuses its buffers leaves alone.

    JAX's arrays stay what they are. Tensors of torch, wherever they are, come to the host without their
    gradient; bfloat16 stays bfloat16.

    Examples:
      >>> to_numpy({"x": [1, 2]})["x"]
      [array(1), array(2)]
    """
    return jax.tree.map(_array, batch)


def _array(x: Any) -> Any:
    if isinstance(x, jax.Array):
        return x
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    if torch is None or not isinstance(x, torch.Tensor):
        return np.array(x)
    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:  # which NumPy has from JAX, and torch cannot hand over
        return x.view(torch.int16).numpy().view(jnp.bfloat16).copy()
    return x.numpy().copy()
