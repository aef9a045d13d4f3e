"""Callbacks: the protocol and its order, golden sequences, one instance over two runs, and what survives a resume."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain.callbacks import (
    Callback,
    CallbackList,
    CSVLogger,
    EarlyStopping,
    GradientStats,
    JSONLogger,
    LearningRateScheduler,
    LoopContext,
    MetricLogger,
    ModelCheckpoint,
    NaNGuard,
    ReduceLROnPlateau,
    ResourceMonitor,
)
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.checkpoint.keep import Keep

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32) + 0.25).astype(np.float32)
XV, YV = RNG.normal(size=(7, 3)).astype(np.float32), RNG.normal(size=7).astype(np.float32)


def loss_fn(params, batch, ctx):
    x, y = batch
    return ft.losses.mse(x @ params["w"] + params["b"], y)


RATE = 0.0625
TASK = ft.Task(loss_fn, ft.optimizers.sgd(RATE, momentum=0.5))


def start(task=TASK):
    return ft.init_state(task, {"w": np.zeros(3, np.float32), "b": np.float32(0)})


def run(task=TASK, state=None, data=(X, Y), **kwargs):
    kwargs = {"batch_size": 8, "progress": False, **kwargs}
    return ft.fit(task, start(task) if state is None else state, data, **kwargs)


def bits(tree):
    tree = jax.tree.map(
        lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a, tree
    )
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def play(callback, values, column="val_loss", ctx=None, until_stop=True):
    """A run in which nothing happens but that an epoch ends with each of these values; yields the context."""
    ctx = ctx or LoopContext(TASK, start())
    callback.on_fit_begin(ctx)
    for epoch, value in enumerate(values, 1):
        ctx.epoch, ctx.step = epoch, 3 * epoch
        ctx.logs = {"epoch": epoch, "step": ctx.step, "loss": 1.0, column: value}
        callback.on_epoch_end(ctx)
        yield ctx
        if ctx.stop_reason and until_stop:
            return


def compiled(caplog, work):
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        result = work()
    messages = [r.getMessage() for r in caplog.records]
    caplog.clear()
    return result, [m.split()[1] for m in messages if m.startswith("Compiling ") and "train_step" in m]


# --- the protocol ----------------------------------------------------------------------------------------------


class Recorder:
    def __init__(self):
        self.events = []

    def __getattr__(self, name):
        if name in ft.callbacks.EVENTS:
            return lambda ctx: self.events.append((name, ctx.epoch, ctx.step))
        raise AttributeError(name)


def test_the_order_of_events_is_one_recorded_list():
    # init, then for each epoch: train, validate, callbacks; then next or done.
    recorder = Recorder()
    run(epochs=2, validation_data=(XV, YV), callbacks=[recorder], log_every=2, steps_per_call=1)
    assert recorder.events == [
        ("on_fit_begin", 1, 0),
        ("on_epoch_begin", 1, 0),
        ("on_step_end", 1, 1),
        ("on_step_end", 1, 2),  # a log point, whose values are fetched at the next one, or at the epoch's end
        ("on_step_end", 1, 3),
        ("on_log", 1, 3),
        ("on_validation_end", 1, 3),
        ("on_epoch_end", 1, 3),
        ("on_epoch_begin", 2, 3),
        ("on_step_end", 2, 4),
        ("on_step_end", 2, 5),
        ("on_step_end", 2, 6),
        ("on_log", 2, 6),  # of step 4
        ("on_log", 2, 6),  # and of step 6
        ("on_validation_end", 2, 6),
        ("on_epoch_end", 2, 6),
        ("on_fit_end", 2, 6),
    ]


def test_logs_say_at_which_step_they_were_measured():
    class Reads:
        def __init__(self):
            self.steps = []

        def on_log(self, ctx):
            self.steps.append((ctx.step, ctx.logs["step"]))

    reads = Reads()
    run(steps=9, data=(np.tile(X, (4, 1)), np.tile(Y, 4)), callbacks=[reads], log_every=2, steps_per_call=1)
    assert reads.steps == [(4, 2), (6, 4), (8, 6), (9, 8)]  # one window late, and the last at the end


def test_an_error_says_whose_it_is_and_leaves_the_files_whole(tmp_path):
    class Breaks:
        def on_epoch_end(self, ctx):
            if ctx.epoch == 3:
                raise RuntimeError("mine")

    def breaks_too(logs):
        return 1 / 0

    logger = JSONLogger(tmp_path / "log.jsonl")
    saving = ModelCheckpoint(tmp_path / "versions", "loss")
    with pytest.raises(RuntimeError, match="mine") as error:
        run(epochs=5, callbacks=[logger, saving, Breaks()], run_dir=tmp_path / "run")
    assert any("Breaks in on_epoch_end, at step 9" in note for note in error.value.__notes__)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
    ]
    assert Checkpointer(tmp_path / "versions").steps() == [3, 6, 9]
    assert Checkpointer(tmp_path / "run" / "checkpoints").steps() == [3, 6, 9]  # the error lost nothing
    with pytest.raises(ZeroDivisionError) as error:
        run(epochs=1, callbacks=[breaks_too])
    assert any("breaks_too" in note and "on_epoch_end" in note for note in error.value.__notes__)


def test_one_that_cannot_close_does_not_keep_others_open():
    closed = []

    class Closes:
        def __init__(self, name):
            self.name = name

        def on_epoch_end(self, ctx):
            raise RuntimeError("first")

        def close(self):
            closed.append(self.name)
            if self.name == "b":
                raise OSError("cannot close")

    callbacks = CallbackList([Closes("a"), Closes("b"), Closes("c")])
    with pytest.raises(RuntimeError, match="first") as error:
        run(epochs=1, callbacks=callbacks)
    assert sorted(closed) == ["a", "b", "c"]
    assert any("cannot close" in note for note in error.value.__notes__)
    with pytest.raises(OSError, match="cannot close"):
        callbacks.close()
    assert len(closed) == 6


def test_methods_in_keras_form():
    # An epoch counted from 0, as there, and the logs, which are those of the row.
    class Keras:
        def __init__(self):
            self.calls = []

        def on_train_begin(self, logs=None):
            self.calls.append("begin")

        def on_epoch_begin(self, epoch):
            self.calls.append(epoch)

        def on_epoch_end(self, epoch, logs=None):
            self.calls.append((epoch, logs["epoch"]))
            logs["mine"] = 10 * epoch

        def on_train_end(self, logs=None):
            self.calls.append("end")

    keras = Keras()
    history = run(epochs=2, callbacks=[keras, EarlyStopping("mine", mode="max")]).history
    assert keras.calls == ["begin", 0, (0, 1), 1, (1, 2), "end"]
    assert history["mine"] == [0, 10]


def test_an_error_in_keras_form_says_whose_it_is():
    class Breaks:
        def on_epoch_end(self, epoch, logs):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError) as caught:
        run(epochs=1, callbacks=[Breaks()])
    assert "Breaks in on_epoch_end" in caught.value.__notes__[0]


class _Nothing:
    def on_epoch_end(self):
        pass


class _Trainer:
    def on_epoch_end(self, trainer, module):
        pass


class _Typo:
    def on_epoch_end(self, ctx):
        pass

    def on_epoch_ends(self, ctx):
        pass


class _Batches:
    def on_train_batch_end(self, batch, logs=None):
        pass


class _OfKeras:
    __module__ = "keras.src.callbacks.callback"

    def on_epoch_end(self, epoch, logs=None):
        pass


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (_Nothing(), r"`on_epoch_end` of _Nothing must take one argument.*`def on_epoch_end\(self, ctx\)`"),
        (_Trainer(), r"got `on_epoch_end\(trainer, module\)`"),
        (_Typo(), r"nothing calls `on_epoch_ends` of _Typo.*did you mean 'on_epoch_end'"),
        (_Batches(), r"nothing calls `on_train_batch_end` of _Batches.*on_step_end"),
        (_OfKeras(), r"_OfKeras is a callback of Keras, .*`fntrain.callbacks`"),
        (EarlyStopping, r"write `EarlyStopping\(\)`"),
        (3, "must hold functions"),
        (object(), "must hold functions"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_runs(callback, message):
    with pytest.raises(ft.ConfigError, match=message):
        run(callbacks=[NoStep(), callback])


def test_every_form_of_one_argument_is_a_callback():
    seen = []

    class Forms:
        def on_fit_begin(self, context):  # its name is free
            seen.append("named")

        @staticmethod
        def on_epoch_begin(ctx):
            seen.append("static")

        def on_epoch_end(self, *arguments, **options):
            seen.append(len(arguments))

        on_fit_end = seen.append  # a built-in, without a signature to look at

    run(epochs=1, callbacks=[Forms()])
    assert seen[:3] == ["named", "static", 1]
    assert isinstance(seen[3], LoopContext)


def test_the_short_name_is_a_module():
    from fntrain.callbacks import EarlyStopping as short

    assert short is EarlyStopping
    import fntrain.callbacks as long

    shipped = {name for name in vars(long) if name[0].isupper()}
    assert {name: getattr(ft.callbacks, name) for name in shipped} == {n: getattr(long, n) for n in shipped}


def test_a_callback_list_is_iterable_and_a_callback(tmp_path):
    recorder, stopping = Recorder(), EarlyStopping("loss", patience=9)
    run(epochs=1, callbacks=CallbackList([CallbackList([recorder]), stopping]))
    assert len(recorder.events) == 7
    kwargs = dict(run_dir=tmp_path, callbacks=CallbackList([CallbackList([stopping])]))
    run(epochs=2, **kwargs)
    best = stopping.best
    again = EarlyStopping("loss", patience=9)
    kwargs["callbacks"] = CallbackList([CallbackList([again])])
    run(epochs=2, resume=True, **kwargs)  # which trains nothing more
    assert again.best == best


def test_a_callback_may_replace_the_state():
    class Zeroes:
        def on_epoch_end(self, ctx):
            ctx.state = ctx.state.replace(params=jax.tree.map(jnp.zeros_like, ctx.state.params))

    assert all(not np.any(x) for x in jax.tree.leaves(run(epochs=2, callbacks=[Zeroes()]).state.params))


def test_a_callback_may_ask_for_a_checkpoint_and_for_the_best_score(tmp_path):
    scores = []

    class Asks:
        def on_step_end(self, ctx):
            if ctx.step == 4:
                ctx.request_save()

        def on_epoch_end(self, ctx):
            scores.append((ctx.best_score("loss"), ctx.best_score("loss", "max"), ctx.best_score()))

    kwargs = dict(epochs=3, callbacks=[Asks()])
    result = run(run_dir=tmp_path / "run", checkpoint_every=100, **kwargs)
    assert Checkpointer(tmp_path / "run" / "checkpoints").steps() == [4, 9]
    losses = result.history["loss"]
    assert scores == [(min(losses[:k]), max(losses[:k]), None) for k in (1, 2, 3)]
    with pytest.raises(ft.ConfigError, match="run_dir"):
        run(**kwargs)


def test_a_stop_at_the_beginning_of_an_epoch_runs_none_of_it():
    class Stops:
        def on_epoch_begin(self, ctx):
            if ctx.epoch == 3:
                ctx.stop("early")

    result = run(epochs=5, callbacks=[Stops()])
    assert (int(result.state.step), result.history["epoch"], result.stop_reason) == (6, [1, 2], "early")


# --- monitors --------------------------------------------------------------------------------------------------


class NoStep:
    adds_logs = False

    def on_step_end(self, ctx):
        pytest.fail("a step was run")


@pytest.mark.parametrize(
    "make",
    [
        lambda monitor, path: EarlyStopping(monitor),
        lambda monitor, path: ReduceLROnPlateau(monitor),
        lambda monitor, path: ModelCheckpoint(path, monitor, save_best_only=True),
    ],
)
def test_a_monitor_that_cannot_be_is_refused_before_training(make, tmp_path):
    with pytest.raises(ft.ConfigError, match=r"`monitor`.*'loss'.*'val_loss'.*`validation_data`"):
        run(callbacks=[make("val_loss", tmp_path), NoStep()])
    task = ft.Task(loss_fn, ft.chain(ft.clip_by_norm(1.0), ft.optimizers.sgd(RATE)))
    with pytest.raises(ft.ConfigError, match=r"'val_loss'.*got 'val_los'; did you mean 'val_loss'") as error:
        run(task, callbacks=[make("val_los", tmp_path), NoStep()], validation_data=(XV, YV))
    assert "grad_norm" in str(error.value)
    assert "'step'" not in str(error.value)
    # The very names that an epoch logs.
    listed = str(error.value).partition("one of ")[2].partition(", got")[0]
    row = run(task, epochs=1, validation_data=(XV, YV)).history.rows()[0]
    assert listed == ", ".join(repr(name) for name in row if name not in ("epoch", "step", "updates"))


def test_a_column_that_a_callback_adds_may_be_monitored():
    stopping = EarlyStopping("mine", patience=1, mode="min")
    result = run(epochs=5, callbacks=[lambda logs: {"mine": 1.0}, stopping])
    assert result.history["epoch"] == [1, 2]
    with pytest.raises(ft.ConfigError, match=r"'mine'.*got 'other'"):
        run(epochs=5, callbacks=[lambda logs: {"mine": 1.0}, EarlyStopping("other", mode="min")])
    with pytest.raises(ft.ConfigError, match="number"):
        run(epochs=5, callbacks=[lambda logs: {"mine": "text"}, EarlyStopping("mine", mode="min")])


def test_bad_arguments_are_refused():
    bad = [
        (lambda: EarlyStopping(patience=0), "patience"),
        (lambda: EarlyStopping(mode="best"), "mode"),
        (lambda: EarlyStopping(min_delta=-1), "min_delta"),
        (lambda: EarlyStopping(monitor=3), "monitor"),
        (lambda: ModelCheckpoint("x", every=0), "every"),
        (lambda: ModelCheckpoint("x", mode="best"), "mode"),
        (lambda: ModelCheckpoint("best.h5"), "npz"),
        (lambda: ReduceLROnPlateau(factor=1.0), "factor"),
        (lambda: ReduceLROnPlateau(cooldown=-1), "cooldown"),
        (lambda: ReduceLROnPlateau(min_lr=-1), "min_lr"),
        (lambda: ReduceLROnPlateau(min_delta=math.nan), "min_delta"),
        (lambda: LearningRateScheduler(0.1), "function"),
        (lambda: LearningRateScheduler(), "`function` or `scheduler`"),
        (lambda: LearningRateScheduler(lambda e: 0.1, scheduler="cosine"), "one of the two"),
        (lambda: LearningRateScheduler(lambda e: 0.1, steps=3), "`steps` is for a scheduler by name"),
        (lambda: LearningRateScheduler("reduce_on_plato"), "did you mean 'reduce_on_plateau'"),
        (lambda: LearningRateScheduler("cosine", start=0.1), "`scheduler` 'cosine'.*steps"),
        (lambda: LearningRateScheduler("cosine", start=0.1, steps=0), "`steps`"),
        (lambda: LearningRateScheduler(scheduler="reduce_on_plateau", factor=2.0), "factor"),
        (lambda: NaNGuard(patience=0), "patience"),
        (lambda: NaNGuard(action="abort"), "action"),
    ]
    for make, name in bad:
        with pytest.raises(ft.ConfigError, match=name):
            make()


# --- EarlyStopping ---------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("kwargs", "values", "stops_at", "best_epoch"),
    [
        # The patience-th check in a row without an improvement stops, and not the one after.
        (dict(patience=1), [3.0, 2.0, 2.0, 1.0], 3, 2),
        (dict(patience=2), [3.0, 2.0, 2.0, 2.5, 1.0], 4, 2),
        (dict(patience=2), [3.0, 3.5, 2.0, 2.5, 1.0, 1.0, 1.0], 7, 5),
        (dict(patience=2, mode="max"), [0.1, 0.5, 0.4, 0.5, 0.9], 4, 2),
        (dict(patience=2, mode="max"), [-3.0, -2.0, -2.5, -1.0, -1.0, -1.0], 6, 4),
        # Exactly min_delta better is not better; small steps that add up to it are.
        (dict(patience=2, min_delta=0.5), [3.0, 2.5, 2.0, 2.0, 2.0], 5, 3),
        (dict(patience=3, min_delta=0.5), [3.0, 2.75, 2.5, 2.25, 2.0, 1.0], None, 6),
        # NaN and infinity are no improvements, wherever they come.
        (dict(patience=2), [NAN, NAN, 1.0], 2, None),
        (dict(patience=3), [NAN, 5.0, NAN, -INF, NAN, 1.0], 5, 2),
        (dict(patience=2, mode="max"), [INF, 1.0, INF, INF], 4, 2),
    ],
)
def test_early_stopping_golden(kwargs, values, stops_at, best_epoch):
    stopping = EarlyStopping(**kwargs)
    *_, ctx = play(stopping, values)
    assert (ctx.epoch if ctx.stop_reason else None) == stops_at
    assert stopping.best_epoch == best_epoch
    assert stopping.best == (None if best_epoch is None else values[best_epoch - 1])


def test_early_stopping_restores_the_best_weights(caplog):
    # Values as scripted: epoch 2 is the best, epoch 4 the last.
    script = iter([2.0, 1.0, 3.0, 4.0])
    stopping = EarlyStopping("scripted", patience=2, restore_best=True, mode="min")
    result = run(epochs=9, callbacks=[lambda logs: {"scripted": next(script)}, stopping])
    assert result.history["epoch"] == [1, 2, 3, 4]
    assert bits(result.state.params) == bits(run(epochs=2).state.params)
    assert bits(result.state.opt_state) == bits(run(epochs=4).state.opt_state)
    assert "scripted" in result.stop_reason
    assert "best is 1, of epoch 2" in result.stop_reason
    # What came back is a state like any other: it trains, and what the callback keeps is not consumed by that.
    _, programs = compiled(caplog, lambda: run(state=result.state, epochs=1))
    assert programs == []
    ft.train_step(TASK, result.state, (X, Y))
    assert all(np.isfinite(x).all() for x in stopping._weights.values())
    # Without it, the last ones.
    script = iter([2.0, 1.0, 3.0, 4.0])
    stopping = EarlyStopping("scripted", patience=2, mode="min")
    result = run(epochs=9, callbacks=[lambda logs: {"scripted": next(script)}, stopping])
    assert bits(result.state.params) == bits(run(epochs=4).state.params)


def test_one_instance_serves_several_runs():
    for callback in (EarlyStopping(patience=2, restore_best=True), ReduceLROnPlateau(patience=2)):
        first = [ctx.state for ctx in play(callback, [1.0, 0.5, 3.0])]
        second = [ctx.state for ctx in play(callback, [9.0, 8.0, 9.0])]
        assert [bits(a) for a in first] == [bits(b) for b in second]
    stopping = EarlyStopping("scripted", patience=1, mode="min")
    for values, epochs in ([5.0, 6.0], 2), ([7.0, 6.0, 6.0], 3):
        script = iter(values)
        result = run(epochs=9, callbacks=[lambda logs, s=script: {"scripted": next(s)}, stopping])
        assert len(result.history["loss"]) == epochs


# --- learning rates --------------------------------------------------------------------------------------------


def multiplier(state):
    values = [float(x) for path, x in ft.tree.items(state.opt_state) if path.endswith("multiplier")]
    assert len(values) == 1
    return values[0]


@pytest.mark.parametrize(
    ("kwargs", "values", "exponents"),
    [
        (dict(patience=1), [3, 2, 2, 2, 1], [0, 0, 1, 2, 2]),
        (dict(patience=2), [3, 2, 2, 2, 2, 2, 1], [0, 0, 0, 1, 1, 2, 2]),
        (dict(patience=2, mode="max"), [1, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 2]),
        (dict(patience=2), [-1, -1, -1, -2, -3, -3, -3], [0, 0, 1, 1, 1, 1, 2]),  # below zero, too
        (dict(patience=2), [1, NAN, NAN, NAN, 0.5], [0, 0, 1, 1, 1]),
        (dict(patience=1, min_delta=1.0), [3, 2, 1, 0.5], [0, 1, 1, 2]),  # 1 is by 2 better than 3
        # Cooldown: checks after a reduction that don't count; the best is kept up in them.
        (dict(patience=1, cooldown=2), [1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2, 2, 3]),
        (dict(patience=2, cooldown=1), [1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 2, 2]),
        (dict(patience=1, cooldown=2), [3, 3, 1, 2, 2], [0, 1, 1, 1, 2]),
        # The floor: 0.5 ** 2 of the rate 0.0625, and not below.
        (dict(patience=1, min_lr=0.25 * RATE), [1, 1, 1, 1, 1], [0, 1, 2, 2, 2]),
    ],
)
def test_reduce_on_plateau_golden(kwargs, values, exponents):
    plateau = ReduceLROnPlateau("val_loss", factor=0.5, **kwargs)
    seen = []
    for ctx in play(plateau, values):
        seen.append(multiplier(ctx.state))
        # What the next update records, the rate with the multiplier, is what the floor looks at.
        _, opt_state = TASK.tx.update(
            jax.tree.map(jnp.zeros_like, ctx.state.params), ctx.state.opt_state, ctx.state.params
        )
        ctx.state = ctx.state.replace(opt_state=opt_state)
    assert seen == [0.5**e for e in exponents]


def test_the_rate_changes_without_another_compile(caplog):
    task = ft.Task(loss_fn, ft.chain(ft.clip_by_norm(1.0), ft.MultiSteps(ft.optimizers.adamw(0.125), 1)))
    script = itertools.count()
    callbacks = [
        lambda logs: {"flat": 1.0 + next(script)},
        ReduceLROnPlateau("flat", factor=0.5, patience=1, mode="min"),
    ]
    result, programs = compiled(caplog, lambda: run(task, epochs=4, callbacks=callbacks))
    assert result.history["learning_rate"] == [0.125, 0.125, 0.0625, 0.03125]
    assert len(programs) == 1, programs
    rates = {1: 0.125, 2: 0.5, 3: 0.0, 4: 0.25}
    scheduler = LearningRateScheduler(rates.get)
    result, programs = compiled(caplog, lambda: run(task, epochs=4, callbacks=[scheduler]))
    assert result.history["learning_rate"] == list(rates.values())
    assert programs == []
    # The rate is used, not only reported: plain SGD by hand.
    task = ft.Task(loss_fn, ft.optimizers.sgd(RATE))
    result = run(
        task,
        data=(X, Y),
        batch_size=22,
        epochs=2,
        callbacks=[LearningRateScheduler([0, 1, 0.25].__getitem__)],
    )
    w, b = np.zeros(3), 0.0
    for rate in (1, 0.25):
        r = X.astype(np.float64) @ w + b - Y
        w, b = w - rate * (2 * r[:, None] * X).mean(0), b - rate * (2 * r).mean()
    np.testing.assert_allclose(result.state.params["w"], w, rtol=1e-5)


def test_a_scheduler_by_name(caplog):
    # Rate × 0.1 after the fifth epoch in a row that is no better than the first.
    plateau = LearningRateScheduler(
        scheduler="reduce_on_plateau", factor=0.1, patience=5, monitor="flat", mode="min"
    )
    result, programs = compiled(
        caplog, lambda: run(epochs=8, callbacks=[lambda logs: {"flat": 1.0}, plateau])
    )
    np.testing.assert_allclose(result.history["learning_rate"], [RATE] * 6 + [RATE / 10] * 2, rtol=1e-6)
    assert len(programs) <= 1
    assert isinstance(plateau, ReduceLROnPlateau)  # with its state, which test_stopped_and_resumed is about
    # A schedule counts epochs from 0: the first has the rate it starts with.
    state, cosine = start(), LearningRateScheduler("cosine", start=1.0, steps=2)
    with jax.transfer_guard("disallow"):
        result = run(state=state, epochs=4, callbacks=[cosine])
    np.testing.assert_allclose(result.history["learning_rate"], [1.0, 0.5, 0.0, 0.0], atol=1e-7)


def test_a_scheduler_over_a_schedule_and_over_groups():
    schedule = ft.schedules.linear(0.5, 0.25, 6)
    task = ft.Task(loss_fn, ft.optimizers.sgd(schedule))
    result = run(task, epochs=2, callbacks=[LearningRateScheduler(lambda epoch: [None, 0.125, 0.25][epoch])])
    # The last update of each epoch is number 2 and 5; the schedule counts from 0.5.
    want = [0.125 * float(schedule(2)) / 0.5, 0.25 * float(schedule(5)) / 0.5]
    np.testing.assert_allclose(result.history["learning_rate"], want, rtol=1e-6)
    groups = ft.Task(
        loss_fn, ft.transforms.by_path({"b": ft.optimizers.sgd(0.5), "w": ft.optimizers.sgd(0.125)})
    )
    state = run(groups, epochs=1, callbacks=[LearningRateScheduler(lambda epoch: 0.25)]).state
    rates = [float(x) for path, x in ft.tree.items(state.opt_state) if path.endswith("learning_rate")]
    assert rates == [0.25, 0.0625]


def test_all_of_them_on_a_mesh_make_no_implicit_transfer_and_no_other_program(caplog, tmp_path):
    class Ends(Callback):
        rates = ()

        def on_epoch_end(self, ctx):
            self.rates = (*self.rates, ctx.logs["learning_rate"])

    mesh = ft.sharding.mesh(data=-1)
    task = ft.Task(loss_fn, ft.optimizers.adamw(0.125))
    state = ft.init_state(task, {"w": np.zeros(3, np.float32), "b": np.float32(0)}, mesh=mesh)
    callbacks = [
        LearningRateScheduler(lambda epoch: 0.5**epoch),
        ReduceLROnPlateau("loss", min_delta=100.0, patience=2),
        EarlyStopping("loss", restore_best=True),
        ModelCheckpoint(tmp_path / "versions", "loss"),
        NaNGuard(),
        GradientStats(),
        ResourceMonitor(),
        MetricLogger(),
        CSVLogger(tmp_path / "log.csv"),
        JSONLogger(tmp_path / "log.jsonl"),
        Ends(),
    ]
    kwargs = dict(log_every=2, run_dir=tmp_path / "run", callbacks=callbacks)

    def guarded():
        with jax.transfer_guard("disallow"):
            return run(task, state, epochs=3, **kwargs)

    result, programs = compiled(caplog, guarded)
    assert len(programs) == 1, programs
    assert result.history["learning_rate"] == [0.5, 0.25, 0.125]
    result, programs = compiled(caplog, lambda: run(task, state, epochs=5, resume=True, **kwargs))
    assert result.history["learning_rate"] == [0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert callbacks[-1].rates == (0.5, 0.25, 0.125, 0.0625, 0.03125)
    assert callbacks[-4].history.rows() == result.history.rows()
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 5  # appended to, under the one head
    again, more = compiled(caplog, lambda: run(task, result.state, epochs=1))
    assert programs + more == []
    assert again.state.params["w"].sharding == state.params["w"].sharding


def test_a_foreign_optimizer_is_told_the_way_out():
    task = ft.Task(loss_fn, optax.adam(1e-3))
    for callback in (LearningRateScheduler(lambda epoch: 0.1), ReduceLROnPlateau("loss")):
        with pytest.raises(ft.ConfigError, match="scale_by_learning_rate"):
            run(task, callbacks=[callback, NoStep()])
    way_out = ft.chain(optax.scale_by_adam(), ft.transforms.scale_by_learning_rate(1e-3))
    result = run(ft.Task(loss_fn, way_out), epochs=1, callbacks=[LearningRateScheduler(lambda epoch: 0.5)])
    assert result.history["learning_rate"] == [0.5]


def test_a_function_that_gives_no_rate_is_named():
    for value in (-0.1, NAN, "0.1", None):
        with pytest.raises(ft.ConfigError, match=r"function\(1\)"):
            run(callbacks=[LearningRateScheduler(lambda epoch, v=value: v), NoStep()])
    cold = ft.Task(loss_fn, ft.optimizers.sgd(ft.schedules.warmup(ft.schedules.constant(0.1), 5)))
    with pytest.raises(ft.ConfigError, match="0 at the beginning"):
        run(cold, callbacks=[LearningRateScheduler(lambda epoch: 0.1), NoStep()])


# --- ModelCheckpoint -------------------------------------------------------------------------------------------


def scripted(values):
    script = iter(values)
    return lambda logs: {"scripted": next(script)}


def test_versions_and_the_best_of_them(tmp_path):
    values = [5.0, 1.0, 4.0, NAN, 3.0, 2.0]
    saving = ModelCheckpoint(tmp_path / "all-0.5", "scripted", mode="min")  # a dot does not make a file of it
    result = run(epochs=6, callbacks=[scripted(values), saving])
    with Checkpointer(tmp_path / "all-0.5", Keep(best=("scripted", "min"))) as versions:
        assert versions.steps() == [6, 12, 15, 18]  # the newest three and the best
        assert versions.best_step == 6
        assert bits(versions.restore(start())) == bits(result.state)
        assert bits(versions.restore(start(), step="best")) == bits(run(epochs=2).state)
        assert versions.extra("best")["epoch"] == 2
    assert saving.best == 1.0


def test_best_only_and_every(tmp_path):
    saving = ModelCheckpoint(tmp_path / "best", "scripted", mode="max", save_best_only=True)
    run(epochs=6, callbacks=[scripted([NAN, 2.0, 1.0, 3.0, INF, 3.0]), saving])
    assert Checkpointer(tmp_path / "best").steps() == [12]
    assert saving.best == 3.0
    run(
        epochs=7,
        callbacks=[
            scripted([4, 3, 2, 5, 1, 0.5, 0.1]),
            ModelCheckpoint(tmp_path / "every", "scripted", every=3, mode="min"),
        ],
    )
    assert Checkpointer(tmp_path / "every").steps() == [9, 18]
    # By the default monitor, without validation data: the newest, and no best.
    run(epochs=5, callbacks=[ModelCheckpoint(tmp_path / "plain")])
    assert Checkpointer(tmp_path / "plain").steps() == [9, 12, 15]
    assert Checkpointer(tmp_path / "plain").best_step is None


def test_a_path_with_a_suffix_is_one_file(tmp_path):
    path = tmp_path / "deep" / "best.npz"
    task = ft.Task(
        lambda p, b, ctx: loss_fn({"w": p["file"]["w"].astype(jnp.float32), "b": p["b"]}, b, ctx), TASK.tx
    )
    params = {"file": {"w": np.zeros(3, jnp.bfloat16)}, "b": np.float32(0)}
    values = [5.0, 1.0, 4.0]
    states = []

    class Keeps:
        def on_epoch_end(self, ctx):
            states.append(jax.device_get(ctx.state.params))

    saving = ModelCheckpoint(path, "scripted", save_best_only=True, mode="min")
    run(task, ft.init_state(task, params), epochs=3, callbacks=[scripted(values), Keeps(), saving])
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file) == ["b", "file/w"]
        assert file["file/w"].dtype == np.float32  # of bfloat16, exactly
        np.testing.assert_array_equal(file["file/w"], states[1]["file"]["w"].astype(np.float32))
        assert file["b"] == states[1]["b"]
    assert [p.name for p in path.parent.iterdir()] == ["best.npz"]


def test_a_directory_of_another_run_is_refused_and_its_own_continued(tmp_path):
    directory = tmp_path / "versions"
    saving = ModelCheckpoint(directory, "scripted", save_best_only=True, mode="min")
    result = run(epochs=2, callbacks=[scripted([2.0, 1.0]), saving])
    with pytest.raises(ft.ConfigError, match=r"`directory`.*later steps \(`6`\).*starts at \(0\)"):
        run(
            epochs=2,
            callbacks=[scripted([2.0, 1.0]), ModelCheckpoint(directory, "scripted", mode="min"), NoStep()],
        )
    assert Checkpointer(directory).steps() == [6]
    # From the state it ended with: a worse model does not replace the best.
    more = ModelCheckpoint(directory, "scripted", save_best_only=True, mode="min")
    run(state=result.state, epochs=2, callbacks=[scripted([1.5, 1.25]), more])
    assert Checkpointer(directory).steps() == [6]
    run(state=result.state, epochs=2, callbacks=[scripted([1.5, 0.5]), more])
    assert Checkpointer(directory).steps() == [12]
    # The same instance in a run from the beginning: what it wrote itself goes.
    run(epochs=1, callbacks=[scripted([7.0]), more])
    assert Checkpointer(directory).steps() == [3]


# --- NaNGuard --------------------------------------------------------------------------------------------------


def poisoned(rows):
    x = np.tile(X[:8], (20, 1))
    for i in rows:
        x[8 * i] = NAN  # batch number i, from 0
    return x, np.tile(Y[:8], 20)


@pytest.mark.parametrize(("patience", "stops"), [(1, True), (16, True), (17, False)])
def test_nan_guard_stops_where_parameters_are_not_finite(patience, stops, tmp_path):
    # Batch 4 is bad, and so are the parameters after each of the 16 steps from there on.
    result = run(
        data=poisoned([4]), shuffle=False, epochs=1, callbacks=[NaNGuard(patience)], run_dir=tmp_path / "run"
    )
    assert bool(result.stop_reason) == stops
    if stops:
        assert result.stop_reason == "16 steps in a row were not finite: params `b`, `w`"
    assert Checkpointer(tmp_path / "run" / "checkpoints").latest_step == int(result.state.step)


def test_nan_guard_counts_skipped_steps_in_a_row():
    task = ft.Task(loss_fn, ft.transforms.skip_nonfinite(TASK.tx))
    data = poisoned([2, 3, 5, 6, 7, 9, 10])
    kwargs = dict(data=data, shuffle=False, epochs=1)
    assert run(task, callbacks=[NaNGuard(4)], **kwargs).stop_reason is None
    result = run(task, callbacks=[NaNGuard(3)], **kwargs)
    assert result.stop_reason.startswith(
        "3 steps in a row were skipped, as not finite; most recently, step 9: gradient of `b` has "
    )
    # Log windows of 2: counted at step 8, read at the log point 10.
    result = run(task, callbacks=[NaNGuard(3)], log_every=2, **kwargs)
    assert int(result.state.step) == 10
    # Of accumulation windows of 2 those of the batches 2 to 11 are bad: five in a row.
    windowed = ft.Task(loss_fn, ft.MultiSteps(task.tx, 2))
    assert run(windowed, callbacks=[NaNGuard(6)], **kwargs).stop_reason is None
    assert run(windowed, callbacks=[NaNGuard(5)], **kwargs).stop_reason is not None


# --- resume ----------------------------------------------------------------------------------------------------


class Die:
    adds_logs = False

    def __init__(self, step):
        self.step = step

    def on_step_end(self, ctx):
        if ctx.step == self.step:
            raise ZeroDivisionError


class Interrupts:
    adds_logs = False

    def __init__(self, step):
        self.step = step

    def on_epoch_end(self, ctx):
        if ctx.step == self.step:
            raise KeyboardInterrupt


SCRIPT = [5.0, 3.0, 4.0, 4.0, 3.5, 2.0, 6.0, 6.0, 6.0, 1.0]


def script_of_epoch(logs):
    return {"scripted": SCRIPT[logs["epoch"] - 1] if logs["epoch"] <= len(SCRIPT) else 9.0}


def everything(path):
    """All that have a state, or write."""
    recorder = Recorder()
    stopping = EarlyStopping("scripted", patience=3, restore_best=True, mode="min")
    plateau = ReduceLROnPlateau("scripted", factor=0.5, patience=2, cooldown=1, mode="min")
    saving = ModelCheckpoint(path / "versions", "scripted", save_best_only=True, mode="min")
    files = [CSVLogger(path / "log.csv"), JSONLogger(path / "log.jsonl")]
    return recorder, stopping, [script_of_epoch, recorder, plateau, stopping, saving, NaNGuard(), *files]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    path = tmp_path_factory.mktemp("straight")
    recorder, stopping, callbacks = everything(path)
    result = run(epochs=30, run_dir=path / "run", callbacks=callbacks, checkpoint_every=1)
    return path, recorder, stopping, result


def test_the_straight_run_stops_at_the_best(straight):
    path, _, stopping, result = straight
    # Best at epoch 2, then three without: 3, 4, 5.
    assert result.history["epoch"] == [1, 2, 3, 4, 5]
    assert (stopping.best, stopping.best_epoch) == (3.0, 2)
    assert result.history["learning_rate"] == [RATE] * 4 + [RATE / 2]
    assert bits(result.state.params) == bits(run(epochs=2).state.params)
    assert Checkpointer(path / "versions").steps() == [6]


@pytest.mark.parametrize("k", [2, 7, 9, 15])
def test_stopped_and_resumed_equals_straight(k, straight, tmp_path):
    want_path, want_recorder, _, want = straight
    recorder, _, callbacks = everything(tmp_path)
    kwargs = dict(epochs=30, run_dir=tmp_path / "run", checkpoint_every=1)
    with pytest.raises(ZeroDivisionError):
        run(callbacks=[*callbacks, Die(k)], **kwargs)
    before = recorder.events
    recorder, stopping, callbacks = everything(tmp_path)
    result = run(callbacks=callbacks, resume=True, **kwargs)
    assert bits(result.state) == bits(want.state)
    assert result.history.rows() == want.history.rows()
    assert result.stop_reason == want.stop_reason
    assert (stopping.best, stopping.best_epoch) == (3.0, 2)
    for name in ("log.csv", "log.jsonl", "run/metrics.csv"):
        assert (tmp_path / name).read_text() == (want_path / name).read_text(), name
    assert Checkpointer(tmp_path / "versions").steps() == [6]
    # The same events as without the break: the step was saved, and its epoch, if it ends there, ends in the second run.
    steps = [e for e in before if e[0] == "on_step_end"]
    steps += [e for e in recorder.events if e[0] == "on_step_end"]
    assert steps == [e for e in want_recorder.events if e[0] == "on_step_end"]
    ends = [e for e in recorder.events if e[0] == "on_epoch_end"]
    assert ends == [e for e in want_recorder.events if e[0] == "on_epoch_end" and e[2] >= k]


@pytest.mark.parametrize("how", ["steps", "interrupt"])
def test_an_epoch_whose_end_is_called_again_is_counted_once(how, straight, tmp_path):
    # A run that ends within epoch 4 (which then has an end of its own), or is interrupted while epoch 4 ends.
    want_path, _, _, want = straight
    _, _, callbacks = everything(tmp_path)
    if how == "steps":
        run(steps=11, callbacks=callbacks, run_dir=tmp_path / "run")
    else:
        assert run(epochs=30, callbacks=[*callbacks, Interrupts(12)], run_dir=tmp_path / "run").interrupted
    _, stopping, callbacks = everything(tmp_path)
    result = run(epochs=30, callbacks=callbacks, run_dir=tmp_path / "run", resume=True)
    assert result.history.rows() == want.history.rows()
    assert bits(result.state) == bits(want.state)
    assert stopping.best_epoch == 2
    for name in ("log.csv", "log.jsonl"):
        assert (tmp_path / name).read_text() == (want_path / name).read_text(), name


def test_a_stopped_run_stays_stopped_unless_given_more_patience(straight, tmp_path):
    _, _, callbacks = everything(tmp_path)
    kwargs = dict(epochs=30, run_dir=tmp_path / "run")
    first = run(callbacks=callbacks, **kwargs)
    _, _, callbacks = everything(tmp_path)
    again = run(callbacks=callbacks, resume=True, **kwargs)
    assert bits(again.state) == bits(first.state)
    assert again.stop_reason == first.stop_reason
    _, _, callbacks = everything(tmp_path)
    callbacks[3] = EarlyStopping("scripted", patience=4, restore_best=True, mode="min")
    more = run(callbacks=callbacks, resume=True, **kwargs)
    assert more.history["epoch"] == [*range(1, 15)]  # the best at 10, then four without


def test_other_callbacks_on_a_resume_are_refused(tmp_path):
    kwargs = dict(epochs=4, run_dir=tmp_path / "run")
    run(callbacks=[EarlyStopping("loss"), lambda logs: None], **{**kwargs, "epochs": 2})
    for callbacks in ([], [NaNGuard()], [EarlyStopping("loss"), NaNGuard()]):
        with pytest.raises(ft.ConfigError, match=r"`callbacks`.*saved EarlyStopping; now"):
            run(callbacks=callbacks, resume=True, **kwargs)
    with pytest.raises(ft.ConfigError, match="`restore_best`"):
        run(callbacks=[EarlyStopping("loss", restore_best=True)], resume=True, **kwargs)
    run(callbacks=[Recorder(), EarlyStopping("loss", patience=3)], resume=True, **kwargs)


def test_a_users_own_state_travels_too(tmp_path):
    class Counts:
        def on_fit_begin(self, ctx):
            self.seen = np.zeros(2, np.int64)

        def on_step_end(self, ctx):
            self.seen += [1, ctx.epoch]

        def state(self):
            return {"seen": self.seen}

        def restore(self, state):
            self.seen = state["seen"].copy()

    kwargs = dict(epochs=3, run_dir=tmp_path / "run", checkpoint_every=1)
    with pytest.raises(ZeroDivisionError):
        run(callbacks=[Counts(), Die(5)], **kwargs)
    counts = Counts()
    run(callbacks=[counts], resume=True, **kwargs)
    assert counts.seen.tolist() == [9, 3 * (1 + 2 + 3)]
