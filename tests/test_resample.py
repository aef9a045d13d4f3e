"""scores.bootstrap and scores.compare, against formulas, McNemar's exact test, and SciPy."""

import numpy as np
import pytest
from scipy import stats

import fntrain as ft

RNG = np.random.default_rng(0)


def test_the_interval_of_a_mean_is_that_of_the_formula():
    x = RNG.normal(3, 2, 400)
    value, low, high = ft.scores.bootstrap(np.mean, x, replicates=2000)
    assert value == x.mean()
    t = stats.t.interval(0.95, 399, x.mean(), stats.sem(x))
    np.testing.assert_allclose((low, high), t, atol=0.02)
    wide = ft.scores.bootstrap(np.mean, x, confidence=0.99)
    assert wide.low < low
    assert high < wide.high
    assert ft.scores.bootstrap(np.mean, x, seed=1) == ft.scores.bootstrap(np.mean, x, seed=1)


def test_a_dict_of_scores_has_an_interval_each():
    y = RNG.integers(0, 3, 150)
    guess = np.where(RNG.random(150) < 0.7, y, (y + 1) % 3)
    found = ft.scores.bootstrap(ft.scores.classification_metrics, y, guess, replicates=300)
    assert list(found) == ["accuracy", "precision", "recall", "f1"]
    accuracy = found["accuracy"]
    assert accuracy.value == (y == guess).mean()
    error = np.sqrt(accuracy.value * (1 - accuracy.value) / 150)
    np.testing.assert_allclose(accuracy.high - accuracy.low, 2 * 1.96 * error, rtol=0.15)


def test_the_p_value_is_mcnemars():
    y = np.arange(300) % 2
    wrong_a, wrong_b = np.arange(300) < 60, (np.arange(300) < 48) | (np.arange(300) >= 297)
    a, b = np.where(wrong_a, 1 - y, y), np.where(wrong_b, 1 - y, y)
    found = ft.scores.compare(a, b, y, replicates=4000)
    exact = stats.binomtest(3, 15).pvalue  # of the pairs in which one alone is right
    assert abs(found.p_value - exact) < 4 * np.sqrt(exact / 4000)
    assert (found.a, found.b) == (0.8, 0.83)
    assert abs(found.difference - 0.03) < 1e-12
    alone = [ft.scores.bootstrap(lambda t, p: np.mean(t == p), y, x) for x in (a, b)]
    assert found.low > 0
    assert alone[0].high > alone[1].low


def test_losses_of_the_same_examples_are_compared_by_pairs():
    hard = RNG.normal(size=200)
    a, b = hard + RNG.normal(0, 0.1, 200), hard + RNG.normal(0.02, 0.1, 200)
    found = ft.scores.compare(a, b, replicates=4000)
    t = stats.ttest_rel(b, a)
    assert abs(found.p_value - t.pvalue) < 0.02
    np.testing.assert_allclose((found.low, found.high), t.confidence_interval(0.95), atol=0.004)
    assert ft.scores.compare(a, a).p_value == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ft.scores.bootstrap(np.mean), "`arrays`"),
        (lambda: ft.scores.bootstrap(0.5, [1.0]), "`score` must be a function"),
        (lambda: ft.scores.bootstrap(np.mean, [1.0], replicates=3), "`replicates`"),
        (lambda: ft.scores.bootstrap(np.mean, []), "not empty"),
        (lambda: ft.scores.compare([1, 2], [1]), "share a first axis"),
        (lambda: ft.scores.compare([1, 2], [1, 2], None, np.mean), "`score` is of predictions"),
        (lambda: ft.scores.compare(np.ones((2, 1)), np.ones((2, 2)), [1, 2]), "one form"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises((ft.errors.ConfigError, ft.errors.DataError), match=message):
        make()
