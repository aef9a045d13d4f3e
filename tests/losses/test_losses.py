"""Losses against formulas in NumPy float64 (torch's denominators written out), their gradients, and their edges."""

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain import ConfigError, DataError, Loss, losses

CLASSES = 5


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def torch_cross_entropy(z, y, smoothing, weight, ignore):
    """`torch.nn.functional.cross_entropy` for integer labels: the mean, the sum, and the unreduced losses."""
    logp = log_softmax(z).reshape(-1, np.shape(z)[-1])
    y = np.asarray(y).reshape(-1)
    classes = logp.shape[1]
    w = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    kept = np.ones(len(y), bool) if ignore is None else y != ignore
    safe = np.where(kept, y, 0)
    nll = -w[safe] * logp[np.arange(len(y)), safe]
    smooth = -(w * logp).sum(1)
    each = np.where(kept, (1 - smoothing) * nll + smoothing / classes * smooth, 0.0)
    return each.sum() / w[safe][kept].sum(), each.sum(), each.reshape(np.shape(z)[:-1])


def problem(seed, shape=(12,), ignore=None):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(*shape, CLASSES)).astype(np.float32) * 3
    y = rng.integers(0, CLASSES, shape)
    if ignore is not None:
        y = np.where(rng.uniform(size=shape) < 0.3, ignore, y)
    return z, y


WEIGHT = [0.5, 2.0, 1.0, 3.0, 0.25]
OPTIONS = list(itertools.product([0.0, 0.1, 1.0], [None, WEIGHT], [None, -100, 2]))


@pytest.mark.parametrize(("smoothing", "weight", "ignore"), OPTIONS)
@pytest.mark.parametrize("shape", [(12,), (4, 3)])
def test_cross_entropy_is_torchs_in_every_combination(smoothing, weight, ignore, shape):
    z, y = problem(0, shape, ignore)
    loss = losses.cross_entropy(z, y, label_smoothing=smoothing, class_weights=weight, ignore_index=ignore)
    mean, total, each = torch_cross_entropy(z, y, smoothing, weight, ignore)
    assert loss.values.shape == shape
    assert (loss.weights is None) == (weight is None and ignore is None)
    np.testing.assert_allclose(loss.mean(), mean, rtol=1e-6)
    np.testing.assert_allclose(loss.sum(), total, rtol=1e-6)
    w = 1.0 if loss.weights is None else np.asarray(loss.weights)
    np.testing.assert_allclose(np.asarray(loss.values) * w, each, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_distributions_divide_by_the_number_of_rows(weight, smoothing):
    z, _ = problem(1)
    t = np.random.default_rng(2).dirichlet(np.ones(CLASSES), 12).astype(np.float32)
    smooth = t.astype(np.float64) * (1 - smoothing) + smoothing / CLASSES
    each = -(smooth * log_softmax(z) * (1 if weight is None else np.array(weight))).sum(1)
    loss = losses.cross_entropy(z, t, label_smoothing=smoothing, class_weights=weight)
    assert loss.weights is None
    np.testing.assert_allclose(loss.values, each, rtol=1e-6)
    np.testing.assert_allclose(loss.mean(), each.mean(), rtol=1e-6)


def test_one_hot_distributions_are_labels():
    z, y = problem(3)
    one_hot = jax.nn.one_hot(y, CLASSES)
    for smoothing in (0.0, 0.3):
        a = losses.cross_entropy(z, y, label_smoothing=smoothing)
        b = losses.cross_entropy(z, one_hot, label_smoothing=smoothing)
        np.testing.assert_allclose(a.values, b.values, rtol=1e-6)


def test_cross_entropy_agrees_with_optax():
    z, y = problem(4)
    expected = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(z), jnp.asarray(y))
    # Both form log(1 + small) in float32, so small losses agree to its last digit and not relatively.
    np.testing.assert_allclose(losses.cross_entropy(z, y).values, expected, rtol=1e-6, atol=1.2e-7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_large_logits_stay_finite_and_exact(dtype):
    z = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, 1e4, 1e4]], dtype)
    y = jnp.array([0, 0, 1])
    values, gradient = jax.value_and_grad(lambda z: losses.cross_entropy(z, y).sum())(z)
    assert losses.cross_entropy(z, y).values.dtype == jnp.float32
    large = 2 * float(z[0, 0].astype(jnp.float32))
    np.testing.assert_allclose(losses.cross_entropy(z, y).values, [0.0, large, np.log(3)], rtol=1e-6)
    assert np.isfinite(values)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()
    np.testing.assert_allclose(np.asarray(gradient, np.float32)[1], [-1.0, 1.0, 0.0], atol=1e-6)


