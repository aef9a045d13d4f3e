"""The base class of callbacks, a Protocol a kind over what is shipped, and the names that others have for things."""

import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest

import fntrain as ft
from fntrain import callbacks, protocols
from fntrain.run.callback import Callback, events_of

X = np.ones(8, np.float32)


def loss_fn(params, batch, ctx):
    return ft.losses.mse(batch * params["w"], batch)


TASK = ft.Task(loss_fn, ft.optimizers.sgd(0.25))


def run(task=TASK, **options):
    state = ft.init_state(task, {"w": np.float32(0)})
    return ft.fit(task, state, X, **{"epochs": 3, "batch_size": 2, "progress": False, **options})


def test_every_event_is_a_documented_method_of_the_base():
    methods = {name for name in vars(Callback) if name.startswith("on_")}
    assert methods == {*callbacks.EVENTS}
    assert all(inspect.getdoc(getattr(Callback, name)) for name in methods)
    assert all(
        [*inspect.signature(getattr(Callback, name)).parameters] == ["self", "ctx"] for name in methods
    )


def test_what_is_not_overridden_is_not_called_and_costs_nothing():
    class Ends(callbacks.Callback):
        def __init__(self):
            self.seen = []

        def on_epoch_end(self, ctx):
            self.seen.append(ctx.epoch)

    listed = callbacks.CallbackList([ends := Ends()])
    assert [event for event in callbacks.EVENTS if listed.listens(event)] == ["on_epoch_end"]
    assert not listed.needs_every_step  # though the base has an `on_step_end`
    assert run(callbacks=[ends], steps_per_call=4).steps_per_call == 4
    assert ends.seen == [1, 2, 3]

    class Steps(callbacks.Callback):
        def on_step_end(self, ctx):
            pass

    assert callbacks.CallbackList([Steps()]).needs_every_step
    with pytest.raises(ft.ConfigError, match="`callbacks` must hold"):
        callbacks.CallbackList([callbacks.Callback()])


SHIPPED = [
    getattr(callbacks, name)
    for name in callbacks.__all__
    if isinstance(getattr(callbacks, name), type)
    and name not in ("Callback", "CallbackList", "Histogram", "LoopContext", "Sample")
]
TRACKERS = [callbacks.MLflow, callbacks.WandB]  # they have no events: what a Tracker has is called at some


@pytest.mark.parametrize("kind", SHIPPED, ids=lambda kind: kind.__name__)
def test_a_shipped_callback_has_events_as_the_base_has_them(kind):
    events = events_of(kind)
    assert bool(events) == (kind not in TRACKERS)
    for event in events:
        inspect.signature(getattr(kind, event)).bind(None, None)


CALLS = {
    "CSVLogger": "CSVLogger(path='log.csv')",
    "EarlyStopping": "EarlyStopping(monitor='loss', patience=3, mode='min', min_delta=0.1, restore_best=True, "
    "start_from_epoch=2, baseline=0.5)",
    "GradientStats": "GradientStats(every=2, histograms=True)",
    "JSONLogger": "JSONLogger(path='log.jsonl')",
    "LearningRateScheduler": "LearningRateScheduler(scheduler='linear', start=0.1, end=0.0, steps=3)",
    "LivePlot": "LivePlot(metrics=['loss'], show=print)",
    "MLflow": "MLflow(uri='http://localhost:5000', experiment='a', name='b', tags={'c': 'd'}, checkpoints=True)",
    "MetricLogger": "MetricLogger(write=print)",
    "ModelCheckpoint": "ModelCheckpoint(monitor='loss', mode='min', save_best_only=True, every=2, save_dir='best')",
    "NaNGuard": "NaNGuard(patience=2, action='raise')",
    "Profiler": "Profiler(directory='trace', start=3, steps=2)",
    "ProgressBar": "ProgressBar(clock=print)",
    "ReduceLROnPlateau": "ReduceLROnPlateau(monitor='loss', factor=0.5, patience=2, mode='max', min_delta=0.1, "
    "cooldown=1, min_lr=0.01)",
    "ResourceMonitor": "ResourceMonitor()",
    "Samples": "Samples(data=[1.0], render=print, every=2, outputs='logits', batch_size=4, directory='samples')",
    "TensorBoardLogger": "TensorBoardLogger(directory='events')",
    "WandB": "WandB(directory='wandb', project='a', name='b', mode='online', tags=['c'], checkpoints=True)",
    "Watchdog": "Watchdog(seconds=5)",
}


@pytest.mark.filterwarnings("ignore")  # of what other libraries do when they are imported
@pytest.mark.parametrize("name", sorted(kind.__name__ for kind in {*SHIPPED}))
def test_a_shipped_callback_prints_as_the_call_that_made_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert repr(eval(CALLS[name], vars(callbacks) | {"print": print})) == CALLS[name]


