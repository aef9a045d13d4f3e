"""What a task holds while it trains, from shapes alone: the engine's answer to `sharding.plan`."""

from functools import partial
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.check import is_function
from .._core.typing import Batch, PyTree
from ..sharding.plan import Demands, demands, shape_of
from . import gradients
from .state import TrainState, init_state
from .task import Context, Task


@demands.register
def _(task: Task, params: Any) -> Demands:
    if is_function(params):
        state = jax.eval_shape(lambda: init_state(task, params))
    else:
        state = jax.eval_shape(lambda p: init_state(task, p), jax.tree.map(shape_of, params))
    trained = tree.split(state.params)[0]
    wide = jax.tree.map(lambda x: jax.eval_shape(tree.wide, x), trained)
    return Demands(state, wide, task.microbatches, partial(_saved, task, state))


def _saved(task: Task, state: TrainState, batch: Batch) -> tuple[int, int]:
    """Bytes that the backward pass keeps: `(of the batch's making, of the parameters' alone)`."""
    trained, carried = tree.split(state.params)

    def backward(batch: Batch, trained: PyTree, carried: PyTree, state: TrainState) -> Any:
        ctx = Context(key=state.key, train=True, step=state.step, model_state=state.model_state)

        def total(trained: PyTree) -> jax.Array:
            return gradients.evaluate(task, tree.combine(trained, carried), batch, ctx, None).total

        return jax.vjp(total, trained)[1]

    # What the backward function holds are its residuals: the outputs of this program that are no inputs of it.
    program = jax.make_jaxpr(backward)(batch, trained, carried, state).jaxpr
    seen = set(program.invars[: len(jax.tree.leaves(batch))])
    for equation in program.eqns:
        if any(x in seen for x in equation.invars if not hasattr(x, "val")):
            seen.update(equation.outvars)
    inputs = {id(x) for x in (*program.invars, *program.constvars)}
    residuals = {id(x): x for x in program.outvars if not hasattr(x, "val") and id(x) not in inputs}

    def size(x: Any) -> int:
        return int(np.prod(x.aval.shape)) * x.aval.dtype.itemsize

    kept = sum(size(x) for x in residuals.values() if x in seen)
    return kept, sum(size(x) for x in residuals.values()) - kept
