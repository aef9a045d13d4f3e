"""Muon: a momentum whose matrices are brought near to orthogonal ones."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .._core.typing import PyTree, ScheduleLike
from .folding import decay_at
from .matrix import Form, check_axes, forms, in_stacks
from .scheduled import scheduled
from .types import Moments, Transform, increment, like, transform

Triples = tuple[tuple[float, float, float], ...]

# The polynomials that are best after one another for singular values in [0.001, 1]; 1.01 leaves room for rounding.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
COEFFICIENTS: dict[str, Triples] = {
    "polar_express": tuple((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _POLAR_EXPRESS[:-1])
    + _POLAR_EXPRESS[-1:],
    "jordan": ((3.4445, -4.7750, 2.0315),),
    "newton_schulz": ((1.875, -1.25, 0.375),),
}
"""Coefficients of the odd polynomials :math:`a x + b x^3 + c x^5`, by name; the last triple goes on for ever."""

SCALINGS = {
    "aspect": lambda rows, columns: math.sqrt(max(1.0, columns / rows)),
    "rms": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "spectral": lambda rows, columns: math.sqrt(columns / rows),
    "none": lambda rows, columns: 1.0,
}
"""What an orthogonalised matrix is multiplied by, from its rows (inputs) and columns (outputs)."""


class _ScaleByMuon(NamedTuple):
    count: jax.Array  # int32, shape ()
    mu: PyTree  # float32 at least, the parameters' shapes
    scheduled: Any = ()  # the momentum of the last update, where it is a schedule


@transform
def orthogonalize(
    steps: int = 5,
    coefficients: str | Sequence[Sequence[float]] = "polar_express",
    scaling: str = "aspect",
    axes: Mapping[str, str] | None = None,
    dtype: str = "bfloat16",
):
    r"""Replace every matrix by the nearest orthogonal one, nearly.

    .. math:: X_0 = \frac{G}{1.01\, \lVert G \rVert_F}, \qquad
              X_{k+1} = a_k X_k + b_k (X_k X_k^\top) X_k + c_k (X_k X_k^\top)^2 X_k, \qquad u = s\, X_n

    For :math:`G = U \Sigma V^\top` the limit is :math:`U V^\top`: the step of steepest descent in the spectral norm.
    With the defaults all singular values above 0.001 of the Frobenius norm end in [0.84, 1.13], up to the
    rounding of the iteration. A step takes :math:`2 r^2 c + r^3` multiplications for r rows and c columns, r the
    smaller; matrices of one shape are taken together (transposed ones too), and on a mesh each device takes its share:
    what is split over n devices moves there and back, twice 1/n of it for each device.

    Args:
      steps: n, >= 1.
      coefficients: (a, b, c) of each step: `"polar_express"`, `"jordan"`, `"newton_schulz"` (the classical quintic,
        slow and exact), or triples; the last one goes on.
      scaling: s, for r input rows and c output columns: `"aspect"` :math:`\sqrt{\max(1, c / r)}`, `"rms"`
        :math:`0.2 \sqrt{\max(r, c)}` (entries as large as Adam's, so that its rates and decays fit), `"spectral"`
        :math:`\sqrt{c / r}`, or `"none"`.
      axes: which axes are rows and columns: `{regex: letters}`, a letter an axis, `r`, `c`, or `b` for those that
        count matrices; `{"query|key|value": "rbc", "conv": "rrrc"}`. The first regex found in a path counts; without
        one the last two axes are a matrix.
      dtype: what is iterated in; leaves of float64 stay in float64.

    Returns:
      A Transform without state; shapes and dtypes are kept. Zeros stay zeros.

    Raises:
      ConfigError: if an argument is out of range, or a leaf has fewer than two axes.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.transforms.orthogonalize(steps=12, coefficients="newton_schulz", dtype="float32")
      >>> g = jnp.array([[3.0, 0.0], [0.0, -0.5]])
      >>> jnp.round(tx.update(g, tx.init(g))[0], 3).tolist()
      [[1.0, 0.0], [0.0, -1.0]]

    References:
      Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024; Amsel et al., *The Polar Express:
      optimal matrix sign methods*, 2025; Liu et al., *Muon is scalable for LLM training*, 2025 (`"rms"`).
    """
    own = _Iteration.of(steps, coefficients, scaling, axes, dtype)

    def init_fn(params):
        own.forms(params, "orthogonalize")
        return ()

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        return own(updates, updates, "orthogonalize"), state

    return Transform(init_fn, update_fn, rescales=True, descends=False)


@transform
def scale_by_muon(
    momentum: ScheduleLike = 0.95,
    nesterov: bool = True,
    steps: int = 5,
    coefficients: str | Sequence[Sequence[float]] = "polar_express",
    scaling: str = "aspect",
    axes: Mapping[str, str] | None = None,
    dtype: str = "bfloat16",
):
    r"""Muon's direction: the momentum, orthogonalised matrix by matrix.

    .. math:: m_t = \mu\, m_{t-1} + (1 - \mu)\, g_t, \qquad
              u_t = s\, \operatorname{orth}(\mu\, m_t + (1 - \mu)\, g_t) \quad\text{or}\quad
              s\, \operatorname{orth}(m_t)

    It is for matrices: embeddings, heads, biases and gains are better left to Adam, as `optimizers.muon` does. The
    momentum is float32 at least. Costs, precision and arguments are those of `orthogonalize`.

    Args:
      momentum: μ, in [0, 1), or a schedule of it over updates.
      nesterov: look one gradient ahead.
      steps: of the iteration, >= 1.
      coefficients: of each step, as in `orthogonalize`.
      scaling: s, as there.
      axes: which axes are rows and columns, as there.
      dtype: what is iterated in, as there.

    Returns:
      A Transform; updates keep their shapes and dtypes.

    Raises:
      ConfigError: if an argument is out of range, or a leaf has fewer than two axes.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.transforms.scale_by_muon(steps=12, coefficients="newton_schulz", dtype="float32")
      >>> g = jnp.array([[3.0, 0.0], [0.0, -0.5]])
      >>> jnp.round(tx.update(g, tx.init(g))[0], 3).tolist()
      [[1.0, 0.0], [0.0, -1.0]]

    References:
      Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024.
    """
    check.number_or_schedule("momentum", momentum, at_least=0, below=1)
    own = _Iteration.of(steps, coefficients, scaling, axes, dtype)

    def init_fn(params):
        own.forms(params, "scale_by_muon")
        count = jnp.zeros((), jnp.int32)
        return ScaleByMuonState(count, tree.wide_zeros(params), scheduled(count, momentum=momentum))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        beta = decay_at(momentum, state.count)
        mu = jax.tree.map(lambda g, m: beta.fold(m, like(g, m)), updates, state.mu)
        ahead = jax.tree.map(lambda g, m: beta.fold(m, like(g, m)), updates, mu) if nesterov else mu
        new = own(ahead, updates, "scale_by_muon")
        return new, ScaleByMuonState(increment(state.count), mu, scheduled(state.count, momentum=momentum))

    return Transform(init_fn, update_fn, rescales=True, descends=False)


class _Iteration(NamedTuple):
    """What orthogonalises, and which leaves as what."""

    triples: Triples
    scaling: str
    axes: Mapping[str, str] | None
    dtype: Any

    @classmethod
    def of(cls, steps: Any, coefficients: Any, scaling: Any, axes: Any, dtype: Any) -> "_Iteration":
        steps = check.integer("steps", steps, at_least=1)
        check.one_of("scaling", scaling, list(SCALINGS))
        check_axes(axes)
        check.one_of("dtype", dtype, ["bfloat16", "float16", "float32", "float64"])
        triples = _triples(coefficients)
        return cls((triples + triples[-1:] * steps)[:steps], scaling, axes, jnp.dtype(dtype))

    def forms(self, params: PyTree, name: str) -> list[Form]:
        found = forms(params, self.axes, name)
        for form, (path, x) in zip(found, tree.items(params)):
            if form is None:
                raise ConfigError(
                    f"`{path}` of shape {list(x.shape)} is no matrix, which {name} is for: "
                    f"`optimizers.muon(rate, matrices=regex)` leaves such leaves to Adam, as does "
                    f"`by_path({{'kernel': {name}(), '.*': scale_by_adam()}})`"
                )
        return [form for form in found if form is not None]

    def __call__(self, directions: PyTree, updates: PyTree, name: str) -> PyTree:
        """The matrices of `directions` made orthogonal, as updates of the dtypes of `updates`."""
        leaves, structure = jax.tree.flatten(directions)
        own = self.forms(directions, name)
        lying = [form.shape[1] <= form.shape[2] for form in own]
        stacks = [form.matrices(tree.wide(x)) for form, x in zip(own, leaves)]
        stacks = [x if flat else x.mT for x, flat in zip(stacks, lying)]
        done = in_stacks(functools.partial(_orthogonal, triples=self.triples, dtype=self.dtype), stacks)
        new = []
        for x, form, flat, leaf, g in zip(done, own, lying, leaves, jax.tree.leaves(updates)):
            factor = SCALINGS[self.scaling](*form.shape[1:])
            x = form.leaf(x if flat else x.mT, leaf)
            new.append(like(x * like(factor, x), g))
        return jax.tree.unflatten(structure, new)


@functools.partial(jax.jit, static_argnames=("triples", "dtype"))
def _orthogonal(x: jax.Array, *, triples: Triples, dtype: Any) -> jax.Array:
    """Matrices `[N, r, c]`, r <= c, as near to orthogonal ones; in the dtype they came in."""
    wide = x.dtype
    # By the largest entry first, whose square may not be what float32 holds.
    largest = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True, initial=0)
    x = x / jnp.where(largest > 0, largest, jnp.ones((), wide))
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True))
    x = x / (jnp.where(norm > 0, norm, jnp.ones((), wide)) * jnp.asarray(1.01, wide))
    kind = wide if wide == jnp.float64 else dtype
    x = x.astype(kind)
    for a, b, c in triples:
        square = x @ x.mT
        inner = jnp.asarray(b, kind) * square + jnp.asarray(c, kind) * (square @ square)
        x = jnp.asarray(a, kind) * x + inner @ x
    return x.astype(wide)


def _triples(coefficients: Any) -> Triples:
    if isinstance(coefficients, str):
        check.one_of("coefficients", coefficients, list(COEFFICIENTS))
        return COEFFICIENTS[coefficients]
    try:
        triples = tuple((float(a), float(b), float(c)) for a, b, c in coefficients)
    except (TypeError, ValueError):
        triples = ()
    if not triples:
        raise ConfigError(
            f"`coefficients` must be one of {list(COEFFICIENTS)}, or triples [(a, b, c), …], at least one, got "
            f"{check.said(coefficients)}"
        )
    return triples


class ScaleByMuonState(Moments, _ScaleByMuon):
    """The momentum, in float32 at least."""

    moments: ClassVar[tuple[str, ...]] = ("mu",)
