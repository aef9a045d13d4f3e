"""Pytree arithmetic, leaf paths and masks."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._core import norms
from ._core.check import did_you_mean, is_function, said
from ._core.errors import ConfigError, DataError
from ._core.public import surface
from ._core.typing import PyTree


def path_name(path: Sequence[Any]) -> str:
    """A key path as text: `layers/0/kernel`."""
    return "/".join(_key_name(key) for key in path)


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def paths(tree: PyTree) -> list[str]:
    """The path of every leaf, in the order of `jax.tree.leaves`."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def names(tree: PyTree, *, name: str = "params") -> list[str]:
    """The paths of all leaves, where a path is to name its leaf.

    Raises:
      ConfigError: if two leaves have one path: `{"a/b": x, "a": {"b": y}}`, where one name would mean both.
    """
    found = paths(tree)
    if len(set(found)) < len(found):
        twice = next(path for i, path in enumerate(found) if path in found[:i])
        raise ConfigError(
            f"`{name}` has two leaves of the path `{twice}`, by which neither could be told from the other: rename one "
            f"(a `/` in a key is what usually does it)"
        )
    return found


def items(tree: PyTree) -> list[tuple[str, Any]]:
    """Pairs of path and leaf, in the order of `jax.tree.leaves`."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def map_with_path(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` whose function also gets the leaf's path, as text, first."""
    return jax.tree_util.tree_map_with_path(lambda path, *xs: function(path_name(path), *xs), tree, *rest)


def is_trained(x: Any) -> bool:
    """True for a floating-point array: what gradients exist for."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def split(tree: PyTree) -> tuple[PyTree, PyTree]:
    """`(trained, carried)`: floating-point leaves and all others, each with None in the other's places."""
    trained = jax.tree.map(lambda x: x if is_trained(x) else None, tree)
    carried = jax.tree.map(lambda x: None if is_trained(x) else x, tree)
    return trained, carried


def combine(trained: PyTree, carried: PyTree) -> PyTree:
    """The inverse of `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trained, carried, is_leaf=lambda x: x is None)


def regex_mask(patterns: str | Sequence[str], tree: PyTree, *, name: str = "mask") -> PyTree:
    """A tree of bools: True where a pattern is found anywhere in the leaf's path (`re.search`).

    Raises:
      ConfigError: if a pattern is no regular expression, or matches no leaf (the paths are listed), or two leaves
        have one path.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    known = names(tree)
    for pattern in patterns:
        search = compiled(pattern, name).search
        if not any(search(n) for n in known):
            raise unmatched(pattern, known, name)
    return map_with_path(lambda path, _: any(re.search(p, path) for p in patterns), tree)


def compiled(pattern: str, name: str) -> re.Pattern[str]:
    """The compiled pattern, or a ConfigError that names the argument."""
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(f"`{name}`: {pattern!r} is not a regular expression: {error}") from None


def unmatched(pattern: str, names: Sequence[str], name: str) -> ConfigError:
    """The error for a pattern that matches no leaf."""
    return ConfigError(
        f"`{name}`: the pattern {pattern!r} matches no leaf; the paths are {some(names)}"
        + did_you_mean(pattern, [*names, *{part for name in names for part in name.split("/")}])
    )


