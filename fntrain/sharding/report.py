"""What lies where: a table of leaf, shape, spec and bytes."""

import re

import numpy as np

from .. import tree
from .._core.typing import PyTree


def report(state: PyTree) -> str:
    """A table of leaf, shape, spec and bytes per device, with the total."""
    rows = [("leaf", "shape", "spec", "bytes/device")]
    total = 0
    for path, x in tree.items(state):
        sharding = x.sharding
        here = int(np.prod(sharding.shard_shape(x.shape))) * x.dtype.itemsize
        total += here
        spec = getattr(sharding, "spec", "one device")
        rows.append(
            (path, f"{x.dtype.name}{list(x.shape)}", re.sub("PartitionSpec", "P", str(spec)), f"{here:,}")
        )
    rows.append(("total", "", "", f"{total:,}"))
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(r[:3], widths)), r[3].rjust(widths[3])]) for r in rows
    )
