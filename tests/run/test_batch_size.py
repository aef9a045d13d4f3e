"""A batch size that grows, and another one on a resume: which rows each step sees, by their numbers."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.run.context import LoopContext

N = 24
X = np.arange(N, dtype=np.float32)
GROWS = {0: 4, 1: 8, 2.5: 12}
SIZES = [4] * 6 + [8] * 3 + [8, 8, 12] + [12] * 2  # the third epoch: at 0, 8, and at 16, behind its middle


class Traced:
    """A loss that counts how often it is traced."""

    def __init__(self):
        self.traces = 0

    def __call__(self, params, batch, ctx):
        self.traces += ctx.train
        return ft.losses.mse(batch / N * params["w"], 1 + batch / N)


def loss_fn(params, batch, ctx):
    return ft.losses.mse(batch / N * params["w"], 1 + batch / N)


class Rows:
    """The rows of each step, by epoch, those of weight zero left out."""

    wants_batch, adds_logs, needs_every_step = True, False, False

    def __init__(self):
        self.steps, self.sizes, self.lengths = [], [], []

    def on_step_end(self, ctx):
        batch, weight, stacked = ctx.last_batch
        batch = np.asarray(batch).reshape(-1, ctx.batch_size)
        weight = np.ones_like(batch) if weight is None else np.asarray(weight).reshape(batch.shape)
        assert stacked == (len(batch) > 1)
        for rows, w in zip(batch, weight):
            self.steps.append((ctx.epoch, rows[w > 0].tolist()))
            self.sizes.append(ctx.batch_size)
            self.lengths.append(ctx.steps_per_epoch)

    def of(self, epoch):
        return [x for e, rows in self.steps if e == epoch for x in rows]


TASK = ft.Task(loss_fn, ft.optimizers.sgd(0.5, momentum=0.5))


def start(task=TASK):
    return ft.init_state(task, {"w": jnp.zeros(())})


def fit(batch_size, data=X, task=TASK, rows=None, **options):
    callbacks = [] if rows is None else [rows]
    options = {"progress": False, "callbacks": callbacks, "recompile": "raise", **options}
    return ft.fit(task, start(task), data, batch_size=batch_size, **options)


def order(epoch, seed=0):
    """The rows of an epoch, as a loader of one batch gives them."""
    batch, _ = ft.data_loader(X, N, seed=seed).batch(epoch, 0)
    return batch.tolist()


def by_hand(sizes, epochs):
    """SGD with momentum, in NumPy's float64."""
    w = m = 0.0
    sizes = iter(sizes)
    for epoch in range(epochs):
        rows = np.array(order(epoch)) / N
        while len(rows):
            size = next(sizes)
            x, rows = rows[:size], rows[size:]
            m = 0.5 * m + np.mean(2 * (x * w - 1 - x) * x)
            w -= 0.5 * m
    return w


# What grows


@pytest.mark.parametrize("options", [{}, {"steps_per_call": 2, "data_on_device": True}])
def test_a_batch_size_that_grows_is_each_row_once_an_epoch_in_batches_of_its_place(options):
    rows = Rows()
    result = fit(GROWS, rows=rows, epochs=4, **options)
    assert rows.sizes == SIZES
    assert rows.lengths == [6] * 6 + [3] * 3 + [3] * 3 + [2] * 2
    for epoch in range(4):
        assert rows.of(epoch + 1) == order(epoch)
    assert result.history["step"] == [6, 9, 12, 14]
    assert int(result.state.step) == int(result.state.updates) == len(SIZES)
    assert float(result.state.params["w"]) == pytest.approx(by_hand(SIZES, 4), rel=1e-5)
    assert result.recompiled == []


def test_a_size_is_compiled_once_and_a_stage_that_was_to_come_is_no_accident():
    loss = Traced()
    task = ft.Task(loss, ft.optimizers.sgd(0.1))
    result = fit({0: 4, 1: 8, 2: 4, 3: 12}, task=task, epochs=5)
    assert loss.traces == 3  # of 4, 8 and 12 rows
    assert result.recompiled == []
    fit({0: 4, 1: 8}, task=task, epochs=2)
    assert loss.traces == 3


def test_fractions_of_a_run_are_of_the_updates_that_these_batches_make(tmp_path):
    rate = ft.schedules.linear(0.5, 0.1, 1.0)
    task = ft.Task(loss_fn, ft.optimizers.sgd(rate))
    place = tmp_path / "run"
    result = fit({0: 4, 1: 8}, task=task, epochs=3, run_dir=place)
    want = ft.schedules.linear(0.5, 0.1, 6 + 3 + 3)
    assert result.history["learning_rate"] == pytest.approx([float(want(n)) for n in (5, 8, 11)])
    assert (
        json.loads((place / "config.json").read_text())["identity"]["task"]["tx"]["learning_rate"]["steps"]
        == 12
    )


