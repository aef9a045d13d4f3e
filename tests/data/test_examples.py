"""Data sets of examples by position: what is read is what the columns hold, resumed bitwise, or refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.data.examples import Examples, is_examples

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 3)).astype(np.float32)
Y = RNG.integers(0, 2, 50).astype(np.int64)
ALL = {"x": X, "y": Y}


class OfTuples:
    """As torch's `Dataset`: an index gives an example; no lists, no iteration."""

    def __init__(self, x=X, y=Y):
        self.x, self.y, self.read = x, y, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if not isinstance(i, int):
            raise TypeError(f"an index must be an int, got {type(i).__name__}")
        self.read.append(i)
        return self.x[i], int(self.y[i])


class Fetching(OfTuples):
    """As torch's, with `__getitems__`: several at once, as a list of examples."""

    def __getitems__(self, rows):
        self.read.append(rows)
        return [(self.x[i], int(self.y[i])) for i in rows]


class OfColumns:
    """As Hugging Face's: an index gives a dict, a list of indices a dict of columns, as lists or arrays."""

    def __init__(self, columns=ALL, form=None):
        self.columns, self.form, self.column_names = dict(columns), form, list(columns)

    def with_format(self, form):
        return OfColumns(self.columns, form)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i):
        if isinstance(i, str):
            return self.columns[i]
        taken = {key: [c[j] for j in i] if isinstance(i, list) else c[i] for key, c in self.columns.items()}
        if self.form is None:
            return jax.tree.map(lambda v: v.tolist() if isinstance(v, np.ndarray | np.generic) else v, taken)
        try:
            return {key: np.asarray(c) for key, c in taken.items()}
        except ValueError:  # ragged: an array of objects, as Hugging Face's
            return {key: np.array(c, object) for key, c in taken.items()}

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitems__(self, rows):
        columns = self[rows]
        return [{key: c[i] for key, c in columns.items()} for i in range(len(rows))]


class Iterated(OfTuples):
    """With an iterator as well, and nothing else to tell it from a sequence of batches."""

    def __iter__(self):
        return (self[i] for i in range(len(self)))


def logistic(params, batch, ctx):
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
    logits = x @ params["w"]
    return ft.losses.cross_entropy(logits, y).with_outputs(logits=logits, labels=y)


TASK = ft.Task(logistic, ft.optimizers.adam(0.05), {"accuracy": ft.metrics.accuracy()})
SETS = {
    "tuples": OfTuples(),
    "fetching": Fetching(),
    "columns": OfColumns(),
    "columns of arrays": OfColumns().with_format("numpy"),
    "iterated": Iterated(),
}


def fresh():
    return ft.init_state(TASK, {"w": np.zeros((3, 2), np.float32)})


def fitted(data, **more):
    return ft.fit(TASK, fresh(), data, **{"epochs": 2, "batch_size": 8, "seed": 3, "progress": False, **more})


def bits(state):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves((state.params, state.opt_state, state.step))]


@pytest.fixture(scope="module")
def straight():
    return fitted((X, Y), steps=14, epochs=None)


@pytest.mark.parametrize("name", SETS)
def test_every_verb_sees_the_rows_of_the_columns(name, straight):
    data = SETS[name]
    result = fitted(data, steps=14, epochs=None, steps_per_call=3)
    np.testing.assert_array_equal(result.state.params["w"], straight.state.params["w"])
    assert ft.evaluate(TASK, result.state, data, batch_size=8) == ft.evaluate(
        TASK, result.state, (X, Y), batch_size=8
    )
    got = ft.predict(TASK, result.state, data, outputs="logits", batch_size=8)
    np.testing.assert_array_equal(got, ft.predict(TASK, result.state, (X, Y), outputs="logits", batch_size=8))
    loader = ft.data_loader(data, 8, seed=3)
    for (batch, weight), ((x, y), w) in zip(loader, ft.data_loader((X, Y), 8, seed=3), strict=True):
        one = jax.tree.leaves(batch)
        np.testing.assert_array_equal(one[0].astype(np.float32), x)
        np.testing.assert_array_equal(one[1], y)
        np.testing.assert_array_equal(weight, w)


def test_validation_reads_its_own_set_in_its_order_while_training_is_shuffled():
    def loss_fn(params, batch, ctx):
        return ft.losses.mse(batch[0] @ params["w"], batch[1].astype(jnp.float32))

    task = ft.Task(loss_fn, ft.optimizers.sgd(0.01))
    state = ft.init_state(task, {"w": np.zeros(X.shape[1], np.float32)})
    rows, held_out = OfTuples(), OfTuples(X[:7], Y[:7])
    ft.fit(task, state, rows, epochs=2, batch_size=4, validation_data=held_out, progress=False)
    once = list(range(7))
    assert held_out.read[-14:] == once + once
    assert sorted(rows.read[-len(X) :]) == list(range(len(X))) != rows.read[-len(X) :]


