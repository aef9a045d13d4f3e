"""WandB: a run's configuration, rows and checkpoints for Weights & Biases, on disk or sent."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .._core import check
from .._core.errors import ConfigError
from .._core.made import Made
from ..run.context import Histogram, Sample
from ..run.tracking import note, noted, numbers_of


class WandB(Made):
    """Send a run to Weights & Biases, or keep it on disk for `wandb sync`: `fit(callbacks=[WandB()])`.

    The configuration is the W&B run's; numbers become its history over the run's steps, `running/…` the running means
    of an epoch, and histograms (of a `GradientStats(histograms=True)` before it) histograms. A run with a `run_dir`
    keeps the W&B run's id there, and the last step sent, and a resumed one goes on under that id, each step in it
    once; offline, that is another directory of the same id, as W&B has it. However `fit` ends, the W&B run is
    finished: with exit code 0, or 1 where the run was interrupted, diverged or failed.

    A Tracker (`fntrain.protocols.Tracker`): `config`, `log` and `close` may be called by hand as well.

    Args:
      directory: where W&B keeps its files; None is the run directory, or the current one.
      project: the project's name.
      name: the run's name; None is that of its directory, or W&B's choice.
      mode: `"offline"` keeps all on disk; `"online"` sends it, and wants a key of W&B in the environment.
      tags: of the run.
      checkpoints: whether the best and the newest checkpoint become artifacts at the run's end.

    Raises:
      ConfigError: if wandb is not installed, `mode` is another word, or `directory` is a file.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        project: str = "fntrain",
        name: str | None = None,
        mode: Literal["offline", "online"] = "offline",
        tags: Sequence[str] = (),
        checkpoints: bool = False,
    ):
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise ConfigError('`WandB` needs wandb: `pip install "fntrain[track]"`') from error
        check.one_of("mode", mode, ("offline", "online"))
        self.directory: Path | None = None if directory is None else check.path("directory", directory)
        if self.directory is not None and self.directory.is_file():
            raise ConfigError(f"`directory` must be a directory, and {self.directory} is a file")
        self.project: str = check.name("project", project)
        self.name: str | None = name
        self.mode: Literal["offline", "online"] = mode
        self.tags: tuple[str, ...] = tuple(tags)
        self.checkpoints: bool = check.flag("checkpoints", checkpoints)
        self._run: Any = None
        self._run_dir: Path | None = None
        self._known: dict[str, Any] = {}

    def begin(self, run_dir: Path | None, since: int) -> int | None:
        """Say which step the W&B run that the run directory knows of holds last."""
        del since
        self._run_dir, self._known = run_dir, noted(run_dir, "wandb")
        return self._known.get("step")

    def config(self, values: Mapping[str, Any], /) -> None:
        """Start the W&B run, or go on with it, and write what the run is."""
        import wandb

        where = self.directory or self._run_dir or Path.cwd()
        where.mkdir(parents=True, exist_ok=True)
        known = self._known.get("id")
        self._run = wandb.init(
            project=self.project,
            name=self.name or (self._run_dir.name if self._run_dir else None),
            dir=str(where),
            mode=self.mode,
            config=dict(values),
            tags=self.tags,
            id=known,
            # Offline there is nobody to ask for what was sent; the id alone brings the parts together.
            resume="allow" if known and self.mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._note(self._known.get("step"))

    def log(self, row: Mapping[str, Any], step: int, /) -> None:
        """Write the numbers, histograms and samples of a row."""
        import wandb

        drawn: dict[str, Any] = {}
        for name, x in row.items():
            if isinstance(x, Histogram):
                drawn[name] = wandb.Histogram(np_histogram=(x.counts, x.edges))
            elif isinstance(x, Sample):
                drawn[name] = (
                    wandb.Html(f"<pre>{html.escape(x.value)}</pre>")
                    if isinstance(x.value, str)
                    else wandb.Image(x.value)
                )
        self._run.log({**numbers_of(row), **drawn}, step=step, commit=True)
        self._note(step)

    def artifact(self, path: Path, name: str) -> None:
        """Keep a directory as an artifact of the run."""
        import wandb

        made = wandb.Artifact(f"{self._run.id}-{name.replace('/', '-')}", type="checkpoint")
        made.add_dir(str(path))
        self._run.log_artifact(made)

    def close(self, status: str = "failed") -> None:
        """Finish the W&B run."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=int(status not in ("done", "stopped")))

    def _note(self, step: int | None) -> None:
        note(self._run_dir, "wandb", id=self._run.id, step=step)
