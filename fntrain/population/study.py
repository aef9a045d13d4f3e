"""A study of Optuna's: what is asked of it, by one process or several, and what stands in it."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._core import check
from .._core.errors import ConfigError
from .control import Rungs

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STUDY = "fntrain"
DATABASE = "study.db"
CHUNK = "population"
"""A trial's attribute: which ones were asked for together."""


def optuna_() -> Any:
    """Optuna, or how to have it."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            'a search is a study of Optuna, which is not installed: `pip install "fntrain[search]"`'
        ) from None
    return optuna


def distributions_of(space: Mapping[str, Any]) -> dict[str, Any]:
    """What to try, by name, as Optuna's distributions."""
    optuna = optuna_().distributions
    if not isinstance(space, Mapping) or not space:
        raise ConfigError(f"`space` must map names to what to try, got {check.said(space)}")
    found = {}
    for name, what in space.items():
        if isinstance(what, optuna.BaseDistribution):
            found[name] = what
        elif isinstance(what, list) and what:
            found[name] = optuna.CategoricalDistribution(what)
        elif isinstance(what, tuple) and len(what) in (2, 3) and what[2:] in ((), ("log",)):
            low, high = what[:2]
            check.number(f"space[{name!r}]", low)
            check.number(f"space[{name!r}]", high, above=low)
            whole = isinstance(low, int) and isinstance(high, int)
            if what[2:] and low <= 0:
                raise ConfigError(f"`space`: {name!r} by magnitude must begin above 0, got {low!r}")
            kind = optuna.IntDistribution if whole else optuna.FloatDistribution
            found[name] = kind(low, high, log=bool(what[2:]))
        else:
            raise ConfigError(
                f"`space`: {name!r} must be a list of choices, (low, high), (low, high, 'log') or a distribution of "
                f"Optuna's, got {check.said(what)}"
            )
    return found


def example_of(distribution: Any) -> Any:
    """One value of it."""
    return distribution.choices[0] if hasattr(distribution, "choices") else distribution.low


def open_study(directory: Path | None, better: str, pruner: Any) -> Any:
    """The study in a directory, made if there is none; without one, in memory."""
    optuna = optuna_()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{directory / DATABASE}"
    pruner = optuna.pruners.NopPruner() if pruner is None or isinstance(pruner, Rungs) else pruner
    with _alone(directory):  # who comes first makes the tables
        study = optuna.create_study(
            study_name=STUDY,
            storage=storage,
            direction=f"{better}imize",
            pruner=pruner,
            load_if_exists=True,
        )
    if study.direction.name.lower() != f"{better}imize":
        raise ConfigError(f"`run_dir` {directory} holds a study that was to {study.direction.name.lower()}")
    return study


@contextlib.contextmanager
def _alone(directory: Path | None) -> Iterator[None]:
    """One process at a time: who counts trials and asks for more must not be overtaken."""
    if directory is None or fcntl is None:
        yield
        return
    with (directory / ".asking").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def asked(
    study: Any, distributions: Any, trials: int, most: int, sampler: Any, seed: int, directory: Path | None
) -> list[Any]:
    """The next trials, as many as there is room for."""
    samplers = optuna_().samplers
    with _alone(directory):
        known = [t for t in study.trials if t.state.name != "FAIL"]
        number = min(most, trials - len(known))
        if number <= 0:
            return []
        kinds = {"tpe": samplers.TPESampler, "random": samplers.RandomSampler}
        if isinstance(sampler, str):
            check.one_of("sampler", sampler, kinds)
            more = {"constant_liar": True} if sampler == "tpe" else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what Optuna calls experimental
                # Of the trials there are, so that one who goes on, or comes second, does not draw the first ones again.
                study.sampler = kinds[sampler](seed=(seed * 1_000_003 + len(study.trials)) % 2**32, **more)
        else:
            study.sampler = sampler
        chunk = [study.ask(distributions) for _ in range(number)]
        for trial in chunk:
            trial.set_user_attr(CHUNK, chunk[0].number)
    return chunk


def left_over(study: Any) -> list[list[Any]]:
    """Trials under way, by what was trained together: those of a process that has died are to be resumed."""
    optuna = optuna_()
    chunks: dict[int, list[Any]] = {}
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        chunks.setdefault(trial.user_attrs.get(CHUNK, trial.number), []).append(trial)
    return [[optuna.trial.Trial(study, t._trial_id) for t in chunk] for chunk in chunks.values()]


def table_of(study: Any) -> list[dict[str, Any]]:
    """A study's trials as rows, in their order."""
    rows = []
    for trial in study.trials:
        last = max(trial.intermediate_values, default=None)
        value = trial.value if trial.value is not None else trial.intermediate_values.get(last)
        status = {"COMPLETE": "done", "FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
        rows.append({"trial": trial.number, **trial.params, "value": value, "step": last, "status": status})
    return rows


def load_study(run_dir: Any) -> Any:
    """The study in a directory, as `search` left it there.

    Raises:
      ConfigError: if there is none, or Optuna is not installed.
    """
    directory = check.path("run_dir", run_dir)
    if not (directory / DATABASE).is_file():
        raise ConfigError(f"`run_dir` {directory} holds no study: there is no {DATABASE} in it")
    return optuna_().load_study(study_name=STUDY, storage=f"sqlite:///{directory / DATABASE}")
