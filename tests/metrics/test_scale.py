"""Moments at any scale, and ratios of counts at any imbalance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from fntrain import metrics
from fntrain.metrics import exact

RNG = np.random.default_rng(0)
Y = RNG.normal(size=40) + 3
P = Y + RNG.normal(size=40) * 0.5 + 0.2
W = RNG.uniform(0.2, 2, 40).astype(np.float32)
FAMILY = metrics.collect(
    r2=metrics.r2(), ev=metrics.explained_variance(), r=metrics.pearson(), rmse=metrics.rmse()
)
UPDATE, MERGE = jax.jit(FAMILY.update), jax.jit(FAMILY.merge)


@pytest.mark.parametrize("scale", [2.0**-120, 1e-30, 1e-25, 1e-10, 1.0, 1e10, 1e25, 2.0**125])
def test_a_share_is_the_same_at_any_scale(scale):
    y, p = (Y * scale).astype(np.float32), (P * scale).astype(np.float32)
    y_, p_ = y.astype(np.float64) / scale, p.astype(np.float64) / scale
    acc = UPDATE(FAMILY.empty(), {"predictions": p, "targets": y}, W)
    halves = [
        UPDATE(FAMILY.empty(), {"predictions": p[s], "targets": y[s]}, W[s])
        for s in (slice(20), slice(20, 40))
    ]
    cov = np.cov(np.stack([y_, p_]), aweights=W)
    for got in (FAMILY.compute(acc), FAMILY.compute(MERGE(*halves))):
        np.testing.assert_allclose(got["r2"], sk.r2_score(y_, p_, sample_weight=W), rtol=2e-6)
        np.testing.assert_allclose(got["ev"], sk.explained_variance_score(y_, p_, sample_weight=W), rtol=2e-6)
        np.testing.assert_allclose(got["r"], cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1]), rtol=2e-6)
        rmse = np.sqrt(np.average((y_ - p_) ** 2, weights=W)) * scale
        np.testing.assert_allclose(got["rmse"], np.float32(rmse), rtol=2e-6)


def test_batches_of_different_scales():
    y = np.concatenate([Y[:20] * 1e-25, Y[20:] * 1e-20]).astype(np.float32)
    p = np.concatenate([P[:20] * 1e-25, P[20:] * 1e-20]).astype(np.float32)
    accs = [
        UPDATE(FAMILY.empty(), {"predictions": p[s], "targets": y[s]}) for s in (slice(20), slice(20, 40))
    ]
    expected = sk.r2_score(y.astype(np.float64) * 1e20, p.astype(np.float64) * 1e20)
    for a, b in (accs, accs[::-1]):
        np.testing.assert_allclose(FAMILY.compute(MERGE(a, b))["r2"], expected, rtol=2e-6)


def test_what_is_far_off_at_a_small_scale():
    y, p = jnp.array([1e-25, 2e-25, 3e-25]), jnp.array([1e-24, 1e-25, 2e-24])
    expected = sk.r2_score(np.float64(y) * 1e25, np.float64(p) * 1e25)
    got = FAMILY.compute(UPDATE(FAMILY.empty(), {"predictions": p, "targets": y}))
    np.testing.assert_allclose(got["r2"], expected, rtol=2e-6)
    got = FAMILY.compute(UPDATE(FAMILY.empty(), {"predictions": jnp.array([3e38, 0, 0]), "targets": y}))
    assert got["r2"] == -np.inf  # about -1e125
    zero = {"predictions": jnp.array([1e-30, 0.0]), "targets": jnp.zeros(2)}
    assert FAMILY.compute(UPDATE(FAMILY.empty(), zero))["r2"] == 0
    opposite = {"predictions": jnp.array([3e38, -3e38]), "targets": jnp.array([-3e38, 3e38])}
    got = FAMILY.compute(UPDATE(FAMILY.empty(), opposite))
    np.testing.assert_allclose([got["r2"], got["r"]], [-3.0, -1.0], rtol=1e-6)


def test_constants():
    same = {"predictions": jnp.full(3, 0.1), "targets": jnp.full(3, 0.3)}
    got = FAMILY.compute(UPDATE(FAMILY.empty(), same))
    assert (float(got["r2"]), float(got["ev"])) == (0.0, 1.0)  # as scikit-learn
    assert np.isnan(got["r"])


def confusion(matrix):
    """The accumulator of a confusion matrix of such counts."""
    m = metrics.confusion_matrix(len(matrix))
    low = jnp.concatenate([jnp.asarray(matrix, jnp.uint32).reshape(-1), jnp.zeros(1, jnp.uint32)])
    return m.empty()._replace(cells=exact.Count(jnp.zeros_like(low), low))


@pytest.mark.parametrize(
    "matrix", [[[2_000_000_000, 30], [20, 50]], [[7, 3], [2, 4_000_000_000]], [[9, 1], [90, 10]]]
)
def test_ratios_keep_their_digits_where_one_class_is_nearly_all(matrix):
    (tn, fp), (fn, tp) = (np.array(row, np.float64) for row in matrix)
    acc = confusion(matrix)
    mcc = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    np.testing.assert_allclose(metrics.mcc(2).compute(acc), mcc, rtol=2e-6, atol=6e-8)
    specificity = metrics.specificity(2, None).compute(acc)
    np.testing.assert_allclose(specificity, [tp / (tp + fn), tn / (tn + fp)], rtol=2e-6)


def test_one_class_only():
    outputs = {"logits": jnp.zeros(3, jnp.int32), "labels": jnp.zeros(3, jnp.int32)}
    got = {
        n: m.compute(m.update(m.empty(), outputs))
        for n, m in {"mcc": metrics.mcc(2), "k": metrics.cohen_kappa(2)}.items()
    }
    assert got["mcc"] == 0  # as scikit-learn
    assert np.isnan(got["k"])


def test_lists_that_are_not_equally_long():
    scores, gains = RNG.normal(size=(5, 6)), RNG.integers(0, 4, (5, 6)).astype(np.float64)
    lengths = [6, 2, 4, 3, 5]
    there = np.arange(6) < np.array(lengths)[:, None]
    weight = np.array([1.0, 2.0, 0.5, 0.0, 1.0])
    each = [sk.ndcg_score(gains[i : i + 1, :n], scores[i : i + 1, :n], k=3) for i, n in enumerate(lengths)]
    outputs = {
        "logits": jnp.asarray(np.where(there, scores, np.nan), jnp.float32),
        "labels": jnp.asarray(np.where(there, gains, np.nan), jnp.float32),
    }
    m = metrics.ndcg(3)
    got = m.compute(m.update(m.empty(), outputs, there * weight[:, None].astype(np.float32)))
    np.testing.assert_allclose(got, np.average(each, weights=weight), rtol=1e-6)
    ends = {"logits": jnp.array([[-jnp.inf, 1.0, 0.0]]), "labels": jnp.array([[1.0, 0.0, 9.0]])}
    got = m.compute(m.update(m.empty(), ends, jnp.array([[1.0, 1.0, 0.0]])))
    np.testing.assert_allclose(got, 1 / np.log2(3), rtol=1e-6)


def test_probabilities_and_a_single_logit_are_two_classes():
    z, y = jnp.asarray(RNG.normal(size=30), jnp.float32), RNG.integers(0, 2, 30)
    two, p = jnp.stack([jnp.zeros(30), z], 1), jax.nn.sigmoid(z)
    for make in (metrics.brier, metrics.expected_calibration_error):
        values = []
        for given, kwargs in (
            (z, {}),
            (two, {}),
            (p, {"from_logits": False}),
            (jax.nn.softmax(two), {"from_logits": False}),
        ):
            m = make(**kwargs)
            values.append(float(m.compute(m.update(m.empty(), {"logits": given, "labels": y}))))
        np.testing.assert_allclose(values, values[0], rtol=1e-5)


def test_ratios_of_a_decision_with_nothing_to_divide_by():
    outputs = {"logits": jnp.array([-1.0, -2.0]), "labels": jnp.array([0, 0])}
    for otherwise in (0.0, 1.0, np.nan):
        m = metrics.binary_stats(zero_division=otherwise)
        got = m.compute(m.update(m.empty(), outputs))
        np.testing.assert_array_equal([got[k] for k in ("precision", "recall", "f1")], otherwise)
        assert got["accuracy"] == 1