def test_shifted_rows_lose_no_digits():
    # logsumexp(z) - z_y would be a difference of two numbers near 1e4, right to 1e-3 only.
    z, y = problem(5)
    z = np.round(z * 64).astype(np.float32) / 64  # exact after the shift
    a, b = losses.cross_entropy(z, y), losses.cross_entropy(z + np.float32(8192), y)
    np.testing.assert_array_equal(a.values, b.values)


def test_minus_infinity_masks_a_class():
    z = jnp.array([[0.0, 1.0, -jnp.inf]])
    loss = losses.cross_entropy(z, jnp.array([0]))
    np.testing.assert_allclose(loss.mean(), -log_softmax([[0.0, 1.0]])[0, 0], rtol=1e-6)
    distribution = jnp.array([[1.0, 0.0, 0.0]])
    np.testing.assert_allclose(losses.cross_entropy(z, distribution).mean(), loss.mean(), rtol=1e-6)


def test_ignored_rows_may_hold_anything():
    z, y = problem(6, ignore=-100)
    garbage = np.where((y == -100)[:, None], np.nan, z)

    def mean(z):
        return losses.cross_entropy(z, y, ignore_index=-100, label_smoothing=0.1, class_weights=WEIGHT).mean()

    value, gradient = jax.value_and_grad(mean)(jnp.asarray(garbage))
    expected, clean = jax.value_and_grad(mean)(jnp.asarray(z))
    assert value == expected
    np.testing.assert_array_equal(gradient, np.where((y == -100)[:, None], 0, clean))


def test_everything_ignored_is_zero_not_nan():
    z = jnp.ones((3, CLASSES))
    y = jnp.full(3, -100)
    value, gradient = jax.value_and_grad(
        lambda z: losses.cross_entropy(z, y, ignore_index=-100, label_smoothing=0.1).mean()
    )(z)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_a_label_that_is_no_class_is_seen():
    z, y = jnp.zeros((3, 4)), np.array([0, 4, 1])
    with pytest.raises(DataError, match=r"\[0, 4\), got 4 at \[1\]"):
        losses.cross_entropy(z, y)
    with pytest.raises(DataError, match="ignore_index=-100"):
        losses.cross_entropy(z, np.array([0, -100, 1]))
    # Not readable while traced: NaN, which a mean shows, and not some other class's loss.
    for kwargs in (
        {},
        {"class_weights": [1.0, 1.0, 1.0, 1.0]},
        {"label_smoothing": 0.1},
        {"ignore_index": 0},
    ):
        loss = jax.jit(lambda y: losses.cross_entropy(z, y, **kwargs))(y)
        assert np.isnan(loss.values).tolist() == [False, True, False], kwargs
        assert np.isnan(loss.mean()), kwargs


def test_labels_of_small_integer_types():
    z, y = problem(7)
    for dtype in (jnp.uint8, jnp.int8, jnp.int16):
        got = losses.cross_entropy(z, jnp.asarray(y, dtype), ignore_index=-100)
        np.testing.assert_array_equal(got.values, losses.cross_entropy(z, y).values)


def test_probabilities_agree_with_logits():
    z, y = problem(8, ignore=-100)
    p = jax.nn.softmax(jnp.asarray(z))
    for kwargs in ({}, {"label_smoothing": 0.1}, {"class_weights": WEIGHT}):
        a = losses.cross_entropy(z, y, ignore_index=-100, **kwargs)
        b = losses.cross_entropy(p, y, ignore_index=-100, from_logits=False, **kwargs)
        np.testing.assert_allclose(a.values, b.values, rtol=1e-5)


