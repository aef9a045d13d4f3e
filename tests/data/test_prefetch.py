"""Prefetcher: the same items in the same order, bounded, errors where they are met, no thread left."""

import gc
import sys
import threading
import time
import traceback
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.data import prefetch
from fntrain.data.prefetch import Prefetcher
from fntrain.data.source import as_source


def eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = threading.active_count()
    yield
    assert eventually(lambda: threading.active_count() <= before), threading.enumerate()


class Counting:
    """Items 0, 1, 2, …, and how many were read."""

    def __init__(self, n=10**9):
        self.read, self.n = 0, n

    def __iter__(self):
        return self

    def __next__(self):
        if self.read == self.n:
            raise StopIteration
        self.read += 1
        return self.read - 1


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 300])
def test_it_gives_what_map_gives(n, size):
    with Prefetcher(iter(range(n)), lambda x: x * x, size) as items:
        assert list(items) == [x * x for x in range(n)]
        assert next(items, "end") == "end"  # and stays at its end


def test_no_more_is_read_ahead_than_asked_for():
    items = Counting()
    with Prefetcher(items, lambda x: x, 3) as batches:
        assert eventually(lambda: items.read == 3)
        time.sleep(0.05)
        assert items.read == 3
        assert next(batches) == 0
        assert eventually(lambda: items.read == 4)
        time.sleep(0.05)
        assert items.read == 4


def test_reading_overlaps_with_the_work():
    def slow():
        for i in range(10):
            time.sleep(0.02)
            yield i

    began = time.perf_counter()
    with Prefetcher(slow(), lambda x: x) as batches:
        for _ in batches:
            time.sleep(0.02)
    seconds = time.perf_counter() - began
    assert seconds < 0.34  # 0.22 if they overlap, 0.4 if one waits for the other


def test_the_time_waited_is_that_of_the_data():
    def slow(seconds):
        for i in range(5):
            time.sleep(seconds)
            yield i

    with Prefetcher(slow(0.03), lambda x: x) as starved:
        list(starved)
    assert 0.12 < starved.waited < 1
    with Prefetcher(slow(0), lambda x: x) as fed:
        for _ in fed:
            time.sleep(0.02)
    assert fed.waited < 0.05


class _Broken(Exception):
    pass


def read_fails():
    yield 0
    yield 1
    raise _Broken("in the file")


def test_an_error_of_the_data_comes_after_the_items_before_it():
    seen = []
    with Prefetcher(read_fails(), lambda x: x, 5) as batches:
        assert eventually(lambda: batches._shared.ended)  # the error is there long before it is its turn
        with pytest.raises(_Broken, match="in the file") as caught:
            seen.extend(batches)
    assert seen == [0, 1]
    assert "read_fails" in "".join(traceback.format_tb(caught.value.__traceback__))  # where it happened
    assert next(batches, "end") == "end"  # raised once


def test_an_error_in_put_too():
    def put(x):
        return 1 // (2 - x)

    with Prefetcher(iter(range(5)), put) as batches:
        assert [next(batches), next(batches)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(batches)


def test_even_an_exit_is_handed_over():
    def leaves():
        yield 0
        sys.exit(3)

    with Prefetcher(leaves(), lambda x: x) as batches, pytest.raises(SystemExit):
        list(batches)


def test_the_consumer_may_stop_early_or_fail():
    # The fixture sees whether a thread is left.
    with Prefetcher(Counting(), lambda x: x) as batches:
        next(batches)
    assert next(batches, "end") == "end"
    with pytest.raises(_Broken), Prefetcher(Counting(), lambda x: x) as batches:
        raise _Broken
    never_closed = Prefetcher(Counting(), lambda x: x)
    next(never_closed)
    del never_closed
    gc.collect()
    forgotten = weakref.ref(Prefetcher(Counting(), lambda x: x))
    gc.collect()
    assert forgotten() is None


def test_what_was_read_and_not_handed_out_is_given_back():
    items = Counting()
    batches = Prefetcher(items, lambda x: -x, 4)
    used = [next(batches) for _ in range(3)]
    assert eventually(lambda: items.read == 7)
    left = batches.close()
    assert used == [0, -1, -2]
    assert left == [3, 4, 5, 6]  # as they were read
    assert batches.close() == []


def test_nothing_is_lost_whenever_it_is_closed():
    for stop in range(40):
        items = Counting()
        batches = Prefetcher(items, lambda x: x, 2)
        used = [next(batches) for _ in range(stop % 5)]
        time.sleep(stop * 1e-5)  # at every moment of the thread's round
        left = batches.close()
        assert used + left == list(range(items.read))


def test_an_iterator_that_hangs_does_not_hang_the_loop(monkeypatch):
    monkeypatch.setattr(prefetch, "STOP_SECONDS", 0.05)
    release = threading.Event()

    def hangs():
        yield 0
        release.wait()
        yield 1

    batches = Prefetcher(hangs(), lambda x: x)
    assert next(batches) == 0
    with pytest.warns(UserWarning, match="has not given its next item"):
        batches.close()
    release.set()


def test_the_loops_data_reaches_the_device_under_a_transfer_guard():
    x, y = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32), np.arange(50)
    source = as_source((x, y), 16, shuffle=True, seed=3)
    step = jax.jit(lambda batch, weight: jnp.sum(batch[0] * weight[:, None]))
    jax.block_until_ready(step(*jax.device_put(source.peek())))
    total = []
    with (
        jax.transfer_guard("disallow"),
        Prefetcher(source.epoch(0, 0), jax.device_put) as batches,
    ):
        for batch, weight in batches:
            total.append(step(batch, weight))
    np.testing.assert_allclose(sum(map(float, total)), x.sum(), rtol=1e-4)


def test_put_runs_under_the_callers_settings():
    device = jax.devices()[3]
    with jax.default_device(device), Prefetcher(iter([np.zeros(2)]), jnp.asarray) as batches:
        assert next(batches).devices() == {device}
    with jax.enable_x64(True), Prefetcher(iter([np.zeros(2)]), jnp.asarray) as batches:
        assert next(batches).dtype == np.float64
    with Prefetcher(iter([np.zeros(2)]), jnp.asarray) as batches:
        assert next(batches).dtype == np.float32


def test_a_batch_that_was_handed_out_is_not_kept():
    class Item:
        pass

    items = (Item() for _ in range(3))
    with Prefetcher(items, lambda x: x, 1) as batches:
        first = next(batches)
        reference = weakref.ref(first)
        assert eventually(lambda: len(batches._shared.ready) == 1)
        del first
        gc.collect()
        assert reference() is None


@pytest.mark.parametrize("size", [0, -1, 1.5, None])
def test_bad_size(size):
    with pytest.raises(ft.ConfigError, match="`size` must be an integer >= 1"):
        Prefetcher(iter([]), lambda x: x, size)
