"""Trees as JSON: structure and plain values in a document, arrays aside under their paths. No type is ever named."""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.errors import (
    ConfigError,
)
from .._core.typing import PyTree
from ..step.state import opened
from .leaves import check_array, kind, with_key
from .paths import below

# Trees as JSON. Dicts with text keys, lists, text, numbers and None stand for themselves; anything else is a
# dict with a single key that begins with "$". No type is ever named.


def pack(value: Any, path: str, arrays: dict[str, Any]) -> Any:
    """JSON for a tree, its arrays put aside in `arrays` under their paths."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic):
        return pack(value.item(), path, arrays)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, jax.Array | np.ndarray):
        check_array(path, value)
        if path in arrays:
            raise ConfigError(
                f"two leaves have the path `{below(path)}`: rename one, so that each can be found"
            )
        arrays[path] = value
        return {"$array": path}
    if type(value) in (list, tuple):
        items = [pack(v, f"{path}/{i}", arrays) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if type(value) is dict:
        pairs = list(value.items())
        wrong = [k for k in value if type(k) not in (str, int)]
        if wrong:
            raise ConfigError(f"the keys of `{path}` must be text or integers, got {wrong[0]!r}")
    else:
        children = jax.tree_util.tree_leaves_with_path(value, is_leaf=lambda x: x is not value)
        if any(child is value for _, child in children):
            kind = type(value).__name__
            raise ConfigError(f"`{path}` must be an array, a plain value or a pytree of them, got a {kind}")
        pairs = [(tree.path_name(key), child) for key, child in children]
    items = [(k, pack(v, f"{path}/{k}", arrays)) for k, v in pairs]
    if all(isinstance(k, str) and not k.startswith("$") for k, _ in items):
        return dict(items)
    return {"$dict": [list(item) for item in items]}


def unpack(value: Any, infos: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    """The tree that `pack` was given."""
    if isinstance(value, list):
        return [unpack(v, infos, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    match next(iter(value.items()), None):
        case "$float", text:
            return float(text)
        case "$array", path:
            return with_key(arrays[path], infos[path].get("key"))
        case "$tuple", items:
            return tuple(unpack(v, infos, arrays) for v in items)
        case "$dict", items:
            return {k: unpack(v, infos, arrays) for k, v in items}
    return {k: unpack(v, infos, arrays) for k, v in value.items()}


def check_state(state: PyTree) -> None:
    """Check that a state can be saved, before anything is computed on it.

    Raises:
      ConfigError: naming a leaf that is no array of numbers, or two leaves of the same path.
    """
    pack(as_arrays(state), "state", {})


def as_arrays(state: PyTree) -> PyTree:
    """The state with its Python numbers as arrays, for every leaf of a state is one; TrainStates by their fields."""
    state = opened(state)

    def one(path: str, leaf: Any) -> Any:
        kind(path, leaf)
        return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)

    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state)):
        return state  # as nearly always: paths cost time, while the loop waits
    return tree.map_with_path(one, state)


def as_extra(extra: Any) -> Any:
    """What is stored beside a state: a dict, or nothing."""
    if not isinstance(extra, Mapping | None):
        raise ConfigError(f"`extra` must be a dict, got {type(extra).__name__}")
    return dict(extra or {})


def as_numbers(metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metrics as numbers and lists of them."""
    out: dict[str, Any] = {}
    for name, value in (metrics or {}).items():
        try:
            out[str(name)] = np.asarray(value, float).tolist()
        except (TypeError, ValueError):
            what = f"got {value!r}"
            raise ConfigError(f"`metrics[{name!r}]` must be a number or an array of them, {what}") from None
    return out


def canonical(body: Mapping[str, Any]) -> str:
    """The one text of a document, which its digest is taken of."""
    # In the order given: the columns of a history are to come back in theirs.
    return json.dumps(body, separators=(",", ":"), allow_nan=False)
