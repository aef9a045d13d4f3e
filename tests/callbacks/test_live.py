"""LivePlot and Samples: drawn where numbers are logged and nowhere else; files and images read back by others."""

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import fntrain as ft
from fntrain.callbacks import LivePlot, Samples
from fntrain.show.report.png import png

X = np.linspace(-1, 1, 12, dtype=np.float32)


KINDS = (("a_b", "png"), ("says", "txt"))


def predict_fn(params, batch, ctx):
    return batch * params["w"]


TASK = ft.Task(
    lambda p, b, ctx: ft.losses.mse(b * p["w"], 2 * b), ft.optimizers.sgd(0.1), predict_fn=predict_fn
)


def fit(*callbacks, epochs=2, **kwargs):
    """Epochs of six steps."""
    state = ft.init_state(TASK, {"w": np.float32(0)})
    return ft.fit(TASK, state, X, epochs=epochs, batch_size=2, callbacks=callbacks, progress=False, **kwargs)


def images(drawing):
    """The pictures of a drawing, as documents."""
    return [ET.fromstring(base64.b64decode(data)) for data in re.findall(r'base64,([^"]*)"', drawing)]


def lines(image):
    return [
        x for x in image.iter("{http://www.w3.org/2000/svg}path") if x.get("class", "").startswith("line")
    ]


def test_a_live_plot_is_drawn_where_numbers_are_logged_and_nowhere_else():
    drawn, seen = [], []

    class Watch:
        adds_logs = False

        def on_step_end(self, ctx):
            seen.append(("step", len(drawn)))

        def on_log(self, ctx):
            seen.append(("log", len(drawn)))

    kwargs = dict(log_every=2, validation_data=X, validation_every=4)
    fit(LivePlot(show=drawn.append), Watch(), **kwargs)
    # logs at 2, 4, 6 | 8, 10, 12; validations inside at 4, 8; two epochs' ends
    assert len(drawn) == 6 + 2 + 2
    for (kind, before), (_, after) in zip([("log", 0), *seen], seen):
        assert kind != "step" or after - before <= 2  # a log, and a validation in the same place
    (image,) = images(drawn[-1])
    assert image.get("role") == "img"
    running, training, validation = (line.get("d") for line in lines(image))
    assert [len(d.split("L")) for d in (running, training, validation)] == [6, 2, 4]
    assert "loss. running: from" in image.get("aria-label")


def test_a_live_plot_of_named_columns_and_a_resumed_run(tmp_path):
    drawn = []
    fit(epochs=1, run_dir=tmp_path / "run")
    fit(
        LivePlot(["learning_rate", "loss"], show=drawn.append),
        epochs=2,
        run_dir=tmp_path / "run",
        resume=True,
    )
    loss, _ = images(drawn[-1])
    assert "from" in loss.get("aria-label")
    assert "at step 6 to" in loss.get("aria-label")  # the epoch before the resume is there


def test_a_live_plot_in_a_notebook_and_outside(monkeypatch, capsys):
    pytest.importorskip("IPython")
    shown = []

    class Cell:
        def update(self, page):
            shown.append(page._repr_html_())

    monkeypatch.setattr("IPython.display.display", lambda page, display_id: Cell())
    fit(LivePlot(), epochs=1)
    assert shown == []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    fit(LivePlot(), epochs=1)
    assert len(shown) == 1
    assert "<img" in shown[0]


def test_a_live_plot_that_fails_ends_nothing(caplog):
    def broken(text):
        raise RuntimeError("no display")

    assert fit(LivePlot(show=broken)).history["epoch"] == [1, 2]
    assert caplog.text.count("the live plot: RuntimeError: no display") == 1


@pytest.mark.parametrize(
    "image",
    [
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        np.arange(18, dtype=np.uint8).reshape(2, 3, 3),
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4) * 10,
        np.linspace(0, 1, 6).reshape(2, 3),
    ],
    ids=["grey", "colours", "alpha", "floats"],
)
def test_an_image_is_read_back_by_another(image):
    Image = pytest.importorskip("PIL.Image")
    found = np.asarray(Image.open(io.BytesIO(png(image))))
    want = image if image.dtype == np.uint8 else np.round(255 * image).astype(np.uint8)
    np.testing.assert_array_equal(found, want)


def test_samples_are_kept_and_handed_on(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    found, calls = {}, []

    class Keeps:
        adds_logs = False

        def on_epoch_end(self, ctx):
            found[ctx.step] = dict(ctx.samples)

    def render(outputs):
        calls.append(outputs)
        grey = np.full((2, 3), 0.5)
        return {"says": f"{outputs.sum():.3f}", "a/b": grey}

    result = fit(Samples(X[:3], render, every=2), Keeps(), epochs=4, run_dir=tmp_path / "run")
    assert [len(x) for x in calls] == [3, 3]
    files = sorted(str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").glob("samples/*/*"))
    assert files == [
        f"samples/{name}/000000{step}.{kind}"
        for name, kind in (("a_b", "png"), ("says", "txt"))
        for step in (12, 24)
    ]
    want = f"{(X[:3] * np.float32(result.state.params['w'])).sum():.3f}"
    assert (tmp_path / "run/samples/says/00000024.txt").read_text() == want
    assert (np.asarray(Image.open(tmp_path / "run/samples/a_b/00000024.png")) == 128).all()
    assert found[6] == {}  # not due
    assert found[24]["says"].value == want
    assert found[24]["a/b"].value.shape == (2, 3, 1)
    page = ft.tools.report([tmp_path / "run"])
    assert f"<pre>{want}</pre>" in page
    assert page.count('src="data:image/png;base64,') == 1  # the last one


def test_samples_reach_the_board(tmp_path):
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    render = lambda outputs: ["text", np.zeros((2, 2, 3), np.uint8)]
    fit(Samples(X[:2], render), ft.callbacks.TensorBoard(tmp_path), epochs=1)
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Images("01")] == [6]
    assert "00/text_summary" in events.Tags()["tensors"]


def test_mistakes_are_named():
    with pytest.raises(ft.ConfigError, match="`metrics` must be a list of names"):
        LivePlot("loss")
    with pytest.raises(ft.ConfigError, match="`show` must be a function"):
        LivePlot(show=3)  # type: ignore[arg-type]
    with pytest.raises(ft.ConfigError, match="`render` must be a function"):
        Samples(X, "text")  # type: ignore[arg-type]
    with pytest.raises(ft.ConfigError, match="`every` must be an integer >= 1"):
        Samples(X, str, every=0)
    for made, said in ((3, "must return text or images"), (np.zeros(3), r"an image must be \[H, W\]")):
        with pytest.raises((ft.ConfigError, ft.DataError), match=said):
            fit(Samples(X[:2], lambda outputs, made=made: made), epochs=1)
