"""The pictures: what is drawn is what was given, nothing overlaps, and nothing is left behind."""

import gc
import itertools
import math
import pickle
import subprocess
import sys
import weakref

import matplotlib
import numpy as np
import pytest
from matplotlib import _pylab_helpers, colors, image
from matplotlib.figure import Figure
from sklearn import metrics as sklearn

from fntrain import scores as scores_of
from fntrain._core.errors import ConfigError, DataError
from fntrain.show import plots

BLUE, ORANGE = "#0072b2", "#d55e00"


def history(n, seed=0, validation=True):
    """Curves as of a real run: falling loss, validation that turns, warm-up and cosine, a gradient norm."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, n) if n > 1 else np.array([0.3])
    columns = {
        "epoch": np.arange(1.0, n + 1),
        "loss": 2.2 * np.exp(-4 * t) + 0.03 + 0.01 * rng.random(n),
        "accuracy": 1 - 0.85 * np.exp(-5 * t) - 0.01 * rng.random(n),
        "learning_rate": np.minimum(t / 0.1, 0.5 + 0.5 * np.cos(np.pi * t)) * 1e-3,
        "grad_norm": 1.5 * np.exp(-t) + 0.2 * rng.random(n),
        "skipped": np.zeros(n),
        "seconds": np.ones(n),
    }
    if validation:
        columns["val_loss"] = (
            2.2 * np.exp(-4 * t) + 0.15 + 0.4 * np.maximum(t - 0.5, 0) + 0.02 * rng.random(n)
        )
        columns["val_accuracy"] = 0.96 - 0.82 * np.exp(-5 * t) - 0.01 * rng.random(n)
    return {name: column.tolist() for name, column in columns.items()}


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def curves(axes):
    """Colour -> y of the lines with more than a point (so no ring, and no line at the best epoch)."""
    return {
        colors.to_hex(line.get_color()): np.asarray(line.get_ydata(), float)
        for line in axes.lines
        if line.get_markersize() < 5 and line.get_linestyle() == "-"
    }


def overlaps(figure):
    """Texts that stand in each other's way, or leave the picture."""
    figure.draw_without_rendering()
    unseen = set()  # ticks outside the limits, which Matplotlib keeps but does not draw
    for axes in figure.axes:
        for axis, which in ((axes.xaxis, 0), (axes.yaxis, 1)):
            low, high = sorted(axis.get_view_interval())
            unseen |= {
                t for t in axis.get_ticklabels(which="both") if not low <= t.get_position()[which] <= high
            }
    found, seen = [], []
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_visible() and text.get_text().strip() and text not in unseen:
            seen.append((text.get_text(), text.get_window_extent()))
    for (a, first), (b, second) in itertools.combinations(seen, 2):
        if first.x0 < second.x1 and second.x0 < first.x1 and first.y0 < second.y1 and second.y0 < first.y1:
            found.append((a, b))
    whole = figure.bbox
    found += [
        (a, "edge") for a, b in seen if b.x0 < 0 or b.y0 < 0 or b.x1 > whole.width or b.y1 > whole.height
    ]
    return found


# Learning curves.


def test_a_panel_holds_training_and_validation_of_one_metric():
    h = history(40)
    figure = plots.learning_curves(h)
    assert isinstance(figure, Figure)
    assert titles(figure) == ["loss", "accuracy", "learning rate", "grad norm"]
    for axes, name in zip(figure.axes, ["loss", "accuracy"]):
        drawn = curves(axes)
        np.testing.assert_array_equal(drawn[BLUE], h[name])
        np.testing.assert_array_equal(drawn[ORANGE], h["val_" + name])
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), np.arange(1, 41))
    (rate,) = curves(figure.axes[2]).values()
    np.testing.assert_array_equal(rate, h["learning_rate"])
    heights = [axes.get_position().height for axes in figure.axes]
    assert heights[2] < 0.7 * heights[0]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "", "epoch"]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_the_best_epoch_is_the_validations_and_the_last_values_are_written():
    h = history(40)
    loss, accuracy = plots.learning_curves(h).axes[:2]
    best = int(np.argmin(h["val_loss"]))
    assert 0 < best < 39  # or this would not tell the best from the last
    assert loss.get_title(loc="right") == f"best {h['val_loss'][best]:.4f} at epoch {best + 1}"
    ring = [line for line in loss.lines if line.get_marker() == "o" and line.get_markersize() > 5]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ring] == [(best + 1, h["val_loss"][best])]
    best = int(np.argmax(h["val_accuracy"]))
    assert accuracy.get_title(loc="right") == f"best {h['val_accuracy'][best]:.4f} at epoch {best + 1}"
    ends = [text.get_text() for text in accuracy.texts]
    assert ends == [f"train {h['accuracy'][-1]:.4f}", f"validation {h['val_accuracy'][-1]:.4f}"]


