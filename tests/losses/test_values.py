"""Losses between and beyond cross-entropy and squares: values, gradients in every argument, and edges."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fntrain import ConfigError, DataError, losses

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(7, 4)) * 3
T = RNG.normal(size=(7, 4))
SOFT = RNG.dirichlet(np.ones(4), 7)
CLASSES = RNG.integers(0, 4, 7)
HARD = (T > 0).astype(np.float64)
MIXED = np.where(
    RNG.uniform(size=T.shape) < 0.4, HARD, RNG.uniform(size=T.shape)
)  # some exactly 0, some exactly 1


def f32(*arrays):
    return [jnp.asarray(x, jnp.float32 if np.asarray(x).dtype.kind == "f" else None) for x in arrays]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_focal_is_the_papers():
    logp = log_softmax(Z)
    alpha = np.array([0.5, 1.0, 2.0, 0.25])
    for gamma in (0.0, 0.5, 2.0):
        each = -alpha * (1 - np.exp(logp)) ** gamma * logp
        got = losses.focal(*f32(Z), CLASSES, gamma=gamma, alpha=alpha)
        np.testing.assert_allclose(got.values, each[np.arange(7), CLASSES], rtol=2e-5, atol=1e-7)
        assert got.weights is None
        got = losses.focal(*f32(Z, SOFT), gamma=gamma, alpha=alpha)
        np.testing.assert_allclose(got.values, (SOFT * each).sum(1), rtol=2e-5)
    plain = losses.focal(*f32(Z), CLASSES, gamma=0)
    np.testing.assert_allclose(plain.values, losses.cross_entropy(*f32(Z), CLASSES).values, rtol=1e-6)


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("labels", [HARD, MIXED], ids=["hard", "soft"])
def test_binary_focal_is_optaxs(alpha, labels):
    for gamma in (0.0, 0.5, 2.0):
        expected = optax.losses.sigmoid_focal_loss(*f32(Z, labels), alpha=alpha, gamma=gamma)
        got = losses.binary_focal(*f32(Z, labels), gamma=gamma, alpha=alpha)
        np.testing.assert_allclose(got.values, expected, rtol=2e-5, atol=1e-7)
    # 1 - p of a confident answer is no difference: at logit 20 it is e^-20, and float32's 1 - p is 0.
    got = losses.binary_focal(jnp.array([20.0, 200.0]), jnp.array([1, 1]))
    np.testing.assert_allclose(got.values, [np.exp(-20.0) ** 3, 0], rtol=1e-5)
    gradient = jax.grad(lambda z: losses.binary_focal(z, jnp.ones(2), gamma=0.5).sum())(
        jnp.array([200.0, -200.0])
    )
    np.testing.assert_allclose(gradient, [0, -1], atol=1e-6)


def test_kl_divergence():
    logp = log_softmax(Z)
    t = np.where(SOFT < 0.1, 0, SOFT)
    t /= t.sum(1, keepdims=True)
    expected = np.where(t > 0, t * (np.log(np.where(t > 0, t, 1)) - logp), 0).sum(1)
    np.testing.assert_allclose(losses.kl_divergence(*f32(Z, t)).values, expected, rtol=1e-5)
    np.testing.assert_allclose(
        losses.kl_divergence(*f32(np.exp(logp), t), from_logits=False).values, expected, rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.kl_divergence(*f32(Z, t)).values, optax.kl_divergence(*f32(logp, t)), rtol=1e-5
    )
    other = losses.kl_divergence(*f32(Z, np.log(SOFT)), targets_from_logits=True)
    np.testing.assert_allclose(other.values, losses.kl_divergence(*f32(Z, SOFT)).values, rtol=1e-5)
    np.testing.assert_allclose(
        losses.kl_divergence(*f32(Z, Z), targets_from_logits=True).values, np.zeros(7), atol=1e-6
    )
    never = jnp.array([[0.0, -jnp.inf]])
    assert losses.kl_divergence(never, jnp.array([[1.0, 0.0]])).values == 0
    assert losses.kl_divergence(never, never, targets_from_logits=True).values == 0
    assert losses.kl_divergence(never, jnp.array([[0.5, 0.5]])).values == np.inf


@pytest.mark.parametrize("no", [0, -1])
def test_hinge(no):
    labels = np.where(HARD == 1, 1, no)
    short = np.maximum(0, 1 - np.where(HARD == 1, 1, -1) * Z)
    np.testing.assert_allclose(losses.hinge(*f32(Z), labels).values, short, rtol=1e-5)
    np.testing.assert_allclose(losses.squared_hinge(*f32(Z, labels * 1.0)).values, short**2, rtol=1e-5)
    with pytest.raises(DataError, match="0 or -1 for no, got 2"):
        losses.hinge(jnp.ones(2), jnp.array([1, 2]))
    assert np.isnan(jax.jit(lambda y: losses.hinge(jnp.ones(2), y).values)(jnp.array([1, 2]))).tolist() == [
        0,
        1,
    ]


def test_log_cosh_keeps_its_digits_at_any_size():
    e = np.concatenate([10.0 ** np.arange(-15.0, 4), -(10.0 ** np.arange(-2.0, 2)), [0.999, 1.001, 88.8]])
    expected = np.where(
        np.abs(e) < 1e-3, e**2 / 2 - e**4 / 12, np.abs(e) + np.log1p(np.exp(-2 * np.abs(e))) - np.log(2)
    )
    loss = losses.log_cosh(*f32(e), jnp.zeros(len(e)))
    np.testing.assert_allclose(loss.values, expected, rtol=3e-6)
    gradient = jax.grad(lambda x: losses.log_cosh(x, jnp.zeros(3)).sum())(jnp.array([jnp.inf, -jnp.inf, 0.0]))
    np.testing.assert_array_equal(gradient, [1, -1, 0])


def test_cosine_distance_at_any_scale():
    expected = 1 - (Z * T).sum(1) / np.linalg.norm(Z, axis=1) / np.linalg.norm(T, axis=1)
    for a, b in ((1.0, 1.0), (1e-30, 1e30), (1e30, 1e-34)):
        np.testing.assert_allclose(
            losses.cosine_distance(*f32(Z * a, T * b)).values, expected, rtol=1e-5, atol=1e-6
        )
    zero, other = jnp.zeros((1, 3)), jnp.ones((1, 3))
    value, gradient = jax.value_and_grad(lambda x: losses.cosine_distance(x, other).sum())(zero)
    assert value == 1
    np.testing.assert_array_equal(gradient, 0)
    for bad in (jnp.nan, jnp.inf):
        assert np.isnan(losses.cosine_distance(other.at[0, 0].set(bad), other).values).all()


def test_dice():
    p = sigmoid(Z)
    for smooth in (0.0, 1.0):
        expected = 1 - (2 * (p * HARD).sum(1) + smooth) / ((p + HARD).sum(1) + smooth)
        np.testing.assert_allclose(losses.dice(*f32(Z, HARD), smooth=smooth).values, expected, rtol=1e-5)
    z, y = RNG.normal(size=(3, 5, 2, 4)), RNG.integers(0, 4, (3, 5, 2))
    p, t = np.exp(log_softmax(z)), np.eye(4)[y]
    each = (2 * (p * t).sum((1, 2)) + 1) / ((p + t).sum((1, 2)) + 1)
    np.testing.assert_allclose(losses.dice(*f32(z), y).values, 1 - each.mean(1), rtol=1e-5)
    empty = losses.dice(jnp.zeros((1, 3)), jnp.zeros((1, 3)), smooth=0, from_logits=False)
    assert empty.values == 0
    assert np.isnan(jax.jit(lambda y: losses.dice(*f32(z), y).values)(np.full_like(y, 4))).all()


def test_a_positive_can_cost_more():
    p, w = sigmoid(Z), np.array([0.5, 1.0, 3.0, 0.0])
    expected = -(w * MIXED * np.log(p) + (1 - MIXED) * np.log1p(-p))
    got = losses.binary_cross_entropy(*f32(Z, MIXED), pos_weight=w)
    np.testing.assert_allclose(got.values, expected, rtol=1e-5)
    assert got.weights is None
    got = losses.binary_cross_entropy(*f32(p, MIXED), pos_weight=w, from_logits=False)
    np.testing.assert_allclose(got.values, expected, rtol=1e-4)
    assert losses.binary_cross_entropy(jnp.array([-jnp.inf]), jnp.array([1]), pos_weight=0.0).values == 0
    with pytest.raises(ConfigError, match="`pos_weight` must be >= 0"):
        losses.binary_cross_entropy(*f32(Z, MIXED), pos_weight=-1.0)
    with pytest.raises(ConfigError, match="`pos_weight` must be a number, or broadcast"):
        losses.binary_cross_entropy(*f32(Z, MIXED), pos_weight=[1.0, 2.0])


@pytest.mark.parametrize("loss", [losses.binary_cross_entropy, losses.binary_focal])
@pytest.mark.parametrize("labels", [[-1, 1], [1, 2], [0, 255], [0.5, 1.5]])
def test_labels_outside_the_unit_interval_are_seen(loss, labels):
    y = np.array(labels)
    outside = (y < 0) | (y > 1)
    with pytest.raises(DataError, match=r"in \[0, 1\]"):
        loss(jnp.ones(2), y)
    values = jax.jit(lambda y: loss(jnp.ones(2), y).values)(y)
    np.testing.assert_array_equal(np.isnan(values), outside)


def test_nan_logits_are_nan():
    z, y = jnp.array([jnp.nan, 0.0]), jnp.array([1, 0])
    for loss in (losses.binary_cross_entropy, losses.binary_focal, losses.hinge, losses.squared_hinge):
        assert np.isnan(loss(z, y).values).tolist() == [True, False], loss
    rows = jnp.array([[0.0, jnp.nan], [0.0, 1.0]])
    hot = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    for loss in (
        losses.cross_entropy,
        losses.focal,
        losses.kl_divergence,
        losses.dice,
        losses.mse,
        losses.huber,
    ):
        assert np.isnan(loss(rows, hot).values).tolist() == [True, False], loss
    p = jnp.array([[1.0, jnp.nan]])
    assert np.isnan(jax.jit(lambda p: losses.cross_entropy(p, hot[:1], from_logits=False).values)(p)).all()


def test_huber_at_infinity():
    value, gradient = jax.value_and_grad(lambda p: losses.huber(p, jnp.zeros(2), 0.7).sum())(
        jnp.array([jnp.inf, -jnp.inf])
    )
    assert value == np.inf
    np.testing.assert_allclose(gradient, [0.7, -0.7], rtol=1e-6)


def test_labels_of_64_bits_do_not_wrap():
    z = np.array([[5.0, 0.0, 0.0]], np.float32)
    with pytest.raises(ConfigError, match="`ignore_index` must be a 32-bit integer"):
        losses.cross_entropy(z, np.array([0]), ignore_index=2**32)
    with pytest.raises(DataError, match="got 4294967296"):
        losses.cross_entropy(z, np.array([2**32]))
    for labels in (np.array([2**32 - 100], np.uint32), np.array([2**31 + 1], np.uint32)):
        got = jax.jit(lambda y: losses.cross_entropy(z, y, ignore_index=-100))(labels)
        assert np.isnan(got.mean())
    with jax.enable_x64(True):
        for label in (2**32, 2**32 - 100, -(2**32) + 1):
            got = jax.jit(lambda y: losses.cross_entropy(z, y, ignore_index=-100))(np.array([label]))
            assert np.isnan(got.mean()), label


def test_class_weights_in_a_dict_are_refused_with_the_call_that_works():
    with pytest.raises(ConfigError, match=r"got a dict: write it as `\[weights.get"):
        losses.cross_entropy(jnp.zeros((2, 2)), jnp.array([0, 1]), class_weights={0: 1.0, 1: 2.0})


def test_label_smoothing_may_be_traced():
    z, y = f32(Z)[0], CLASSES
    got = jax.jit(lambda e: losses.cross_entropy(z, y, label_smoothing=e).values)(0.1)
    np.testing.assert_allclose(got, losses.cross_entropy(z, y, label_smoothing=0.1).values, rtol=1e-6)


VECTOR = np.array([0.5, 1.0, 2.0, 0.25])
# name: (a loss of floating-point arguments, these)
DIFFERENTIABLE = {
    "cross_entropy of classes, smoothing": (
        lambda z, e: losses.cross_entropy(z, CLASSES, label_smoothing=e, class_weights=VECTOR),
        (Z, np.array(0.2)),
    ),
    "cross_entropy of distributions": (
        lambda z, t, w, e: losses.cross_entropy(z, t, class_weights=w, label_smoothing=e),
        (Z, np.eye(4)[CLASSES], VECTOR, np.array(0.0)),
    ),
    "cross_entropy of probabilities": (
        lambda p, t: losses.cross_entropy(p, t, from_logits=False),
        (SOFT, np.eye(4)[CLASSES]),
    ),
    "binary_cross_entropy": (
        lambda z, t, w: losses.binary_cross_entropy(z, t, pos_weight=w),
        (Z, MIXED, VECTOR),
    ),
    "binary_cross_entropy of probabilities": (
        lambda p, t: losses.binary_cross_entropy(p, t, from_logits=False),
        (sigmoid(Z / 3), MIXED),
    ),
    "linear_cross_entropy": (
        lambda h, k: losses.linear_cross_entropy(
            h, k, CLASSES, chunk=3, label_smoothing=0.1, class_weights=VECTOR, z_loss=0.1
        ),
        (T[:, :3], Z[:3]),
    ),
    "focal": (lambda z, g, a: losses.focal(z, CLASSES, gamma=g, alpha=a), (Z, np.array(2.0), VECTOR)),
    "focal of distributions": (lambda z, t: losses.focal(z, t, gamma=0.5), (Z, np.eye(4)[CLASSES])),
    "binary_focal": (
        lambda z, t, g, a: losses.binary_focal(z, t, gamma=g, alpha=a),
        (Z, MIXED, np.array(1.5), np.array(0.25)),
    ),
    "kl_divergence": (losses.kl_divergence, (Z, SOFT)),
    "kl_divergence of logits": (lambda z, t: losses.kl_divergence(z, t, targets_from_logits=True), (Z, T)),
    "hinge": (lambda s: losses.hinge(s, HARD), (Z,)),
    "squared_hinge": (lambda s: losses.squared_hinge(s, HARD), (Z,)),
    "dice": (losses.dice, (Z, MIXED)),
    "dice, smooth": (lambda z, s: losses.dice(z, MIXED, smooth=s), (Z, np.array(0.5))),
    "mse": (losses.mse, (Z, T)),
    "mae": (losses.mae, (Z, T)),
    "huber": (losses.huber, (Z, T, np.array(1.1))),
    "log_cosh": (losses.log_cosh, (Z, T)),
    "cosine_distance": (losses.cosine_distance, (Z, T)),
    "combine": (
        lambda z, t, c: losses.combine({"a": (c, losses.mse(z, t)), "b": (2.0, losses.mae(z, t))}),
        (Z, T, np.array(0.3)),
    ),
}
INSIDE = {
    "binary_cross_entropy",
    "binary_cross_entropy of probabilities",
    "binary_focal",
    "dice",
}  # labels in [0, 1]


def test_every_loss_has_its_gradient_tested():
    wanted = {name for name in losses.__all__ if name[0].islower()} - {"get"}
    assert wanted == {name.split(",")[0].split(" of ")[0] for name in DIFFERENTIABLE}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.filterwarnings("ignore:with `from_logits=False`")
def test_gradients_in_every_argument(name):
    loss, arguments = DIFFERENTIABLE[name]
    with jax.enable_x64(True):
        mean = jax.jit(lambda *x: loss(*x).mean())
        gradients = jax.jit(jax.grad(lambda *x: loss(*x).mean(), tuple(range(len(arguments)))))(*arguments)
        assert mean(*arguments).dtype == np.float64
        for i, (x, gradient) in enumerate(zip(arguments, gradients)):
            assert gradient.dtype == np.float64
            # At the ends of the labels' interval, and of a smoothing of 0, there is one side to go.
            ends = (i == 1 and name in INSIDE) or (x.ndim == 0 and x == 0)
            for index in list(np.ndindex(x.shape))[:: max(1, x.size // 9)]:
                h = np.zeros_like(x)
                h[index] = 1e-5 * (-1 if ends and x[index] > 0.5 else 1)

                def at(k, h=h, x=x, i=i):
                    return float(mean(*arguments[:i], x + k * h, *arguments[i + 1 :]))

                if ends:
                    difference = (-3 * at(0) + 4 * at(1) - at(2)) / (2 * h[index])
                else:
                    difference = (at(1) - at(-1)) / (2 * h[index])
                np.testing.assert_allclose(
                    gradient[index], difference, rtol=1e-6, atol=2e-9, err_msg=f"{i} {index}"
                )
