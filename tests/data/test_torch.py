"""Tensors, data sets and loaders of torch itself: right rows, in their order, each once, or refused by name.

`test_tensors.py` and `test_examples.py` have what stands in for these; here is the library, where it is installed.
"""

import collections
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.data import alike, examples as module
from fntrain.data.examples import Examples
from fntrain.data.stream import Stream
from fntrain.data.tensors import columns, to_numpy

torch = pytest.importorskip("torch")
from torch.utils import data as sets  # noqa: E402

ROWS, SIZE = 22, 4
X = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(ROWS)
Pair = collections.namedtuple("Pair", "x y")


def loss_fn(params, batch, ctx):
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
    out = x.astype(jnp.float32) @ params["w"]
    return ft.losses.mse(out, y.astype(jnp.float32) / ROWS).with_outputs(rows=y)


TASK = ft.Task(loss_fn, ft.optimizers.sgd(0.1, momentum=0.9))


def fresh():
    return ft.init_state(TASK, {"w": np.zeros(3, np.float32)})


def fitted(data, **more):
    """What a run makes of the weights, which shows which rows came in which order."""
    result = ft.fit(TASK, fresh(), data, progress=False, **{"epochs": 2, "seed": 3, **more})
    return np.asarray(result.state.params["w"])


def read(data, **more):
    """The column that numbers the rows, as prediction sees it."""
    return ft.predict(TASK, fresh(), data, outputs="rows", **more).tolist()


# -- tensors ---------------------------------------------------------------------------------------------------------

HALVES = torch.tensor([[1.5, -2.0], [0.25, 3e38], [float("nan"), -0.0]])
TENSORS = {
    "float32": (X, X.numpy()),
    "float64": (X.double(), X.numpy().astype(np.float64)),
    "float16": (X.half(), X.numpy().astype(np.float16)),
    "bfloat16": (HALVES.bfloat16(), HALVES.numpy().astype(jnp.bfloat16)),
    "bfloat16, transposed": (HALVES.bfloat16().T, HALVES.numpy().astype(jnp.bfloat16).T),
    "bfloat16 that needs a gradient": (
        HALVES.bfloat16().requires_grad_(),
        HALVES.numpy().astype(jnp.bfloat16),
    ),
    "needs a gradient": (X.clone().requires_grad_(), X.numpy()),
    "has a gradient's history": (X.clone().requires_grad_() * 2, 2 * X.numpy()),
    "a parameter": (torch.nn.Parameter(X), X.numpy()),
    "transposed": (X.T, X.numpy().T),
    "every second row": (X[::2], X.numpy()[::2]),
    "backwards": (X.flip(0), X.numpy()[::-1]),
    "one row, many times": (X[:1].expand(ROWS, 3), np.broadcast_to(X.numpy()[:1], (ROWS, 3))),
    "bool": (X > 0, X.numpy() > 0),
    "int64": (Y - 9, np.arange(ROWS) - 9),
    "uint8": ((Y * 11).to(torch.uint8), (np.arange(ROWS) * 11).astype(np.uint8)),
    "uint16": ((Y + 60_000).to(torch.uint16), (np.arange(ROWS) + 60_000).astype(np.uint16)),
    "conjugated": (torch.complex(X, X + 1).conj(), X.numpy() - 1j * (X.numpy() + 1)),
    "negated": (torch.complex(X, X + 1).conj().imag, -(X.numpy() + 1)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_is_the_column_of_its_values(name):
    tensor, wanted = TENSORS[name]
    got = columns({"x": tensor}, "data")["x"]
    assert (type(got), got.shape) == (np.ndarray, wanted.shape)
    assert got.dtype == (np.complex64 if wanted.dtype.kind == "c" else wanted.dtype)
    wide = np.float32 if got.dtype == jnp.bfloat16 else got.dtype  # NaN equals NaN there
    np.testing.assert_array_equal(got.astype(wide), wanted.astype(wide))


def test_a_batch_keeps_no_memory_of_torchs():
    given = {"strided": torch.arange(6).reshape(2, 3).T, "bfloat16": torch.tensor([1.5, -2.0]).bfloat16()}
    got = to_numpy(given)
    for tensor in given.values():
        tensor.zero_()  # a loader may fill the same buffers again
    assert got["strided"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert got["bfloat16"].astype(np.float32).tolist() == [1.5, -2.0]


def _nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its form is a prototype
        return torch.nested.nested_tensor([X[0], X[1, :2]])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: X.to("meta"), "`data` leaf `x`: no array could be made of Tensor.*meta"),
        (lambda: X.to_sparse(), r"`data` leaf `x` has the layout torch.sparse_coo.*`x.to_dense\(\)`"),
        (lambda: X.to(torch.float8_e4m3fn), "`data` leaf `x`: no array could be made of Tensor.*Float8"),
        (_nested, r"`data` leaf `x` is a nested tensor.*to_padded_tensor\(0\)"),
        (lambda: Y + 2**40, "`data` leaf `x` holds 10995116277.*does not fit the int32"),
    ],
)
def test_a_tensor_that_is_no_column_is_refused_by_name(make, words):
    tensor = make()
    with pytest.raises(ft.DataError, match=words):
        list(ft.data_loader({"x": tensor}, ROWS))


