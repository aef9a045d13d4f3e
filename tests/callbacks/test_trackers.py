"""Trackers: what a run sends, read back by each tracker's own reader; steps that only ascend, and no run left open."""

import glob
import importlib.util
import json
import struct
import sys
import time

import numpy as np
import pytest

import fntrain as ft
from fntrain.callbacks import MLflow, TensorBoard, WandB
from fntrain.protocols import Tracker

X = np.linspace(-1, 1, 12, dtype=np.float32)
TASK = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], 2 * b), ft.optimizers.sgd(0.1))


class Recorder:
    """A tracker of one's own."""

    def __init__(self, holds=None):
        self.values, self.rows, self.status, self.holds = None, [], [], holds

    def begin(self, run_dir, since):
        self.since = since
        return self.holds

    def config(self, values):
        self.values = values

    def log(self, row, step):
        self.rows.append((step, row))

    def close(self, status="failed"):
        self.status.append(status)


class Die:
    adds_logs = False

    def __init__(self, step, error=ZeroDivisionError):
        self.step, self.error = step, error

    def on_step_end(self, ctx):
        if ctx.step == self.step:
            raise self.error


def fit(*callbacks, epochs=3, log_every=2, **kwargs):
    """Epochs of six steps; the numbers of a row are functions of its step alone, as for any run."""
    state = ft.init_state(TASK, {"w": np.float32(0)})
    return ft.fit(
        TASK,
        state,
        X,
        epochs=epochs,
        batch_size=2,
        log_every=log_every,
        callbacks=callbacks,
        progress=False,
        **kwargs,
    )


def test_a_tracker_of_ones_own_is_given_each_step_once(tmp_path):
    tracker = Recorder()
    assert isinstance(tracker, Tracker)
    result = fit(tracker, validation_data=X, validation_every=3, run_dir=tmp_path / "run", epochs=2)
    steps = [step for step, _ in tracker.rows]
    assert steps == [2, 3, 4, 6, 8, 9, 10, 12]  # logs, and validations inside the epochs
    rows = dict(tracker.rows)
    history = {row["step"]: row for row in result.history.rows()}
    for step in (3, 6, 9, 12):
        assert rows[step]["val_loss"] == history[step]["val_loss"]
    assert "running/loss" in rows[2]
    assert all(name.startswith("running/") for name in rows[2])
    assert rows[6]["loss"] == history[6]["loss"]
    assert rows[12]["throughput"]["examples_per_second"] > 0  # of the second epoch; the first one compiles
    assert rows[6]["running/loss"] == pytest.approx(history[6]["loss"], rel=1e-6)
    assert tracker.status == ["done"]
    config = json.loads((tmp_path / "run" / "config.json").read_text()) | {"status": "running"}
    assert tracker.values == {name: value for name, value in config.items() if name != "parts"}


def test_what_a_tracker_holds_is_not_sent_again(tmp_path):
    tracker = Recorder(holds=5)
    fit(tracker, epochs=1)
    assert [step for step, _ in tracker.rows] == [6]
    assert tracker.since == 1


def test_validations_before_late_logs_are_sorted():
    # Several steps to a dispatch: the means of step 6 are fetched after the validation at step 6 was.
    tracker = Recorder()
    fit(tracker, epochs=1, log_every=1, validation_data=X, validation_every=3, steps_per_call=3)
    assert [step for step, _ in tracker.rows] == [1, 2, 3, 4, 5, 6]
    assert {"val_loss", "running/loss"} <= set(dict(tracker.rows)[3])


@pytest.mark.parametrize(
    ("callback", "status"),
    [
        (Die(5), "failed"),
        (Die(5, KeyboardInterrupt), "interrupted"),
        (lambda logs: None, "done"),
        (ft.callbacks.EarlyStopping("loss", min_delta=10.0, patience=1), "stopped"),
    ],
    ids=["error", "interrupt", "end", "stop"],
)
def test_however_a_run_ends_its_tracker_is_closed_once(callback, status):
    tracker = Recorder()
    try:
        fit(tracker, callback)
    except ZeroDivisionError:
        assert status == "failed"
    assert tracker.status == [status]
    assert tracker.rows[0][0] == 2


def test_a_tracker_that_fails_in_the_midst_ends_nothing(caplog):
    class Fails(Recorder):
        def log(self, row, step):
            raise ConnectionError("nobody there")

    tracker = Fails()
    fit(tracker, epochs=2)  # warnings are errors here: it is said in the log
    assert caplog.text.count("Fails: ConnectionError: nobody there; the run goes on") == 1
    assert tracker.status == ["done"]

    class Refuses(Recorder):
        def config(self, values):
            raise ConnectionError("no such store")

    with pytest.raises(ConnectionError, match="no such store"):
        fit(Refuses(), epochs=1)


def killed_and_resumed(make, tmp_path):
    """A run that dies inside its third epoch, what it had sent then, and the same run gone on with to its end."""
    run = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        fit(make(), Die(17), run_dir=run, checkpoint_every=12)
    (run / "checkpoints" / "17").rename(tmp_path / "17")  # what a kill would not have saved
    result = fit(make(), run_dir=run, resume=True, epochs=4)
    assert result.history["step"] == [6, 12, 18, 24]
    return result


def test_a_tracker_that_does_not_say_what_it_holds_is_sent_steps_twice(tmp_path):
    tracker = Recorder()  # what the tests of the others must not find
    killed_and_resumed(lambda: tracker, tmp_path)
    steps = [step for step, _ in tracker.rows]
    assert [step for step in steps if steps.count(step) > 1] == [14, 14]
    assert tracker.status == ["failed", "done"]


