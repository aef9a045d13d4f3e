"""Areas under curves: exact ones against pairs and scikit-learn, streamed ones against their own bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from sklearn import metrics as sk

import fntrain as ft
from fntrain import ConfigError, DataError, metrics
from fntrain.metrics import ranked

AREAS = {
    "auc": (metrics.roc_auc, sk.roc_auc_score),
    "ap": (metrics.average_precision, sk.average_precision_score),
}


def softmax(z):
    e = np.exp(np.asarray(z, np.float64) - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


AVERAGES = ("macro", "weighted", None)


def both(capacity, averages=("macro",), bins=None, **kwargs):
    """AUC and AP, streamed and exact, in one program: two accumulators and not four."""
    rows = {}
    for average in averages:
        for name, (make, _) in AREAS.items():
            rows[f"{name} {average}"] = make(average=average, bins=bins, **kwargs)
            rows[f"exact {name} {average}"] = make(average=average, exact=True, capacity=capacity, **kwargs)
    m = metrics.collect(**rows)
    assert len(m.empty()) == 2
    return m, jax.jit(m.update), jax.jit(m.compute)


def within(area, truth):
    """The truth lies within the bound, and the bound is not vacuous."""
    value, bound = np.asarray(area.value, np.float64), np.asarray(area.bound, np.float64)
    assert (np.abs(value - truth) <= bound).all(), (value, bound, truth)


def area_of(m, logits, labels, weight=None):
    """One metric's value of whole arrays."""
    return jax.jit(lambda *args: m.compute(m.update(m.empty(), *args)))(
        {"logits": logits, "labels": labels}, weight
    )


def problems(n):
    """Scores that are easy, tied, crowded, far apart, constant, saturated, or made to sit in one bin."""
    rng = np.random.default_rng(n)
    y = rng.integers(0, 2, n)
    z = rng.normal(size=n)
    yield "overlapping", y, z + y
    yield "separated", y, z + 20 * y
    yield "reversed", y, z - 20 * y
    yield "tied", y, np.round(z + y)
    yield "constant", y, np.full(n, 0.3)
    yield "tiny", y, (z + y) * 1e-6
    yield "huge", y, (z + y) * 1e6
    yield "saturated", y, 1 / (1 + np.exp(-10 * (z + y)))
    yield "one bin, in order", y, 1 + 1e-6 * (y + rng.uniform(size=n))
    yield "one bin, against it", y, 1 + 1e-6 * (-y + rng.uniform(size=n))
    yield "infinite", y, np.where(rng.uniform(size=n) < 0.2, np.inf * (2 * y - 1), z)
    rare = np.zeros(n, int)
    rare[:3] = 1
    yield "rare", rare, z + rare
    yield "mostly positive", 1 - rare, z - rare
    yield "both zeros", y, np.where(rng.uniform(size=n) < 0.5, 0.0, -0.0)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_truth_lies_within_the_bound(weighted):
    n = 200
    m, update, compute = both(n, weighted=weighted, bins=1024)
    coarse = metrics.collect(**{name: make(bins=16, weighted=weighted) for name, (make, _) in AREAS.items()})
    coarsely = jax.jit(lambda *args: coarse.compute(coarse.update(coarse.empty(), *args)))
    w = np.random.default_rng(1).uniform(0, 2, n).astype(np.float32)
    w[::7] = 0
    for name, y, score in problems(n):
        score = score.astype(np.float32)
        outputs = {"logits": score, "labels": y}
        got, rough = compute(update(m.empty(), outputs, w)), coarsely(outputs, w)
        finite = np.nan_to_num(score.astype(np.float64), posinf=1e30, neginf=-1e30)
        for area, (_, function) in AREAS.items():
            truth = function(y, finite, sample_weight=w if weighted else w != 0)
            within(got[f"{area} macro"], truth)
            within(rough[area], truth)
            within(got[f"exact {area} macro"], truth)
            np.testing.assert_allclose(got[f"exact {area} macro"].value, truth, atol=1e-6, err_msg=name)


