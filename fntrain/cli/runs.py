"""`fntrain runs DIR`."""

import argparse
import time
from pathlib import Path

from ..run.record import RunRecord, find_runs
from .parser import Commands
from .table import Page


def add(commands: Commands) -> None:
    """Add the command."""
    made = commands.add("runs", _runs, "List the runs in and below a directory, the latest first.")
    made.add_argument(
        "path", type=Path, nargs="?", default=Path("runs"), metavar="DIR", help="(default: runs)"
    )


def _runs(args: argparse.Namespace) -> int:
    found = find_runs(args.path)
    if not found:
        print(f"{args.path} holds no run")
        return 0
    page, header = Page(), ("run", "status", "epochs", "steps", "best", "at step", "written")
    title = f"{args.path}: {len(found)} run{'s' * (len(found) > 1)}"
    page.table(title, header, [_row(args.path, run) for run in found], "llrrlrl")
    page.print()
    return 0


def _row(directory: Path, run: RunRecord | tuple[Path, str]) -> tuple[str, ...]:
    if not isinstance(run, RunRecord):
        return (str(run[0].relative_to(directory)), "damaged", "", "", run[1], "", "")
    from ..show.text import number_text

    column = run.told
    best = run.best(column)
    said = ("", "") if best is None else (f"{column} {number_text(best[column])}", str(best.get("step", "")))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.when))
    name = str(run.path.relative_to(directory)) if run.path != directory else run.name
    return (name, run.status, str(run.epochs), str(run.step), *said, when)
