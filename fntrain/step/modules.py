"""Modules of other libraries, told from trees of arrays by their types; none of the libraries is imported here.

A module that is given as parameters works by accident, and trains what nobody meant to: running statistics decay with
the weights, one dropout mask stays for ever, tied weights part.
"""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core.errors import ConfigError

_DOORS = {
    "flax.nnx": ("Flax NNX", "fntrain.models.nnx(module)"),
    "flax.linen": ("Flax Linen", "fntrain.models.linen(module, example)"),
    "equinox": ("Equinox", "fntrain.models.equinox(module)"),
    "haiku": ("Haiku", "fntrain.models.haiku(transformed, example)"),
}
_COLLECTIONS = ("batch_stats", "cache", "intermediates", "perturbations")
"""Linen's own collections besides `params`."""


def door(x: Any) -> tuple[str, str] | None:
    """The library whose module (or class of modules) this is, and the call that makes a model of it."""
    for base in (x if isinstance(x, type) else type(x)).__mro__:
        for package, found in _DOORS.items():
            if f"{base.__module__}.".startswith(f"{package}."):
                return found
    return None


def refuse_torchs(name: str, x: Any) -> None:
    """Refuse a module of torch, or a class of them: what it computes, JAX does not see.

    Raises:
      ConfigError: with the way to go on from its weights.
    """
    kind = x if isinstance(x, type) else type(x)
    if any(f"{base.__module__}.".startswith("torch.nn.") for base in kind.__mro__):
        raise ConfigError(
            f"`{name}` is a module of torch, {kind.__name__}, and JAX differentiates functions of JAX's arrays alone: "
            f"write its forward pass with them, and start from its weights, `init_state(task, {{name: "
            f"x.detach().numpy() for name, x in module.named_parameters()}})`"
        )


def check_no_module(params: Any) -> None:
    """Refuse a module, or all the variables of one, where parameters are wanted.

    A module that is a tree of nothing but parameters (`eqx.filter(module, eqx.is_array)`, `nnx.state(module,
    nnx.Param)`) is what it is.

    Raises:
      ConfigError: with the call that takes it apart.
    """
    refuse_torchs("params", params)
    _refuse_unmade(params)
    _refuse_collections(params)
    _refuse_variables(params)
    if "equinox" in sys.modules:
        for path, node in tree.named_nodes(params):
            if door(node) == _DOORS["equinox"]:
                _refuse_settings(path, node)


def _refuse_unmade(params: Any) -> None:
    """What has no arrays yet, and what makes them behind a method."""
    found = door(params)
    if not (jax.tree_util.all_leaves([params]) or (found and found[0] == "Haiku")):
        return
    made = callable(getattr(params, "init", None)) and callable(getattr(params, "apply", None))
    if made or (found and isinstance(params, type)):
        kind = params.__name__ if isinstance(params, type) else type(params).__name__
        how = f"model = {found[1]}; " if found else ""
        raise ConfigError(
            f"`params` is a model, {kind}, and not the arrays it starts from: `{how}init_state(task, model.init)`"
        )


def _refuse_collections(params: Any) -> None:
    if not (isinstance(params, Mapping) and isinstance(params.get("params"), Mapping)):
        return
    beside = [name for name in _COLLECTIONS if name in params]
    if beside:
        raise ConfigError(
            f"`params` holds all of a Linen module's variables, {tree.some(list(params))}, and would train "
            f'`{beside[0]}` as well: give `fntrain.models.Variables(variables["params"], {{"{beside[0]}": '
            f'variables["{beside[0]}"]}})`, or `fntrain.models.linen(module, example).init`'
        )


def _refuse_variables(params: Any) -> None:
    """NNX's variables that are no parameters, and those that stand in the tree twice."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return
    found = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    seen: dict[int, str] = {}
    for path, x in found:
        if not isinstance(x, nnx.Variable):
            continue
        name = tree.path_name(path)
        if not isinstance(x, nnx.Param):
            raise ConfigError(
                f"`params` leaf `{name}` is a {type(x).__name__} of a Flax NNX module, and no nnx.Param: it would be "
                f"trained, or stand still. `fntrain.models.nnx(module)` tells variables apart, "
                f"`init_state(task, model.init)`; parameters alone are `nnx.state(module, nnx.Param)`"
            )
        if id(x) in seen:
            raise ConfigError(
                f"`params` leaf `{name}` is `{seen[id(x)]}` once more (weights that Flax NNX ties), and would be "
                f"trained apart: `model = fntrain.models.nnx(module); init_state(task, model.init)` keeps it once"
            )
        seen[id(x)] = name


def _refuse_settings(path: str, module: Any) -> None:
    """Numbers, flags and functions that an Equinox module has among its arrays."""
    for inner, x in tree.items(module):
        if not isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            where = "/".join(filter(None, (path, inner)))
            raise ConfigError(
                f"`params` leaf `{where}` is {_said(x)} of an Equinox module, and nothing to train: give its arrays, "
                f"`equinox.filter(module, equinox.is_array)`, or `model = fntrain.models.equinox(module); "
                f"init_state(task, model.init)`"
            )


def _said(x: Any) -> str:
    if callable(x):
        return "a function"
    return (
        f"the {type(x).__name__} {x!r}" if jnp.isscalar(x) or isinstance(x, str) else f"a {type(x).__name__}"
    )