# --- MLflow ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mlflow_client(monkeypatch):
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow-skinny is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    return MlflowClient


def points(client, run, key):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]


@pytest.mark.filterwarnings("ignore")  # MLflow's own, at its imports
@pytest.mark.parametrize("store", ["file", "sqlite"])
def test_mlflow_reads_back_a_run_that_was_killed_and_resumed(store, tmp_path, mlflow_client, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if store == "sqlite":
        pytest.importorskip("sqlalchemy")
    uri = f"file:{tmp_path / 'store'}" if store == "file" else f"sqlite:///{tmp_path / 'store.db'}"
    result = killed_and_resumed(lambda: MLflow(uri, experiment="digits", checkpoints=True), tmp_path)
    client = mlflow_client(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    want = list(zip(result.history["step"], result.history["loss"]))
    assert points(client, run, "loss") == want
    steps = [step for step, _ in points(client, run, "running/loss")]
    assert steps == list(range(2, 25, 2))
    assert run.data.params["identity.batch_size"] == "2"
    assert "sgd(learning_rate=0.1)" in run.data.params["task.tx"]
    there = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert there == {"config.json", "checkpoints"}
    assert not (tmp_path / "mlruns").exists()  # nothing where Python happens to run
    (newest,) = client.list_artifacts(run.info.run_id, "checkpoints")
    state = ft.init_state(TASK, {"w": np.float32(0)})
    copied = client.download_artifacts(run.info.run_id, "checkpoints", str(tmp_path / "copy"))
    again = ft.Checkpointer(copied)
    assert newest.path == "checkpoints/24"
    np.testing.assert_array_equal(again.restore(state).params["w"], result.state.params["w"])


@pytest.mark.filterwarnings("ignore")
def test_mlflow_leaves_no_run_open(tmp_path, mlflow_client, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"file:{tmp_path / 'store'}"
    for callbacks, want in (
        ([Die(4)], "FAILED"),
        ([Die(4, KeyboardInterrupt)], "KILLED"),
        ([], "FINISHED"),
    ):
        tracker = MLflow(uri, experiment=want, name=want, tags={"who": "me"})
        try:
            fit(tracker, *callbacks, epochs=1)
        except ZeroDivisionError:
            assert want == "FAILED"
        client = mlflow_client(uri)
        (run,) = client.search_runs([client.get_experiment_by_name(want).experiment_id])
        assert (run.info.status, run.info.run_name, run.data.tags["who"]) == (want, want, "me")
    with pytest.raises(ft.ConfigError, match="`uri` must name a store"):
        MLflow("nonsense://x")


# --- W&B -------------------------------------------------------------------------------------------------------


def records(path):
    """The records of a file of W&B's: blocks of 32 KiB of pieces, each `crc, length, kind`, after a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, found, parts = path.read_bytes(), 7, [], b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(parts))
            parts = b""
    return found


def history_of(path):
    """The rows with their steps, and the exit code, which W&B's own process may write a moment after the run."""
    deadline = time.monotonic() + 20
    while not any(record.WhichOneof("record_type") == "exit" for record in records(path)):
        assert time.monotonic() < deadline, "the run is still open"
        time.sleep(0.05)
    rows, code = [], None
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            found = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            rows.append((record.history.step.num or found["_step"], found))
        elif record.WhichOneof("record_type") == "exit":
            code = record.exit.exit_code
    return rows, code


@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_wandb_offline_is_read_back_from_disk(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.chdir(tmp_path)
    result = killed_and_resumed(lambda: WandB(tmp_path / "wb", project="digits", checkpoints=True), tmp_path)
    files = sorted(map(tmp_path.__class__, glob.glob(str(tmp_path / "wb/wandb/offline-run-*/run-*.wandb"))))
    assert len(files) == 2
    assert len({path.name for path in files}) == 1  # one id
    (first, failed), (second, done) = map(history_of, files)
    assert (failed, done) == (1, 0)
    steps = [step for step, _ in [*first, *second]]
    assert steps == sorted(set(steps))
    assert steps[-1] == 24
    assert [step for step, row in [*first, *second] if "running/loss" in row] == list(range(2, 25, 2))
    losses = {step: row["loss"] for step, row in [*first, *second] if "loss" in row}
    assert losses == dict(zip(result.history["step"], result.history["loss"]))
    (config,) = (r.run.config for r in records(files[0]) if r.WhichOneof("record_type") == "run")
    known = {item.key: json.loads(item.value_json) for item in config.update}
    assert known["identity"]["batch_size"] == 2
    kept = [r.artifact for r in records(files[1]) if r.WhichOneof("record_type") == "artifact"]
    assert [artifact.name.rpartition("-")[2] for artifact in kept] == ["24"]


def test_mistakes_are_named(tmp_path, monkeypatch):
    for name, make in (("mlflow.exceptions", MLflow), ("wandb", WandB)):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)
            with pytest.raises(ft.ConfigError, match=r"fntrain\[track\]"):
                make()
    if importlib.util.find_spec("wandb"):
        with pytest.raises(ft.ConfigError, match="`mode` must be one of"):
            WandB(mode="ofline")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_is_a_tracker_by_hand(tmp_path):
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = TensorBoard(tmp_path)
    assert isinstance(tracker, Tracker)
    tracker.config({"rate": 0.1})
    for step in (1, 2):
        tracker.log({"loss": 1 / step, "by": {"class": step}}, step)
    tracker.close("done")
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    assert [e.value for e in events.Scalars("by/class")] == [1.0, 2.0]
    (text,) = events.Tensors("config/text_summary")
    assert b'"rate": 0.1' in text.tensor_proto.string_val[0]
