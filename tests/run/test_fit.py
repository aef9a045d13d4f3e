"""fit and evaluate: histories, totals, determinism, callbacks, interrupts, one compile, no hidden transfers, resume."""

import contextlib
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32) + 0.25).astype(np.float32)
XV, YV = RNG.normal(size=(7, 3)).astype(np.float32), RNG.normal(size=7).astype(np.float32)


def loss_fn(params, batch, ctx):
    x, y = batch
    prediction = x @ params["w"] + params["b"]
    return ft.losses.mse(prediction, y).with_outputs(predictions=prediction)


def scalar_loss(params, batch, ctx):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


RATE = 0.0625
METRICS = {"prediction": ft.metrics.mean("predictions")}
TASK = ft.Task(
    loss_fn, ft.chain(ft.clip_by_norm(10.0), ft.optimizers.sgd(RATE, momentum=0.5)), metrics=METRICS
)
PLAIN = ft.Task(loss_fn, ft.optimizers.sgd(RATE), metrics=METRICS)


def start(task=TASK, key=0):
    return ft.init_state(task, {"w": np.zeros(3, np.float32), "b": np.float32(0)}, key=key)


def run(task=TASK, state=None, data=(X, Y), **kwargs):
    kwargs = {"batch_size": 8, "progress": False, **kwargs}
    return ft.fit(task, start(task) if state is None else state, data, **kwargs)


def bits(tree):
    tree = jax.tree.map(
        lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a, tree
    )
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b)):
        assert bits(x) == bits(y), jax.tree_util.keystr(path)


def predict(w, b, x):
    return x.astype(np.float64) @ w + b


def oracle(batches, epochs, rate=RATE):
    """Plain SGD in float64 over lists of batches; the epoch's loss is the weighted mean of what steps saw."""
    w, b, losses, predictions = np.zeros(3), 0.0, [], []
    for _ in range(epochs):
        total, seen = 0.0, 0.0
        for x, y in batches:
            r = predict(w, b, x) - y
            total += (r**2).sum()
            seen += (r + y).sum()
            w, b = w - rate * (2 * r[:, None] * x).mean(0), b - rate * (2 * r).mean()
        n = sum(len(y) for _, y in batches)
        losses.append(total / n)
        predictions.append(seen / n)
    return w, b, losses, predictions


# --- what comes back -------------------------------------------------------------------------------------------


