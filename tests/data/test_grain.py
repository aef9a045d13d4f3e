"""Grain pipelines as sources: epochs, tails, and a resume at every position."""

import itertools
import json
import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.data.position import Position

grain = pytest.importorskip("grain")

from fntrain.data.grain import EVERY, GrainSource, is_grain  # noqa: E402

ROWS, SIZE = 50, 4


def example(i, rng=None):
    return {"x": np.full(2, i, np.float32), "noise": rng.random() if rng else np.float64(0)}


def map_dataset():
    return grain.MapDataset.range(ROWS).seed(3).shuffle().random_map(example).batch(SIZE)


def iter_dataset():
    rows = grain.MapDataset.range(ROWS).seed(3).shuffle().to_iter_dataset()
    return rows.filter(lambda i: i % 10 != 0).random_map(example).batch(SIZE)  # of no length that is known


def loader(workers=0):
    sampler = grain.samplers.IndexSampler(
        ROWS, shard_options=grain.sharding.NoSharding(), shuffle=True, num_epochs=1, seed=5
    )
    return grain.DataLoader(
        data_source=grain.sources.RangeDataSource(0, ROWS, 1),
        sampler=sampler,
        operations=[grain.transforms.Batch(SIZE)],
        worker_count=workers,
    )


KINDS = {"MapDataset": map_dataset, "IterDataset": iter_dataset, "DataLoader": loader}


def rows_of(pairs):
    """What batches hold, without padding: one row of numbers an example."""
    out = []
    for batch, weight in pairs:
        assert {len(x) for x in jax.tree.leaves(batch)} == {SIZE}  # one program for all
        leaves = [np.asarray(x).reshape(SIZE, -1) for x in jax.tree.leaves(batch)]
        out.append(np.concatenate(leaves, axis=1)[weight > 0].tolist())
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_is_what_grain_gives(kind):
    source = GrainSource(KINDS[kind]())
    got = rows_of(source.epoch(0, 0))
    expected = [
        np.concatenate([np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(b)], 1).tolist()
        for b in KINDS[kind]()
    ]
    assert got == expected
    assert 0 < len(got[-1]) < SIZE or kind == "IterDataset"  # a tail, padded
    assert source.length == (13 if kind == "MapDataset" else None)


