"""Columns at the door: what libraries have in the place of arrays goes by position, or is refused by name."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.data.split import split
from fntrain.data.tensors import Stored, at, column, columns


class Labelled:
    """As a series of pandas: `x[i]` is the value with label i, wherever it stands."""

    def __init__(self, values, labels):
        self.values, self.labels = np.asarray(values), list(labels)
        self.dtype, self.shape = self.values.dtype, self.values.shape

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return self.values

    def __getitem__(self, labels):
        return self.values[[self.labels.index(label) for label in np.atleast_1d(labels)]]


class OnDisk:
    """As a data set of h5py: rows by increasing positions alone; counts what is read."""

    chunks = None

    def __init__(self, values):
        self.values, self.read = values, 0
        self.dtype, self.shape = values.dtype, values.shape

    def __getitem__(self, rows):
        if not isinstance(rows, slice) and np.any(np.diff(rows) <= 0):
            raise TypeError("Indexing elements must be in increasing order")
        got = self.values[rows]
        self.read += len(got)
        return got


class Sliced:
    """Shape, dtype and rows, and nothing that says how they are indexed."""

    def __init__(self, values):
        self.values, self.dtype, self.shape = values, values.dtype, values.shape

    def __getitem__(self, rows):
        if not isinstance(rows, slice):
            raise KeyError(rows)
        return self.values[rows]


class Unsliced(Sliced):
    def __getitem__(self, rows):
        return Unsliced(self.values[rows])


class Capsule:
    """What has `__dlpack__` alone."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **keywords):
        return self.values.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class Missing(Labelled):
    """As a series of polars: holes are counted, and `__array__` fills them with something."""

    def null_count(self):
        return 2


VALUES = np.arange(12.0).reshape(6, 2)

ACCEPTED = {
    "by label": Labelled(VALUES, [5, 3, 4, 0, 1, 2]),
    "on disk": OnDisk(VALUES),
    "slices": Sliced(VALUES),
    "dlpack": Capsule(VALUES),
    "list of lists": VALUES.tolist(),
    "big-endian": VALUES.astype(">f8"),
    "masked, nothing hidden": np.ma.masked_array(VALUES, False),
    "matrix": VALUES.view(type("Matrix", (np.ndarray,), {})),
}


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_are_drawn_by_position_beside_an_array(name, shuffle):
    rows = []
    for batch, weight in ft.data_loader({"want": VALUES, "got": ACCEPTED[name]}, 4, shuffle=shuffle, seed=3):
        assert type(batch["got"].view(np.ndarray)) is np.ndarray
        assert batch["got"].dtype == np.dtype(np.float64)
        np.testing.assert_array_equal(batch["got"], batch["want"])
        rows += batch["got"][weight > 0][:, 0].tolist()
    assert sorted(rows) == VALUES[:, 0].tolist()
    loader = ft.data_loader({"want": VALUES, "got": ACCEPTED[name]}, 3, shuffle=shuffle, seed=3)
    stacked, _ = loader.stacked(0, 0, 2)
    np.testing.assert_array_equal(stacked["got"], stacked["want"])
    first, _ = split({"want": VALUES, "got": ACCEPTED[name]}, 0.5)
    np.testing.assert_array_equal(first["got"], first["want"])


def test_what_is_on_disk_is_read_when_it_is_due(tmp_path):
    disk = OnDisk(np.arange(1000.0))
    loader = ft.data_loader(disk, 10, seed=0)
    assert disk.read == 0
    batch, _ = loader.batch(3, 5)
    assert disk.read == 10
    np.testing.assert_array_equal(batch, loader.order(3)[50:60])
    np.save(tmp_path / "x.npy", VALUES.astype(">f4"))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(column(mapped, "x"), np.memmap)
    np.testing.assert_array_equal(at(Stored(OnDisk(VALUES)), np.array([5, 0, 5, 2])), VALUES[[5, 0, 5, 2]])


def test_a_run_on_a_series_is_the_run_on_its_values():
    y = np.arange(8, dtype=np.float32)
    task = ft.Task(lambda p, b, c: ft.losses.mse(b[0] * p["w"], b[1]), ft.optimizers.sgd(0.01))
    state = ft.init_state(task, {"w": np.float32(0)})
    by_label = Labelled(y, [3, 1, 0, 2, 7, 6, 5, 4])
    runs = [
        ft.fit(task, state, (y, labels), epochs=2, batch_size=4, progress=False).state.params["w"]
        for labels in (y, by_label)
    ]
    assert float(runs[0]) == float(runs[1])
    assert float(runs[0]) > 0.1