def test_without_validation_the_best_is_the_trainings():
    axes = plots.learning_curves({"loss": [3.0, 1.0, 2.0]}).axes[0]
    assert axes.get_title(loc="right") == "best 1.000 at epoch 2"
    assert list(curves(axes)) == [BLUE]


def test_of_a_name_that_does_not_tell_nothing_is_best():
    axes = plots.learning_curves({"closeness": [3.0, 1.0, 2.0], "val_closeness": [1.0, 2.0, 3.0]}).axes[0]
    assert axes.get_title(loc="right") == ""
    assert len(axes.lines) == 2


def test_a_history_that_begins_later_keeps_its_epochs():
    axes = plots.learning_curves({"epoch": [5.0, 6.0, 7.0], "loss": [3.0, 1.0, 2.0]}).axes[0]
    assert axes.get_title(loc="right") == "best 1.000 at epoch 6"
    assert axes.lines[0].get_xdata().tolist() == [5, 6, 7]


def test_gaps_are_gaps_and_a_lone_point_is_seen():
    h = {"loss": [4.0, None, 3.0, math.nan, 2.0, 1.5, math.inf], "val_loss": [None] * 6 + [2.5]}
    axes = plots.learning_curves(h).axes[0]
    drawn = curves(axes)
    np.testing.assert_array_equal(drawn[BLUE], [4, np.nan, 3, np.nan, 2, 1.5, np.nan])
    np.testing.assert_array_equal(drawn[ORANGE], [np.nan] * 6 + [2.5])
    assert axes.get_title(loc="right") == "best 2.500 at epoch 7"
    assert [text.get_text() for text in axes.texts] == ["train 1.500", "validation 2.500"]

    long = [0.5] * 100
    long[10] = long[12] = long[-2] = None
    (line, *_) = plots.learning_curves({"loss": long}).axes[0].lines
    assert line.get_markevery() == [11, 99]  # in a long run markers stand only where no line goes


def test_a_loss_that_falls_far_is_logarithmic():
    far = [10.0, 1.0, 0.1, 0.01]
    figure = plots.learning_curves(
        {"loss": far, "accuracy": [0.01, 0.5, 0.75, 1.0], "mae": [3.0, 2.0, 1.5, 1.2]}
    )
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]
    figure = plots.learning_curves({"loss": [*far, 0.0]})
    assert figure.axes[0].get_yscale() == "linear"


@pytest.mark.parametrize(("n", "validation"), [(1, True), (1, False), (2, True), (40, False), (1000, True)])
def test_curves_of_any_length_without_overlap(n, validation):
    figure = plots.learning_curves(history(n, validation=validation), title="a run")
    assert overlaps(figure) == []
    ticks = figure.axes[-1].get_xticks()
    low, high = figure.axes[-1].get_xlim()
    shown = [tick for tick in ticks if low <= tick <= high]
    assert shown
    assert all(tick == round(tick) for tick in shown)


@pytest.mark.parametrize("apart", [0.0, 1e-3, 0.05, 0.5, -0.05])
def test_labels_of_curves_that_meet_move_apart(apart):
    t = np.linspace(0, 1, 20)
    figure = plots.learning_curves({"loss": 2 - t, "val_loss": 2 - t + apart * t})
    assert overlaps(figure) == []
    train, validation = figure.axes[0].texts
    if apart:
        assert (validation.xyann[1] - train.xyann[1]) * apart >= 0  # each to its own side


