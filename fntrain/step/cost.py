"""What a step costs, as its program says it: no clock, no run, no compilation."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.extend import core

from .. import tree
from .._core.typing import Batch, PyTree
from ..sharding import manual
from . import gradients, members, programs
from .state import TrainState
from .task import Task


class Cost(NamedTuple):
    """Operations and traffic of one step."""

    flops: int  # of matrix products and convolutions, each `cond` by its dearest branch
    bytes: int  # of the state, read and written, and of the batch
    least_flops: int = 0  # each `cond` by its cheapest branch: what every step does for certain
    values: int | None = None  # of the loss, for a row of the batch; None where that has none of its own

    def seconds(self, device: Any) -> float:
        """The least time that a device of this kind takes for it."""
        flops, traffic = _PEAKS.get(device.platform, _PEAKS["gpu"])
        return max(self.flops / flops, self.bytes / traffic)


# Operations and bytes a second, in orders of magnitude: what matters is whether a step takes microseconds.
_PEAKS = {"cpu": (5e10, 1e10), "gpu": (1e14, 2e12), "tpu": (1e14, 1e12)}


def cost_of(task: Task, state: TrainState, batch: Batch, weight: Any) -> Cost:
    """The cost of `train_step` on such a batch (arrays or shapes), from the trace that compiling it takes too."""
    with manual.mesh_context(task.axis_name, state.step):
        program = programs.one_step.trace(task, state, batch, weight).jaxpr.jaxpr
    traffic = 2 * tree.nbytes(_changed(state)) + tree.nbytes(batch)
    one_run = members.count(state) is None  # of several, the axis of rows may be anywhere
    return Cost(
        products(program), traffic, products(program, of_branches=min), _values(program) if one_run else None
    )


def _values(program: core.Jaxpr) -> int | None:
    """How many values the loss has for a row: `[B, …]` is named in the trace, maybe of a micro-batch, or of a shard."""
    for equation in program.eqns:
        if equation.primitive.name == "name" and equation.params["name"] == gradients.VALUES:
            shape = getattr(equation.outvars[0].aval, "shape", ())
            return math.prod(shape[1:]) if shape else None
        for inner in _programs(equation.params):
            if (found := _values(inner)) is not None:
                return found
    return None


def _changed(state: TrainState) -> PyTree:
    """What a step writes: all but the key."""
    return state.step, state.updates, state.params, state.opt_state, state.model_state


def products(program: core.Jaxpr, of_branches: Callable[..., int] = max) -> int:
    """Floating-point operations of the matrix products and convolutions of a program.

    Of the branches of a `cond` one runs: which to count, `of_branches` says, the dearest or the cheapest.
    """
    total: int = 0
    for equation in program.eqns:
        shapes: list[Any] = [getattr(x.aval, "shape", ()) for x in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[0][i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"]
            channels = shapes[1][numbers.rhs_spec[0]]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[1]) // channels
        inner = [products(p, of_branches) for p in _programs(equation.params)]
        if equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inner)
        elif equation.primitive.name == "cond":
            total += of_branches(inner, default=0)
        else:
            total += sum(inner)
    return total


def _programs(params: Mapping[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if isinstance(x, core.ClosedJaxpr):
                found.append(x.jaxpr)
            elif isinstance(x, core.Jaxpr):
                found.append(x)
    return found
