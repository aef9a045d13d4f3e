"""Flax NNX: modules that hold their own arrays."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._core.errors import ConfigError
from .._core.fingerprint import fingerprint
from .._core.typing import Params, PyTree
from ..step.state import TrainState, Variables
from ..step.task import Context, fold_in_name
from .model import Model, at, flags, nested, numbers, rows_to_count, warn_of_training


class NNX(Model):
    """What `nnx` makes."""

    def __init__(self, module: Any):
        from flax import nnx

        self._made: Callable[..., Any] | None = None
        if not isinstance(module, nnx.Module):
            self._made = module
            module = nnx.eval_shape(lambda: module(nnx.Rngs(0)))
        self._graph, given, keys, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
        self._given = None if self._made else Variables(_pure(given), _pure(rest) or None)
        abstract = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
        self._params, self._keys, self._rest = map(abstract, (given, keys, rest))
        if not jax.tree.leaves(self._params):
            raise ConfigError(f"`module` must have an `nnx.Param` to train, {type(module).__name__} has none")
        self._flags = functools.partial(flags, type(module).__call__)
        self._name = type(module).__name__

    def _parts(self) -> tuple[Any, ...]:
        return (self._graph, self._made)

    def __repr__(self) -> str:
        return f"nnx({self._name})"

    def fingerprint(self) -> Any:
        """The module's class and structure: no two of the same have to be the same object."""
        return {"nnx": self._name, "made": fingerprint(self._made), "modules": _said(self._abstract())}

    def __reduce__(self) -> Any:
        if self._made is not None:
            return nnx, (self._made,)
        module = self.module(self._given)  # type: ignore[arg-type]
        return nnx, (module,)

    def _abstract(self) -> Any:
        from flax import nnx

        return nnx.merge(self._graph, self._params, self._keys, self._rest)

    def init(self, key: jax.Array) -> Variables:
        from flax import nnx

        if self._given is not None:
            return self._given
        assert self._made is not None
        _, params, _, rest = nnx.split(self._made(nnx.Rngs(key)), nnx.Param, nnx.RngState, ...)
        return Variables(_pure(params), _pure(rest) or None)

    def apply(self, params: Params, *inputs: Any, ctx: Context) -> tuple[Any, PyTree]:
        model = self._merged(params, ctx.model_state, ctx.stream)
        (model.train if ctx.train else model.eval)()
        before = None if ctx.train else _changing(model)
        with _counted(model, ctx):
            out = model(*inputs, **self._flags(ctx.train))
        if before is not None:
            _check_evaluated(before, _changing(model))
        return out, self._after(model, ctx)

    def module(self, state: TrainState | Variables) -> Any:
        params, rest = numbers(state)
        key = getattr(state, "key", jax.random.key(0))
        model = self._merged(params, rest, functools.partial(fold_in_name, key))
        model.eval()
        return model

    def _merged(self, params: Params, rest: PyTree, stream: Callable[[str], jax.Array]) -> Any:
        from flax import nnx

        parts = (
            _filled(self._params, params, "params"),
            _seeded(self._keys, stream),
            _filled(self._rest, rest or {}, "model_state"),
        )
        return nnx.merge(self._graph, *parts)

    def _after(self, model: Any, ctx: Context) -> PyTree:
        """The variables that the state has; what a module has only shown (`sow`) is not kept."""
        from flax import nnx

        if not ctx.train or ctx.model_state is None:
            return ctx.model_state
        found = dict(nnx.to_flat_state(nnx.state(model)))
        return nested((path, found[path].get_value()) for path, _ in nnx.to_flat_state(self._rest))


def _pure(state: Any) -> dict[Any, Any]:
    from flax import nnx

    return nested((path, x.get_value()) for path, x in nnx.to_flat_state(state))


def _filled(shapes: Any, values: Any, what: str) -> Any:
    from flax import nnx

    pairs = [(path, x.replace(at(values, path, what))) for path, x in nnx.to_flat_state(shapes)]
    return nnx.from_flat_state(pairs)


