"""Haiku: transformed functions."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from .._core.errors import ConfigError
from .._core.typing import Params, PyTree
from ..step.state import TrainState, Variables
from ..step.task import Context
from .model import Model, flags, in_evaluation, numbers, warn_of_padding, warn_of_training


class Haiku(Model):
    """What `haiku` makes."""

    def __init__(self, transformed: Any, example: tuple[Any, ...]):
        self._transformed = transformed
        self._stateful = "state" in inspect.signature(transformed.apply).parameters
        self._example = tuple(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), example)
        )
        self._flags = functools.partial(flags, transformed.init)

    def _parts(self) -> tuple[Any, ...]:
        shapes = tuple((str(x.dtype), x.shape) for x in jax.tree.leaves(self._example))
        return (self._transformed.apply, shapes)

    def __repr__(self) -> str:
        return "haiku(…)"

    def __reduce__(self) -> Any:
        return haiku, (self._transformed, *self._example)

    def init(self, key: jax.Array) -> Variables:
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._example)
        made = self._transformed.init(key, *inputs, **self._flags(True))
        params, state = made if self._stateful else (made, None)
        if not jax.tree.leaves(params):
            raise ConfigError("`transformed` must have parameters to train, it has none")
        return Variables(params, state or None)

    def apply(self, params: Params, *inputs: Any, ctx: Context) -> tuple[Any, PyTree]:
        call, more = self._transformed.apply, self._flags(ctx.train)
        if not (ctx.train or more):
            self._check_evaluated(params, inputs, ctx)
        if not self._stateful:
            return call(params, ctx.stream("haiku"), *inputs, **more), ctx.model_state
        if any("batch_norm" in name for name in ctx.model_state or {}):
            warn_of_padding("Haiku", "BatchNorm", ctx)
        out, after = call(params, ctx.model_state or {}, ctx.stream("haiku"), *inputs, **more)
        return out, after if ctx.train and ctx.model_state is not None else ctx.model_state

    def _check_evaluated(self, params: Params, inputs: tuple[Any, ...], ctx: Context) -> None:
        """A function that is not told whether it is training, and draws: it drops in evaluation too."""
        state = (ctx.model_state or {},) if self._stateful else ()
        try:
            jax.eval_shape(lambda: self._transformed.apply(params, *state, None, *inputs))
        except ValueError:  # it asks for a key, and there is none
            warn_of_training(
                "Haiku", "the function draws", "give it an argument `is_training`, and drop where it is True"
            )

    def module(self, state: TrainState | Variables) -> Any:
        params, kept = numbers(state)
        ctx = in_evaluation(kept)
        return lambda *inputs: self.apply(params, *inputs, ctx=ctx)[0]


def haiku(transformed: Any, *example: Any) -> Haiku:
    """A Haiku function, transformed with or without state, as a model.

    Keys of dropout come from the step's context; a function with an argument `is_training` (or `train`) is given it.

    Args:
      transformed: of `hk.transform` or `hk.transform_with_state`.
      *example: inputs, or their `jax.ShapeDtypeStruct`; only their types count.

    Raises:
      ConfigError: if it is not transformed, or `example` is missing.

    Examples:
      >>> import fntrain as ft, haiku as hk, jax.numpy as jnp
      >>> model = ft.models.haiku(hk.transform(lambda x: hk.Linear(1)(x)), jnp.ones((1, 3)))
      >>> task = ft.supervised(model, loss="mse", optimizer="adam")
      >>> state = ft.init_state(task, model.init, key=0)
      >>> ft.tree.paths(state.params)
      ['linear/b', 'linear/w']
    """
    if not (callable(getattr(transformed, "init", None)) and callable(getattr(transformed, "apply", None))):
        raise ConfigError(
            f"`transformed` must be what `hk.transform(function)` returns, got {type(transformed).__name__}"
        )
    if not example:
        raise ConfigError("`haiku` needs an example of each input, `haiku(transformed, jnp.ones((1, 64)))`")
    return Haiku(transformed, example)
