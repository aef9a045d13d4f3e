"""Meshes, which axis of them each array is split over, and processes that act as one. The engine is JAX's own."""

from ._plan import Plan as Plan, plan as plan
from ._processes import (
    combined as combined,
    initialize as initialize,
    largest as largest,
    meet as meet,
    put as put,
    to_host as to_host,
)
from ._sharding import (
    Rules as Rules,
    data_axis as data_axis,
    fsdp as fsdp,
    mesh as mesh,
    pad_batch as pad_batch,
    put_rows as put_rows,
    replicate as replicate,
    report as report,
    shard_batch as shard_batch,
    specs as specs,
    state_shardings as state_shardings,
)
