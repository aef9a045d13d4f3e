"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from .. import tree
from .._core import check
from .._core.typing import PyTree
from ..sharding.rules import Large
from .branch import branch
from .folding import Decay, decay_at, power_seen
from .matrix import Form, check_axes, forms, in_stacks
from .types import Moments, Transform, increment, like, transform


class _ScaleBySoap(NamedTuple):
    count: jax.Array  # int32, shape ()
    mu: PyTree  # the parameters' shapes
    nu: PyTree  # the parameters' shapes, in the eigenbasis
    left: PyTree  # running mean of g gᵀ
    right: PyTree  # running mean of gᵀ g
    left_basis: PyTree  # its eigenvectors, as they last were, in columns
    right_basis: PyTree


class ScaleBySoapState(Large, Moments, _ScaleBySoap):
    """Adam's moments, the second one in the eigenbasis, and the basis; float32 at least.

    The last four have arrays `[matrices, n, n]` for the axes that are turned, and None for the others.
    """

    moments: ClassVar[tuple[str, ...]] = ("mu", "nu")
    large: ClassVar[tuple[str, ...]] = ("left", "right", "left_basis", "right_basis")


@transform
def scale_by_soap(
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    precondition_frequency: int = 10,
    max_dim: int = 8192,
    one_sided: bool = False,
    basis_decay: float | None = None,
    axes: Mapping[str, str] | None = None,
):
    r"""SOAP's direction: Adam's, taken in the slowly turning eigenbasis of the gradient's second moments.

    .. math::
        L_t &= \beta_s L_{t-1} + (1 - \beta_s)\, g_t g_t^\top, \qquad
        R_t = \beta_s R_{t-1} + (1 - \beta_s)\, g_t^\top g_t \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) (Q_L^\top g_t Q_R)^2 \\
        u_t &= Q_L \left( \frac{Q_L^\top m_t Q_R / (1 - \beta_1^{t})}{\sqrt{v_t / (1 - \beta_2^{t})} + \epsilon}
               \right) Q_R^\top

    The bases :math:`Q` are eigenvectors of L and R after the first gradient, and then follow them, every
    `precondition_frequency` updates, by one step of power iteration and a QR decomposition, :math:`Q \leftarrow
    \operatorname{qr}(L\, Q)`, the columns by falling eigenvalue. The first gradient makes the bases and nothing
    else: its own update is zero, and t counts those after it. Leaves of fewer than two axes have Adam's direction
    from their second gradient on.

    A step takes :math:`4\,(r^2 c + r c^2)` multiplications for r rows and c columns, and a turn of the bases
    :math:`O(r^3 + c^3)`. Beside Adam's moments the state has :math:`2\,(r^2 + c^2)` numbers. Matrices of one shape are
    taken together, and on a mesh each device takes its share of them: what moves to it and back, bases included, is
    at most twice the size of all matrices, where these are split over the devices. A population turns its bases at the
    updates at which a run of one would.

    Args:
      b1: β₁, in [0, 1).
      b2: β₂, in [0, 1).
      eps: ε, > 0, outside the root.
      precondition_frequency: updates from one turn of the bases to the next, >= 1.
      max_dim: axes longer than this are not turned, as if their basis were the identity, >= 1.
      one_sided: turn the shorter axis of a matrix alone: half the cost, and less than half where it is not square.
      basis_decay: β_s, in [0, 1); None is β₂.
      axes: which axes are rows and columns, `{regex: letters}`, as in `orthogonalize`.

    Returns:
      A Transform; updates keep their shapes and dtypes. Moments and bases are float32 at least.

    Raises:
      ConfigError: if an argument is out of range, or the letters do not fit a leaf.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.transforms.scale_by_soap()
      >>> g = jnp.array([[3.0, 1.0], [1.0, 3.0]])
      >>> u, state = tx.update(g, tx.init(g))
      >>> u.tolist()
      [[0.0, 0.0], [0.0, 0.0]]

    References:
      Vyas et al., *SOAP: improving and stabilizing Shampoo using Adam*, 2024.
    """
    check.number("b1", b1, at_least=0, below=1)
    check.number("b2", b2, at_least=0, below=1)
    check.number("eps", eps, above=0)
    every = check.integer("precondition_frequency", precondition_frequency, at_least=1)
    longest = check.integer("max_dim", max_dim, at_least=1)
    if basis_decay is not None:
        check.number("basis_decay", basis_decay, at_least=0, below=1)
    check_axes(axes)

    def init_fn(params):
        bases = [_bases(form, x, longest, one_sided) for form, x in _matrices(params, axes)]
        structure = jax.tree.structure(params)
        left, right = (jax.tree.unflatten(structure, [pair[side] for pair in bases]) for side in (0, 1))
        mu, nu = tree.wide_zeros(params), tree.wide_zeros(params)
        grams = tree.zeros_like(left), tree.zeros_like(right)
        return ScaleBySoapState(jnp.zeros((), jnp.int32), mu, nu, *grams, left, right)

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        first = state.count == 0
        count = jnp.maximum(state.count, 1)
        numbers = _Numbers(
            first,
            ~first & (state.count % every == 0),
            decay_at(b2, state.count),
            decay_at(b2 if basis_decay is None else basis_decay, state.count),
            power_seen(b1, count),
            power_seen(b2, count),
            eps,
        )
        beta1 = decay_at(b1, state.count)
        mu = jax.tree.map(lambda g, m: jnp.where(first, m, beta1.fold(m, like(g, m))), updates, state.mu)
        leaves, structure = jax.tree.flatten(updates)
        sides = [structure.flatten_up_to(x) for x in state[3:]]
        moments = zip(jax.tree.leaves(mu), jax.tree.leaves(state.nu))
        done, items = {}, {}
        for i, ((form, g), (m, v), *grams) in enumerate(zip(_matrices(updates, axes), moments, *sides)):
            if form is None or (grams[2] is None and grams[3] is None):
                done[i] = _adam(like(g, v), m, v, numbers)
                continue
            g, m, v = (form.matrices(x) for x in (like(g, v), m, v))
            items[i] = _Matrices(g, m, v, numbers.rows(form.shape[0], v.dtype), *grams)
        new = in_stacks(lambda x: _turned(x, eps), list(items.values()))
        for i, (form, g), (u, v, *grams) in zip(items, [_matrices(updates, axes)[i] for i in items], new):
            for side, x in zip(sides, grams):
                side[i] = x
            done[i] = form.leaf(u, g), form.leaf(v, g)  # type: ignore[union-attr]
        directions = [like(done[i][0], g) for i, g in enumerate(leaves)]
        nu = jax.tree.unflatten(structure, [done[i][1] for i in range(len(leaves))])
        kept = (jax.tree.unflatten(structure, side) for side in sides)
        return jax.tree.unflatten(structure, directions), ScaleBySoapState(
            increment(state.count), mu, nu, *kept
        )

    return Transform(init_fn, update_fn, rescales=True, descends=False)


