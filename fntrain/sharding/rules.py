"""Rules: which axis of a mesh each array is split over."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .._core.typing import PyTree

Rules: TypeAlias = Sequence[tuple[str, PartitionSpec]] | Callable[[str, Any, Mesh], PartitionSpec]


"""`[(regex, PartitionSpec), …]`, first match wins, or a function of path, array and mesh."""


class Large:
    """Base of a state tuple whose fields in `large` hold arrays of shapes of their own that may outgrow parameters."""

    __slots__ = ()
    large: ClassVar[tuple[str, ...]] = ()


def fsdp(axis: str = "data", min_size: int = 2**18) -> Callable[[str, Any, Mesh], PartitionSpec]:
    """Rules that split every leaf of at least `min_size` elements along its largest divisible axis.

    Args:
      axis: the mesh axis to split over.
      min_size: smaller leaves, in elements, are replicated.

    Raises:
      ConfigError: if `axis` is no name or `min_size` no whole number; where the rules are used, if the mesh has no
        such axis.
    """
    if not isinstance(axis, str):
        raise ConfigError(f"`axis` must be the name of a mesh's axis, got {check.said(axis)}")
    check.integer("min_size", min_size, at_least=0)

    def rule(path: str, x: Any, mesh: Mesh) -> PartitionSpec:
        del path
        if axis not in mesh.axis_names:
            raise ConfigError(
                f"`axis` {axis!r} is not in the mesh, which has {mesh.axis_names}"
                + check.did_you_mean(axis, mesh.axis_names)
            )
        n = mesh.shape[axis]
        fit = [i for i, size in enumerate(x.shape) if size % n == 0]
        if int(np.prod(x.shape)) < min_size or not fit:
            return PartitionSpec()
        split = max(fit, key=lambda i: x.shape[i])
        return PartitionSpec(*(axis if i == split else None for i in range(split + 1)))

    return rule


def specs(params: PyTree, mesh: Mesh, rules: Rules | None) -> PyTree:
    """The PartitionSpec of every leaf; None as rules replicates all.

    Raises:
      ConfigError: if a leaf is covered by no rule, a rule matches no leaf, or a spec does not fit its leaf.
    """
    if rules is None:
        rules = [(".*", PartitionSpec())]
    if callable(rules):
        check.function("rules", rules, "(path, array, mesh) -> PartitionSpec", takes=3)
    else:
        rules = _from_patterns(rules, tree.names(params))
    rule = rules

    def spec(path: str, x: Any) -> PartitionSpec:
        found = rule(path, x, mesh)
        _check_spec(path, x, found, mesh)
        return found

    return tree.map_with_path(spec, params)


def _from_patterns(
    rules: Sequence[tuple[str, PartitionSpec]], names: list[str]
) -> Callable[..., PartitionSpec]:
    if isinstance(rules, str | Mapping) or not all(
        isinstance(r, tuple | list) and len(r) == 2 for r in rules
    ):
        fix = "; write `list(rules.items())`" * isinstance(rules, Mapping)
        raise ConfigError(
            f"`rules` must be a list of pairs (regex, PartitionSpec), in order, or a function `fsdp()`, got "
            f"{check.said(rules)}{fix}"
        )
    pairs = [(tree.compiled(pattern, "rules"), spec) for pattern, spec in rules]
    for pattern, _ in pairs:
        # The usual last rule, for whatever is left, may find nothing left.
        if pattern.pattern != ".*" and not any(pattern.search(name) for name in names):
            raise tree.unmatched(pattern.pattern, names, "rules")

    def rule(path: str, x: Any, mesh: Mesh) -> PartitionSpec:
        del x, mesh
        for pattern, spec in pairs:
            if pattern.search(path):
                return spec
        raise ConfigError(f'`rules` cover no leaf `{path}`; end them with (".*", PartitionSpec())')

    return rule


def _check_spec(path: str, x: Any, spec: Any, mesh: Mesh) -> None:
    if not isinstance(spec, PartitionSpec):
        raise ConfigError(f"`rules` must give a PartitionSpec for `{path}`, got {spec!r}")
    if len(spec) > len(x.shape):
        raise ConfigError(f"`rules` give {spec} for `{path}`, which has only {len(x.shape)} axes")
    for size, entry in zip(x.shape, spec):
        for name in (entry,) if isinstance(entry, str) else entry or ():
            if name not in mesh.axis_names:
                raise ConfigError(
                    f"`rules` give {spec} for `{path}`; the mesh has no axis {name!r}, only {mesh.axis_names}"
                    + check.did_you_mean(name, mesh.axis_names)
                )
        n = int(np.prod([mesh.shape[a] for a in ((entry,) if isinstance(entry, str) else entry or ())]))
        if size % n:
            raise ConfigError(
                f"`rules` give {spec} for `{path}` of shape {list(x.shape)}: {size} does not divide by {n}"
            )


def state_shardings(
    state: PyTree, params_of: Callable[[PyTree], PyTree], mesh: Mesh, rules: Rules | None
) -> PyTree:
    """A sharding for every leaf of a train state.

    Parameters follow the rules. A leaf elsewhere whose path ends with a parameter's path and which has its shape
    (a moment, an accumulator) is split like it. What a state says is large (`Large`) is split by rules that are a
    function of the array, as `fsdp()`; all others are replicated.
    """
    params = params_of(state)
    by_path = dict(
        zip(tree.paths(params), zip(jax.tree.leaves(params), jax.tree.leaves(specs(params, mesh, rules))))
    )

    def one(path: str, x: Any) -> NamedSharding:
        parts = path.split("/")
        for i in range(len(parts)):
            like = by_path.get("/".join(parts[i:]))
            if like is not None and like[0].shape == x.shape:
                return NamedSharding(mesh, _trimmed(like[1]))
        if path in large and callable(rules):
            return NamedSharding(mesh, _trimmed(rules(path, x, mesh)))
        return NamedSharding(mesh, PartitionSpec())

    large = {
        f"{at}/{name}/{path}".strip("/")
        for at, node in tree.named_nodes(state)
        if isinstance(node, Large)
        for name in node.large
        for path in tree.paths(getattr(node, name))
    }
    return tree.map_with_path(one, state)


def _trimmed(spec: PartitionSpec) -> PartitionSpec:
    """Without the trailing None that says nothing, as JAX itself writes a spec."""
    entries = list(spec)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)