def test_history_totals_and_validation_equal_numpy():
    state = start(PLAIN)
    result = run(PLAIN, state, epochs=3, shuffle=False, validation_data=(XV, YV))
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]  # the last has six rows
    w, b, losses, predictions = oracle(batches, 3)
    np.testing.assert_allclose(result.state.params["w"], w, rtol=1e-5)
    history = result.history
    assert history["epoch"] == [1, 2, 3]
    assert history["step"] == [3, 6, 9]
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(history["prediction"], predictions, rtol=1e-4, atol=1e-6)
    assert (int(result.state.step), int(result.state.updates)) == (9, 9)
    # Validation: the whole set at once, with the parameters after the epoch's last update.
    ends = [oracle(batches, k)[:2] for k in (1, 2, 3)]
    np.testing.assert_allclose(
        history["val_loss"], [((predict(*e, XV) - YV) ** 2).mean() for e in ends], rtol=1e-5
    )
    np.testing.assert_allclose(history["val_prediction"], [predict(*e, XV).mean() for e in ends], rtol=1e-4)
    assert history["learning_rate"] == [RATE] * 3
    rows = history.rows()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(isinstance(row[k], float) for row in rows for k in ("loss", "val_loss", "learning_rate"))
    with pytest.raises(KeyError):
        history["no such column"]
    again_state, again_history = result  # it unpacks
    assert again_state is result.state
    assert again_history is history
    assert result.interrupted is False
    # The state that was given is still usable, and evaluate agrees with NumPy on a ragged tail.
    assert float(state.params["b"]) == 0
    got = ft.evaluate(PLAIN, result.state, (XV, YV), batch_size=4)
    np.testing.assert_allclose(got["loss"], ((predict(w, b, XV) - YV) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(got["prediction"], predict(w, b, XV).mean(), rtol=1e-5)
    assert all(type(v) is float for v in got.values())
    assert list(got) == ["loss", "prediction"]
    whole = ft.evaluate(PLAIN, result.state, (XV, YV), batch_size=7)
    np.testing.assert_allclose(whole["loss"], got["loss"], rtol=1e-6)


def test_the_oracle_notices_a_mean_of_means():
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]
    means = np.mean([(y**2).mean() for _, y in batches])
    assert abs(means - (Y**2).mean()) > 1e-3 * means


def test_epochs_and_steps_are_totals():
    assert len(run().history["loss"]) == 10  # neither: ten epochs
    result = run(steps=7)
    assert int(result.state.step) == 7
    assert result.history["epoch"] == [1, 2, 3]  # two whole ones, and what was begun
    straight = run(epochs=3)
    # A chunk that does not divide, and log points in between, change nothing.
    for kwargs in ({"steps_per_call": 4}, {"steps_per_call": 2, "log_every": 3}, {"log_every": 1}):
        other = run(epochs=3, **kwargs)
        assert_same_bits(other.state, straight.state)
        assert other.history.rows() == straight.history.rows()


def test_same_seed_same_bits_and_the_seed_matters():
    a, b, c = run(epochs=2), run(epochs=2), run(epochs=2, seed=1)
    assert_same_bits(a.state, b.state)
    assert a.history.rows() == b.history.rows()
    assert bits(a.state.params) != bits(c.state.params)


def test_a_hand_written_loop_gives_the_same_bits():
    state = start()
    loader = ft.data_loader((X, Y), 8, shuffle=True, seed=0)
    for _ in range(2):
        for batch, weight in loader:
            state, _ = ft.train_step(TASK, state, batch, weight)
    assert_same_bits(run(epochs=2).state, state)


def test_given_state_continues():
    half = run(epochs=1)
    before = bits(half.state)
    more = run(state=half.state, epochs=1)
    assert int(more.state.step) == 6
    assert bits(half.state) == before


# --- scalar losses, iterables ----------------------------------------------------------------------------------


def test_a_scalar_loss_needs_full_batches():
    task = ft.Task(scalar_loss, ft.optimizers.sgd(RATE))
    w, b, losses, _ = oracle([(X[:8], Y[:8]), (X[8:16], Y[8:16])], 2)
    result = run(task, data=(X[:16], Y[:16]), epochs=2, shuffle=False)
    np.testing.assert_allclose(result.state.params["w"], w, rtol=1e-5)
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-5)
    with pytest.raises(ft.DataError, match="per example") as error:
        run(task, epochs=1)
    assert "`" in str(error.value)
    with pytest.raises(ft.DataError, match="per example"):
        ft.evaluate(task, result.state, (XV, YV), batch_size=4)
    with pytest.raises(ft.DataError, match="per example"):
        run(task, data=(X[:16], Y[:16]), epochs=1, validation_data=(XV, YV), batch_size=8)
    got = ft.evaluate(task, result.state, (XV, YV), batch_size=7)
    np.testing.assert_allclose(got["loss"], ((predict(w, b, XV) - YV) ** 2).mean(), rtol=1e-5)
    loader = ft.data_loader((X, Y), 8, shuffle=False, seed=0, drop_last=True)
    assert_same_bits(run(task, data=loader, epochs=2).state, result.state)


def test_an_iterable_whose_last_batch_is_short():
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]
    w, _, losses, _ = oracle(batches, 2)
    result = run(PLAIN, data=batches, epochs=2)
    np.testing.assert_allclose(result.state.params["w"], w, rtol=1e-5)
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-5)


