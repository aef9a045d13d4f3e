"""Iterables of batches: pairs with weights, padding that parted from its weights, functions, lengths, ends."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32)).astype(np.float32)
BATCHES = [(X[i : i + 10], Y[i : i + 10]) for i in range(0, 50, 10)]


def of_pair(params, batch, ctx):
    x, y = batch
    return ft.losses.mse(x @ params["w"], y)


def of_dict(params, batch, ctx):
    return ft.losses.mse(batch["x"] @ params["w"], batch["y"])


def scalar(params, batch, ctx):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


SGD = ft.optimizers.sgd(0.05)
TASK = ft.Task(of_pair, SGD)


def fresh(task=TASK):
    return ft.init_state(task, {"w": np.zeros(3, np.float32)})


def fitted(data, loss=of_pair, **more):
    task = ft.Task(loss, SGD)
    return ft.fit(task, fresh(task), data, **{"epochs": 2, "progress": False, **more})


def trained(data, **more):
    return np.asarray(fitted(data, **more).state.params["w"])


def loader(**more):
    return ft.data_loader((X, Y), 16, **{"shuffle": False, **more})


def by_hand(batches):
    """SGD on the weighted mean of squares, in float64."""
    w = np.zeros(3)
    for (x, y), weight in batches:
        x, y, weight = (np.asarray(v, np.float64) for v in (x, y, weight))
        w -= 0.05 * (2 * (weight * (x @ w - y)) @ x) / weight.sum()
    return w


WANT = by_hand([((X[i : i + 16], Y[i : i + 16]), np.ones(len(X[i : i + 16]))) for i in (0, 16, 32, 48)] * 2)

# --- pairs (batch, weight)

AUGMENTED = {
    "as they are": lambda: list(loader()),
    "on the device": lambda: [(jax.tree.map(jnp.asarray, b), w) for b, w in loader()],
    "by a function": lambda: lambda epoch: ((b, w) for b, w in loader()),
    "weights parted": lambda: [b for b, _ in loader()],
    "weights parted, augmented": lambda: [(x[:, ::-1][:, ::-1], y * 2 / 2) for (x, y), _ in loader()],
    "cut off": lambda: [jax.tree.map(lambda v, w=w: v[: int(w.sum())], b) for b, w in loader()],
    "a loader of a function": lambda: lambda epoch: loader(),
}


@pytest.mark.parametrize("name", AUGMENTED)
def test_padding_is_never_trained_on(name):
    np.testing.assert_allclose(trained(AUGMENTED[name]()), WANT, rtol=1e-5)


def test_padding_that_is_trained_on_would_be_seen():
    batches = [(b, np.ones(16)) for b, _ in loader()] * 2
    assert not np.allclose(by_hand(batches), WANT, rtol=1e-3)


def test_pairs_are_weighed():
    weights = RNG.uniform(0.5, 2, size=(5, 10)).astype(np.float32)
    pairs = list(zip(BATCHES, weights))
    np.testing.assert_allclose(trained(pairs, epochs=1), by_hand(pairs), rtol=1e-5)
    result = ft.evaluate(TASK, fresh(), pairs)["loss"]
    assert result == pytest.approx(
        (weights.reshape(-1) * Y.astype(np.float64) ** 2).sum() / weights.sum(), rel=1e-6
    )
    history = fitted((X, Y), validation_data=pairs, epochs=1).history
    assert len(history["val_loss"]) == 1


def test_pairs_of_dicts_and_of_arrays():
    weight = np.r_[np.ones(5), np.zeros(5)].astype(np.float32)
    x, y = BATCHES[0]
    task = ft.Task(of_dict, SGD)
    loss = ft.evaluate(task, fresh(task), [({"x": x, "y": y}, weight)])["loss"]
    assert loss == pytest.approx((y[:5].astype(np.float64) ** 2).mean(), rel=1e-6)
    task = ft.Task(lambda p, b, c: ft.losses.mse(b @ p["w"], b[:, 0]), SGD)
    loss = ft.evaluate(task, fresh(task), [(x, weight)])["loss"]
    assert loss == pytest.approx((x[:5, 0].astype(np.float64) ** 2).mean(), rel=1e-6)


def test_a_batch_that_the_loss_takes_as_it_is_is_no_pair():
    # (inputs, targets) has the form of (batch, weight): the loss decides, and never silently for another meaning.
    np.testing.assert_allclose(
        trained(BATCHES, epochs=1), by_hand([(b, np.ones(10)) for b in BATCHES]), rtol=1e-5
    )
    own = lambda p, b, c: ft.Loss((b[0] @ p["w"] - b[1]) ** 2, b[2])
    padded = [(*b, w) for b, w in loader()]  # a batch that holds its weights is left alone
    np.testing.assert_allclose(trained(padded, loss=own), WANT, rtol=1e-5)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ((BATCHES[1], -np.ones(10)), r"batch 1 of epoch 1.*`weight` must be finite and >= 0, got -1"),
        ((BATCHES[1], np.full(10, np.nan)), "`weight` must be finite"),
        ((BATCHES[1], np.ones(3)), r"`weight` must have shape \[10\].*got \[3\]"),
        ([*BATCHES[1], 3], r"no pair `\(batch, weight\)`"),
    ],
)
def test_a_pair_that_is_none(second, words):
    with pytest.raises(ft.DataError, match=words):
        fitted([(BATCHES[0], np.ones(10)), second])


def test_a_scalar_loss_takes_no_weights():
    for pairs in (list(loader()), [(BATCHES[0], np.full(10, 0.5))], [b for b, _ in loader()]):
        with pytest.raises(ft.DataError, match="scalar"):
            fitted(pairs, loss=scalar)
    whole = [(b, np.ones(10, np.float32)) for b in BATCHES]
    np.testing.assert_allclose(trained(whole, loss=scalar), trained(BATCHES), rtol=1e-6)


# --- the form of a batch

FORMS = {
    "x, y": (lambda: ft.fit(TASK, fresh(), X, Y), ft.ConfigError, ["(x, y)"]),
    "x, y evaluated": (lambda: ft.evaluate(TASK, fresh(), X, Y), ft.ConfigError, ["(x, y)"]),
    "x, y in steps": (lambda: ft.steps(TASK, fresh(), X, Y), ft.ConfigError, ["(x, y)"]),
    "x, y in run_epoch": (lambda: ft.run_epoch(TASK, fresh(), X, Y), ft.ConfigError, ["`training`", "(x, y)"]),
    "x, y in data_loader": (lambda: ft.data_loader(X, Y), ft.ConfigError, ["`batch_size`", "(x, y)"]),
    "[x, y]": (lambda: fitted([X, Y]), ft.DataError, ["`data` is a list", "(x, y)"]),
    "[x, y] alike": (
        lambda: fitted(
            [Y, Y], loss=lambda p, b, c: (lambda x, y: ft.losses.mse(x * p["w"][0], y))(*b)
        ),
        ft.DataError, ["`loss_fn`", "a list holds batches", "(x, y)"],
    ),
    "dict for a tuple": (lambda: fitted({"x": X, "y": Y}), ft.DataError, ["`loss_fn`", "`data`", "`(x, y)`"]),
    "tuple for a dict": (lambda: fitted((X, Y), loss=of_dict), ft.DataError, ["`loss_fn`", "takes a dict"]),
    "rows as lists": (lambda: fitted([[1, 2], [3, 4]]), ft.DataError, ["`data`", "np.asarray"]),
    "numbers": (lambda: fitted([1, 2]), ft.DataError, ["data", "leading axis"]),
    "text in a batch": (
        lambda: fitted([{"x": X, "y": Y, "name": "a"}], loss=of_dict), ft.DataError, ["batch 0", "`name`", "<U1"],
    ),
    "jagged in a batch": (
        lambda: fitted([{"x": X, "y": [[1], [2, 3]]}], loss=of_dict), ft.DataError, ["batch 0", "`y`", "length"],
    ),
    "objects later": (
        lambda: fitted([BATCHES[0], (BATCHES[1][0].astype(object), BATCHES[1][1])]),
        ft.DataError, ["batch 1", "object"],
    ),
    "no rows first": (lambda: fitted([(X[:0], Y[:0])]), ft.DataError, ["`data`", "batch 0", "empty"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_the_loss_does_not_take_is_our_error_with_the_fix(name):
    call, error, words = FORMS[name]
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_loss_that_fails_by_itself_raises_its_own_error():
    def broken(params, batch, ctx):
        raise ZeroDivisionError("mine")

    for data in ((X, Y), BATCHES, {"x": X, "y": Y}):
        with pytest.raises(ZeroDivisionError, match="mine") as caught:
            fitted(data, loss=broken)
        assert any("float32" in note for note in caught.value.__notes__)


# --- functions, lengths and ends


def test_a_function_is_called_once_an_epoch_in_order():
    calls, batches = [], iter(BATCHES * 4)

    def goes_on(epoch):
        calls.append(epoch)
        return itertools.islice(batches, 2)

    got = trained(goes_on, epochs=3)
    assert calls == [0, 1, 2]
    np.testing.assert_allclose(got, by_hand([(b, np.ones(10)) for b in (BATCHES * 2)[:6]]), rtol=1e-5)


class GoesOn:
    def __init__(self):
        self.batches, self.calls = iter(BATCHES * 4), 0

    def __iter__(self):
        self.calls += 1
        return itertools.islice(self.batches, 2)


def test_an_iterable_is_iterated_once_an_epoch():
    data = GoesOn()
    got = trained(data, epochs=3)
    assert data.calls == 3
    np.testing.assert_allclose(got, by_hand([(b, np.ones(10)) for b in (BATCHES * 2)[:6]]), rtol=1e-5)


def test_a_function_of_nothing_is_called_each_epoch():
    def batches():
        yield from BATCHES

    np.testing.assert_array_equal(trained(batches), trained(BATCHES))
    assert ft.evaluate(TASK, fresh(), batches) == ft.evaluate(TASK, fresh(), BATCHES)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda a, b: BATCHES, "lambda epoch"),
        (lambda shuffle=True: BATCHES, "`shuffle=True` is taken for an option"),
        (lambda epoch: (X, Y), "must return an iterable of batches, got tuple"),
        (lambda epoch: {"x": X}, "got dict"),
        (lambda epoch: X, "got ndarray"),
        (lambda epoch: None, "got NoneType"),
    ],
)
def test_a_function_that_is_none_of_the_epoch(function, words):
    with pytest.raises(ft.DataError, match=f"`data`.*{words}"):
        fitted(function)


class Length:
    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return iter(BATCHES)

    def __len__(self):
        if isinstance(self.length, Exception):
            raise self.length
        return self.length


@pytest.mark.parametrize("length", [2, 5, 99, 0, -1, TypeError("none"), RuntimeError("none")])
def test_the_data_is_what_is_read_whatever_its_length_says(length, tmp_path):
    result = fitted(Length(length), run_dir=tmp_path / "run", progress=True)
    assert int(result.state.step) == 10
    assert result.history["step"] == [5, 10]
    np.testing.assert_array_equal(result.state.params["w"], trained(BATCHES))
    assert ft.evaluate(TASK, fresh(), Length(length)) == ft.evaluate(TASK, fresh(), BATCHES)


def test_validation_data_that_can_be_read_once():
    once = lambda: (b for b in BATCHES)
    for more in ({"epochs": 2}, {"epochs": None, "steps": 5}, {"epochs": 1, "validation_every": 2}):
        with pytest.raises(ft.DataError, match=r"`validation_data` is read at every validation.*generator"):
            fitted(BATCHES, validation_data=once(), **more)
    history = fitted(BATCHES, validation_data=once(), epochs=1).history
    assert np.isfinite(history["val_loss"][0])

    class Hidden:
        def __init__(self):
            self.batches = once()

        def __iter__(self):
            return self.batches

    with pytest.raises(ft.DataError, match="`validation_data` gave no batch: what can be read only once"):
        fitted(BATCHES, validation_data=Hidden())


def test_what_is_known_to_have_no_end():
    cycle, by_function = itertools.cycle(BATCHES), lambda epoch: itertools.cycle(BATCHES)
    for data in (cycle, by_function, itertools.repeat(BATCHES[0])):
        with pytest.raises(ft.DataError, match=r"`data` has no end.*give `steps`"):
            fitted(data)
        with pytest.raises(ft.DataError, match="`data` has no end"):
            ft.evaluate(TASK, fresh(), data)
        with pytest.raises(ft.DataError, match="`data` has no end"):
            ft.run_epoch(TASK, fresh(), data)
    with pytest.raises(ft.DataError, match="`validation_data` has no end"):
        fitted(BATCHES, validation_data=by_function)
    for data in (itertools.cycle(BATCHES), by_function):
        np.testing.assert_array_equal(trained(data, epochs=None, steps=10), trained(BATCHES))
    assert int(fitted(itertools.repeat(BATCHES[0], 3), epochs=1).state.step) == 3


def test_a_batch_of_no_rows_is_a_step_of_nothing():
    with_none = [BATCHES[0], (X[:0], Y[:0]), BATCHES[1]]
    result = fitted(with_none, epochs=1)
    assert (int(result.state.step), int(result.state.updates)) == (3, 2)
    np.testing.assert_array_equal(result.state.params["w"], trained(BATCHES[:2], epochs=1))


def test_lists_and_scalars_in_a_batch():
    batch = {"x": X[:4].tolist(), "y": [0.0] * 4, "n": 3.0}
    task = ft.Task(lambda p, b, c: ft.losses.mse(b["x"] @ p["w"] + b["n"], b["y"]), SGD)
    assert ft.evaluate(task, fresh(task), [batch])["loss"] == 9.0
