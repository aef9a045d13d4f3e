"""Callbacks that write and measure: files read back, TensorBoard by its own reader, norms against NumPy, traces."""

import csv
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.callbacks import (
    CSVLogger,
    GradientStats,
    JSONLogger,
    LoopContext,
    MetricLogger,
    Profiler,
    ProgressBar,
    ResourceMonitor,
    TensorBoardLogger,
)
from fntrain.callbacks.gradient_stats import _histogram
from fntrain.run.writers import read_rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32) + 0.25).astype(np.float32)
XV, YV = RNG.normal(size=(7, 3)).astype(np.float32), RNG.normal(size=7).astype(np.float32)


def loss_fn(params, batch, ctx):
    x, y = batch
    prediction = x @ params["layer"]["w"] + params["layer"]["b"] + params["scale"]
    return ft.losses.mse(prediction, y).with_outputs(predictions=prediction)


METRICS = {"prediction": ft.metrics.mean("predictions")}
TASK = ft.Task(loss_fn, ft.chain(ft.clip_by_norm(10.0), ft.optimizers.sgd(0.0625)), metrics=METRICS)


def start(task=TASK):
    params = {"layer": {"w": np.zeros(3, np.float32), "b": np.float32(0)}, "scale": np.float32(1)}
    return ft.init_state(task, params)


def run(task=TASK, state=None, data=(X, Y), **kwargs):
    kwargs = {"batch_size": 8, "progress": False, **kwargs}
    return ft.fit(task, start(task) if state is None else state, data, **kwargs)


# --- files -----------------------------------------------------------------------------------------------------