REFUSED = {
    "masked": (np.ma.masked_array([1.0, 2.0], [0, 1]), ["1 values as missing", "filled"]),
    "missing": (Missing(VALUES, range(6)), ["2 values as missing", "fill_null"]),
    "structured": (np.zeros(3, [("a", "f4"), ("b", "i4")]), ["'a'", "x.dtype.names"]),
    "record": (np.zeros(3, [("a", "f4")]).view(np.recarray), ["x.dtype.names"]),
    "long double": (np.zeros(3, np.longdouble), ["x.astype(np.float64)"]),
    "objects": (np.array([1, None]), ["object", "encode"]),
    "text": (["a", "b"], ["<U1", "np.unique"]),
    "bytes": (np.array([b"a"]), ["S1", "np.unique"]),
    "times": (np.zeros(2, "M8[s]"), ["datetime64", "timedelta64"]),
    "durations": (np.zeros(2, "m8[s]"), ["timedelta64"]),
    "jagged": ([[1, 2], [3]], ["differ in length"]),
    "a hole": ([1, None], ["object"]),
    "a generator": ((i for i in range(3)), ["generator"]),
    "an object": (object(), ["object"]),
    "keys": (jax.random.split(jax.random.key(0), 3), ["PRNG keys", "key_data"]),
    "how it is indexed": (Unsliced(VALUES), ["Unsliced", "np.asarray"]),
    "no rows": (np.float32(3), ["leading axis"]),
    "sparse": (types.SimpleNamespace(todense=None, shape=(3, 3), dtype=np.float32), ["sparse", "toarray"]),
    "past 32 bits": (np.array([1, 2**40]), ["1099511627776", "int32"]),
    "past float32": (np.array([np.nan, np.inf, -1e39]), ["-1e+39", "float32"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_array_of_numbers_is_refused_by_name(name):
    value, words = REFUSED[name]
    rows = len(value) if hasattr(value, "__len__") else 3
    data = {"x": np.zeros(rows), "odd": value}
    with pytest.raises(ft.DataError) as caught:
        ft.data_loader(data, 3, shuffle=False).batch(0, 0)
    message = str(caught.value)
    assert all(word in message for word in ["`data` leaf `odd`", *words]), message


def test_infinities_and_nan_are_numbers():
    batch, _ = ft.data_loader(np.array([np.inf, -np.inf, np.nan, 3e38]), 4, shuffle=False).batch(0, 0)
    np.testing.assert_array_equal(batch, [np.inf, -np.inf, np.nan, 3e38])


def test_a_donated_array_is_refused_by_name():
    x = jnp.ones(3)
    x.delete()
    with pytest.raises(ft.DataError, match=r"`data`.*donated"):
        ft.data_loader(x, 2)


def test_mappings_of_files_are_dicts(tmp_path):
    np.savez(tmp_path / "data.npz", x=VALUES, y=VALUES[:, 0])
    with np.load(tmp_path / "data.npz") as file:
        batch, _ = ft.data_loader(file, 6, shuffle=False).batch(0, 0)
        task = ft.Task(lambda p, b, c: ft.losses.mse(b["x"] @ p["w"], b["y"]), ft.optimizers.sgd(0.1))
        state = ft.init_state(task, {"w": np.zeros(2, np.float32)})
        loss = ft.evaluate(task, state, file)["loss"]
    np.testing.assert_array_equal(batch["x"], VALUES)
    assert loss == pytest.approx((VALUES[:, 0] ** 2).mean())


def test_frames_of_pandas():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "c": [True, False, True]}, index=[2, 0, 1])
    data = {"x": frame, "y": frame["a"], "n": pd.array([1, 2, 3], dtype="Int64"), "i": frame.index}
    data = columns({**data, "s": pd.Series([1, 2, 3], dtype="Int64")}, "data")
    np.testing.assert_array_equal(data["x"], [[1, 0.5, 1], [2, 1.5, 0], [3, 2.5, 1]])
    np.testing.assert_array_equal(data["y"], [1, 2, 3])
    np.testing.assert_array_equal(data["i"], [2, 0, 1])
    assert data["s"].dtype == data["n"].dtype == np.int64
    for odd, words in [
        (pd.Series([1, None], dtype="Int64"), "1 values as missing"),
        (pd.Series([1, 2], dtype="category"), "category.*codes"),
        (pd.Series(["a", "b"]), "`data` has dtype"),
        (pd.DataFrame({"a": [1], "city": ["x"]}), "column 'city'"),
        (pd.Series(pd.to_datetime(["2020-01-01"])), "datetime64"),
    ]:
        with pytest.raises(ft.DataError, match=words):
            columns(odd, "data")


def test_frames_of_polars():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5]})
    np.testing.assert_array_equal(columns(frame, "data"), [[1, 0.5], [2, 1.5], [3, 2.5]])
    for odd, words in [
        (pl.Series([1, None]), "1 values as missing"),
        (pl.Series(["a"], dtype=pl.Categorical), "Categorical"),
        (pl.DataFrame({"a": [1], "city": ["x"]}), "column 'city'"),
        (pl.Series([[1, 2], [3]]), "List"),
    ]:
        with pytest.raises(ft.DataError, match=words):
            columns(odd, "data")