def test_probability_zero_is_finite():
    p = jnp.array([[0.0, 1.0]])
    value, gradient = jax.value_and_grad(
        lambda p: losses.cross_entropy(p, jnp.array([0]), from_logits=False).mean()
    )(p)
    np.testing.assert_allclose(value, -np.log(np.finfo(np.float32).tiny), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_rows_that_are_no_distributions_warn():
    with pytest.warns(UserWarning, match="sum to 1"):
        losses.cross_entropy(jnp.array([[0.7, 0.2]]), jnp.array([0]), from_logits=False)
    with pytest.warns(UserWarning, match="pass logits"):
        losses.cross_entropy(jnp.array([[3.0, -2.0]]), jnp.array([0]), from_logits=False)
    with pytest.warns(UserWarning, match=r"\[0, 1\]"):
        losses.binary_cross_entropy(jnp.array([1.5]), jnp.array([1]), from_logits=False)
    # Ignored rows may hold anything, and what is traced cannot be looked at: no warning.
    p = jnp.array([[0.5, 0.5], [9.0, jnp.nan]])
    losses.cross_entropy(p, jnp.array([0, -100]), ignore_index=-100, from_logits=False)
    jax.jit(lambda p: losses.cross_entropy(p, jnp.array([0, 0]), from_logits=False))(p)


def test_binary_cross_entropy():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(6, 4)) * 4
    t = rng.uniform(size=(6, 4)).round(1)
    p = 1 / (1 + np.exp(-z))
    expected = -(t * np.log(p) + (1 - t) * np.log1p(-p))
    z, t = jnp.asarray(z, jnp.float32), jnp.asarray(t, jnp.float32)
    loss = losses.binary_cross_entropy(z, t)
    assert loss.values.shape == (6, 4)
    np.testing.assert_allclose(loss.values, expected, rtol=2e-6)
    loss = losses.binary_cross_entropy(jnp.asarray(p, jnp.float32), t, from_logits=False)
    np.testing.assert_allclose(loss.values, expected, rtol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_binary_cross_entropy_of_confident_logits(dtype):
    z = jnp.array([1e4, -1e4, 1e4, -1e4, 0.0, 20.0], dtype)
    y = jnp.array([1, 0, 0, 1, 1, 1])
    loss = losses.binary_cross_entropy(z, y)
    size = float(z[0].astype(jnp.float32))
    np.testing.assert_allclose(loss.values, [0, 0, size, size, np.log(2), np.log1p(np.exp(-20))], rtol=1e-6)
    gradient = jax.grad(lambda z: losses.binary_cross_entropy(z, y).sum())(z)
    np.testing.assert_allclose(np.asarray(gradient, np.float32)[:5], [0, 0, 1, -1, -0.5], atol=1e-6)
    infinite = losses.binary_cross_entropy(
        jnp.array([jnp.inf, -jnp.inf, jnp.inf], dtype), jnp.array([1, 0, 0])
    )
    np.testing.assert_array_equal(infinite.values, [0, 0, np.inf])
    p = jnp.array([0.0, 1.0], dtype)
    loss = losses.binary_cross_entropy(p, jnp.array([True, False]), from_logits=False)
    assert np.isfinite(loss.values).all()
    assert (loss.values > 80).all()


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 3, 2)])
def test_regression_losses(shape):
    rng = np.random.default_rng(1)
    p, t = rng.normal(size=shape).astype(np.float32) * 2, rng.normal(size=shape).astype(np.float32)
    e = p.astype(np.float64) - t
    rest = tuple(range(1, len(shape)))
    huber = np.where(np.abs(e) <= 0.7, e**2 / 2, 0.7 * (np.abs(e) - 0.35))
    for loss, each in (
        (losses.mse(p, t), e**2),
        (losses.mae(p, t), np.abs(e)),
        (losses.huber(p, t, delta=0.7), huber),
    ):
        assert loss.values.shape == (7,)
        np.testing.assert_allclose(loss.values, each.mean(axis=rest), rtol=1e-6)
        np.testing.assert_allclose(loss.mean(), each.mean(), rtol=1e-6)
        np.testing.assert_allclose(loss.sum(), each.mean(axis=rest).sum(), rtol=1e-6)
    w = rng.uniform(size=7).astype(np.float32)
    weighted = Loss(losses.mse(p, t).values, w)
    np.testing.assert_allclose(weighted.mean(), np.average((e**2).mean(axis=rest), weights=w), rtol=1e-6)