def test_a_callback_of_the_users_prints_as_its_call_too():
    class StopAt(callbacks.Callback):
        def __init__(self, loss, every=1):
            self.threshold = loss

        def on_epoch_end(self, ctx):
            pass

    class Patient(callbacks.EarlyStopping):
        pass

    listed = callbacks.CallbackList([StopAt(0.1, every=2), Patient("loss", patience=3)])
    assert repr(list(listed)) == "[StopAt(loss=0.1, every=2), Patient(monitor='loss', patience=3)]"
    assert " at 0x" not in repr(listed)


def registry(kind):
    """The rows of a kind's laws: everything of it that is shipped."""
    path = Path(__file__).parents[1] / "laws" / f"test_{kind}.py"
    spec = importlib.util.spec_from_file_location(f"{kind}_of_the_laws", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, kind.upper())


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        ("transforms", protocols.Optimizer),
        ("metrics", protocols.Metric),
        ("schedules", protocols.Schedule),
    ],
)
def test_what_is_shipped_is_what_its_protocol_says(kind, protocol):
    for name, make in registry(kind).items():
        assert isinstance(make(), protocol), name


def test_what_is_another_kind_is_none():
    assert isinstance(loss_fn, protocols.LossFn)
    sgd, accuracy, cosine = ft.optimizers.sgd(0.1), ft.metrics.accuracy(), ft.schedules.cosine(0.1, 10)
    assert not isinstance(cosine, protocols.Optimizer)
    assert not isinstance(sgd, protocols.Metric)
    assert not isinstance(accuracy, protocols.Optimizer | protocols.Schedule)


@pytest.mark.parametrize("name", ["directory", "save_dir", "filepath"])
def test_the_directory_of_a_model_checkpoint_has_three_names(name, tmp_path):
    versions = callbacks.ModelCheckpoint(**{name: tmp_path / "versions"}, monitor="loss")
    one = callbacks.ModelCheckpoint(**{name: tmp_path / "best.npz"}, monitor="loss", mode="min")
    result = run(callbacks=[versions, one])
    assert ft.Checkpointer(tmp_path / "versions").steps() == [4, 8, 12]
    best = int(np.argmin(result.history["loss"])) + 1
    assert np.load(tmp_path / "best.npz")["w"] == ft.restore_params(tmp_path / "versions", 4 * best)["w"]
    with pytest.raises(ft.ConfigError, match=f"`{name}` must be a directory, or a file"):
        callbacks.ModelCheckpoint(**{name: "best.h5"})


def test_a_model_checkpoint_takes_one_of_them(tmp_path):
    with pytest.raises(ft.ConfigError, match="`directory` and `save_dir`"):
        callbacks.ModelCheckpoint(tmp_path, save_dir=tmp_path)
    with pytest.raises(ft.ConfigError, match=r"one of `directory`, `save_dir` and `filepath`.*none"):
        callbacks.ModelCheckpoint(monitor="loss")


def rates(callback, **options):
    return run(callbacks=[callback], **options).history["learning_rate"]


def test_reduce_on_plateau_by_its_name(tmp_path):
    traces = []

    def flat(params, batch, ctx):  # the first epoch is the best there is
        traces.append(1)
        return ft.losses.mse(0 * params["w"] + batch, 0 * batch)

    task = ft.Task(flat, ft.optimizers.sgd(0.5))

    def named():
        return callbacks.LearningRateScheduler("reduce_on_plateau", monitor="loss", factor=0.1, patience=5)

    # The rate is a tenth from the epoch behind the fifth bad check on: epochs 2 to 6 are bad, then 7 to 11.
    want = np.float32([0.5] * 6 + [0.05] * 5 + [0.005])
    np.testing.assert_allclose(rates(named(), task=task, epochs=12), want, rtol=1e-6)
    compiled = len(traces)
    again = callbacks.LearningRateScheduler(
        scheduler="reduce_on_plateau", monitor="loss", factor=0.1, patience=5
    )
    for epochs in (4, 8, 12):  # resumed inside each wait
        result = run(task, callbacks=[again], epochs=epochs, run_dir=tmp_path, resume=True)
    np.testing.assert_allclose(result.history["learning_rate"], want, rtol=1e-6)
    assert len(traces) == compiled


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (dict(function="step_decay", start=0.5, factor=0.1, every=2), [0.5, 0.5, 0.05]),
        (dict(function=("step", 0.5, 2, 0.1)), [0.5, 0.5, 0.05]),
        (dict(scheduler=("exponential", 0.5, 0.5)), [0.5, 0.25, 0.125]),
        (dict(scheduler=("linear", 0.4, 0.0), steps=4), [0.4, 0.3, 0.2]),
    ],
)
def test_other_schedules_by_name_go_over_epochs(given, wanted):
    np.testing.assert_allclose(rates(callbacks.LearningRateScheduler(**given)), wanted, rtol=1e-6)


def test_a_name_that_is_none():
    with pytest.raises(ft.ConfigError, match=r"'exponental'.*did you mean 'exponential'"):
        callbacks.LearningRateScheduler(("exponental", 0.5, 0.5))
    with pytest.raises(ft.ConfigError, match=r"takes \(rate, every, factor\), got"):
        callbacks.LearningRateScheduler(("step", 0.5))