def test_data_sets_of_h5py(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = VALUES
        for batch, _ in ft.data_loader({"want": VALUES, "got": file["x"]}, 4, seed=1):
            np.testing.assert_array_equal(batch["got"], batch["want"])
        assert columns(file, "data")["x"].shape == VALUES.shape


def test_sparse_matrices():
    sparse = pytest.importorskip("scipy.sparse")
    from jax.experimental.sparse import BCOO

    for odd in (sparse.csr_matrix(np.eye(3)), sparse.coo_array(np.eye(3)), BCOO.fromdense(jnp.eye(3))):
        for data in (odd, {"x": odd}):
            with pytest.raises(ft.DataError, match="sparse"):
                ft.data_loader(data, 2)


class _Tensor:
    """As much of a tensor of torch as is asked for."""

    def __init__(self, values, dtype="float32", layout="strided"):
        self.values, self.dtype, self.layout, self.shape = values, dtype, layout, values.shape
        self.requires_grad, self.is_nested = True, False

    def detach(self):
        out = _Tensor(self.values, self.dtype)
        out.requires_grad = False
        return out

    def cpu(self):
        return self

    contiguous = resolve_conj = resolve_neg = cpu

    def view(self, dtype):
        return _Tensor(self.values.view(dtype), dtype)

    def numpy(self):
        if self.requires_grad and self.dtype != "int16":
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.values


def test_tensors_of_torch(monkeypatch):
    torch = types.SimpleNamespace(Tensor=_Tensor, strided="strided", bfloat16="bfloat16", int16="int16")
    monkeypatch.setitem(sys.modules, "torch", torch)
    x = np.arange(6, dtype=np.float32)
    loader = ft.data_loader((x, _Tensor(x)), 4, seed=2)
    for batch, _ in loader:
        np.testing.assert_array_equal(*batch)
    half = np.asarray(jnp.asarray(x, jnp.bfloat16))
    got = columns(_Tensor(half, "bfloat16"), "data")
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype(np.float32), x)
    with pytest.raises(ft.DataError, match="layout coo"):
        columns(_Tensor(x, layout="coo"), "data")


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (np.zeros(2, ">f4"), "byte order"),
        (np.ma.masked_array([1.0, 2.0], [0, 1]), "masked"),
        (np.zeros(2, np.longdouble), "np.float64"),
        (Labelled([1.0, 2.0], [1, 0]), "Labelled"),
        (np.zeros(2, [("a", "f4")]), "x.dtype.names"),
    ],
)
def test_a_step_takes_arrays_alone(odd, words):
    task = ft.Task(lambda p, b, c: ft.losses.mse(b["x"] * p["w"], b["x"]), ft.optimizers.sgd(0.1))
    with pytest.raises(ft.DataError, match=f"`batch` leaf `odd`.*({words})"):
        ft.train_step(
            task, ft.init_state(task, {"w": np.float32(0)}), {"x": np.ones(2, np.float32), "odd": odd}
        )
