"""The words of other libraries' trainers, in `supervised` and by its side, against numbers worked out here."""

import inspect
from pathlib import Path

import jax
import numpy as np
import pytest
import sklearn.metrics

import fntrain as ft
from fntrain.models.supervised import ALIASES

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
        task, logs = ft.supervised(model, optimizer="sgd", metrics=names), []
        state, history = ft.fit(
            *(task, ft.init_state(task, {"w": W}), (X, Y)),
            epochs=1,
            validation_data=(X, Y),
            callbacks=[logs.append],
            progress=False,
        )
        for name, w in (("accuracy", W), ("val_accuracy", np.asarray(state.params["w"]))):
            assert (name in history, name in logs[0]) == (there, there)
            if there:
                assert history[name] == [logs[0][name]] == [pytest.approx(((X @ w).argmax(-1) == Y).mean())]


def test_an_unknown_name_is_answered_with_the_known():
    for option, known in (
        ("loss", ft.losses.LOSSES),
        ("optimizer", {**ft.optimizers.OPTIMIZERS, **ft.optimizers.PRESETS}),
        ("metrics", ft.metrics.METRICS),
        ("lr_schedule", ("step", "exponential", "cosine")),
    ):
        with pytest.raises(ft.ConfigError, match="must be one of") as error:
            ft.supervised(model, **{option: ["unheard"] if option == "metrics" else "unheard"}, lr=0.1)
        assert [name for name in known if f"'{name}'" not in str(error.value)] == []


@pytest.mark.parametrize("off", [None, 0, 0.0])
def test_a_clip_is_off(off):
    assert ft.supervised(model, clip_norm=off, clip_value=off).tx == ft.optimizers.adam()
    assert ft.supervised(model, gradient_clip=off, accumulation_steps=1).tx == ft.optimizers.adam()


def test_nesterov_is_refused_where_there_is_none():
    for name, make in ft.optimizers.OPTIMIZERS.items():
        if "nesterov" not in inspect.signature(make).parameters:
            with pytest.raises(ft.ConfigError, match=f"`nesterov`: {name} has none"):
                ft.supervised(model, optimizer=name, nesterov=True)


def test_the_gradient_is_clipped_when_it_is_added_up():
    task = ft.supervised(model, optimizer="sgd", accumulation_steps=3, gradient_clip=0.05)
    parts = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 12, 4)]
    g = gradient(W, X, Y)
    clipped = 0.05 * g / np.linalg.norm(g)
    np.testing.assert_allclose(stepped(task, parts)[0], W - 0.01 * clipped, rtol=1e-5, atol=1e-7)
    each = [gradient(W, *part) for part in parts]
    first = np.mean([0.05 * part / np.linalg.norm(part) for part in each], axis=0)
    assert np.abs(clipped - first).max() > 1e-3  # clipped before, it would have been another


def test_a_step_is_not_waited_for(monkeypatch):
    task = ft.supervised(model, optimizer="sgd")
    state, _ = ft.train_step(task, ft.init_state(task, {"w": W}), (X, Y))  # compiled
    waits, array = [], type(state.step)
    for owner, name in [
        *((jax, name) for name in ("device_get", "block_until_ready")),
        *(
            (array, name)
            for name in ("__float__", "__int__", "__bool__", "__array__", "item", "block_until_ready")
        ),
    ]:
        real = getattr(owner, name)
        counted = lambda *args, real=real, name=name, **more: (waits.append(name), real(*args, **more))[1]
        monkeypatch.setattr(owner, name, counted)
    state, metrics = ft.train_step(task, state, (X, Y))
    assert waits == []
    assert float(ft.compute_metrics(task, metrics)["loss"]) > 0
    assert waits == ["__float__"]  # the counter counts


def test_metrics_by_name_over_a_set_and_a_loss_without_classes():
    y = np.where(np.arange(12) < 7, (X @ W).argmax(-1), Y).astype(np.int32)
    task = ft.supervised(model, metrics=["accuracy", "f1_score"], num_classes=3)
    values = ft.evaluate(task, ft.init_state(task, {"w": W}), (X, y), batch_size=5)
    found = (X @ W).argmax(-1)
    assert values["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, found))
    assert values["f1_score"] == pytest.approx(sklearn.metrics.f1_score(y, found, average="macro"))
    nll = -np.log(softmax(X @ W)[np.arange(12), y]).mean()
    assert values["loss"] == pytest.approx(nll, rel=1e-5)  # of all of it, not of the batches' means
    task = ft.supervised(model, "mse")
    values = ft.evaluate(
        task, ft.init_state(task, {"w": W}), (X, np.eye(3, dtype=np.float32)[Y]), batch_size=5
    )
    assert values == {
        "loss": pytest.approx(((X @ W - np.eye(3)[Y]) ** 2).mean(), rel=1e-5),
        "accuracy": None,
    }


def test_a_run_is_told_unless_said_otherwise(capsys):
    task = ft.supervised(model, optimizer="sgd", metrics=())
    for options, lines in (({}, ["epoch 1/2", "epoch 2/2", "done: 2 e"]), ({"progress": False}, [])):
        ft.fit(task, ft.init_state(task, {"w": W}), (X, Y), epochs=2, batch_size=12, **options)
        said = capsys.readouterr()
        assert [line[:9] for line in said.out.splitlines()] == lines
        assert said.err == ""


def test_other_names_are_on_the_page():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    tables = (ALIASES, ft.optimizers.ALIASES, ft.losses.names.ALIASES, ft.metrics.names.ALIASES)
    assert [alias for table in tables for alias in table if f"`{alias}`" not in page] == []


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
    assert np.abs(g).max() <= 0.05
    assert np.linalg.norm(g) <= 0.1 + 1e-9
    other = gradient(W, X, Y)
    other = np.clip(other * min(1, 0.1 / np.linalg.norm(other)), -0.05, 0.05)
    assert np.abs(other - g).max() > 1e-3  # the norm first would have been another


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