def _seeded(shapes: Any, stream: Callable[[str], jax.Array]) -> Any:
    """A key for each stream of the module: of its name, and of where it stands; counts start anew."""
    from flax import nnx

    def fresh(path: tuple[Any, ...], x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x.replace(jnp.zeros(x.shape, x.dtype))
        key = fold_in_name(stream(x.tag), "/".join(map(str, path)))
        return x.replace(jax.random.split(key, x.shape) if x.shape else key)

    return nnx.from_flat_state([(path, fresh(path, x)) for path, x in nnx.to_flat_state(shapes)])


def _changing(model: Any) -> dict[str, Any]:
    """What changes in training alone: batch statistics, and the counts of dropout's keys."""
    from flax import nnx

    found = dict(nnx.to_flat_state(nnx.state(model, nnx.BatchStat)))
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Dropout):
            found |= {(*path, *more): x for more, x in nnx.to_flat_state(nnx.state(node, nnx.RngCount))}
    return {"/".join(map(str, path)): x.get_value() for path, x in found.items()}


def _check_evaluated(before: dict[str, Any], after: dict[str, Any]) -> None:
    changed = [path for path, x in after.items() if x is not before.get(path)]
    if changed:
        warn_of_training(
            "Flax NNX",
            f"`{changed[0]}` changes",
            "leave `deterministic` and `use_running_average` out of the layer's call, they are set by the step",
        )


class _counted:
    """While it is entered, batch norms of this module count no row of weight zero."""

    def __init__(self, model: Any, ctx: Context):
        from flax import nnx

        self._norms = []
        if ctx.train and ctx.weight is not None:
            self._norms = [x for _, x in nnx.iter_graph(model) if type(x) is nnx.BatchNorm]
        self._ctx = ctx

    def __enter__(self) -> None:
        from flax import nnx

        ctx = self._ctx

        class Counted(nnx.BatchNorm):
            def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Any:
                mask = rows_to_count(ctx, x) if mask is None else mask
                return super().__call__(x, use_running_average, mask=mask)

        for norm in self._norms:
            norm.__class__ = Counted

    def __exit__(self, *_: Any) -> None:
        from flax import nnx

        for norm in self._norms:
            norm.__class__ = nnx.BatchNorm


def _said(module: Any) -> dict[str, Any]:
    """What each module of it is, by its path: the class, and what it holds besides arrays and other modules."""
    from flax import nnx

    said = {}
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Module):
            own = {
                k: v
                for k, v in vars(node).items()
                if not (k.startswith("_") or isinstance(v, nnx.Variable | nnx.Pytree))
            }
            said["/".join(map(str, path))] = {
                "type": type(node).__name__,
                **{k: fingerprint(v) for k, v in own.items()},
            }
    return said


def nnx(module: Any) -> NNX:
    """A Flax NNX module as a model.

    `nnx.Param`s are trained; other variables (batch statistics) are model state; keys and counts of `nnx.Rngs` are
    kept nowhere and made from the step's context. `train()` and `eval()` are set on a copy, and a call that has an
    argument `train`, `training` or `deterministic` is given it. Rows of weight zero enter no `nnx.BatchNorm`. What a
    module holds twice (tied weights) is there once.

    Args:
      module: a module, whose numbers `init` gives; or a function `rngs -> module`, with which they are made from the
        run's key, split over a mesh where there is one.

    Raises:
      ConfigError: if the module has nothing to train.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> from flax import nnx
      >>> model = ft.models.nnx(lambda rngs: nnx.Linear(3, 1, rngs=rngs))
      >>> def loss_fn(params, batch, ctx):
      ...     predictions, model_state = model.apply(params, batch["x"], ctx=ctx)
      ...     return ft.losses.mse(predictions[:, 0], batch["y"]).with_state(model_state)
      >>> task = ft.Task(loss_fn, ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, model.init, key=0)
      >>> sorted(state.params)
      ['bias', 'kernel']
      >>> model.module(state)(jnp.zeros((2, 3))).shape
      (2, 1)
    """
    return NNX(module)
