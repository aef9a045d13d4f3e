"""Data that is on the device: the batches of the host's loader, bit for bit, and who may be put there."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import fntrain as ft
from fntrain._core.errors import ConfigError, DataError
from fntrain.data import order, source as data_lib
from fntrain.data.feed import Feed
from fntrain.data.position import Position
from fntrain.data.resident import Resident, resident

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(90, 5)).astype(np.float32), RNG.integers(0, 3, 90)  # int64, which becomes int32


def loss_fn(params, batch, ctx):
    x, y = batch
    noise = jax.random.normal(ctx.key, x.shape)
    logits = (x + 0.1 * noise) @ params["w"]
    return ft.losses.cross_entropy(logits, y).with_outputs(logits=logits, labels=y)


TASK = ft.Task(loss_fn, ft.optimizers.sgd(1e-2, momentum=0.9))
PARAMS = {"w": RNG.normal(size=(5, 3)).astype(np.float32)}


def start(mesh=None):
    return ft.init_state(TASK, PARAMS, mesh=mesh)


def feed_of(data=(X, Y), batch_size=8, mesh=None, shuffle=True):
    state = start(mesh)
    source = data_lib.as_source(data, batch_size, shuffle=shuffle, seed=3)
    return Feed(TASK, state, source, train=True, name="data"), state


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


# Nine rows a batch leave none over; eight a tail of two. On a mesh of eight, nine are padded to sixteen.
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [8, 9])
@pytest.mark.parametrize("shuffle", [True, False])
def test_its_batches_and_weights_are_those_of_the_host(devices, batch_size, shuffle):
    mesh = ft.sharding.mesh(data=8) if devices == 8 else None
    feed, state = feed_of(batch_size=batch_size, mesh=mesh, shuffle=shuffle)
    there = Resident(feed, state)
    for position, chunk in ((Position(0, 0), 4), (Position(2, 3), 1)):
        room = lambda done: chunk
        pairs = list(zip(feed.pieces(position, room), there.pieces(position, room), strict=True))
        assert len(pairs) > 2
        for host, rows in pairs:
            assert host[2:] == rows[2:]
            opened = there.opened(rows)
            on_device = jax.tree.map(jnp.asarray, (host.batch, host.weight))
            assert bits(on_device) == bits((opened.batch, opened.weight))
            if mesh is not None:
                assert opened.weight.sharding == on_device[1].sharding


def test_a_run_on_it_is_bitwise_the_run_on_the_host_resumes_within_an_epoch_included(tmp_path):
    arguments = dict(batch_size=8, steps_per_call=5, progress=False)
    seen = []

    class Reads:
        wants_batch, adds_logs, needs_every_step = True, False, False

        def on_step_end(self, ctx):
            batch, _weight, stacked = ctx.last_batch
            seen.append((ctx.step, stacked, batch[0].shape))

    want = ft.fit(TASK, start(), (X, Y), epochs=3, data_on_device=False, **arguments)
    straight = ft.fit(TASK, start(), (X, Y), epochs=3, data_on_device=True, callbacks=[Reads()], **arguments)
    assert seen[:3] == [(5, True, (5, 8, 5)), (10, True, (5, 8, 5)), (11, False, (8, 5))]
    halves = arguments | dict(run_dir=tmp_path / "run", data_on_device=True)
    ft.fit(TASK, start(), (X, Y), steps=17, **halves)  # inside the second epoch
    resumed = ft.fit(TASK, start(), (X, Y), epochs=3, resume=True, **halves)
    for other in (straight, resumed):
        assert bits(other.state) == bits(want.state)
        assert other.history.rows() == want.history.rows()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_too(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    want, got = (
        ft.fit(
            TASK,
            start(mesh),
            (X, Y),
            steps=3,  # one dispatch
            batch_size=12,
            steps_per_call=3,
            progress=False,
            data_on_device=on,
        )
        for on in (False, True)
    )
    assert bits(got.state) == bits(want.state)


@pytest.mark.parametrize("devices", [1, 8])
def test_validations_are_there_too_and_the_same(devices, monkeypatch):
    mesh = ft.sharding.mesh(data=8) if devices == 8 else None
    sets = dict(val=(X[:29], Y[:29]), list=[(X[:8], Y[:8]), (X[8:16], Y[8:16])])  # a tail of five; no arrays
    kinds = []
    pieces = Resident.pieces

    def seen(self, *given):
        kinds.append(self._loader.rows)
        return pieces(self, *given)

    monkeypatch.setattr(Resident, "pieces", seen)
    arguments = dict(
        epochs=2, batch_size=8, progress=False, evaluate_at="params", validation_data=ft.named(**sets)
    )
    host, there = (ft.fit(TASK, start(mesh), (X, Y), data_on_device=on, **arguments) for on in (False, True))
    assert there.history.rows() == host.history.rows()
    assert kinds == [90, 29, 90, 29]


def test_what_travels_is_a_place():
    """Twelve batches, the last of them padded, are one dispatch, which is sent where each begins."""
    feed, state = feed_of()
    there = Resident(feed, state)
    (piece,) = there.pieces(Position(0, 0), lambda done: 12 - done)
    host = [x for x in jax.tree.leaves((piece.batch, piece.weight)) if isinstance(x, np.ndarray)]
    assert [(x.dtype, x.shape) for x in host] == [(np.int32, (12,))]
    assert piece.steps == 12
    assert np.asarray(piece.weight).sum() == 90
    # Its order is formed there, once an epoch, and the weights are those of the epoch before.
    (again,) = there.pieces(Position(0, 0), lambda done: 12 - done)
    (later,) = there.pieces(Position(1, 0), lambda done: 12 - done)
    assert again.batch.order is piece.batch.order
    assert later.batch.order is not piece.batch.order
    assert later.weight is piece.weight


@pytest.mark.parametrize(
    ("seed", "epoch", "rows"),
    [(0, 0, 1), (0, 0, 4), (3, 7, 1797), (2**40 + 5, 1, 10_001), (2**128 - 1, 2**31, 6), (7, 123_456, 4096)],
)
def test_the_order_formed_on_a_device_is_that_of_the_host(seed, epoch, rows):
    """Against the one sentence that defines it, with NumPy's own generator."""
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(rows)
    want = np.argsort(words, kind="stable")
    np.testing.assert_array_equal(order.on_host(seed, epoch, rows), want)
    there = jax.jit(order.on_device, static_argnums=1)(order.round_keys(seed, epoch), rows)
    assert there.dtype == jnp.int32
    np.testing.assert_array_equal(there, want)


