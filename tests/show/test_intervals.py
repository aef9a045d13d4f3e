"""A value with an interval: one number with its ends in every table, line and picture, and not three numbers."""

import io
import json
import types

import numpy as np
import pytest
from rich.console import Console

import fntrain as ft
from fntrain import cli, plots
from fntrain.run.history import History
from fntrain.show.progress import ProgressBar

VALUES = [0.5, 0.75, 0.875]
ROWS = [
    {
        "epoch": i,
        "step": 10 * i,
        "loss": 1 / i,
        "val_accuracy": x,
        "val_accuracy_low": x - 0.125,
        "val_accuracy_high": x + 0.0625,
    }
    for i, x in enumerate(VALUES, 1)
]
HISTORY = History(ROWS)
TEXT = "0.8750 [0.7500, 0.9375]"


def test_the_curve_has_its_band():
    loss, accuracy = plots.learning_curves(HISTORY).axes
    assert [axes.get_title(loc="left") for axes in (loss, accuracy)] == ["loss", "accuracy"]
    (band,) = accuracy.collections
    assert not loss.collections
    corners = band.get_paths()[0].vertices
    for epoch, x in enumerate(VALUES, 1):
        ends = corners[corners[:, 0] == epoch, 1]
        assert (ends.min(), ends.max()) == (x - 0.125, x + 0.0625)
    low, high = accuracy.get_ylim()
    assert low < 0.375
    assert high > 0.9375
    half = {name: column for name, column in dict(HISTORY).items() if name != "val_accuracy_high"}
    assert [axes.get_title(loc="left") for axes in plots.learning_curves(half).axes] == [
        "loss",
        "accuracy",
        "accuracy low",  # no end of anything: a column like others
    ]


def test_curves_as_text_say_the_last_one():
    said = plots.text(HISTORY, ascii=True)
    assert f"o validation {TEXT}" in said
    assert "low" not in said


def test_a_line_an_epoch_says_value_and_ends():
    out = io.StringIO()
    bar = ProgressBar(Console(file=out, width=200), lambda: 0.0)
    ctx = types.SimpleNamespace(
        epochs=3, steps=30, steps_per_epoch=10, epoch_step=0, batch_size=8, resumed_step=0, step=0, epoch=1
    )
    bar.on_fit_begin(ctx)
    for ctx.epoch, ctx.logs in enumerate(ROWS, 1):
        ctx.step = 10 * ctx.epoch
        bar.on_epoch_end(ctx)
    *_, last = out.getvalue().splitlines()
    assert f"val_accuracy {TEXT}" in last
    assert "low" not in last


def test_inspect_shows_one_row(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"epochs": 3}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert cli.main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert TEXT in shown
    assert "accuracy_low" not in shown


def test_files_have_a_column_each_and_tensorboard_the_band(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    layout_pb2 = pytest.importorskip("tensorboard.plugins.custom_scalar.layout_pb2")
    loggers = [
        ft.callbacks.CSVLogger(tmp_path / "rows.csv"),
        ft.callbacks.JSONLogger(tmp_path / "rows.jsonl"),
        ft.callbacks.TensorBoardLogger(tmp_path / "board"),
    ]
    task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
    ctx = ft.callbacks.LoopContext(task, ft.init_state(task, {"w": np.float32(0)}))
    said = []
    listeners = ft.callbacks.CallbackList([*loggers, ft.callbacks.MetricLogger(said.append)])
    listeners.on_fit_begin(ctx)
    for ctx.epoch, row in enumerate(ROWS, 1):
        ctx.logs, ctx.step = dict(row), row["step"]
        listeners.on_epoch_end(ctx)
    listeners.on_fit_end(ctx)
    assert said[2] == f"epoch 3  loss 0.3333  val_accuracy {TEXT}"
    header = (tmp_path / "rows.csv").read_text().splitlines()[0]
    assert header == "epoch,step,loss,val_accuracy,val_accuracy_low,val_accuracy_high"
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[2]) == ROWS[2]
    events = reader.EventAccumulator(str(tmp_path / "board")).Reload()
    assert [x.value for x in events.Scalars("val_accuracy_low")] == [x - 0.125 for x in VALUES]
    (tag,) = [t for t in events.Tags()["tensors"] if "custom_scalars" in t]
    (drawn,) = events.Tensors(tag)
    layout = layout_pb2.Layout.FromString(drawn.tensor_proto.string_val[0])
    (series,) = layout.category[0].chart[0].margin.series
    assert (series.value, series.lower, series.upper) == tuple(ROWS[0])[3:]


def test_the_members_of_a_population_are_drawn_and_not_their_ends():
    columns = {f"{name}_each": [np.arange(2.0)] for name in ("val_x", "val_x_low", "val_x_high")}
    assert [axes.get_title(loc="left") for axes in plots.population(columns).axes] == ["val_x"]