def test_each_example_once_an_epoch_and_a_new_order_each_epoch():
    source = GrainSource(map_dataset())
    epochs = [np.concatenate(rows_of(source.epoch(e, 0))) for e in range(3)]
    orders = [epoch[:, 1].tolist() for epoch in epochs]  # leaves are sorted: noise, then x
    assert all(sorted(order) == list(range(ROWS)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    # As Grain's own repetition, its random numbers included.
    repeated = [np.column_stack([batch["noise"], batch["x"]]) for batch in map_dataset().repeat(3)]
    np.testing.assert_array_equal(np.concatenate(epochs), np.concatenate(repeated))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ahead", [0, 3])
def test_a_resume_at_every_position_gives_the_rest(kind, ahead):
    whole = GrainSource(KINDS[kind]())
    whole.peek()
    expected = [rows_of(whole.epoch(e, 0)) for e in range(2)]
    source = GrainSource(KINDS[kind]())
    for epoch in range(2):
        for index in range(len(expected[epoch]) + 1):
            batches = source.epoch(epoch, 0)
            # `ahead` more are read than were used, as a prefetch does.
            list(itertools.islice(batches, index + ahead))
            state = json.loads(json.dumps(source.state(Position(epoch, index))))
            batches.close()
            resumed = GrainSource(KINDS[kind]())  # as in a new process
            resumed.restore(state)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert rows_of(resumed.epoch(epoch, index)) == expected[epoch][index:], (epoch, index)
        if epoch == 0 and kind != "MapDataset":
            assert rows_of(resumed.epoch(1, 0)) == expected[1]  # the state of epoch 0 is of no use in epoch 1


def test_the_saved_state_is_what_spares_reading(monkeypatch):
    read = []
    rows = (
        grain.MapDataset.range(200)
        .to_iter_dataset()
        .map(lambda i: read.append(i) or np.float32(i))
        .batch(SIZE)
    )
    source = GrainSource(rows)
    batches = source.epoch(0, 0)
    list(itertools.islice(batches, 43))
    state = source.state(Position(0, 43))
    assert state["index"] == 40
    read.clear()
    resumed = GrainSource(rows)
    resumed.restore(state)
    assert next(resumed.epoch(0, 43))[0].tolist() == [172, 173, 174, 175]
    assert len(read) <= (EVERY + 1) * SIZE
    # Without it all is read again, and said to be.
    with pytest.warns(UserWarning, match=r"no state of the Grain iterator .* batch 43 of epoch 1"):
        assert next(GrainSource(rows).epoch(0, 43))[0].tolist() == [172, 173, 174, 175]


def test_a_long_epoch_keeps_few_states():
    source = GrainSource(grain.MapDataset.range(4000).to_iter_dataset().batch(2))
    assert sum(1 for _ in source.epoch(0, 0)) == 2000
    assert len(source._states) <= 65
    assert source.state(Position(0, 3)) == {}  # long gone: a resume there reads again


def test_an_endless_dataset_is_one_epoch():
    source = GrainSource(map_dataset().repeat())
    assert source.length is None
    first = rows_of(itertools.islice(source.epoch(0, 0), 20))
    assert rows_of(itertools.islice(source.epoch(0, 15), 5)) == first[15:]


def test_peek_consumes_nothing():
    for make in KINDS.values():
        source = GrainSource(make())
        first, _ = source.peek()
        again, _ = next(source.epoch(0, 0))
        jax.tree.map(np.testing.assert_array_equal, first, again)


def test_no_thread_is_left():
    before = threading.active_count()
    for make in (map_dataset, iter_dataset):
        source = GrainSource(make())
        source.peek()
        list(source.epoch(0, 0))
        batches = source.epoch(0, 0)
        next(batches)
        batches.close()
    deadline = time.monotonic() + 10  # Grain's reading threads end a moment after they are told to
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_the_fingerprint_tells_pipelines_apart():
    def of(data):
        return json.dumps(GrainSource(data).fingerprint(), sort_keys=True)

    rows = grain.MapDataset.source(np.arange(ROWS)).seed(3)
    variants = [
        *(make() for make in KINDS.values()),
        rows.shuffle().batch(SIZE),
        rows.batch(SIZE),
        rows.shuffle().batch(SIZE + 1),
        rows.shuffle().batch(SIZE, drop_remainder=True),
        grain.MapDataset.source(np.arange(ROWS) + 1).seed(3).shuffle().batch(SIZE),
        grain.MapDataset.source(np.arange(ROWS)).seed(4).shuffle().batch(SIZE),
    ]
    prints = [of(data) for data in variants]
    assert len(set(prints)) == len(prints)
    assert [of(make()) for make in KINDS.values()] == prints[:3]  # and is the same in another process
    assert "0x" not in "".join(prints)


def test_a_fingerprint_of_unseeded_noise_does_not_refuse_its_own_resume():
    rng = np.random.default_rng()
    noisy = grain.MapDataset.range(8).map(lambda i: rng.random()).batch(2)
    assert GrainSource(noisy).fingerprint() == GrainSource(noisy).fingerprint()


def test_bad_pipelines():
    rows = grain.MapDataset.range(8)
    with pytest.raises(ft.DataError, match="gave no batch"):
        GrainSource(rows.to_iter_dataset().filter(lambda i: False).batch(2)).peek()
    with pytest.raises(ft.DataError, match="filter before batching"):
        list(GrainSource(rows.batch(2).filter(lambda b: b[0] != 4)).epoch(0, 0))
    with pytest.raises(ft.DataError, match="batch 1 of epoch 1 is unlike the first"):
        list(GrainSource(rows.map(lambda i: np.zeros(2 if i else 1)).map(lambda x: x[None])).epoch(0, 0))
    with pytest.raises(ft.DataError, match="leading axis"):
        GrainSource(rows).peek()  # not batched


def test_what_is_grain():
    assert all(is_grain(make()) for make in KINDS.values())
    assert not any(is_grain(x) for x in ([1], np.zeros(3), iter(map_dataset()), None))


TASK = ft.Task(
    lambda params, batch, ctx: ft.losses.mse(batch["x"] @ params["w"], batch["noise"].astype(jnp.float32)),
    ft.optimizers.sgd(1e-4, momentum=0.5),
)


@pytest.mark.parametrize(("kind", "prefetch"), [("MapDataset", 0), ("IterDataset", 0), ("IterDataset", 2)])
def test_a_run_stopped_anywhere_and_resumed_is_the_run(kind, prefetch, tmp_path):
    state = ft.init_state(TASK, {"w": np.zeros(2, np.float32)})

    def run(**options):
        return ft.fit(TASK, state, KINDS[kind](), progress=False, prefetch=prefetch, **options)

    straight = run(epochs=2)
    assert np.abs(straight.state.params["w"]).min() > 1e-3  # the order shows in the parameters
    per_epoch = straight.history["step"][0]
    for k in (1, 7, per_epoch - 1, per_epoch, per_epoch + 1, 2 * per_epoch - 1):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is read again from the beginning
            run(steps=k, run_dir=tmp_path / str(k))
            resumed = run(epochs=2, run_dir=tmp_path / str(k), resume=True)
        assert resumed.history["loss"] == straight.history["loss"], k
        np.testing.assert_array_equal(resumed.state.params["w"], straight.state.params["w"])


def test_a_resume_with_another_pipeline_is_refused(tmp_path):
    state = ft.init_state(TASK, {"w": np.zeros(2, np.float32)})
    ft.fit(TASK, state, map_dataset(), steps=3, progress=False, run_dir=tmp_path)
    other = grain.MapDataset.range(ROWS).seed(4).shuffle().random_map(example).batch(SIZE)
    with pytest.raises(ft.ConfigError, match="first_batch_crc32"):
        ft.fit(TASK, state, other, epochs=1, progress=False, run_dir=tmp_path, resume=True)
