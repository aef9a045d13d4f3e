"""`fntrain demo`."""

import argparse
import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from .. import demo, tree
from .._core.errors import ConfigError
from ..run.record import config_of, rows_of
from .parser import Commands, integer_within
from .plot import draw


def add(commands: Commands) -> None:
    """Add the command."""
    made = commands.add("demo", _demo, "Train a small network on handwritten digits.")
    for field, metavar, type_, what in (
        ("epochs", "N", integer_within(1), "epochs in all"),
        ("batch_size", "N", integer_within(1), "scans in a batch"),
        ("seed", "N", integer_within(0, 2**32 - 1), "of the initial weights and the order of the data"),
        ("accumulate", "K", integer_within(1), "batches to an update"),
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
        pictures = [made.name for made in draw(path)]
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
    config, rows = config_of(args.resume), rows_of(args.resume)
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
