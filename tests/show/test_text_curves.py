"""Learning curves in characters: values where they belong, gaps, the same choice of columns as the picture."""

import importlib.util

import numpy as np
import pytest

import fntrain as ft
from fntrain import cli
from fntrain.show import plots


def grid(text):
    """The characters right of a panel's axis, one row a line."""
    return [line.partition("|")[2] for line in text.splitlines() if "|" in line]


def test_a_straight_line_is_the_diagonal():
    text = plots.text({"accuracy": list(range(8))}, width=40, height=8, ascii=True)
    rows = [np.flatnonzero(np.array([*row]) == ".") for row in grid(text)]
    across = 40 - len("7 |")
    assert rows[-1][0] == 0
    assert rows[0][-1] == across - 1
    starts = [row[0] for row in rows]  # falls from the last row to the first, in equal steps
    assert starts == sorted(starts, reverse=True)
    assert np.ptp(np.diff(starts[1:-1])) <= 1


def test_a_loss_that_falls_far_is_on_a_logarithmic_axis():
    values = [10.0**-i for i in range(5)]
    log = grid(plots.text({"loss": values}, width=40, height=5, ascii=True))
    assert [row.find(".") for row in log] == sorted(row.find(".") for row in log)
    assert all("." in row for row in log)
    # On a linear axis all but the first would lie at the bottom.
    flat = plots.text({"learning_rate": values}, width=40, height=9, ascii=True)
    labels = [line.partition("|")[0].strip() for line in flat.splitlines() if "|" in line]
    assert labels == ["1.000", "", "0.3334", "1e-4"]


def test_what_is_not_finite_is_a_gap():
    text = plots.text({"loss": [1.0, None, float("nan"), 2.0, 2.0]}, width=40, height=3, ascii=True)
    assert max(len(part) for row in grid(text) for part in row.strip().split(".")) == 0
    rows = grid(text)
    assert rows[2].rstrip() == "."
    assert rows[0].startswith(" " * 20)


def test_both_series_the_best_and_what_is_left_out():
    history = {"epoch": [3, 4, 5], "step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "val_loss": [3.0, 1.5, 2.0]}
    text = plots.text(history)
    assert text.splitlines()[0].split() == ["loss", "best", "1.500", "at", "epoch", "4"]
    assert text.count("○") == 4  # one an epoch, and one in the legend
    assert "step" not in text
    assert all(len(line) <= 78 for line in text.splitlines())
    with pytest.raises(ft.ConfigError, match=r"`metrics`.*'los'.*did you mean 'loss'"):
        plots.text(history, metrics=["los"])
    with pytest.raises(ft.ConfigError, match="`width`"):
        plots.text(history, width=10)
    with pytest.raises(ft.DataError, match="`history`"):
        plots.text({})


def test_without_matplotlib_the_command_prints_them(monkeypatch, capsys, tmp_path):
    lines = ['{"epoch": 1, "loss": 0.5}', '{"epoch": 2, "loss": 0.25}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["plot", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("loss")
    assert not list(tmp_path.glob("*.png"))
