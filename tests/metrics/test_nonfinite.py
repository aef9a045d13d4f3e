"""NaN scores are NaN values, whatever the metric: a model that has broken is never the best."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fntrain import ConfigError, metrics

RNG = np.random.default_rng(0)
N = 12
Z = RNG.normal(size=(N, 4)).astype(np.float32)
Y = np.arange(N, dtype=np.int32) % 4
LOGIT, YES = RNG.normal(size=N).astype(np.float32), np.arange(N) % 3 == 0
CLASSES, BINARY = {"logits": Z, "labels": Y}, {"logits": LOGIT, "labels": YES}
SEVERAL = {"logits": Z, "labels": (np.arange(4 * N).reshape(N, 4) % 3 == 0).astype(np.int32)}
REGRESSION = {"predictions": LOGIT, "targets": LOGIT + 1 + 0.1 * Z[:, 0]}

# name: (the metric, its outputs, the key of the scores)
READS = {
    "accuracy": (metrics.accuracy(), CLASSES, "logits"),
    "accuracy, top 2": (metrics.accuracy(2), CLASSES, "logits"),
    "binary_stats": (metrics.binary_stats(), BINARY, "logits"),
    "per_class_accuracy": (metrics.per_class_accuracy(4), CLASSES, "logits"),
    "confusion_matrix": (metrics.confusion_matrix(4, "true"), CLASSES, "logits"),
    "precision": (metrics.precision(4), CLASSES, "logits"),
    "recall": (metrics.recall(4, "weighted"), CLASSES, "logits"),
    "f1": (metrics.f1(4, "micro"), CLASSES, "logits"),
    "f1 of each": (metrics.f1(4, None), CLASSES, "logits"),
    "f1 of labels": (metrics.f1(4, multilabel=True), SEVERAL, "logits"),
    "f1, undefined is 1": (metrics.f1(4, zero_division=1), CLASSES, "logits"),
    "fbeta": (metrics.fbeta(4, 2.0), CLASSES, "logits"),
    "specificity": (metrics.specificity(4), CLASSES, "logits"),
    "iou": (metrics.iou(4), CLASSES, "logits"),
    "dice": (metrics.dice(4), CLASSES, "logits"),
    "balanced_accuracy": (metrics.balanced_accuracy(4), CLASSES, "logits"),
    "mcc": (metrics.mcc(4), CLASSES, "logits"),
    "cohen_kappa": (metrics.cohen_kappa(4), CLASSES, "logits"),
    "perplexity": (metrics.perplexity(), CLASSES, "logits"),
    "expected_calibration_error": (metrics.expected_calibration_error(), CLASSES, "logits"),
    "brier": (metrics.brier(), CLASSES, "logits"),
    "roc_auc": (metrics.roc_auc(), BINARY, "logits"),
    "average_precision": (metrics.average_precision(), BINARY, "logits"),
    "mean_average_precision": (metrics.mean_average_precision(4, multilabel=True), SEVERAL, "logits"),
    "ndcg": (metrics.ndcg(), SEVERAL, "logits"),
    "mean": (metrics.mean("predictions"), REGRESSION, "predictions"),
    "mse": (metrics.mse(), REGRESSION, "predictions"),
    "rmse": (metrics.rmse(), REGRESSION, "predictions"),
    "mae": (metrics.mae(), REGRESSION, "predictions"),
    "mape": (metrics.mape(), REGRESSION, "predictions"),
    "r2": (metrics.r2(), REGRESSION, "predictions"),
    "explained_variance": (metrics.explained_variance(), REGRESSION, "predictions"),
    "pearson": (metrics.pearson(), REGRESSION, "predictions"),
    "bootstrap": (metrics.bootstrap(metrics.mse(), 20), REGRESSION, "predictions"),
    "collect": (metrics.collect(a=metrics.accuracy(3), b=metrics.mcc(4)), CLASSES, "logits"),
}


def value(m, outputs, weight=None):
    return m.compute(m.update(m.empty(), outputs, weight))


def ratios(x):
    return [leaf for leaf in jax.tree.leaves(x) if leaf.dtype == jnp.float32]


def test_every_metric_is_here():
    made = {name for name, f in vars(metrics).items() if getattr(f, "makes", None) is metrics.Metric}
    assert made == {name.split(",")[0].split(" of ")[0] for name in READS}


@pytest.mark.parametrize("name", READS)
def test_one_nan_score_is_nan(name):
    m, outputs, key = READS[name]
    assert all(np.isfinite(x).all() for x in ratios(value(m, outputs)))
    bad = np.array(outputs[key])
    bad[5 if bad.ndim == 1 else (5, 3)] = np.nan
    broken = value(m, {**outputs, key: bad})
    assert all(np.isnan(x).all() for x in ratios(broken)), broken
    weight = (np.arange(N) != 5).astype(np.float32)
    assert all(np.isfinite(x).all() for x in ratios(value(m, {**outputs, key: bad}, weight)))


def test_constant_targets_do_not_hide_nan():
    outputs = {"predictions": jnp.array([jnp.nan, 1.0]), "targets": jnp.ones(2)}
    for m in (metrics.r2(), metrics.explained_variance()):
        assert np.isnan(value(m, outputs))


def test_counts_leave_out_what_could_not_be_decided():
    stats = value(metrics.binary_stats(), {"logits": jnp.array([jnp.nan, 1.0]), "labels": jnp.array([0, 1])})
    assert [int(stats[k]) for k in ("tp", "fp", "fn", "tn")] == [1, 0, 0, 0]
    outputs = {"logits": jnp.array([[jnp.nan, 0.0], [0.0, 1.0]]), "labels": jnp.array([0, 1])}
    assert value(metrics.confusion_matrix(2), outputs).tolist() == [[0, 0], [0, 1]]


def test_infinite_logits_have_an_order():
    z = jnp.array([[jnp.inf, 0.0], [-jnp.inf, 0.0]])
    assert value(metrics.accuracy(), {"logits": z, "labels": jnp.array([0, 1])}) == 1


def test_labels_of_64_bits_do_not_wrap_onto_classes():
    with jax.enable_x64(True):
        outputs = {"logits": jnp.array([[5.0, 0.0]], jnp.float32), "labels": jnp.array([2**32])}
        assert value(metrics.accuracy(), outputs) == 0
        assert np.isnan(value(metrics.f1(2), outputs))
        guesses = {"logits": jnp.array([2**32]), "labels": jnp.array([0])}
        assert value(metrics.accuracy(), guesses) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.f1(3, labels=[1, 2]), "`labels` must be the key of an output, .* `classes=` says"),
        (lambda: value(metrics.accuracy(labels=["a"]), CLASSES), "must be given the key of an output"),
        (
            lambda: metrics.f1(3, classes=[1, 3]),
            r"`classes` must be different integers in \[0, 3\), got \[1, 3\]",
        ),
        (lambda: metrics.f1(3, classes=[1, 1]), "different"),
        (lambda: metrics.f1(3, classes="12"), "`classes`"),
        (lambda: metrics.f1(3, zero_division="warn"), "`zero_division` must be 0, 1 or NaN"),
        (lambda: metrics.fbeta(3, -1.0), "`beta`"),
        (lambda: metrics.ndcg(0), "`k`"),
        (lambda: metrics.cohen_kappa(3, "squared"), "`weighting`"),
        (lambda: metrics.expected_calibration_error(0), "`bins`"),
        (lambda: metrics.brier(scale_by_half="auto"), "`scale_by_half`"),
    ],
)
def test_configurations_that_cannot_work(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
