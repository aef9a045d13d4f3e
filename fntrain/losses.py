"""Losses: one value per example, stable in low precision, with weights that say what a mean divides by."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _check
from ._check import ConfigError, DataError
from ._loss import Loss as Loss
from ._typing import ArrayLike
from .tree import wide


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | Sequence[float] | None = None,
    ignore_index: int | None = None,
    from_logits: bool = True,
) -> Loss:
    r"""Cross-entropy between labels and predicted distributions over C classes.

    With integer labels :math:`y`, :math:`\log p` = `log_softmax(logits)`, class weights :math:`w` (ones if
    None) and label smoothing :math:`\epsilon`, the mean is torch's:

    .. math:: \ell_i = -(1 - \epsilon) \log p_{i y_i}
                       - \frac{\epsilon}{C} \sum_c \frac{w_c}{w_{y_i}} \log p_{ic},
              \qquad L = \frac{\sum_i w_{y_i} \ell_i}{\sum_i w_{y_i}}

    Both sums leave out labels equal to `ignore_index`, smoothing included, and labels whose own class weighs
    zero. (Torch's unreduced losses are `values * weights`.) With labels that are distributions :math:`t`,
    smoothed to :math:`t' = (1 - \epsilon) t + \epsilon / C`, torch divides by the number of rows:

    .. math:: \ell_i = -\sum_c w_c\, t'_{ic} \log p_{ic}, \qquad L = \frac1N \sum_i \ell_i

    Everything is computed in float32 at least, relative to each row's largest logit.

    Args:
      logits: `[…, C]`, floating-point: scores of any scale, or probabilities if `from_logits` is False.
      labels: integers `[…]`, or distributions `[…, C]`, floating-point.
      label_smoothing: ε, the mass spread evenly over the classes, in [0, 1].
      class_weights: `[C]`, >= 0.
      ignore_index: the integer label of what is not counted (`-100` in torch). Logits there may hold anything,
        and get no gradient.
      from_logits: False takes `logits` as probabilities, which are not normalised again; those below the
        smallest normal float32 count as that.

    Returns:
      A Loss with values `[…]`. Its weights are the class weights of the labels, zero where ignored; None if
      there is neither. A label that is no class is an error where it can be read, else its value is NaN.

    Raises:
      ConfigError: if an option is out of range, `class_weights` is not `[C]`, or `ignore_index` meets
        distributions.
      DataError: if shapes or dtypes do not fit (swapped arguments among them), or a label is no class.

    Warns:
      UserWarning: if `from_logits=False` and rows that can be read are no distributions.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0], [5.0, 1.0]])
      >>> loss = ft.losses.cross_entropy(logits, jnp.array([0, 1, -100]), ignore_index=-100)
      >>> [round(float(v), 4) for v in loss.values], round(float(loss.mean()), 4)
      ([0.1269, 0.6931, 0.0], 0.41)

    References:
      Szegedy et al., *Rethinking the Inception Architecture for Computer Vision*, 2016 (label smoothing);
      `torch.nn.CrossEntropyLoss` (denominators).
    """
    _check.number("label_smoothing", label_smoothing, at_least=0, at_most=1)
    smoothing = float(label_smoothing)
    logits, labels = _floating("logits", logits, "labels"), jnp.asarray(labels)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise DataError(f"`logits` must have the classes on their last axis, got shape {list(logits.shape)}")
    classes = logits.shape[-1]
    weights = None if class_weights is None else _class_weights(class_weights, classes, logits.dtype)
    of_classes = jnp.issubdtype(labels.dtype, jnp.integer)
    counted = None
    if ignore_index is not None:
        if not of_classes:
            raise ConfigError(
                "`ignore_index` needs integer labels; weigh distributions by `Loss(values, weights)`"
            )
        counted = labels.astype(jnp.int32) != _check.integer("ignore_index", ignore_index)
    _check_labels(labels, logits.shape, ignore_index)
    if counted is not None:  # before anything is computed: a NaN there must not reach the gradient either
        logits = jnp.where(counted[..., None], logits, 0 if from_logits else 1 / classes)
    if not from_logits and _readable(logits) and not _are_distributions(np.asarray(logits)):
        warnings.warn(
            "with `from_logits=False`, rows of `logits` must be >= 0 and sum to 1, and some do not; "
            "pass logits with `from_logits=True`?",
            stacklevel=2,
        )
    logp = jax.nn.log_softmax(logits) if from_logits else jnp.log(_at_least_tiny(logits))
    if not of_classes:
        targets = labels.astype(logits.dtype) * (1 - smoothing) + smoothing / classes
        if weights is not None:
            targets = targets * _over_rows(weights, targets.ndim)
        return Loss(-_weighted_sum(logp, targets))

    labels = labels.astype(jnp.int32)
    known = (labels >= 0) & (labels < classes)
    index = jnp.where(known, labels, 0)
    values = -jnp.take_along_axis(logp, index[..., None], axis=-1)[..., 0]
    # A label that is no class keeps a weight, so that its NaN is not taken for something left out.
    own = None if weights is None else jnp.where(known, weights[index], 1)
    if smoothing:
        if weights is None or own is None:
            spread = -jnp.mean(logp, axis=-1)
        else:
            spread = -_weighted_sum(logp, weights) / (classes * jnp.where(own > 0, own, 1))
        values = (1 - smoothing) * values + smoothing * spread
    values = jnp.where(known, values, jnp.nan)
    if counted is not None:
        values = jnp.where(counted, values, 0)
        own = jnp.where(counted, 1 if own is None else own, jnp.zeros((), logits.dtype))
    return Loss(values, own)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array, *, from_logits: bool = True) -> Loss:
    r"""Cross-entropy of yes-or-no labels, element by element.

    .. math:: \ell = -t \log p - (1 - t) \log (1 - p), \qquad p = \sigma(z)

    with logits by :math:`-\log \sigma(z) = \log(1 + e^{-z})`, in float32 at least: no overflow, and exact to the
    last digits for confident logits.

    Args:
      logits: `[…]`, floating-point, or probabilities if `from_logits` is False.
      labels: of the same shape: integers or booleans, or probabilities in [0, 1].
      from_logits: False takes `logits` as probabilities; p and 1 - p below the smallest normal float32 count
        as that.

    Returns:
      A Loss with values of that shape (several labels a row have several values).

    Raises:
      DataError: if the shapes differ, or labels that can be read are not in [0, 1].

    Warns:
      UserWarning: if `from_logits=False` and values that can be read are not in [0, 1].

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> loss = ft.losses.binary_cross_entropy(jnp.array([0.0, 100.0, -100.0]), jnp.array([1, 1, 1]))
      >>> [round(float(v), 4) for v in loss.values]
      [0.6931, 0.0, 100.0]
    """
    z, labels = _floating("logits", logits, "labels"), jnp.asarray(labels)
    _same_shape("logits", z, "labels", labels)
    if _readable(labels) and not _within_unit(np.asarray(labels)):
        raise DataError("`labels` must be in [0, 1]")
    t = labels.astype(z.dtype)
    if from_logits:
        yes, no = t * jax.nn.softplus(-z), (1 - t) * jax.nn.softplus(z)
        return Loss(jnp.where(t > 0, yes, 0) + jnp.where(t < 1, no, 0))  # 0 * inf is 0 here
    if _readable(z) and not _within_unit(np.asarray(z)):
        warnings.warn(
            "with `from_logits=False`, `logits` must be in [0, 1], and some are not; "
            "pass logits with `from_logits=True`?",
            stacklevel=2,
        )
    return Loss(-t * jnp.log(_at_least_tiny(z)) - (1 - t) * jnp.log(_at_least_tiny(1 - z)))


def mse(predictions: jax.Array, targets: jax.Array) -> Loss:
    r"""Mean squared error: one value per example, the mean over all its other axes.

    .. math:: \ell_i = \frac1D \sum_d (\hat y_{id} - y_{id})^2

    Args:
      predictions: `[B, …]`, floating-point.
      targets: numbers of the same shape.

    Returns:
      A Loss with values `[B]`, float32 at least.

    Raises:
      DataError: if the shapes differ; `[B]` against `[B, 1]` would broadcast to `[B, B]`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> predictions, targets = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[0.0, 0.0], [0.0, 1.0]])
      >>> ft.losses.mse(predictions, targets).values.tolist()
      [2.5, 0.5]
    """
    return _per_example(jnp.square(_errors(predictions, targets)))


def mae(predictions: jax.Array, targets: jax.Array) -> Loss:
    r"""Mean absolute error: one value per example, the mean over all its other axes.

    .. math:: \ell_i = \frac1D \sum_d |\hat y_{id} - y_{id}|

    Args:
      predictions: `[B, …]`, floating-point.
      targets: numbers of the same shape.

    Returns:
      A Loss with values `[B]`, float32 at least.

    Raises:
      DataError: if the shapes differ.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.losses.mae(jnp.array([1.0, -2.0]), jnp.array([0.0, 0.0])).values.tolist()
      [1.0, 2.0]
    """
    return _per_example(jnp.abs(_errors(predictions, targets)))


def huber(predictions: jax.Array, targets: jax.Array, delta: float = 1.0) -> Loss:
    r"""Squared for small errors, absolute for large ones; one value per example.

    .. math:: h(e) = \begin{cases} e^2 / 2 & |e| \le \delta \\ \delta (|e| - \delta / 2) & |e| > \delta
              \end{cases}, \qquad \ell_i = \frac1D \sum_d h(\hat y_{id} - y_{id})

    Args:
      predictions: `[B, …]`, floating-point.
      targets: numbers of the same shape.
      delta: δ, where the two meet, > 0, in the units of the targets.

    Returns:
      A Loss with values `[B]`, float32 at least.

    Raises:
      ConfigError: if `delta` is not > 0.
      DataError: if the shapes differ.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> ft.losses.huber(jnp.array([0.5, -3.0]), jnp.array([0.0, 0.0])).values.tolist()
      [0.125, 2.5]

    References:
      Huber, *Robust Estimation of a Location Parameter*, 1964.
    """
    _check.number("delta", delta, above=0)
    size = jnp.abs(_errors(predictions, targets))
    inner = jnp.minimum(size, jnp.asarray(delta, size.dtype))
    return _per_example(inner * (size - inner / 2))


def combine(parts: Mapping[str, tuple[ArrayLike, Loss | jax.Array]]) -> Loss:
    r"""A weighted sum of several losses, each of which the step also reports, unscaled, as `loss/<name>`.

    .. math:: \ell_i = \sum_k c_k\, \ell_{ki}

    All parts must have the same weights, since a mean has one denominator. A scalar part without weights (a
    penalty on the parameters, say) is added to every value. A part with coefficient 0 does not count, whatever
    it holds.

    Args:
      parts: `{name: (coefficient, loss)}`; a loss is a Loss or an array of values.

    Returns:
      A Loss with the sum's values, the common weights, the outputs of all parts, each part's values under
      `loss/<name>`, and the model state of the part that has one.

    Raises:
      ConfigError: if there is no part, a part is no `(coefficient, loss)`, shapes or weights differ, or two
        parts give the same output or both a model state. Weights that cannot be read, being traced, and prove
        to differ make the sum NaN.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> fit = ft.losses.mse(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0]))
      >>> loss = ft.losses.combine({"fit": (1.0, fit), "l2": (0.1, jnp.array(5.0))})
      >>> loss.values.tolist(), sorted(loss.outputs)
      ([1.5, 4.5], ['loss/fit', 'loss/l2'])
    """
    if not isinstance(parts, Mapping) or not parts:
        raise ConfigError(
            f"`parts` must be `{{name: (coefficient, loss)}}` with one part at least, got {parts!r}"
        )
    losses: dict[str, Loss] = {}
    for name, part in parts.items():
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise ConfigError(f"part `{name}` must be `(coefficient, loss)`, got {part!r}")
        _check.number(f"coefficient of `{name}`", part[0])
        losses[name] = part[1] if isinstance(part[1], Loss) else Loss(part[1])
    first = max(losses, key=lambda name: losses[name].values.ndim)
    shape, weights = losses[first].values.shape, losses[first].weights
    scaled: list[jax.Array] = []
    outputs: dict[str, Any] = {}
    states = [loss.model_state for loss in losses.values() if loss.model_state is not None]
    if len(states) > 1:
        raise ConfigError(
            "only one part may have a `model_state`; drop the others with `loss.with_state(None)`"
        )
    for name, loss in losses.items():
        if loss.values.shape == () and loss.weights is None:
            values = jnp.broadcast_to(wide(loss.values), shape)
        elif loss.values.shape == shape:
            values = wide(loss.values)
            weights = _common_weights(weights, loss.weights, first, name)
        else:
            raise ConfigError(
                f"parts must have values of one shape (or scalars): `{first}` has {list(shape)}, `{name}` "
                f"{list(loss.values.shape)}"
            )
        coefficient = jnp.asarray(parts[name][0]).astype(values.dtype)
        scaled.append(jnp.where(coefficient != 0, coefficient * values, 0))
        for key, value in {**loss.outputs, f"loss/{name}": values}.items():
            if key in outputs and outputs[key] is not value:
                raise ConfigError(f"two parts give the output {key!r}; one of them must rename it")
            outputs[key] = value
    total = functools.reduce(jnp.add, scaled)
    return Loss(total, weights, outputs=outputs, model_state=states[0] if states else None)


def _common_weights(a: jax.Array | None, b: jax.Array | None, first: str, name: str) -> jax.Array | None:
    if a is b:
        return a
    if a is None or b is None or a.shape != b.shape:
        shapes = ["none" if w is None else list(w.shape) for w in (a, b)]
        raise ConfigError(
            f"parts must have the same weights: `{first}` has {shapes[0]}, `{name}` has {shapes[1]}; a mean has "
            f"one denominator. Add a part's `.mean()` to weigh it on its own"
        )
    equal = a.astype(jnp.float32) == b.astype(jnp.float32)
    if _readable(equal):
        if not np.asarray(equal).all():
            raise ConfigError(f"parts must have the same weights, and those of `{first}` and `{name}` differ")
        return a
    return jnp.where(equal, a.astype(jnp.float32), jnp.nan)


def _errors(predictions: Any, targets: Any) -> jax.Array:
    predictions, targets = _floating("predictions", predictions, "targets"), jnp.asarray(targets)
    _same_shape("predictions", predictions, "targets", targets)
    dtype = targets.dtype if targets.dtype == jnp.float64 else predictions.dtype
    return predictions.astype(dtype) - targets.astype(dtype)


def _per_example(errors: jax.Array) -> Loss:
    return Loss(jnp.mean(errors, axis=tuple(range(1, errors.ndim))))


def _same_shape(a_name: str, a: jax.Array, b_name: str, b: jax.Array) -> None:
    if a.shape == b.shape:
        return
    hint = ""
    if a.shape == (*b.shape, 1):
        hint = f"; did you mean `{a_name}[..., 0]`?"
    elif b.shape == (*a.shape, 1):
        hint = f"; did you mean `{b_name}[..., 0]`?"
    raise DataError(
        f"`{a_name}` and `{b_name}` must have one shape, got {list(a.shape)} and {list(b.shape)}{hint}"
    )


def _floating(name: str, x: Any, other: str) -> jax.Array:
    """`x` in float32 at least; anything but floating-point is refused."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise DataError(
            f"`{name}` must be floating-point, got {x.dtype.name}{list(x.shape)}; "
            f"the order is ({name}, {other})"
        )
    return wide(x)


