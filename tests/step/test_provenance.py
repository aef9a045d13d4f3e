"""Provenance: a bad step is found where it is, and the leaf is the right one, injection after injection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P

import fntrain as ft
from fntrain.transforms import notes

RNG = np.random.default_rng(0)
LEAVES = ["layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel", "scale"]
B, K = 6, 6


@pytest.fixture(autouse=True)
def seeded():
    """Each test draws the same numbers whichever ran before it."""
    global RNG
    RNG = np.random.default_rng(0)


@jax.custom_vjp
def poisoned(x, spec):
    """The identity, whose backward pass spoils the first `spec[1]` entries of the gradient by kind `spec[2]`."""
    return x


def _backward(spec, g):
    bad = jnp.stack([jnp.float32(jnp.nan), jnp.float32(jnp.inf), jnp.float32(-jnp.inf)])[spec[2]]
    at = jnp.arange(g.size).reshape(g.shape) < spec[1]
    return jnp.where(at, bad.astype(g.dtype), g), np.zeros((3,), jax.dtypes.float0)


poisoned.defvjp(lambda x, spec: (x, spec), _backward)


def loss_fn(params, batch, ctx):
    which, count, kind = batch["poison"][0]  # the number of a leaf, or one that there is none of
    leaves, structure = jax.tree.flatten(params)
    spoiled = [
        poisoned(x, jnp.stack([which, jnp.where(which == i, count, 0), kind])) for i, x in enumerate(leaves)
    ]
    p = jax.tree.unflatten(structure, spoiled)
    first, second = p["layers"]
    h = jnp.tanh(batch["x"] @ first["kernel"] + first["bias"][None])
    out = (h @ second["kernel"] + second["bias"][None]) * p["scale"]
    return jnp.mean(out**2, axis=1) + batch["add"]  # what is added has no gradient


def params():
    rng = np.random.default_rng(1)
    layers = [
        {"kernel": rng.normal(size=(a, b)).astype(np.float32), "bias": rng.normal(size=b).astype(np.float32)}
        for a, b in ((4, 8), (8, 3))
    ]
    return {"layers": layers, "scale": np.float32(0.7)}


def good_batch():
    return {
        "x": RNG.normal(size=(B, 4)).astype(np.float32),
        "add": np.zeros(B, np.float32),
        "poison": np.full((B, 3), 99, np.int32),
    }


def inject(what, batch):
    """Spoil a batch, or say which parameter to spoil: `(batch, parameter, expected gradients, expected loss)`."""
    bad = [np.nan, np.inf, -np.inf][RNG.integers(3)]
    if what == "data":
        batch["x"][RNG.integers(B), RNG.integers(4)] = np.nan
        return None
    if what == "loss":
        batch["add"][RNG.integers(B)] = bad
        return {}
    which = int(RNG.integers(len(LEAVES)))
    size = jax.tree.leaves(params())[which].size
    count, kind = int(RNG.integers(1, size + 1)), int(RNG.integers(3))
    batch["poison"][:] = which, count, kind
    return {LEAVES[which]: (count, 0) if kind == 0 else (0, count)}


def by_hand(state, batch):
    """Counts of the gradient of the mean loss, by NumPy on plain `jax.grad`."""
    grads = jax.jit(jax.grad(lambda p: jnp.mean(loss_fn(p, batch, None))))(state.params)
    counts = {
        path: (int(np.isnan(g).sum()), int(np.isinf(g).sum()))
        for path, g in zip(LEAVES, map(np.asarray, jax.tree.leaves(grads)))
    }
    return {path: pair for path, pair in counts.items() if any(pair)}


def kind_of(x):
    return "NaN" if np.isnan(x) else "infinite" if np.isinf(x) else "finite"


TXS = {
    "skip_nonfinite": lambda: ft.skip_nonfinite(ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-3))),
    "around MultiSteps": lambda: ft.skip_nonfinite(ft.MultiSteps(ft.optimizers.adamw(1e-3), 3)),
    "dynamic_loss_scale": lambda: ft.dynamic_loss_scale(ft.optimizers.sgd(0.01), interval=3),
    "skip_spikes": lambda: ft.skip_spikes(ft.optimizers.sgd(1e-4), 1e6, 4),
}


@pytest.mark.parametrize("name", TXS)
def test_injections_into_a_scanned_chunk(name):
    task = ft.Task(loss_fn, TXS[name]())
    state = ft.init_state(task, params())
    weights = np.ones((K, B), np.float32)
    step = 0
    for round_ in range(54):  # the last step of a chunk is good, so that no two bad ones are neighbours
        at, what = int(RNG.integers(K - 1)), ["data", "loss", "gradient"][round_ % 3]
        batches = [good_batch() for _ in range(K)]
        expected = inject(what, batches[at])
        before = state
        if what == "data":
            expected = by_hand(before, batches[at])  # NaN wherever it comes by, whatever the parameters
            assert expected
        value = float(np.asarray(loss_fn(params(), batches[at], None)).mean())
        stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
        state, _ = ft.train_steps(task, state, stacked, weights)
        found = ft.bad_step(task, state)
        assert (found.step, found.loss) == (step + at, kind_of(value)), (round_, what)
        assert found.gradients == expected, (round_, what)
        assert found.parameters == {}
        assert found.loss_is_finite == (what == "gradient")
        step += K
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert int(state.step) == step


def test_injections_into_a_parameter_at_every_place_of_a_window():
    task = ft.Task(loss_fn, TXS["around MultiSteps"]())
    state = ft.init_state(task, params())
    clean = jax.tree.map(np.asarray, state.params)
    for i in range(36):
        for _ in range(i % 3 + 1):  # to another place of the window each time
            state, _ = ft.train_step(task, state, good_batch(), np.ones(B, np.float32))
        which = i % len(LEAVES)
        bad = np.inf if i % 2 and which >= 2 else np.nan  # the tanh of an infinite bias is a finite number
        leaves, structure = jax.tree.flatten(jax.tree.map(np.array, state.params))
        held = leaves[which].copy()
        leaves[which].reshape(-1)[-1] = bad
        step = int(state.step)
        spoiled = jax.device_put(jax.tree.unflatten(structure, leaves))
        state, _ = ft.train_step(task, state.replace(params=spoiled), good_batch(), np.ones(B, np.float32))
        found = ft.bad_step(task, state)
        assert found.step == step
        assert found.parameters == {LEAVES[which]: (1, 0) if np.isnan(bad) else (0, 1)}
        assert found.gradients
        leaves[which] = held
        state = state.replace(params=jax.device_put(jax.tree.unflatten(structure, leaves)))
    assert any(
        (np.asarray(a) != b).any() for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(clean))
    )


@pytest.mark.parametrize("place", range(3))
def test_inside_multisteps_the_window_is_named_with_the_right_leaf(place):
    tx = ft.MultiSteps(ft.skip_nonfinite(ft.optimizers.adamw(1e-3)), 3)
    task = ft.Task(loss_fn, tx)
    state = ft.init_state(task, params())
    for which in range(len(LEAVES)):
        window = [good_batch() for _ in range(6)]  # two windows, the second of them good
        window[place]["poison"][:] = which, 1, 0
        for batch in window:
            state, _ = ft.train_step(task, state, batch, np.ones(B, np.float32))
        found = ft.bad_step(task, state)
        assert found.step == 6 * which + 2  # the one that closed the window
        assert found.gradients == {LEAVES[which]: (1, 0)}
        assert found.loss == "finite"


def test_the_first_of_a_run_of_bad_steps_stays_until_a_new_one_begins():
    task = ft.Task(loss_fn, TXS["skip_nonfinite"]())
    state = ft.init_state(task, params())
    assert ft.bad_step(task, state) is None
    for i, bad in enumerate([0, 0, 1, 1, 0, 1, 0, 0]):
        batch = good_batch()
        batch["poison"][:] = (i % 5, 1, 0) if bad else 99
        state, metrics = ft.train_step(task, state, batch, np.ones(B, np.float32))
        assert (ft.bad_step(task, state) or ft.BadStep(-1, "", {}, {})).step == [-1, -1, 2, 2, 2, 5, 5, 5][i]
    assert set(ft.compute_metrics(task, metrics)) == {
        "loss", "skipped", "learning_rate", "grad_norm", "grad_norm_max", "clip_factor",
    }  # fmt: skip


def test_under_a_guard_that_sees_some_leaves_the_paths_are_theirs():
    inner = ft.skip_nonfinite(ft.optimizers.sgd(0.1))
    for tx in (
        ft.freeze(inner, "layers/0"),
        ft.by_path({"layers/1|scale": inner, ".*": ft.optimizers.sgd(0.1)}),
    ):
        task = ft.Task(loss_fn, tx)
        batch = good_batch()
        batch["poison"][:] = 3, 2, 0
        state, _ = ft.train_step(task, ft.init_state(task, params()), batch, np.ones(B, np.float32))
        assert ft.bad_step(task, state).gradients == {"layers/1/kernel": (2, 0)}


def test_a_spike_of_finite_numbers_is_no_bad_step():
    task = ft.Task(lambda p, b, ctx: b * p["w"], ft.skip_spikes(ft.optimizers.sgd(0.1), 2.0, 1))
    state = ft.init_state(task, {"w": jnp.ones(())})
    for x in (1.0, 100.0):
        state, metrics = ft.train_step(task, state, jnp.full((2,), x))
    assert float(ft.compute_metrics(task, metrics)["skipped"]) == 1
    assert ft.bad_step(task, state) is None


def test_the_words():
    found = ft.BadStep(812, "finite", {"layers/3/attention/kernel": (17, 0)}, {})
    assert str(found) == "step 812: gradient of `layers/3/attention/kernel` has 17 NaN; loss was finite"
    many = ft.BadStep(None, "NaN", {f"w{i}": (1, 2) for i in range(6)}, {"w0": (0, 1)})
    assert str(many) == (
        "step unknown: gradient of `w0` has 1 NaN and 2 infinite, `w1` has 1 NaN and 2 infinite, `w2` has 1 NaN "
        "and 2 infinite, `w3` has 1 NaN and 2 infinite, and 2 more; loss was NaN; the parameters were not finite "
        "before it: `w0` has 1 infinite"
    )


def test_without_a_guard_there_is_nothing_to_read():
    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1))
    with pytest.raises(ft.ConfigError, match=r"`Task\(loss_fn, skip_nonfinite\(tx\)\)`"):
        ft.bad_step(task, ft.init_state(task, params()))


def test_counts_of_leaves_of_every_size_and_dtype():
    """Small leaves go as one, large ones by blocks whose last one reaches back: neither may count twice."""
    leaves = [
        RNG.normal(size=s).astype(np.float32)
        for s in ((), (1,), (4096,), (4097,), (3, 5000), (1031, 7), (0, 3))
    ]
    for x in leaves:
        flat = x.reshape(-1)
        for bad in (np.nan, np.inf, -np.inf):
            flat[RNG.integers(0, max(x.size, 1), size=int(RNG.integers(0, 40)) if x.size else 0)] = bad
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        got = np.asarray(jax.jit(notes.counts)([jnp.asarray(x, dtype) for x in leaves]))
        want = [n for x in leaves for n in (np.isnan(x).sum(), np.isinf(x).sum())]
        assert got.tolist() == want


def test_a_loop_of_ones_own_without_a_step_number():
    tx = ft.skip_nonfinite(ft.optimizers.sgd(0.1))
    p = {"w": jnp.ones(3)}
    _, state = tx.update({"w": jnp.array([jnp.nan, 1.0, jnp.inf])}, tx.init(p))  # not even parameters
    task = ft.Task(loss_fn, tx)
    found = ft.bad_step(task, ft.init_state(task, p).replace(opt_state=state))
    assert found == ft.BadStep(None, "finite", {"w": (1, 1)}, {})


@pytest.mark.parametrize("axis_name", ["data", None])
def test_over_shards(axis_name):
    """With `axis_name` all shards skip together, and know; without it each is a run of its own."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    task = ft.Task(
        lambda p, b, ctx: jnp.log(b @ p["w"][0]) + jnp.sum(p["w"]) * 1e-6,
        ft.skip_nonfinite(ft.optimizers.adamw(1e-2)),
        axis_name=axis_name,
    )
    state = ft.init_state(task, {"w": np.full((3, 2000), 1e-3, np.float32)})  # a leaf that goes by blocks
    x = np.ones((8, 2000), np.float32)
    x[5] = np.nan  # of shard 2
    if axis_name:
        step = jax.shard_map(
            lambda s, b: ft.train_step(task, s, b), mesh=mesh, in_specs=(P(), P("data")), out_specs=P()
        )
        state, _ = jax.jit(step)(state, x)
        found = ft.bad_step(task, state)
        assert int(state.updates) == 0
    else:
        each = jax.tree.map(lambda x: jnp.stack([x] * 4), state)

        def step(s, b):
            s, _ = ft.train_step(task, jax.tree.map(lambda x: x[0], s), b)
            return jax.tree.map(lambda x: x[None], s)

        each = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P("data"),) * 2, out_specs=P("data")))(
            each, x
        )
        assert each.updates.tolist() == [1, 1, 0, 1]
        shards = [jax.tree.map(lambda x, i=i: x[i], each) for i in range(4)]
        assert [ft.bad_step(task, shard) is None for shard in shards] == [True, True, False, True]
        found = ft.bad_step(task, shards[2])
    assert found.gradients == {"w": (2000, 0)}
    assert found.loss == "NaN"