def test_the_bound_is_sharp():
    # All scores in one bin: the area may be anything, and the bound says so.
    y = np.array([0, 1] * 50)
    score = np.float32(1.0) + np.float32(1e-6) * np.arange(100, dtype=np.float32) % 3
    assert area_of(metrics.roc_auc(bins=16), score, y).bound > 0.49
    # And for logits like a model's, it is small.
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 20_000)
    score = (rng.normal(size=20_000) * 2 + y).astype(np.float32)
    for bins, most in ((1024, 3e-3), (16384, 2e-4)):
        area = area_of(metrics.roc_auc(bins=bins), score, y)
        assert area.bound < most
        np.testing.assert_allclose(area.value, sk.roc_auc_score(y, score), atol=1e-4)


def test_average_precision_bounds_hold_against_every_order_within_a_bin():
    # Bins by hand: the worst and the best order and ties that a bin's counts allow, by enumeration.
    rng = np.random.default_rng(3)
    m = metrics.average_precision(bins=16)
    compute, update = jax.jit(m.compute), jax.jit(m.update)
    centres = np.array([1.0, 1.2, 40.0, 45.0, -3.0])
    for trial in range(60):
        n = 24
        y = rng.integers(0, 2, n)
        y[0] = 1
        place = rng.integers(0, len(centres), n)
        jitter = rng.permutation(n) * 1e-3
        if trial % 3 == 1:
            jitter = -y * 1e-2 + jitter * 1e-2  # negatives first
        if trial % 3 == 2:
            jitter = y * 1e-2  # positives first, and tied
        score = (centres[place] * (1 + np.sign(centres[place]) * jitter)).astype(np.float32)
        area = compute(update(m.empty(), {"logits": score, "labels": y}))
        within(area, sk.average_precision_score(y, score))


@pytest.mark.parametrize("seed", range(4))
def test_exact_areas_of_random_problems(seed):
    n = 60
    m, update, compute = both(n, weighted=True, bins=1024)
    rng = np.random.default_rng(seed)
    for _ in range(40):
        y = rng.integers(0, 2, n)
        y[:2] = 0, 1
        score = (np.round(rng.normal(size=n) * 3) / rng.integers(1, 5)).astype(np.float32)
        w = (rng.integers(0, 3, n) * rng.uniform(0.2, 1)).astype(np.float32)
        w[:2] = 1
        got = compute(update(m.empty(), {"logits": score, "labels": y}, w))
        pairs = np.outer(w * y, w * (1 - y)).astype(np.float64)
        won = (score[:, None] > score) + 0.5 * (score[:, None] == score)
        np.testing.assert_allclose(got["exact auc macro"].value, (won * pairs).sum() / pairs.sum(), atol=1e-6)
        np.testing.assert_allclose(
            got["exact ap macro"].value, sk.average_precision_score(y, score, sample_weight=w), atol=1e-6
        )
        within(got["auc macro"], (won * pairs).sum() / pairs.sum())


