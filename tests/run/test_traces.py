"""Law 2 and law 11 of a whole `fit`: how often the loss's Python body runs, and which events come, is no chance."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 3)).astype(np.float32)  # twelve batches of 8, and one of 4
Y = (X @ np.array([1, -2, 0.5], np.float32)).astype(np.float32)
XV, YV = X[:20], Y[:20]  # one batch is short here, too


class Loss:
    """Counts how often its body runs: in training, and in evaluation."""

    def __init__(self):
        self.traces = {True: 0, False: 0}

    def __call__(self, params, batch, ctx):
        self.traces[ctx.train] += 1
        x, y = batch
        return ft.losses.mse(x @ params["w"], y)


class Events:
    """Every event that comes, with its place."""

    def __init__(self):
        self.seen = []

    def __getattr__(self, name):
        if name in ft.callbacks.EVENTS:
            return lambda ctx: self.seen.append((name, ctx.epoch, ctx.step))
        raise AttributeError(name)


class Dispatches(Events):
    needs_every_step = False
    adds_logs = False


def fitted(loss_fn=None, callbacks=(), **options):
    task = ft.Task(loss_fn or Loss(), ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-2)))
    state = ft.init_state(task, {"w": jnp.zeros(3)})
    options = {"epochs": 25, "validation_data": (XV, YV), "steps_per_call": "auto", **options}
    return ft.fit(task, state, (X, Y), batch_size=8, callbacks=callbacks, progress=False, **options)


RUNS = {
    "plain": {},
    "logs": {"log_every": 5},
    "validation inside epochs": {"validation_every": 7},
    "single steps": {"steps_per_call": 1},
    "chunks of four": {"steps_per_call": 4},
    "steps": {"epochs": None, "steps": 77},
    "a monitor": {"callbacks": [ft.callbacks.EarlyStopping("val_loss")]},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_traces_its_loss_twice_at_most_and_once_to_evaluate(name):
    loss_fn = Loss()
    fitted(loss_fn, **RUNS[name])
    assert 1 <= loss_fn.traces[True] <= 2  # one step and a chunk of them are two programs
    assert loss_fn.traces[False] == 1


def test_a_run_in_a_directory_traces_no_more_and_its_resume_likewise(tmp_path):
    loss_fn = Loss()
    fitted(loss_fn, run_dir=tmp_path / "run", epochs=3)
    assert loss_fn.traces[True] <= 2
    assert loss_fn.traces[False] == 1
    traces = dict(loss_fn.traces)
    fitted(loss_fn, run_dir=tmp_path / "run", epochs=5, resume="must")
    assert loss_fn.traces == traces


@pytest.mark.parametrize("kind", [Events, Dispatches])
def test_two_runs_see_the_same_events(kind):
    one, other = kind(), kind()
    first, second = fitted(callbacks=[one]), fitted(callbacks=[other])
    assert one.seen == other.seen
    assert first.steps_per_call == second.steps_per_call
    steps = [step for name, _, step in one.seen if name == "on_step_end"]
    assert steps[-1] == 25 * 13
    if kind is Events:  # who listens to steps hears of each of them
        assert steps == list(range(1, 25 * 13 + 1))
    else:
        assert first.steps_per_call > 1
        assert len(steps) < 25 * 13


def test_a_stop_at_a_step_is_at_that_step():
    class Stops:
        def on_step_end(self, ctx):
            if ctx.step == 150:
                ctx.stop("150")

    for _ in range(2):
        result = fitted(callbacks=[Stops()])
        assert (int(result.state.step), result.stop_reason) == (150, "150")


def test_a_loop_by_hand_traces_its_loss_once_to_train_and_once_to_evaluate():
    """Equal tasks made anew, states that come back, batches on the host or the device: nothing is traced again."""

    @chex.assert_max_traces(n=1)
    def trained(params, batch):
        return ft.losses.mse(batch[0] @ params["w"], batch[1])

    @chex.assert_max_traces(n=1)
    def evaluated(params, batch):
        return ft.losses.mse(batch[0] @ params["w"], batch[1])

    def loss_fn(params, batch, ctx):
        return (trained if ctx.train else evaluated)(params, batch)

    def task():
        return ft.Task(loss_fn, ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-2)))

    chex.clear_trace_counter()
    state = ft.init_state(task(), {"w": jnp.zeros(3)})
    for epoch in range(3):
        for batch, weight in ft.data_loader((X, Y), 8, seed=epoch):
            state, _ = ft.train_step(task(), state, batch, weight)
        state, _ = ft.train_step(task(), state, jax.device_put((X[:8], Y[:8])), jnp.ones(8))
        metrics = ft.eval_step(task(), state, (X[:8], Y[:8]), np.ones(8, np.float32))
        assert float(ft.compute_metrics(task(), metrics)["loss"]) > 0
    chex.assert_tree_all_finite(state.params)
    with pytest.raises(
        AssertionError, match="traced"
    ):  # and what is limited does count: other shapes are traced
        ft.train_step(task(), state, (X[:5], Y[:5]), np.ones(5, np.float32))
