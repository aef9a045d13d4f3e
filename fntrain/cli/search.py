"""`fntrain search STUDY`."""

import argparse
import collections
import math
from pathlib import Path

from .parser import Commands, integer_within
from .table import Page


def add(commands: Commands) -> None:
    """Add the command."""
    study = commands.add("search", _search, "Show the trials of a search, the best first.")
    study.add_argument("path", type=Path, metavar="STUDY", help="the `run_dir` of `population.search`")
    study.add_argument(
        "--top", type=integer_within(1), default=10, metavar="N", help="how many trials (default: 10)"
    )


def _search(args: argparse.Namespace) -> int:
    from ..population.study import load_study, table_of
    from ..show.text import number_text

    study = load_study(args.path)
    rows = table_of(study)
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    # Those that have ended with a value first, and those without one last.
    ranked = sorted(
        rows, key=lambda r: (r["status"] != "done", sign * r["value"] if r["value"] is not None else math.inf)
    )
    counts = ", ".join(
        f"{n} {status}" for status, n in collections.Counter(r["status"] for r in rows).most_common()
    )
    columns = list(dict.fromkeys(name for row in ranked for name in row))
    shown = [
        tuple(str(x) if isinstance(x, str) else number_text(x) for x in map(row.get, columns))
        for row in ranked[: args.top]
    ]
    page = Page()
    page.table(f"{args.path}: {len(rows)} trials, {counts}", tuple(columns), shown, "r" * len(columns))
    page.print()
    best = next((row for row in ranked if row["status"] == "done"), None)
    if best is not None:
        print(f"\nnext\n  fntrain inspect {args.path / 'trials' / format(best['trial'], '04d')}")
    return 0
