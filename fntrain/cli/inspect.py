"""`fntrain inspect RUN`."""

import argparse
from typing import TYPE_CHECKING, Any

from .. import tree
from ..data.cut import in_words
from ..run.record import config_of, rows_of, task_in_words
from .parser import Commands, add_run
from .parts import show_parts
from .table import Page

if TYPE_CHECKING:
    from ..checkpoint.checkpointer import Checkpointer


def add(commands: Commands) -> None:
    """Add the command."""
    add_run(
        commands.add("inspect", _inspect, "Show a run's settings, checkpoints, last metrics and parameters.")
    )


def _inspect(args: argparse.Namespace) -> int:
    from ..checkpoint.checkpointer import Checkpointer
    from ..checkpoint.params import restore_params

    config, rows = config_of(args.path), rows_of(args.path)
    checkpoints, page = Checkpointer(args.path / "checkpoints"), Page()
    page.table(str(args.path), ("", ""), _summary(config, rows))
    show_parts(page, args.path, config)
    if rows:
        title = f"metrics of epoch {rows[-1].get('epoch', len(rows))}"
        page.table(title, ("", "train", "validation"), _metrics(rows[-1]), "lrr")
    if checkpoints.steps():
        header = ("step", "epoch", "val_loss", "")
        page.table("checkpoints", header, _checkpoints(checkpoints, rows), "rrrl")
        params = restore_params(checkpoints.directory)
        page.table("parameters", ("path", "shape", "dtype", "count"), _leaves(params), "lllr")
    else:
        page.line("no checkpoint yet")
    page.print()
    return 0


def _summary(config: dict[str, Any], rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    identity = config.get("identity", {})
    task, data = task_in_words(config), identity.get("data", {})
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


def _checkpoints(checkpoints: "Checkpointer", rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    from ..show.text import number_text

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
