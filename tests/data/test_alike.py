"""Columns stacked at once: the bits, and the refusals, of looking at each example by itself."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.data import examples as module
from fntrain.data.examples import Examples

ROWS = 6
X = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
Pair = collections.namedtuple("Pair", "x y")


class Given:
    """Examples from a list."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]


def outcome(data, rows):
    """What reading gives, bit by bit, or what it says."""
    try:
        batch = Examples(data, "data").read(np.asarray(rows))
    except ft.DataError as error:
        return str(error)
    leaves = jax.tree.leaves(batch)
    assert all(type(x) is np.ndarray and x.flags.writeable and x.dtype.isnative for x in leaves)
    return jax.tree.structure(batch), [(x.dtype, x.shape, x.tobytes()) for x in leaves]


def by_itself(data, rows, monkeypatch):
    """The same where nothing is stacked at once."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "together", lambda *given: None)
        return outcome(data, rows)


def alike(example):
    return [example(i) for i in range(ROWS)]


PLAIN = {
    "integers": lambda i: i,
    "floats, NaN among them": lambda i: float("nan") if i == 2 else -0.0 * i,
    "bools": lambda i: i > 2,
    "complex": lambda i: complex(i, -i),
    "NumPy's scalars": lambda i: np.float16(i),
    "bfloat16's scalars": lambda i: X[i].astype(jnp.bfloat16)[0],
    "arrays": lambda i: X[i],
    "matrices": lambda i: X[i : i + 1].T,
    "without an axis": lambda i: np.array(i),
    "without a value": lambda i: np.zeros((2, 0, 3), np.int8),
    "without a row": lambda i: np.zeros((0, 3), np.int8),
    "backwards": lambda i: X[i, ::-1],
    "bfloat16": lambda i: X[i].astype(jnp.bfloat16),
    "lists": lambda i: [float(i), -1.0],
    "lists of lists of NumPy's": lambda i: [[np.int8(i)], [np.int8(0)]],
    "a tuple": lambda i: (X[i], i),
    "a list": lambda i: [X[i], i],
    "named": lambda i: Pair(X[i], [i, i]),
    "a dict": lambda i: {"y": i, "x": {"a": X[i], "b": None}},
    "a dict in any order": lambda i: dict(sorted({"y": i, "x": X[i]}.items(), reverse=i % 2 > 0)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_alike_is_stacked_at_once_to_the_same_bits(name, monkeypatch):
    data, rows = Given(alike(PLAIN[name])), [3, 0, 3, 2, 5]
    wanted = by_itself(data, rows, monkeypatch)
    monkeypatch.delattr(Examples, "_looked_at")
    assert outcome(data, rows) == wanted
    assert not isinstance(wanted, str)


def test_rows_of_a_map_of_a_file_are_arrays(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.delattr(Examples, "_looked_at")
    assert outcome(Given(list(mapped)), [4, 1]) == outcome(Given(list(X)), [4, 1])


def test_a_batch_shares_no_memory_with_its_examples():
    for rows in ([0], [0, 1]):
        examples = [np.zeros(3), np.zeros(3)]
        Examples(Given(examples), "data").read(np.asarray(rows))[:] = 1
        assert not np.any(examples)


ODD = {
    # name: an example, and what comes last after five of these
    "a float among integers": (lambda i: i, 1.0),
    "a bool among integers": (lambda i: i, True),
    "one of NumPy's among integers": (lambda i: i, np.int64(7)),
    "an integer of 64 bits without a sign": (lambda i: i, 2**63),
    "one with a sign after such": (lambda i: 2**63, 1),
    "an integer of no size": (lambda i: i, 2**70),
    "text": (lambda i: i, "a"),
    "nothing": (lambda i: (i, X[i]), (None, X[0])),
    "float32 in float64": (lambda i: X[i].astype(float), X[0]),
    "float64 in float32": (lambda i: X[i], X[0].astype(float)),
    "the other byte order": (lambda i: X[i], X[0].astype(">f4")),
    "another dtype without an axis": (lambda i: np.array(i), np.array(1.0)),
    "a narrower one without an axis": (lambda i: np.array(float(i)), np.array(1)),
    "another name of a dtype": (lambda i: np.array([i]), np.array([1], np.longlong)),
    "a longer one": (lambda i: X[i], np.zeros(4, np.float32)),
    "as many values": (lambda i: np.zeros((2, 3)), np.zeros((3, 2))),
    "as many rows": (lambda i: np.zeros((1, 3)), np.zeros(3)),
    "broadcast": (lambda i: X[i], np.float32(1)),
    "an array among scalars": (lambda i: np.float32(i), np.zeros((), np.float32)),
    "masked": (lambda i: X[i], np.ma.masked_array(X[0], [0, 1, 0])),
    "masked, nothing hidden": (lambda i: X[i], np.ma.masked_array(X[0], False)),
    "objects": (lambda i: X[i], np.array([1.0, None, 2.0])),
    "JAX's": (lambda i: X[i], jnp.zeros(3)),
    "a list among arrays": (lambda i: X[i].astype(float), [1.0, 2.0, 3.0]),
    "a list of integers among lists of floats": (lambda i: [1.0, 2.0], [1, 2]),
    "a list with an integer": (lambda i: [1.0, 2.0], [1.0, 2]),
    "a longer list": (lambda i: [1.0, 2.0], [1.0, 2.0, 3.0]),
    "a deeper list": (lambda i: [1.0, 2.0], [[1.0, 2.0]]),
    "a ragged list": (lambda i: [[1.0], [2.0]], [[1.0], [2.0, 3.0]]),
    "an empty list": (lambda i: [1.0, 2.0], []),
    "a hole": (lambda i: [1.0, 2.0], [1.0, None]),
    "a list of text": (lambda i: [1.0, 2.0], ["a", "b"]),
    "a list of arrays": (lambda i: [1.0, 2.0], [np.array(1.0), np.array(2.0)]),
    "a list that is a leaf": (lambda i: [np.array(1.0), i], [1.0, 2]),
    "a list of lists that is one": (lambda i: [[1, 2], [np.array(3), 4]], [[1, 2], [3, 4]]),
    "a tuple where a number was": (lambda i: (i, i), (1, (2,))),
    "a tuple where a list was": (lambda i: [X[i], i], (X[0], 1)),
    "one more": (lambda i: (X[i], i), (X[0], 1, 2)),
    "names": (lambda i: (X[i], i), Pair(X[0], 1)),
    "another key": (lambda i: {"x": X[i], "y": i}, {"x": X[0], "z": 1}),
    "a key more": (lambda i: {"x": X[i]}, {"x": X[0], "z": 1}),
    "a key less": (lambda i: {"x": X[i], "y": i}, {"x": X[0]}),
    "another mapping": (lambda i: {"x": X[i]}, collections.OrderedDict(x=X[0])),
}
TAKEN = {
    "one of NumPy's among integers",
    "the other byte order",
    "another name of a dtype",
    "an array among scalars",
    "masked, nothing hidden",
    "JAX's",
    "a list among arrays",
    "a list with an integer",
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("rows", [[0, 3, 5], [5], [5, 5]])
def test_an_odd_one_is_refused_and_taken_as_if_it_were_looked_at_by_itself(name, rows, monkeypatch):
    example, odd = ODD[name]
    data = Given([*alike(example)[:-1], odd])
    got = outcome(data, rows)
    assert got == by_itself(data, rows, monkeypatch)
    if name in TAKEN:
        assert not isinstance(got, str)
    else:
        assert "example 5" in got


def test_two_that_make_up_for_each_other_are_unlike_the_first(monkeypatch):
    data = Given([np.zeros(3), np.zeros(2), np.zeros(4)])
    got = outcome(data, range(3))
    assert "example 1 has shape [2]" in got
    assert got == by_itself(data, range(3), monkeypatch)


class OfLists(Given):
    """As Hugging Face's: columns of lists, and columns that are not said to be arrays of one shape."""

    column_names = ("x", "y")

    def __getitem__(self, i):
        if isinstance(i, list):
            return {key: [self.examples[j][key] for j in i] for key in self.column_names}
        return self.examples[i]


@pytest.mark.parametrize("odd", [[1.0], [1, 2], [1.0, None], {"a": 1.0}, "text"])
def test_an_odd_value_in_a_column_of_lists(odd, monkeypatch):
    good = [{"x": [float(i), 0.5], "y": {"a": i}} for i in range(ROWS)]
    bad = OfLists([*good[:-1], {**good[-1], "x": odd}])
    got = outcome(bad, range(ROWS))
    assert got == by_itself(bad, range(ROWS), monkeypatch)
    assert "example 5 leaf `x`" in got
    wanted = by_itself(OfLists(good), range(ROWS), monkeypatch)
    monkeypatch.delattr(Examples, "_looked_at")
    assert outcome(OfLists(good), range(ROWS)) == wanted
    assert not isinstance(wanted, str)