def classes_problem(n=300, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    z = rng.normal(size=(n, classes)) * 2 + 1.5 * (y[:, None] == np.arange(classes))
    z += rng.normal(size=(n, 1)) * 5  # a shift of a row changes no probability, so it may change no area
    return y, z.astype(np.float32)


def test_one_against_the_rest():
    y, z = classes_problem()
    p = softmax(z)
    m, update, compute = both(300, AVERAGES, num_classes=4)
    got = compute(update(m.empty(), {"logits": z, "labels": y}))
    for average in AVERAGES:
        auc = sk.roc_auc_score(y, p, multi_class="ovr", average=average)
        ap = sk.average_precision_score(y, p, average=average)
        for name, truth in (("auc", auc), ("ap", ap)):
            within(got[f"{name} {average}"], truth)
            np.testing.assert_allclose(got[f"exact {name} {average}"].value, truth, atol=1e-6)
    got = area_of(metrics.mean_average_precision(4, exact=True, capacity=300), z, y)
    np.testing.assert_allclose(got.value, np.mean(sk.average_precision_score(y, p, average=None)), atol=1e-6)


def test_probabilities():
    y, z = classes_problem()
    p = softmax(z).astype(np.float32)
    m, update, compute = both(300, num_classes=4, from_logits=False, bins=1024)
    got = compute(update(m.empty(), {"logits": p, "labels": y}))
    auc = sk.roc_auc_score(y, p.astype(np.float64), multi_class="ovr")
    np.testing.assert_allclose(got["exact auc macro"].value, auc, atol=1e-6)
    within(got["auc macro"], auc)
    # Two classes, most of them certain: fine bins near 0 and 1 tell apart what plain ones throw together.
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 5000)
    p = (1 / (1 + np.exp(-4 * rng.normal(size=5000) - 4 * y))).astype(np.float32)
    bounds = []
    for from_logits in (True, False):
        area = area_of(metrics.roc_auc(from_logits=from_logits, bins=2048), p, y)
        within(area, sk.roc_auc_score(y, p))
        bounds.append(float(area.bound))
    assert bounds[1] < 0.1 * bounds[0]


def test_several_labels():
    rng = np.random.default_rng(0)
    y = (rng.uniform(size=(200, 3)) < [0.2, 0.5, 0.9]).astype(np.int32)
    z = (rng.normal(size=(200, 3)) + y).astype(np.float32)
    m, update, compute = both(200, AVERAGES, num_classes=3, multilabel=True)
    got = compute(update(m.empty(), {"logits": z, "labels": y}))
    for average in AVERAGES:
        for name, (_, function) in AREAS.items():
            truth = function(y, z, average=average)
            within(got[f"{name} {average}"], truth)
            np.testing.assert_allclose(got[f"exact {name} {average}"].value, truth, atol=1e-6)


def test_two_logits_are_one_score():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 100)
    z = rng.normal(size=(100, 2)).astype(np.float32) + y[:, None] * np.array([0, 1], np.float32)
    area = area_of(metrics.roc_auc(exact=True, capacity=100), z, y)
    np.testing.assert_allclose(area.value, sk.roc_auc_score(y, z[:, 1] - z[:, 0]), atol=1e-6)


def test_confident_classes_stay_in_order():
    # Probabilities of 1 - 1e-9 and 1 - 1e-15 are both 1 in float32; their log-odds are not.
    z = np.array([[20.0, 0, 0], [35.0, 0, 0], [30.0, 0, 0], [0, 30.0, 0]], np.float32)
    odds = np.asarray(ranked._log_odds(jnp.asarray(z)))
    e = np.exp(z.astype(np.float64))
    np.testing.assert_allclose(odds, np.log(e / (e.sum(1, keepdims=True) - e)), rtol=1e-6)
    tie = np.asarray(ranked._log_odds(jnp.array([[5.0, 5.0, -90.0]])))
    np.testing.assert_allclose(tie[0, :2], 0.0, atol=1e-6)


@pytest.mark.parametrize("bins", [2, 16, 2048, 65536])
def test_binning_keeps_the_order(bins):
    edges = [0, np.finfo(np.float32).tiny, 1 - 1e-7, 2.0**14, 2.0**-10]
    x = np.concatenate([10.0 ** np.arange(-37, 38, 0.01), edges]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), [np.inf]], dtype=np.float32)
    x = np.sort(np.concatenate([x, -x]))
    b = np.asarray(ranked._bin_of_score(jnp.asarray(x), bins))
    assert (np.diff(b) >= 0).all()
    assert b[0] >= 0
    assert b[-1] < bins
    assert b[-1] - b[0] >= 0.99 * (bins - 1)
    half = x[(x >= 0) & (x <= 0.5)]
    p = np.sort(np.concatenate([half, 1 - half, np.nextafter(np.float32(0.5), np.float32([0, 1]))]))
    b = np.asarray(ranked._bin_of_probability(jnp.asarray(p), bins))
    assert (np.diff(b) >= 0).all()
    assert b[0] >= 0
    assert b[-1] < bins
    assert b[-1] - b[0] >= 0.99 * (bins - 1)


