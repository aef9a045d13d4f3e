"""`fntrain compare RUN RUN…`."""

import argparse
from pathlib import Path

from .parser import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    made = commands.add("compare", _compare, "Set runs side by side: best and last values, and what differs.")
    made.add_argument(
        "paths", type=Path, nargs="+", metavar="RUN", help="run directories, as `fit` leaves them"
    )


def _compare(args: argparse.Namespace) -> int:
    from ..tools.compare import compare

    print(compare(args.paths))
    return 0
