"""metrics.bootstrap: intervals that hold what they promise, the same bits however the data comes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.metrics import intervals

RNG = np.random.default_rng(0)
N = 64
OUTPUTS = {
    "logits": RNG.normal(size=(N, 3)).astype(np.float32),
    "labels": RNG.integers(0, 3, N).astype(np.int32),
    "id": RNG.permutation(N).astype(np.int32),
}


def found(m, outputs, weight=None):
    """The value of a metric over one batch, in one program."""
    return jax.jit(lambda o, w: m.compute(m.update(m.empty(), o, w)))(outputs, weight)


def test_95_percent_of_intervals_hold_the_truth():
    # 500 sets of 200 rows, right with probability 0.8: the number of hits is binomial, with a deviation of 0.0097.
    m = ft.metrics.bootstrap(ft.metrics.accuracy(), key="id")
    right = RNG.random((500, 200)) < 0.8
    logits = np.stack([right * 2.0 - 1, 0 * right], -1).astype(np.float32)
    ids = RNG.integers(0, 2**31, right.shape).astype(np.int32)

    @jax.jit
    @jax.vmap
    def interval(logits, ids):
        outputs = {"logits": logits, "labels": jnp.zeros(200, jnp.int32), "id": ids}
        return m.compute(m.update(m.empty(), outputs))

    value, low, high = map(np.asarray, interval(logits, ids))
    np.testing.assert_allclose(value, right.mean(1), rtol=1e-6)
    assert abs(((low <= 0.8) & (high >= 0.8)).mean() - 0.95) < 2 * 0.0097
    # Half as wide as twice 1.96 standard errors, by the formula of a proportion.
    np.testing.assert_allclose((high - low).mean() / (2 * 1.96), np.sqrt(0.8 * 0.2 / 200), rtol=0.03)


def test_replicates_that_are_all_the_whole_are_found_out():
    m = ft.metrics.bootstrap(ft.metrics.mean("x"), 100)
    acc = jax.jit(m.update)(m.empty(), {"x": jnp.arange(50.0)})
    same = jax.tree.map(lambda x: jnp.tile(x, (100, *[1] * x.ndim)), acc.whole)
    compute = jax.jit(m.compute)
    specimen, sound = (compute(acc._replace(replicates=x)) for x in (same, acc.replicates))
    error = np.arange(50).std() / np.sqrt(50)
    assert float(specimen.high) == 24.5
    np.testing.assert_allclose((sound.high - sound.low) / (2 * 1.96), error, rtol=0.25)


@pytest.mark.parametrize("key", [None, "id"])
def test_split_order_and_padding_change_no_bit(key):
    m = ft.metrics.bootstrap(ft.metrics.accuracy(), 50, key=key)
    update, merge, compute = map(jax.jit, (m.update, m.merge, m.compute))

    def value(order, sizes):
        acc, at = m.empty(), 0
        for size in sizes:
            rows = order[at : at + size]
            padded = {k: np.concatenate([x[rows], np.full_like(x[:2], 99)]) for k, x in OUTPUTS.items()}
            part = update(m.empty(), padded, np.r_[np.ones(size), 0, 0].astype(np.float32))
            acc, at = merge(part, acc), at + size
        return [np.asarray(x).tobytes() for x in compute(acc)]

    whole = value(np.arange(N), [N])
    assert value(RNG.permutation(N), [16, 16, 16, 16]) == whole
    other = ft.metrics.bootstrap(ft.metrics.accuracy(), 50, key=key, seed=1)
    assert found(other, OUTPUTS) != found(m, OUTPUTS)


@pytest.mark.slow
def test_devices_and_evaluate_change_no_bit():
    # Sums of small integers are exact, so that the model's rounding has no part in this.
    def loss_fn(params, batch, ctx):
        x, y, row = batch
        outputs = dict(logits=x * params["w"], labels=y, row=row)
        return ft.losses.mse(x[:, 0] * params["w"], x[:, 1]).with_outputs(**outputs)

    metrics = {"accuracy": ft.metrics.bootstrap(ft.metrics.accuracy(), 40, key="row")}
    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1), metrics=metrics)
    params = {"w": np.float32(1)}
    data = (np.round(OUTPUTS["logits"] * 4), OUTPUTS["labels"], OUTPUTS["id"])
    values = [ft.evaluate(task, ft.init_state(task, params), data, batch_size=b) for b in (64, 10)]
    mesh = ft.sharding.mesh(data=-1)
    values.append(ft.evaluate(task, ft.init_state(task, params, mesh=mesh), data, batch_size=32))
    names = ("accuracy", "accuracy_low", "accuracy_high")
    assert all([v[n] for n in names] == [values[0][n] for n in names] for v in values)
    assert values[0]["accuracy_low"] < values[0]["accuracy"] < values[0]["accuracy_high"]
    history = ft.fit(
        task, ft.init_state(task, params), data, epochs=1, validation_data=data, progress=False
    ).history
    assert {"val_accuracy", "val_accuracy_low", "val_accuracy_high"} <= set(history)


def test_rows_are_drawn_as_poisson_says():
    drawn = jax.jit(lambda ids: intervals._poisson(intervals._digest({"id": ids}), 40, 0))
    times = np.asarray(drawn(np.arange(20_000)))
    shares = [(times == k).mean() for k in range(5)]
    poisson = [np.exp(-1) / f for f in (1, 1, 2, 6, 24)]
    np.testing.assert_allclose(shares, poisson, atol=3 * np.sqrt(0.25 / times.size))
    between = np.corrcoef(times) - np.eye(40)  # replicates, and rows, know nothing of each other
    assert np.abs(between).max() < 5 / np.sqrt(20_000)
    assert np.abs(np.corrcoef(times[:, :200].T) - np.eye(200)).max() < 6 / np.sqrt(40)


def test_a_row_of_tokens_stands_or_falls_as_one():
    m = ft.metrics.bootstrap(ft.metrics.mean("x"), 200)
    x = np.repeat(RNG.normal(size=(50, 1)), 16, 1).astype(np.float32)  # tokens of a row say the same
    _, low, high = found(m, {"x": x}, np.ones((50, 16), np.float32))
    np.testing.assert_allclose((high - low) / (2 * 1.96), x[:, 0].std() / np.sqrt(50), rtol=0.15)


@pytest.mark.slow
def test_dicts_and_bounds_have_an_interval_each():
    outputs = {"x": OUTPUTS["logits"][:, 0], "yes": OUTPUTS["labels"] == 0}
    both = ft.metrics.collect(auc=ft.metrics.roc_auc(logits="x", labels="yes"), mean=ft.metrics.mean("x"))
    m = ft.metrics.bootstrap(both, 50)
    value = found(m, outputs)
    assert value["auc"].low < value["auc"].value < value["auc"].high
    assert m.better == both.better == {"auc": "max"}
    nothing = jax.jit(m.compute)(m.empty())["mean"]
    assert all(np.isnan(x) for x in nothing)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ft.metrics.bootstrap(ft.metrics.accuracy), "it looks like a factory"),
        (lambda: ft.metrics.bootstrap(ft.metrics.accuracy(), 5), "`replicates` must be an integer >= 20"),
        (lambda: ft.metrics.bootstrap(ft.metrics.accuracy(), confidence=95), "`confidence`"),
        (lambda: ft.metrics.bootstrap(ft.metrics.accuracy(), key=0), "`key`"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ft.errors.ConfigError, match=message):
        make()
