"""The command line: `fntrain demo`, `new DIR`, `inspect RUN`, `report RUN…` and so on, a file each.

A mistake costs one line and exit status 2; whatever else is heavy is imported by the command that needs it. Each
command is a file here, whose `add` says what it is called and takes.
"""

import os
import sys
import warnings
from collections.abc import Sequence

from .. import __version__
from .._core.errors import CheckpointError, ConfigError, DataError
from . import compare, demo, doctor, inspect, new, plot, replay, report, runs, search
from .parser import Commands, Parser

# What is asked first comes first in `fntrain --help`.
COMMANDS = (demo, new, inspect, plot, runs, compare, report, doctor, search, replay)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      arguments: the command line without the program's name; None takes the process's own.

    Returns:
      The exit status: 0; 2 after a mistake, said in one line; 130 after an interrupt.

    Raises:
      SystemExit: after `--help`, `--version`, and what the parser refuses; with 143 after SIGTERM.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    name = f"fntrain {args.command}"
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"{name}: {message}", file=sys.stderr)
            status = args.run(args)
            sys.stdout.flush()  # so that a reader who has gone away is met here
            return status
    except (ConfigError, DataError, CheckpointError) as error:
        return _fail(name, str(error))
    except BrokenPipeError:  # `fntrain inspect RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _fail(name, f"{error.filename or 'the system'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _fail(name: str, message: str) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _parser() -> Parser:
    parser = Parser(
        prog="fntrain",
        description="JAX-native functional training: a demo, and a look at what runs leave behind.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fntrain {__version__}")
    commands = Commands(parser)
    for module in COMMANDS:
        module.add(commands)
    return parser
