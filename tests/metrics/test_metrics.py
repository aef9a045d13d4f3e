"""Reducers: laws over a registry, each row with a whole-array oracle in float64, and the edges one by one."""

import pickle
import re
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from sklearn import metrics as sk

import fntrain as ft
from fntrain import ConfigError, DataError, metrics
from fntrain.metrics import exact

ROWS, CLASSES, CHUNK = 60, 4, 8


def make_outputs(seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 3], ROWS)  # class 2 is predicted and never true
    logits = np.round(rng.normal(size=(ROWS, CLASSES)) * 2, 1)
    logits[np.arange(ROWS), labels] += 1
    targets = rng.normal(size=ROWS) + 1e4
    return {
        "logits": logits.astype(np.float32),
        "labels": labels.astype(np.int32),
        "several": (rng.uniform(size=(ROWS, CLASSES)) < [0.2, 0.5, 0.0, 0.9]).astype(np.int32),
        "logit": np.round(rng.normal(size=ROWS), 1).astype(np.float32),
        "yes": (rng.uniform(size=ROWS) < 0.3).astype(np.int32),
        "targets": targets.astype(np.float32),
        "predictions": (targets + rng.normal(size=ROWS) * 0.5).astype(np.float32),
        "tokens": rng.integers(0, CLASSES, (ROWS, 3)).astype(np.int32),
        "list_scores": np.round(rng.normal(size=(ROWS, 6)), 0).astype(np.float32),  # with ties
        "list_gains": rng.integers(0, 4, (ROWS, 6)) * (rng.uniform(size=(ROWS, 1)) < 0.9).astype(np.float32),
        "token_logits": rng.normal(size=(ROWS, 3, CLASSES)).astype(np.float32),
    }


def make_weight(seed=0):
    rng = np.random.default_rng(seed)
    return (rng.uniform(0.5, 2, ROWS) * (rng.uniform(size=ROWS) < 0.8)).astype(np.float32)


def log_softmax(z):
    z = np.asarray(z, np.float64)
    return z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)


def in_top(k):
    """Whether the label is among the first k of a stable sort by falling logit."""

    def hits(o):
        order = np.argsort(-o["logits"], axis=1, kind="stable")[:, :k]
        return (order == o["labels"][:, None]).any(1)

    return hits


def of_classes(function, average):
    def oracle(o, w):
        kwargs = dict(sample_weight=w, average=average, zero_division=0)
        if average is None:
            kwargs["labels"] = np.arange(CLASSES)
        return function(o["labels"], o["logits"].argmax(1), **kwargs)

    return oracle


def of_labels(function, average):
    def oracle(o, w):
        kwargs = dict(sample_weight=w, average=average, zero_division=0)
        return function(o["several"], o["logits"] >= 0, **kwargs)

    return oracle


def matrix(normalize):
    def oracle(o, w):
        kwargs = dict(sample_weight=w, normalize=normalize, labels=np.arange(CLASSES))
        return sk.confusion_matrix(o["labels"], o["logits"].argmax(1), **kwargs)

    return oracle


def recalls(o, w):
    out = np.full(CLASSES, np.nan)
    for c in range(CLASSES):
        own = o["labels"] == c
        if w[own].sum() > 0:
            out[c] = np.average((o["logits"].argmax(1) == c)[own], weights=w[own])
    return out


def binary(o, w):
    guess, yes = o["logit"] >= np.log(0.4 / 0.6), o["yes"] == 1
    tp, fp, fn, tn = (w[x].sum() for x in (guess & yes, guess & ~yes, ~guess & yes, ~guess & ~yes))
    ratios = {"accuracy": (tp + tn) / w.sum(), "precision": tp / (tp + fp), "recall": tp / (tp + fn)}
    return {"tp": tp, "fp": fp, "fn": fn, "tn": tn, "f1": 2 * tp / (2 * tp + fp + fn), **ratios}


def on_regression(function):
    def oracle(o, w):
        return function(o["targets"].astype(np.float64), o["predictions"].astype(np.float64), sample_weight=w)

    return oracle


def token_accuracy(o, w):
    return np.average((o["token_logits"].argmax(-1) == o["tokens"]).mean(1), weights=w)


def nll(o, w):
    own = log_softmax(o["logits"])[np.arange(len(w)), o["labels"]]
    return np.exp(-np.average(own, weights=w))


