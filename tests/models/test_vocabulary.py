"""The words of other libraries' trainers, in `supervised` and by its side, against numbers worked out here."""

import inspect

import jax
import numpy as np
import pytest

import fntrain as ft

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype(np.float32)
Y = np.arange(12, dtype=np.int32) % 3
W = RNG.normal(size=(4, 3)).astype(np.float32) / 4


def model(params, x):
    return x @ params["w"]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gradient(w, x, y, weights=None):
    """Of the mean cross-entropy of `x @ w`, in float64."""
    each = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)[y]
    wrong = softmax(x.astype(np.float64) @ w) - np.eye(3)[y]
    return x.T.astype(np.float64) @ (wrong * each[:, None]) / each.sum()


def stepped(task, batches=((X, Y),)):
    state = ft.init_state(task, {"w": W})
    for batch in batches:
        state, metrics = ft.train_step(task, state, batch)
    return np.asarray(state.params["w"]), metrics


def test_class_weights_by_class():
    given = {0: 0.5, 2: 3.0}
    task = ft.supervised(model, optimizer="sgd", class_weights=given, metrics=())
    after, _ = stepped(task)
    np.testing.assert_allclose(after, W - 0.01 * gradient(W, X, Y, [0.5, 1.0, 3.0]), rtol=1e-5, atol=1e-7)
    assert np.abs(after - stepped(ft.supervised(model, optimizer="sgd"))[0]).max() > 1e-4
    assert task == ft.supervised(model, optimizer="sgd", class_weights=dict(given), metrics=())
    assert hash(task) == hash(ft.supervised(model, optimizer="sgd", class_weights=dict(given), metrics=()))
    for wrong, words in (
        ({3: 1.0}, "has class 3, and the model gives 3 classes"),
        ({"cat": 1.0}, "`class_weights` must be an integer"),
        ({0: -1.0}, r"`class_weights\[0\]` must be"),
    ):
        with pytest.raises(ft.ConfigError, match=words):
            stepped(ft.supervised(model, class_weights=wrong))
    with pytest.raises(ft.ConfigError, match="`class_weights` is no option of mse"):
        ft.supervised(model, "mse", class_weights=given)


def test_weight_decay_of_sgd_is_that_of_the_loss():
    after, _ = stepped(ft.supervised(model, optimizer="sgd", weight_decay=0.1))
    np.testing.assert_allclose(after, W - 0.01 * (gradient(W, X, Y) + 0.1 * W), rtol=1e-5, atol=1e-7)


