"""Goodput: every second is of one phase, of all the parts of a run; how each part ended; why a step compiled again."""

import json
import os
import time

import jax
import numpy as np
import pytest

import fntrain as ft
from fntrain.data.feed import Piece
from fntrain.run import goodput
from fntrain.run.forms import Forms
from fntrain.run.goodput import CHECKPOINT, COMPILE, DATA, OTHER, STEP, Meter, goodput_of
from fntrain.run.parts import Parts

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
DATASET = (X, X @ np.float32([1, 2, 0, -1]))


def loss_fn(p, b, ctx):
    return ft.losses.mse(b[0] @ p["w"], b[1])


TASK = ft.Task(loss_fn, ft.optimizers.adam(0.05))


def fit(run_dir=None, data=DATASET, **more):
    state = ft.init_state(TASK, {"w": np.zeros(4, np.float32)})
    more = {"batch_size": 8, "epochs": 3, "progress": False, **more}
    return ft.fit(TASK, state, data, run_dir=run_dir, **more)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_meter_gives_each_second_to_one_phase():
    clock = Clock()
    meter = Meter(clock)
    clock.now += 1  # start
    assert meter.to(DATA) == goodput.START
    clock.now += 2
    meter.to(STEP)
    clock.now += 8
    # A trace of 3 s, which ends here, with one of 1 s in it that has been told of before.
    clock.now -= 1
    meter.compiled(1.0)
    clock.now += 1
    meter.compiled(3.0)
    with meter.during(CHECKPOINT):
        clock.now += 0.5
    meter.to(OTHER)
    clock.now += 0.25
    seconds = meter.seconds
    assert seconds == dict(
        start=1.0, compile=3.0, data=2.0, step=5.0, validation=0.0, checkpoint=0.5, callbacks=0.0, other=0.25
    )
    found = goodput_of([{"seconds": seconds}])
    assert (found.total, found.share, found.unattributed) == (11.75, 5 / 11.75, 0.25)
    assert meter.cells[COMPILE] == 3.0


def test_a_runs_time_is_all_there():
    """By the wall clock from outside: what is slow is where it belongs, and next to nothing is unattributed."""

    def slow(epoch):
        for i in range(0, 32, 8):
            time.sleep(0.05)
            yield tuple(x[i : i + 8] for x in DATASET)

    class Slow(ft.callbacks.Callback):
        adds_logs = False

        def on_epoch_end(self, ctx):
            time.sleep(0.02)

    state = ft.init_state(TASK, {"w": np.zeros(4, np.float32)})
    more = dict(epochs=3, callbacks=[Slow()], validation_data=DATASET, progress=False)
    began = time.perf_counter()
    result = ft.fit(TASK, state, slow, **more)
    wall = time.perf_counter() - began
    found = result.goodput
    parts = [getattr(found, name) for name in goodput.PHASES[:-1]]
    assert sum(parts) + found.unattributed == pytest.approx(found.total)
    assert found.unattributed <= 0.01 * wall
    assert 0.99 * wall <= found.total + 0.001 <= 1.01 * wall + 0.001
    assert (
        found.data >= 11 * 0.05
    )  # the first batch is looked at before the first step, which is the start's time
    assert found.data + found.start >= 12 * 0.05
    assert found.callbacks >= 0.06
    assert found.compile > 0
    assert found.validation > 0
    assert (found.lost, found.checkpoint, found.parts) == (0, 0, 1)
    assert str(found).startswith(f"{100 * found.share:.0f} % of {found.total:.3g} s: ")


def parts_of(run):
    return json.loads((run / "config.json").read_text())["parts"]


