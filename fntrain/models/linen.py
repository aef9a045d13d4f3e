"""Flax Linen: modules that describe their arrays."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._core.errors import ConfigError
from .._core.fingerprint import fingerprint
from .._core.typing import Params, PyTree
from ..step.state import TrainState, Variables
from ..step.task import Context
from .model import Model, flags, numbers, rows_to_count, warn_of_training

_SHOWN = ("intermediates", "perturbations")
"""Collections that a module shows and does not keep."""


class Linen(Model):
    """What `linen` makes."""

    def __init__(self, module: Any, example: tuple[Any, ...], method: str, streams: tuple[str, ...]):
        self._module, self._method, self._streams = module, method, streams
        self._example = tuple(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), example)
        )
        self._flags = functools.partial(flags, getattr(type(module), method))
        made = jax.eval_shape(self.init, jax.random.key(0))
        if not jax.tree.leaves(made.params):
            raise ConfigError(f"`module` must have parameters to train, {type(module).__name__} has none")
        self._mutable = sorted(made.model_state or {})

    def _parts(self) -> tuple[Any, ...]:
        shapes = tuple((str(x.dtype), x.shape) for x in jax.tree.leaves(self._example))
        return (self._module, self._method, self._streams, shapes)

    def __repr__(self) -> str:
        return f"linen({type(self._module).__name__})"

    def fingerprint(self) -> Any:
        """The module and its fields."""
        kept = {
            f: getattr(self._module, f)
            for f in self._module.__dataclass_fields__
            if f not in ("parent", "name")
        }
        return {"linen": type(self._module).__name__, **{name: fingerprint(x) for name, x in kept.items()}}

    def __reduce__(self) -> Any:
        return functools.partial(linen, method=self._method, streams=self._streams), (
            self._module,
            *self._example,
        )

    def init(self, key: jax.Array) -> Variables:
        from flax.core import meta, unfreeze

        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._example)
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(("params", *self._streams))}
        made = self._module.init(keys, *inputs, method=self._method, **self._flags(False))
        made = unfreeze(meta.unbox(made))
        params = made.pop("params", {})
        kept = {name: values for name, values in made.items() if name not in _SHOWN}
        return Variables(params, kept or None)

    def apply(self, params: Params, *inputs: Any, ctx: Context) -> tuple[Any, PyTree]:
        from flax import linen

        keys = {name: ctx.stream(name) for name in ("params", *self._streams)}
        with linen.intercept_methods(functools.partial(_stepped, ctx)):
            out, after = self._module.apply(
                {"params": params, **(ctx.model_state or {})},
                *inputs,
                method=self._method,
                rngs=keys,
                mutable=[*self._mutable, *_SHOWN] if ctx.train else list(_SHOWN),
                **self._flags(ctx.train),
            )
        if not ctx.train or ctx.model_state is None:
            return out, ctx.model_state
        return out, {name: after.get(name, kept) for name, kept in ctx.model_state.items()}

    def module(self, state: TrainState | Variables) -> Any:
        params, kept = numbers(state)
        return self._module.bind({"params": params, **(kept or {})})


def _stepped(ctx: Context, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
    """A call within a step: rows of weight zero enter no batch statistics, and nothing trains in evaluation."""
    from flax import linen

    module = context.module
    if context.method_name == "__call__" and args:
        if not ctx.train:
            _check_evaluated(module, kwargs)
        elif isinstance(module, linen.BatchNorm):
            rows = rows_to_count(ctx, args[0])
            if rows is not None and kwargs.get("mask") is None:
                kwargs = {**kwargs, "mask": rows}
    return call(*args, **kwargs)


def _check_evaluated(module: Any, kwargs: dict[str, Any]) -> None:
    from flax import linen

    def said(name: str) -> Any:
        return kwargs[name] if kwargs.get(name) is not None else getattr(module, name)

    where = "/".join(module.path)
    if isinstance(module, linen.Dropout) and module.rate > 0 and not said("deterministic"):
        warn_of_training(
            "Linen", f"`{where}` drops", "`Dropout(rate, deterministic=not train)`, with an argument `train`"
        )
    if isinstance(module, linen.BatchNorm) and not said("use_running_average"):
        raise ConfigError(
            f"Linen's `{where}` takes the batch's own statistics in evaluation: "
            f"`BatchNorm(use_running_average=not train)`, with an argument `train` of the module's `__call__`"
        )


def linen(
    module: Any, *example: Any, method: str = "__call__", streams: Sequence[str] = ("dropout",)
) -> Linen:
    """A Flax Linen module as a model.

    The collection `params` is trained, the others are model state but for what a module only shows (`intermediates`).
    A call that has an argument `train`, `training`, `deterministic` or `use_running_average` is given it. Rows of
    weight zero enter no `BatchNorm`.

    Args:
      module: the module.
      *example: inputs, or their `jax.ShapeDtypeStruct`; a batch of one row will do, only their types count.
      method: the method to call.
      streams: names of the random streams it draws from besides `params`.

    Raises:
      ConfigError: if the module is none of Linen's, `example` is missing, or there is nothing to train.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> model = ft.models.linen(nn.Dense(1), jnp.ones((1, 3)))
      >>> task = ft.supervised(model, loss="mse", optimizer="adam")
      >>> state = ft.init_state(task, model.init, key=0)
      >>> sorted(state.params), model.module(state)(jnp.zeros((2, 3))).shape
      (['bias', 'kernel'], (2, 1))
    """
    from flax import linen as nn

    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"`module` must be a Flax Linen module, got {type(module).__name__}; for NNX there is `models.nnx`"
        )
    if not example:
        raise ConfigError(
            "`linen` needs an example of each input, `linen(module, jnp.ones((1, 64)))`, for their types"
        )
    return Linen(module, example, method, tuple(streams))
