"""The command line: `fntrain demo | plot RUN | inspect RUN | search STUDY | replay CAPSULE`.

A mistake costs one line and exit status 2; whatever else is heavy is imported by the command that needs it.
"""

import argparse
import collections
import dataclasses
import importlib
import importlib.util
import itertools
import json
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__, demo, tree
from ._core.check import did_you_mean
from ._core.errors import CheckpointError, ConfigError, DataError
from .step.task import Task

if TYPE_CHECKING:
    from rich.console import Console

    from .checkpoint.checkpointer import Checkpointer


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


class _Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, and what was meant."""

    def error(self, message: str) -> NoReturn:
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fntrain",
        description="JAX-native functional training: a demo, and a look at what runs leave behind.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fntrain {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=what[0].lower() + what[1:-1], description=what, allow_abbrev=False
        )
        made.set_defaults(run=run)
        return made

    made = command("demo", _demo, "Train a small network on handwritten digits.")
    for field, metavar, type_, what in (
        ("epochs", "N", _integer(1), "epochs in all"),
        ("batch_size", "N", _integer(1), "scans in a batch"),
        ("seed", "N", _integer(0, 2**32 - 1), "of the initial weights and the order of the data"),
        ("accumulate", "K", _integer(1), "batches to an update"),
    ):
        usual = f"{what} (default: {getattr(demo.Options, field)})"
        made.add_argument(f"--{field.replace('_', '-')}", type=type_, metavar=metavar, help=usual)
    made.add_argument(
        "--model",
        choices=demo.MODELS,
        metavar="NAME",
        help=f"what the network is made of, {', '.join(demo.MODELS)} (default: {demo.Options.model})",
    )
    made.add_argument("--out", type=Path, metavar="DIR", help="the run directory (default: runs/digits-TIME)")
    made.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with this run, from its last checkpoint"
    )
    made.add_argument("--no-progress", action="store_true", help="print the result only")
    plot = command(
        "plot",
        _plot,
        "Draw a run's learning curves and confusion matrix, as PNG, or as text without Matplotlib.",
    )
    look = command("inspect", _inspect, "Show a run's settings, checkpoints, last metrics and parameters.")
    for made in (plot, look):
        made.add_argument("path", type=Path, metavar="RUN", help="a run directory, as `fit` leaves it")
    study = command("search", _search, "Show the trials of a search, the best first.")
    study.add_argument("path", type=Path, metavar="STUDY", help="the `run_dir` of `population.search`")
    study.add_argument(
        "--top", type=_integer(1), default=10, metavar="N", help="how many trials (default: 10)"
    )
    again = command("replay", _replay, "Take a run's bad step again, and say where it first goes bad.")
    again.add_argument("path", type=Path, metavar="CAPSULE", help="RUN/capsules/step_N, as `fit` leaves it")
    again.add_argument(
        "--task",
        required=True,
        metavar="MODULE:ATTRIBUTE",
        help="the run's Task, or a function without arguments that makes it; modules are found from here too",
    )
    return parser


def _integer(lowest: int, highest: int | None = None) -> Callable[[str], int]:
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


# fntrain demo


def _demo(args: argparse.Namespace) -> int:
    given = {
        field.name: value
        for field in dataclasses.fields(demo.Options)
        if (value := getattr(args, field.name)) is not None
    }
    if args.resume is None:
        options, epochs, path = demo.Options(**given), None, _new_run(args.out)
    else:
        options, epochs = _saved_options(args, given)
        path = args.resume
    prepared = demo.prepare(options)
    known, new = len(prepared.data["label"]), len(prepared.validation["label"])
    size = f"{tree.size(prepared.state.params):,} parameters"
    print(f"{known} handwritten digits to learn from, {new} to validate on, {size}", flush=True)
    if epochs is not None and epochs > options.epochs:
        print(
            f"the learning rate was planned for {options.epochs} epochs: those beyond are trained at its last value",
            flush=True,
        )
    resume, progress = args.resume is not None, not args.no_progress
    result = demo.train(options, prepared, path, epochs=epochs, resume=resume, progress=progress)
    run = shlex.quote(str(path))
    if result.interrupted:
        print(f"interrupted at step {int(result.state.step)}, and saved; go on with")
        print(f"  fntrain demo --resume {run}")
        return 130
    last = result.history.rows()[-1]
    print(f"\nvalidation accuracy {100 * last['val_accuracy']:.2f} % after epoch {last['epoch']}")
    try:
        pictures = [made.name for made in _draw(path)]
    except ConfigError as error:  # Matplotlib is missing, and the run is whole all the same
        pictures = []
        print(error, file=sys.stderr)
    print(f"\n{path}")
    for names in filter(None, (pictures, ["metrics.csv", "metrics.jsonl", "config.json", "checkpoints"])):
        print(*[f"  {name}" for name in names], sep="")
    more = f"--resume {run} --epochs {last['epoch'] + 10}"
    print(f"\nnext\n  fntrain inspect {run}\n  fntrain demo {more}\n  fntrain demo --accumulate 4")
    return 0


def _new_run(out: Path | None) -> Path:
    if out is None:
        first = path = Path("runs", time.strftime("digits-%Y%m%d-%H%M%S"))
        n = 1
        while path.exists():
            n += 1
            path = first.with_name(f"{first.name}-{n}")
        return path
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a directory")
    if (out / "config.json").exists() or (out / "metrics.jsonl").exists():
        raise ConfigError(f"--out {out} holds a run: go on with it by --resume {out}, or choose another")
    return out


def _saved_options(args: argparse.Namespace, given: dict[str, Any]) -> tuple[demo.Options, int]:
    """The options the run was started with, and its epochs in all."""
    if args.out is not None and args.out.resolve() != args.resume.resolve():
        raise ConfigError(f"--out {args.out}: a resumed run stays in its directory, {args.resume}")
    config, rows = _config(args.resume), _rows(args.resume)
    options = demo.saved_options(config)
    if options is None:
        raise ConfigError(f"--resume {args.resume}: the run there is not one of the demo")
    epochs = given.pop("epochs", config["epochs"])
    if rows and epochs < rows[-1]["epoch"]:
        raise ConfigError(
            f"--epochs {epochs}: the run has {rows[-1]['epoch']} behind it; --epochs counts them all"
        )
    for name, value in given.items():
        saved = getattr(options, name)
        if value != saved:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} {value}: the run was started with {saved}; leave {option} out")
    return options, epochs


# fntrain plot


def _plot(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("matplotlib") is None:
        print(_as_text(args.path))
        print('\nas text, for want of Matplotlib: `pip install "fntrain[plot]"`', file=sys.stderr)
        return 0
    for path in _draw(args.path):
        print(path)
    return 0


def _as_text(run: Path) -> str:
    """A run's learning curves in characters that the output has."""
    from .show import plots

    plain = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "") not in (
        "utf8",
        "utf16",
    )
    return plots.text(_columns(run), ascii=plain)