BINARY = dict(logits="logit", labels="yes")
TOKENS = dict(logits="token_logits", labels="tokens")
LABELS = dict(labels="several", multilabel=True)


LISTS = dict(logits="list_scores", labels="list_gains")


def specificity(y, guess, sample_weight, average, zero_division, labels=None):
    """From scikit-learn's counts, class by class, averaged as it averages recall."""
    if np.ndim(y) == 1:
        counts = sk.multilabel_confusion_matrix(
            y, guess, sample_weight=sample_weight, labels=np.arange(CLASSES)
        )
        present = counts[:, 0, 1] + counts[:, 1, 0] + counts[:, 1, 1] > 0
    else:
        counts, present = (
            sk.multilabel_confusion_matrix(y, guess, sample_weight=sample_weight),
            np.ones(CLASSES, bool),
        )
    tn, fp, support = counts[:, 0, 0], counts[:, 0, 1], counts[:, 1].sum(1)
    each = tn / (tn + fp)
    if average is None:
        return each
    if average == "micro":
        return tn.sum() / (tn + fp).sum()
    return each[present].mean() if average == "macro" else np.average(each, weights=support)


def decided(function):
    return lambda o, w: function(o["labels"], o["logits"].argmax(1), sample_weight=w)


def of_some(function, average, otherwise):
    def oracle(o, w):
        kwargs = dict(sample_weight=w, average=average, zero_division=otherwise, labels=[3, 2, 1])
        return function(o["labels"], o["logits"].argmax(1), **kwargs)

    return oracle


def pearson(o, w):
    y, p = o["targets"].astype(np.float64), o["predictions"].astype(np.float64)
    cov = np.cov(np.stack([y, p]), aweights=w)
    return cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1])


def brier(o, w):
    p = np.exp(log_softmax(o["logits"]))
    return sk.brier_score_loss(o["labels"], p, sample_weight=w, labels=np.arange(CLASSES))


def binary_brier(o, w):
    return sk.brier_score_loss(o["yes"], 1 / (1 + np.exp(-o["logit"].astype(np.float64))), sample_weight=w)


def calibration(bins):
    """Bin by bin, as the definition reads."""

    def oracle(o, w):
        p = np.exp(log_softmax(o["logits"]))
        confidence, hit = p.max(1), p.argmax(1) == o["labels"]
        total = 0.0
        for b in range(bins):
            here = (confidence > b / bins) & (confidence <= (b + 1) / bins)
            if w[here].sum() > 0:
                apart = np.average(hit[here], weights=w[here]) - np.average(confidence[here], weights=w[here])
                total += w[here].sum() / w.sum() * abs(apart)
        return total

    return oracle


def gain(k):
    return lambda o, w: sk.ndcg_score(o["list_gains"], o["list_scores"], k=k, sample_weight=w)


def averages(make, function, oracle, **kwargs):
    """A row for each average of precision, recall or F1."""
    return {
        f"{make.__name__}, {average}": (
            lambda average=average: make(CLASSES, average=average, **kwargs),
            oracle(function, average),
            kwargs.get("weighted", False),
        )
        for average in ("macro", "micro", "weighted", None)
    }


def plain_accuracy(o, w):
    return np.average(in_top(1)(o), weights=w)