def test_parameters_may_be_tensors_and_those_that_cannot_are_named():
    made = ft.init_state(TASK, {"w": torch.tensor([0.5, -1.0, 2.0])})
    assert made.params["w"].tolist() == [0.5, -1.0, 2.0]
    for odd in (torch.zeros(3, requires_grad=True), torch.zeros(3).bfloat16()):
        with pytest.raises(ft.ConfigError, match="`params` leaf `net/w`: no array could be made of Tensor"):
            ft.init_state(TASK, {"net": {"w": odd}})


# -- data sets and loaders -------------------------------------------------------------------------------------------


class Made(sets.Dataset):
    def __init__(self, example):
        self.example = example

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        return self.example(i)


class Listed(sets.Dataset):
    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]


class Streamed(sets.IterableDataset):
    """Examples, or batches of `size`."""

    def __init__(self, size=None):
        self.size = size

    def __iter__(self):
        if self.size is None:
            return ((X[i], Y[i]) for i in range(ROWS))
        return ((X[i : i + self.size], Y[i : i + self.size]) for i in range(0, ROWS, self.size))


PAIRS = sets.TensorDataset(X, Y)
BACKWARDS = list(range(ROWS))[::-1]
SETS = {
    "tensors": (X, Y),
    "dict of tensors": {"x": X, "y": Y},
    "TensorDataset": PAIRS,
    "Subset": sets.Subset(sets.Subset(PAIRS, BACKWARDS), torch.tensor(BACKWARDS)),
    "ConcatDataset": sets.ConcatDataset([sets.Subset(PAIRS, range(9)), sets.Subset(PAIRS, range(9, ROWS))]),
    "StackDataset": sets.StackDataset(x=X, y=Y),
    "tuples": Made(lambda i: (X[i], Y[i])),
    "lists": Made(lambda i: [X[i], int(Y[i])]),
    "named": Made(lambda i: Pair(X[i], Y[i].item())),
    "dicts": Made(lambda i: {"y": Y[i], "x": X[i].numpy()}),
    "that need a gradient": Made(lambda i: (X[i].clone().requires_grad_(), Y[i])),
}


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_is_the_arrays_it_holds(name):
    arrays = X.numpy(), Y.numpy()
    assert read(SETS[name], batch_size=SIZE) == list(range(ROWS))
    for shuffle in (True, False):
        options = dict(batch_size=SIZE, shuffle=shuffle)
        np.testing.assert_array_equal(fitted(SETS[name], **options), fitted(arrays, **options))


def test_the_parts_of_a_split_are_its_rows():
    parts = sets.random_split(PAIRS, [0.5, 0.5], torch.Generator().manual_seed(1))
    rows = [read(part, batch_size=SIZE) for part in parts]
    assert rows == [list(part.indices) for part in parts]
    assert sorted(rows[0] + rows[1]) == list(range(ROWS)) != rows[0] + rows[1]
    assert fitted(parts[0], batch_size=SIZE, validation_data=parts[1]).any()


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", TENSORS)
def test_rows_read_at_once_have_the_bits_of_rows_read_one_by_one(name, large, monkeypatch):
    if large:
        monkeypatch.setattr(alike, "_BY_ONE_THREAD", 0)
    tensor = TENSORS[name][0]
    data, rows = sets.TensorDataset(tensor, tensor.unsqueeze(1)), np.array([1, 0, 1])
    examples = [data[i] for i in range(len(tensor))]
    with monkeypatch.context() as patch:
        patch.setattr(module, "together", lambda *given: None)
        wanted = Examples(Listed(examples), "data").read(rows)
    monkeypatch.delattr(Examples, "_looked_at")
    for given in (data, Listed(examples), sets.Subset(data, range(len(tensor)))):
        got = Examples(given, "data").read(rows)
        assert type(got) is tuple
        for a, b in zip(got, wanted, strict=True):
            assert (type(a), a.dtype, a.shape, a.tobytes()) == (np.ndarray, b.dtype, b.shape, b.tobytes())
            assert a.flags.writeable
            a[...] = 0  # of the batch's own memory: the next reads see nothing of it