def test_a_window_of_accumulation_is_a_mean_over_examples_across_a_stage():
    task = ft.Task(loss_fn, ft.MultiSteps(ft.optimizers.sgd(0.5), 3))
    result = fit({0: 12, 1: 6}, task=task, steps=3)
    first, second = np.array(order(0)), np.array(order(1)[:6])
    x = np.concatenate([first, second]) / N  # 12 + 12 + 6 rows of equal weight, and no mean of three means
    assert int(result.state.updates) == 1
    assert float(result.state.params["w"]) == pytest.approx(-0.5 * np.mean(-2 * (1 + x) * x), rel=1e-6)
    means = [np.mean(-2 * (1 + y) * y) for y in (first[:12] / N, first[12:] / N, second / N)]
    assert float(result.state.params["w"]) != pytest.approx(-0.5 * np.mean(means), rel=1e-3)


def test_a_resume_in_any_stage_has_the_bits_of_the_run_that_was_not_stopped(tmp_path):
    options = dict(epochs=4, checkpoint_every=1, validation_data=X[:5], validation_every=4)
    straight = fit(GROWS, **{**options, "checkpoint_every": None})
    for step in (3, 11):
        place = tmp_path / f"at_{step}"
        fit(GROWS, run_dir=place, **{**options, "epochs": None, "steps": step})
        resumed = fit(GROWS, run_dir=place, resume=True, **options)
        assert (
            np.asarray(resumed.state.params["w"]).tobytes()
            == np.asarray(straight.state.params["w"]).tobytes()
        )
        assert resumed.history.rows() == straight.history.rows()


def test_what_a_run_says_of_its_batches():
    said = []

    class Says:
        adds_logs = False

        def on_step_end(self, ctx: LoopContext):
            said.append((ctx.steps, ctx.rows_before(ctx.step), ctx.rows_before(ctx.steps)))

    fit({0: 4, 1: 8, 2: 16}, epochs=3, callbacks=[Says()])
    rows = np.cumsum([4] * 6 + [8] * 3 + [16] * 2).tolist()  # the last batch is of 8, and 8 of padding
    assert said == [(11, n, rows[-1]) for n in rows]


def test_rehearsed_is_the_largest_batch(tmp_path):
    result = fit({0: 4, 1: 12}, epochs=2, rehearse=True)
    alone = fit(12, epochs=1, rehearse=True)
    assert result.rehearsal.peak_bytes == alone.rehearsal.peak_bytes > 0


def test_what_comes_in_batches_has_no_say(tmp_path):
    for data in ([X[:4]] * 3, lambda epoch: [X[:4]], ft.data_loader(X, 4)):
        with pytest.raises(
            ft.ConfigError, match=r"`batch_size` says when batches of arrays.*`data` gives batches"
        ):
            fit({0: 4, 1: 8}, data, epochs=1)
    rows = Rows()
    fit(7, ft.data_loader(X, {0: 4, 1: 8}, drop_last=True), rows=rows, epochs=2)  # a loader's own
    assert rows.sizes == [4] * 6 + [8] * 3
    with pytest.raises(ft.ConfigError, match="`batch_size` must be an integer"):
        ft.evaluate(TASK, start(), X, batch_size={0: 4})


def test_a_scalar_loss_knows_at_the_start_that_a_later_size_leaves_a_tail():
    task = ft.Task(lambda p, b, ctx: jnp.mean((b * p["w"]) ** 2), ft.optimizers.sgd(0.1))
    with pytest.raises(ft.DataError, match="does not divide into whole batches"):
        fit({0: 4, 5: 16}, task=task, epochs=1)
    fit({0: 4, 1: 8}, task=task, epochs=2)


# Another one on a resume