def test_an_iterable_that_ends_early_says_at_which_step():
    batches = [(X[:8], Y[:8])] * 2
    with pytest.raises(ft.DataError, match="step 2"):
        run(data=lambda epoch: batches if epoch == 0 else [], epochs=2)


# --- callbacks -------------------------------------------------------------------------------------------------


def test_plain_functions_get_the_epochs_logs_and_may_add_to_them():
    seen = []

    def note(logs):
        seen.append(dict(logs))

    def add(logs):
        return {"double": 2 * logs["loss"]}

    result = run(epochs=2, validation_data=(XV, YV), callbacks=[note, add])
    assert [logs["epoch"] for logs in seen] == [1, 2]
    assert [logs["val_loss"] for logs in seen] == result.history["val_loss"]
    assert result.history["double"] == [2 * v for v in result.history["loss"]]

    def wrong(logs):
        return 3

    with pytest.raises(ft.ConfigError, match="wrong"):
        run(epochs=1, callbacks=[wrong])


class Recorder:
    """Notes every event and where the run stood."""

    def __init__(self):
        self.events = []

    def __getattr__(self, name):
        if name in ft.callbacks.EVENTS:
            return lambda ctx: self.events.append((name, ctx.epoch, ctx.step))
        raise AttributeError(name)


def test_callback_methods_come_in_order():
    recorder = Recorder()
    run(epochs=2, validation_data=(XV, YV), callbacks=[recorder], log_every=2)
    names = [e for e in recorder.events if e[0] != "on_log"]
    want = [("on_fit_begin", 1, 0)]
    for epoch in (1, 2):
        want.append(("on_epoch_begin", epoch, 3 * (epoch - 1)))
        want += [("on_step_end", epoch, 3 * (epoch - 1) + k) for k in (1, 2, 3)]
        want += [("on_validation_end", epoch, 3 * epoch), ("on_epoch_end", epoch, 3 * epoch)]
    want.append(("on_fit_end", 2, 6))
    assert [n for n, *_ in names] == [n for n, *_ in want]
    assert names[1:-1] == want[1:-1]
    assert "on_log" in [n for n, *_ in recorder.events]


def test_a_callback_may_stop_the_run():
    class Stop:
        def on_step_end(self, ctx):
            if ctx.step == 4:
                ctx.stop("enough")

    result = run(epochs=9, callbacks=[Stop()])
    assert int(result.state.step) == 4
    assert result.stop_reason == "enough"
    assert result.interrupted is False
    assert_same_bits(result.state, run(steps=4).state)


def test_several_callbacks_are_called_in_the_order_given():
    order = []
    run(
        epochs=1,
        callbacks=[
            lambda logs: order.append("a"),
            ft.callbacks.CallbackList([lambda logs: order.append("b")]),
        ],
    )
    assert order == ["a", "b"]


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end"])
def test_an_interrupt_returns_the_last_good_state(event, tmp_path):
    class Interrupt:
        pass

    def interrupt(self, ctx):
        if ctx.step >= 3:
            raise KeyboardInterrupt

    setattr(Interrupt, event, interrupt)
    result = run(epochs=5, callbacks=[Interrupt()], run_dir=tmp_path / "run")
    assert result.interrupted is True
    assert int(result.state.step) == 3
    assert_same_bits(result.state, run(steps=3).state)
    # It was saved, and goes on as if nothing had happened.
    resumed = run(epochs=5, run_dir=tmp_path / "run", resume=True)
    straight = run(epochs=5)
    assert_same_bits(resumed.state, straight.state)


def test_other_errors_in_a_callback_come_through():
    def broken(logs):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        run(epochs=1, callbacks=[broken])


# --- law 2: one compile; law 6: no hidden transfers ------------------------------------------------------------


def compiled(caplog):
    messages = [r.getMessage() for r in caplog.records]
    return [
        m.split()[1].removeprefix("jit(").removesuffix(")") for m in messages if m.startswith("Compiling ")
    ]


