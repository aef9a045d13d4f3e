"""`fntrain replay RUN --step N --task MODULE:ATTRIBUTE`, and `fntrain replay CAPSULE --task …`."""

import argparse
from pathlib import Path

from .._core.errors import ConfigError
from .parser import Commands, integer_within
from .task import fit_named, task_named


def add(commands: Commands) -> None:
    """Add the command."""
    again = commands.add(
        "replay", _replay, "Take a step of a run again: any by its number, or a bad one from its capsule."
    )
    again.add_argument(
        "path", type=Path, metavar="RUN", help="a run directory, or its capsules/step_N, as `fit` leaves them"
    )
    again.add_argument(
        "--step",
        type=integer_within(1),
        metavar="N",
        help="which step of the run, as its logs count them, from 1",
    )
    again.add_argument(
        "--task",
        required=True,
        metavar="MODULE:ATTRIBUTE",
        help="the run's Task, or with --step the first arguments of its `fit`, `(task, state, data)`; or a function "
        "without arguments that makes it; modules are found from here too",
    )


def _replay(args: argparse.Namespace) -> int:
    from ..tools import replay

    if args.step is None:
        if (args.path / "config.json").exists():
            raise ConfigError(
                f"{args.path} is a run: say which step of it, --step N, or give one of its capsules"
            )
        print(replay(task_named(args.task), args.path))
    else:
        task, state, data = fit_named(args.task)
        print(replay(args.path, step=args.step, task=task, state=state, data=data))
    return 0