FORMS = {
    "two classes": (dict(), lambda rng, n: (rng.normal(size=n), rng.integers(0, 2, n))),
    "classes": (
        dict(num_classes=3, bins=256),
        lambda rng, n: (rng.normal(size=(n, 3)), rng.integers(0, 3, n)),
    ),
    "labels": (
        dict(num_classes=3, multilabel=True, bins=256, average=None),
        lambda rng, n: (rng.normal(size=(n, 3)), rng.integers(0, 2, (n, 3))),
    ),
    "weighted": (dict(weighted=True, bins=256), lambda rng, n: (rng.normal(size=n), rng.integers(0, 2, n))),
}


@pytest.mark.parametrize("form", FORMS)
def test_laws(form):
    """Any split, order and padding, merged by any tree, scanned, mapped or sharded, gives the whole's area."""
    kwargs, make = FORMS[form]
    rows, chunk = 72, 9
    rng = np.random.default_rng(0)
    z, y = make(rng, rows)
    z = np.round(z, 1).astype(np.float32)
    w = (rng.uniform(0.5, 2, rows) * (rng.uniform(size=rows) < 0.8)).astype(np.float32)
    w[9:18] = 0  # a part with nothing in it
    z[w == 0] = np.nan
    y[w == 0] = 77
    exact = {k: v for k, v in kwargs.items() if k != "bins"}
    m = metrics.collect(
        auc=metrics.roc_auc(**kwargs),
        ap=metrics.average_precision(**kwargs),
        exact=metrics.roc_auc(exact=True, capacity=rows, **exact),
    )
    update, merge, compute = jax.jit(m.update), jax.jit(m.merge), jax.jit(m.compute)
    whole = jax.jit(m.update, donate_argnums=0)(
        m.empty(), {"logits": z, "labels": y}, w
    )  # no two arrays are one
    value = compute(whole)
    assert ft.tree.aval_difference(m.empty(), whole) is None
    assert all(np.isnan(x).all() for x in jax.tree.leaves(compute(m.empty())))

    def same(acc):
        for a, b in zip(jax.tree.leaves(compute(acc)), jax.tree.leaves(value), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6 if "weighted" in form else 1e-7, atol=1e-7)
            assert np.isfinite(a).all()

    same(merge(m.empty(), whole))
    same(merge(whole, m.empty()))
    order = rng.permutation(rows).reshape(-1, chunk)
    parts = {"logits": z[order], "labels": y[order]}, w[order]
    cut = [jax.tree.map(lambda x, i=i: x[i], parts) for i in range(len(order))]
    accs = [update(m.empty(), *part) for part in cut]
    forward = backward = accs[0]
    for acc in accs[1:]:
        forward, backward = merge(forward, acc), merge(acc, backward)
    same(forward)
    same(backward)
    pairs = accs
    while len(pairs) > 1:
        pairs = [merge(*pairs[i : i + 2]) for i in range(0, len(pairs), 2)]
    same(pairs[0])
    same(jax.jit(lambda xs: jax.lax.scan(lambda acc, x: (m.update(acc, *x), None), m.empty(), xs)[0])(parts))
    each = jax.jit(jax.vmap(lambda x: m.update(m.empty(), *x)))(parts)
    for i, acc in enumerate(accs):
        for a, b in zip(jax.tree.leaves(each), jax.tree.leaves(acc), strict=True):
            np.testing.assert_array_equal(a[i], b)
    data = NamedSharding(ft.sharding.mesh(data=8), PartitionSpec("data"))
    same(update(m.empty(), *jax.device_put(({"logits": z, "labels": y}, w), data)))


