"""Scores against scikit-learn over hundreds of random problems, and every edge that a design decision names."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from fntrain import ConfigError, DataError, scores

CLOSE = dict(rtol=1e-6, atol=1e-6)


def truth(function, *args, **kwargs):
    """scikit-learn's value, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def labels(seed):
    """Labels of up to 6 classes, some of which may be absent on one side or both, and weights or None."""
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(1, 60)), int(rng.integers(1, 7))
    present = rng.permutation(6)[:classes]
    true, pred = rng.choice(present, n), rng.choice(present, n)
    if seed % 3 == 0:
        pred = np.where(rng.uniform(size=n) < 0.6, true, pred)
    weight = rng.integers(0, 4, n) * rng.uniform(0.1, 2) if seed % 2 else None
    if weight is not None and not weight.any():
        weight = None
    return true, pred, weight


def scored(seed):
    """Binary labels with scores that are tied, constant, or all different, and weights or None."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 80))
    true = rng.integers(0, 2, n)
    true[:2] = 0, 1
    score = rng.normal(size=n) + 0.7 * true
    kind = seed % 4
    if kind == 1:
        score = np.round(score * 2) / 2
    elif kind == 2:
        score = np.full(n, 0.25) if seed % 8 == 2 else np.round(score)
    elif kind == 3:
        score = score.astype(np.float32)
    weight = rng.integers(0, 3, n) * rng.uniform(0.1, 2) if seed % 3 == 0 else None
    if weight is not None:
        weight[:2] = 1.0
    return true, score, weight


@pytest.mark.parametrize("block", range(10))
def test_classes_agree_with_scikit_learn(block):
    for seed in range(30 * block, 30 * block + 30):
        true, pred, weight = labels(seed)
        got = scores.classification_metrics(true, pred, sample_weight=weight)
        assert list(got) == ["accuracy", "precision", "recall", "f1"]
        assert all(type(value) is float for value in got.values())
        np.testing.assert_allclose(
            got["accuracy"], sk.accuracy_score(true, pred, sample_weight=weight), **CLOSE
        )
        precision, recall, f1, _ = truth(
            sk.precision_recall_fscore_support,
            *(true, pred),
            average="macro",
            sample_weight=weight,
            zero_division=0,
        )
        np.testing.assert_allclose(
            [got["precision"], got["recall"], got["f1"]], [precision, recall, f1], **CLOSE
        )


@pytest.mark.parametrize("normalize", [None, "true", "pred", "all"])
def test_confusion_matrix_agrees_with_scikit_learn(normalize):
    for seed in range(60):
        true, pred, weight = labels(seed)
        got = scores.confusion_matrix(true, pred, normalize, sample_weight=weight)
        expected = truth(sk.confusion_matrix, true, pred, normalize=normalize, sample_weight=weight)
        np.testing.assert_allclose(got, expected, **CLOSE)
        some = np.unique(true)[::-1]
        expected = truth(
            sk.confusion_matrix, true, pred, labels=some, normalize=normalize, sample_weight=weight
        )
        got = scores.confusion_matrix(true, pred, normalize, labels=some, sample_weight=weight)
        np.testing.assert_allclose(got, expected, **CLOSE)


def test_true_normalises_rows_and_false_counts():
    true, pred = [0, 0, 0, 1], [0, 0, 1, 1]
    assert scores.confusion_matrix(true, pred, True).tolist() == [[2 / 3, 1 / 3], [0, 1]]
    counts = scores.confusion_matrix(true, pred, False)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[2, 1], [0, 1]]


@pytest.mark.parametrize("block", range(10))
def test_curves_agree_with_scikit_learn(block):
    for seed in range(30 * block, 30 * block + 30):
        true, score, weight = scored(seed)
        for drop in (True, False):
            fpr, tpr, thresholds, auc = scores.roc_auc(
                true, score, sample_weight=weight, drop_intermediate=drop
            )
            expected = sk.roc_curve(true, score, sample_weight=weight, drop_intermediate=drop)
            for got, wanted in zip((fpr, tpr, thresholds), expected):
                np.testing.assert_allclose(got, wanted, **CLOSE)
            np.testing.assert_allclose(auc, sk.roc_auc_score(true, score, sample_weight=weight), **CLOSE)
            got = scores.precision_recall_curve(true, score, sample_weight=weight, drop_intermediate=drop)
            expected = sk.precision_recall_curve(true, score, sample_weight=weight, drop_intermediate=drop)
            for x, wanted in zip(got, expected):
                np.testing.assert_allclose(x, wanted, **CLOSE)
        ap = scores.average_precision_score(true, score, sample_weight=weight)
        np.testing.assert_allclose(ap, sk.average_precision_score(true, score, sample_weight=weight), **CLOSE)


def test_roc_auc_counts_pairs():
    # The definition itself, which shares nothing with a sort: P(s+ > s-) + P(s+ = s-) / 2.
    for seed in range(40):
        true, score, weight = scored(seed)
        w = np.ones(len(true)) if weight is None else weight
        won = (score[:, None] > score) + 0.5 * (score[:, None] == score)
        pairs = np.outer(w * (true == 1), w * (true == 0))
        auc = scores.roc_auc(true, score, sample_weight=weight)[3]
        np.testing.assert_allclose(auc, (won * pairs).sum() / pairs.sum(), **CLOSE)


@pytest.mark.parametrize("block", range(4))
def test_binary_metrics_agree_with_scikit_learn(block):
    for seed in range(30 * block, 30 * block + 30):
        true, score, weight = scored(seed)
        got = scores.binary_classification_metrics(true, score, 0.5, sample_weight=weight)
        pred = score >= 0.5
        assert list(got) == ["accuracy", "precision", "recall", "f1", "tp", "tn", "fp", "fn"]
        expected = truth(
            sk.precision_recall_fscore_support,
            *(true, pred),
            average="binary",
            sample_weight=weight,
            zero_division=0,
        )
        np.testing.assert_allclose([got["precision"], got["recall"], got["f1"]], expected[:3], **CLOSE)
        np.testing.assert_allclose(
            got["accuracy"], sk.accuracy_score(true, pred, sample_weight=weight), **CLOSE
        )
        matrix = sk.confusion_matrix(true, pred, sample_weight=weight, labels=[0, 1])
        np.testing.assert_allclose([[got["tn"], got["fp"]], [got["fn"], got["tp"]]], matrix, **CLOSE)


def test_a_score_at_the_threshold_is_a_yes_in_its_own_precision():
    # float32(0.7) is below 0.7 as a float64: a comparison in float64 would say no.
    for dtype in (np.float32, np.float64, jnp.bfloat16):
        score = jnp.array([0.7, 0.69], dtype) if dtype is jnp.bfloat16 else np.array([0.7, 0.6], dtype)
        got = scores.binary_classification_metrics([1, 1], score, threshold=0.7)
        assert got["tp"] >= 1, dtype
    got = scores.binary_classification_metrics([1, 0, 1], [1, 0, 0], threshold=0.5)
    assert (got["tp"], got["fp"], got["fn"], got["tn"]) == (1, 0, 1, 1)
    assert all(type(got[name]) is int for name in ("tp", "tn", "fp", "fn"))


def test_golden_example():
    true, pred = [0, 1, 2, 0, 1, 2], [0, 2, 1, 0, 1, 2]
    got = scores.classification_metrics(true, pred)
    assert got["accuracy"] == pytest.approx(4 / 6)
    assert got["precision"] == got["recall"] == got["f1"] == pytest.approx(2 / 3)
    assert scores.confusion_matrix(true, pred).tolist() == [[2, 0, 0], [0, 1, 1], [0, 1, 1]]
    each = [scores.binary_classification_metrics(np.equal(true, c), np.equal(pred, c)) for c in range(3)]
    assert [(m["precision"], m["recall"]) for m in each] == [(1.0, 1.0), (0.5, 0.5), (0.5, 0.5)]


def test_undefined_ratios_are_counted_on_request():
    # Class 1 is never predicted, class 2 never true: both ratios are 0, and enter the macro mean.
    got = scores.classification_metrics([0, 0, 1], [0, 0, 2], undefined=True)
    assert got["undefined"] == 2
    assert got["precision"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("block", range(4))
def test_several_classes_and_labels_agree_with_scikit_learn(block):
    for seed in range(10 * block, 10 * block + 10):
        rng = np.random.default_rng(seed)
        n, classes = 40, int(rng.integers(3, 6))
        true = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
        score = np.round(rng.normal(size=(n, classes)) + 1.5 * (true[:, None] == np.arange(classes)), 1)
        probability = np.exp(score) / np.exp(score).sum(1, keepdims=True)
        weight = rng.uniform(0.1, 2, n) if seed % 2 else None
        several = (rng.uniform(size=(n, classes)) < 0.4).astype(int)
        several[:2] = [[0] * classes, [1] * classes]
        for average in ("macro", "weighted", None):
            kwargs = dict(average=average, sample_weight=weight)
            got = scores.roc_auc_score(true, probability, **kwargs)
            expected = sk.roc_auc_score(true, probability, multi_class="ovr", **kwargs)
            np.testing.assert_allclose(got, expected, **CLOSE)
            np.testing.assert_allclose(
                scores.roc_auc_score(several, score, **kwargs),
                sk.roc_auc_score(several, score, **kwargs),
                **CLOSE,
            )
            for y in (true, several):
                got = scores.average_precision_score(y, score, **kwargs)
                np.testing.assert_allclose(got, sk.average_precision_score(y, score, **kwargs), **CLOSE)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_regression_agrees_with_scikit_learn(offset):
    for seed in range(100):
        rng = np.random.default_rng(seed)
        n, outputs = int(rng.integers(2, 50)), int(rng.integers(1, 4))
        shape = (n,) if outputs == 1 else (n, outputs)
        true = (rng.normal(size=shape) + offset).astype(np.float32 if seed % 2 else np.float64)
        pred = true + rng.normal(size=shape).astype(true.dtype) * 0.5
        weight = rng.uniform(0, 2, n) if seed % 3 == 0 else None
        got = scores.regression_metrics(true, pred, sample_weight=weight)
        assert list(got) == ["mse", "rmse", "mae", "r2"]
        true, pred = true.astype(np.float64), pred.astype(np.float64)
        for name, function in (
            ("mse", sk.mean_squared_error),
            ("rmse", sk.root_mean_squared_error),
            ("mae", sk.mean_absolute_error),
            ("r2", sk.r2_score),
        ):
            np.testing.assert_allclose(got[name], function(true, pred, sample_weight=weight), **CLOSE)


def test_constant_targets():
    # 0.1 has no exact mean: the spread must be zero all the same, as it is in scikit-learn.
    true = np.full(7, 0.1)
    assert scores.regression_metrics(true, true)["r2"] == 1.0
    assert scores.regression_metrics(true, np.r_[true[:6], 1.1])["r2"] == 0.0
    assert np.isnan(scores.regression_metrics([1.0], [1.0])["r2"])


def test_one_class_is_nan():
    fpr, tpr, thresholds, auc = scores.roc_auc([1, 1, 1], [0.1, 0.2, 0.3])
    assert np.isnan(auc)
    assert np.isnan(fpr).all()
    assert tpr[-1] == 1.0
    assert thresholds[0] == np.inf
    assert np.isnan(scores.roc_auc([0, 0], [0.1, 0.2])[1]).all()
    assert np.isnan(scores.average_precision_score([0, 0, 0], [0.1, 0.2, 0.3]))
    assert scores.average_precision_score([1, 1], [0.1, 0.2]) == 1.0
    precision, recall, _ = scores.precision_recall_curve([0, 0], [0.1, 0.2])
    assert precision.tolist() == [0.0, 0.0, 1.0]
    assert np.isnan(recall[:-1]).all()
    assert recall[-1] == 0.0
    # A class of several that is missing makes the mean NaN, and says which.
    score = np.array([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1]])
    assert np.isnan(scores.roc_auc_score([0, 0, 1], score))
    assert np.isnan(scores.roc_auc_score([0, 0, 1], score, average=None)).tolist() == [False, False, True]
    assert np.isfinite(scores.roc_auc_score([0, 0, 1], score, average="weighted"))


def test_arrays_of_either_kind_and_other_labels():
    true, score, _ = scored(5)
    expected = scores.roc_auc(true, score)
    for got in (
        scores.roc_auc(jnp.asarray(true), jnp.asarray(score, jnp.float32)),
        scores.roc_auc(true.astype(bool), score),
        scores.roc_auc(2 * true - 1, score),
        scores.roc_auc(true.tolist(), score.tolist()),
    ):
        np.testing.assert_allclose(got[3], expected[3], **CLOSE)
    got = scores.classification_metrics(["cat", "dog", "cat"], ["cat", "cat", "cat"])
    assert got["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: scores.classification_metrics([], []), "`y_true`"),
        (lambda: scores.classification_metrics([0, 1], [0]), "one length, got 2 and 1"),
        (lambda: scores.classification_metrics([0, 1], [0.2, 0.7]), "`y_pred` must be labels"),
        (lambda: scores.confusion_matrix([[0]], [[0]]), "shape"),
        (lambda: scores.confusion_matrix([0], [0], labels=[1]), "share a label"),
        (lambda: scores.confusion_matrix([0, 1], [0, 1], sample_weight=[1.0]), "`sample_weight`"),
        (lambda: scores.roc_auc([0, 1, 2], [0.1, 0.2, 0.3]), "0 and 1"),
        (lambda: scores.roc_auc([0, 1], [0.1, np.nan]), "NaN"),
        (lambda: scores.roc_auc([0, 1], [0.1, np.inf]), "finite"),
        (lambda: scores.roc_auc([0, 1], [[0.1, 0.9]] * 2), r"\[N\]"),
        (lambda: scores.roc_auc([0, 1], [0.1, 0.2], sample_weight=[0, 0]), "not all 0"),
        (lambda: scores.roc_auc([0, 1], [0.1, 0.2], sample_weight=[-1, 2]), ">= 0"),
        (lambda: scores.average_precision_score([0, 3], [[0.1, 0.9]] * 2), "columns"),
        (lambda: scores.regression_metrics([1.0, 2.0], [[1.0], [2.0]]), "one shape"),
        (lambda: scores.regression_metrics([1.0, np.nan], [1.0, 2.0]), "finite"),
    ],
)
def test_what_cannot_be_scored_is_an_error(call, words):
    with pytest.raises(DataError, match=words):
        call()


def test_unknown_options_are_errors():
    with pytest.raises(ConfigError, match="did you mean 'true'"):
        scores.confusion_matrix([0], [0], "treu")
    with pytest.raises(ConfigError, match="`average`"):
        scores.roc_auc_score([0, 1], [0.1, 0.2], average="micro")
    with pytest.raises(ConfigError, match="`threshold`"):
        scores.binary_classification_metrics([0, 1], [0.1, 0.2], threshold=np.nan)


def test_ids_are_told_apart_whatever_their_dtypes():
    big = 2**53
    true, pred = np.array([big, big + 1]), np.array([big, big + 1], np.uint64)
    assert scores.confusion_matrix(true, pred).tolist() == [[1, 0], [0, 1]]
    assert scores.confusion_matrix(true, pred, labels=[big + 1]).tolist() == [[1]]
    huge = np.array([2**64 - 1, 2**64 - 2], np.uint64)
    assert scores.confusion_matrix(huge, np.array([-1, -2])).sum(1).tolist() == [0, 0, 1, 1]
    assert scores.confusion_matrix(huge, huge).tolist() == [[1, 0], [0, 1]]
    assert scores.confusion_matrix([-1, 2**64 - 1], [-1, 2**64 - 2]).shape == (3, 3)
    assert scores.classification_metrics([True, False], [1, 0])["accuracy"] == 1
    assert scores.classification_metrics([1.0, 0.0], np.array([1, 0], np.uint8))["accuracy"] == 1
    for bad in (np.array([2.0**53 + 2, 0]), np.array([2.0**24 + 2, 0], np.float32)):
        with pytest.raises(DataError, match="skips integers"):
            scores.confusion_matrix(bad, bad)


def test_text_and_numbers_are_not_one_kind_of_label():
    words = "labels must be of one kind, got `y_true` text and `y_pred` integers"
    for true, pred in ((["1", "0"], [1, 0]), (np.array(["True"]), np.array([True])), (["1"], [1.0])):
        with pytest.raises(DataError, match=words):
            scores.confusion_matrix(true, pred)
    with pytest.raises(DataError, match="text and `y_pred` bytes"):
        scores.confusion_matrix(["a"], [b"a"])
    with pytest.raises(
        DataError, match="`y_true` must be labels of one kind, text or integers, got int, str"
    ):
        scores.confusion_matrix(["1", 1], ["1", "1"])
    with pytest.raises(DataError, match="text or integers, got NoneType, str"):
        scores.confusion_matrix(np.array(["a", None]), np.array(["a", "b"]))
    with pytest.raises(DataError, match="`y_true` must be numbers or booleans"):
        scores.roc_auc(["1", "0"], [0.2, 0.1])
    assert scores.confusion_matrix(np.array(["b", "a"], object), ["b", "b"]).tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("scale", [1e-200, 1e-170, 1.0, 1e170, 1e300])
def test_r2_is_the_same_at_any_scale(scale):
    true, pred = np.array([1.0, 2.0, 4.0]) * scale, np.array([1.5, 2.0, 3.0]) * scale
    with np.errstate(over="ignore"):
        got = scores.regression_metrics(true, pred)
    np.testing.assert_allclose(got["r2"], sk.r2_score([1.0, 2.0, 4.0], [1.5, 2.0, 3.0]), rtol=1e-12)


def test_spearman_agrees_with_scipy():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(3, 40))
        true, pred = rng.normal(size=n), rng.normal(size=n)
        if seed % 2:
            true, pred = np.round(true), np.round(pred * 2)
        expected = truth(stats.spearmanr, true, pred).statistic
        np.testing.assert_allclose(scores.spearman(true, pred), expected, **CLOSE)
        times = rng.integers(0, 4, n)
        if times.sum() > 1:
            expected = truth(stats.spearmanr, np.repeat(true, times), np.repeat(pred, times)).statistic
            np.testing.assert_allclose(scores.spearman(true, pred, sample_weight=times), expected, **CLOSE)
    assert np.isnan(scores.spearman([1, 1, 1], [1, 2, 3]))
    assert scores.spearman([2**53, 2**53 + 1, 2**53 + 2], [1, 2, 3]) == pytest.approx(1)
    with pytest.raises(DataError, match="has no rank"):
        scores.spearman([1.0, np.nan], [1, 2])
