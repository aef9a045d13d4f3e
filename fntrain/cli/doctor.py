"""`fntrain doctor RUN`."""

import argparse

from .parser import Commands, add_run
from .task import fit_named


def add(commands: Commands) -> None:
    """Add the command."""
    made = commands.add(
        "doctor", _doctor, "Name what went wrong in a run, with number, threshold and advice."
    )
    add_run(made)
    made.add_argument(
        "--task",
        metavar="MODULE:ATTRIBUTE",
        help="the first arguments of the run's `fit`, `(task, state, data)`, or a function without arguments that "
        "makes them: the rules about parameters, labels and curvature need them",
    )


def _doctor(args: argparse.Namespace) -> int:
    from ..tools import diagnose

    if args.task is None:
        print(diagnose(args.path))
    else:
        task, _, data = fit_named(args.task)
        print(diagnose(args.path, task=task, data=data))
    return 0