def _columns(run: Path) -> dict[str, list[Any]]:
    """What a run measured, by column."""
    rows = _rows(run)
    if not rows:
        raise DataError(f"{run} has nothing to draw yet: no epoch of it has ended")
    return {name: [row.get(name) for row in rows] for row in rows for name in row}


def _draw(run: Path) -> list[Path]:
    """Draw a run's pictures into its directory; return their paths."""
    from .show import plots

    columns, rows = _columns(run), _rows(run)
    made = [run / "learning_curves.png"]
    plots.learning_curves(columns, title=run.resolve().name, path=made[0])
    matrices = [name for name in rows[-1] if "confusion" in name and rows[-1][name] is not None]
    if matrices:
        name = max(matrices, key=lambda n: n.startswith("val_"))
        made.append(run / "confusion_matrix.png")
        plots.confusion_matrix(rows[-1][name], path=made[1])
    for schedule in _schedules(run):
        number = sum(path.stem.startswith("schedule") for path in made) + 1
        made.append(run / f"schedule{f'_{number}' if number > 1 else ''}.png")
        plots.schedule(schedule, max(schedule.steps or 0, int(rows[-1].get("step") or 1)), path=made[-1])
    return made


def _schedules(run: Path) -> list[Any]:
    """The schedules in the run's transforms, as its `config.json` names them; none if it has no such file."""
    if not (run / "config.json").exists():
        return []
    from .show.schedule_text import schedules_in

    return schedules_in(str(_task_in_words(_config(run)).get("tx", "None")))


# fntrain inspect


def _inspect(args: argparse.Namespace) -> int:
    from rich.console import Console

    from .checkpoint.checkpointer import Checkpointer
    from .checkpoint.params import restore_params

    config, rows = _config(args.path), _rows(args.path)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=10_000, color_system=None)  # no line is cut for a reader that is a program
    checkpoints = Checkpointer(args.path / "checkpoints")
    with console.capture() as shown:
        _print_table(console, str(args.path), ("", ""), _summary(config, rows))
        if rows:
            title = f"metrics of epoch {rows[-1].get('epoch', len(rows))}"
            _print_table(console, title, ("", "train", "validation"), _metrics(rows[-1]), "lrr")
        if checkpoints.steps():
            header = ("step", "epoch", "val_loss", "")
            _print_table(console, "checkpoints", header, _checkpoints(checkpoints, rows), "rrrl")
            params = restore_params(checkpoints.directory)
            _print_table(console, "parameters", ("path", "shape", "dtype", "count"), _leaves(params), "lllr")
        else:
            console.print("\nno checkpoint yet")
    print("\n".join(line.rstrip() for line in shown.get().strip().splitlines()))
    return 0


