"""`fntrain inspect RUN`."""

import argparse
from typing import Any

from .. import tree
from ..data.cut import in_words
from ..run.record import RunRecord, read_run, task_in_words
from .parser import Commands, add_run
from .parts import show_parts
from .table import Page


def add(commands: Commands) -> None:
    """Add the command."""
    add_run(
        commands.add("inspect", _inspect, "Show a run's settings, checkpoints, last metrics and parameters.")
    )


def _inspect(args: argparse.Namespace) -> int:
    from ..checkpoint.params import restore_params

    run = read_run(args.path)
    config, rows = run.config, run.rows
    page = Page()
    page.table(str(args.path), ("", ""), _summary(run))
    show_parts(page, args.path, config)
    if rows:
        title = f"metrics of epoch {rows[-1].get('epoch', len(rows))}"
        page.table(title, ("", "train", "validation"), _metrics(rows[-1]), "lrr")
    if run.checkpoints:
        page.table("checkpoints", *run.saved(), "rrrl")
        params = restore_params(run.checkpointer.directory)
        page.table("parameters", ("path", "shape", "dtype", "count"), _leaves(params), "lllr")
    else:
        page.line("no checkpoint yet")
    page.print()
    return 0


def _summary(run: RunRecord) -> list[tuple[str, ...]]:
    config, last = run.config, run.last
    identity = config.get("identity", {})
    task, data = task_in_words(config), identity.get("data", {})
    leaves = [f"{path} {what}".strip() for path, what in data.get("leaves", {}).items()]
    said = {
        "status": run.status,
        "epochs": _of(run.epochs, config.get("epochs")),
        "steps": _of(last.get("step", 0), config.get("steps")),
        "loss": task.get("loss_fn"),
        "transform": task.get("tx"),
        "metrics": ", ".join(task.get("metrics", ())),
        "data": ", ".join(leaves) or data.get("kind"),
        "batch size": in_words(identity.get("batch_size")),
        "seed": identity.get("seed"),
        "jax": config.get("jax"),
        "devices": ", ".join(config.get("devices", ())),
    }
    return [(name, str(value)) for name, value in said.items() if value not in (None, "")]


def _of(n: int, total: int | None) -> str:
    return f"{n} of {total}" if total else f"{n}"


def _metrics(row: dict[str, Any]) -> list[tuple[str, ...]]:
    from ..show.text import is_end, value_text

    row = {n: x for n, x in row.items() if n not in ("epoch", "step") and not isinstance(x, list | dict)}
    names = dict.fromkeys(name.removeprefix("val_") for name in row if not is_end(name, row))
    return [(n, *(value_text(m, row) if m in row else "" for m in (n, f"val_{n}"))) for n in names]


def _leaves(params: Any) -> list[tuple[str, ...]]:
    rows = [(path, str(list(x.shape)), str(x.dtype), f"{x.size:,}") for path, x in tree.items(params)]
    return [*rows, ("total", "", "", f"{tree.size(params):,}")]
