"""A model that is a function already."""

import inspect
from collections.abc import Callable
from typing import Any

import jax

from .._core import check
from .._core.typing import Params
from .._core.value import factory
from ..step.state import TrainState, Variables
from ..step.task import Context
from .model import Model, in_evaluation, numbers


class Plain(Model):
    """What `plain` makes."""

    def __init__(self, init: Callable[..., Any], apply: Callable[..., Any]):
        self._init, self._apply = init, apply
        names = inspect.signature(apply).parameters.values()
        self._takes_ctx = any(p.name == "ctx" or p.kind is p.VAR_KEYWORD for p in names)

    def _parts(self) -> tuple[Any, ...]:
        return self._init, self._apply

    def init(self, key: jax.Array) -> Variables:
        made = self._init(key)
        return made if isinstance(made, Variables) else Variables(made, None)

    def apply(self, params: Params, *inputs: Any, ctx: Context) -> tuple[Any, Any]:
        out = self._apply(params, *inputs, ctx=ctx) if self._takes_ctx else self._apply(params, *inputs)
        if ctx.model_state is None:
            return out, None
        outputs, model_state = out
        return outputs, model_state if ctx.train else ctx.model_state

    def module(self, state: TrainState | Variables) -> Callable[..., Any]:
        variables = numbers(state)
        ctx = in_evaluation(variables.model_state)
        return lambda *inputs: self.apply(variables.params, *inputs, ctx=ctx)[0]


@factory(Plain)
def plain(init: Callable[[jax.Array], Any], apply: Callable[..., Any]):
    """A model of two functions of your own.

    Args:
      init: `key -> params`, or `key -> models.Variables(params, model_state)`.
      apply: `(params, *inputs) -> outputs`, with a keyword `ctx` if it wants one (`ctx.train`,
        `ctx.stream("dropout")`); with a model state, `-> (outputs, model_state)`.

    Raises:
      ConfigError: if one of them is no function.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> line = ft.models.plain(lambda key: {"w": jnp.ones(2)}, lambda params, x: x @ params["w"])
      >>> task = ft.supervised(line, loss="mse", optimizer="sgd")
      >>> state = ft.init_state(task, line.init)
      >>> line.module(state)(jnp.ones((1, 2))).tolist()
      [2.0]
    """
    check.function("init", init, "key -> params")
    check.function("apply", apply, "(params, *inputs, ctx) -> outputs")
    return Plain(init, apply)
