"""What the page of `report` says of a run as a process: how fast it was, where its time went, what is wrong with it."""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._core.errors import CheckpointError, ConfigError, DataError
from ..data.cut import Cut, Stage
from ..run.record import RunRecord
from ..show.report.tables import bars, table
from ..show.text import is_number, number_text, spent_text
from .causes import diagnose


def titled(name: str) -> str:
    """A run's name above what is said of it; nothing on a page of one run, whose name is the page's."""
    return f"<h3>{html.escape(name)}</h3>" if name else ""


def speed(each: Sequence[tuple[str, RunRecord]]) -> str:
    """Throughput, where the time went, and the parts that the runs had: each time that `fit` was at work for one."""
    rows = [[name, *row] for name, record in each if (row := _throughput(record))]
    head = ["run", "a step", "examples a second", "measured by"]
    made = table(head, rows, caption="Throughput") if rows else ""
    for name, record in each:
        known = [part for part in record.config.get("parts") or () if isinstance(part, dict)]
        made += _time(name, known) + _parts(name, known, record.status)
    if not made:
        said = "No times were kept: <code>callbacks.ResourceMonitor()</code> adds them to each epoch."
        return f'<p class="quiet">{said}</p>'
    return made


def _throughput(record: RunRecord) -> list[str] | None:
    """Of a ResourceMonitor's columns, validation included; else of the parts of the run, compiling aside."""
    measured, source = _of_epochs(record), "the median of its epochs"
    if not measured:
        measured, source = _of_parts(record), "steps and the wait for their data, without compiling"
    if not measured:
        return None
    seconds, rate = np.median(measured, axis=0)
    return [f"{number_text(1e3 * seconds)} ms", f"{rate:,.0f}" if rate > 0 else "", source]


Measured = list[tuple[float, float]]
"""Seconds a step, and examples a second: NaN where nobody knows how many there were."""


def _of_epochs(record: RunRecord) -> Measured:
    found: Measured = []
    before = _begun(record)
    for row in record.rows:
        step: Any = row.get("step")
        each: Any = row.get("step_time_ms")
        if is_number(step) and is_number(each) and step > before and each > 0:
            examples = _examples(record, before, step) / (step - before)
            found.append((each / 1e3, 1e3 * examples / each))
            before = step
    return found


def _of_parts(record: RunRecord) -> Measured:
    parts = [p for p in record.config.get("parts") or () if isinstance(p, dict) and p.get("seconds")]
    spans = [(p.get("from", 0), p.get("to", 0)) for p in parts]
    steps = sum(last - first for first, last in spans)
    total = sum(x for p in parts for phase, x in p["seconds"].items() if phase in ("step", "data"))
    if steps <= 0 or total <= 0:
        return []
    return [(total / steps, sum(_examples(record, *span) for span in spans) / total)]


def _examples(record: RunRecord, first: int, last: int) -> float:
    """How many rows the batches of the steps behind one, up to another, had, padding included.

    NaN where the directory does not say: of an iterable, or of more than one size in a run of an earlier version.
    """
    identity, stages = record.config.get("identity") or {}, record.config.get("cut") or []
    size: Any = identity.get("batch_size")
    rows = record.config.get("examples")
    if rows is None or len(stages) < 2:
        return size * (last - first) if is_number(size) else math.nan
    cut = Cut(rows, map(Stage._make, stages), identity.get("data", {}).get("drop_last", False))
    begun = _begun(record)
    sizes = cut.sizes(last - begun) - cut.sizes(first - begun)
    return sum(size * number for size, number in sizes.items())


def _begun(record: RunRecord) -> int:
    """The step that the run began at: the state that it was given may have had steps behind it."""
    parts = record.config.get("parts") or [{}]
    return parts[0].get("from", 0)


def _time(name: str, parts: Sequence[dict[str, Any]]) -> str:
    """The share of each phase, over all parts; what was lost to kills is a phase of its own."""
    kept: dict[str, float] = {}
    lost = 0.0
    for part in parts:
        gone = part.get("lost") or {}
        lost += sum(gone.values())
        for phase, x in (part.get("seconds") or {}).items():
            kept[phase] = kept.get(phase, 0.0) + x - gone.get(phase, 0.0)
    phases = {**kept, "lost to kills": lost}
    total = sum(phases.values())
    if total <= 0:
        return ""
    longest = sorted(phases.items(), key=lambda phase: -phase[1])
    return bars(
        [(phase, x / total, spent_text(x)) for phase, x in longest if x > 0],
        f"where the time of {name} went",
    )


def _parts(name: str, parts: Sequence[dict[str, Any]], status: str) -> str:
    """From which step to which each went, and how it ended."""
    if not parts:
        return ""
    lost = any(part.get("lost_steps") for part in parts)
    rows = [
        [
            str(i),
            str(part.get("started", "")),
            str(part.get("from", "")),
            str(part.get("to", "")),
            str(part.get("ended", status)),
            *[str(part.get("lost_steps", ""))] * lost,
        ]
        for i, part in enumerate(parts, 1)
    ]
    head = ["part", "started", "from step", "to step", "ended", *["steps lost"] * lost]
    title = f"the parts of {name}"
    return f"<h3>{html.escape(title)}</h3>{table(head, rows, caption=title)}"


def diagnosis(name: str, record: RunRecord) -> str:
    """What `tools.diagnose` finds in what the run wrote down, a paragraph each; that it finds nothing is said too."""
    try:
        found = diagnose(record.path)
    except (ConfigError, DataError, CheckpointError):  # what cannot be diagnosed is shown all the same
        return ""
    body = "".join(f'<p class="finding">{html.escape(str(finding))}</p>' for finding in found)
    drawn = "".join(finding.picture.html for finding in found if finding.picture is not None)
    drawn = f'<div class="grid-of">{drawn}</div>' if drawn else ""
    rows = [[rule, lack] for rule, lack in found.unasked.items()]
    of = f", of {name}" if name else ""
    lacking = table(["rule", "what it lacks"], rows, caption=f"Rules that were not looked at{of}")
    summary = f"{len(rows)} rules were not looked at<span class='hidden'>{html.escape(of)}</span>"
    lacking = f"<details><summary>{summary}</summary>{lacking}</details>" if rows else ""
    return f"{titled(name)}{body or '<p>Nothing wrong was found.</p>'}{drawn}{lacking}"