def some(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(f"`{n}`" for n in names[:most]) or "none"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def mask_leaves(mask: Any, tree: PyTree, *, name: str = "mask") -> list[bool]:
    """A mask in any of its forms (regex, list of regexes, tree of bools, function of the tree), one bool a leaf.

    Raises:
      ConfigError: if the mask's structure differs from the tree's, naming the first path that is off.
    """
    leaves = jax.tree.leaves(tree)
    if mask is None:
        return [True] * len(leaves)
    if isinstance(mask, str) or (isinstance(mask, list | tuple) and all(isinstance(m, str) for m in mask)):
        mask = regex_mask(mask, tree, name=name)
    elif callable(mask) and is_function(mask):
        try:
            mask = mask(tree)
        except Exception as error:
            error.add_note(
                f"raised by `{name}`, which is called once, with the whole tree: "
                f"`{name}=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)`"
            )
            raise
    expected, got = paths(tree), items(mask)
    by_path = dict(got)
    # By path: a FrozenDict for a dict, or a tuple for a list, says the same of the same leaves.
    if len(by_path) != len(got) or set(by_path) != set(expected) or len(set(expected)) != len(expected):
        difference = structure_difference(tree, mask)
        if difference:
            raise ConfigError(f"`{name}` must have the structure of the parameters: it {difference}")
    else:
        got = [(path, by_path[path]) for path in expected]
    for path, m in got:
        if not isinstance(m, bool) and not (getattr(m, "dtype", None) == np.bool_ and np.ndim(m) == 0):
            raise ConfigError(
                f"`{name}` must say True or False of each leaf, got {said(m)} for `{path}`; a mask chooses whole leaves"
            )
    return [bool(m) for _, m in got]


def structure_difference(expected: PyTree, got: PyTree) -> str | None:
    """What differs between two trees' structures, by path, in one line; None if nothing does."""
    if jax.tree.structure(expected) == jax.tree.structure(got):
        return None
    a, b = paths(expected), paths(got)
    if b == [""]:
        return f"is one {type(got).__name__} and no tree with {some(a, 3)}"
    missing = [p for p in a if p not in set(b)]
    surplus = [p for p in b if p not in set(a)]
    if missing or surplus:
        words = [f"lacks {some(missing, 3)}"] * bool(missing) + [f"has a surplus {some(surplus, 3)}"] * bool(
            surplus
        )
        return " and ".join(words)
    return (
        _node_difference(expected, got, ())
        or f"is {jax.tree.structure(got)}, not {jax.tree.structure(expected)}"
    )


def _node_difference(expected: PyTree, got: PyTree, path: tuple[Any, ...]) -> str | None:
    """The first node that is of another kind, in trees whose paths are the same."""
    if (
        type(expected) is not type(got)
        and not jax.tree.structure(got).num_leaves == 1 == jax.tree.structure(expected).num_leaves
    ):
        where = f"at `{path_name(path)}` " if path else ""
        return f"{where}is a {type(got).__name__}, not a {type(expected).__name__}"
    children = [
        jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x, node=node: x is not node)
        for node in (expected, got)
    ]
    if len(children[0]) <= 1 and (not children[0] or children[0][0][1] is expected):
        return None
    pairs = zip(*children)
    return next(
        (found for (key, a), (_, b) in pairs if (found := _node_difference(a, b, (*path, *key)))), None
    )


def aval_difference(expected: PyTree, got: PyTree) -> str | None:
    """The first leaf whose shape, dtype or weak type differs, or the structure; None if nothing does."""
    difference = structure_difference(expected, got)
    if difference:
        return difference
    for (path, a), b in zip(items(expected), jax.tree.leaves(got)):
        a, b = jax.typeof(a), jax.typeof(b)
        weak = getattr(a, "weak_type", False), getattr(b, "weak_type", False)
        if (a.shape, a.dtype) != (b.shape, b.dtype) or weak[0] != weak[1]:
            return f"`{path}` was {_aval_name(a)} and became {_aval_name(b)}"
    return None


def _aval_name(aval: Any) -> str:
    weak = ", weakly typed" if getattr(aval, "weak_type", False) else ""
    return f"{aval.dtype.name}{list(aval.shape)}{weak}"


def leading_axis(tree: PyTree, *, name: str = "batch") -> int:
    """The length of the first axis, which all leaves with one must share.

    Raises:
      DataError: if there is no array with an axis, or two of them disagree (both are named).
    """
    first: tuple[str, int] | None = None
    for path, leaf in items(tree):
        shape = np.shape(leaf)
        if not shape:
            continue
        if first is None:
            first = (path, shape[0])
        elif shape[0] != first[1]:
            raise DataError(
                f"`{name}` leaves `{first[0]}` and `{path}` disagree on axis 0 ({first[1]} and {shape[0]}): "
                f"every leaf needs one row an example"
            )
    if first is None:
        raise DataError(
            f"`{name}` must hold at least one array with a leading axis of examples, got {describe(tree)}"
        )
    return first[1]


def describe(tree: PyTree) -> str:
    """Shapes and dtypes of a small tree in one line, for messages."""
    if tree is None:
        return "None"
    leaves = items(tree)
    if not leaves:
        return f"an empty {type(tree).__name__}"

    def text(x: Any) -> str:
        return f"{x.dtype}{list(np.shape(x))}" if hasattr(x, "dtype") else type(x).__name__

    shown = ", ".join(f"{path or 'array'}: {text(x)}" for path, x in leaves[:6])
    return shown + (f" and {len(leaves) - 6} more" if len(leaves) > 6 else "")


def zeros_like(tree: PyTree, dtype: Any = None) -> PyTree:
    """Zeros of the same shapes, in `dtype` or each leaf's own."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, dtype or x.dtype), tree)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Each leaf in the dtype of the same leaf of `like`; complex numbers are not made real, but refused."""

    def one(x: Any, y: Any) -> Any:
        if _is_complex(x) and not _is_complex(y):
            raise _complex_refused(x)
        return x.astype(y.dtype)

    return jax.tree.map(one, tree, like)