class Killed(BaseException):
    pass


# Inside an epoch of seven batches, before its end, at it, in the next.
@pytest.mark.parametrize(("name", "at"), [("tuples", 1), ("tuples", 6), ("columns", 7), ("fetching", 12)])
def test_a_killed_run_resumes_bitwise_(name, at, straight, tmp_path):
    data = SETS[name]
    options = dict(steps=14, epochs=None, run_dir=tmp_path / "run", checkpoint_every=1, steps_per_call=1)

    class Kills:
        def on_step_end(self, ctx):
            if ctx.step > at:
                raise Killed

    with pytest.raises(Killed):
        fitted(data, callbacks=[Kills()], **options)
    resumed = fitted(data, resume=True, **options)
    assert bits(resumed.state) == bits(straight.state)


def test_another_content_is_refused_on_resume_and_what_draws_at_random_is_not(tmp_path):
    fitted(OfTuples(), epochs=1, run_dir=tmp_path / "run")
    with pytest.raises(ft.errors.RunMismatchError, match="sample_crc32"):
        fitted(OfTuples(X + 1), epochs=2, run_dir=tmp_path / "run", resume=True)

    class Augmented(OfTuples):
        def __getitem__(self, i):
            return X[i] + RNG.normal(size=3).astype(np.float32), int(Y[i])

    fitted(Augmented(), epochs=1, run_dir=tmp_path / "other")
    fitted(Augmented(), epochs=2, run_dir=tmp_path / "other", resume=True)


def test_over_a_mesh_it_is_the_same(straight):
    mesh = ft.sharding.mesh(data=2, devices=jax.devices()[:2])
    state = ft.init_state(TASK, {"w": np.zeros((3, 2), np.float32)}, mesh=mesh)
    result = ft.fit(TASK, state, OfTuples(), steps=14, batch_size=8, seed=3, progress=False)
    np.testing.assert_allclose(result.state.params["w"], straight.state.params["w"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("example", "wanted"),
    [
        (lambda i: i, np.arange(4)),
        (lambda i: 1.5 * i, 1.5 * np.arange(4)),
        (lambda i: X[i], X[:4]),
        (lambda i: [0.0, float(i)], np.stack([np.zeros(4), np.arange(4.0)], 1)),
        (lambda i: (X[i], (i, bool(i % 2))), (X[:4], (np.arange(4), np.arange(4) % 2 == 1))),
        (
            lambda i: {"a": {"b": jnp.asarray(X[i])}, "c": [X[i], i]},
            {"a": {"b": X[:4]}, "c": [X[:4], np.arange(4)]},
        ),
    ],
)
def test_examples_are_stacked_in_their_structure(example, wanted):
    class Any(OfTuples):
        def __getitem__(self, i):
            return example(i)

    got = Examples(Any(), "data").read(np.arange(4))
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert isinstance(a, np.ndarray)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (
            OfTuples(x=[np.zeros(3 + (i == 7), np.float32) for i in range(9)]),
            r"example 7 leaf `0` has shape \[4\]",
        ),
        (
            OfColumns({"x": [[0.0] * (3 + (i == 7)) for i in range(9)]}),
            r"example 7 leaf `x` has shape \[4\].*pad",
        ),
        (
            OfColumns({"x": [np.zeros(3 + (i == 7)) for i in range(9)]}, "numpy"),
            r"example 7 leaf `x` has shape \[4\]",
        ),
        (
            OfTuples(x=[np.zeros(3, np.float64 if i == 7 else np.float32) for i in range(9)]),
            r"7 leaf `0` is float64",
        ),
        (OfColumns({"x": [{"a": 1}] * 7 + [{"b": 1}] * 2}), "example 7 leaf `x` has the structure"),
        (OfColumns({"text": ["a", "b"], "y": [0, 1]}), r"example 0 leaf `text`.*no device takes"),
        (OfTuples(x=[]), "at least one example"),
        ({"train": OfColumns(), "test": OfColumns()}, r"`data\['train'\]`"),
        ((OfTuples(), Y), "a tuple with a data set of examples"),
    ],
)
def test_what_cannot_be_stacked_is_refused_by_name(data, match):
    with pytest.raises(ft.DataError, match=match):
        list(ft.data_loader(data, 3, shuffle=False))


def test_an_error_of_the_data_set_says_which_example():
    class Broken(OfTuples):
        def __getitem__(self, i):
            return super().__getitem__(i) if i < 5 else self.missing

    with pytest.raises(AttributeError) as caught:
        list(ft.data_loader(Broken(), 3, shuffle=False))
    assert "while reading example 5 of `data`" in caught.value.__notes__[0]


