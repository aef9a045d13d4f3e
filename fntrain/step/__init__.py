"""The engine: from a task, a state and a batch to the next state and its metrics."""

from . import memory as memory  # answers `sharding.plan`