def test_regression_losses_are_float32_and_take_integers():
    p = jnp.array([300.0, 1.0], jnp.float16)
    assert losses.mse(p, jnp.array([0, 0])).values.tolist() == [90000.0, 1.0]  # 300^2 overflows float16
    assert losses.mae(p, jnp.array([0, 0], jnp.bfloat16)).values.dtype == jnp.float32


def _gradient_cases():
    z, y = problem(9, ignore=-100)
    p = np.array(jax.nn.softmax(jnp.asarray(z)))
    t = np.random.default_rng(3).normal(size=z.shape) + 0.05
    options = dict(label_smoothing=0.1, class_weights=WEIGHT, ignore_index=-100)
    binary = (np.arange(z.size).reshape(z.shape) % 2).astype(np.float64)
    return {
        "cross_entropy": (z, lambda x: losses.cross_entropy(x, np.abs(y) % CLASSES)),
        "cross_entropy, all options": (z, lambda x: losses.cross_entropy(x, y, **options)),
        "cross_entropy of distributions": (z, lambda x: losses.cross_entropy(x, p, class_weights=WEIGHT)),
        "cross_entropy of probabilities": (
            p,
            lambda x: losses.cross_entropy(x, y, ignore_index=-100, from_logits=False),
        ),
        "binary_cross_entropy": (z, lambda x: losses.binary_cross_entropy(x, binary)),
        "mse": (z, lambda x: losses.mse(x, t)),
        "mae": (z, lambda x: losses.mae(x, t)),
        "huber": (z, lambda x: losses.huber(x, t)),
        "combine": (
            z,
            lambda x: losses.combine({"a": (0.3, losses.mse(x, t)), "b": (2.0, losses.mae(x, t))}),
        ),
    }


@pytest.mark.parametrize("name", _gradient_cases())
@pytest.mark.filterwarnings("ignore:with `from_logits=False`")  # a shifted probability no longer sums to 1
def test_gradients_against_differences_in_float64(name):
    with jax.enable_x64(True):
        x, loss = _gradient_cases()[name]
        x = np.asarray(x, np.float64)
        mean = jax.jit(lambda x: loss(x).mean())
        assert mean(x).dtype == np.float64
        gradient = jax.grad(mean)(x)
        for index in [(0, 0), (3, 2), (7, 4), (11, 1)]:
            step = np.zeros_like(x)
            step[index] = 1e-6
            difference = (mean(x + step) - mean(x - step)) / 2e-6
            np.testing.assert_allclose(gradient[index], difference, rtol=1e-6, atol=1e-9)


def test_loss_reductions():
    loss = Loss(jnp.array([[1.0, jnp.nan], [3.0, 5.0]]), jnp.array([[True, False], [True, True]]))
    assert float(loss.sum()) == 9.0
    assert float(loss.mean()) == 3.0
    assert float(Loss(jnp.array([1.0, 2.0], jnp.bfloat16)).mean()) == 1.5
    assert Loss(jnp.array([1.0, 2.0], jnp.bfloat16)).mean().dtype == jnp.float32
    assert float(Loss(jnp.array([jnp.nan]), jnp.zeros(1)).mean()) == 0.0
    assert float(Loss(jnp.zeros(0)).mean()) == 0.0
    many = Loss(jnp.full(5000, 0.5, jnp.float16), jnp.ones(5000, jnp.float16))
    assert float(many.mean()) == 0.5  # a float16 total would stop at 2048


def test_loss_gradient_is_clean_where_the_weight_is_zero():
    w = jnp.array([1.0, 0.0])
    gradient = jax.grad(lambda x: Loss(jnp.sqrt(x), w).mean())(jnp.array([4.0, 1.0]))
    np.testing.assert_array_equal(gradient, [0.25, 0.0])
    gradient = jax.grad(lambda x: Loss(x, jnp.zeros(2)).mean())(jnp.ones(2))
    np.testing.assert_array_equal(gradient, 0)


