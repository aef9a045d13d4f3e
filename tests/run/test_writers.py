"""Metric files: what is written comes back, over kills, resumes and odd values."""

import csv
import json
import math
import random

import jax.numpy as jnp
import numpy as np
import pytest

from fntrain._core.errors import ConfigError, DataError
from fntrain.run.history import plain
from fntrain.run.writers import CSVWriter, JSONLWriter, read_rows

WRITERS = [CSVWriter, JSONLWriter]
ROWS = [
    {"epoch": 1, "loss": 0.1 + 0.2, "steps": 2**60, "note": "a, b", "done": False},
    {"epoch": 2, "loss": 1e-300, "steps": 0, "note": 'say "x"', "done": True},
    {"epoch": 3, "loss": -5.0, "steps": -1, "note": "é", "done": False},
]


@pytest.mark.parametrize("writer", WRITERS)
def test_rows_come_back_with_their_types(tmp_path, writer):
    path = tmp_path / "deep" / "metrics.log"
    with writer(path) as out:
        for n, row in enumerate(ROWS, 1):
            out.write(row)
            assert read_rows(path) == ROWS[:n]  # each row is there at once, for whoever reads
    assert [type(v) for v in read_rows(path)[0].values()] == [int, float, int, str, bool]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_resume_appends_after_the_checkpoint_s_rows(tmp_path, writer):
    path = tmp_path / "metrics"
    with writer(path) as out:
        for row in ROWS:
            out.write(row)
    with writer(path) as out:
        out.truncate(after_epoch=1)
        assert read_rows(path) == ROWS[:1]
        for row in ROWS[1:]:
            out.write(row)
        out.truncate(after_epoch=3)  # nothing to drop
    with writer(path) as out:
        out.write({**ROWS[0], "epoch": 4})
    text = path.read_text().splitlines()
    assert len(text) == 4 + (writer is CSVWriter)  # no second header, no row twice
    with writer(path) as out:
        out.truncate(after_epoch=0)
    assert len(path.read_text().splitlines()) == (writer is CSVWriter)


@pytest.mark.parametrize("writer", WRITERS)
def test_truncate_before_anything_was_written(tmp_path, writer):
    out = writer(tmp_path / "new")
    out.truncate(after_epoch=0)
    assert not (tmp_path / "new").exists()
    out.write({"epoch": 1})
    out.truncate(after_epoch=1)
    out.close()
    assert read_rows(tmp_path / "new") == [{"epoch": 1}]
    with pytest.raises(ConfigError, match="after_epoch"):
        out.truncate(after_epoch=-1)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_row_cut_off_anywhere_is_dropped(tmp_path, writer):
    path = tmp_path / "metrics"
    with writer(path) as out:
        for row in ROWS:
            out.write(row)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n") - (writer is CSVWriter)
        assert read_rows(path) == ROWS[: max(whole, 0)]
        with writer(path) as out:
            for row in ROWS[max(whole, 0) :]:
                out.write(row)
        assert path.read_bytes() == content, cut
    assert first < len(content)


def test_json_is_valid_whatever_the_numbers(tmp_path):
    row = {
        "nan": math.nan,
        "inf": np.float32(np.inf),
        "array": jnp.array([1.0, jnp.nan]),
        "nested": {"a": [(-math.inf, None)]},
        "scalar": jnp.bfloat16(0.5),
        "int": np.int64(2**53 + 1),
    }
    with JSONLWriter(tmp_path / "m.jsonl") as out:
        out.write(row)

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=refuse) == {
        "nan": None,
        "inf": None,
        "array": [1.0, None],
        "nested": {"a": [[None, None]]},
        "scalar": 0.5,
        "int": 2**53 + 1,
    }


def test_csv_has_a_word_for_what_is_not_finite_and_nothing_for_none(tmp_path):
    path = tmp_path / "m.csv"
    with CSVWriter(path) as out:
        out.write({"a": math.nan, "b": math.inf, "c": -math.inf, "d": None, "e": np.array([1.5, np.nan])})
    assert path.read_text() == 'a,b,c,d,e\nnan,inf,-inf,,"[1.5, null]"\n'
    (row,) = read_rows(path)
    assert math.isnan(row.pop("a"))
    assert row == {"b": math.inf, "c": -math.inf, "e": [1.5, None]}


