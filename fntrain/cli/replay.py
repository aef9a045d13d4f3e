"""`fntrain replay CAPSULE --task MODULE:ATTRIBUTE`."""

import argparse
from pathlib import Path

from .parser import Commands
from .task import task_named


def add(commands: Commands) -> None:
    """Add the command."""
    again = commands.add("replay", _replay, "Take a run's bad step again, and say where it first goes bad.")
    again.add_argument("path", type=Path, metavar="CAPSULE", help="RUN/capsules/step_N, as `fit` leaves it")
    again.add_argument(
        "--task",
        required=True,
        metavar="MODULE:ATTRIBUTE",
        help="the run's Task, or a function without arguments that makes it; modules are found from here too",
    )


def _replay(args: argparse.Namespace) -> int:
    from ..tools import replay

    print(replay(task_named(args.task), args.path))
    return 0
