"""The numbers beside an axis: one unit and one number of decimals, in every kind of picture."""

import re

import numpy as np
import pytest

import fntrain as ft
from fntrain.show import plots
from fntrain.show.report.chart import Series, chart
from fntrain.show.report.scale import Scale
from fntrain.show.text import tick_texts


def value_of(text):
    """The number that a text stands for."""
    unit = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)
    return float(text.rstrip("kMG").replace("−", "-")) * unit


def decimals_of(text):
    return len(re.fullmatch(r"−?\d+(?:\.(\d+))?(?:e−?\d+|[kMG])?", text)[1] or "")


SPANS = [10.0**e for e in range(-9, 12)]


@pytest.mark.parametrize("low", [-0.37, 0.0, 0.013, 1.0, 40.0])
@pytest.mark.parametrize("span", SPANS, ids="{:g}".format)
def test_evenly_spaced_numbers_share_their_decimals_and_are_what_they_say(low, span):
    for high in (1.1, 2.3, 5.7, 9.9):
        ticks = Scale(low * span, (low + high) * span, 0, 1).ticks(6)
        texts = tick_texts(ticks)
        assert len({decimals_of(text) for text in texts}) == 1
        assert len({*texts}) == len(texts)
        step = ticks[1] - ticks[0]
        np.testing.assert_allclose([value_of(text) for text in texts], ticks, rtol=0, atol=1e-6 * step)
        assert max(map(len, texts)) <= 9
        assert len({re.sub(r"[^kMGe]", "", text) for text in texts if value_of(text)}) == 1  # one unit


def test_numbers_with_other_spaces_are_written_each_alone():
    assert tick_texts([0.01, 0.1, 1, 10]) == ["0.01", "0.1", "1", "10"]
    assert tick_texts([1e-5, 1e-4, 1e-3, 20_000]) == ["1e−5", "1e−4", "0.001", "20k"]
    assert tick_texts([]) == []
    assert tick_texts([0.0]) == ["0"]
    assert tick_texts([-0.0, 1.0]) == ["0", "1"]


def test_no_more_decimals_than_it_takes():
    assert tick_texts([0.0, 0.5, 1.0]) == ["0.0", "0.5", "1.0"]
    assert tick_texts([0.1 * i for i in range(4)]) == ["0.0", "0.1", "0.2", "0.3"]
    assert tick_texts([0.5, 0.75, 1.0]) == ["0.50", "0.75", "1.00"]
    assert tick_texts([0, 2, 4]) == ["0", "2", "4"]
    assert tick_texts([0.99991, 0.99992]) == ["0.99991", "0.99992"]


def labels(axis):
    axis.figure.draw_without_rendering()
    low, high = axis.get_view_interval()
    return [
        t.get_text() for t in axis.get_ticklabels() if low <= t.get_position()[axis.axis_name == "y"] <= high
    ]


def test_a_pictures_axis_shares_them():
    history = {"loss": [1.3, 0.4, 0.05], "val_loss": [1.2, 0.6, 0.3], "learning_rate": [1e-5, 8e-6, 2e-6]}
    loss, rate = plots.learning_curves(history).axes
    assert labels(loss.yaxis) == ["0.00", "0.25", "0.50", "0.75", "1.00", "1.25"]
    assert labels(rate.yaxis) == ["4e−6", "8e−6"]
    found = plots.lr_finding([0.1, 1.0, 10.0], [1.0, 0.5, 1.3]).axes[0]
    assert {decimals_of(text) for text in labels(found.yaxis)} == {1}
    drawn = plots.schedule(ft.schedules.linear(1.2, 0.0, 10), 10).axes[0]
    assert labels(drawn.yaxis) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0", "1.2"]


def test_a_charts_axes_share_them():
    drawn = chart("loss", [Series("a", [0, 12_000], [0.0, 1.3])], x_label="step")
    upright = re.findall(r'text-anchor="end">([^<]*)<', drawn)
    across = re.findall(r'text-anchor="middle">([^<]*)<', drawn)
    assert upright == ["0.0", "0.5", "1.0", "step"]
    assert across == ["0", "5k", "10k"]


def test_curves_in_characters_share_them():
    def beside(history):
        lines = plots.text(history, height=6, ascii=True).splitlines()
        return [head for line in lines if (head := line.partition("|")[0].strip()) and "|" in line]

    assert beside({"loss": [12.0, 4.0, 0.35]}) == ["12.00", "5.01", "0.35"]
    assert beside({"loss": [1.5, 0.5, -0.5]}) == ["1.500", "0.300", "-0.500"]
    assert beside({"grad_norm": [8.0, 2.0]}) == ["8", "5", "2"]
    assert beside({"loss": [100.0, 0.1]})[::2] == ["100", "0.1000"]  # a logarithmic axis