@pytest.mark.parametrize("average", ["macro", "weighted", None])
def test_more_than_the_capacity_is_an_error_of_the_loop_too(average):
    def loss_fn(params, batch, ctx):
        z = batch["z"] * params["w"]
        return ft.losses.cross_entropy(z, batch["y"]).with_outputs(logits=z, labels=batch["y"])

    m = metrics.roc_auc(3, average=average, exact=True, capacity=6)
    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1), {"auc": m})
    state = ft.init_state(task, {"w": np.float32(1)})
    rng = np.random.default_rng(0)
    data = {"z": rng.normal(size=(7, 3)).astype(np.float32), "y": np.array([0, 1, 2, 0, 1, 2, 0])}
    fits = jax.tree.map(lambda x: x[:6], data)
    assert np.all(np.isfinite(ft.evaluate(task, state, fits, batch_size=3)["auc"]))
    with pytest.raises(DataError, match="metric `auc` was given more rows than its `capacity`"):
        ft.evaluate(task, state, data, batch_size=3)


def test_more_than_the_capacity_is_an_error_and_no_number():
    m = metrics.roc_auc(exact=True, capacity=4)
    outputs = {"logits": jnp.array([0.1, 0.4, 0.35, 0.8]), "labels": jnp.array([0, 0, 1, 1])}
    full = m.update(m.empty(), outputs)
    assert float(m.compute(full).value) == 0.75
    nothing = m.update(full, outputs, jnp.zeros(4))  # what weighs nothing takes no place
    assert float(m.compute(nothing).value) == 0.75
    one = {k: v[:1] for k, v in outputs.items()}
    for acc in (
        m.update(full, one),
        m.merge(full, m.update(m.empty(), one)),
        m.merge(m.empty(), m.update(full, one)),
        m.merge(m.merge(full, full), m.merge(full, full)),
    ):
        with pytest.raises(DataError, match="`capacity=4`"):
            m.compute(acc)
        assert np.isnan(jax.jit(m.compute)(acc).value)  # nothing can be raised there


def test_one_class_only_is_nan():
    m, update, compute = both(5, bins=16)
    for y, auc, ap in ((np.ones(5, int), np.nan, 1.0), (np.zeros(5, int), np.nan, np.nan)):
        got = compute(update(m.empty(), {"logits": np.arange(5, dtype=np.float32), "labels": y}))
        for name, expected in (("auc", auc), ("ap", ap), ("exact auc", auc), ("exact ap", ap)):
            np.testing.assert_allclose(got[f"{name} macro"].value, expected, atol=2e-6)
            assert np.isnan(got[f"{name} macro"].bound) == np.isnan(expected)
    # One of several: the mean is NaN, None says which, and by numbers of positives it does not count.
    outputs = {"logits": np.eye(3, dtype=np.float32)[[0, 1, 0]], "labels": np.array([0, 1, 1])}
    m = metrics.collect(**{str(a): metrics.roc_auc(3, a, bins=16) for a in ("macro", "weighted", None)})
    got = jax.jit(lambda: m.compute(m.update(m.empty(), outputs)))()
    assert np.isnan(got["macro"].value)
    each = np.asarray(got["None"].value)
    assert np.isnan(each).tolist() == [False, False, True]
    np.testing.assert_allclose(got["weighted"].value, (each[0] + 2 * each[1]) / 3, rtol=1e-6)


@pytest.mark.parametrize("kwargs", [{"bins": 16}, {"exact": True, "capacity": 8}])
def test_what_cannot_be_ranked_is_nan(kwargs):
    m = metrics.roc_auc(**kwargs)
    area = jax.jit(lambda *args: m.compute(m.update(m.empty(), *args)).value)
    z, y = jnp.array([0.1, 4.0, 3.5, 80.0]), jnp.array([0, 0, 1, 1])
    for outputs in ({"logits": z.at[1].set(jnp.nan), "labels": y}, {"logits": z, "labels": y.at[1].set(2)}):
        assert np.isnan(area(outputs, jnp.ones(4)))
        np.testing.assert_allclose(area(outputs, jnp.array([1.0, 0.0, 1.0, 1.0])), 1.0, atol=2e-6)


