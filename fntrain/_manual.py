"""Inside `shard_map`: which mapped axes a value varies over, and making it so.

There, differentiating with respect to a value that does not vary sums the gradient over the axis, and a scan's
carry must vary from the start over whatever its result will. Outside, everything here is the identity.
"""

from collections.abc import Callable
from typing import Any

import jax

from ._typing import PyTree


def axes(tree: PyTree) -> frozenset:
    """The mapped axes that any leaf (array or shape) varies over."""
    found: frozenset = frozenset()
    for x in jax.tree.leaves(tree):
        found |= _varying(x)
    return found


def _varying(x: Any) -> frozenset:
    kind = getattr(x, "manual_axis_type", None)
    if kind is None and not isinstance(x, jax.ShapeDtypeStruct):
        kind = getattr(jax.typeof(x), "manual_axis_type", None)
    return frozenset(getattr(kind, "varying", ()))


def vary(tree: PyTree, over: frozenset) -> PyTree:
    """The same values, as ones that vary over these axes too."""

    def one(x: Any) -> Any:
        missing = tuple(sorted(over - _varying(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(one, tree) if over else tree


def scan(body: Callable[[Any, Any], tuple[Any, Any]], start: Any, xs: Any) -> tuple[Any, Any]:
    """`lax.scan` whose carry may vary over more axes than it starts with."""
    if not axes((start, xs)):
        return jax.lax.scan(body, start, xs)
    first = jax.tree.map(lambda x: x[0], xs)
    for _ in range(3):  # each round lets variation flow once around the body
        after = jax.eval_shape(lambda c, x: body(c, x)[0], start, first)
        start = jax.tree.map(lambda c, a: vary(c, _varying(a)), start, after)
    kinds = jax.tree.map(lambda c: _varying(c), start)

    def same_kind(carry: Any, x: Any) -> tuple[Any, Any]:
        carry, y = body(carry, x)
        return jax.tree.map(vary, carry, kinds), y

    return jax.lax.scan(same_kind, start, xs)