def test_parts_say_how_they_ended_and_add_up(tmp_path):
    run = tmp_path / "run"

    def at(step, do):
        class At:
            adds_logs = False

            def on_step_end(self, ctx):
                if ctx.step == step:
                    do(ctx)

        return [At()]

    def fail(ctx):
        raise ZeroDivisionError("by nothing")

    def interrupt(ctx):
        raise KeyboardInterrupt

    first = fit(run, epochs=1)
    fit(run, resume=True, epochs=4, callbacks=at(6, lambda ctx: ctx.stop("enough")))
    fit(run, resume=True, epochs=4, callbacks=at(7, interrupt))
    with pytest.raises(ZeroDivisionError):
        fit(run, resume=True, epochs=4, callbacks=at(10, fail))
    config = json.loads((run / "config.json").read_text())
    assert config["status"] == "failed"
    last = (run / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == 10  # the epoch that it failed in has its row, as after an interrupt
    assert json.loads(last)["unfinished"] is True
    result = fit(run, resume=True, epochs=4)
    parts = parts_of(run)
    assert [(p["from"], p["to"], p["ended"]) for p in parts] == [
        (0, 4, "done"),
        (4, 6, "stopped: enough"),
        (6, 7, "interrupted"),
        (7, 10, "ZeroDivisionError: by nothing"),
        (10, 16, "done"),
    ]
    assert result.goodput.parts == 5
    assert result.goodput.total > first.goodput.total
    assert result.goodput.lost_steps == 0
    straight = fit(tmp_path / "straight", epochs=4)
    assert np.array_equal(result.state.params["w"], straight.state.params["w"])
    assert result.history.rows() == straight.history.rows()


def test_a_killed_part_is_known_by_its_heartbeat(tmp_path):
    """Killed at step 9, saved at step 4: five steps are lost, with the time behind the save."""
    clock = Clock()
    meter = Meter(clock)
    parts = Parts(tmp_path, [], None, 0)
    parts.begin(meter)
    meter.to(STEP)
    clock.now += 4
    mark = parts.mark
    clock.now += 5
    meter.to(DATA)
    meter.cells[-1] = 9
    before = json.loads(json.dumps(parts.all))  # what `config.json` knows
    after = Parts(tmp_path, before, mark, 4)
    (killed, now) = after.all
    assert (killed["ended"], killed["to"], killed["lost_steps"]) == ("killed", 9, 5)
    assert killed["lost"]["step"] == 5
    assert now["from"] == 4
    found = goodput_of(after.all)
    assert (found.total, found.step, found.lost, found.lost_steps) == (9, 4, 5, 5)
    # Killed again before it could save: all of that part is lost, and what was lost before stays.
    meter = Meter(clock)
    after.begin(meter)
    meter.to(STEP)
    clock.now += 2
    meter.to(STEP)
    meter.cells[-1] = 6
    third = Parts(tmp_path, json.loads(json.dumps(after.all)), mark, 4)
    found = goodput_of(third.all)
    assert (found.total, found.step, found.lost, found.lost_steps, found.parts) == (11, 4, 7, 7, 3)
    # With no checkpoint at all the run starts anew.
    found = goodput_of(Parts(tmp_path, third.before, None, 0).all)
    assert (found.step, found.lost_steps) == (0, 9 + 2)
    for each in (parts, after, third):
        each.close()
    os.remove(tmp_path / "heartbeat")
    assert goodput_of(Parts(tmp_path, [{"started": "", "from": 0}], None, 0).all) is None


class Replaces:
    """Puts other arrays into the state, once."""

    adds_logs = False

    def __init__(self, change):
        self.change = change

    def on_epoch_end(self, ctx):
        if ctx.epoch == 1:
            ctx.state = ctx.state.replace(params=jax.tree.map(self.change, ctx.state.params))


def committed(x):
    return jax.device_put(x, jax.devices()[0])


def test_a_second_compile_names_the_leaf():
    with pytest.warns(RuntimeWarning, match="compiled again") as caught:
        result = fit(callbacks=[Replaces(committed)])
    first = "the step was compiled again at step 5: `state/params/w` was float32[4] on "
    assert str(caught[0].message).startswith(first)
    assert "and is float32[4] on committed to" in result.recompiled[0]
    assert len(result.recompiled) == len(caught)
    assert caught[0].filename == __file__
    assert fit().recompiled == []
    with pytest.raises(ft.ConfigError, match="`recompile` must be one of"):
        fit(recompile="perhaps")


def test_a_state_bound_to_a_device_compiles_each_step_once():
    """On a mesh of one, say: the accumulators that a run begins with lie where the step leaves them."""
    state = ft.init_state(
        TASK, {"w": np.zeros(4, np.float32)}, mesh=ft.sharding.mesh(jax.devices()[:1], data=1)
    )
    result = ft.fit(TASK, state, DATASET, batch_size=8, epochs=2, progress=False, recompile="raise")
    assert result.recompiled == []


def test_members_who_leave_are_no_second_compile_whatever_a_dispatch_takes():
    params = {"w": np.zeros(4, np.float32)}
    states = ft.population.init(TASK, lambda key: params, seeds=range(4))
    options = dict(
        validation_data=DATASET,
        batch_size=8,
        steps=14,
        steps_per_call=3,
        log_every=100,
        progress=False,
        recompile="raise",
    )
    halving = ft.population.halving(keep=0.5, every=4)  # dispatches of 3 and of 1, by 4, 2 and 1 members
    result = ft.population.fit(TASK, states, DATASET, controller=halving, **options)
    assert (ft.population.size(result.state), result.recompiled) == (1, [])


def test_a_second_compile_can_end_the_run(tmp_path):
    run, task = tmp_path / "run", ft.Task(loss_fn, ft.optimizers.sgd(0.05))
    state = ft.init_state(task, {"w": np.zeros(4, np.float32)})
    more = dict(batch_size=8, epochs=3, progress=False, run_dir=run, callbacks=[Replaces(committed)])
    with pytest.raises(
        ft.ConfigError, match="`recompile`: the step was compiled again at step 5: `state/params/w`"
    ):
        ft.fit(task, state, DATASET, recompile="raise", **more)
    (part,) = parts_of(run)
    assert part["ended"].startswith("ConfigError: `recompile`: the step was compiled again")
    assert part["recompiled"][0].startswith("the step was compiled again at step 5")


def test_what_changed_is_told_from_what_to_what():
    forms = Forms("ignore")
    state = ft.init_state(TASK, {"w": np.zeros(4, np.float32), "b": np.zeros(2, np.float32)})
    piece = Piece({"x": np.zeros((3, 2), np.float32)}, None, 1, False, False, 3)
    forms.compiled(state, None, piece, 1)
    other = piece._replace(batch={"x": np.zeros((2, 2), np.float16), "y": np.zeros(2)})
    forms.compiled(state, None, other, 7)
    forms.compiled(state, None, other, 8)
    assert forms.found == [
        "the step was compiled again at step 7: `batch/x` was float32[3, 2] and is float16[2, 2]; "
        "`batch/y` was nothing and is float64[2]",
        "the step was compiled again at step 8: no leaf of state or batch: a setting of JAX is another, say",
    ]