def test_words_that_are_equal_keep_their_order(monkeypatch):
    """As a stable sort has them; sixty-four bits do not meet in a test, so rounds that give nothing stand in."""
    monkeypatch.setattr(order, "_round", lambda x, key: jax.tree.map(jnp.zeros_like, x))
    np.testing.assert_array_equal(order.on_device(order.round_keys(0, 0), 9), np.arange(9))


def test_products_of_sixty_four_bits_carry():
    """Against integers of Python, at the edges of halves and quarters."""
    edges = [0, 1, 2**16 - 1, 2**16, 2**32 - 1, 2**32, 2**48 + 2**31, 2**63, 2**64 - 1]
    for constant in (*edges[1:], *order._MULTIPLIERS):
        for x in edges:
            parts = order._times(tuple(jnp.uint32(half) for half in divmod(x, 2**32)), constant)
            got = 0
            for word in jax.tree.leaves(parts):
                got = got * 2**32 + int(word)
            assert got == x * constant


def test_data_that_is_no_arrays_in_memory_is_refused_by_name(tmp_path):
    class Items:
        def __len__(self):
            return 9

        def __getitem__(self, i):
            return X[i], Y[i]

    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for data, why in (([(X, Y)], "made elsewhere"), (Items(), "examples"), ((mapped, Y), "memmap")):
        with pytest.raises(ConfigError, match=rf"`data_on_device=True`.*{why}"):
            ft.fit(TASK, start(), data, epochs=1, data_on_device=True, progress=False)
        assert resident(*feed_of(data), "auto") is None
    with pytest.raises(ConfigError, match="`data_on_device`"):
        ft.fit(TASK, start(), (X, Y), epochs=1, data_on_device="yes", progress=False)
    with pytest.raises(DataError, match=r"`data` leaf `1` holds"):
        Resident(*feed_of((X, np.where(np.arange(90) == 80, 2**40, Y))))


def test_left_to_us_it_is_there_on_one_accelerator_if_it_fits_a_quarter_of_what_is_free():
    feed, state = feed_of()
    assert resident(feed, state, "auto") is None  # this is a CPU
    held = 90 * ((5 + 1) * 4 + 28)  # and the order, while it is sorted

    def on(limit, used=0, platform="gpu"):
        device = types.SimpleNamespace(
            platform=platform, memory_stats=lambda: {"bytes_limit": limit, "bytes_in_use": used}
        )
        x = types.SimpleNamespace(devices=lambda: [device], committed=False)
        return resident(feed, {"x": x}, "auto")

    assert on(4 * held) is not None
    assert on(4 * held - 1) is None
    assert on(4 * held + 7, used=8) is None
    assert on(4 * held, platform="cpu") is None