def _summary(config: dict[str, Any], rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    identity = config.get("identity", {})
    task, data = _task_in_words(config), identity.get("data", {})
    last = rows[-1] if rows else {}
    leaves = [f"{path} {what}".strip() for path, what in data.get("leaves", {}).items()]
    said = {
        "status": config.get("status"),
        "epochs": _of(last.get("epoch", 0) - bool(last.get("unfinished")), config.get("epochs")),
        "steps": _of(last.get("step", 0), config.get("steps")),
        "loss": task.get("loss_fn"),
        "transform": task.get("tx"),
        "metrics": ", ".join(task.get("metrics", ())),
        "data": ", ".join(leaves) or data.get("kind"),
        "batch size": identity.get("batch_size"),
        "seed": identity.get("seed"),
        "jax": config.get("jax"),
        "devices": ", ".join(config.get("devices", ())),
    }
    return [(name, str(value)) for name, value in said.items() if value not in (None, "")]


def _of(n: int, total: int | None) -> str:
    return f"{n} of {total}" if total else f"{n}"


def _metrics(row: dict[str, Any]) -> list[tuple[str, ...]]:
    from .show.text import number_text

    row = {n: x for n, x in row.items() if n not in ("epoch", "step") and not isinstance(x, list | dict)}
    names = dict.fromkeys(name.removeprefix("val_") for name in row)
    return [(n, *(number_text(row[m]) if m in row else "" for m in (n, f"val_{n}"))) for n in names]


def _checkpoints(checkpoints: "Checkpointer", rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    from .show.text import number_text

    steps, best = checkpoints.steps(), checkpoints.best_step
    at_step = {row.get("step"): row for row in rows}
    out = []
    for step in steps:
        row = at_step.get(step, {})  # a step within an epoch has none
        loss = number_text(row["val_loss"]) if "val_loss" in row else ""
        said = ["best"] * (step == best) + ["newest"] * (step == steps[-1])
        out.append((str(step), str(row.get("epoch", "")), loss, ", ".join(said)))
    return out


def _leaves(params: Any) -> list[tuple[str, ...]]:
    rows = [(path, str(list(x.shape)), str(x.dtype), f"{x.size:,}") for path, x in tree.items(params)]
    return [*rows, ("total", "", "", f"{tree.size(params):,}")]


def _print_table(
    console: "Console", title: str, header: tuple[str, ...], rows: list[tuple[str, ...]], sides: str = ""
) -> None:
    """Print a table under its title; `sides` has an `r` for each column of numbers."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim", show_header=any(header))
    for name, side in itertools.zip_longest(header, sides):
        table.add_column(name, justify="right" if side == "r" else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print("", Text(title, style="bold"), Padding(table, (0, 0, 0, 2)), sep="\n")


# fntrain search


def _search(args: argparse.Namespace) -> int:
    from rich.console import Console

    from .population.study import load_study, table_of
    from .show.text import number_text

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
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=10_000, color_system=None)
    with console.capture() as text:
        _print_table(
            console, f"{args.path}: {len(rows)} trials, {counts}", tuple(columns), shown, "r" * len(columns)
        )
    print(text.get().strip("\n"))
    best = next((row for row in ranked if row["status"] == "done"), None)
    if best is not None:
        print(f"\nnext\n  fntrain inspect {args.path / 'trials' / format(best['trial'], '04d')}")
    return 0


# fntrain replay


def _replay(args: argparse.Namespace) -> int:
    from .tools import replay

    print(replay(_task(args.task), args.path))
    return 0


def _task(where: str) -> Any:
    """The Task that `module:attribute` names."""
    module_name, _, attributes = where.partition(":")
    if not module_name or not attributes:
        raise ConfigError(f"--task {where}: give it as MODULE:ATTRIBUTE, such as train:task")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for name in attributes.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--task {where}: {error}") from None
    finally:
        sys.path.remove(os.getcwd())
    return found() if callable(found) and not isinstance(found, Task) else found


# A run directory.


def _config(run: Path) -> dict[str, Any]:
    """What `config.json` says, if it is there."""
    path = _in_run(run, "config.json")
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None


def _task_in_words(config: dict[str, Any]) -> dict[str, Any]:
    """The run's task as text; the first version kept it in the identity."""
    return config.get("task") or config.get("identity", {}).get("task", {})


def _rows(run: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; none if the run has just begun."""
    from .run.writers import read_rows

    path = _in_run(run, "metrics.jsonl")
    return read_rows(path) if path.exists() else []


def _in_run(run: Path, name: str) -> Path:
    if not run.is_dir():
        raise ConfigError(f"there is no directory {run}")
    if not ((run / "config.json").exists() or (run / "metrics.jsonl").exists()):
        raise ConfigError(f"{run} holds no run: neither config.json nor metrics.jsonl is in it")
    return run / name