def test_a_sequence_of_batches_stays_one():
    class Batches:
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return X[10 * i : 10 * i + 10], Y[10 * i : 10 * i + 10]

        def __iter__(self):
            return (self[i] for i in range(5))

    assert not is_examples(Batches())
    np.testing.assert_array_equal(
        fitted(Batches()).state.params["w"], fitted(list(Batches())).state.params["w"]
    )


def test_batches_by_number_are_refused_with_the_way():
    class Sequence:
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return X[10 * i : 10 * i + 10], Y[10 * i : 10 * i + 10]

        def on_epoch_end(self):
            pass

    data = Sequence()
    with pytest.raises(ft.DataError, match="lambda epoch"):
        fitted(data)
    fitted(lambda epoch: (data[i] for i in range(len(data))))


class RandomSampler:
    pass


class SequentialSampler:
    pass


class DataLoader:
    """As torch's: batches in the order of its sampler."""

    def __init__(self, dataset, batch_size, sampler):
        self.dataset, self.batch_size, self.sampler = dataset, batch_size, sampler

    def __len__(self):
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self):
        for i in range(0, len(self.dataset), self.batch_size):
            yield self.dataset.x[i : i + self.batch_size], self.dataset.y[i : i + self.batch_size]


def test_a_loader_that_shuffles_is_refused_where_it_would_be_resumed(tmp_path):
    loader = DataLoader(OfTuples(), 10, RandomSampler())
    fitted(loader)  # trained without a directory, it is what it is
    with pytest.raises(ft.DataError, match=r"loader\.dataset"):
        fitted(loader, run_dir=tmp_path / "run")
    with pytest.raises(ft.DataError, match=r"whose outputs.*loader\.dataset"):
        ft.predict(TASK, fresh(), loader)
    fitted(DataLoader(OfTuples(), 10, SequentialSampler()), run_dir=tmp_path / "run")
    fitted(loader.dataset, run_dir=tmp_path / "other", batch_size=loader.batch_size)


# --- examples in the place of batches ----------------------------------------------------------------------------


def by_rows(params, batch, ctx):
    """A loss that takes a single example as well: one number for it."""
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
    return ft.losses.cross_entropy(x @ params["w"], y)


def flattening(params, batch, ctx):
    x, y = batch
    return ft.losses.cross_entropy(x.reshape(x.shape[0], -1) @ params["w"], y)


ONE_HOT = np.eye(2, dtype=np.float32)[Y]


@pytest.mark.parametrize(
    ("loss", "data"),
    [
        (by_rows, [(x, int(y)) for x, y in zip(X, Y)]),
        (by_rows, [{"x": x, "y": y} for x, y in zip(X, Y)]),
        (by_rows, lambda: ((x, y) for x, y in zip(X, Y))),
        (flattening, [(x, y) for x, y in zip(X, Y)]),
        (by_rows, [(x, y) for x, y in zip(X, ONE_HOT)]),
        (lambda p, b, ctx: b[0] * p["w"][0, 0] - b[1], [(1.0, 2.0), (3.0, 4.0)]),
    ],
)
def test_examples_given_as_batches_are_said_by_name(loss, data):
    task = ft.Task(loss, ft.optimizers.sgd(0.1))
    state = ft.init_state(task, {"w": np.zeros((3, 2), np.float32)})
    with pytest.raises(ft.DataError, match=r"np\.stack") as caught:
        ft.fit(task, state, data, progress=False)
    assert str(caught.value).count("`batch_size` is not for them") == 1


def test_the_way_shown_is_one():
    data = [(x, int(y)) for x, y in zip(X, Y)]
    np.testing.assert_array_equal(
        fitted(tuple(np.stack(column) for column in zip(*data))).state.params["w"],
        fitted((X, Y)).state.params["w"],
    )


@pytest.mark.parametrize(
    ("loss", "batch"),
    [
        # A number for the whole batch beside its rows, with a loss of either kind.
        (lambda p, b, ctx: jnp.mean((b["x"] @ p["w"] * b["t"]) ** 2), {"x": X[:8], "t": np.float32(2)}),
        (
            lambda p, b, ctx: jnp.mean((b["x"] @ p["w"] * b["t"]) ** 2, axis=1),
            {"x": X[:8], "t": np.float32(2)},
        ),
        (lambda p, b, ctx: jnp.mean((b @ p["w"]) ** 2), X[:8]),
    ],
)
def test_real_batches_in_a_list_go_on_working(loss, batch):
    task = ft.Task(loss, ft.optimizers.sgd(0.1))
    state = ft.init_state(task, {"w": np.ones((3, 2), np.float32)})
    result = ft.fit(task, state, [batch] * 3, epochs=1, progress=False)
    assert int(result.state.step) == 3