# name: (the metric, its value of whole arrays, whether it takes weights as real numbers), in families
REGISTRY = {
    "sums": {
        "mean": (
            lambda: metrics.mean("predictions"),
            lambda o, w: np.average(o["predictions"], weights=w),
            True,
        ),
        "perplexity": (metrics.perplexity, nll, True),
        "mse": (metrics.mse, on_regression(sk.mean_squared_error), True),
        "rmse": (metrics.rmse, on_regression(sk.root_mean_squared_error), True),
        "mae": (metrics.mae, on_regression(sk.mean_absolute_error), True),
        "r2": (metrics.r2, on_regression(sk.r2_score), True),
        "explained_variance": (metrics.explained_variance, on_regression(sk.explained_variance_score), True),
        "mape": (metrics.mape, on_regression(sk.mean_absolute_percentage_error), True),
        "pearson": (metrics.pearson, pearson, True),
        "brier": (metrics.brier, brier, True),
        "brier of two": (lambda: metrics.brier(**BINARY), binary_brier, True),
        "ndcg": (lambda: metrics.ndcg(**LISTS), gain(None), True),
        "ndcg, 2": (lambda: metrics.ndcg(2, **LISTS), gain(2), True),
    },
    "hits": {
        "accuracy": (metrics.accuracy, plain_accuracy, False),
        "accuracy, weighted": (lambda: metrics.accuracy(weighted=True), plain_accuracy, True),
        "accuracy of tokens": (lambda: metrics.accuracy(**TOKENS), token_accuracy, False),
        "accuracy, top 2": (
            lambda: metrics.accuracy(2),
            lambda o, w: np.average(in_top(2)(o), weights=w),
            False,
        ),
        "accuracy, top 9": (lambda: metrics.accuracy(9), lambda o, w: 1.0, False),
        "calibration": (lambda: metrics.expected_calibration_error(7), calibration(7), False),
        "calibration, weighted": (
            lambda: metrics.expected_calibration_error(7, weighted=True),
            calibration(7),
            True,
        ),
        "binary_stats": (lambda: metrics.binary_stats(0.4, **BINARY), binary, False),
        "sums of binary_stats": (lambda: metrics.binary_stats(0.4, weighted=True, **BINARY), binary, True),
    },
    "classes": {
        "per_class_accuracy": (lambda: metrics.per_class_accuracy(CLASSES), recalls, False),
        **averages(metrics.precision, sk.precision_score, of_classes),
        **averages(metrics.recall, sk.recall_score, of_classes),
        **averages(metrics.f1, sk.f1_score, of_classes),
        "matrix": (lambda: metrics.confusion_matrix(CLASSES), matrix(None), False),
        "matrix, true": (lambda: metrics.confusion_matrix(CLASSES, "true"), matrix("true"), False),
        "matrix, pred": (lambda: metrics.confusion_matrix(CLASSES, "pred"), matrix("pred"), False),
        "matrix, all": (lambda: metrics.confusion_matrix(CLASSES, "all"), matrix("all"), False),
    },
    "more classes": {
        **averages(metrics.fbeta, partial(sk.fbeta_score, beta=0.5), of_classes, beta=0.5),
        **averages(metrics.iou, sk.jaccard_score, of_classes),
        **averages(metrics.dice, sk.f1_score, of_classes),
        **averages(metrics.specificity, specificity, of_classes),
        "balanced_accuracy": (
            lambda: metrics.balanced_accuracy(CLASSES),
            decided(sk.balanced_accuracy_score),
            False,
        ),
        "balanced_accuracy, adjusted": (
            lambda: metrics.balanced_accuracy(CLASSES, adjusted=True),
            decided(partial(sk.balanced_accuracy_score, adjusted=True)),
            False,
        ),
        "mcc": (lambda: metrics.mcc(CLASSES), decided(sk.matthews_corrcoef), False),
        **{
            f"cohen_kappa, {by}": (
                lambda by=by: metrics.cohen_kappa(CLASSES, by),
                decided(partial(sk.cohen_kappa_score, weights=by, labels=np.arange(CLASSES))),
                False,
            )
            for by in (None, "linear", "quadratic")
        },
    },
    "chosen classes": {
        **{
            f"{make.__name__} of some, {average}, {otherwise}": (
                lambda make=make, average=average, otherwise=otherwise: make(
                    CLASSES, average, classes=[3, 2, 1], zero_division=otherwise
                ),
                of_some(function, average, otherwise),
                False,
            )
            for make, function in (
                (metrics.precision, sk.precision_score),
                (metrics.recall, sk.recall_score),
                (metrics.f1, sk.f1_score),
            )
            for average in ("macro", "micro", "weighted", None)
            for otherwise in (0.0, 1.0, np.nan)
            if average is not None or otherwise == otherwise
        },
    },
    "weighted classes": {
        "mcc, weighted": (lambda: metrics.mcc(CLASSES, weighted=True), decided(sk.matthews_corrcoef), True),
        "cohen_kappa, weighted": (
            lambda: metrics.cohen_kappa(CLASSES, "linear", weighted=True),
            decided(partial(sk.cohen_kappa_score, weights="linear", labels=np.arange(CLASSES))),
            True,
        ),
        **averages(metrics.specificity, specificity, of_classes, weighted=True),
        **averages(metrics.f1, sk.f1_score, of_classes, weighted=True),
        "sums of weights": (lambda: metrics.confusion_matrix(CLASSES, weighted=True), matrix(None), True),
    },
    "labels": {
        **averages(metrics.f1, sk.f1_score, of_labels, **LABELS),
        **averages(metrics.iou, sk.jaccard_score, of_labels, **LABELS),
        **averages(metrics.specificity, specificity, of_labels, **LABELS),
    },
    "weighted labels": averages(metrics.precision, sk.precision_score, of_labels, weighted=True, **LABELS),
}


