"""Communication is counted, not guessed: what a compiled step moves between devices, from its own text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import fntrain as ft
from fntrain.tools.collectives import collectives

WIDTH, HIDDEN, LAYERS = 64, 256, 3
PARAMS = {"up": jnp.ones((LAYERS, WIDTH, HIDDEN)) / 64, "down": jnp.ones((LAYERS, HIDDEN, WIDTH)) / 256}
BYTES = 4 * 2 * LAYERS * WIDTH * HIDDEN
SCALARS = 64 * 4  # more scalars than any step here adds up
BATCH = {"x": jnp.ones((512, WIDTH)), "y": jnp.zeros((512, WIDTH))}


def residual_loss(params, batch, ctx):
    def layer(x, p):
        return x + jnp.tanh(x @ p["up"]) @ p["down"], None

    x, _ = jax.lax.scan(layer, batch["x"], params)
    return ft.losses.mse(x, batch["y"]).with_outputs(predictions=x, targets=batch["y"])


FSDP = ft.sharding.fsdp(min_size=1)


@functools.cache
def counted(rules=None, mesh=None, **options):
    task = ft.Task(residual_loss, ft.optimizers.adamw(1e-3), **options)
    mesh = mesh or ft.sharding.mesh(jax.devices()[:4], data=4)
    state = ft.init_state(task, PARAMS, mesh=mesh, rules=rules)
    return ft.tools.compile_report(task, state, BATCH, np.ones(512, np.float32))


def moved(report, *kinds):
    return sum(report.collectives[kind].bytes for kind in kinds if kind in report.collectives)


def test_data_parallel_moves_the_gradient_once():
    report = counted()
    assert set(report.collectives) == {"all-reduce"}
    assert BYTES <= moved(report, "all-reduce") <= BYTES + SCALARS


def test_micro_batches_move_the_gradient_once_where_the_task_names_the_axis():
    report = counted(microbatches=8, axis_name="data")
    assert set(report.collectives) == {"all-reduce"}
    assert BYTES <= moved(report, "all-reduce") <= BYTES + SCALARS
    # The counter sees what this saves: without the name, XLA on the CPU adds up every micro-batch over the devices.
    plain = counted(microbatches=8)
    assert moved(plain, "all-reduce") > 2 * BYTES
    assert set(plain.collectives) == {"all-reduce"}  # no row moves: the micro-batches are cut where they lie


def test_the_steps_are_the_same_either_way():
    rng = np.random.default_rng(0)
    batch = {k: rng.normal(size=(61, WIDTH)).astype(np.float32) for k in "xy"}
    mesh = ft.sharding.mesh(jax.devices()[:4], data=4)
    results = []
    for name in (None, "data"):
        task = ft.Task(
            residual_loss,
            ft.optimizers.sgd(0.1),
            {"mae": ft.metrics.mae()},
            microbatches=4,
            axis_name=name,
        )
        state = ft.init_state(task, PARAMS, mesh=mesh)
        placed = ft.sharding.shard_batch(batch, mesh)
        state, metrics = ft.train_step(task, state, *placed)
        evaluated = ft.eval_step(task, state, *placed)
        values = [ft.compute_metrics(task, m) for m in (metrics, evaluated)]
        results.append((state.params, values))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), *results)


def test_an_axis_that_is_nowhere_is_named():
    task = ft.Task(residual_loss, ft.optimizers.sgd(0.1), axis_name="data")
    with pytest.raises(ft.ConfigError, match=r"`axis_name`.*mesh="):
        ft.train_step(task, ft.init_state(task, PARAMS), BATCH)


def test_fsdp_gathers_each_parameter_twice_and_reduces_its_gradient_once():
    report = counted(rules=FSDP)
    # Forward and backward gather; XLA on the CPU has no reduce-scatter, and writes it as an all-reduce.
    assert moved(report, "all-gather") == 2 * BYTES
    assert BYTES <= moved(report, "all-reduce", "reduce-scatter") <= BYTES + SCALARS
    assert set(report.collectives) <= {"all-gather", "all-reduce", "reduce-scatter"}


def test_fsdp_holds_a_share():
    whole, share = counted(), counted(rules=FSDP)
    held = 3 * BYTES  # parameters and Adam's two moments
    batch = 2 * 4 * 128 * WIDTH + 4 * 128
    assert held <= whole.argument_bytes - batch <= held + SCALARS
    assert held // 4 <= share.argument_bytes - batch <= held // 4 + SCALARS


def test_tensor_parallel_moves_activations_and_no_parameter():
    mesh = ft.sharding.mesh(data=2, model=4)
    rules = (("up", P(None, None, "model")), ("down", P(None, "model")))
    report = counted(mesh=mesh, rules=rules)
    assert set(report.collectives) == {"all-reduce"}
    activations = 4 * 256 * WIDTH  # of a layer, for a device's rows
    # Each layer adds up its output once forward and its input's gradient once backward; the gradients of the
    # parameters, a quarter of them each, cross the data axis.
    assert moved(report, "all-reduce") <= 2 * LAYERS * activations + BYTES // 4 + SCALARS


def test_metrics_add_scalars():
    metrics = {
        "mae": ft.metrics.mae(),
        "r2": ft.metrics.r2(),
        "accuracy": ft.metrics.accuracy(logits="predictions", labels="labels"),
        "confusion": ft.metrics.confusion_matrix(WIDTH, logits="predictions", labels="labels"),
    }

    def loss(params, batch, ctx):
        loss = residual_loss(params, batch, ctx)
        return loss.with_outputs(**loss.outputs, labels=jnp.argmax(batch["y"], -1))

    mesh = ft.sharding.mesh(jax.devices()[:4], data=4)
    plain, measured = (
        ft.tools.compile_report(task, ft.init_state(task, PARAMS, mesh=mesh), BATCH)
        for task in (ft.Task(loss, ft.optimizers.sgd(0.1), m) for m in ({}, metrics))
    )
    assert set(measured.collectives) == set(plain.collectives)
    matrix = 2 * 4 * WIDTH * WIDTH  # the confusion matrix is what it is, in two words a count
    more = moved(measured, "all-reduce") - moved(plain, "all-reduce")
    assert 0 < more <= matrix + SCALARS


def test_no_device_ever_holds_a_split_parameter_whole():
    mesh = ft.sharding.mesh(data=8)
    shape = (8 * 1024, 128)
    task = ft.Task(residual_loss, ft.optimizers.adamw(1e-3))

    def build(rules):
        def init(key):
            return {"w": jax.random.normal(key, shape)}

        return jax.jit(lambda: ft.init_state(task, init, mesh=mesh, rules=rules)).lower().compile()

    def most(program):
        memory = program.memory_analysis()
        return memory.output_size_in_bytes + memory.temp_size_in_bytes

    leaf = 4 * shape[0] * shape[1]
    split = build(ft.sharding.fsdp(min_size=1))
    assert most(split) < leaf  # parameter, two moments and whatever making them takes, together
    assert not collectives(split.as_text())
    assert most(build(None)) >= 3 * leaf  # the measure sees one that is held whole


def test_explicit_axes_work_with_every_kind_of_metric():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 8)).astype(np.float32)
    y = rng.integers(0, 4, 16)

    def loss(params, batch, ctx):
        logits = batch["x"] @ params["w"]
        loss = ft.losses.cross_entropy(logits, batch["y"])
        return loss.with_outputs(logits=logits, labels=batch["y"])

    metrics = {
        "accuracy": ft.metrics.accuracy(),
        "f1": ft.metrics.f1(4),
        "confusion": ft.metrics.confusion_matrix(4),
        "map": ft.metrics.mean_average_precision(4),
    }
    task = ft.Task(loss, ft.optimizers.sgd(0.1), metrics)
    params = {"w": rng.normal(size=(8, 4)).astype(np.float32)}
    want = ft.fit(task, ft.init_state(task, params), {"x": x, "y": y}, epochs=2, batch_size=6, progress=False)
    state = ft.init_state(task, params, mesh=mesh)
    got = ft.fit(task, state, {"x": x, "y": y}, epochs=2, batch_size=6, progress=False)
    np.testing.assert_allclose(got.state.params["w"], want.state.params["w"], rtol=1e-6, atol=1e-7)
    for name in ("loss", "accuracy", "f1"):
        np.testing.assert_allclose(got.history[name], want.history[name], rtol=1e-6, err_msg=name)


HLO = """\
HloModule step, entry_computation_layout={()->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %r = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %inner = f32[8]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
  %tiny = (pred[3]{0}, bf16[2,2]{1,0}) all-reduce(%y, %z), to_apply=%add
}

