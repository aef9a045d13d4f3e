"""Maximal update parametrisation: the rates of a narrow network, made those of the same network at any width."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._core import check
from .._core.check import said
from .._core.errors import ConfigError
from .._core.typing import Params, PyTree
from .._core.value import Call
from .adaptive import scale_by_adam, scale_by_lion, scale_by_rms
from .graft import after, alone
from .matrix import check_axes, form_of
from .momentum import momentum
from .muon import SCALINGS, orthogonalize, scale_by_muon
from .stages import walk
from .types import Transform, like, transform

Shapes = dict[str, tuple[int, ...]]

RULES = ("adam", "sgd", "spectral")


def mup(
    tx: optax.GradientTransformation,
    base: PyTree,
    now: PyTree = None,
    rule: str | None = None,
    axes: Mapping[str, str] | None = None,
) -> Transform:
    r"""Scale the updates of every leaf so that a rate found at one width is right at another.

    .. math::
        u_\ell \leftarrow f_\ell\, T(g)_\ell, \qquad
        f = \begin{cases}
          1 / m_i & \text{adam: entries of one size, whatever the gradient's} \\
          m_o / m_i & \text{sgd: as large as the gradient} \\
          \sqrt{m_o / m_i}\; s(\text{base}) / s(\text{now}) & \text{spectral: singular values of one size } s
        \end{cases}

    where :math:`m_i` and :math:`m_o` say how many times more inputs and outputs a leaf has now than in the base (1 for
    the inputs of a leaf of one axis). So the coordinates of every layer move by as much at any width. The rule of each
    leaf is read off `tx`. The rest of the parametrisation is the model's:

    - the first numbers of the last layer are smaller the wider it is (`mup_params`), or zero;
    - attention divides by the size of a head, not its root (times the base's root, to be the base's there);
    - where an embedding is the head too, the logits are divided by how many times wider the network is.

    `tools.coord_check` looks whether it holds. A weight decay inside `tx` is scaled with the rest; for one that is
    the same at any width, `chain(mup(scale_by_adam(), base), add_weight_decay(0.1), scale_by_learning_rate(rate))`.

    Args:
      tx: the inner transform: a whole optimizer, or the part of a chain that makes the direction. One that holds
        gradients back stands outside: `MultiSteps(mup(tx, base, now), k)`.
      base: the parameters at the width whose rates are known, or their shapes, or a function `key -> parameters`.
      now: those that are trained, likewise: what does not fit is said here, and not by `init`. None is those that it
        will be given.
      rule: `"adam"`, `"sgd"` or `"spectral"`, of all leaves, where `tx` does not say.
      axes: which axes are rows (inputs) and columns (outputs), `{regex: letters}`, as in `orthogonalize`; without
        one, the last two.

    Returns:
      A Transform with the state of `tx`.

    Raises:
      ConfigError: if the two have not the same leaves, an axis that is neither row nor column differs, the rule is
        not known, the parameters are not those of `now`, or `tx` is no transform, or holds gradients back.

    Examples:
      >>> import fntrain as ft, jax, jax.numpy as jnp
      >>> def init_params(width):
      ...     return {"in": jnp.ones((2, width)), "hidden": jnp.ones((width, width)), "out": jnp.ones((width, 1))}
      >>> tx = ft.transforms.mup(ft.optimizers.adam(0.1), init_params(4), init_params(16))
      >>> p = init_params(16)
      >>> u, _ = tx.update(p, tx.init(p), p)
      >>> {name: round(float(x[0, 0]), 4) for name, x in u.items()}
      {'hidden': -0.025, 'in': -0.1, 'out': -0.025}

    References:
      Yang et al., *Tensor programs V: tuning large neural networks via zero-shot hyperparameter transfer*, 2022; Yang,
      Simon, Bernstein, *A spectral condition for feature learning*, 2023.
    """
    made = _mup(tx, _shapes("base", base), None if now is None else _shapes("now", now), rule, axes)
    made.call = Call(mup, _SIGNATURE, made.call.arguments)  # type: ignore[union-attr]
    return made


mup.makes = Transform  # type: ignore[attr-defined]
_SIGNATURE = inspect.signature(mup)


@transform
def _mup(tx: Any, base: Shapes, now: Shapes | None, rule: str | None, axes: Mapping[str, str] | None):
    """The transform, of shapes by path."""
    tx = alone(tx, "mup")
    check_axes(axes)
    if rule is not None:
        check.one_of("rule", rule, RULES)
    rules = _rules(tx, base) if rule is None else dict.fromkeys(base, (rule, "none"))
    for shapes in (base, now or {}):
        _check_axes_match(shapes, axes)
    if now is not None:
        for path in _same_leaves(base, now):
            _growth(path, base[path], now[path], axes)

    def looked_at(params: Params) -> None:
        for path, x in tree.items(params):
            known = base if now is None else now
            if path not in known or (now is not None and now[path] != x.shape):
                raise ConfigError(
                    f"`{'base' if now is None else 'now'}` of mup has "
                    f"{f'shape {list(known[path])}' if path in known else 'nothing'} at `{path}`, and the parameters "
                    f"shape {list(x.shape)}: give it the parameters that are trained, `mup(tx, base, now=init_params)`"
                )
            _growth(path, base[path], x.shape, axes)

    def scaled(path: str, u: jax.Array, g: jax.Array) -> jax.Array:
        del g
        return _times(u, _factor(*rules[path], _growth(path, base[path], u.shape, axes)))

    return after(tx, scaled, "mup", rescales=None, looked_at=looked_at)


def mup_params(params: Params, base: PyTree, axes: Mapping[str, str] | None = None) -> Params:
    r"""The first numbers of a network as the maximal update parametrisation has them.

    .. math:: W \leftarrow \sqrt{\min(1, m_o / m_i)}\; W

    for kernels drawn with a variance of one over their inputs, as is usual: those that have more inputs than in the
    base, and no more outputs (the last layer), are smaller than that. All others stay as they are.

    Args:
      params: the parameters of the network as it is drawn; inside a function `key -> parameters` too.
      base: the parameters at the width whose rates are known, their shapes, or a function `key -> parameters`.
      axes: as in `mup`.

    Returns:
      A tree like `params`, in its dtypes.

    Raises:
      ConfigError: if the two have not the same leaves, or an axis that is neither row nor column differs.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> p = {"hidden": jnp.ones((16, 16)), "out": jnp.ones((16, 1))}
      >>> p = ft.transforms.mup_params(p, {"hidden": jnp.ones((4, 4)), "out": jnp.ones((4, 1))})
      >>> float(p["hidden"][0, 0]), float(p["out"][0, 0])
      (1.0, 0.5)

    References:
      Yang et al., *Tensor programs V: tuning large neural networks via zero-shot hyperparameter transfer*, 2022.
    """
    check_axes(axes)
    narrow, shapes = _shapes("base", base), _shapes("params", params)
    _check_axes_match(shapes, axes)
    growths = {path: _growth(path, narrow[path], shapes[path], axes) for path in _same_leaves(narrow, shapes)}

    def scaled(path: str, x: jax.Array) -> jax.Array:
        if path not in growths:  # integers
            return x
        return _times(x, math.sqrt(min(1.0, growths[path].outputs / growths[path].inputs)))

    return tree.map_with_path(scaled, params)


def _times(x: jax.Array, factor: float) -> jax.Array:
    wide = tree.wide(x)
    return x if factor == 1 else like(wide * like(factor, wide), x)


def _shapes(name: str, params: Any) -> Shapes:
    """The shape of every leaf by path, of parameters in any form."""
    if isinstance(params, Mapping) and params and all(map(_is_shape, params.values())):
        return dict(params)  # as they are made here
    if callable(params):
        params = jax.eval_shape(params, jax.random.key(0))
        params = getattr(params, "params", params)  # of a model, which has a state too
    trained, _ = tree.split(params)
    shapes = {path: tuple(x.shape) for path, x in tree.items(trained)}
    if not shapes:
        raise ConfigError(
            f"`{name}` must be parameters, their shapes, or a function `key -> parameters`, got {said(params)}"
        )
    return shapes


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple) and all(isinstance(n, int) for n in x)


def _same_leaves(base: Shapes, now: Shapes) -> list[str]:
    if set(base) != set(now):
        left = sorted(set(base) ^ set(now))
        raise ConfigError(f"`base` and `now` must have the same leaves, and one alone has {tree.some(left)}")
    return list(now)


def _check_axes_match(shapes: Shapes, axes: Mapping[str, str] | None) -> None:
    for pattern in axes or {}:
        if shapes and not any(tree.compiled(pattern, "axes").search(path) for path in shapes):
            raise tree.unmatched(pattern, list(shapes), "axes")


class Growth(NamedTuple):
    """What a leaf is as a matrix, in the base and now, and how many times more it has now."""

    base: tuple[int, int, int]
    now: tuple[int, int, int]
    inputs: float
    outputs: float


def _growth(path: str, base: tuple[int, ...], now: tuple[int, ...], axes: Mapping[str, str] | None) -> Growth:
    if len(base) != len(now):
        raise ConfigError(
            f"`{path}` has {len(base)} axes in `base`, and {len(now)} now: the same network, wider, has as many"
        )
    narrow, wide = (_matrix(path, shape, axes or {}) for shape in (base, now))
    if narrow[0] != wide[0] or 0 in narrow:
        raise ConfigError(
            f"`{path}` has shape {list(base)} in `base` and {list(now)} now, which differ in an axis that is neither "
            f"rows nor columns: say which are, `axes={{'query|key|value': 'rcc', 'out': 'rrc'}}`"
        )
    return Growth(narrow, wide, wide[1] / narrow[1], wide[2] / narrow[2])


def _matrix(path: str, shape: tuple[int, ...], axes: Mapping[str, str]) -> tuple[int, int, int]:
    # A leaf of one axis is a row of outputs: a bias has one input at any width.
    form = form_of(path, (1, *shape), {}, "mup") if len(shape) == 1 else form_of(path, shape, axes, "mup")
    return (1, 1, 1) if form is None else form.shape


_DIRECTIONS: dict[Callable[..., Any], str] = {
    scale_by_adam: "adam",
    scale_by_lion: "adam",
    scale_by_rms: "adam",
    scale_by_muon: "spectral",
    orthogonalize: "spectral",
}


def _rules(tx: Transform, base: Shapes) -> dict[str, tuple[str, str]]:
    """Of each leaf, by path: its rule, and what scales its singular values."""
    found: dict[str, tuple[str, str]] = {}
    shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in base.items()}
    for stage in walk(tx, shapes):
        inner = stage.tx
        if (
            inner.stages or inner.rescales is False or inner.made_by(momentum)
        ):  # whose updates are as what they get
            continue
        call = inner.call
        rule = None if call is None else _DIRECTIONS.get(call.factory)
        if rule is None:
            raise ConfigError(
                f"`tx` {tx!r}: how large the updates of {inner!r} are is not known; say it by `rule`: 'adam' "
                f"(entries of one size), 'sgd' (as the gradient) or 'spectral' (singular values of one size)"
            )
        scaling = call.arguments["scaling"] if rule == "spectral" else "none"  # type: ignore[union-attr]
        found |= dict.fromkeys(tree.paths(stage.params), (rule, scaling))
    return {path: found.get(path, ("sgd", "none")) for path in base}


def _factor(rule: str, scaling: str, growth: Growth) -> float:
    if rule == "adam":
        return 1 / growth.inputs
    if rule == "sgd":
        return growth.outputs / growth.inputs
    base, now = (SCALINGS[scaling](*shape[1:]) for shape in (growth.base, growth.now))
    return math.sqrt(growth.outputs / growth.inputs) * base / now