def _matrices(params: PyTree, axes: Mapping[str, str] | None) -> list[tuple[Form | None, jax.Array]]:
    return list(zip(forms(params, axes, "scale_by_soap"), jax.tree.leaves(params)))


def _bases(form: Form | None, x: Any, longest: int, one_sided: bool) -> tuple[Any, Any]:
    """The identity for each side that is turned; None for one that is not."""
    if form is None:
        return None, None
    batch, rows, columns = form.shape
    turned = (
        rows <= longest and not (one_sided and rows > columns),
        columns <= longest and not (one_sided and columns >= rows),
    )
    kind = tree.wide_dtype(x)
    return tuple(  # type: ignore[return-value]
        jnp.broadcast_to(jnp.eye(n, dtype=kind), (batch, n, n)) if yes else None
        for n, yes in zip((rows, columns), turned)
    )


class _Numbers(NamedTuple):
    """What an update needs besides arrays of the parameters' shapes."""

    first: jax.Array
    due: jax.Array
    second: Decay
    basis: Decay
    bias1: Any
    bias2: Any
    eps: float

    def rows(self, n: int, kind: Any) -> jax.Array:
        """As `[n, 8]`, a row a matrix: what is shared out over devices has to have rows."""
        numbers = (self.first, self.due, *self.second, *self.basis, self.bias1(kind), self.bias2(kind))
        row = jnp.stack([jnp.asarray(x, kind) for x in numbers])
        return jnp.broadcast_to(row, (n, len(numbers)))


