"""compare: runs side by side, what they measured and in what they differ."""

import dataclasses
import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .._core.errors import ConfigError
from ..data.cut import in_words
from ..run.history import EACH, UNFINISHED
from ..run.record import RunRecord, read_run
from ..show.plots.panels import bookkeeping
from ..show.text import is_end, is_number, reading_order, value_text
from ..step.task import COLUMNS
from .differences import OF_THE_PROCESS, Row, differences


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Runs side by side; it prints as two tables.

    Attributes:
      names: what each run is called: its directory, as far as that tells it from the others.
      facts: what is known of each, in words, one entry a run: status, steps, the best and the last values.
      differences: the arguments that are not the same in all, likewise, by the names that they were given by.
      configuration: all entries of the configurations, likewise.
    """

    names: list[str]
    facts: list[Row]
    differences: list[Row]
    configuration: list[Row]

    def __repr__(self) -> str:
        tables = [_text(["", *self.names], self.facts)]
        if len(self.names) > 1:
            shown = [(path, [_short(value) for value in values]) for path, values in self.differences]
            same = "the configurations are the same"
            tables.append(_text(["they differ in", *self.names], shown) if shown else same)
        return "\n\n".join(tables)


def compare(runs: Iterable[Any]) -> Comparison:
    """Set runs side by side: how each ended, its best and last values, and in what their configurations differ.

    A value that has an interval (`metrics.bootstrap`) is written with it, `0.95 [0.93, 0.97]`.

    Args:
      runs: run directories, as `fit` leaves them, or RunRecords.

    Returns:
      A Comparison; print it.

    Raises:
      ConfigError: if there is none, or one is no run directory.
      DataError: if a file of one is damaged.

    Examples:
      >>> import fntrain as ft, numpy as np, tempfile, pathlib
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> for rate in (0.1, 0.2):
      ...     task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(rate))
      ...     state = ft.init_state(task, {"w": np.float32(0)})
      ...     where = folder / f"rate-{rate}"
      ...     _ = ft.fit(task, state, np.ones(4, np.float32), epochs=2, run_dir=where, progress=False)
      >>> compared = ft.tools.compare([folder / "rate-0.1", folder / "rate-0.2"])
      >>> [values for name, values in compared.facts if name == "loss, best"]
      [['0.6400 at step 2', '0.3600 at step 2']]
      >>> [name for name, values in compared.differences]
      ['tx.learning_rate']
    """
    records = read_all(runs)
    names = names_of(records)
    facts: dict[str, dict[int, str]] = {}
    for i, record in enumerate(records):
        for name, text in facts_of(record):
            facts.setdefault(name, {})[i] = text
    flat = [dict(_flat(_configuration(record.config))) for record in records]
    paths = dict.fromkeys(itertools.chain(*flat))
    configuration = [(path, [_value(values.get(path, _ABSENT)) for values in flat]) for path in paths]
    return Comparison(
        names,
        [(name, [texts.get(i, "") for i in range(len(records))]) for name, texts in facts.items()],
        differences([record.config for record in records]),
        configuration,
    )


def read_all(runs: Iterable[Any]) -> list[RunRecord]:
    """The records of runs, at least one.

    Raises:
      ConfigError: if there is none, or a path stands where a list should.
    """
    if isinstance(runs, str | Path | RunRecord):
        raise ConfigError(
            f"`runs` must be a list of run directories, got {runs!r}; write `[...]`, also for one"
        )
    records = [run if isinstance(run, RunRecord) else read_run(run) for run in runs]
    if not records:
        raise ConfigError("`runs` must hold at least one run directory, got none")
    return records


def names_of(records: Sequence[RunRecord]) -> list[str]:
    """What to call each run: the last parts of its path, as many as tell all of them apart."""
    parts = [record.path.resolve().parts for record in records]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-n:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            return names
    raise AssertionError("paths that differ have parts that differ")


def facts_of(record: RunRecord) -> list[tuple[str, str]]:
    """What there is to say of one run, by name."""
    config, identity = record.config, record.config.get("identity", {})
    data = identity.get("data", {})
    leaves = ", ".join(f"{path} {what}".strip() for path, what in data.get("leaves", {}).items())
    said = {
        "status": record.status,
        "written": time.strftime("%Y-%m-%d %H:%M", time.localtime(record.when)),
        "epochs": _of(record.epochs, config.get("epochs")),
        "steps": _of(record.step, config.get("steps")),
        "parameters": f"{config['parameters']:,}" if is_number(config.get("parameters")) else "",
        "data": leaves or data.get("kind") or "",
        "batch size": in_words(identity.get("batch_size")),
        "devices": ", ".join(config.get("devices", ())),
        **_measured(record),
    }
    return [(name, text) for name, text in said.items() if text]


def curves_of(record: RunRecord) -> list[str]:
    """The columns that are worth a curve: numbers, which neither keep the books nor are a part of another."""
    return [
        name
        for name, values in record.columns.items()
        if name not in (*COLUMNS, UNFINISHED)
        and not bookkeeping(name)
        and not name.endswith(EACH)
        and not is_end(name, record.columns)
        and any(is_number(value) for value in values)
    ]


def _measured(record: RunRecord) -> dict[str, str]:
    """The best values, each with its step, and the last ones."""
    names = sorted(curves_of(record), key=reading_order)
    columns = record.columns
    best = {}
    for name in names:
        row = record.best(name)
        if row is not None and (name.startswith("val_") or f"val_{name}" not in columns):
            best[f"{name}, best"] = f"{value_text(name, row)} at step {row.get('step', '?')}"
    lost = [
        name for name in ("loss", "val_loss") if name in columns and name not in names
    ]  # not one of it is finite
    last = {f"{name}, last": value_text(name, record.last) for name in [*lost, *names] if name in record.last}
    return best | last


def _of(n: int, total: int | None) -> str:
    return f"{n} of {total}" if total else f"{n}"


_ABSENT = object()


def _configuration(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in OF_THE_PROCESS}


def _flat(x: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of nested dicts and lists, by dotted path."""
    if isinstance(x, dict) and x:
        for key, value in x.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif isinstance(x, list) and any(isinstance(value, dict | list) for value in x):
        for i, value in enumerate(x):
            yield from _flat(value, f"{path}.{i}")
    else:
        yield path, x


def _value(x: Any) -> str:
    return "–" if x is _ABSENT else str(x)


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(header: list[str], rows: Sequence[Row]) -> str:
    lines = [header, *([name, *values] for name, values in rows)]
    wide = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("   ".join(cell.ljust(n) for cell, n in zip(line, wide)).rstrip() for line in lines)