def test_files_hold_every_epochs_row(tmp_path):
    spoil = lambda logs: {"bad": math.nan, "list": np.arange(2)} if logs["epoch"] == 2 else None
    loggers = [CSVLogger(tmp_path / "a" / "log.csv"), JSONLogger(str(tmp_path / "b" / "log.jsonl"))]
    result = run(epochs=3, validation_data=(XV, YV), callbacks=[spoil, *loggers])
    rows = result.history.rows()
    lines = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    want = [dict(row) for row in rows]
    want[1] |= {"bad": None, "list": [0, 1]}  # NaN is null
    assert lines == want
    with open(tmp_path / "a" / "log.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["val_loss"]) for row in table] == result.history["val_loss"]
    assert [row["bad"] for row in table] == ["", "nan", ""]
    # The same instances in a second run: the files start anew, and old columns are gone.
    again = run(epochs=2, callbacks=loggers)
    assert read_rows(tmp_path / "a" / "log.csv") == again.history.rows()
    assert read_rows(tmp_path / "b" / "log.jsonl") == again.history.rows()


def test_a_logger_of_a_directory_is_refused(tmp_path):
    for make in (CSVLogger, JSONLogger):
        with pytest.raises(ft.ConfigError, match="directory"):
            make(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ft.ConfigError, match="`directory`"):
        TensorBoardLogger(tmp_path / "file")


def test_metric_logger_records_and_says(tmp_path):
    said = []
    logger = MetricLogger(said.append)
    result = run(epochs=2, validation_data=(XV, YV), callbacks=[logger], run_dir=tmp_path / "run")
    assert logger.history.rows() == result.history.rows()
    assert {"loss", "prediction", "val_loss", "val_prediction", "learning_rate"} <= set(logger.history)
    assert len(said) == 2
    assert all(name in said[0] for name in ("epoch 1", "loss", "val_prediction", "grad_norm"))
    logger = MetricLogger()
    result = run(
        epochs=3, validation_data=(XV, YV), callbacks=[logger], run_dir=tmp_path / "run", resume=True
    )
    assert logger.history.rows() == result.history.rows()
    assert len(logger.history["loss"]) == 3
    with pytest.raises(ft.ConfigError, match="write"):
        MetricLogger(3)


def test_the_progress_bar_is_a_callback():
    assert ft.callbacks.ProgressBar is ProgressBar


# --- TensorBoard -----------------------------------------------------------------------------------------------


def scalars(directory):
    """What TensorBoard itself reads: `{tag: [(step, value)]}`."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(directory)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_back_the_same_scalars(tmp_path):
    pytest.importorskip("tensorboardX")
    extra = lambda logs: {"nested": {"a": 1.0, "b": 2}, "list": np.arange(2), "text": "no"}
    kwargs = dict(validation_data=(XV, YV), log_every=2, data=(np.tile(X, (2, 1)), np.tile(Y, 2)))
    result = run(epochs=3, callbacks=[extra, TensorBoardLogger(tmp_path)], **kwargs)
    found = scalars(tmp_path)
    for name in ("loss", "prediction", "val_loss", "val_prediction", "learning_rate", "grad_norm"):
        want = list(zip(result.history["step"], np.float32(result.history[name]).tolist()))
        assert found.pop(name) == want, name
    assert found.pop("nested/a") == [(6, 1.0), (12, 1.0), (18, 1.0)]
    assert found.pop("nested/b") == [(6, 2.0), (12, 2.0), (18, 2.0)]
    # Running means, at the steps they were measured at, which is before they were fetched.
    assert [step for step, _ in found["running/loss"]] == list(range(2, 19, 2))
    assert {name.split("/")[0] for name in found} == {"running", "throughput", "grad_norm_max", "clip_factor"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_over_a_kill_a_resume_and_a_second_run(tmp_path):
    pytest.importorskip("tensorboardX")

    class Die:
        def on_epoch_end(self, ctx):
            if ctx.epoch == 3:
                raise ZeroDivisionError

    logger = TensorBoardLogger(tmp_path / "tb")
    kwargs = dict(run_dir=tmp_path / "run")
    wrong = lambda logs: {"mark": 1.0}
    with pytest.raises(ZeroDivisionError):
        run(epochs=5, callbacks=[wrong, logger, Die()], **kwargs)
    assert scalars(tmp_path / "tb")["mark"] == [(3, 1.0), (6, 1.0), (9, 1.0)]
    # Epoch 3 was written, but not saved: it is run, and written, again.
    result = run(epochs=5, callbacks=[lambda logs: {"mark": 2.0}, logger], resume=True, **kwargs)
    found = scalars(tmp_path / "tb")
    assert found["mark"] == [(3, 1.0), (6, 1.0), (9, 2.0), (12, 2.0), (15, 2.0)]
    assert [step for step, _ in found["loss"]] == result.history["step"]
    # The same instance in a run from the beginning, within the same second.
    run(epochs=2, callbacks=[lambda logs: {"mark": 3.0}, logger])
    assert scalars(tmp_path / "tb")["mark"] == [(3, 3.0), (6, 3.0)]


def test_without_tensorboardx_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ft.ConfigError, match=r"fntrain\[tensorboard\]"):
        TensorBoardLogger(tmp_path)


def test_importing_the_callbacks_imports_no_extra():
    code = "import fntrain, sys; print([m for m in ('tensorboardX', 'rich', 'orbax') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- GradientStats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2])
def test_gradient_stats_equal_numpy(chunk):
    # One batch size that divides, so that with chunks the last batch comes out of a stack.
    data = (X[:16], Y[:16])
    stats = GradientStats(every=2)
    kwargs = dict(data=data, shuffle=False, batch_size=4, steps_per_call=chunk)
    result = run(epochs=3, callbacks=[stats], **kwargs)
    history = result.history
    assert [x is None for x in history["gradient_norm"]] == [True, False, True]
    # The last batch, at the parameters that epoch 2 ended with.
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), run(epochs=2, **kwargs).state.params)
    x, y = X[12:16].astype(np.float64), Y[12:16].astype(np.float64)
    r = x @ p["layer"]["w"] + p["layer"]["b"] + p["scale"] - y
    grad = {
        "layer": np.append((2 * r[:, None] * x).mean(0), (2 * r).mean()),
        "scale": np.array((2 * r).mean()),
    }
    size = {"layer": np.append(p["layer"]["w"], p["layer"]["b"]), "scale": p["scale"]}
    norm = lambda *xs: math.sqrt(sum((a**2).sum() for a in xs))
    total = norm(*grad.values())
    assert total < 10  # the clip is idle, so the update is rate times gradient
    np.testing.assert_allclose(history["gradient_norm"][1], total, rtol=1e-5)
    np.testing.assert_allclose(
        history["update_ratio"][1], 0.0625 * total / norm(*size.values()), rtol=1e-4
    )  # the update is a difference of nearby float32 numbers
    assert sorted(history["layer_gradient_norm"][1]) == ["layer", "scale"]
    for name in grad:
        np.testing.assert_allclose(history["layer_gradient_norm"][1][name], norm(grad[name]), rtol=1e-5)
        ratio = 0.0625 * norm(grad[name]) / norm(size[name])
        np.testing.assert_allclose(history["layer_update_ratio"][1][name], ratio, rtol=1e-4)


def test_gradient_stats_change_nothing_and_need_no_second_step_program(caplog, tmp_path):
    jax.clear_caches()  # another test may have compiled what is counted here
    want = run(epochs=2)
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        result = run(epochs=2, callbacks=[GradientStats()], run_dir=tmp_path / "run")
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(jnp.all(a == b)), result.state.params, want.state.params)
    )
    assert result.history["loss"] == want.history["loss"]
    compiled = [r.getMessage().split()[1] for r in caplog.records if r.getMessage().startswith("Compiling ")]
    assert [name for name in compiled if "train_step" in name] == []  # compiled before, by the run above
    assert len([name for name in compiled if "measured" in name]) == 1  # a padded tail is the same program
    # The per-layer values are in the file, too, as an object.
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert sorted(rows[0]["layer_update_ratio"]) == ["layer", "scale"]


class Keeps:
    """What a callback behind GradientStats sees of its histograms, by epoch."""

    def __init__(self):
        self.seen = {}

    def on_epoch_begin(self, ctx):
        assert ctx.histograms == {}

    def on_epoch_end(self, ctx):
        self.seen[ctx.epoch] = dict(ctx.histograms)


def test_histograms_equal_numpy():
    keeps = Keeps()
    kwargs = dict(data=(X[:16], Y[:16]), shuffle=False, batch_size=4)
    run(epochs=3, callbacks=[GradientStats(every=2, histograms=True), keeps], **kwargs)
    assert keeps.seen[1] == keeps.seen[3] == {}  # formed only when due
    found = keeps.seen[2]
    assert sorted(found) == ["gradients/layer", "gradients/scale", "params/layer", "params/scale"]
    p = jax.tree.map(np.asarray, run(epochs=2, **kwargs).state.params)
    numbers = np.append(p["layer"]["b"], p["layer"]["w"]).astype(np.float64)
    drawn = found["params/layer"]
    counts, edges = np.histogram(numbers, 64)
    assert drawn.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(drawn.edges, edges, rtol=1e-12)
    np.testing.assert_allclose(drawn.sum, numbers.sum(), rtol=1e-5)
    np.testing.assert_allclose(drawn.sum_of_squares, (numbers**2).sum(), rtol=1e-5)
    # One number alone stands in the middle of a range of one.
    alone = found["params/scale"]
    assert (alone.counts.sum(), alone.counts[32]) == (1, 1)
    np.testing.assert_allclose(alone.edges[[0, -1]], [p["scale"] - 0.5, p["scale"] + 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (np.random.default_rng(0).normal(size=5000), None),
        ([np.nan, 1.0, np.inf, -np.inf, 3.0, 3.0], [1.0, 3.0, 3.0]),
        ([-3e38, 3e38, 0.0], None),  # finite, though their range is not
        ([1e-42, 3e-42, 2e-42], "same"),
        ([np.nan], []),
    ],
)
def test_histograms_of_odd_numbers(numbers, expected):
    x = np.asarray(numbers, np.float32)
    counts, low, high, total, squares = jax.device_get(_histogram([jnp.asarray(x)]))
    if expected == "same":  # denormals, which the device may take for zero
        assert counts.sum() == 3
        return
    finite = (x if expected is None else np.asarray(expected, np.float32)).astype(np.float64)
    assert counts.sum() == len(finite)
    if len(finite):
        assert (low, high) == (finite.min(), finite.max())
        want = np.histogram(finite, len(counts))[0]
        # Float32 may put a number that lies on an edge on its other side.
        assert np.abs(counts - want).sum() <= 4
        np.testing.assert_allclose(total, finite.sum(), rtol=1e-5, atol=1e-3)
    assert not np.isnan(squares)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_back_the_histograms(tmp_path):
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    keeps = Keeps()
    run(epochs=2, callbacks=[GradientStats(2, histograms=True), keeps, TensorBoardLogger(tmp_path)])
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["histograms"]) == sorted(keeps.seen[2])
    for name, drawn in keeps.seen[2].items():
        (event,) = events.Histograms(name)
        value = event.histogram_value
        assert event.step == 6
        assert value.num == drawn.counts.sum()
        assert sum(value.bucket) == value.num
        np.testing.assert_allclose([value.min, value.max], drawn.edges[[0, -1]], rtol=1e-6)
        np.testing.assert_allclose([value.sum, value.sum_squares], drawn[2:], rtol=1e-6)


def test_a_batch_is_not_kept_over_the_next_epoch():
    kept = []

    class Looks:
        wants_batch = True

        def on_epoch_begin(self, ctx):
            kept.append(ctx.last_batch)

        def on_epoch_end(self, ctx):
            kept.append(ctx.last_batch is not None)

        def on_fit_end(self, ctx):
            kept.append(ctx.last_batch)

    run(epochs=2, callbacks=[Looks()])
    assert kept == [None, True, None, True, None]


def test_a_batch_is_only_kept_for_who_wants_it():
    kept = []

    class Looks:
        def on_epoch_end(self, ctx):
            kept.append(ctx.last_batch is not None)

    run(epochs=1, callbacks=[Looks()])
    run(epochs=1, callbacks=[Looks(), GradientStats()])
    assert kept == [False, True]


# --- ResourceMonitor, Profiler ---------------------------------------------------------------------------------


def test_resources_are_measured_or_absent(monkeypatch):
    monitor = ResourceMonitor()
    row = run(epochs=1, callbacks=[monitor]).history.rows()[0]
    assert {"loss", "prediction", "learning_rate", "epoch_seconds"} <= set(row)
    assert not [
        name for name in row if name.startswith(("layer_", "gradient_norm"))
    ]  # GradientStats is asked for
    assert row["epoch_seconds"] > 0
    np.testing.assert_allclose(row["step_time_ms"], 1e3 * row["epoch_seconds"] / 3)
    if sys.platform == "linux":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        assert 10 < row["host_memory_mib"] <= peak * 1.01
    # The CPU has no figure of its own.
    assert jax.local_devices()[0].memory_stats() is not None or "device_memory_mib" not in row

    class Device:
        def memory_stats(self):
            return {"bytes_in_use": 3 * 2**20}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    monkeypatch.setattr("fntrain.callbacks.resource_monitor.resident_bytes", lambda: None)
    row = run(epochs=1, callbacks=[monitor]).history.rows()[0]
    assert row["device_memory_mib"] == 3
    assert "device_memory_peak_mib" not in row
    assert "host_memory_mib" not in row


def test_the_wait_for_data_is_that_of_the_epoch():
    ctx, monitor = LoopContext(TASK, start()), ResourceMonitor()
    seen = []
    for ctx.data_seconds, after in ((0.5, 2.0), (2.0, 2.25), (None, None)):
        ctx.logs = {}
        monitor.on_epoch_begin(ctx)
        ctx.data_seconds = after
        monitor.on_epoch_end(ctx)
        seen.append(ctx.logs.get("data_seconds"))
    assert seen == [1.5, 0.25, None]  # not known is not in the row


def test_a_trace_of_the_chosen_steps(tmp_path):
    traced = []
    profiler = Profiler(tmp_path, start=2, steps=3)

    class Looks:
        def on_step_end(self, ctx):
            traced.append(profiler._tracing)

    run(epochs=3, callbacks=[profiler, Looks()])
    # The trace begins when step 2 is over, and covers the steps 3, 4 and 5.
    assert traced == [False, True, True, True, False, False, False, False, False]
    assert [p.stat().st_size > 0 for p in tmp_path.rglob("*.xplane.pb")] == [True]
    # A run that ends first says so, and an error in the middle leaves no trace running.
    with pytest.warns(UserWarning, match="before its trace"):
        run(epochs=1, callbacks=[Profiler(tmp_path, start=4)])

    class Breaks:
        def on_epoch_end(self, ctx):
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run(epochs=1, callbacks=[Profiler(tmp_path / "broken", start=1, steps=9), Breaks()])
    with pytest.raises(ft.ConfigError, match="start"):
        Profiler(tmp_path, start=0)