def _adam(g: jax.Array, m: jax.Array, v: jax.Array, numbers: _Numbers) -> tuple[jax.Array, jax.Array]:
    """The direction and the second moment of a leaf that is not turned."""
    new = numbers.second.fold(v, jnp.square(g))
    v = jnp.where(numbers.first, v, new)
    return _direction(m, v, numbers.bias1(v.dtype), numbers.bias2(v.dtype), numbers.eps), v


def _direction(m: jax.Array, v: jax.Array, bias1: Any, bias2: Any, eps: float) -> jax.Array:
    return (m / bias1) / (jnp.sqrt(v / bias2) + like(eps, v))


class _Matrices(NamedTuple):
    """A stack of matrices with all that belongs to them: rows of one function."""

    g: jax.Array
    m: jax.Array
    v: jax.Array
    numbers: jax.Array
    left: Any = None
    right: Any = None
    left_basis: Any = None
    right_basis: Any = None


def _turned(x: _Matrices, eps: float) -> tuple[Any, ...]:
    """`(direction, v, left, right, left_basis, right_basis)` of a stack."""
    first, due = (x.numbers[0, i] > 0 for i in (0, 1))
    kept2, added2, kept, added, bias1, bias2 = (x.numbers[0, i] for i in range(2, 8))

    def into(a: jax.Array, left: Any, right: Any) -> jax.Array:
        a = a if left is None else left.mT @ a
        return a if right is None else a @ right

    def out_of(a: jax.Array, left: Any, right: Any) -> jax.Array:
        a = a if left is None else left @ a
        return a if right is None else a @ right.mT

    bases = x.left_basis, x.right_basis
    v = jnp.where(first, x.v, kept2 * x.v + added2 * jnp.square(into(x.g, *bases)))
    u = out_of(_direction(into(x.m, *bases), v, bias1, bias2, eps), *bases)
    left = None if x.left is None else kept * x.left + added * (x.g @ x.g.mT)
    right = None if x.right is None else kept * x.right + added * (x.g.mT @ x.g)

    begun = branch(first, lambda old: _begun(old, left, right), (v, *bases))
    v, *bases = branch(due, lambda old: _turned_on(old, left, right), begun)
    return u, v, left, right, *bases


def _begun(old: tuple[Any, ...], left: Any, right: Any) -> tuple[Any, ...]:
    """The bases of the first gradient."""
    return old[0], *(None if a is None else jnp.linalg.eigh(a)[1][..., ::-1] for a in (left, right))


def _turned_on(old: tuple[Any, ...], left: Any, right: Any) -> tuple[Any, ...]:
    """The bases after a turn, and the second moment with its axes in their new order."""
    v, left_basis, right_basis = old
    left_basis, places = _followed(left, left_basis)
    v = v if places is None else jnp.take_along_axis(v, places[:, :, None], axis=1)
    right_basis, places = _followed(right, right_basis)
    v = v if places is None else jnp.take_along_axis(v, places[:, None, :], axis=2)
    return v, left_basis, right_basis


def _followed(gram: Any, basis: Any) -> tuple[Any, Any]:
    """The basis after a step towards the eigenvectors, and where its columns, by falling eigenvalue, were before."""
    if gram is None:
        return None, None
    image = gram @ basis
    values = jnp.sum(basis * image, axis=1)
    places = jnp.argsort(-values, axis=-1)
    image = jnp.take_along_axis(image, places[:, None, :], axis=2)
    return jnp.linalg.qr(image)[0], places