def killed(place, at):
    """What a kill behind a checkpoint leaves: what was saved later is not there."""
    for path in (place / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > at:
            shutil.rmtree(path)


@pytest.mark.parametrize(("other", "drop_last"), [(6, True), (10, False), ({0: 2, 1.5: 8}, True)])
def test_resumed_inside_an_epoch_with_another_size_every_row_comes_once(other, drop_last, tmp_path, caplog):
    place, before, after = tmp_path / "run", Rows(), Rows()
    data = lambda size: ft.data_loader(X, size, drop_last=drop_last)
    fit(4, data(4), rows=before, steps=10, run_dir=place, checkpoint_every=1)
    killed(place, 9)
    with pytest.raises(ft.CheckpointMismatchError, match=r'override=\(.*"batch_size",\)'):
        fit(4, data(other), epochs=4, run_dir=place, resume=True)
    given, override = data(other), ("batch_size", "callbacks")
    result = fit(4, given, rows=after, epochs=4, run_dir=place, resume=True, override=override)
    seen = before.steps[:9] + after.steps
    for epoch in range(4):
        rows = [x for e, step in seen if e == epoch + 1 for x in step]
        assert rows == order(epoch)[: len(rows)]  # each once, and in the epoch's order
        assert len(rows) == N or (drop_last and N - len(rows) < 10)
    assert int(result.state.step) == len(seen)
    assert set(after.sizes) <= {6, 10, 2, 8}
    config = json.loads((place / "config.json").read_text())
    (noted,) = config["overridden"]
    words = {6: "6", 10: "10"}.get(other if isinstance(other, int) else 0, "2, 8 after 1.5 epochs")
    line = f"batch_size: saved 4, now {words}, from example 12 of epoch 2 on"
    assert noted == {"step": 9, "changes": [line]}
    assert line in caplog.text
    assert config["cut"][0] == [0, 0, 4]
    assert given.cut.stages[0].size != 4  # the loader that was given is as it was
    # It is the run's own now, and goes on so; back again is a change too.
    more = fit(4, data(other), epochs=5, run_dir=place, resume=True)
    assert int(more.state.step) == len(seen) + len(more_of(other, drop_last))


def more_of(size, drop_last):
    """The sizes of an epoch in which all is over that was to come."""
    size = size if isinstance(size, int) else size[1.5]
    return [size] * (N // size if drop_last else -(-N // size))


def test_the_length_of_a_resumed_run_is_what_it_has_done_and_what_is_left(tmp_path):
    task = ft.Task(loss_fn, ft.optimizers.sgd(ft.schedules.linear(0.5, 0.1, 1.0)))
    place = tmp_path / "run"
    fit(4, task=task, steps=2, run_dir=place)
    totals = []

    class Total:
        adds_logs = False

        def on_epoch_end(self, ctx):
            totals.append((ctx.steps, ctx.steps_per_epoch))

    options = dict(override=("batch_size", "tx", "callbacks"), callbacks=[Total()])
    result = fit(8, task=task, epochs=2, run_dir=place, resume=True, **options)
    assert totals == [(2 + 2 + 3, 4), (7, 3)]  # 8 rows in two steps, 16 in two more
    want = ft.schedules.linear(0.5, 0.1, 7)
    assert result.history["learning_rate"] == pytest.approx([float(want(n)) for n in (3, 6)])


def test_every_step_of_such_a_run_can_be_taken_again(tmp_path):
    place, rows = tmp_path / "run", Rows()
    options = dict(run_dir=place, checkpoint_every=3, log_every=1)
    fit(4, rows=rows, steps=3, **options)
    override = ("batch_size", "callbacks")
    fit({0: 6, 1.5: 12}, rows=rows, epochs=3, resume=True, override=override, **options)
    assert [len(step) for _, step in rows.steps] == [4] * 3 + [6, 6] + [6, 6, 12] + [12] * 2
    # Before the change; over it, for what was saved there is gone by now; and behind it.
    for step, saved in ((2, None), (5, None), (8, 6)):
        again = ft.tools.replay(place, step=step, task=TASK, data=X, state=start())
        assert np.asarray(again.batch).tolist() == rows.steps[step - 1][1]
        assert (again.epoch, again.checkpoint) == (rows.steps[step - 1][0], saved)
        assert again.differs == ()


def test_other_processes_are_noted_and_said(tmp_path, monkeypatch, caplog):
    place = tmp_path / "run"
    fit(4, steps=2, run_dir=place)
    extra = ft.Checkpointer(place / "checkpoints").extra()
    assert (extra["processes"], extra["position"], extra["data_state"]["example"]) == (1, [0, 2], 8)
    from fntrain.run.directory import RunDirectory

    monkeypatch.setattr(RunDirectory, "_compare_processes", _as_of_two(RunDirectory._compare_processes))
    fit(4, steps=3, run_dir=place, resume=True)
    assert json.loads((place / "config.json").read_text())["overridden"] == [
        {"step": 2, "changes": ["processes: saved 2, now 1"]}
    ]
    assert "goes on otherwise: processes: saved 2, now 1" in caplog.text


def _as_of_two(compare):
    return lambda self, extra: compare(self, {**extra, "processes": 2})
