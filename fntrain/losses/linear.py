"""Cross-entropy of a linear layer's logits, which are never there as a whole: a language model's head."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.typing import ArrayLike
from ..sharding import explicit, manual
from ..tree import wide_dtype
from .inputs import floating, kept
from .labels import class_weights as _class_weights, counted_classes
from .loss import Loss


def linear_cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    *,
    chunk: int = 4096,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | Sequence[float] | None = None,
    ignore_index: int | None = None,
    z_loss: float = 0.0,
    weights: ArrayLike | None = None,
) -> Loss:
    r"""`cross_entropy(hidden @ kernel, labels)`, a few rows of logits at a time.

    With logits :math:`z_i = h_i W`, over V classes, :math:`\log Z_i = \log \sum_v e^{z_{iv}}`, class weights :math:`w`
    (ones if None), label smoothing :math:`\epsilon` and the z-loss's coefficient :math:`\lambda`:

    .. math:: \ell_i = (1 - \epsilon) (\log Z_i - z_{i y_i})
                       + \frac{\epsilon}{V} \sum_v \frac{w_v}{w_{y_i}} (\log Z_i - z_{iv}) + \lambda \log^2 Z_i,
              \qquad L = \frac{\sum_i w_{y_i} \ell_i}{\sum_i w_{y_i}}

    The logits of N tokens over a large vocabulary are most of the memory of a language model's step. Here a scan holds
    those of `chunk` rows, and makes the gradient on the same pass, while they are there: the same three products as
    without chunks, 6 N D V operations (2 N D V where no gradient is asked for), and memory for one chunk's logits and
    for the gradient, `[N, D]` and `[D, V]`.

    On that pass it is not known yet how much each value will count. It is taken that they count as their weights say,
    up to one common factor, which holds for means and sums; the pass backward looks whether it does. Where it does not
    (rows that a step weighs, the padding of a last batch), the gradient is made again with what came: exact for any
    cotangents, for 12 N D V operations, as always under `vmap`, which cannot choose.

    Rows go to chunks in turn, row i to chunk i modulo their number: the leading axis of a batch may be split over
    devices, and V too. Where XLA splits the batch, the kernel's gradient is summed over the devices once a chunk; in a
    Task with `axis_name=`, once. Second derivatives are made chunk by chunk, by recomputation; forward-mode
    differentiation is refused by JAX. A bias is a row of the kernel, for a hidden 1.

    Args:
      hidden: `[…, D]`, floating-point. Products are formed in its dtype (bfloat16, say; float64 if either argument is
        that), with sums in float32 at least.
      kernel: `[D, V]`, floating-point, of any such dtype; its gradient is summed in float32 at least and leaves in its
        own. A tied embedding `[V, D]` goes in as `embedding.T`.
      labels: integers `[…]`.
      chunk: the most rows whose logits are there at once, >= 1.
      label_smoothing: ε, the mass spread evenly over the classes, in [0, 1].
      class_weights: `[V]`, >= 0. They weigh the mean, and are constants for gradients.
      ignore_index: the integer label of what is not counted.
      z_loss: λ >= 0, which keeps the normaliser near 1 (1e-4 in PaLM).
      weights: what counts, and how much, broadcastable to `[…]`, >= 0; they multiply the class weights. Hidden rows
        and labels of weight zero may hold anything, and get no gradient. None is ones.

    Returns:
      A Loss with values `[…]`, and weights as those of `cross_entropy`. A label that is no class is an error where it
      can be read, else its value is NaN.

    Raises:
      ConfigError: if an option is out of range, or `label_smoothing` or `z_loss` is traced.
      DataError: if shapes or dtypes do not fit, or a label is no class.

    Examples:
      >>> import fntrain as ft, jax, jax.numpy as jnp
      >>> hidden, kernel = jnp.eye(3, 4), jnp.arange(20.0).reshape(4, 5) / 10
      >>> labels = jnp.array([4, 0, 2])
      >>> loss = ft.losses.linear_cross_entropy(hidden, kernel, labels, chunk=2)
      >>> [round(float(v), 4) for v in loss.values]
      [1.4194, 1.8194, 1.6194]
      >>> gradient = jax.grad(lambda h: ft.losses.linear_cross_entropy(h, kernel, labels).mean())(hidden)
      >>> gradient.shape
      (3, 4)

    References:
      Wijmans et al., *Cut Your Losses in Large-Vocabulary Language Models*, 2025; Hsu et al., *Liger Kernel*, 2024
      (the gradient on the way forward); Chowdhery et al., *PaLM*, 2022 (z-loss).
    """
    size = check.integer("chunk", chunk, at_least=1)
    check.number("label_smoothing", label_smoothing, at_least=0, at_most=1)
    check.number("z_loss", z_loss, at_least=0)
    for name, option in (("label_smoothing", label_smoothing), ("z_loss", z_loss)):
        if not check.is_concrete(option):
            raise ConfigError(
                f"`{name}` must be a number while tracing, for the gradient is made on the way forward"
            )
    hidden, kernel = _operands(hidden, kernel)
    rows, classes, dtype = hidden.shape[:-1], kernel.shape[1], wide_dtype(hidden)
    labels, w = counted_classes((*rows, classes), dtype, labels, ignore_index, weights, soft=False)
    known = (labels >= 0) & (labels < classes)
    index = jnp.where(known, labels, 0)
    own = per_class = None
    if class_weights is not None:
        per_class = jax.lax.stop_gradient(_class_weights("class_weights", class_weights, classes, dtype))
        # A label that is no class keeps a weight, so that its NaN is not taken for something left out.
        own = jnp.where(known, per_class[index], 1)
    inverse = jnp.ones(rows, dtype) if own is None else 1 / jnp.where(own > 0, own, 1)
    targets = _Targets(index.reshape(-1), inverse.reshape(-1), per_class)
    if w is not None:
        own = w if own is None else jnp.where(w != 0, own * w, 0)
    counts = known.astype(dtype) if own is None else jnp.where(known, own, 0)
    hidden = kept(w, hidden).reshape(-1, hidden.shape[-1])
    over = manual.axes((hidden, kernel, targets, counts))
    given: Any = manual.vary((hidden, kernel, targets, counts.reshape(-1)), over)
    form = _Form(float(label_smoothing), float(z_loss), max(1, -(-index.size // size)))
    values = jnp.where(
        known, jnp.reshape(explicit.automatic(functools.partial(_values, form), *given), rows), jnp.nan
    )
    return Loss(values if w is None else jnp.where(w != 0, values, 0), own)


def _operands(hidden: Any, kernel: Any) -> tuple[jax.Array, jax.Array]:
    """Both factors of the logits, which fit each other."""
    hidden, kernel = jnp.asarray(hidden), jnp.asarray(kernel)
    floating("hidden", hidden, "kernel, labels")
    floating("kernel", kernel, "labels")
    if kernel.ndim != 2 or hidden.ndim == 0 or hidden.shape[-1] != kernel.shape[0] or 0 in kernel.shape:
        tied = kernel.ndim == 2 and hidden.ndim > 0 and hidden.shape[-1] == kernel.shape[1]
        raise DataError(
            f"`hidden` and `kernel` must be of shapes […, D] and [D, V], got {list(hidden.shape)} and "
            f"{list(kernel.shape)}" + "; did you mean `kernel.T`?" * tied
        )
    return hidden.astype(jnp.float64) if kernel.dtype == jnp.float64 else hidden, kernel


@dataclasses.dataclass(frozen=True)
class _Form:
    """What is known while tracing: the shares of smoothing and z-loss, and the number of chunks."""

    smoothing: float
    z_loss: float
    chunks: int


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["label", "inverse", "spread"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class _Targets:
    """The label of each row, one over its class's weight, and the weights of all classes (None: all ones)."""

    label: jax.Array
    inverse: jax.Array
    spread: jax.Array | None

    def cut(self, chunks: int) -> "_Targets":
        """Those of the rows of each chunk."""
        return _Targets(_cut(self.label, chunks), _cut(self.inverse, chunks), None)

    def over(self, spread: jax.Array | None) -> "_Targets":
        """The same rows, with the weights of all classes, which are not cut."""
        return dataclasses.replace(self, spread=spread)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _values(form: _Form, hidden: Any, kernel: Any, targets: _Targets, counts: Any) -> jax.Array:
    """The value of each row; `counts` is what it is taken to count when the gradient is made."""
    del counts
    return _without_gradient(form, hidden, kernel, targets)


