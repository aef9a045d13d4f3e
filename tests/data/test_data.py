"""Batches: each example once, an order that is a function of (seed, epoch), seek, the tail, streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft


def epoch_of(loader):
    """The examples of one epoch in their order, without padding, and the weights."""
    batches, weights = zip(*loader)
    rows = np.concatenate([np.asarray(b)[np.asarray(w) > 0] for b, w in zip(batches, weights)])
    return rows.tolist(), np.stack(weights)


def assert_covers_once(rows, n):
    assert sorted(rows) == list(range(n))


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (3, 8), (1, 1), (100, 32)])
def test_every_example_once_and_a_padded_tail(n, size):
    loader = ft.data_loader(np.arange(n), size, seed=1)
    rows, weights = epoch_of(loader)
    assert_covers_once(rows, n)
    assert len(loader) == len(weights) == -(-n // size)
    assert weights.shape == (len(loader), size)  # every batch is whole, so that one program does
    assert weights.dtype == np.float32
    assert weights.sum() == n
    assert np.all(weights[:-1] == 1)
    # The tail's padding stands at its end.
    tail = n - size * (len(loader) - 1)
    np.testing.assert_array_equal(weights[-1], [1] * tail + [0] * (size - tail))


def test_the_coverage_check_rejects():
    with pytest.raises(AssertionError):
        assert_covers_once(
            np.random.default_rng(0).integers(0, 10, 10).tolist(), 10
        )  # drawn with replacement


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        loader = ft.data_loader(np.arange(50), 8, seed=seed)
        loader.seek(epoch, 0)
        return epoch_of(loader)[0]

    assert order(0, 0) == order(0, 0)
    orders = [order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len({tuple(o) for o in orders}) == 9  # (seed 1, epoch 0) is not (seed 0, epoch 1) either
    for rows in orders:
        assert_covers_once(rows, 50)
        assert rows != list(range(50))


def test_iterating_again_is_the_next_epoch():
    loader = ft.data_loader(np.arange(20), 8, seed=5)
    first, second = epoch_of(loader)[0], epoch_of(loader)[0]
    assert first != second
    loader.seek(1, 0)
    assert epoch_of(loader)[0] == second
    loader.seek(0, 0)
    assert epoch_of(loader)[0] == first


def test_the_order_does_not_depend_on_the_batch_size_or_the_data():
    a = epoch_of(ft.data_loader(np.arange(20), 8, seed=5))[0]
    b = epoch_of(ft.data_loader(np.arange(20), 3, seed=5))[0]
    c = epoch_of(ft.data_loader(np.arange(20) * 2.0, 8, seed=5))[0]
    assert a == b == [x / 2 for x in c]


def test_without_shuffle_the_order_is_that_of_the_data():
    loader = ft.data_loader(np.arange(10), 4, shuffle=False, seed=9)
    for _ in range(2):
        assert epoch_of(loader)[0] == list(range(10))


def test_seek_goes_anywhere():
    whole = ft.data_loader(np.arange(23), 4, seed=2)
    epochs = [[np.asarray(b).tolist() for b, _ in whole] for _ in range(3)]
    for epoch, index in [(2, 3), (0, 5), (1, 0), (1, 5)]:
        loader = ft.data_loader(np.arange(23), 4, seed=2)
        loader.seek(epoch, index)
        assert [np.asarray(b).tolist() for b, _ in loader] == epochs[epoch][index:]
    loader.seek(0, 6)  # an epoch's edge: nothing is left of it
    rest = list(loader)
    assert rest == [] or [np.asarray(b).tolist() for b, _ in rest] == epochs[1]


def test_seek_reads_nothing_and_batches_are_gathered_one_at_a_time(tmp_path):
    # A memory map of 1 GiB on a sparse file: reading it whole, or permuting it, would take seconds and memory.
    data = np.lib.format.open_memmap(tmp_path / "big.npy", mode="w+", dtype=np.float32, shape=(2**16, 2**12))
    loader = ft.data_loader({"x": data}, 8, seed=0)
    loader.seek(1000, 8000)
    batch, weight = next(iter(loader))
    assert batch["x"].shape == (8, 2**12)
    assert weight.sum() == 8


def test_no_row_is_read_before_it_is_asked_for():
    class Rows:
        read = ()

        def __len__(self):
            return 10

        def __getitem__(self, i):
            self.read = (*self.read, i)
            return {"x": np.float32(i)}

    rows = Rows()
    loader = ft.data_loader(rows, 4, shuffle=False)
    opened = rows.read  # what an example looks like
    batches = iter(loader)
    assert rows.read == opened
    assert len(opened) <= 1
    assert next(batches)[0]["x"].tolist() == [0, 1, 2, 3]
    assert set(rows.read) == {0, 1, 2, 3}


def test_drop_last():
    loader = ft.data_loader(np.arange(10), 4, seed=0, drop_last=True)
    rows, weights = epoch_of(loader)
    assert len(loader) == 2
    assert len(set(rows)) == 8
    assert np.all(weights == 1)
    # What is left out is another each epoch.
    left = {frozenset(range(10)) - frozenset(epoch_of(loader)[0]) for _ in range(6)}
    assert len(left) > 1
    with pytest.raises(ft.ConfigError, match="`batch_size`"):
        ft.data_loader(np.arange(3), 4, seed=0, drop_last=True)


def test_trees_of_arrays_stay_in_step():
    data = {"x": np.arange(20).reshape(10, 2), "y": (np.arange(10) * 2, jnp.arange(10, dtype=jnp.float32))}
    for batch, weight in ft.data_loader(data, 4, seed=3):
        keep = weight > 0
        assert jax.tree.structure(batch) == jax.tree.structure(data)
        np.testing.assert_array_equal(batch["x"][keep][:, 0] // 2, np.asarray(batch["y"][1])[keep])
        np.testing.assert_array_equal(batch["x"][keep][:, 0], np.asarray(batch["y"][0])[keep])
        assert batch["x"].dtype == data["x"].dtype
        np.testing.assert_array_equal(batch["x"][~keep], 0)


def test_the_data_is_not_changed_and_not_shared():
    data = np.arange(8.0)
    loader = ft.data_loader(data, 4, shuffle=False, seed=0)
    for batch, _ in loader:
        np.asarray(batch)[...] = -1
    np.testing.assert_array_equal(data, np.arange(8.0))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((0, 3)), ["`data`"]),
        ({}, ["`data`"]),
        ((), ["`data`"]),
        ({"x": np.zeros(4), "y": np.zeros(5)}, ["4", "5", "y"]),
        ({"x": np.zeros(4), "s": np.float32(1)}, ["s"]),
        ({"x": np.array(["a", "b"])}, ["x"]),
        ({"x": np.array([{}, {}], object)}, ["x"]),
    ],
    ids=["no rows", "empty dict", "empty tuple", "lengths", "scalar leaf", "strings", "objects"],
)
def test_bad_data(data, words):
    with pytest.raises(ft.DataError) as error:
        ft.data_loader(data, 2, seed=0)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "4", None])
def test_bad_batch_size(size):
    with pytest.raises(ft.ConfigError, match="`batch_size`"):
        ft.data_loader(np.arange(4), size, seed=0)


# --- streams, by way of fit ------------------------------------------------------------------------------------

TASK = ft.Task(lambda p, b, c: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.25))
BATCHES = [np.array([1, 2], np.float32), np.array([0.5, 1], np.float32), np.array([2, 2], np.float32)]


def fitted(data, **kwargs):
    state = ft.init_state(TASK, {"w": np.float32(0.5)})
    return ft.fit(TASK, state, data, progress=False, **kwargs)


def test_lists_loaders_and_functions_give_epochs():
    by_list = fitted(BATCHES, epochs=2)
    seen = []

    def epochs(epoch):
        seen.append(epoch)
        return iter(BATCHES)

    by_function = fitted(epochs, epochs=2)
    w = 0.5
    for batch in BATCHES * 2:
        w -= 0.25 * np.mean(2 * (batch * w - batch) * batch)
    for result in (by_list, by_function):
        assert int(result.state.step) == 6
        np.testing.assert_allclose(result.state.params["w"], w, rtol=1e-6)
    assert sorted(set(seen)) == [0, 1]
    rows = np.concatenate(BATCHES)
    by_loader = fitted(ft.data_loader(rows, 2, shuffle=False, seed=0), epochs=2)
    assert float(by_loader.state.params["w"]) == float(by_list.state.params["w"])


def test_a_loader_brings_its_weights():
    loader = ft.data_loader(np.arange(1, 6, dtype=np.float32), 4, shuffle=False, seed=0)
    result = fitted(loader, epochs=1)
    w = 0.5
    for batch in (np.arange(1, 5.0), np.array([5.0])):
        w -= 0.25 * np.mean(2 * (batch * w - batch) * batch)
    np.testing.assert_allclose(result.state.params["w"], w, rtol=1e-5)


def test_a_generator_is_consumed_batch_by_batch():
    result = fitted((b for b in BATCHES * 2), steps=6)
    assert float(result.state.params["w"]) == float(fitted(BATCHES, epochs=2).state.params["w"])
    read = []
    result = fitted((read.append(i) or b for i, b in enumerate(BATCHES)), steps=2)
    assert int(result.state.step) == 2


@pytest.mark.parametrize("n", [0, 4])
def test_a_generator_that_ends_early_says_at_which_step(n):
    batches = (BATCHES * 2)[:n]
    with pytest.raises(ft.DataError, match="step 4" if n else "empty"):
        fitted((b for b in batches), steps=6)


def test_a_function_may_return_a_loader():
    rows = np.arange(1, 6, dtype=np.float32)
    loader = ft.data_loader(rows, 4, shuffle=False, seed=0)
    result = fitted(lambda epoch: ft.data_loader(rows, 4, shuffle=False, seed=0), epochs=1)
    assert float(result.state.params["w"]) == float(fitted(loader, epochs=1).state.params["w"])