def test_one_compile_of_the_step_per_run(caplog):
    # 22 rows in batches of 8: each epoch ends with a partial batch, and so does the validation data.
    task = ft.Task(loss_fn, ft.optimizers.sgd(0.03125), metrics=METRICS)
    state = start(task)
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        run(task, state, epochs=3, validation_data=(XV, YV), log_every=2)
    names = compiled(caplog)
    steps = [n for n in names if "train_step" in n]
    assert len(steps) == 1, names
    assert len([n for n in names if "eval_step" in n]) == 1, names
    caplog.clear()
    # A second run of an equal task compiles nothing of the step.
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        run(
            ft.Task(loss_fn, ft.optimizers.sgd(0.03125), metrics=dict(METRICS)),
            state,
            epochs=2,
            validation_data=(XV, YV),
        )
    assert [n for n in compiled(caplog) if "step" in n] == []
    caplog.clear()
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        run(task, state, epochs=2, steps_per_call=2)
    names = compiled(caplog)
    assert len([n for n in names if "train_steps" in n]) == 1, names


class Guarded(contextlib.ExitStack):
    """From the first epoch's beginning to the run's end, implicit transfers are errors."""

    def on_epoch_begin(self, ctx):
        if ctx.epoch == 1:
            self.enter_context(jax.transfer_guard("disallow"))

    def on_fit_end(self, ctx):
        self.close()


@pytest.mark.parametrize("chunk", [1, 2])
def test_the_loop_makes_no_implicit_transfer(chunk):
    kwargs = dict(epochs=2, validation_data=(XV, YV), log_every=2, steps_per_call=chunk)
    want = run(**kwargs)  # compiled outside the guard, as a program's constants may move then
    with Guarded() as guard:
        result = run(callbacks=[guard], **kwargs)
    assert_same_bits(result.state, want.state)
    assert result.history.rows() == want.history.rows()


def test_the_guard_catches_an_implicit_transfer():
    class Peeks:
        def on_step_end(self, ctx):
            ctx.state.params["w"] + np.ones(3, np.float32)

    run(epochs=1, callbacks=[Peeks()])
    with Guarded() as guard, pytest.raises(Exception, match="Disallowed"):
        run(epochs=1, callbacks=[guard, Peeks()])


def test_the_whole_call_runs_under_a_transfer_guard():
    state = start()
    want = run(epochs=2, validation_data=(XV, YV), log_every=2)
    with jax.transfer_guard("disallow"):
        result = run(state=state, epochs=2, validation_data=(XV, YV), log_every=2)
        ft.evaluate(TASK, result.state, (XV, YV), batch_size=8)
    assert_same_bits(result.state, want.state)


def test_nothing_waits_for_the_device_between_log_points(monkeypatch):
    # Every way by which the host may wait or fetch, counted.
    fetches = []
    for owner, name in ((jax, "device_get"), (jax, "block_until_ready"), (type(jnp.zeros(())), "__float__"),
                        (type(jnp.zeros(())), "__int__"), (type(jnp.zeros(())), "__bool__"),
                        (type(jnp.zeros(())), "__array__"), (type(jnp.zeros(())), "item")):  # fmt: skip
        real = getattr(owner, name)

        def counted(*args, real=real, name=name, **kwargs):
            fetches.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    class Listens:
        def on_log(self, ctx):
            fetches.append("on_log")

    def count(steps, log_every):
        fetches.clear()
        data = np.tile(X[:8], (60, 1)), np.tile(Y[:8], 60)  # one epoch
        run(data=data, steps=steps, log_every=log_every, callbacks=[Listens()])
        return len(fetches)

    assert count(30, 1000) == count(60, 1000)
    assert count(60, 10) > count(30, 10)  # the counter counts


# --- law 8: resume ---------------------------------------------------------------------------------------------

ACCUMULATING = ft.Task(
    loss_fn,
    ft.MultiSteps(ft.optimizers.adamw(ft.schedules.warmup(ft.schedules.cosine(0.1, 12), 3)), 2),
    metrics=METRICS,
)


