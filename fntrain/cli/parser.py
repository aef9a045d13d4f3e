"""What every command's parser is: mistakes in one line, commands by name, numbers within bounds."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .._core.check import did_you_mean


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, and what was meant."""

    def error(self, message: str) -> NoReturn:
        """Say the mistake, and end with status 2."""
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is not known here, in the parser whose options are the ones to choose from."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            self.error(
                f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(name, self._option_string_actions)}"
            )
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            listed = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(
                action, f"must be one of {listed}, got {value!r}{did_you_mean(value, action.choices)}"
            )


class Commands:
    """The commands of a parser, one after the other."""

    def __init__(self, parser: Parser):
        self._parsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def add(self, name: str, run: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
        """Add a command, which `run` carries out, and return its parser, for its arguments."""
        made = self._parsers.add_parser(
            name, help=what[0].lower() + what[1:-1], description=what, allow_abbrev=False
        )
        made.set_defaults(run=run)
        return made


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument that most commands take: one run directory, as `path`."""
    parser.add_argument("path", type=Path, metavar="RUN", help="a run directory, as `fit` leaves it")


def integer_within(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """Make an argparse type: a whole number within bounds."""
    wanted = f"an integer >= {lowest}" + (f" and <= {highest}" if highest is not None else "")

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if value < lowest or (highest is not None and value > highest):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
        return value

    return integer
