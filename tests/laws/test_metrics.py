"""The laws of metrics, over a registry: a new metric is one new row here.

Below the registry stand broken specimens: things that break one law each, which the same check must refuse,
with the right words. A check that lets its specimen pass proves nothing about the rows above it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import testing
from fntrain.testing import LawError

RNG = np.random.default_rng(0)

LOGITS = RNG.normal(size=(13, 4)).astype(np.float32)
OUTPUTS = {
    "logits": LOGITS,
    "labels": np.where(RNG.random(13) < 0.5, LOGITS.argmax(1), RNG.integers(0, 4, 13)).astype(np.int32),
    "x": (RNG.normal(size=13) + 3).astype(np.float32),
    "t": (RNG.normal(size=13) + 3).astype(np.float32),
    "yes": np.arange(13) % 3 == 0,
    "two": LOGITS[:, :2],
    "each": np.stack([np.arange(13) % 3 == 0, np.arange(13) % 2 == 0], 1),
}
MASK = RNG.integers(0, 2, 13)
METRICS = {
    "mean": lambda: ft.metrics.mean("x"),
    "accuracy": lambda: ft.metrics.accuracy(),
    "accuracy top 2": lambda: ft.metrics.accuracy(top_k=2),
    "confusion_matrix": lambda: ft.metrics.confusion_matrix(4),
    "confusion_matrix of rows": lambda: ft.metrics.confusion_matrix(4, normalize="true"),
    "collect": lambda: ft.metrics.collect(a=ft.metrics.accuracy(), m=ft.metrics.mean("x")),
    "per_class_accuracy": lambda: ft.metrics.per_class_accuracy(4),
    "precision": lambda: ft.metrics.precision(4),
    "recall weighted": lambda: ft.metrics.recall(4, average="weighted"),
    "f1 of each": lambda: ft.metrics.f1(4, average=None),
    "perplexity": lambda: ft.metrics.perplexity(),
    "roc_auc": lambda: ft.metrics.roc_auc(logits="x", labels="yes"),
    "average_precision": lambda: ft.metrics.average_precision(logits="x", labels="yes"),
    "mean_average_precision": lambda: ft.metrics.mean_average_precision(
        2, multilabel=True, logits="two", labels="each"
    ),
    "binary_stats": lambda: ft.metrics.binary_stats(logits="x", labels="yes"),
    "mse": lambda: ft.metrics.mse(predictions="x", targets="t"),
    "rmse": lambda: ft.metrics.rmse(predictions="x", targets="t"),
    "mae": lambda: ft.metrics.mae(predictions="x", targets="t"),
    "r2": lambda: ft.metrics.r2(predictions="x", targets="t"),
    "explained_variance": lambda: ft.metrics.explained_variance(predictions="x", targets="t"),
    "pearson": lambda: ft.metrics.pearson(predictions="x", targets="t"),
    "mape": lambda: ft.metrics.mape(predictions="x", targets="t"),
    "fbeta": lambda: ft.metrics.fbeta(4, 2.0),
    "specificity": lambda: ft.metrics.specificity(4, average=None),
    "iou of some": lambda: ft.metrics.iou(4, average="micro", classes=[2, 0]),
    "dice of labels": lambda: ft.metrics.dice(2, multilabel=True, logits="two", labels="each"),
    "balanced_accuracy": lambda: ft.metrics.balanced_accuracy(4),
    "mcc": lambda: ft.metrics.mcc(4),
    "cohen_kappa": lambda: ft.metrics.cohen_kappa(4, "quadratic"),
    "expected_calibration_error": lambda: ft.metrics.expected_calibration_error(5),
    "brier": lambda: ft.metrics.brier(),
    "ndcg": lambda: ft.metrics.ndcg(2, logits="two", labels="each"),
    "bootstrap": lambda: ft.metrics.bootstrap(ft.metrics.accuracy(), replicates=20),
}


CUTS = 6, 12  # parts of 6, 6 and 1: each other length is one more program to compile


@pytest.mark.parametrize("name", METRICS)
def test_metric(name):
    testing.check_metric(METRICS[name], OUTPUTS, MASK, cuts=CUTS)


# No weight is a weight of one, which all metrics read at one place.
@pytest.mark.matrix(always=["mean", "accuracy", "roc_auc", "bootstrap"])
@pytest.mark.parametrize("name", METRICS)
def test_metric_without_a_weight(name):
    testing.check_metric(METRICS[name], OUTPUTS, cuts=CUTS)


def _mean(**replaced):
    m = ft.metrics.mean("x")
    parts = dict(empty=m.empty, update=m.update, merge=m.merge, compute=m.compute)
    made = ft.metrics.Metric(**{**parts, **replaced})
    return lambda: made


def _mean_of_means():
    def update(acc, outputs, weight=None):
        value = jnp.mean(outputs["x"])
        return acc[0] + value, acc[1] + 1

    return _mean(
        empty=lambda: (jnp.float32(0), jnp.float32(0)),
        update=update,
        merge=lambda a, b: (a[0] + b[0], a[1] + b[1]),
        compute=lambda acc: acc[0] / acc[1],
    )


def _leaky(acc, outputs, weight):
    return acc[0] + jnp.sum(outputs["x"] * weight), acc[1] + jnp.sum(weight)


BROKEN_METRICS = {
    "a split does not matter": _mean_of_means(),
    "empty is the identity": _mean(empty=lambda: jax.tree.map(lambda x: x + 1, ft.metrics.mean("x").empty())),
    "the accumulator keeps its types": _mean(
        empty=lambda: jax.tree.map(lambda x: 0, ft.metrics.mean("x").empty())
    ),
    "empty is the identity of merge, on the left": _mean(merge=lambda a, b: a),
    "rows of weight zero may hold anything": _mean(
        empty=lambda: (jnp.float32(0), jnp.float32(0)),
        update=_leaky,  # 0 * nan is nan
        merge=lambda a, b: (a[0] + b[0], a[1] + b[1]),
        compute=lambda acc: acc[0] / acc[1],
    ),
}


@pytest.mark.parametrize("law", BROKEN_METRICS)
def test_a_broken_metric_is_refused(law, monkeypatch):
    monkeypatch.setattr(testing, "check_value", lambda make: None)
    with pytest.raises(LawError, match=law):
        testing.check_metric(BROKEN_METRICS[law], OUTPUTS)


def made(module, kind):
    return {name for name, f in vars(module).items() if getattr(f, "makes", None) is kind}


def test_every_public_metric_has_its_row():
    """A factory without a row is one whose laws nobody has checked; a row's first word is the factory's name."""
    wanted = made(ft.metrics, ft.metrics.Metric)
    assert wanted - {name.split(" ")[0] for name in METRICS} == set()
    assert {"accuracy", "roc_auc"} <= wanted  # the set is the one that is meant
