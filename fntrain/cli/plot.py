"""`fntrain plot RUN`."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from .._core.errors import DataError
from ..run.record import config_of, rows_of, task_in_words
from .parser import Commands, add_run


def add(commands: Commands) -> None:
    """Add the command."""
    add_run(
        commands.add(
            "plot",
            _plot,
            "Draw a run's learning curves and confusion matrix, as PNG, or as text without Matplotlib.",
        )
    )


def _plot(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("matplotlib") is None:
        print(_as_text(args.path))
        print('\nas text, for want of Matplotlib: `pip install "fntrain[plot]"`', file=sys.stderr)
        return 0
    for path in draw(args.path):
        print(path)
    return 0


def _as_text(run: Path) -> str:
    """A run's learning curves in characters that the output has."""
    from ..show import plots

    plain = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "") not in (
        "utf8",
        "utf16",
    )
    return plots.text(_columns(run), ascii=plain)


def _columns(run: Path) -> dict[str, list[Any]]:
    """What a run measured, by column."""
    rows = rows_of(run)
    if not rows:
        raise DataError(f"{run} has nothing to draw yet: no epoch of it has ended")
    return {name: [row.get(name) for row in rows] for row in rows for name in row}


def draw(run: Path) -> list[Path]:
    """Draw a run's pictures into its directory; return their paths."""
    from ..show import plots
    from ..show.text import is_confusion

    columns, rows = _columns(run), rows_of(run)
    made = [run / "learning_curves.png"]
    plots.learning_curves(columns, title=run.resolve().name, path=made[0])
    matrices = [name for name, value in rows[-1].items() if is_confusion(value)]
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
    from ..show.schedule_text import schedules_in

    return schedules_in(str(task_in_words(config_of(run)).get("tx", "None")))