%cond (p: (s32[], f32[8])) -> pred[] {
}

%rare (p: f32[8]) -> f32[8] {
  %r1 = f32[6]{0} collective-permute(%x), source_target_pairs={{0,1}}
}

%usual (p: f32[8]) -> f32[8] {
  %u1 = f32[2]{0} collective-permute(%x), source_target_pairs={{0,1}}
  %u2 = f32[2]{0} all-to-all(%x), replica_groups={{0,1}}
}

ENTRY %main (p: f32[16]) -> f32[] {
  %while.1 = (s32[], f32[8]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %g = (f32[4]{0}, f32[16]{0}) all-gather-start(%p), dimensions={0}, replica_groups=[1,4]<=[4]
  %gd = f32[16]{0} all-gather-done(%g)
  %c = f32[8]{0} conditional(%i, %p, %p), branch_computations={%rare, %usual}
  %s = f32[4]{0} reduce-scatter(%gd), replica_groups=[2,4]<=[8], to_apply=%add
  %s2 = f32[4]{0} reduce-scatter(%gd), replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""


def test_the_counter_counts():
    assert collectives(HLO) == {
        "all-reduce": (10, 5 * (32 + 3 + 8)),
        "all-gather": (1, 64),
        "reduce-scatter": (2, 4 * 4 * 4 + 2 * 4 * 4),
        "collective-permute": (1, 24),
    }


def test_a_report_on_one_device_counts_what_the_loop_does():
    task = ft.Task(residual_loss, ft.optimizers.adamw(1e-3))
    report = ft.tools.compile_report(task, ft.init_state(task, PARAMS), BATCH)
    # Forward, and twice as much backward, but for the gradient of the first layer's input, which a scan cannot omit.
    product = 2 * 512 * WIDTH * HIDDEN
    assert report.flops == 3 * LAYERS * 2 * product
    assert report.argument_bytes >= 3 * BYTES
    assert report.collectives == {}
    assert "no collectives" in str(report)
    text = str(counted())
    assert "all-reduce" in text
    assert f"{report.flops:,} FLOP" in text


def test_profile_step_adds_up():
    task = ft.Task(residual_loss, ft.optimizers.adamw(1e-3))
    state = ft.init_state(task, PARAMS)
    times = ft.tools.profile_step(task, state, BATCH, repeats=3)
    assert {"forward_ms", "backward_ms", "optimizer_ms", "total_ms"} < set(times)
    assert all(t >= 0 for t in times.values())
    assert times["forward_ms"] > 0
    assert sum(times.values()) - times["total_ms"] == pytest.approx(times["total_ms"])
    ft.train_step(task, state, BATCH)  # the state was not consumed


def test_an_optimizer_that_does_nothing_takes_no_time():
    task = ft.Task(residual_loss, optax.identity())
    times = ft.tools.profile_step(task, ft.init_state(task, PARAMS), BATCH, repeats=5)
    assert times["optimizer_ms"] < 0.2 * times["total_ms"]