def where(condition: Any, yes: PyTree, no: PyTree) -> PyTree:
    """Leafwise selection by one scalar condition; NaN on the side not taken does no harm."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def add(params: PyTree, updates: PyTree) -> PyTree:
    """`params + updates`, summed in float32 at least, in the dtypes of `params`; complex numbers are refused."""

    def one(p: Any, u: Any) -> Any:
        p_wide = wide(p)
        return (p_wide + wide(u).astype(p_wide.dtype)).astype(p.dtype)

    return jax.tree.map(one, params, updates)


def wide(x: Any) -> jax.Array:
    """A floating-point array in float32 at least: what sums are formed in.

    Raises:
      ConfigError: if it is complex, and would lose its imaginary part.
    """
    return x.astype(wide_dtype(x))


def wide_dtype(x: Any) -> Any:
    """The dtype of `wide(x)`: float64 for float64, else float32; complex numbers are refused."""
    if _is_complex(x):
        raise _complex_refused(x)
    # NumPy's own float64 is what JAX will make of it.
    dtype = x.dtype if isinstance(x, jax.Array) else jax.dtypes.canonicalize_dtype(x.dtype)
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _is_complex(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.complexfloating))


def _complex_refused(x: Any) -> ConfigError:
    return ConfigError(
        f"a leaf is complex ({x.dtype}{list(np.shape(x))}), which has no agreed gradient; keep its real and imaginary "
        f"parts as two leaves"
    )


def widest(tree: PyTree) -> Any:
    """The dtype of numbers that are about all leaves at once: float64 if one of them is, else float32."""
    return jnp.float64 if any(wide_dtype(x) == jnp.float64 for x in jax.tree.leaves(tree)) else jnp.float32


def wide_zeros(tree: PyTree) -> PyTree:
    """Zeros of the same shapes, in float32 at least: what moments and accumulators start from."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, wide_dtype(x)), tree)


def norm(tree: PyTree) -> jax.Array:
    r"""The global norm :math:`\sqrt{\sum_i x_i^2}` over all leaves, in float32 at least.

    One pass of squares; only where their sum overflows, or loses digits to underflow, is the tree read again,
    scaled (on a CPU; elsewhere one pass forms all sums, without a branch). So finite leaves have a finite norm (up to
    the dtype's own largest number), and leaves of 1e20 or 1e-30 an exact one. NaN and infinity come through as NaN
    and infinity.

    Returns:
      A scalar, float64 if a leaf is, else float32; 0 for a tree without leaves.

    Raises:
      ConfigError: if a leaf is complex.
    """
    root, scale = norm_parts(tree)
    return root / scale


@jax.jit  # its branches are closures: called eagerly, they would be compiled at every call
def norm_parts(tree: PyTree) -> tuple[jax.Array, jax.Array]:
    """`(root, scale)`, the norm being `root / scale`: finite for finite leaves even where the norm itself is not.

    The scale is a power of two, and 1 unless the squares overflow or underflow.
    """
    leaves = [x for x in jax.tree.leaves(tree) if x.size]
    kind = jnp.dtype(widest(leaves))
    if not leaves:
        return jnp.zeros((), kind), jnp.ones((), kind)
    return norms.whole(leaves, kind)


def nbytes(tree: PyTree) -> int:
    """The bytes that the tree's arrays hold."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))


def size(tree: PyTree) -> int:
    """How many numbers the tree's arrays hold."""
    return sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(tree))


def has(tree: PyTree, kind: type | tuple[type, ...]) -> bool:
    """True if a node of the given class stands anywhere in the tree."""
    return any(isinstance(node, kind) for _, node in named_nodes(tree))


def named_nodes(tree: PyTree) -> list[tuple[str, Any]]:
    """Every node of a tree that is no leaf, whatever it is made of, outermost first, with its path."""
    out: list[tuple[str, Any]] = []

    def visit(path: tuple[Any, ...], node: Any) -> None:
        if isinstance(node, dict):  # in their own order, which JAX does not keep
            children = [((jax.tree_util.DictKey(key),), child) for key, child in node.items()]
        else:
            children = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
        if len(children) == 1 and children[0][1] is node:  # a leaf
            return
        if node is not None:
            out.append((path_name(path), node))
        for key, child in children:
            visit((*path, *key), child)

    visit((), tree)
    return out


__all__ = [
    "add",
    "aval_difference",
    "cast_like",
    "combine",
    "compiled",
    "describe",
    "has",
    "is_trained",
    "items",
    "leading_axis",
    "map_with_path",
    "mask_leaves",
    "named_nodes",
    "names",
    "nbytes",
    "norm",
    "norm_parts",
    "path_name",
    "paths",
    "regex_mask",
    "size",
    "some",
    "split",
    "structure_difference",
    "unmatched",
    "where",
    "wide",
    "wide_dtype",
    "wide_zeros",
    "widest",
    "zeros_like",
]

surface(__name__, hot=__all__)  # the engine's own words, asked at every step