@functools.cache
def straight():
    return run(ACCUMULATING, epochs=3, validation_data=(XV, YV))


@pytest.mark.parametrize("k", [2, 3, 5, 6, 9])
def test_stopped_and_resumed_equals_straight_bitwise(k, tmp_path):
    # Nine steps in all, three an epoch, windows of two: k in a window, at epochs' edges, at the end.
    class Die:
        def on_step_end(self, ctx):
            if ctx.step == k:
                raise ZeroDivisionError  # no orderly end: only what was checkpointed counts

    kwargs = dict(epochs=3, validation_data=(XV, YV), run_dir=tmp_path / "run", checkpoint_every=1)
    with pytest.raises(ZeroDivisionError):
        run(ACCUMULATING, callbacks=[Die()], **kwargs)
    resumed = run(ACCUMULATING, resume=True, **kwargs)
    want = straight()
    assert_same_bits(resumed.state, want.state)
    assert resumed.history.rows() == want.history.rows()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["loss"] for line in lines] == want.history["loss"]


def test_a_termination_saves_at_a_steps_edge(tmp_path):
    class Terminate:
        def on_step_end(self, ctx):
            if ctx.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    kwargs = dict(epochs=3, validation_data=(XV, YV), run_dir=tmp_path / "run")
    with pytest.raises(SystemExit) as stopped:
        run(ACCUMULATING, callbacks=[Terminate()], **kwargs)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before  # the handlers are the caller's again
    seen = []

    class Starts:
        def on_fit_begin(self, ctx):
            seen.append((ctx.resumed_step, ctx.epoch, ctx.epoch_step))

    resumed = run(ACCUMULATING, resume=True, callbacks=[Starts()], **kwargs)
    assert seen in ([(4, 2, 1)], [(5, 2, 2)])
    assert_same_bits(resumed.state, straight().state)
    assert resumed.history.rows() == straight().history.rows()


def test_stopped_by_steps_and_resumed(tmp_path):
    # Totals: steps=4 ends in the middle of epoch 2; the resumed call asks for more.
    first = run(ACCUMULATING, steps=4, run_dir=tmp_path / "run", validation_data=(XV, YV))
    assert int(first.state.step) == 4
    resumed = run(ACCUMULATING, steps=9, run_dir=tmp_path / "run", validation_data=(XV, YV), resume=True)
    want = straight()
    assert_same_bits(resumed.state, want.state)
    assert resumed.history.rows() == want.history.rows()


def test_resume_does_nothing_when_the_run_is_done_and_starts_when_there_is_none(tmp_path):
    kwargs = dict(epochs=2, run_dir=tmp_path / "run")
    done = run(resume=True, **kwargs)  # nothing there yet: it starts
    assert int(done.state.step) == 6
    again = run(resume=True, **kwargs)
    assert_same_bits(again.state, done.state)
    assert again.history.rows() == done.history.rows()
    # More epochs: both are totals.
    more = run(resume=True, **{**kwargs, "epochs": 3})
    assert_same_bits(more.state, run(epochs=3).state)
    assert len(more.history["loss"]) == 3


def test_a_directory_in_use_and_another_run_are_refused(tmp_path):
    directory = tmp_path / "run"
    run(epochs=1, run_dir=directory)
    before = (directory / "metrics.jsonl").read_text()
    with pytest.raises(ft.ConfigError, match="resume=True"):
        run(epochs=1, run_dir=directory)
    for change, word in [
        ({"batch_size": 4}, "batch_size"),
        ({"seed": 1}, "seed"),
        ({"data": (X[:20], Y[:20])}, "rows|data"),
        ({"data": (X + 1, Y)}, "data|content"),
        ({"task": PLAIN}, "task"),
    ]:
        with pytest.raises(ft.ConfigError, match=word):
            run(epochs=2, run_dir=directory, resume=True, **change)
    assert (directory / "metrics.jsonl").read_text() == before
