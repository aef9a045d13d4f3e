"""MLflow: a run's configuration, rows and checkpoints in an MLflow store."""

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._core import check
from .._core.errors import ConfigError
from .._core.lenient import say
from .._core.made import Made
from ..run.context import Sample
from ..run.tracking import note, noted, numbers_of
from ..show.report.png import png

ENDS = {
    "done": "FINISHED",
    "stopped": "FINISHED",
    "interrupted": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
}
"""What MLflow calls how a run ended."""

_AT_ONCE = {"metrics": 1000, "params": 100}  # of what one request may hold
_LONGEST = 6000  # of a parameter's text


class MLflow(Made):
    """Send a run to MLflow: `fit(callbacks=[MLflow("sqlite:///mlflow.db")])`.

    The configuration becomes parameters, nested entries by dotted names, and as a whole the artifact `config.json`;
    numbers become metrics over the run's steps, `running/…` the running means of an epoch. A run with a `run_dir`
    keeps the number of its MLflow run there, and a resumed one goes on with it, each step in it once. However `fit`
    ends, the MLflow run does: `FINISHED`, `KILLED` after an interrupt, `FAILED` after an error or where the run
    diverged. Of a process that was killed outright, the resumed run ends it.

    A Tracker (`fntrain.protocols.Tracker`): `config`, `log` and `close` may be called by hand as well.

    Args:
      uri: of the store: `sqlite:///FILE` (artifacts come into `mlartifacts` beside it), a server, or a directory (which
        MLflow takes only with `MLFLOW_ALLOW_FILE_STORE=true` in the environment); None is what MLflow itself is set to.
      experiment: the experiment's name; made if need be.
      name: the run's name; None is that of its directory, or MLflow's choice.
      tags: more to write at the run, text by name.
      checkpoints: whether the best and the newest checkpoint become artifacts at the run's end.

    Raises:
      ConfigError: if MLflow is not installed, or has no such store.
    """

    def __init__(
        self,
        uri: str | None = None,
        *,
        experiment: str = "fntrain",
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        checkpoints: bool = False,
    ):
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ConfigError('`MLflow` needs mlflow-skinny: `pip install "fntrain[track]"`') from error
        self.experiment: str = check.name("experiment", experiment)
        self.name: str | None = name
        self.tags: dict[str, str] = dict(tags or {})
        self.checkpoints: bool = check.flag("checkpoints", checkpoints)
        try:
            self._client: Any = MlflowClient(uri)
        except MlflowException as error:
            raise ConfigError(f"`uri` must name a store that MLflow can open, got {uri!r}: {error}") from None
        self.run_id: str | None = None
        self._run_dir: Path | None = None

    def begin(self, run_dir: Path | None, since: int) -> int | None:
        """Go on with the MLflow run that the run directory knows of, and say which step it holds last."""
        del since
        self._run_dir, self.run_id = run_dir, None
        known = noted(run_dir, "mlflow").get("run_id")
        if known is None:
            return None
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(known)
            self._client.update_run(known, status="RUNNING")
        except MlflowException as error:
            say(f"the MLflow run {known} of {run_dir} cannot be gone on with, and another is begun: {error}")
            return None
        self.run_id = known
        histories = (self._client.get_metric_history(known, key) for key in run.data.metrics)
        return max((metric.step for history in histories for metric in history), default=None)

    def config(self, values: Mapping[str, Any], /) -> None:
        """Start an MLflow run, if none is gone on with, and write what the run is."""
        from mlflow.entities import Param

        known = {}
        if self.run_id is None:
            found = self._client.get_experiment_by_name(self.experiment)
            where = found.experiment_id if found else self._made()
            name = self.name or (self._run_dir.name if self._run_dir else None)
            self.run_id = self._client.create_run(where, run_name=name, tags=self.tags).info.run_id
            note(self._run_dir, "mlflow", run_id=self.run_id)
        else:  # a parameter that was written is not written again; the artifact has what changed
            known = self._client.get_run(self.run_id).data.params
        flat = {_key(path): str(value)[:_LONGEST] for path, value in _leaves(values)}
        self._write(params=[Param(key, value) for key, value in flat.items() if key not in known])
        self._client.log_dict(self.run_id, _jsonable(values), "config.json")

    def _made(self) -> str:
        """A new experiment; the artifacts of one in a file go beside it, as MLflow would put them where Python runs."""
        _, local, file = self._client.tracking_uri.partition("sqlite:///")
        beside = None
        if local and file:
            beside = str(Path(file).resolve().parent / "mlartifacts" / _key(self.experiment))
        return self._client.create_experiment(self.experiment, artifact_location=beside)

    def log(self, row: Mapping[str, Any], step: int, /) -> None:
        """Write the numbers of a row, and its samples as artifacts."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._write(metrics=[Metric(_key(name), x, now, step) for name, x in numbers_of(row).items()])
        for name, x in row.items():
            if isinstance(x, Sample):
                self._sample(x.value, _key(name), step)

    def _sample(self, value: Any, name: str, step: int) -> None:
        """A text or an image, as a file among the artifacts."""
        folder = f"samples/{name}"
        if isinstance(value, str):
            self._client.log_text(self.run_id, value, f"{folder}/{step:08}.txt")
            return
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, f"{step:08}.png")
            path.write_bytes(png(value))
            self._client.log_artifact(self.run_id, str(path), folder)

    def artifact(self, path: Path, name: str) -> None:
        """Copy a directory into the run's artifacts."""
        self._client.log_artifacts(self.run_id, str(path), name)

    def close(self, status: str = "failed") -> None:
        """End the MLflow run."""
        run_id, self.run_id = self.run_id, None
        if run_id is not None:
            self._client.set_terminated(run_id, ENDS.get(status, "FAILED"))

    def _write(self, **what: Sequence[Any]) -> None:
        for kind, entries in what.items():
            most = _AT_ONCE[kind]
            for first in range(0, len(entries), most):
                self._client.log_batch(self.run_id, **{kind: entries[first : first + most]})


def _key(name: str) -> str:
    """A name in the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /:]", "_", name)[:250]


def _leaves(x: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(x, Mapping):
        for key, value in x.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, x


def _jsonable(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(key): _jsonable(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_jsonable(value) for value in x]
    return x if x is None or isinstance(x, bool | int | float | str) else str(x)
