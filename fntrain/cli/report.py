"""`fntrain report RUN… --out report.html`."""

import argparse
from pathlib import Path

from .parser import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    made = commands.add("report", _report, "Show runs on one page of HTML, which needs nothing else.")
    made.add_argument(
        "paths", type=Path, nargs="+", metavar="RUN", help="run directories, as `fit` leaves them"
    )
    made.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page (default: report.html)",
    )
    made.add_argument("--title", metavar="TEXT", help="its heading (default: the names of the runs)")


def _report(args: argparse.Namespace) -> int:
    from ..tools.report import report

    report(args.paths, args.out, title=args.title)
    print(args.out)
    return 0