def test_loss_is_a_pytree_of_arrays():
    loss = (
        losses.mse(jnp.ones((4, 2)), jnp.zeros((4, 2)))
        .with_outputs(x=jnp.arange(4))
        .with_state({"m": jnp.ones(1)})
    )
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(loss)]
    assert paths == [".values", ".outputs['x']", ".model_state['m']"]
    again = jax.jit(lambda x: x)(loss)
    assert isinstance(again, Loss)
    np.testing.assert_array_equal(again.values, loss.values)
    stacked = jax.vmap(lambda x: Loss(x, jnp.ones(2)))(jnp.ones((5, 3, 2)))
    assert stacked.weights.shape == (5, 2)  # unbatched weights of a batch: checked before, not after
    copy = pickle.loads(pickle.dumps(loss))
    np.testing.assert_array_equal(copy.values, loss.values)
    assert loss.with_outputs(y=1).outputs.keys() == {"x", "y"}
    assert loss.outputs.keys() == {"x"}  # frozen: the first one has not changed


def test_combine():
    a = Loss(jnp.array([1.0, 2.0]), outputs={"logits": jnp.ones(2)})
    b = Loss(jnp.array([10.0, 20.0]), model_state={"m": jnp.ones(1)})
    loss = losses.combine({"a": (2.0, a), "b": (0.5, b), "l2": (0.1, jnp.array(5.0))})
    np.testing.assert_allclose(loss.values, [7.5, 14.5], rtol=1e-6)
    assert loss.weights is None
    assert loss.model_state is b.model_state
    assert set(loss.outputs) == {"logits", "loss/a", "loss/b", "loss/l2"}
    np.testing.assert_array_equal(loss.outputs["loss/b"], [10.0, 20.0])
    np.testing.assert_array_equal(loss.outputs["loss/l2"], [5.0, 5.0])


def test_combine_with_weights_and_a_coefficient_of_zero():
    z, y = problem(10, ignore=-100)

    def both(z, c):
        first = losses.cross_entropy(z, y, ignore_index=-100)
        second = losses.cross_entropy(2 * z, y, ignore_index=-100)
        return losses.combine({"a": (1.0, first), "b": (c, second)})

    for function in (both, jax.jit(both)):
        got = function(z, 0.25).mean()
        expected = (
            torch_cross_entropy(z, y, 0, None, -100)[0]
            + 0.25 * torch_cross_entropy(2 * z, y, 0, None, -100)[0]
        )
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    off = losses.combine({"a": (1.0, jnp.ones(2)), "b": (0.0, jnp.array([jnp.nan, jnp.inf]))})
    np.testing.assert_array_equal(off.values, 1.0)