def close(got, expected, rtol=1e-6):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=1e-6 * rtol
        )


def chunks(rng, outputs, weight):
    """The rows, shuffled and cut anywhere, each part padded to CHUNK with garbage of weight zero, in any places."""
    order = rng.permutation(ROWS)
    cuts = np.sort(rng.choice(np.arange(1, ROWS), 14, replace=False))
    for part in np.split(order, cuts):
        for i in range(0, len(part), CHUNK):
            rows = part[i : i + CHUNK]
            place = np.sort(rng.choice(CHUNK, len(rows), replace=False))
            w = np.zeros(CHUNK, np.float32)
            w[place] = weight[rows]
            out = {}
            for name, x in outputs.items():
                bad = np.nan if x.dtype.kind == "f" else -77
                out[name] = np.full((CHUNK, *x.shape[1:]), bad, x.dtype)
                out[name][place] = x[rows]
            yield out, w


def laws(registry):
    """All metrics of a registry at once, in one `collect`, so that a law is compiled once and not once a metric."""
    outputs, weight = make_outputs(), make_weight()
    m = metrics.collect(**{name: make() for name, (make, _, _) in registry.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = {
            name: oracle(outputs, weight.astype(np.float64) if real else (weight != 0).astype(np.float64))
            for name, (_, oracle, real) in registry.items()
        }
    update, merge, compute = jax.jit(m.update), jax.jit(m.merge), jax.jit(m.compute)

    whole = jax.jit(m.update, donate_argnums=0)(m.empty(), outputs, weight)  # no two arrays are one
    close(compute(whole), truth)
    assert ft.tree.aval_difference(m.empty(), whole) is None
    for acc in (merge(m.empty(), whole), merge(whole, m.empty())):
        close(compute(acc), compute(whole), rtol=1e-7)
    for name, nothing in compute(m.empty()).items():
        if not name.startswith("sums of"):
            leaves = [x for x in jax.tree.leaves(nothing) if x.dtype == jnp.float32]
            assert all(np.isnan(x).all() for x in leaves), name

    rng = np.random.default_rng(1)
    parts = list(chunks(rng, outputs, weight))
    accs = [update(m.empty(), *part) for part in parts]
    for acc in accs:
        assert ft.tree.aval_difference(m.empty(), acc) is None
    while len(accs) > 1:  # joined in any order, by any tree
        i, j = rng.choice(len(accs), 2, replace=False)
        joined = merge(accs[i], accs[j])
        close(compute(joined), compute(merge(accs[j], accs[i])), rtol=3e-7)
        accs = [a for k, a in enumerate(accs) if k not in (i, j)] + [joined]
    close(compute(accs[0]), truth)

    stacked = jax.tree.map(lambda *xs: np.stack(xs), *parts)
    scanned, _ = jax.jit(lambda xs: jax.lax.scan(lambda acc, x: (m.update(acc, *x), None), m.empty(), xs))(
        stacked
    )
    close(compute(scanned), truth)
    each = jax.jit(jax.vmap(lambda x: m.update(m.empty(), *x)))(stacked)
    for i in (0, len(parts) - 1):
        expected = compute(update(m.empty(), *parts[i]))
        close(compute(jax.tree.map(lambda x: x[i], each)), expected)

    mesh = ft.sharding.mesh(data=8)
    padded = {k: np.concatenate([v, np.full((4, *v.shape[1:]), -1, v.dtype)]) for k, v in outputs.items()}
    longer = np.concatenate([weight, np.zeros(4, np.float32)])
    split = jax.device_put((padded, longer), NamedSharding(mesh, PartitionSpec("data")))
    close(compute(update(m.empty(), *split)), truth)


@pytest.mark.slow
@pytest.mark.parametrize("family", REGISTRY)
def test_laws(family):
    laws(REGISTRY[family])


def _broken(**replaced):
    m = metrics.mean("predictions")
    parts = {name: getattr(m, name) for name in ("empty", "update", "merge", "compute")}
    return lambda: metrics.Metric(**{**parts, **{k: f(m) for k, f in replaced.items()}})


BROKEN = {
    "garbage of weight zero leaks": _broken(
        update=lambda m: lambda acc, o, w: _scaled(m, acc, jnp.sum(o["predictions"] * w), jnp.sum(w))
    ),
    "merge forgets a side": _broken(merge=lambda m: lambda a, b: a),
    "a mean of means": _broken(
        update=lambda m: (
            lambda acc, o, w: m.update(acc, {"predictions": m.compute(m.update(m.empty(), o, w))[None]}, None)
        )
    ),
    "the weight is not used": _broken(update=lambda m: lambda acc, o, w: m.update(acc, o, w != 0)),
    "empty has types of its own": _broken(empty=lambda m: lambda: jax.tree.map(lambda x: 0.0, m.empty())),
}


def _scaled(m, acc, total, weight):
    return m.merge(
        acc, m.empty()._replace(total=exact.Sum(total, total * 0), weight=exact.Sum(weight, weight * 0))
    )


@pytest.mark.parametrize("fault", BROKEN)
def test_the_laws_refuse_a_broken_metric(fault):
    _, oracle, real = REGISTRY["sums"]["mean"]
    with pytest.raises(AssertionError):
        laws({"broken": (BROKEN[fault], oracle, real)})


def test_golden_example():
    outputs = {"logits": jnp.array([0, 2, 1, 0, 1, 2]), "labels": jnp.array([0, 1, 2, 0, 1, 2])}
    m = metrics.collect(
        accuracy=metrics.accuracy(),
        each=metrics.precision(3, None),
        precision=metrics.precision(3),
        recall=metrics.recall(3),
        f1=metrics.f1(3),
        matrix=metrics.confusion_matrix(3),
    )
    value = m.compute(m.update(m.empty(), outputs))
    np.testing.assert_allclose(value["accuracy"], 4 / 6, rtol=1e-6)
    np.testing.assert_allclose(value["each"], [1, 0.5, 0.5], rtol=1e-6)
    for name in ("precision", "recall", "f1"):
        np.testing.assert_allclose(value[name], 2 / 3, rtol=1e-6)
    assert value["matrix"].tolist() == [[2, 0, 0], [0, 1, 1], [0, 1, 1]]


def test_counts_are_integers_of_named_outputs():
    m = metrics.accuracy(logits="guesses", labels="truth")
    outputs = {"guesses": jnp.array([0, 2, 1, 0, 1, 2]), "truth": jnp.array([0, 1, 2, 0, 1, 2])}
    acc = m.update(m.empty(), outputs)
    assert {x.dtype.kind for x in jax.tree.leaves(acc)} <= {"u", "i"}
    value = m.compute(acc)
    assert (value.dtype, float(value)) == (jnp.float32, np.float32(4 / 6))
    with pytest.raises(ConfigError, match="reads the output 'guesses'"):
        m.update(m.empty(), {"logits": outputs["guesses"], "truth": outputs["truth"]})


def test_what_reads_the_same_counts_is_counted_once():
    c = CLASSES
    m = metrics.collect(
        f1=metrics.f1(c),
        precision=metrics.precision(c, "weighted"),
        matrix=metrics.confusion_matrix(c),
        rows=metrics.confusion_matrix(c, "true"),
        each=metrics.per_class_accuracy(c),
        other=metrics.f1(c, weighted=True),
        mse=metrics.mse(),
        rmse=metrics.rmse(),
    )
    assert set(m.empty()) == {"f1", "other", "mse"}  # real weights are counted in other numbers
    outputs = make_outputs()
    value = m.compute(m.update(m.empty(), outputs))
    for name in ("f1", "precision", "matrix", "rows", "each", "rmse"):
        alone = m.call.arguments["metrics"][name]
        close(value[name], alone.compute(alone.update(alone.empty(), outputs)), rtol=0)
    assert operations(m)["scatter"] == 2  # one for the counts, one for the weights


def operations(m):
    """How often each operation stands in the compiled update."""
    outputs = {k: v for k, v in make_outputs().items() if k in ("logits", "labels", "predictions", "targets")}
    text = jax.jit(m.update).lower(m.empty(), outputs).compile().as_text()
    return {name: len(re.findall(rf" {name}\(", text)) for name in ("scatter", "reduce")}


def test_accuracy_and_f1_find_the_highest_logit_once():
    alone = [operations(m)["reduce"] for m in (metrics.accuracy(), metrics.f1(CLASSES))]
    both = operations(metrics.collect(accuracy=metrics.accuracy(), f1=metrics.f1(CLASSES)))
    assert both["reduce"] == sum(alone) - 2  # the largest, and where it is


def test_counts_are_exact_past_every_width():
    near = 2**32 - 3
    m = metrics.confusion_matrix(2)
    start = m.empty()
    start = start._replace(cells=exact.Count(jnp.full(5, 7, jnp.uint32), jnp.full(5, near, jnp.uint32)))
    start = jax.tree.map(lambda x: x.at[-1].set(0), start)  # no labels but those of classes
    outputs = {"logits": jnp.zeros(10, jnp.int32), "labels": jnp.zeros(10, jnp.int32)}
    acc = jax.jit(m.update)(start, outputs)
    there = 7 * 2**32 + near
    counted = metrics.count_to_int(acc.matrix)
    assert counted.tolist() == [[there + 10, there], [there, there]]
    counted = metrics.count_to_int(m.merge(acc, acc).matrix)
    assert counted[0, 0] == 2 * (there + 10)
    share = 2 * metrics.precision(2, "micro").compute(acc)
    np.testing.assert_allclose(share, 1.0, rtol=1e-6)


@pytest.mark.parametrize("power", [24, 31, 32, 60])
def test_doubling_loses_nothing(power):
    m = metrics.confusion_matrix(2)
    outputs = {"logits": jnp.array([0]), "labels": jnp.array([0])}
    one = m.update(m.empty(), outputs)
    merge = jax.jit(m.merge)
    acc = one
    for _ in range(power):
        acc = merge(acc, acc)
    acc = merge(acc, one)
    assert metrics.count_to_int(acc.matrix)[0, 0] == 2**power + 1
    reported = m.compute(acc)
    assert reported.dtype == jnp.uint32
    assert int(reported[0, 0]) == min(2**power + 1, 2**32 - 1)  # exact, and then held: it never wraps
    both = merge(acc, m.update(m.empty(), {"logits": jnp.array([1]), "labels": jnp.array([0])}))
    share = metrics.confusion_matrix(2, "all").compute(both)
    np.testing.assert_allclose(share[0], [1.0, 1 / 2**power], rtol=1e-6)


def test_accuracy_after_2_31_elements():
    m = metrics.accuracy()
    right = m.update(m.empty(), {"logits": jnp.zeros(3, jnp.int32), "labels": jnp.zeros(3, jnp.int32)})
    wrong = m.update(m.empty(), {"logits": jnp.zeros(1, jnp.int32), "labels": jnp.ones(1, jnp.int32)})
    acc = m.merge(right, wrong)
    for _ in range(33):
        acc = m.merge(acc, acc)
    assert metrics.count_to_int(acc).tolist() == [3 * 2**33, 2**35, 0]
    assert float(m.compute(acc)) == 0.75


def test_means_stay_exact_over_many_updates():
    m = metrics.mean("x")
    xs = np.full((100_000, 1), 0.1, np.float32)
    acc, _ = jax.jit(lambda xs: jax.lax.scan(lambda a, x: (m.update(a, {"x": x}), None), m.empty(), xs))(xs)
    # A plain float32 sum of these is off by 1e-4.
    np.testing.assert_allclose(m.compute(acc), np.float32(0.1), rtol=1e-7)


def test_an_infinite_value_stays_infinite():
    m = metrics.mean("x")
    acc = m.update(m.empty(), {"x": jnp.array([jnp.inf])})
    assert float(m.compute(m.update(acc, {"x": jnp.array([1.0])}))) == np.inf


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_r2_far_from_zero(cut):
    # As a difference of float32 sums this is off in the first digits.
    rng = np.random.default_rng(0)
    y = (rng.normal(size=2000) + 1e4).astype(np.float32)
    p = (y + rng.normal(size=2000) * 0.5).astype(np.float32)
    truth = sk.r2_score(y.astype(np.float64), p.astype(np.float64))
    sums = np.float32(0), np.float32(0)
    for part in np.split(y, 2000 // 40):
        sums = sums[0] + (part * part).sum(dtype=np.float32), sums[1] + part.sum(dtype=np.float32)
    naive = 1 - np.square(y - p).sum() / (sums[0] - sums[1] ** 2 / np.float32(2000))
    assert abs(naive - truth) > 0.01
    m = metrics.r2()
    rest = -len(y) % cut
    p_, y_, w = (np.pad(x, (0, rest)).reshape(-1, cut) for x in (p, y, np.ones_like(y)))
    parts = {"predictions": p_, "targets": y_}
    acc, _ = jax.jit(lambda xs: jax.lax.scan(lambda a, x: (m.update(a, *x), None), m.empty(), xs))((parts, w))
    np.testing.assert_allclose(m.compute(acc), truth, rtol=1e-6)
    np.testing.assert_allclose(
        float(acc.moments.mean.value[0]) * 2.0 ** int(acc.moments.exponent[0])
        + float(acc.moments.mean.error[0]) * 2.0 ** int(acc.moments.exponent[0]),
        y.astype(np.float64).mean(),
        rtol=1e-10,
    )


def test_r2_of_constant_targets():
    m = metrics.r2()
    # A weighted float32 mean of equal numbers is often another number, and what is left of them has a spread.
    rng = np.random.default_rng(0)
    update = jax.jit(m.update)
    for _ in range(200):
        y = np.full(1000, rng.normal() * 10 ** rng.uniform(-3, 5), np.float32)
        w = rng.uniform(0.1, 2, 1000).astype(np.float32)
        exact = update(m.empty(), {"predictions": y, "targets": y}, w)
        assert float(exact.moments.spread.value[0]) == 0
    assert float(m.compute(m.merge(exact, exact))) == 1.0
    off = update(m.empty(), {"predictions": y * np.float32(1.1), "targets": y}, w)
    assert float(m.compute(m.merge(exact, off))) == 0.0
    one = {"predictions": jnp.ones(1), "targets": jnp.ones(1)}
    assert np.isnan(m.compute(m.update(m.empty(), one)))  # as scikit-learn: one element has no spread
    assert float(m.compute(m.update(m.update(m.empty(), one), one))) == 1.0


def test_ties_go_to_the_lower_class():
    z = jnp.array([[1.0, 1.0, 0.0]] * 3)
    outputs = {"logits": z, "labels": jnp.array([0, 1, 2])}
    for k, expected in ((1, 1 / 3), (2, 2 / 3), (3, 1.0)):
        m = metrics.accuracy(k)
        np.testing.assert_allclose(m.compute(m.update(m.empty(), outputs)), expected, rtol=1e-6)


def test_the_threshold_is_a_probability_and_inclusive():
    outputs = {"logits": jnp.array([0.0, -1e-6, 1e-6]), "labels": jnp.array([1, 1, 1])}
    m = metrics.binary_stats()
    assert int(m.compute(m.update(m.empty(), outputs))["tp"]) == 2
    for threshold, expected in ((0.0, 3), (1.0, 0), (0.9, 0), (0.1, 3)):
        m = metrics.binary_stats(threshold)
        assert int(m.compute(m.update(m.empty(), outputs))["tp"]) == expected
    two = {"logits": jnp.array([[0.0, 1.0], [2.0, 1.0]]), "labels": jnp.array([True, True])}
    m = metrics.binary_stats()
    stats = m.compute(m.update(m.empty(), two))
    assert (int(stats["tp"]), int(stats["fn"])) == (1, 1)


def test_nothing_to_divide_by_is_zero_and_nothing_at_all_is_nan():
    m = metrics.binary_stats()
    stats = m.compute(m.update(m.empty(), {"logits": jnp.array([-1.0]), "labels": jnp.array([0])}))
    assert (float(stats["precision"]), float(stats["recall"]), float(stats["f1"])) == (0.0, 0.0, 0.0)
    assert float(stats["accuracy"]) == 1.0
    stats = m.compute(m.empty())
    assert np.isnan(stats["precision"])
    assert int(stats["tp"]) == 0
    for make in (metrics.precision, metrics.recall, metrics.f1):
        assert np.isnan(make(3).compute(make(3).empty()))
        assert np.isnan(make(3, None).compute(make(3, None).empty())).all()


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_makes_ratios_nan(label):
    outputs = {"logits": jnp.zeros((2, 3)), "labels": jnp.array([0, label])}
    weight = jnp.array([1.0, 0.0])
    for m in (metrics.f1(3), metrics.precision(3), metrics.confusion_matrix(3, "all"), metrics.perplexity()):
        assert np.isnan(m.compute(m.update(m.empty(), outputs))).all()
        assert np.isfinite(m.compute(m.update(m.empty(), outputs, weight))).all()
    m = metrics.confusion_matrix(3)
    assert int(m.compute(m.update(m.empty(), outputs)).sum()) == 1
    m = metrics.accuracy()
    assert float(m.compute(m.update(m.empty(), outputs))) == 0.5


def test_token_weights():
    outputs = {"logits": jnp.eye(3)[jnp.array([[0, 1], [2, 2]])], "labels": jnp.array([[0, 1], [2, 0]])}
    m = metrics.accuracy()
    value = m.compute(m.update(m.empty(), outputs, jnp.array([[1.0, 1.0], [1.0, 0.0]])))
    assert float(value) == 1.0
    value = m.compute(m.update(m.empty(), outputs, jnp.array([0.0, 1.0])))  # a row's weight is its tokens'
    assert float(value) == 0.5


def test_bfloat16_and_booleans():
    outputs = {"logits": jnp.eye(3, dtype=jnp.bfloat16), "labels": jnp.array([0, 1, 0], jnp.uint8)}
    m = metrics.collect(
        a=metrics.accuracy(),
        k=metrics.accuracy(2),
        f=metrics.f1(3),
        p=metrics.perplexity(),
        m=metrics.mean("logits"),
    )
    value = m.compute(m.update(m.empty(), outputs, jnp.array([True, True, False])))
    assert float(value["a"]) == 1.0
    assert all(x.dtype == jnp.float32 for x in value.values())


def test_values():
    assert metrics.f1(3) == metrics.f1(num_classes=3, average="macro")
    assert metrics.f1(3) != metrics.f1(4)
    assert hash(metrics.accuracy(5)) == hash(metrics.accuracy(top_k=5))
    assert repr(metrics.f1(3, "micro")) == "f1(num_classes=3, average='micro')"
    both = metrics.collect(a=metrics.accuracy(), f=metrics.f1(3))
    again = pickle.loads(pickle.dumps(both))
    assert again == both
    assert set(again.empty()) == {"a", "f"}
    assert metrics.f1(3).base == metrics.confusion_matrix(3).base != metrics.f1(3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.accuracy(0), "`top_k`"),
        (lambda: metrics.accuracy(1.5), "`top_k`"),
        (lambda: metrics.confusion_matrix(3, "rows"), "`normalize`"),
        (lambda: metrics.confusion_matrix(0), "`num_classes`"),
        (lambda: metrics.f1(3, "makro"), "did you mean 'macro'"),
        (lambda: metrics.binary_stats(1.5), "`threshold`"),
        (lambda: metrics.collect(a=metrics.accuracy), r"call it, `accuracy\(\.\.\.\)`"),
        (lambda: metrics.accuracy().update(metrics.accuracy().empty(), {"logit": 1}), "did you mean 'logit'"),
    ],
)
def test_configurations_that_cannot_work(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def _update(m, **outputs):
    weight = outputs.pop("weight", None)
    return m.update(m.empty(), outputs, weight)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: _update(metrics.accuracy(), logits=jnp.ones((4, 3)), labels=jnp.zeros((4, 1), jnp.int32)),
            "fit",
        ),
        (lambda: _update(metrics.accuracy(), logits=jnp.ones((4, 3)), labels=jnp.ones(4)), "integer labels"),
        (
            lambda: _update(metrics.f1(5), logits=jnp.ones((4, 3)), labels=jnp.zeros(4, jnp.int32)),
            "num_classes=5",
        ),
        (
            lambda: _update(
                metrics.accuracy(2), logits=jnp.zeros(4, jnp.int32), labels=jnp.zeros(4, jnp.int32)
            ),
            "top_k",
        ),
        (
            lambda: _update(metrics.binary_stats(), logits=jnp.ones((4, 1)), labels=jnp.zeros(4)),
            "one logit a label",
        ),
        (lambda: _update(metrics.mse(), predictions=jnp.ones((4, 1)), targets=jnp.ones(4)), "one shape"),
        (
            lambda: _update(metrics.f1(2, multilabel=True), logits=jnp.ones((4, 3)), labels=jnp.ones((4, 3))),
            "=2",
        ),
        (
            lambda: _update(
                metrics.accuracy(),
                logits=jnp.ones((4, 3)),
                labels=jnp.zeros(4, jnp.int32),
                weight=jnp.ones(3),
            ),
            "`weight`",
        ),
    ],
)
def test_data_that_does_not_fit(call, words):
    with pytest.raises(DataError, match=words):
        call()
