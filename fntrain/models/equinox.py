"""Equinox: modules that are trees of arrays and functions."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import tree
from .._core.errors import ConfigError
from .._core.typing import Params, PyTree
from ..step.state import TrainState, Variables
from ..step.task import Context
from .model import Model, at, flags, nested, numbers, warn_of_padding


class Equinox(Model):
    """What `equinox` makes."""

    def __init__(self, module: Any, state: Any, batched: bool):
        import equinox as eqx

        self._made: Callable[..., Any] | None = None
        self._given: Variables | None = None
        self._batched = batched
        if isinstance(module, eqx.Module):
            made, kept = module, state
        else:
            self._made = module
            made, kept = _pair(eqx.filter_eval_shape(module, jax.random.key(0)))
        arrays, self._static = eqx.partition(made, _is_array)
        self._paths, self._treedef = _named(arrays)
        self._kept = _markers(made, kept)
        self._stateful = kept is not None
        if self._made is None:
            _warn_of_aliases(arrays)
            self._given = self._variables(made, kept)
        if not self._paths:
            raise ConfigError(f"`module` must have arrays to train, {type(made).__name__} has none")
        self._flags = functools.partial(flags, type(made).__call__)
        taken = inspect.signature(type(made).__call__).parameters
        self._takes_key = "key" in taken
        axes = _batch_axes(made)
        self._norms = bool(axes)
        self._axis = axes[0] if axes else "batch"
        self._name = type(made).__name__

    def _parts(self) -> tuple[Any, ...]:
        leaves, treedef = jax.tree.flatten(self._static)
        return (treedef, tuple(leaves), self._made, self._batched, tuple(self._paths))

    def __repr__(self) -> str:
        return f"equinox({self._name})"

    def __reduce__(self) -> Any:
        if self._made is not None:
            return functools.partial(equinox, batched=self._batched), (self._made,)
        module = self.module(self._given)  # type: ignore[arg-type]
        return functools.partial(equinox, batched=self._batched), (module if self._stateful else (module,))

    def init(self, key: jax.Array) -> Variables:
        if self._given is not None:
            return self._given
        assert self._made is not None
        return self._variables(*_pair(self._made(key)))

    def apply(self, params: Params, *inputs: Any, ctx: Context) -> tuple[Any, PyTree]:
        import equinox as eqx

        module = eqx.nn.inference_mode(self._filled(params), value=not ctx.train)
        if self._norms:
            module = _with_wide_norms(module)
        more = self._flags(ctx.train)
        if self._norms:
            warn_of_padding("Equinox", "BatchNorm", ctx)
        key = ctx.stream("equinox")

        def call(state: Any, key: Any, *inputs: Any) -> tuple[Any, Any]:
            keyed = {**more, "key": key} if self._takes_key else more
            return module(*inputs, state, **keyed) if self._stateful else (module(*inputs, **keyed), None)

        state = self._state(ctx.model_state)
        if self._batched:
            out, after = call(state, key, *inputs)
        else:
            keys = jax.random.split(key, tree.leading_axis(inputs))
            rows = jax.vmap(
                call, in_axes=(None, 0, *[0] * len(inputs)), out_axes=(0, None), axis_name=self._axis
            )
            out, after = rows(state, keys, *inputs)
        if not ctx.train or ctx.model_state is None:
            return out, ctx.model_state
        return out, self._kept_of(after)

    def module(self, state: TrainState | Variables) -> Any:
        import equinox as eqx

        params, kept = numbers(state)
        module = eqx.nn.inference_mode(self._filled(params))
        return (module, self._state(kept)) if self._stateful else module

    def _variables(self, module: Any, state: Any) -> Variables:
        leaves = jax.tree_util.tree_leaves_with_path(_arrays(module))
        params = nested((tuple(map(_name, path)), x) for path, x in leaves)
        return Variables(params, self._kept_of(state) if state is not None else None)

    def _filled(self, params: Params) -> Any:
        import equinox as eqx

        leaves = [at(params, path, "params") for path in self._paths]
        return eqx.combine(jax.tree.unflatten(self._treedef, leaves), self._static)

    def _kept_of(self, state: Any) -> PyTree:
        found = ((path, jax.tree.map(jnp.asarray, state._state[marker])) for path, marker in self._kept)
        return nested(found)

    def _state(self, kept: PyTree) -> Any:
        from equinox import nn

        if not self._stateful:
            return None
        state = object.__new__(nn.State)
        state._state = {marker: at(kept, path, "model_state") for path, marker in self._kept}
        return state


def _is_array(x: Any) -> bool:
    return hasattr(x, "dtype") and hasattr(x, "shape")


def _arrays(module: Any) -> Any:
    import equinox as eqx

    return eqx.filter(module, _is_array)


def _pair(made: Any) -> tuple[Any, Any]:
    return made if isinstance(made, tuple) else (made, None)


def _name(entry: Any) -> Any:
    """A name of a path: an attribute's, a key, or a place in a list."""
    return next(getattr(entry, a) for a in ("name", "key", "idx") if hasattr(entry, a))


