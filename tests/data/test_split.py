"""split: exact sizes, disjoint and complete, a function of the seed, class shares to within one row."""

import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.data.split import split


@pytest.mark.parametrize(
    ("rows", "fraction", "size"), [(10, 0.8, 8), (7, 0.5, 4), (1797, 0.9, 1617), (3, 0.3, 1), (1000, 1e-3, 1)]
)
def test_sizes_are_exact_and_every_row_is_in_one_part(rows, fraction, size):
    first, second = split(np.arange(rows), fraction, seed=3)
    assert len(first) == size
    assert len(first) + len(second) == rows
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(rows))
    assert np.all(np.diff(first) > 0)  # rows keep their order
    assert np.all(np.diff(second) > 0)


def test_rows_of_a_tree_stay_together():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    data = {"x": x, "pair": (np.arange(50), jnp.arange(50) * 2), "none": None}
    for part in split(data, 0.6):
        index = part["pair"][0]
        np.testing.assert_array_equal(part["x"], x[index])
        np.testing.assert_array_equal(part["pair"][1], index * 2)
        assert part["none"] is None
        assert all(isinstance(leaf, np.ndarray) for leaf in (part["x"], *part["pair"]))
        assert part["x"].dtype == np.float32


def test_which_rows_is_a_function_of_the_seed_alone():
    data = np.arange(100)
    a, b = split(data, 0.5, seed=1), split(data * 1.0, 0.5, seed=1)
    np.testing.assert_array_equal(a[0], b[0])
    firsts = {tuple(split(data, 0.5, seed=seed)[0].tolist()) for seed in range(8)}
    assert len(firsts) == 8
    assert tuple(range(50)) not in firsts
    # Another stream than that of any epoch: the first part is no epoch's first half.
    for seed in range(3):
        order = ft.data_loader(data, 50, seed=seed).order(0)
        assert set(split(data, 0.5, seed=seed)[0]) != set(order[:50])


def test_which_rows_does_not_change_between_versions():
    # Written down once: a change here makes every run's validation set another one.
    assert split(np.arange(12), 0.5, seed=7)[0].tolist() == GOLDEN


GOLDEN = [0, 2, 8, 9, 10, 11]


def test_every_row_is_as_likely_as_any_other():
    hits = np.zeros(20)
    for seed in range(600):
        hits[split(np.arange(20), 0.3, seed=seed)[0]] += 1
    # Binomial(600, 0.3) has mean 180 and standard deviation 11.2; five of them fail once in 10^5 runs.
    assert np.all(np.abs(hits - 180) < 56)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.77])
def test_stratified_parts_keep_the_share_of_each_class(fraction):
    rng = np.random.default_rng(4)
    labels = rng.choice(["rare", "some", "most"], p=[0.02, 0.2, 0.78], size=500)
    labels[0] = "once"
    first, second = split({"y": labels.copy(), "i": np.arange(500)}, fraction, seed=2, stratify=labels)
    assert len(first["i"]) == round(fraction * 500)
    assert sorted([*first["i"].tolist(), *second["i"].tolist()]) == list(range(500))
    for name in np.unique(labels):
        count = (labels == name).sum()
        assert abs((first["y"] == name).sum() - fraction * count) < 1, name


def test_a_plain_split_does_not_keep_the_shares():
    # What the check above would catch: without labels some seed is off by more than a row.
    labels = np.repeat([0, 1, 2, 3], 25)
    worst = max(abs((split(labels, 0.5, seed=s)[0] == k).sum() - 12.5) for s in range(20) for k in range(4))
    assert worst > 1


def test_stratified_rows_differ_by_seed():
    labels = np.repeat([0, 1], 20)
    parts = {tuple(split(np.arange(40), 0.5, seed=s, stratify=labels)[0].tolist()) for s in range(6)}
    assert len(parts) == 6


def test_a_memory_mapped_file_is_read_by_rows(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(40).reshape(20, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    first, second = split(mapped, 0.5)
    assert sorted(np.concatenate([first, second])[:, 0].tolist()) == list(range(0, 40, 2))
    assert not isinstance(first, np.memmap)  # a copy, usable after the file is gone


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            dict(data=np.arange(4), fraction=0.0),
            ft.ConfigError,
            "`fraction` must be a finite number > 0 and < 1",
        ),
        (dict(data=np.arange(4), fraction=1), ft.ConfigError, "`fraction`"),
        (dict(data=np.arange(4), fraction="half"), ft.ConfigError, "`fraction`"),
        (dict(data=np.arange(4), fraction=0.5, seed=-1), ft.ConfigError, "`seed`"),
        (dict(data=np.arange(4), fraction=0.1), ft.DataError, "leaves 0 and 4: no part may be empty"),
        (dict(data=np.arange(4), fraction=0.9), ft.DataError, "leaves 4 and 0"),
        (dict(data=np.zeros((0, 2)), fraction=0.5), ft.DataError, "no part may be empty"),
        (
            dict(data=[np.arange(4)], fraction=0.5),
            ft.DataError,
            "`data` must be an array, or a tuple or dict",
        ),
        (dict(data=iter([1, 2]), fraction=0.5), ft.DataError, "holds batches"),
        (dict(data=(np.arange(4), np.arange(5)), fraction=0.5), ft.DataError, "disagree on axis 0"),
        (
            dict(data={"x": np.arange(4), "n": np.float32(1)}, fraction=0.5),
            ft.DataError,
            "`n` must have a leading",
        ),
        (dict(data=np.arange(4), fraction=0.5, stratify=[0, 1]), ft.DataError, r"`stratify` .* shape \[4\]"),
        (dict(data=np.arange(4), fraction=0.5, stratify=np.eye(4)), ft.DataError, "`stratify`"),
        (dict(data=np.arange(4), fraction=0.5, stratify=[0.5, 1.0, 2.0, 3.0]), ft.DataError, "float64"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        split(**arguments)
