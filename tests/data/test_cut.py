"""How an epoch is cut into batches, against a walk over its examples one by one; every example is in one of them."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest

import fntrain as ft
from fntrain.data import cut as cut_lib
from fntrain.data.cut import Cut, Stage, going_on, place_of, sizes, stages
from fntrain.sharding.place import place

LONG = [(rows, drop_last, case) for rows in (12, 13, 50) for drop_last in (False, True) for case in range(4)]
CASES = [
    (Stage(0, 0, 4),),
    (Stage(0, 0, 3), Stage(1, 0, 5), Stage(3, 0, 8)),
    (Stage(0, 0, 2), Stage(0, 5, 4), Stage(2, 7, 3), Stage(2, 11, 1)),
    (Stage(0, 0, 6), Stage(1, 3, 2), Stage(1, 4, 10), Stage(4, 1, 7)),
]


def walked(rows, stages, drop_last, epochs):
    """`[epoch][batch]` as `(first example, size)`: each batch has the size of the last stage that has begun."""
    found = []
    for epoch in range(epochs):
        batches, example = [], 0
        while example < rows:
            size = [s.size for s in stages if s.epoch < epoch or (s.epoch == epoch and s.example <= example)][
                -1
            ]
            if not (drop_last and example + size > rows):
                batches.append((example, size))
            example += size
        found.append(batches)
    return found


@pytest.mark.parametrize(("rows", "drop_last", "case"), LONG)
def test_a_cut_is_what_walking_over_the_examples_finds(rows, drop_last, case):
    cut, want = Cut(rows, CASES[case], drop_last), walked(rows, CASES[case], drop_last, 7)
    for epoch, batches in enumerate(want):
        assert cut.length(epoch) == len(batches)
        assert cut.batches(epoch) == sum(map(len, want[:epoch]))
        for index, (start, size) in enumerate(batches):
            found = cut.at(epoch, index)
            assert (found.start, found.size, cut.example(epoch, index)) == (start, size, start)
            alike = list(itertools.takewhile(lambda b: b[1] == size, batches[index:]))
            whole = [b for b in alike if sum(b) <= rows]
            # One stage may begin with the size of the one before: then they are two stretches.
            assert (found.count, found.whole) == (len(alike), len(whole))
    every = list(itertools.chain(*want))
    for number in range(len(every) + 1):
        assert +cut.sizes(number) == Counter(size for _, size in every[:number])
    assert cut.has_tail == any(start + size > rows for start, size in every)
    assert cut.even == (case == 0)
    sizes = [[size for _, size in batches] for batches in want]
    assert cut.longest == max(len(list(same)) for b in sizes for _, same in itertools.groupby(b))


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (32, 32),
        (np.int64(8), 8),
        ({0: 32}, 32),
        ({0: 32, 2: 32, 5: 64}, {0: 32, 5: 64}),
        ({3: 64, 0.0: 32, 6.5: 128}, {0: 32, 3: 64, 6.5: 128}),
    ],
)
def test_sizes_are_kept_in_their_shortest_form(given, want):
    assert sizes(given) == want
    assert cut_lib.from_json(cut_lib.as_json(sizes(given))) == want


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (0, "must be an integer >= 1, got 0"),
        (32.0, "write `batch_size=32`"),
        ({}, "has to begin at 0"),
        ({1: 32}, r"has to begin at 0, got \{1: 32\}"),
        ({0: 32, -1: 64}, "got -1: 64"),
        ({0: 32, "3": 64}, "got '3': 64"),
        ({0: 32, 3: 0}, "got 3: 0"),
        ({0: 32, 3: 64.5}, "got 3: 64.5"),
        ({0: 32, float("nan"): 64}, "got nan: 64"),
        ([32, 64], "must be an integer >= 1"),
    ],
)
def test_other_sizes_are_refused_by_name(given, said):
    with pytest.raises(ft.ConfigError, match=f"`batch_size`.*{said}"):
        sizes(given)


def test_a_fraction_of_an_epoch_is_the_example_next_to_it():
    assert stages({0: 4, 0.5: 8, 2.07: 16}, 100) == ((0, 0, 4), (0, 50, 8), (2, 7, 16))
    assert stages({0: 4, 1.999: 8}, 100) == ((0, 0, 4), (2, 0, 8))
    assert cut_lib.in_words({0: 4, 1: 8, 2.5: 16}) == "4, 8 after 1 epoch, 16 after 2.5 epochs"


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("other", [{0: 5}, {0: 16}, {0: 3, 1: 6}, {0: 2, 0.6: 7}])
def test_cut_otherwise_from_any_batch_on_every_example_comes_once(drop_last, other):
    rows, before = 40, (Stage(0, 0, 6), Stage(1, 0, 4))
    old, other = Cut(rows, before, drop_last), stages(sizes(other), rows)
    for epoch, index in [(e, i) for e in range(2) for i in range(old.length(e) + 1)]:
        example = old.example(epoch, index)
        new = Cut(rows, going_on(before, other, epoch, example), drop_last)
        for e in range(4):
            seen = [n for i in range(new.length(e)) for n in range(rows)[examples(new, e, i)]]
            assert seen == list(range(len(seen)))  # in order, each once
            size = [s.size for s in new.stages if s[:2] <= (e, len(seen))][-1]
            assert rows - len(seen) < (size if drop_last else 1)  # what is left is no whole batch
        for i in range(index):  # what is behind stays as it was
            assert new.at(epoch, i)[:3] == old.at(epoch, i)[:3]
        if index < old.length(epoch):
            assert new.example(epoch, index) == example


def examples(cut, epoch, index):
    begun = cut.at(epoch, index)
    return slice(begun.start, begun.start + begun.size)


def test_to_count_batches_would_see_examples_twice_or_never():
    """The broken specimen: batch 3 of 6 rows is not batch 3 of 4, nor of 8."""
    for size in (4, 8):
        seen = [n for i in range(3) for n in range(6 * i, 6 * i + 6)]
        seen += [n for i in range(3, -(-40 // size)) for n in range(40)[size * i : size * i + size]]
        assert sorted(seen) != list(range(40))


def test_the_same_sizes_change_nothing_and_a_history_is_kept():
    once = going_on((Stage(0, 0, 8),), (Stage(0, 0, 16),), 1, 24)
    assert once == ((0, 0, 8), (1, 24, 16))
    assert going_on(once, (Stage(0, 0, 16),), 2, 16) == once
    assert going_on(once, (Stage(0, 0, 8), Stage(3, 0, 4)), 1, 24) == ((0, 0, 8), (3, 0, 4))


def test_a_place_of_the_first_versions_is_counted_in_batches():
    old = {"position": [1, 3], "identity": {"batch_size": 8}, "data_state": None}
    assert place_of(old) == (1, 24, ((0, 0, 8),))
    new = {"position": [1, 3], "data_state": {"example": 20, "cut": [[0, 0, 8], [1, 8, 6]]}}
    assert place_of(new) == (1, 20, ((0, 0, 8), (1, 8, 6)))


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_loader_grows(drop_last):
    loader = ft.data_loader(np.arange(20), {0: 4, 1: 8, 2.5: 16}, seed=1, drop_last=drop_last)
    shapes, seen = [], []
    for epoch in range(4):
        shapes.append(len(loader))
        pairs = list(loader)
        assert len(pairs) == shapes[-1]
        seen.append(np.concatenate([b[w > 0] for b, w in pairs]))
        plain = ft.data_loader(np.arange(20), 20, seed=1).seek(epoch)
        want = next(iter(plain))[0]
        np.testing.assert_array_equal(seen[-1], want[: len(seen[-1])])
    assert shapes == ([5, 2, 2, 1] if drop_last else [5, 3, 3, 2])  # 8, 8, 4; then 8, and 12 of a batch of 16
    assert [len(x) for x in seen] == ([20, 16, 16, 16] if drop_last else [20] * 4)
    batch, _ = next(iter(loader.seek(2, 1)))
    assert len(batch) == 8
    with pytest.raises(ft.ConfigError, match=r"at most [23], the batches of an epoch"):
        loader.seek(2, 4)
    with pytest.raises(ft.ConfigError, match="leaves nothing: 20 examples, `batch_size` 32"):
        ft.data_loader(np.arange(20), {0: 4, 1: 32}, drop_last=True)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_shared_by_any_number_it_is_the_same_batch_in_the_same_order(devices):
    """Each process makes the whole batch, and places the rows of its own devices: together they are the batch."""
    loader = ft.data_loader(np.arange(20), {0: 8, 1: 16}, seed=3)
    mesh = ft.sharding.mesh(jax.devices()[:devices], data=devices)
    for epoch, index in [(0, 1), (0, 2), (1, 0), (1, 1)]:
        batch, weight = loader.batch(epoch, index)
        placed = place(batch, weight, mesh)
        for whole, shared in zip((batch, weight), placed):
            parts = sorted(shared.addressable_shards, key=lambda s: s.index[0].start or 0)
            assert len(parts) == devices
            np.testing.assert_array_equal(np.concatenate([s.data for s in parts]), whole)
