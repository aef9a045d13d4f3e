"""report: runs on one page of HTML, which needs nothing else."""

import base64
import html
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._core import check
from .._core.errors import ConfigError
from .._core.files import write_text
from ..run.history import EACH, UNFINISHED
from ..run.record import RunRecord
from ..show.plots.panels import SLIM, bookkeeping, is_logarithmic
from ..show.report.chart import Series, chart, is_finite
from ..show.report.page import Section, page
from ..show.report.tables import matrix, table
from ..show.schedule_text import schedules_in
from ..show.text import is_confusion, is_number, reading_order
from .compare import Comparison, compare, curves_of, names_of, read_all
from .report_speed import diagnosis, speed, titled

MOST_DOTS = 60  # of a curve with more rows, only what a line does not show is marked
MOST_SAMPLES, MOST_BYTES = 24, 2_000_000  # of a run, and of one of them: the page holds them all


def report(runs: Iterable[Any], out: Any = None, *, title: str | None = None) -> str:
    """Show runs on one page: a file of HTML with everything in it, which fetches nothing.

    Curves over steps, training dashed where there is a validation, with bands where a value has an interval (of
    `metrics.bootstrap`) or members (a population's, from the lowest to the highest), and dots where a validation was
    inside an epoch; the learning rate, and what was planned of it; times, throughput and memory (of a
    `ResourceMonitor`); confusion matrices; the last of each of `callbacks.Samples`; checkpoints; the configuration, and
    what of it differs between the runs. Runs of unlike batch sizes are drawn over examples. The page is light or dark
    as the reader's system is, and can be read by keyboard, by ear and on a phone: each chart has its numbers below it.

    Args:
      runs: run directories, as `fit` leaves them.
      out: the file to write, or None.
      title: the page's heading; None names the runs.

    Returns:
      The page.

    Raises:
      ConfigError: if there is no run, or `out` is no path or a directory.
      DataError: if a file of a run is damaged.

    Examples:
      >>> import fntrain as ft, numpy as np, tempfile, pathlib
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> state, x = ft.init_state(task, {"w": np.float32(0)}), np.ones(4, np.float32)
      >>> _ = ft.fit(task, state, x, epochs=2, run_dir=folder / "one", progress=False)
      >>> text = ft.tools.report([folder / "one"], folder / "report.html")
      >>> (folder / "report.html").read_text() == text, "<h3>loss</h3>" in text
      (True, True)
    """
    records = read_all(runs)
    path = None if out is None else check.path("out", out)
    if path is not None and path.is_dir():
        raise ConfigError(f"`out` must be a file, and {path} is a directory; write `{path / 'report.html'}`")
    compared = compare(records)
    heading = title or " and ".join(compared.names[:3]) + (" and more" if len(records) > 3 else "")
    made = [Section(name, body) for name, body in _sections(records, compared) if body]
    text = page(heading, _lead(records), made)
    if path is not None:
        write_text(path, text)
    return text


def _sections(records: list[RunRecord], compared: Comparison) -> list[tuple[str, str]]:
    each = list(zip(compared.names, records))
    titles = compared.names if len(records) > 1 else [""]
    return [
        ("Summary", table(["", *compared.names], [[n, *v] for n, v in compared.facts], caption="Summary")),
        ("Diagnosis", "".join(map(diagnosis, titles, records))),
        (
            "Curves",
            _grid(_curves(records, lambda name: name not in SLIM)) or "<p>No epoch has ended yet.</p>",
        ),
        ("Learning rate and norms", _grid([*_curves(records, lambda name: name in SLIM), *_planned(each)])),
        ("Speed and memory", speed(each) + _grid(_curves(records, lambda name: False, books=True))),
        ("Confusion", _beside(_matrices(each))),
        ("Samples", _beside([figure for name, record in each for figure in _samples(name, record)])),
        ("Checkpoints", "".join(map(_checkpoints, titles, records))),
        ("Configuration", _configuration(compared)),
    ]


