"""Rows of metrics in files: CSV and JSON lines, one row an epoch, whole over kills and resumes."""

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self, TextIO

import jax
import numpy as np

from .._core.check import integer
from .._core.errors import ConfigError, DataError
from .._core.files import write_text


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a file that `CSVWriter` or `JSONLWriter` wrote; a torn last line is left out.

    Numbers, truth values, text and lists come back as such. An empty CSV cell is a column its row has not.

    Raises:
      DataError: if a line is damaged; its number is named.
    """
    text = _whole_lines(Path(path))
    suffix = Path(path).suffix
    if suffix == ".jsonl" or (suffix != ".csv" and text[:1] in ("{", "")):
        return [_object(line, f"{path}, line {n},") for n, line in enumerate(text.split("\n")[:-1], 1)]
    rows: list[dict[str, Any]] = []
    header, *lines = [*csv.reader(io.StringIO(text, newline=""))] or [[]]
    for number, line in enumerate(lines, 2):
        if len(line) != len(header):
            raise DataError(f"{path}, row {number}, has {len(line)} cells under {len(header)} columns")
        rows.append({_parsed_text(name): _parsed(cell) for name, cell in zip(header, line) if cell})
    return rows


def _object(line: str, where: Any) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        raise DataError(f"{where} is no JSON object: {line[:80]!r}") from None


class _Writer:
    """What both writers share: a file that is appended to, row by row, each flushed."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path: Path = Path(path).expanduser()
        if self.path.is_dir():
            raise ConfigError(f"`path` must be a file, and {self.path} is a directory")
        self._file: TextIO | None = None
        if self.path.exists() and self.path.stat().st_size != len(whole := _whole_lines(self.path).encode()):
            os.truncate(self.path, len(whole))  # the process before was killed within a row

    def _append(self, text: str) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115
        self._file.write(text)
        self._file.flush()

    def _replace(self, text: str) -> None:
        self.close()
        write_text(self.path, text)

    def close(self) -> None:
        """Close the file; a later `write` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class JSONLWriter(_Writer):
    r"""One JSON object a line.

    Every line is valid JSON: NaN and infinity are `null`. Arrays become lists.

    Args:
      path: the file; rows are appended to what is there, and a torn last line is dropped.

    Raises:
      ConfigError: if `path` is a directory.

    Examples:
      >>> import tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp(), "metrics.jsonl")
      >>> with JSONLWriter(path) as writer:
      ...     writer.write({"epoch": 1, "loss": float("nan")})
      ...     writer.write({"epoch": 2, "loss": 0.5})
      ...     writer.truncate(after_epoch=1)
      >>> path.read_text()
      '{"epoch": 1, "loss": null}\n'
    """

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row.

        Raises:
          DataError: if a value is neither number, text, None, array, nor a list or dict of such.
        """
        row = {str(name): _jsonable(_plain(value, str(name))) for name, value in row.items()}
        self._append(json.dumps(row, allow_nan=False) + "\n")

    def truncate(self, *, after_epoch: int, steps: Collection[int] = ()) -> None:
        """Drop the rows of later epochs than `after_epoch`, atomically: what a resumed run writes again.

        Args:
          after_epoch: the last epoch that stays.
          steps: rows of these steps stay, whatever their epoch.
        """
        integer("after_epoch", after_epoch, at_least=0)
        if self.path.exists():
            lines = _whole_lines(self.path).split("\n")[:-1]
            rows = [_object(line, self.path) for line in lines]
            stay = [_epoch(row.get("epoch")) <= after_epoch or row.get("step") in steps for row in rows]
            kept = list(itertools.compress(lines, stay))
            if len(kept) < len(lines):
                self._replace("".join(line + "\n" for line in kept))


class CSVWriter(_Writer):
    """Comma-separated values under a header.

    A column that turns up later widens the header, and earlier rows get empty cells (the file is replaced as
    a whole). NaN and infinity are written `nan`, `inf`, `-inf`; None and what a row lacks is an empty cell;
    arrays are written as JSON lists. A text that starts with `= + - @`, or could be taken for something else
    than text, gets a leading `'`, so that no spreadsheet takes it for a formula; line breaks in a text become
    spaces.

    Args:
      path: the file; rows are appended to what is there, without a second header, and a torn last line is
        dropped.

    Raises:
      ConfigError: if `path` is a directory.

    Examples:
      >>> import tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp(), "metrics.csv")
      >>> with CSVWriter(path) as writer:
      ...     writer.write({"epoch": 1, "loss": 0.5})
      ...     writer.write({"epoch": 2, "loss": 0.25, "note": "=1+1"})
      >>> print(path.read_text(), end="")
      epoch,loss,note
      1,0.5,
      2,0.25,'=1+1
    """

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(path)
        self._header = (self._rows() or [[]])[0]

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; see the class for what becomes of the values.

        Raises:
          DataError: if a value is neither number, text, None, array, nor a list or dict of such.
        """
        cells = {_text(str(name)): _cell(_plain(value, str(name))) for name, value in row.items()}
        new = [name for name in cells if name not in self._header]
        line = [cells.get(name, "") for name in [*self._header, *new]]
        if not new:
            self._append(_csv([line]))
            return
        _, *rows = self._rows() or [[]]
        header = [*self._header, *new]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._replace(_csv([header, *(old + [""] * len(new) for old in rows), line]))
        self._header = header

    def truncate(self, *, after_epoch: int, steps: Collection[int] = ()) -> None:
        """Drop the rows of later epochs than `after_epoch`, atomically: what a resumed run writes again.

        Args:
          after_epoch: the last epoch that stays.
          steps: rows of these steps stay, whatever their epoch.
        """
        integer("after_epoch", after_epoch, at_least=0)
        if "epoch" in self._header:
            header, *rows = self._rows()
            known = ("epoch", "step")
            found = [{n: _parsed(cell) for n, cell in zip(header, row) if n in known} for row in rows]
            stay = [_epoch(row["epoch"]) <= after_epoch or row.get("step") in steps for row in found]
            kept = list(itertools.compress(rows, stay))
            if len(kept) < len(rows):
                self._replace(_csv([header, *kept]))

    def _rows(self) -> list[list[str]]:
        return list(csv.reader(io.StringIO(_whole_lines(self.path), newline="")))


def _whole_lines(path: Path) -> str:
    """The text up to the last line break: what follows it was cut off."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].decode()


def _epoch(value: Any) -> float:
    return value if isinstance(value, int | float) else 0  # a row without an epoch belongs to none, and stays


def _plain(value: Any, name: str) -> Any:
    """Arrays as lists, NumPy's numbers as Python's."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v, name) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, name) for v in value]
    raise DataError(f"column `{name}` must hold numbers, text or arrays, got a {type(value).__name__}")


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(rows: list[list[str]]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, dict | list):
        return json.dumps(_jsonable(value))
    if isinstance(value, str):
        return _text(value)
    return "" if value is None else repr(value)


def _text(value: str) -> str:
    value = " ".join(value.splitlines())
    # Leading blanks count for nothing: some spreadsheets strip them.
    formula = value.startswith("\t") or value.lstrip().startswith(("=", "+", "-", "@"))
    plain = value and not formula and _parsed(value) == value
    return value if plain else "'" + value


def _parsed_text(cell: str) -> str:
    return cell.removeprefix("'")


def _parsed(cell: str) -> Any:
    """A cell's value: the inverse of `_cell`."""
    if cell in ("True", "False"):
        return cell == "True"
    if cell[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    for number in (int, float):
        try:
            return number(cell)
        except ValueError:
            continue
    return _parsed_text(cell)