def test_many_metrics_stand_in_two_columns():
    h = history(30)
    for name in ("f1", "precision", "recall", "a_metric_with_a_name_that_goes_on_and_on"):
        h[name] = h["accuracy"]
        h["val_" + name] = h["val_accuracy"]
    figure = plots.learning_curves(h)
    assert len(figure.axes) == 8
    assert sum(title.startswith("…") and len(title) == 28 for title in titles(figure)) == 1
    assert len({round(axes.get_position().x0, 3) for axes in figure.axes}) == 2
    assert overlaps(figure) == []


def test_tables_text_and_bookkeeping_are_left_out_unless_asked_for():
    h = history(5)
    h["matrix"] = [np.eye(2)] * 5
    h["note"] = ["a"] * 5
    h["ragged"] = [[1.0], [1.0, 2.0], 1.0, 1.0, 1.0]
    h["empty"] = [None] * 5
    h["binary/tp"] = h["val_binary/fn"] = [3] * 5  # counts, as `binary_stats` has them beside its ratios
    assert titles(plots.learning_curves(h)) == ["loss", "accuracy", "learning rate", "grad norm"]
    assert titles(plots.learning_curves(h, metrics=["seconds", "val_loss"])) == ["seconds", "loss"]
    assert titles(plots.learning_curves(h, metrics=["learning_rate"])) == ["learning rate"]


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(
        ConfigError, match=r"`metrics` must be one of .* got 'acuracy'; did you mean 'accuracy'"
    ):
        plots.learning_curves(history(3), metrics=["acuracy"])
    with pytest.raises(DataError, match=r"lengths \{'loss': 2, 'accuracy': 1\}"):
        plots.learning_curves({"loss": [1.0, 2.0], "accuracy": [1.0]})
    for nothing in ({}, {"loss": []}, {"note": ["a"]}):
        with pytest.raises(DataError, match="at least one epoch"):
            plots.learning_curves(nothing)
    with pytest.raises(DataError, match="no metric to draw; `history` has skipped"):
        plots.learning_curves({"epoch": [1], "skipped": [0]})
    with pytest.raises(DataError, match="no metric to draw"):
        plots.learning_curves(history(2), metrics=[])


# Confusion matrices.


def confusion(k, examples, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, examples)
    wrong = rng.random(examples) < 0.2
    return y, np.where(wrong, rng.integers(0, k, examples), y)


def cells(axes, k):
    texts = {tuple(map(int, t.get_position())): t for t in axes.texts}
    return [[texts[column, row] for column in range(k)] for row in range(k)]


def test_counts_in_the_cells_shares_in_the_shading():
    y, z = confusion(4, 500)
    matrix = sklearn.confusion_matrix(y, z)
    axes = plots.confusion_matrix(matrix, list("abcd")).axes[0]
    assert [[int(t.get_text()) for t in row] for row in cells(axes, 4)] == matrix.tolist()
    shading = axes.images[0].get_array()
    np.testing.assert_allclose(shading, sklearn.confusion_matrix(y, z, normalize="true"), rtol=1e-12)
    assert axes.images[0].get_clim() == (0, 1)
    assert axes.yaxis_inverted()  # row 0 is at the top
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    assert [t.get_text() for t in axes.get_yticklabels()] == list("abcd")
    assert axes.get_title() == f"accuracy {sklearn.accuracy_score(y, z):.4f}"


@pytest.mark.parametrize("normalize", ["true", "pred", "all"])
def test_normalised_cells(normalize):
    y, z = confusion(3, 200)
    z[z == 2] = 1  # a class that is never predicted: a column of zeros
    figure = plots.confusion_matrix(sklearn.confusion_matrix(y, z), normalize=normalize)
    expected = sklearn.confusion_matrix(y, z, normalize=normalize)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), expected, rtol=1e-12)
    shown = [[t.get_text() for t in row] for row in cells(figure.axes[0], 3)]
    assert shown == [[f"{x:.2f}" for x in row] for row in expected]
    assert figure.axes[0].get_title() == f"accuracy {sklearn.accuracy_score(y, z):.4f}"


def test_a_matrix_that_was_normalised_has_lost_its_accuracy():
    y, z = confusion(3, 200)
    for normalize in ("true", "pred"):
        figure = plots.confusion_matrix(sklearn.confusion_matrix(y, z, normalize=normalize))
        assert figure.axes[0].get_title() == "confusion matrix"
    figure = plots.confusion_matrix(sklearn.confusion_matrix(y, z, normalize="all"))
    assert figure.axes[0].get_title() == f"accuracy {sklearn.accuracy_score(y, z):.4f}"
    assert plots.confusion_matrix(np.zeros((2, 2))).axes[0].get_title() == "confusion matrix"
    assert plots.confusion_matrix(np.eye(3)).axes[0].get_title() == "accuracy 1.000"