def _lead(records: list[RunRecord]) -> str:
    done = [record.status for record in records]
    return f"{len(records)} run{'s' * (len(records) > 1)}: " + ", ".join(
        f"{done.count(status)} {status}" for status in dict.fromkeys(done)
    )


def _grid(figures: Sequence[str]) -> str:
    return f'<div class="grid-of">{"".join(figures)}</div>' if figures else ""


def _beside(figures: Sequence[str]) -> str:
    return f'<div class="beside">{"".join(figures)}</div>' if figures else ""


# Curves.


def _curves(records: list[RunRecord], wanted: Callable[[str], bool], books: bool = False) -> list[str]:
    """A chart a metric, training and validation of all runs together."""
    names: dict[str, None] = {}
    for record in records:
        columns = (
            _books(record) if books else [n for n in curves_of(record) if wanted(n.removeprefix("val_"))]
        )
        names.update(dict.fromkeys(name.removeprefix("val_") for name in columns))
    x_label, scale = _axis(records)
    charts = []
    for name in sorted(names, key=reading_order):
        series = [
            line
            for i, (label, record) in enumerate(zip(names_of(records), records))
            for line in _lines(record, label, name, i, scale[i], len(records))
        ]
        values = [y for line in series for y in line.y if is_finite(y)]
        if values:
            log = is_logarithmic(name, min(values), max(values)) and _positive(series)  # type: ignore[type-var]
            note = "" if all(line.listed for line in series) else "Validation; training is dashed."
            charts.append(chart(name.replace("_", " "), series, x_label=x_label, log=log, note=note))
    return charts


def _positive(series: Sequence[Series]) -> bool:
    """Whether every end of an interval can stand on a logarithmic axis."""
    return all(y > 0 for line in series for y in line.low or () if y is not None and is_finite(y))


def _books(record: RunRecord) -> list[str]:
    """The columns of times and memory."""
    kept = ("second", "memory", "time", "bytes")
    return [
        name
        for name, values in record.columns.items()
        if bookkeeping(name) and any(word in name for word in kept) and any(map(is_number, values))
    ]


def _axis(records: list[RunRecord]) -> tuple[str, list[int]]:
    """What the runs are drawn over, and by what each one's steps are to be multiplied."""
    known = [record.config.get("identity", {}).get("batch_size") for record in records]
    sizes = [size if isinstance(size, int) else None for size in known]  # one that grows has no scale
    if len(set(sizes)) > 1 and all(isinstance(size, int) and size > 0 for size in sizes):
        return "examples", sizes  # type: ignore[return-value]
    return "step", [1] * len(records)


def _lines(record: RunRecord, label: str, name: str, color: int, scale: int, runs: int) -> list[Series]:
    """The lines of one metric of one run."""
    found = []
    both = all(_has(record, column) for column in (name, f"val_{name}"))
    for column, kind in ((name, "training"), (f"val_{name}", "validation")):
        if not _has(record, column):
            continue
        rows = [(i, row) for i, row in enumerate(record.rows) if is_number(row.get(column))]
        xs = [scale * (row.get("step") or i + 1) for i, row in rows]
        ys = [row[column] for _, row in rows]
        low, high = _ends([row for _, row in rows], column)
        inside = [i for i, (_, row) in enumerate(rows) if row.get(UNFINISHED)]
        last = column.startswith("val_") or not both
        shown = (kind if both else name) if runs == 1 else label if last else f"{label}, {kind}"
        found.append(
            Series(
                shown,
                xs,
                ys,
                low,
                high,
                color=color if runs > 1 else int(column.startswith("val_")),
                dashed=runs > 1 and both and kind == "training",
                dots=range(len(ys)) if len(ys) <= MOST_DOTS and runs == 1 else inside,
                best=record.best_index(column, ys) if last else None,
                listed=last or runs == 1,
            )
        )
    return found


def _has(record: RunRecord, column: str) -> bool:
    return any(is_number(value) for value in record.columns.get(column, ()))