def _values_forward(form: _Form, hidden: Any, kernel: Any, targets: _Targets, counts: Any) -> Any:
    values, *gradient = cast(Any, _first(form, hidden, kernel, targets, counts))
    return values, (hidden, kernel, targets, counts, *gradient)


def _values_backward(form: _Form, kept_back: Any, cotangents: Any) -> Any:
    by_hidden, by_kernel = cast(Any, _gradient(form, *kept_back, cotangents))
    return by_hidden, by_kernel, None, None


_values.defvjp(_values_forward, _values_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _first(form: _Form, hidden: Any, kernel: Any, targets: _Targets, counts: Any) -> Any:
    """The values and their gradient; of the second derivatives, `_gradient` has those that go through the latter."""
    return _with_gradient(form, hidden, kernel, targets, counts)


def _first_forward(form: _Form, hidden: Any, kernel: Any, targets: _Targets, counts: Any) -> Any:
    return _first(form, hidden, kernel, targets, counts), (hidden, kernel, targets)


def _first_backward(form: _Form, kept_back: Any, cotangents: Any) -> Any:
    hidden, kernel, targets = kept_back
    pull = jax.vjp(lambda h, k: _without_gradient(form, h, k, targets), hidden, kernel)[1]
    return *pull(cotangents[0]), None, None


_first.defvjp(_first_forward, _first_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(
    form: _Form,
    hidden: Any,
    kernel: Any,
    targets: _Targets,
    counts: Any,
    by_hidden: Any,
    by_kernel: Any,
    g: Any,
) -> tuple[jax.Array, jax.Array]:
    """The gradient for cotangents `g`: a multiple of the one that was made for `counts`, or made again."""
    most, largest = jnp.max(counts, initial=0), jnp.max(jnp.abs(g), initial=0)
    common = jnp.where(jnp.sum(g) < 0, -largest, largest) / jnp.where(most > 0, most, 1)
    # To within the rounding of the multiplications that `g` has come through.
    near = 8 * jnp.finfo(g.dtype).eps * jnp.abs(common)
    same = jnp.all(jnp.abs(g - common * counts) <= near * counts)

    def again() -> tuple[jax.Array, jax.Array]:
        # Near 1 while products are formed, which keeps them out of a low precision's underflow.
        scaled = g / jnp.where(largest > 0, largest, 1)
        return _with_gradient(form, hidden, kernel, targets, scaled)[1:]

    by_hidden, by_kernel = jax.lax.cond(same, lambda: (by_hidden, by_kernel), again)
    factor = jnp.where(same, common, largest)

    def times(x: jax.Array, like: jax.Array) -> jax.Array:
        return jnp.where(factor == 0, 0, factor * x.astype(g.dtype)).astype(like.dtype)

    return times(by_hidden, hidden), times(by_kernel, kernel)


def _gradient_forward(form: _Form, hidden: Any, kernel: Any, targets: _Targets, *rest: Any) -> Any:
    return _gradient(form, hidden, kernel, targets, *rest), (hidden, kernel, targets, rest[-1])


def _gradient_backward(form: _Form, kept_back: Any, cotangents: Any) -> Any:
    hidden, kernel, targets, g = kept_back

    def gradient(hidden: Any, kernel: Any, g: Any) -> Any:
        return jax.vjp(lambda h, k: _without_gradient(form, h, k, targets), hidden, kernel)[1](g)

    by_hidden, by_kernel, by_g = jax.vjp(gradient, hidden, kernel, g)[1](cotangents)
    return by_hidden, by_kernel, None, None, None, None, by_g


_gradient.defvjp(_gradient_forward, _gradient_backward)


def _without_gradient(form: _Form, hidden: Any, kernel: Any, targets: _Targets) -> jax.Array:
    """The values by ordinary operations, that can be differentiated as often as one likes."""
    low = kernel.astype(hidden.dtype)

    @jax.checkpoint
    def values(part: Any) -> jax.Array:
        return _Rows(form, _product(part[0], low), part[1].over(targets.spread)).values()

    xs = _cut(hidden, form.chunks), targets.cut(form.chunks)
    return _joined(jax.lax.scan(lambda _, part: (None, values(part)), None, xs)[1], len(hidden))


def _with_gradient(form: _Form, hidden: Any, kernel: Any, targets: _Targets, counts: Any) -> Any:
    """The values, and the gradient of their sum weighed by `counts`, in one pass over the chunks."""
    low = kernel.astype(hidden.dtype)

    def chunk(total: jax.Array, part: Any) -> Any:
        h, mine, count = part
        rows = _Rows(form, _product(h, low), mine.over(targets.spread))
        # Selected, for what does not count may hold anything.
        slope = jnp.where(count[:, None] != 0, rows.slope() * count[:, None], 0).astype(h.dtype)
        total = total + _product(kept(count, h).T, slope)
        return total, (rows.values(), _product(slope, low.T).astype(h.dtype))

    start = jnp.zeros(kernel.shape, wide_dtype(hidden))
    xs = _cut(hidden, form.chunks), targets.cut(form.chunks), _cut(counts, form.chunks)
    by_kernel, (values, by_hidden) = manual.scan(chunk, start, xs)
    return _joined(values, len(hidden)), _joined(by_hidden, len(hidden)), by_kernel


class _Rows:
    """The logits of some rows, `[n, V]`, relative to the largest of each, and what is made of them."""

    def __init__(self, form: _Form, logits: jax.Array, targets: _Targets):
        self.form, self.spread = form, targets.spread
        top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        self.z = logits - top
        self.log_sum = jnp.log(jnp.sum(jnp.exp(self.z), axis=-1, keepdims=True))
        self.log_normaliser = top + self.log_sum
        # Compared, not gathered: where the classes are split over devices, each looks among its own.
        self.hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets.label[:, None]
        # What smoothing gives to each class, times the class's weight, and to all classes together.
        classes = logits.shape[1]
        self.share = form.smoothing / classes * targets.inverse[:, None]
        self.all = self.share * (classes if self.spread is None else jnp.sum(self.spread))

    def values(self) -> jax.Array:
        own = 1 - self.form.smoothing
        value = own * (self.log_sum - jnp.sum(jnp.where(self.hit, self.z, 0), axis=-1, keepdims=True))
        if self.form.smoothing:
            seen = self.z if self.spread is None else self.z * self.spread[None]
            value = value + self.all * self.log_sum - self.share * jnp.sum(seen, axis=-1, keepdims=True)
        if self.form.z_loss:
            value = value + self.form.z_loss * self.log_normaliser**2
        return value[:, 0]

    def slope(self) -> jax.Array:
        """The gradient of each value by its logits, `[n, V]`."""
        own = 1 - self.form.smoothing
        mass = own + self.all + 2 * self.form.z_loss * self.log_normaliser
        slope = mass * jnp.exp(self.z - self.log_sum) - jnp.where(self.hit, own, 0).astype(self.z.dtype)
        if self.form.smoothing:
            slope = slope - (self.share if self.spread is None else self.share * self.spread[None])
        return slope


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """A matrix product in the factors' dtype, with sums in float32 at least."""
    return jnp.matmul(a, b, preferred_element_type=wide_dtype(a))


def _cut(x: jax.Array, chunks: int) -> jax.Array:
    """`[N, …]` as `[chunks, rows, …]`, row i in chunk i modulo their number, with zeros at the end.

    In turn, so that rows that are split over devices are so within each chunk.
    """
    x = jnp.pad(x, [(0, -len(x) % chunks)] + [(0, 0)] * (x.ndim - 1))
    return jnp.moveaxis(x.reshape(-1, chunks, *x.shape[1:]), 1, 0)


def _joined(x: jax.Array, rows: int) -> jax.Array:
    """The first `rows` of what was cut, in order again."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])[:rows]