def test_weights_are_shown_as_they_are():
    axes = plots.confusion_matrix([[1.5, 1.0], [0.5, 2.0]]).axes[0]
    assert [[t.get_text() for t in row] for row in cells(axes, 2)] == [["1.50", "1.00"], ["0.50", "2.00"]]
    assert axes.get_title() == "accuracy 0.7000"
    assert plots.confusion_matrix([[1.0, 0.0], [0.5, 0.5]]).axes[0].get_title() == "confusion matrix"


def luminance(color):
    c = np.asarray(colors.to_rgb(color))
    return np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize(
    ("k", "name"), [(2, "class"), (3, ""), (5, "a longer name"), (10, ""), (20, "group"), (25, "")]
)
def test_cells_can_be_read(k, name):
    y, z = confusion(k, 200_000)
    figure = plots.confusion_matrix(sklearn.confusion_matrix(y, z), [f"{name} {i}" for i in range(k)])
    assert overlaps(figure) == []
    axes = figure.axes[0]
    width = axes.bbox.width / k
    for row, texts in enumerate(cells(axes, k)):
        for column, text in enumerate(texts):
            assert text.get_window_extent().width < width
            assert text.get_fontsize() >= 5
            shade = axes.images[0].to_rgba(axes.images[0].get_array())[row, column]
            light, dark = sorted([luminance(text.get_color()), luminance(shade)], reverse=True)
            assert (light + 0.05) / (dark + 0.05) > 4.5  # WCAG's contrast for text


