"""A rehearsal: what breaks late breaks at once, and the run behind it is bitwise the run without."""

import re

import jax
import numpy as np
import pytest

import fntrain as ft
from fntrain.checkpoint.checkpointer import Checkpointer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32)).astype(np.float32)
HELD = (X[:11], Y[:11])


def loss_fn(params, batch, ctx):
    noise = 0.1 * jax.random.normal(ctx.key, ()) if ctx.train else 0.0
    return ft.losses.mse(batch[0] @ params["w"] + noise, batch[1])


TASK = ft.Task(loss_fn, ft.chain(ft.optimizers.adam(0.05), ft.ema(0.9)))


def start():
    return ft.init_state(TASK, {"w": np.zeros(3, np.float32)}, key=7)


def run(state=None, data=(X, Y), **options):
    options = {"epochs": 2, "batch_size": 8, "progress": False, "validation_data": HELD, **options}
    return ft.fit(TASK, start() if state is None else state, data, **options)


def bits(state):
    return [
        np.asarray(x).tobytes() for x in jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))
    ]


def batches():
    """A generator, of which every batch read is gone."""
    for epoch in range(9):
        order = np.random.default_rng(epoch).permutation(16).reshape(2, 8)
        yield from ((X[rows], Y[rows]) for rows in order)


@pytest.mark.parametrize("evaluate_at", ["params", "both"])
def test_the_run_behind_it_is_bitwise_the_run_without(evaluate_at, tmp_path, capsys):
    plain = run(evaluate_at=evaluate_at)
    given = start()
    result = run(given, evaluate_at=evaluate_at, rehearse=True, run_dir=tmp_path / "run")
    assert bits(result.state) == bits(plain.state)
    assert result.history.rows() == plain.history.rows()
    assert bits(given) == bits(start())  # what was given stays usable
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # and the scratch directory is gone
    report = result.rehearsal
    assert report.validation_batches == (2 if evaluate_at == "params" else 4)
    assert report.peak_bytes > sum(x.nbytes for x in jax.tree.leaves(given.params))
    assert report.checkpoint_bytes > 0
    assert min(report.step_seconds, report.save_seconds, report.restore_seconds) > 0
    assert capsys.readouterr().out == f"{report}\n"
    assert plain.rehearsal is None


def test_what_can_be_read_once_is_not_used_up():
    options = dict(
        validation_data=lambda: batches(), epochs=None, steps=6
    )  # a function, called at each validation
    calls = []

    def counted():
        calls.append(len(calls))
        return iter([HELD] * 3)

    plain = run(data=batches(), **options)
    result = run(data=batches(), **{**options, "validation_data": counted}, rehearse=True)
    assert bits(result.state) == bits(plain.state)
    assert len(calls) == 1  # the one at the run's end, as without
    assert result.rehearsal.validation_batches == 1


@pytest.mark.parametrize("donate", [False, True])
def test_a_state_that_nobody_else_holds(donate):
    plain = run()
    assert bits(run(rehearse=True, donate=donate).state) == bits(plain.state)


def test_an_error_of_the_validation_comes_before_the_first_step():
    steps = []

    class Count(ft.callbacks.Callback):
        def on_step_end(self, ctx):
            steps.append(ctx.step)

    auc = ft.metrics.roc_auc(exact=True, capacity=8)

    def with_scores(params, batch, ctx):
        predictions = batch[0] @ params["w"]
        return ft.losses.mse(predictions, batch[1]).with_outputs(
            logits=predictions, labels=(batch[1] > 0).astype(np.int32)
        )

    task = ft.Task(with_scores, ft.optimizers.sgd(0.1), {"auc": auc})
    state = ft.init_state(task, {"w": np.zeros(3, np.float32)})
    options = dict(epochs=1, batch_size=4, progress=False, callbacks=[Count()], steps_per_call=1)
    small = (X[:4], Y[:4])
    with pytest.raises(ft.DataError, match=r"`val_auc`.*capacity"):
        ft.fit(task, state, small, validation_data=HELD, **options)
    assert steps == [1]
    steps.clear()
    with pytest.raises(ft.DataError, match=r"`val_auc`.*capacity"):
        ft.fit(task, state, small, validation_data=HELD, rehearse=True, **options)
    assert steps == []


def test_a_checkpoint_that_comes_back_as_another_state_ends_it(monkeypatch, tmp_path):
    restore = Checkpointer.restore

    def damaged(self, like, **options):
        state = restore(self, like, **options)
        return state.replace(params=jax.tree.map(lambda x: x + 1, state.params))

    monkeypatch.setattr(Checkpointer, "restore", damaged)
    with pytest.raises(ft.CheckpointError, match=r"comes back as another state: .*params/w"):
        run(rehearse=True, run_dir=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_it_prints_what_a_night_would_cost():
    text = str(run(rehearse=True).rehearsal)
    assert re.fullmatch(
        r"rehearsal   compiled in \S+ m?s, a step in \S+ m?s\n"
        r"memory      \S+ k?B a device in a step\n"
        r"validation  \S+ m?s, 2 batches\n"
        r"checkpoint  \S+ k?B, saved in \S+ m?s, restored in \S+ m?s, bit for bit",
        text,
    )


def test_nothing_is_compiled_twice_for_it():
    traces = []

    def traced(params, batch, ctx):
        traces.append(ctx.train)
        return loss_fn(params, batch, ctx)

    task = ft.Task(traced, ft.optimizers.sgd(0.1))
    state = ft.init_state(task, {"w": np.zeros(3, np.float32)})
    options = dict(epochs=2, batch_size=8, progress=False, validation_data=HELD)
    ft.fit(task, state, (X, Y), rehearse=True, **options)
    once = list(traces)
    ft.fit(task, state, (X, Y), **options)
    assert traces == once