def _ends(
    rows: list[dict[str, Any]], column: str
) -> tuple[list[float | None] | None, list[float | None] | None]:
    """The ends of a column's intervals: its own, or those of a population's members."""
    low, high = ([row.get(f"{column}{end}") for row in rows] for end in ("_low", "_high"))
    if not any(is_number(x) for x in low):
        each = [[x for x in row.get(f"{column}{EACH}") or () if is_number(x)] for row in rows]
        low, high = [min(x, default=None) for x in each], [max(x, default=None) for x in each]
    if not any(is_number(x) for x in low):
        return None, None
    return low, high


def _planned(each: list[tuple[str, RunRecord]]) -> list[str]:
    """The schedules in the runs' transforms, over the steps that the runs have taken."""
    series = []
    for color, (name, record) in enumerate(each):
        try:
            schedules = schedules_in(str(record.task.get("tx", "None")))
        except ConfigError:
            continue
        for n, schedule in enumerate(schedules):
            steps = np.unique(np.linspace(0, max(schedule.steps or 0, record.step, 1), 200).astype(int))
            values = [float(schedule(int(step))) for step in steps]
            if all(map(math.isfinite, values)):
                label = name if len(schedules) == 1 else f"{name}, {n + 1}"
                series.append(Series(label, steps.tolist(), values, color=color + n))
    return [chart("schedule, as planned", series, x_label="update")] if series else []


# The rest.


def _matrices(each: list[tuple[str, RunRecord]]) -> list[str]:
    """The last confusion matrix of each run, that of the validation where there is one."""
    made = []
    for name, record in each:
        rows = [row for row in record.rows if not row.get(UNFINISHED)]
        found = [key for key, x in (rows[-1] if rows else {}).items() if is_confusion(x)]
        if found:
            key = max(found, key=lambda k: k.startswith("val_"))
            where = "validation" if key.startswith("val_") else "training"
            made.append(
                matrix(
                    rows[-1][key],
                    name,
                    f"{where}, after epoch {rows[-1].get('epoch')}; rows are true classes, columns predicted ones",
                )
            )
    return made


def _samples(name: str, record: RunRecord) -> list[str]:
    """The last of each sample that the run has kept."""
    made = []
    for folder in sorted(path for path in (record.path / "samples").glob("*") if path.is_dir())[
        :MOST_SAMPLES
    ]:
        kept = sorted(path for path in folder.iterdir() if path.suffix in (".txt", ".png"))
        if kept and kept[-1].stat().st_size <= MOST_BYTES:
            title = f"{name}, {folder.name}" if folder.name != "sample" else name
            made.append(_sample(title, kept[-1]))
    return made


def _sample(title: str, path: Path) -> str:
    said = f"step {path.stem.lstrip('0') or '0'}"
    if path.suffix == ".txt":
        body = f"<pre>{html.escape(path.read_text(encoding='utf-8', errors='replace'))}</pre>"
    else:
        data = base64.b64encode(path.read_bytes()).decode()
        body = f'<img alt="{html.escape(title)}, {said}" src="data:image/png;base64,{data}">'
    return f'<figure class="sample"><figcaption><h3>{html.escape(title)}</h3><p>{said}</p></figcaption>{body}</figure>'


def _checkpoints(name: str, record: RunRecord) -> str:
    if not record.checkpoints:
        return f'<p class="quiet">{html.escape(name) or "The run"} has no checkpoint.</p>'
    head, rows = record.saved()
    return titled(name) + table(head, rows, caption=f"Checkpoints of {name}" if name else "Checkpoints")


def _configuration(compared: Comparison) -> str:
    head, parts = ["", *compared.names], []
    if len(compared.names) > 1:
        rows = [[path, *values] for path, values in compared.differences]
        parts.append("<h3>What differs</h3>")
        parts.append(
            table(head, rows, caption="What differs", marked=range(len(rows)))
            if rows
            else "<p>The configurations are the same.</p>"
        )
    rows = [[path, *values] for path, values in compared.configuration]
    if rows:
        whole = table(head, rows, caption="The whole configuration")
        parts.append(f"<details><summary>The whole configuration</summary>{whole}</details>")
    return "".join(parts)