def test_new_columns_widen_the_header(tmp_path):
    path = tmp_path / "m.csv"
    rows = [
        {"epoch": 1, "loss": 0.5},
        {"epoch": 2, "val": 1.0, "loss": 0.4},
        {"epoch": 3, "val": 2.0},
        {"x": 1},
    ]
    with CSVWriter(path) as out:
        for row in rows:
            out.write(row)
    assert path.read_text() == "epoch,loss,val,x\n1,0.5,,\n2,0.4,1.0,\n3,,2.0,\n,,,1\n"
    assert read_rows(path) == rows
    with CSVWriter(path) as out:  # the header is read again; columns keep their places
        out.write({"val": 3.0, "epoch": 4})
        out.truncate(after_epoch=2)
    assert path.read_text() == "epoch,loss,val,x\n1,0.5,,\n2,0.4,1.0,\n,,,1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_no_text_is_a_formula_and_numbers_are_left_alone(tmp_path):
    path = tmp_path / "m.csv"
    texts = [
        "=1+1",
        "+1",
        "-1",
        "@sum",
        "\tx",
        "  =1+1",
        "'quoted",
        "12",
        "nan",
        "True",
        "",
        "[1]",
        "{x",
        "1e5",
        "safe",
    ]
    row = {"number": -1.5, **{f"c{i}": text for i, text in enumerate(texts)}, "=name": "x"}
    with CSVWriter(path) as out:
        out.write(row)
        out.write(row)
    with open(path, newline="") as file:
        header, cells, _ = csv.reader(file)
    assert cells[0] == "-1.5"
    assert not [
        cell for cell in [*header, *cells[1:]] if cell.lstrip()[:1] in tuple("=+-@") or cell[:1] == "\t"
    ]
    assert read_rows(path) == [row, row]


def test_text_round_trips_in_csv_but_for_line_breaks(tmp_path):
    rng = random.Random(0)
    letters = "=+-@'\"[]{},;1.e nantTrue\t\\é"
    rows = [{"t": "".join(rng.choices(letters, k=rng.randrange(7))), "n": 1} for _ in range(500)]
    with CSVWriter(tmp_path / "m.csv") as out:
        for row in rows:
            out.write(row)
        out.write({"t": "two\nlines\r\n", "n": 2})
    assert read_rows(tmp_path / "m.csv") == [*rows, {"t": "two lines", "n": 2}]


@pytest.mark.parametrize("writer", WRITERS)
def test_errors_name_the_place(tmp_path, writer):
    with pytest.raises(ConfigError, match="directory"):
        writer(tmp_path)
    out = writer(tmp_path / "m")
    with pytest.raises(DataError, match="column `bad`"):
        out.write({"epoch": 1, "bad": object()})
    assert not (tmp_path / "m").exists()


def test_damaged_lines_are_named(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"epoch": 1}\n{"epoch": \n3\n')
    with pytest.raises(DataError, match="line 2"):
        read_rows(tmp_path / "m.jsonl")
    with pytest.raises(DataError, match="is no JSON object"):
        JSONLWriter(tmp_path / "m.jsonl").truncate(after_epoch=0)
    (tmp_path / "m.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(DataError, match="row 3"):
        read_rows(tmp_path / "m.csv")
    (tmp_path / "empty").write_text("")
    assert read_rows(tmp_path / "empty") == read_rows(tmp_path / "missing") == []


def test_counts_are_integers_and_all_else_floats():
    values = {
        "tp": jnp.uint32(3),
        "loss": jnp.float32(1),
        "rate": jnp.bfloat16(0.5),
        "big": np.int64(2**40 + 1),
    }
    found = plain(values)
    assert found == {"tp": 3, "loss": 1.0, "rate": 0.5, "big": 2**40 + 1}
    assert [type(x) for x in found.values()] == [int, float, float, int]