ODD = {
    "float64": X[0].double(),
    "float16": X[0].half(),
    "a longer one": torch.zeros(4),
    "an axis more": X[:1],
    "an array": X[0].numpy(),
    "a parameter": torch.nn.Parameter(X[0]),
    "needs a gradient": X[0].clone().requires_grad_(),
    "sparse": X[0].to_sparse(),
    "elsewhere": X[0].to("meta"),
    "a number": 1.0,
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("rows", [[0, 4, 5], [5], [5, 5]])
def test_an_odd_tensor_is_refused_and_taken_as_if_it_were_looked_at_by_itself(name, rows, monkeypatch):
    data = Listed([*((X[i], i) for i in range(5)), (ODD[name], 5)])

    def outcome():
        try:
            return [(x.dtype, x.tobytes()) for x in Examples(data, "data").read(np.array(rows))]
        except ft.DataError as error:
            return str(error)

    got = outcome()
    assert ("example 5 leaf `0`" in got) == (name not in ("an array", "a parameter", "needs a gradient"))
    monkeypatch.setattr(module, "together", lambda *given: None)
    assert outcome() == got


def test_a_class_derived_from_a_tensor_dataset_is_read_by_its_own_way():
    class Doubled(sets.TensorDataset):
        def __getitem__(self, i):
            return tuple(2 * x for x in super().__getitem__(i))

    x, y = Examples(Doubled(X, Y), "data").read(np.array([3, 1]))
    np.testing.assert_array_equal(x, 2 * X.numpy()[[3, 1]])
    assert y.tolist() == [6, 2]


def test_an_example_may_be_a_scalar_of_torch():
    got = [batch for batch, _ in ft.data_loader(Made(lambda i: Y[i]), ROWS, shuffle=False)]
    assert got[0].tolist() == list(range(ROWS))


LOADERS = {
    "batches": lambda: sets.DataLoader(PAIRS, SIZE),
    "batches of dicts": lambda: sets.DataLoader(SETS["dicts"], SIZE),
    "a sampler": lambda: sets.DataLoader(PAIRS, SIZE, sampler=sets.SequentialSampler(PAIRS)),
    "examples that a loader batches": lambda: sets.DataLoader(Streamed(), SIZE),
    "batches that a loader leaves": lambda: sets.DataLoader(Streamed(SIZE), batch_size=None),
    "batches without a loader": lambda: Streamed(SIZE),
    "a list": lambda: list(sets.DataLoader(PAIRS, SIZE)),
    "a function": lambda: lambda epoch: sets.DataLoader(PAIRS, SIZE),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_loaders_batches_are_those_of_the_arrays(name):
    data = LOADERS[name]()
    assert read(data) == list(range(ROWS))
    np.testing.assert_array_equal(
        fitted(data), fitted((X.numpy(), Y.numpy()), batch_size=SIZE, shuffle=False)
    )


@pytest.mark.slow
def test_batches_of_a_loader_with_workers():
    # As processes of their own: a fork of a program with threads, as JAX's is, may hang.
    loader = sets.DataLoader(PAIRS, SIZE, num_workers=2, multiprocessing_context="spawn")
    assert read(loader) == list(range(ROWS))


def test_every_epoch_of_a_loader_is_read_from_its_beginning():
    loader = sets.DataLoader(PAIRS, SIZE)
    for epoch in range(2):
        pairs = list(Stream(loader).epoch(epoch, 0))
        assert all(isinstance(leaf, np.ndarray) for batch, _ in pairs for leaf in jax.tree.leaves(batch))
        assert np.concatenate([b[1][w > 0] for b, w in pairs]).tolist() == list(range(ROWS))
        assert pairs[-1][1].tolist() == [1, 1, 0, 0]


SHUFFLED = {
    "shuffle": lambda: sets.DataLoader(PAIRS, SIZE, shuffle=True),
    "weighted": lambda: sets.DataLoader(
        PAIRS, SIZE, sampler=sets.WeightedRandomSampler([1.0, 3.0] * (ROWS // 2), ROWS)
    ),
    "a subset": lambda: sets.DataLoader(PAIRS, SIZE, sampler=sets.SubsetRandomSampler(range(9))),
    "batches": lambda: sets.DataLoader(
        PAIRS, batch_sampler=sets.BatchSampler(sets.RandomSampler(PAIRS), SIZE, drop_last=False)
    ),
}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", SHUFFLED)
def test_a_loader_that_shuffles_goes_on_where_it_is_seeded_as_the_refusal_says(name, tmp_path):
    loader = SHUFFLED[name]()
    assert fitted(loader).any()  # trained without a directory, it is what it is
    with pytest.raises(
        ft.DataError, match=r"`def data\(epoch\): torch\.manual_seed\(epoch\); return loader`"
    ):
        fitted(loader, run_dir=tmp_path / "refused")
    with pytest.raises(ft.DataError, match=r"whose outputs.*loader\.dataset"):
        read(loader)

    def data(epoch):
        torch.manual_seed(epoch)
        return loader

    class Kills:
        def on_step_end(self, ctx):
            if ctx.step > 4:
                raise Killed

    options = dict(run_dir=tmp_path / "run", checkpoint_every=1, steps_per_call=1)
    with pytest.raises(Killed):
        fitted(data, callbacks=[Kills()], **options)
    torch.rand(7)  # where the generator stands meanwhile is of no consequence
    with pytest.warns(RuntimeWarning, match="read again and dropped"):
        resumed = fitted(data, resume=True, **options)
    np.testing.assert_array_equal(resumed, fitted(data))


def test_examples_one_by_one_are_said_to_be_so_once():
    for data in (Streamed(), sets.DataLoader(PAIRS, batch_size=None), [PAIRS[i] for i in range(ROWS)]):
        with pytest.raises(ft.DataError, match=r"batched by torch, `DataLoader\(data, 32\)`") as caught:
            fitted(data)
        assert type(caught.value) is ft.DataError
        assert str(caught.value).count("np.stack") == 1


class Unmeasured(sets.Dataset):
    def __getitem__(self, i):
        return X[i], Y[i]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Unmeasured(), "`data` is a Unmeasured.*`__len__`"),
        (Made(lambda i: (X[i], str(i))), "example 0 leaf `1`.*no device takes"),
        (Made(lambda i: (X[i, : 1 + i % 3], Y[i])), r"example 1 leaf `0` has shape \[2\].*pad"),
        (Made(lambda i: (X[i].double() if i == 3 else X[i], Y[i])), "example 3 leaf `0` is float64"),
        (sets.TensorDataset(X.to("meta"), Y), "example 0 leaf `0`: no array could be made of Tensor"),
        (sets.TensorDataset(X.to_sparse(), Y), "example 0 leaf `0` has the layout torch.sparse_coo"),
        (sets.TensorDataset(X, torch.where(Y > 18, 2**40, 0)), "leaf `1` holds 1099511627776"),
        ((PAIRS, Y), "a tuple with a data set of examples"),
        ({"train": PAIRS}, r"`data\['train'\]`"),
    ],
)
def test_what_no_batch_can_be_made_of_is_refused_by_name(data, words):
    with pytest.raises(ft.DataError, match=words):
        fitted(data, batch_size=SIZE, shuffle=False)


# -- modules ---------------------------------------------------------------------------------------------------------


def test_a_module_of_torch_is_no_model_and_no_parameters():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    for given in (module, type(module)):
        with pytest.raises(ft.ConfigError, match="`params` is a module of torch, Sequential"):
            ft.init_state(TASK, given)
        with pytest.raises(ft.ConfigError, match="`model` is a module of torch, Sequential"):
            ft.supervised(given)

    def loss_fn(params, batch, ctx):
        out = batch @ params["0.weight"].T + params["0.bias"][None]
        return ft.losses.mse(out, jnp.ones_like(out))

    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1))
    state = ft.init_state(task, {name: x.detach().numpy() for name, x in module.named_parameters()})
    with torch.no_grad():
        wanted = float(((module[0](X) - 1) ** 2).mean())
    assert ft.evaluate(task, state, X, batch_size=SIZE)["loss"] == pytest.approx(wanted, rel=1e-6)