def test_combine_needs_equal_weights():
    values = jnp.ones(2)
    a, b = Loss(values, jnp.array([1.0, 0.0])), Loss(values, jnp.array([1.0, 1.0]))
    with pytest.raises(ConfigError, match="same weights"):
        losses.combine({"a": (1.0, a), "b": (1.0, b)})
    with pytest.raises(ConfigError, match="`b` has none"):
        losses.combine({"a": (1.0, a), "b": (1.0, values)})
    # While traced nobody can look: the mean is NaN, and not one of two answers.
    mean = jax.jit(
        lambda u, v: losses.combine({"a": (1.0, Loss(values, u)), "b": (1.0, Loss(values, v))}).mean()
    )
    assert np.isnan(mean(a.weights, b.weights))
    assert mean(b.weights, b.weights + 0.0) == 2.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: losses.combine({}), "`parts`"),
        (lambda: losses.combine({"a": jnp.ones(2)}), r"`\(coefficient, loss\)`"),
        (lambda: losses.combine({"a": (1.0, jnp.ones(2)), "b": (1.0, jnp.ones((2, 3)))}), "one shape"),
        (lambda: losses.combine({"a": (np.nan, jnp.ones(2))}), "coefficient of `a`"),
        (
            lambda: losses.combine(
                {k: (1.0, Loss(jnp.ones(2), outputs={"logits": jnp.ones(2)})) for k in ("a", "b")}
            ),
            "'logits'",
        ),
        (lambda: losses.combine({k: (1.0, Loss(jnp.ones(2), model_state=1)) for k in "ab"}), "`model_state`"),
        (lambda: Loss(jnp.arange(3)), "`values` must be floating-point"),
        (lambda: Loss([1.0, 2.0]), "`values` must be an array"),
        (lambda: Loss(jnp.ones((4, 3)), jnp.ones(4)), r"did you mean `weights\[:, None\]`"),
        (lambda: Loss(jnp.ones(4), outputs=[1]), "`outputs`"),
        (
            lambda: losses.cross_entropy(jnp.ones((2, 3)), jnp.array([0, 1]), label_smoothing=1.5),
            "label_smoothing",
        ),
        (
            lambda: losses.cross_entropy(jnp.ones((2, 3)), jnp.array([0, 1]), class_weights=[1.0, 2.0]),
            r"\[3\]",
        ),
        (
            lambda: losses.cross_entropy(jnp.ones((2, 3)), jnp.array([0, 1]), class_weights=[1.0, 2.0, -1.0]),
            ">= 0",
        ),
        (
            lambda: losses.cross_entropy(jnp.ones((2, 3)), jnp.ones((2, 3)) / 3, ignore_index=-100),
            "ignore_index",
        ),
        (lambda: losses.huber(jnp.ones(2), jnp.ones(2), delta=0.0), "`delta`"),
    ],
)
def test_configurations_that_cannot_work(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: losses.cross_entropy(jnp.array([0, 1]), jnp.ones((2, 3))),
            r"the order is \(logits, labels\)",
        ),
        (lambda: losses.cross_entropy(jnp.ones((2, 3)), jnp.array([[0], [1]])), r"shape \[2\]"),
        (lambda: losses.cross_entropy(jnp.ones((2, 3)), jnp.array([0.0, 1.0])), "`labels` must be integers"),
        (lambda: losses.cross_entropy(jnp.ones((2, 3)), jnp.ones((2, 3), jnp.int32)), "one-hot"),
        (lambda: losses.cross_entropy(jnp.ones(()), jnp.array(0)), "last axis"),
        (lambda: losses.binary_cross_entropy(jnp.ones((2, 1)), jnp.array([0, 1])), r"`logits\[..., 0\]`"),
        (
            lambda: losses.binary_cross_entropy(jnp.ones(2), jnp.array([0, 2])),
            r"`labels` must be in \[0, 1\]",
        ),
        (lambda: losses.mse(jnp.ones(4), jnp.ones((4, 1))), r"did you mean `targets\[..., 0\]`"),
        (lambda: losses.mse(jnp.ones((4, 1)), jnp.ones(4)), r"did you mean `predictions\[..., 0\]`"),
        (lambda: losses.mae(jnp.arange(4), jnp.ones(4)), r"the order is \(predictions, targets\)"),
    ],
)
def test_data_that_does_not_fit(call, words):
    with pytest.raises(DataError, match=words):
        call()


def test_arguments_go_by_keyword_too():
    z, y = problem(11)
    a = losses.cross_entropy(logits=z, labels=y)
    np.testing.assert_array_equal(a.values, losses.cross_entropy(z, y).values)
    np.testing.assert_array_equal(losses.mse(predictions=z, targets=z).values, 0)


def test_the_step_reports_the_parts():
    def loss_fn(params, batch, ctx):
        fit = losses.mse(batch["x"] * params["w"], batch["y"])
        return losses.combine({"fit": (1.0, fit), "l2": (0.5, jnp.sum(jnp.square(params["w"])))})

    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1))
    state = ft.init_state(task, {"w": jnp.array(2.0)})
    batch = {"x": jnp.array([1.0, 2.0, 9.0]), "y": jnp.array([0.0, 0.0, 7.0])}
    weight = jnp.array([1.0, 3.0, 0.0])
    values = ft.compute_metrics(task, ft.eval_step(task, state, batch, weight))
    fit = (4.0 + 3 * 16.0) / 4
    np.testing.assert_allclose(values["loss/fit"], fit, rtol=1e-6)
    np.testing.assert_allclose(values["loss/l2"], 4.0, rtol=1e-6)
    np.testing.assert_allclose(values["loss"], fit + 2.0, rtol=1e-6)
    _, gradient = ft.compute_gradients(task, state, batch, weight)
    np.testing.assert_allclose(gradient["w"], (2 * 2.0 * 1 + 3 * 2 * 4.0 * 2) / 4 + 2.0, rtol=1e-6)