def test_accumulated_gradients_are_those_of_the_large_batch():
    task = ft.supervised(model, optimizer="sgd", accumulate_gradients=3)
    parts = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 12, 4)]
    np.testing.assert_allclose(stepped(task, parts)[0], W - 0.01 * gradient(W, X, Y), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(stepped(task, parts[:2])[0], W)


def test_accuracy_of_a_batch_leaves_out_what_is_ignored():
    rows, found = np.arange(12), (X @ W).argmax(-1)
    y = np.where(rows < 3, found, np.where(rows < 5, (found + 1) % 3, -100)).astype(np.int32)
    task = ft.supervised(model, ignore_index=-100)
    values = ft.compute_metrics(task, stepped(task, [(X, y)])[1])
    assert float(values["accuracy"]) == pytest.approx(3 / 5)
    nll = -np.log(softmax(X @ W)[np.arange(5), y[:5]]).mean()
    assert float(values["loss"]) == pytest.approx(nll, rel=1e-5)


def test_accuracy_is_there_where_it_is_asked_for():
    for names, there in ((("accuracy",), True), ((), False)):
        task = ft.supervised(model, metrics=names)
        _, history = ft.fit(
            task, ft.init_state(task, {"w": W}), (X, Y), epochs=1, validation_data=(X, Y), progress=False
        )
        assert [name in history for name in ("accuracy", "val_accuracy")] == [there, there]
        if there:
            assert 0 <= history["accuracy"][0] <= 1


def test_the_loss_first_is_one_line():
    task = ft.supervised(model, optimizer="sgd", clip_norm=0.1, clip_value=0.05, weight_decay=0.1)

    def loss_first(state, batch):
        state, metrics = ft.train_step(task, state, batch)
        return ft.compute_metrics(task, metrics)["loss"], state

    loss, state = loss_first(ft.init_state(task, {"w": W}), (X, Y))
    assert float(loss) == pytest.approx(-np.log(softmax(X @ W)[np.arange(12), Y]).mean(), rel=1e-5)
    g = np.clip(gradient(W, X, Y), -0.05, 0.05)
    g = g * min(1, 0.1 / np.sqrt((g**2).sum()))
    np.testing.assert_allclose(state.params["w"], W - 0.01 * (g + 0.1 * W), rtol=1e-5, atol=1e-7)


def test_the_rate_rises_over_updates_and_then_the_schedule_begins():
    task = ft.supervised(
        model, optimizer="sgd", lr_schedule=("cosine", 0.1, 0.01), warmup=4, steps=10, accumulate_gradients=2
    )
    state, rates = ft.init_state(task, {"w": W}), []
    for _ in range(20):
        state, metrics = ft.train_step(task, state, (X, Y))
        rates.append(float(ft.compute_metrics(task, metrics)["learning_rate"]))
    wanted = [0.1 * t / 4 for t in range(4)]
    wanted += [0.01 + 0.09 * (1 + np.cos(np.pi * t / 6)) / 2 for t in range(6)]
    np.testing.assert_allclose(rates[1::2], wanted, rtol=1e-5, atol=1e-8)  # at the steps that close a window


@pytest.mark.parametrize("alias", ft.optimizers.ALIASES)
def test_an_optimizers_alias_is_its_argument_and_two_spellings_are_refused(alias):
    name = ft.optimizers.ALIASES[alias]
    with_it = [f for f in ft.optimizers.names.OPTIMIZERS.values() if name in inspect.signature(f).parameters]
    assert with_it
    for make in with_it:
        assert make(**{alias: 0.5}) == make(**{name: 0.5}) != make()
        with pytest.raises(ft.ConfigError, match=f"`{name}` and `{alias}` of {make.__name__} are the same"):
            make(**{name: 0.5, alias: 0.5})


@pytest.mark.parametrize("library", [ft.losses, ft.metrics])
def test_every_other_name_of_a_loss_and_of_a_metric_is_one_of_ours(library):
    known = ft.losses.LOSSES if library is ft.losses else ft.metrics.METRICS
    for alias, name in library.names.ALIASES.items():
        assert alias not in known
        options = {"num_classes": 3} if "num_classes" in inspect.signature(known[name]).parameters else {}
        options = {} if library is ft.losses else options
        got, wanted = library.get(alias, **options), library.get(name, **options)
        assert got == wanted
        with pytest.raises(ft.ConfigError, match="must be one of"):
            library.get(alias + "_", **options)


def test_a_loss_of_ones_own_gives_values_and_weights():
    def own(outputs, targets):
        return ft.Loss(
            ((outputs - jax.nn.one_hot(targets, 3)) ** 2).sum(-1), (targets != 1).astype(np.float32)
        )

    task = ft.supervised(model, own, "sgd", metrics=())
    state, history = ft.fit(
        task, ft.init_state(task, {"w": W}), (X, Y), epochs=1, batch_size=12, progress=False
    )
    wrong = (X.astype(np.float64) @ W - np.eye(3)[Y]) * (Y != 1)[:, None]
    assert history["loss"][0] == pytest.approx((wrong**2).sum() / (Y != 1).sum(), rel=1e-5)
    np.testing.assert_allclose(
        state.params["w"], W - 0.02 * X.T.astype(np.float64) @ wrong / (Y != 1).sum(), rtol=1e-5, atol=1e-7
    )


def test_a_hundred_rows_are_four_batches_unless_said():
    task = ft.supervised(model, optimizer="sgd", metrics=())
    x, y = np.tile(X, (9, 1))[:100], np.tile(Y, 9)[:100]
    state, _ = ft.fit(task, ft.init_state(task, {"w": W}), (x, y), epochs=1, progress=False)
    assert (int(state.step), int(state.updates)) == (4, 4)
