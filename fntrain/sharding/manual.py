"""Inside `shard_map`: which mapped axes a value varies over, and making it so; and entering one.

There, differentiating with respect to a value that does not vary sums the gradient over the axis, and a scan's
carry must vary from the start over whatever its result will. Outside, everything here is the identity.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._core.check import did_you_mean, is_concrete
from .._core.errors import ConfigError
from .._core.typing import PyTree


def axes(tree: PyTree) -> frozenset[Any]:
    """The mapped axes that any leaf (array or shape) varies over."""
    found: frozenset[Any] = frozenset()
    for x in jax.tree.leaves(tree):
        found |= _varying(x)
    return found


def _varying(x: Any) -> frozenset[Any]:
    """What an array, or the shape of one, varies over."""
    return _of_aval(x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x))


def _reader() -> Callable[[Any], frozenset[Any]]:
    """How this JAX says over which mapped axes an abstract value varies.

    Asked once, at import: a name that were gone, and read with a default, would be another gradient in silence.
    """
    aval = jax.typeof(np.zeros((), np.float32))
    if hasattr(aval, "manual_axis_type"):  # JAX 0.10
        return lambda x: frozenset(getattr(x.manual_axis_type, "varying", ()))
    if hasattr(aval, "vma"):  # JAX 0.9
        return lambda x: frozenset(x.vma or ())
    raise ImportError(
        f"fntrain cannot tell over which mapped axes an array varies under JAX {jax.__version__}: neither "
        f"`manual_axis_type` nor `vma` is there. Install a JAX that this version of fntrain was tested with"
    )


_of_aval = _reader()


def vary(tree: PyTree, over: frozenset[Any]) -> PyTree:
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


def is_mapped(names: tuple[str, ...]) -> bool:
    """Whether this is inside a `shard_map`, `vmap` or `pmap` over these axes."""
    try:
        jax.lax.axis_size(names)
    except NameError:
        return False
    return True


def mesh_context(names: Any, x: jax.Array) -> AbstractContextManager[Any]:
    """The mesh that an array is on, put in context for the axes of it that a task names; nothing while tracing."""
    if names is None or not is_concrete(x) or not isinstance(x.sharding, NamedSharding):
        return _NOTHING
    mesh = x.sharding.mesh
    return jax.set_mesh(mesh) if isinstance(mesh, Mesh) else _NOTHING


_NOTHING = nullcontext()


def over_rows(f: Callable[[Any, Any], Any], names: tuple[str, ...], shared: PyTree, rows: PyTree) -> Any:
    """`f(shared, rows)` in a `shard_map` over axes of the mesh in context; the rows are split, the result is not."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(names) <= set(mesh.axis_names):
        raise ConfigError(
            f"`axis_name` {names} is no mapped axis here, nor one of a mesh that the state is on: call the step inside "
            f"`shard_map`, with a state made by `init_state(..., mesh=...)`, or, in a `jit` of your own, under "
            f"`jax.set_mesh(mesh)` (axes in context: {mesh.axis_names or 'none'})"
            + "".join(did_you_mean(name, mesh.axis_names) for name in names if name not in mesh.axis_names)
        )
    split = jax.tree.map(lambda x: PartitionSpec(names) if np.ndim(x) else PartitionSpec(), rows)
    whole = PartitionSpec()
    return jax.shard_map(f, in_specs=(whole, split), out_specs=whole, axis_names=set(names))(shared, rows)
