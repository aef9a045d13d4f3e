"""Meshes, which axis of them each array is split over, and processes that act as one. The engine is JAX's own."""

from .._core.public import surface
from .mesh import data_axis as data_axis, mesh as mesh
from .place import (
    on_host as on_host,
    pad_batch as pad_batch,
    put_like as put_like,
    put_rows as put_rows,
    replicate as replicate,
    shard_batch as shard_batch,
)
from .plan import Plan as Plan, plan as plan
from .processes import (
    combined as combined,
    initialize as initialize,
    largest as largest,
    meet as meet,
    put as put,
    to_host as to_host,
)
from .report import report as report
from .rules import Rules as Rules, fsdp as fsdp, specs as specs, state_shardings as state_shardings

__all__ = [
    "Plan",
    "Rules",
    "combined",
    "data_axis",
    "fsdp",
    "initialize",
    "largest",
    "meet",
    "mesh",
    "on_host",
    "pad_batch",
    "plan",
    "put",
    "put_like",
    "put_rows",
    "replicate",
    "report",
    "shard_batch",
    "specs",
    "state_shardings",
    "to_host",
]

surface(__name__)