def _named(arrays: Any) -> tuple[list[tuple[Any, ...]], Any]:
    found, treedef = jax.tree_util.tree_flatten_with_path(arrays)
    return [tuple(map(_name, path)) for path, _ in found], treedef


def _markers(module: Any, state: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """The stateful places of a module: where, and Equinox's mark of each."""
    from equinox import nn

    if state is None:
        return []
    found = jax.tree_util.tree_leaves_with_path(module, is_leaf=lambda x: isinstance(x, nn.StateIndex))
    indices = [(path, x) for path, x in found if isinstance(x, nn.StateIndex)]
    return [(tuple(map(_name, path)), x.marker) for path, x in indices]


def _batch_axes(module: Any) -> list[Any]:
    from equinox import nn

    found = jax.tree.leaves(module, is_leaf=lambda x: isinstance(x, nn.BatchNorm))
    return [x.axis_name for x in found if isinstance(x, nn.BatchNorm)]


def _with_wide_norms(module: Any) -> Any:
    """Batch norms in float32 at least, as their statistics are: on other inputs Equinox's fail, or round them."""
    from equinox import nn

    def widened(x: Any) -> Any:
        if type(x) is not nn.BatchNorm:
            return x
        made = object.__new__(_wide_norm())
        for name, value in vars(x).items():
            object.__setattr__(made, name, value)
        return made

    return jax.tree.map(widened, module, is_leaf=lambda x: isinstance(x, nn.BatchNorm))


@functools.cache
def _wide_norm() -> Any:
    from equinox import nn

    class BatchNorm(nn.BatchNorm):
        def __call__(self, x: Any, state: Any, **options: Any) -> Any:
            out, state = super().__call__(tree.wide(x), state, **options)
            return out.astype(x.dtype), state

    return BatchNorm


def _warn_of_aliases(arrays: Any) -> None:
    found: dict[int, str] = {}
    twice = []
    for path, x in tree.items(arrays):
        if id(x) in found:
            twice.append(f"`{found[id(x)]}` and `{path}`")
        found.setdefault(id(x), path)
    if twice:
        warnings.warn(
            f"`module` holds one array at two places, which in a tree are two, and are trained apart: "
            f"{', '.join(twice)}; tie them with `equinox.nn.Shared`",
            stacklevel=4,
        )


def equinox(module: Any, state: Any = None, *, batched: bool = False) -> Equinox:
    """An Equinox module as a model.

    Its arrays are trained (integers are carried), functions and numbers stay static. Calls are mapped over the rows of
    the batch, with a key for each where the call takes `key=`; `inference` is set by the step. Rows of padding enter
    the statistics of Equinox's `BatchNorm`, which takes no mask: a warning says so where it happens.

    Args:
      module: a module, whose numbers `init` gives; or a function `key -> module` (or `-> (module, state)`).
      state: the `equinox.nn.State` of a stateful module: `equinox(*eqx.nn.make_with_state(Net)(key))`.
      batched: whether the module takes a whole batch by itself.

    Raises:
      ConfigError: if the module has no arrays.

    Examples:
      >>> import fntrain as ft, equinox as eqx, jax, jax.numpy as jnp
      >>> model = ft.models.equinox(lambda key: eqx.nn.MLP(3, 1, 8, depth=1, key=key))
      >>> task = ft.supervised(model, loss="mse", optimizer="adam")
      >>> state = ft.init_state(task, model.init, key=0)
      >>> ft.tree.paths(state.params)
      ['layers/0/bias', 'layers/0/weight', 'layers/1/bias', 'layers/1/weight']
      >>> jax.vmap(model.module(state))(jnp.zeros((2, 3))).shape
      (2, 1)
    """
    if not callable(module):
        raise ConfigError(
            f"`module` must be an Equinox module, or a function `key -> module`, got {type(module).__name__}"
        )
    return Equinox(module, state, batched)
