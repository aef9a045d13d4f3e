"""Model: a module of somebody's library as two pure functions, and the module back."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._core.errors import ConfigError
from .._core.typing import Params, PyTree
from .._core.value import Value
from ..step.state import TrainState, Variables, check_state
from ..step.task import Context


class Model(Value):
    """A model as a task wants it: numbers in trees, and functions of them.

    What a library keeps inside of its modules stands in the TrainState instead: trained arrays in `params` under the
    module's own names (`conv/kernel`), batch statistics and the like in `model_state`. Random keys are kept nowhere:
    each stream that the module asks for is made from `ctx`, so that dropout differs by step, micro-batch and device,
    is the same when a step is taken again, and is off in evaluation.

    Two models are equal if they are the same program; the numbers belong to the state.

    Attributes:
      init: `key -> Variables`, what `init_state(task, model.init)` takes; under a mesh it is born sharded.
      apply: `(params, *inputs, ctx) -> (outputs, model_state)`; `ctx` is the loss's, with the state to start from.
      module: `state -> module`, the library's own, in evaluation mode, with copies of the numbers.
    """

    def init(self, key: jax.Array) -> Variables:
        """Parameters and mutable state, made from a key."""
        raise NotImplementedError

    def apply(self, params: Params, *inputs: Any, ctx: Context) -> tuple[Any, PyTree]:
        """The outputs, and the mutable state after them: `ctx.model_state` itself in evaluation."""
        raise NotImplementedError

    def module(self, state: TrainState | Variables) -> Any:
        """The library's own module, in evaluation mode; its arrays are copies, which no step consumes."""
        raise NotImplementedError


def flags(called: Callable[..., Any], train: bool) -> dict[str, bool]:
    """The arguments of a module's call that say whether it is training, by the names in use."""
    known = {
        "train": train,
        "training": train,
        "is_training": train,
        "deterministic": not train,
        "inference": not train,
        "use_running_average": not train,
    }
    try:
        taken = inspect.signature(called).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in known.items() if name in taken}


def in_evaluation(model_state: PyTree) -> Context:
    """The context of a module that is called by itself, outside of any step."""
    return Context(jax.random.key(0), False, jnp.zeros((), jnp.int32), model_state)


def rows_to_count(ctx: Context, x: Any) -> jax.Array | None:
    """Which rows may enter batch statistics, to be broadcast against `x`; None where all may.

    A part of a batch that is padding altogether counts as it stands: what comes out of it is thrown away, but has to be
    a number, since gradients multiply it by zero.
    """
    if ctx.weight is None or jnp.ndim(x) < 2 or jnp.shape(x)[0] != ctx.weight.shape[0]:
        return None
    rows = ctx.weight != 0
    rows = rows | ~jnp.any(rows)
    return rows.reshape(rows.shape + (1,) * (jnp.ndim(x) - 1))


def warn_of_padding(library: str, layer: str, ctx: Context) -> None:
    """Say that a layer takes no mask, where a step has rows of weight zero."""
    if ctx.train and ctx.weight is not None:
        warnings.warn(
            f"{library}'s {layer} takes no mask, so that rows of padding enter its statistics: use a `batch_size` that "
            f"divides the data, `drop_last=True`, or a norm without batch statistics",
            stacklevel=2,
        )


def warn_of_training(library: str, what: str, fix: str) -> None:
    """Say that a module goes on as in training where it is evaluated."""
    warnings.warn(
        f"{library}: {what} in evaluation as in training, so what is measured is not the model that is kept: {fix}",
        stacklevel=2,
    )


def nested(items: Iterable[tuple[tuple[Any, ...], Any]]) -> dict[Any, Any]:
    """A tree of dicts from `(path, leaf)` pairs."""
    out: dict[Any, Any] = {}
    for path, x in items:
        node = out
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = x
    return out


def at(tree: Any, path: tuple[Any, ...], what: str) -> Any:
    """The leaf at a path, or an error that names it."""
    node = tree
    for i, name in enumerate(path):
        if not isinstance(node, Mapping) or name not in node:
            there = ", ".join(map(str, node)) if isinstance(node, Mapping) else type(node).__name__
            raise ConfigError(
                f"`{what}` has no `{'/'.join(map(str, path[: i + 1]))}`, which the model needs (there is {there}): "
                f"is this the state of another model? `init_state(task, model.init)` makes its own"
            )
        node = node[name]
    return node


def numbers(state: TrainState | Variables) -> Variables:
    """Parameters and model state as arrays of their own: what a user holds is not what the next step consumes."""
    if not isinstance(state, TrainState | Variables):
        raise ConfigError(
            f"`state` must be a TrainState or Variables, got {type(state).__name__}; give what `fit` or `train_step` "
            f"has returned or, of parameters, `model.module(fntrain.models.Variables(params, model_state))`"
        )
    if isinstance(state, TrainState):
        check_state(state, "module")
    return jax.tree.map(jnp.copy, Variables(state.params, state.model_state))