def _class_weights(class_weights: Any, classes: int, dtype: Any) -> jax.Array:
    weights = jnp.asarray(class_weights).astype(dtype)
    if weights.shape != (classes,):
        raise ConfigError(
            f"`class_weights` must have shape [{classes}], one a class, got {list(weights.shape)}"
        )
    if _readable(weights) and not (np.asarray(weights) >= 0).all():
        raise ConfigError(f"`class_weights` must be >= 0, got {np.asarray(weights).tolist()}")
    return weights


def _check_labels(labels: jax.Array, logits_shape: tuple[int, ...], ignore_index: int | None) -> None:
    rows, classes = logits_shape[:-1], logits_shape[-1]
    floating = jnp.issubdtype(labels.dtype, jnp.floating) and labels.shape == logits_shape
    if floating:
        return
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != rows:
        hint = "; cast one-hot labels to a floating-point dtype" if labels.shape == logits_shape else ""
        raise DataError(
            f"`labels` must be integers of shape {list(rows)} or floating-point distributions of shape "
            f"{list(logits_shape)}, got {labels.dtype.name}{list(labels.shape)}{hint}"
        )
    if _readable(labels):
        host = np.asarray(labels)
        wrong = ((host < 0) | (host >= classes)) & (host != ignore_index)
        if wrong.any():
            label, row = host[wrong][0], np.argwhere(wrong)[0].tolist()
            raise DataError(
                f"`labels` must be in [0, {classes}), got {label} at {row}"
                + f"; leave such rows out with `ignore_index={label}`" * bool(label < 0)
            )


def _weighted_sum(logp: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum over the classes, where weight 0 times -inf is 0."""
    weights = _over_rows(weights, logp.ndim)
    return jnp.sum(jnp.where(weights != 0, logp, 0) * weights, axis=-1)


def _over_rows(x: jax.Array, ndim: int) -> jax.Array:
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def _at_least_tiny(p: jax.Array) -> jax.Array:
    return jnp.maximum(p, jnp.asarray(jnp.finfo(jnp.float32).tiny, p.dtype))


def _readable(x: jax.Array) -> bool:
    """Whether the numbers can be looked at here: not traced, and not on another process's devices."""
    return _check.is_concrete(x) and x.is_fully_addressable


def _are_distributions(rows: np.ndarray) -> bool:
    return bool((rows >= 0).all() and np.allclose(rows.sum(-1), 1, atol=1e-2))


def _within_unit(x: np.ndarray) -> bool:
    return x.dtype == bool or bool(((x >= 0) & (x <= 1)).all())
