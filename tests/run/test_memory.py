"""Law 14: the memory a run holds is the memory the plan says. One state, its gradient and its batches."""

import gc
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

N = 512  # parameters are N x N, so that everything else is small beside them
DATA = np.random.default_rng(0).normal(size=(64, N)).astype(np.float32)


def init_params(key):
    return {"w": jax.random.normal(key, (N, N)) / N, "v": jnp.zeros((N, N))}


def loss_fn(params, batch, ctx):
    return ft.losses.mse(batch @ params["w"] + batch @ params["v"], batch)


TASK = ft.Task(loss_fn, ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-3)))


def live():
    """Bytes on the first device, of all arrays that anybody holds; what several arrays share counts once."""
    gc.collect()
    first = jax.devices()[0]
    buffers = {}
    for x in jax.live_arrays():
        if not x.is_deleted() and first in x.devices() and x.size:
            shard = next(s.data for s in x.addressable_shards if s.device == first)
            buffers[shard.unsafe_buffer_pointer()] = math.prod(shard.shape) * x.dtype.itemsize
    return sum(buffers.values())


class Watch:
    """The most that is alive at any event."""

    adds_logs = False
    needs_every_step = False

    def __init__(self):
        self.before, self.most = live(), 0

    def _look(self, ctx):
        self.most = max(self.most, live() - self.before)

    on_fit_begin = on_epoch_begin = on_step_end = on_log = on_validation_end = on_epoch_end = on_fit_end = (
        _look
    )


def state_of(mesh=None):
    rules = None if mesh is None else ft.sharding.fsdp(min_size=64)
    return ft.init_state(TASK, init_params, mesh=mesh, rules=rules)


def plan_of(mesh=None, rows=16):
    sizes, rules = ({"data": 1}, None) if mesh is None else (mesh, ft.sharding.fsdp(min_size=64))
    return ft.sharding.plan(TASK, init_params, sizes, rules, batch=jax.ShapeDtypeStruct((rows, N), "float32"))


@pytest.mark.parametrize("mesh", [None, ft.sharding.mesh(data=-1)], ids=["one device", "mesh"])
@pytest.mark.parametrize("calls", ["auto", 1, 4])
def test_fit_holds_one_state(mesh, calls):
    watch = Watch()
    # As callers write it: nobody else has a name for the state. (Python itself keeps the arguments of a call with
    # `**options` until it returns.)
    ft.fit(
        TASK,
        state_of(mesh),
        DATA,
        epochs=2,
        batch_size=16,
        progress=False,
        callbacks=[watch],
        steps_per_call=calls,
        validation_data=DATA,
    )
    plan = plan_of(mesh)
    held = plan.parameters + plan.optimizer_state
    on_device = DATA.nbytes if mesh is None else 0  # rows are picked there
    assert held * 0.98 <= watch.most <= held * 1.02 + 2 * on_device + 4 * 4 * 16 * N * 4


def test_in_a_run_directory_it_is_one_state_too(tmp_path):
    watch = Watch()
    ft.fit(
        TASK,
        state_of(),
        DATA,
        epochs=2,
        batch_size=16,
        progress=False,
        callbacks=[watch],
        run_dir=tmp_path / "run",
        checkpoint_every=2,
    )
    plan = plan_of()
    assert watch.most <= (plan.parameters + plan.optimizer_state) * 1.02 + 2 * DATA.nbytes


@pytest.mark.parametrize("mesh", [None, ft.sharding.mesh(data=-1)], ids=["one device", "mesh"])
def test_the_program_takes_what_the_plan_says(mesh):
    state, rows = state_of(mesh), 16
    report = ft.tools.compile_report(TASK, state, DATA[:rows])
    plan = plan_of(mesh, rows)
    state_bytes = plan.parameters + plan.optimizer_state
    assert report.argument_bytes == pytest.approx(state_bytes + plan.batch, rel=0.02)
    assert report.output_bytes <= 0.02 * state_bytes  # one state: the new one takes the old one's place
    if mesh is None:
        assert report.argument_bytes + report.temporary_bytes <= plan.total * 1.02


def test_a_state_the_caller_keeps_is_kept_whole_and_given_away_it_is_not():
    """The caller's own arrays are the second state; `donate=True` hands them over."""
    plan = plan_of()
    held = plan.parameters + plan.optimizer_state
    watch, state = Watch(), state_of()
    ft.fit(TASK, state, DATA, epochs=2, batch_size=16, progress=False, callbacks=[watch])
    assert watch.most >= 1.9 * held
    assert not state.params["w"].is_deleted()
    del state

    watch, state = Watch(), state_of()
    result = ft.fit(
        TASK, state, DATA, epochs=2, batch_size=16, progress=False, callbacks=[watch], donate=True
    )
    assert watch.most <= held * 1.02 + 2 * DATA.nbytes
    assert state.params["w"].is_deleted()
    with pytest.raises(ft.ConsumedStateError):
        ft.train_step(TASK, state, DATA[:16])
    again = ft.fit(TASK, state_of(), DATA, epochs=2, batch_size=16, progress=False, callbacks=[Watch()])
    np.testing.assert_array_equal(result.state.params["w"], again.state.params["w"])


def test_the_watch_sees_a_second_state():
    """The broken specimen: a callback that keeps what it should not."""

    class Hoarder:
        def on_epoch_begin(self, ctx):
            self.kept = jax.tree.map(jnp.copy, ctx.state)

    watch = Watch()
    ft.fit(TASK, state_of(), DATA, epochs=2, batch_size=16, progress=False, callbacks=[Hoarder(), watch])
    plan = plan_of()
    assert watch.most >= 1.9 * (plan.parameters + plan.optimizer_state)