def test_counts_past_2_32():
    # Doubling both sides changes no area; 2^40 elements are far past where float32 counts stop.
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 500)
    outputs = {"logits": (rng.normal(size=500) + y).astype(np.float32), "labels": y}
    m = metrics.collect(auc=metrics.roc_auc(bins=256), ap=metrics.average_precision(bins=256))
    merge, compute = jax.jit(m.merge), jax.jit(m.compute)
    acc = m.update(m.empty(), outputs)
    before = compute(acc)
    for _ in range(40):
        acc = merge(acc, acc)
    after = compute(acc)
    np.testing.assert_allclose(after["auc"], before["auc"], rtol=1e-6)
    assert metrics.count_to_int(acc["auc"].counts).sum() == 500 * 2**40
    assert 0 <= after["ap"].value <= 1


def test_a_stream_is_exact_counts_in_any_number_of_batches():
    m = metrics.roc_auc()
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(64, 100)).astype(np.float32), rng.integers(0, 2, (64, 100))
    scan = jax.jit(lambda xs: jax.lax.scan(lambda acc, x: (m.update(acc, x), None), m.empty(), xs)[0])
    a = scan({"logits": z, "labels": y})
    b = m.update(m.empty(), {"logits": z.reshape(-1), "labels": y.reshape(-1)})
    for x, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, other)


def test_values():
    assert metrics.roc_auc() == metrics.roc_auc(None, "macro")
    assert metrics.roc_auc().base == metrics.average_precision().base
    assert metrics.roc_auc(3).base == metrics.mean_average_precision(3).base != metrics.roc_auc(4).base
    assert repr(metrics.roc_auc(3, bins=64)) == "roc_auc(num_classes=3, bins=64)"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.roc_auc(1), "`num_classes`"),
        (lambda: metrics.roc_auc(multilabel=True), "`multilabel=True` needs"),
        (lambda: metrics.roc_auc(exact=True), "`capacity`"),
        (lambda: metrics.roc_auc(capacity=9), "`capacity`"),
        (lambda: metrics.roc_auc(exact=True, capacity=0), "`capacity`"),
        (lambda: metrics.roc_auc(exact=True, capacity=9, bins=16), "exclude"),
        (lambda: metrics.roc_auc(bins=100), "power of two"),
        (lambda: metrics.roc_auc(bins=2**17), "65536"),
        (lambda: metrics.roc_auc(3, "micro"), "`average`"),
        (lambda: metrics.mean_average_precision(None), "`num_classes`"),
    ],
)
def test_configurations_that_cannot_work(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


@pytest.mark.parametrize(
    ("m", "logits", "labels", "words"),
    [
        (metrics.roc_auc(), jnp.ones((4, 1)), jnp.zeros(4), "does not fit"),
        (metrics.roc_auc(), jnp.ones((4, 3)), jnp.zeros(4), "does not fit"),
        (metrics.roc_auc(), jnp.ones(4, jnp.int32), jnp.zeros(4), "floating-point"),
        (metrics.roc_auc(3), jnp.ones((4, 2)), jnp.zeros(4, jnp.int32), "num_classes=3"),
        (metrics.roc_auc(3), jnp.ones((4, 3)), jnp.zeros(4), "integers"),
        (metrics.roc_auc(3, multilabel=True), jnp.ones((4, 2)), jnp.zeros((4, 2)), "multilabel=True"),
    ],
)
def test_data_that_does_not_fit(m, logits, labels, words):
    with pytest.raises(DataError, match=words):
        m.update(m.empty(), {"logits": logits, "labels": labels})