@pytest.mark.parametrize("share", np.linspace(0.02, 0.98, 13))
def test_every_shade_is_readable(share):
    matrix = np.round([[1000 * share, 1000 * (1 - share)], [0, 1000]])
    axes = plots.confusion_matrix(matrix).axes[0]
    shades = axes.images[0].to_rgba(axes.images[0].get_array())
    for text, shade in zip(cells(axes, 2)[0], shades[0]):
        light, dark = sorted([luminance(text.get_color()), luminance(shade)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5


@pytest.mark.parametrize("k", [26, 100, 300])
def test_beyond_25_classes_only_the_shading(k):
    figure = plots.confusion_matrix(np.eye(k, dtype=int) * 7)
    assert not figure.axes[0].texts
    assert len(figure.axes[0].get_xticks()) <= 25
    assert overlaps(figure) == []


def test_a_matrix_that_is_none():
    for bad in (np.ones((2, 3)), np.ones(4), np.zeros((0, 0))):
        with pytest.raises(DataError, match="`matrix` must be square"):
            plots.confusion_matrix(bad)
    for bad in (-1, math.nan):
        with pytest.raises(DataError, match="`matrix` must hold counts"):
            plots.confusion_matrix([[1, bad], [0, 1]])
    with pytest.raises(ConfigError, match="`labels` must name the 2 classes of `matrix`, got 3"):
        plots.confusion_matrix(np.eye(2), list("abc"))
    with pytest.raises(ConfigError, match="`normalize`"):
        plots.confusion_matrix(np.eye(2), normalize="rows")


# Curves over thresholds.


def scores(seed=0):
    rng = np.random.default_rng(seed)
    y = rng.random(300) < 0.3
    return y, y * 1.5 + rng.standard_normal(300)


def test_the_area_under_the_drawn_roc_is_the_area():
    y, s = scores()
    fpr, tpr, _ = sklearn.roc_curve(y, s)
    auc = sklearn.roc_auc_score(y, s)
    figure = plots.roc_curve(fpr, tpr, auc)
    (line,) = [line for line in figure.axes[0].lines if colors.to_hex(line.get_color()) == BLUE]
    assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(auc, rel=1e-12)
    assert figure.axes[0].get_title() == f"ROC curve, area {auc:.4f}"
    assert figure.axes[0].get_xlabel() == "false positive rate"
    assert overlaps(figure) == []
    assert plots.roc_curve(fpr, tpr).axes[0].get_title() == "ROC curve"


def test_the_area_under_the_drawn_steps_is_the_average_precision():
    y, s = scores()
    precision, recall, _ = sklearn.precision_recall_curve(y, s)
    ap = sklearn.average_precision_score(y, s)
    figure = plots.precision_recall_curve(precision, recall, ap)
    (line,) = figure.axes[0].lines
    path = line.get_path().vertices  # the steps as they are drawn; recall falls along them
    assert line.get_drawstyle() == "steps-post"
    x, height = path[:, 0], path[:, 1]
    # Steps after a point: from x[i] to x[i+1] at the height of i; the area under them is average precision
    # only if the height belongs to the right end, which scikit-learn's order (recall falling) makes it.
    area = float(np.sum((x[:-1] - x[1:]) * height[:-1]))
    assert area == pytest.approx(ap, rel=1e-12)
    assert abs(np.trapezoid(precision[::-1], recall[::-1]) - ap) > 1e-4  # slanted lines would not be
    assert "average precision " + f"{ap:.4f}" in figure.axes[0].get_title()
    assert overlaps(figure) == []


def test_curves_that_do_not_match():
    with pytest.raises(
        DataError, match=r"`fpr` and `tpr` must be \[N\] both, got the shapes \(2,\) and \(3,\)"
    ):
        plots.roc_curve([0, 1], [0, 0.5, 1])
    with pytest.raises(DataError, match="`precision` and `recall`"):
        plots.precision_recall_curve([], [])


def test_labels_and_scores_are_no_curve_and_the_error_has_the_call():
    y, s = scores()
    s = 1 / (1 + np.exp(-s))  # rates, from 0 to 1, in no order
    with pytest.raises(DataError, match=r"neither falls.*`roc_curve\(\*fntrain.scores.roc_auc\("):
        plots.roc_curve(y, s)
    with pytest.raises(DataError, match=r"in order.*`precision_recall_curve\(\*fntrain.scores"):
        plots.precision_recall_curve(y, s)
    with pytest.raises(DataError, match="from 0 to 1"):
        plots.roc_curve([0.0, 50.0, 100.0], [0.0, 80.0, 100.0])
    plots.roc_curve(*scores_of.roc_auc(y, s)[:2])  # as the errors say
    plots.precision_recall_curve(*scores_of.precision_recall_curve(y, s)[:2])


def test_what_keeps_the_books_and_the_bound_of_an_error_have_no_panel():
    told = {
        "roc_auc": [0.5, 0.7],
        "roc_auc_bound": [1e-6, 1e-6],
        "mini_step": [1, 0],
        "ema_decay": [0.5, 0.6],
    }
    assert titles(plots.learning_curves(told)) == ["roc auc"]
    assert titles(plots.learning_curves(told, metrics=["roc_auc_bound"])) == ["roc auc bound"]


def test_an_interval_of_one_epoch_is_an_upright_line():
    axes = plots.learning_curves({"f1": [0.5], "f1_low": [0.4], "f1_high": [0.7]}).axes[0]
    upright = [segment for lines in axes.collections for segment in getattr(lines, "get_segments", list)()]
    assert [[1.0, 0.4], [1.0, 0.7]] in [segment.tolist() for segment in upright]


# Schedules.


class Steps:
    """Takes arrays, and tells its boundaries."""

    boundaries = (30_000, 60_000, 200_000)

    def __call__(self, step):
        return 0.1 * 0.1 ** np.searchsorted(self.boundaries, step, side="right")

    def __repr__(self):
        return "step_decay(0.1, factor=0.1)"


def test_a_schedule_jumps_upright_at_its_marked_boundaries():
    figure = plots.schedule(Steps(), 100_000)
    axes = figure.axes[0]
    *marks, line = axes.lines
    x, y = line.get_xdata(), line.get_ydata()
    assert [mark.get_xdata()[0] for mark in marks] == [30_000, 60_000]  # the third is not in the picture
    assert (x[0], x[-1]) == (0, 100_000)
    np.testing.assert_allclose(y, np.where(x < 30_000, 0.1, np.where(x < 60_000, 0.01, 0.001)), rtol=1e-12)
    assert {29_999, 30_000, 59_999, 60_000} <= set(x.tolist())
    assert len(x) < 2100
    assert axes.get_title() == "step_decay(0.1, factor=0.1)"
    assert overlaps(figure) == []


def test_a_short_schedule_is_drawn_at_every_update():
    (line,) = plots.schedule(lambda step: 2.0 * step, 5).axes[0].lines
    assert line.get_xdata().tolist() == [0, 1, 2, 3, 4, 5]
    assert line.get_ydata().tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("foreign", [lambda step: 0.1 if step < 3 else 0.5, lambda step: 0.25])
def test_a_schedule_that_takes_one_step_at_a_time(foreign):
    (line,) = plots.schedule(foreign, 6).axes[0].lines
    assert line.get_ydata().tolist() == [foreign(step) for step in range(7)]


def test_what_is_no_schedule():
    with pytest.raises(ConfigError, match="`schedule` must be a function"):
        plots.schedule(0.1, 10)
    with pytest.raises(ConfigError, match="`steps` must be an integer >= 1"):
        plots.schedule(Steps(), 0)
    with pytest.raises(TypeError):  # what it says itself
        plots.schedule(lambda a, b: 0.1, 10)


def test_a_long_name_is_wrapped():
    class Long(Steps):
        def __repr__(self):
            return "join([" + ", ".join(f"(cosine(0.1, steps={i}), {i})" for i in range(9)) + "])"

    figure = plots.schedule(Long(), 100)
    assert "\n" in figure.axes[0].get_title()
    assert overlaps(figure) == []


# What a picture leaves behind.


def every(path=None):
    yield plots.learning_curves(history(5), path=path)
    yield plots.confusion_matrix(np.eye(3), path=path)
    yield plots.roc_curve([0, 0.2, 1], [0, 0.8, 1], path=path)
    yield plots.precision_recall_curve([0.5, 1, 1], [1, 0.5, 0], path=path)
    yield plots.schedule(Steps(), 100, path=path)


def test_pictures_can_be_pickled():
    for figure in every():
        assert len(pickle.loads(pickle.dumps(figure)).axes) == len(figure.axes)


def test_pictures_are_saved_sharp(tmp_path):
    path = tmp_path / "picture.png"
    for figure in every(path):
        height, width, _ = image.imread(path).shape
        assert (width, height) == tuple(np.floor(figure.get_size_inches() * 150 + 1e-6))
        path.unlink()


def test_nothing_stays_in_memory_or_in_the_settings():
    settings = dict(matplotlib.rcParams)
    figures = [weakref.ref(figure) for figure in every()]
    gc.collect()
    assert [figure() for figure in figures] == [None] * 5
    assert not _pylab_helpers.Gcf.figs
    assert dict(matplotlib.rcParams) == settings


def test_the_users_style_does_not_show(tmp_path):
    plots.learning_curves(history(5), path=tmp_path / "a.png")
    with matplotlib.rc_context(
        {"axes.facecolor": "black", "text.color": "red", "font.size": 30, "savefig.dpi": 20}
    ):
        plots.learning_curves(history(5), path=tmp_path / "b.png")
    np.testing.assert_array_equal(image.imread(tmp_path / "a.png"), image.imread(tmp_path / "b.png"))


def test_a_notebook_shows_the_picture_without_pyplot():
    formatters = pytest.importorskip("IPython.core.formatters")
    for figure in every():
        data, _ = formatters.DisplayFormatter().format(figure)
        assert data["image/png"].startswith(b"\x89PNG")


def test_matplotlib_is_asked_for_only_when_drawing_and_never_pyplot():
    code = (
        "import sys, fntrain.plots as p\n"
        "assert not {'matplotlib', 'rich'} & set(sys.modules), 'imported too early'\n"
        "p.learning_curves({'loss': [1.0]})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    for draw in (
        lambda: plots.learning_curves(history(2)),
        lambda: plots.confusion_matrix(np.eye(2)),
        lambda: plots.roc_curve([0, 1], [0, 1]),
        lambda: plots.precision_recall_curve([1, 1], [1, 0]),
        lambda: plots.schedule(Steps(), 3),
    ):
        with pytest.raises(ConfigError, match=r'`pip install "fntrain\[plot\]"`') as error:
            draw()
        assert isinstance(error.value.__cause__, ImportError)
