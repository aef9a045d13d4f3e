"""A batch over several devices is the whole batch: the same numbers, one program, shardings that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

import fntrain as ft

# Small dyadic rationals: every sum is exact in float32 in any order, so four devices must give the very bits.
RNG = np.random.default_rng(0)
X = RNG.integers(-4, 5, (16, 8)).astype(np.float32) / 4
Y = RNG.integers(-8, 9, (16, 4)).astype(np.float32) / 4
W = RNG.integers(-4, 5, (8, 4)).astype(np.float32) / 4
WEIGHT = np.array([1, 2, 0, 0.5, 1, 1, 0.25, 0.25, 0, 0, 4, 2, 1, 1, 1, 1], np.float32)  # sums to 16
TRACES = []


def linear_loss(params, batch, ctx):
    TRACES.append(None)
    prediction = batch["x"] @ params["w"]
    loss = ft.losses.mse(prediction, batch["y"])
    return loss.with_outputs(logits=prediction, labels=jnp.argmax(batch["y"], axis=-1))


METRICS = {"accuracy": ft.metrics.accuracy(), "confusion": ft.metrics.confusion_matrix(4)}
TASK = ft.Task(linear_loss, ft.optimizers.sgd(0.5), metrics=METRICS)


def oracle(x, y, weight):
    """Loss and parameters after one step of SGD, in float64; four outputs, so a mean over four."""
    r = x.astype(np.float64) @ W - y
    loss = (weight * (r**2).mean(1)).sum() / weight.sum()
    return loss, W - 0.5 * x.T @ (weight[:, None] * 2 * r / 4) / weight.sum()


def mesh_of(data, model=1):
    return ft.sharding.mesh(jax.devices()[: data * model], data=data, model=model)


def step(task, state, batch, weight):
    state, metrics = ft.train_step(task, state, batch, weight)
    return state, ft.compute_metrics(task, metrics)


def test_four_devices_give_the_whole_batchs_bits():
    loss, w = oracle(X, Y, WEIGHT)
    whole, values = step(TASK, ft.init_state(TASK, {"w": W}), {"x": X, "y": Y}, WEIGHT)
    mesh = mesh_of(4)
    batch, weight = ft.sharding.shard_batch({"x": X, "y": Y}, mesh, WEIGHT)
    assert batch["x"].sharding.shard_shape(batch["x"].shape) == (4, 8)
    for n in (1, 2):
        task = ft.Task(linear_loss, TASK.tx, metrics=METRICS, microbatches=n)
        state, sharded = step(task, ft.init_state(task, {"w": W}, mesh=mesh), batch, weight)
        np.testing.assert_array_equal(state.params["w"], whole.params["w"])
        np.testing.assert_array_equal(state.params["w"], w.astype(np.float32))
        assert float(sharded["loss"]) == float(values["loss"]) == np.float32(loss)
        for name in METRICS:
            np.testing.assert_array_equal(sharded[name], values[name], err_msg=name)
    assert 0 < float(values["accuracy"]) < 1
    assert (
        np.trace(np.asarray(values["confusion"]))
        == (np.argmax(X @ W, 1) == np.argmax(Y, 1))[WEIGHT > 0].sum()
    )


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("named", [False, True], ids=["xla sums", "named axis"])
def test_windows_of_micro_batches_of_chunks_on_any_number_of_devices(n, named):
    # Two batches of three rows each more than a device has, in micro-batches, close one window of MultiSteps: the
    # same bits as one step on all of it. The weights of the two sum to 32, so that every division is exact.
    x, y = np.stack([X[:13], X[3:]]), np.stack([Y[:13], Y[3:]])
    weight = np.ones((2, 13), np.float32)
    weight[:, :3] = 2
    loss, w = oracle(x.reshape(-1, 8), y.reshape(-1, 4), weight.reshape(-1))
    tx = ft.MultiSteps(ft.optimizers.sgd(0.5), 2)
    task = ft.Task(linear_loss, tx, metrics=METRICS, microbatches=4, axis_name="data" if named else None)
    mesh = mesh_of(n)
    state = ft.init_state(task, {"w": W}, mesh=mesh)
    pairs = [ft.sharding.shard_batch({"x": a, "y": b}, mesh, c) for a, b, c in zip(x, y, weight)]
    batches, weights = jax.tree.map(lambda *rows: jnp.stack(rows), *pairs)
    state, metrics = ft.train_steps(task, state, batches, weights)
    values = ft.compute_metrics(task, metrics)
    np.testing.assert_array_equal(state.params["w"], w.astype(np.float32))
    assert float(values["loss"]) == np.float32(loss)
    right = np.argmax(x @ W, -1) == np.argmax(y, -1)
    assert np.trace(values["confusion"]) == right.sum()
    np.testing.assert_allclose(values["accuracy"], right.mean(), rtol=1e-7)  # it counts rows


def test_a_specimen_that_averages_per_device_is_rejected():
    # Each device divides by its own weight: the mean of means that the comparison above must catch.
    mesh = mesh_of(4)

    def mean_of_means(x, y, weight):
        r = x @ jnp.asarray(W) - y
        return jax.lax.pmean(jnp.sum(weight * jnp.mean(r**2, 1)) / jnp.sum(weight), "data")

    f = jax.shard_map(mean_of_means, mesh=mesh, in_specs=(P("data"),) * 3, out_specs=P())
    assert abs(float(f(X, Y, WEIGHT)) - oracle(X, Y, WEIGHT)[0]) > 1e-3


def test_random_data_to_1e6():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(16, 8)).astype(np.float32), rng.normal(size=(16, 4)).astype(np.float32)
    weight = rng.random(16).astype(np.float32)
    mesh = mesh_of(4)
    batch, sharded_weight = ft.sharding.shard_batch({"x": x, "y": y}, mesh, weight)
    state, values = step(TASK, ft.init_state(TASK, {"w": W}, mesh=mesh), batch, sharded_weight)
    loss, w = oracle(x, y, weight.astype(np.float64))
    np.testing.assert_allclose(values["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "rules", [[("w", P("data", "model"))], ft.sharding.fsdp(min_size=1)], ids=["rules", "fsdp"]
)
def test_data_and_model_axes_keep_shardings_and_compile_once(rules):
    tx = ft.chain(ft.clip_by_norm(100.0), ft.optimizers.sgd(0.5, momentum=0.5))
    task = ft.Task(linear_loss, tx, metrics=METRICS)
    mesh = mesh_of(4, 2)
    state = ft.init_state(task, {"w": W}, mesh=mesh, rules=rules)
    wanted = state.params["w"].sharding
    assert not wanted.is_fully_replicated
    before = jax.tree.map(lambda a: a.sharding, state)
    batch, weight = ft.sharding.shard_batch({"x": X, "y": Y}, mesh, WEIGHT)
    traces = []
    with jax.log_compiles(False):
        for _ in range(3):
            state, metrics = ft.train_step(task, state, batch, weight)
            traces.append(len(TRACES))
            after = jax.tree.map(lambda a: a.sharding, state)
            jax.tree.map(lambda a, b, x: assert_same_sharding(a, b, x.ndim), before, after, state)
    assert traces[0] == traces[1] == traces[2]
    alone = ft.init_state(task, {"w": W})
    for _ in range(3):
        alone, alone_metrics = ft.train_step(task, alone, {"x": X, "y": Y}, WEIGHT)
    np.testing.assert_allclose(state.params["w"], alone.params["w"], rtol=1e-6, atol=1e-6)
    a, b = ft.compute_metrics(task, metrics), ft.compute_metrics(task, alone_metrics)
    for name in b:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)


def assert_same_sharding(a, b, ndim):
    assert a.is_equivalent_to(b, ndim), (a, b)


def test_no_recompile_on_the_second_step(caplog):
    # Counted by JAX itself: a sharding that changes in a step would compile the same trace again.
    mesh = mesh_of(4, 2)
    task = ft.Task(linear_loss, ft.optimizers.adamw(0.1))
    state = ft.init_state(task, {"w": W}, mesh=mesh, rules=[("w", P(None, "model"))])
    batch, weight = ft.sharding.shard_batch({"x": X, "y": Y}, mesh, WEIGHT)

    def compiles(state):
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level("WARNING"):
            state, _ = ft.train_step(task, state, batch, weight)
        return state, [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]

    state, first = compiles(state)
    assert len(first) >= 1  # the counter counts
    for _ in range(2):
        state, again = compiles(state)
        assert again == []


def test_shard_batch_pads_with_weight_zero():
    mesh = mesh_of(4)
    batch, weight = ft.sharding.shard_batch({"x": X[:13], "y": Y[:13]}, mesh)
    assert batch["x"].shape == (16, 8)
    np.testing.assert_array_equal(weight, [1] * 13 + [0] * 3)
    np.testing.assert_array_equal(batch["x"][:13], X[:13])
    assert weight.dtype == jnp.float32
    assert batch["x"].sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 2)
    state, values = step(TASK, ft.init_state(TASK, {"w": W}, mesh=mesh), batch, weight)
    loss, w = oracle(X[:13], Y[:13], np.ones(13))
    np.testing.assert_allclose(values["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-6, atol=1e-6)
    # The caller's own weights are kept, and one that divides is not padded.
    _, weight = ft.sharding.shard_batch({"x": X[:6]}, mesh, WEIGHT[:6])
    np.testing.assert_array_equal(weight, [*WEIGHT[:6], 0, 0])
    batch, weight = ft.sharding.shard_batch({"x": X[:8]}, mesh)
    assert batch["x"].shape == (8, 8)
    np.testing.assert_array_equal(weight, np.ones(8))
    # Fewer rows than devices.
    batch, weight = ft.sharding.shard_batch({"x": X[:1]}, mesh)
    np.testing.assert_array_equal(weight, [1, 0, 0, 0])


def test_shard_batch_refuses_what_does_not_fit():
    mesh = mesh_of(4)
    with pytest.raises(ft.DataError):
        ft.sharding.shard_batch({"x": X, "y": Y[:3]}, mesh)
    with pytest.raises(ft.DataError, match="`weight`"):
        ft.sharding.shard_batch({"x": X}, mesh, np.ones(3, np.float32))


def test_mesh_sizes_are_checked():
    assert dict(ft.sharding.mesh(data=-1, model=2).shape) == {"data": 4, "model": 2}
    assert dict(ft.sharding.mesh().shape) == {"data": 8, "model": 1}
    for axes in ({"data": 3}, {"data": -1, "model": -1}, {"data": 0}, {"data": -1, "model": 3}):
        with pytest.raises(ft.ConfigError):
            ft.sharding.mesh(**axes)
    with pytest.raises(
        ft.ConfigError, match=r"8 devices at hand, got 16: `data=-1`.*jax_num_cpu_devices', 16"
    ):
        ft.sharding.mesh(data=16)
    with pytest.raises(ft.ConfigError, match=r"8 devices at hand, got 6: `devices=jax.devices\(\)\[:6\]`"):
        ft.sharding.mesh(data=-1, model=3)


@pytest.mark.parametrize("named", [False, True], ids=["xla sums", "named axis"])
def test_fit_and_evaluate_on_a_mesh_with_a_ragged_tail(named):
    mesh = mesh_of(4)
    sharded, alone = (ft.init_state(TASK, {"w": W / 4}, mesh=m) for m in (mesh, None))
    kwargs = dict(epochs=2, batch_size=6, seed=1, progress=False, validation_data={"x": X[:7], "y": Y[:7]})
    task = ft.Task(linear_loss, ft.optimizers.sgd(0.0625), metrics=METRICS)
    options = dict(microbatches=2, axis_name="data") if named else {}
    on_mesh = ft.Task(linear_loss, ft.optimizers.sgd(0.0625), metrics=METRICS, **options)
    a = ft.fit(on_mesh, sharded, {"x": X, "y": Y}, **kwargs)
    b = ft.fit(task, alone, {"x": X, "y": Y}, **kwargs)
    np.testing.assert_allclose(a.state.params["w"], b.state.params["w"], rtol=1e-6, atol=1e-6)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(a.history[name], b.history[name], rtol=1e-6, err_msg=name)
    assert a.state.params["w"].sharding.is_equivalent_to(NamedSharding(mesh, P()), 2)


def test_the_norm_and_the_clips_work_inside_shard_map():
    """Each shard its own, the branch for what overflows included; against one shard after the other."""
    mesh = ft.sharding.mesh(data=8)
    rng = np.random.default_rng(0)
    x = {
        "a": rng.normal(size=(16, 3)).astype(np.float32),
        "b": rng.normal(size=(8, 300, 70)).astype(np.float32),
    }
    x["b"][3] *= 1e25
    split = jax.tree.map(lambda _: P("data"), x)

    def each(f, out):
        return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(split,), out_specs=out))(x)

    parts = [jax.tree.map(lambda a, i=i: a.reshape(8, -1, *a.shape[1:])[i], x) for i in range(8)]
    norms = [np.sqrt(sum(np.sum(v.astype(np.float64) ** 2) for v in part.values())) for part in parts]
    np.testing.assert_allclose(each(lambda g: ft.tree.norm(g)[None], P("data")), norms, rtol=1e-6)
    clip = ft.clip_by_norm(1.0)
    got = each(lambda g: clip.update(g, clip.init(g))[0], split)
    for name in x:
        want = np.concatenate([part[name] / max(1.0, norm) for part, norm in zip(parts, norms)])
        np.testing.assert_allclose(got[name], want, rtol=2e-6)
