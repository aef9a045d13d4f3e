"""search: a study of Optuna's, whose trials are trained together where only hyperparameters differ."""

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from .. import tree
from .._core import check
from .._core.errors import ConfigError, RunLockedError
from .._core.ranking import best_of
from ..checkpoint.checkpointer import Checkpointer
from ..run.context import LoopContext
from ..run.history import EACH, UNFINISHED
from ..run.lock import RunLock
from ..run.writers import CSVWriter, JSONLWriter
from ..step.state import TrainState, init_state
from ..step.task import Task
from ..transforms.hyperparams import HyperparamsState, hyperparams
from ..transforms.types import nodes
from .control import Rungs
from .fit import MEMBERS, Control, PopulationResult, controlled
from .states import init, member, select
from .study import asked, distributions_of, example_of, left_over, open_study, optuna_, table_of

_LIKE = "like"  # a trial's attribute: the number of the one whose task its population was trained with


@dataclasses.dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search has found.

    Attributes:
      params: the best trial's, by name; empty if no trial has a value.
      value: its value, or None.
      number: its number in the study, or None.
      run_dir: its run directory, for `restore_params` or `fntrain inspect`; None where nothing is kept.
      state: its state, if this call trained it.
      direction: `"min"` or `"max"`.
      table: a row a trial: `trial`, its parameters, `value`, `step` and `status`.
      study: Optuna's.
    """

    params: dict[str, Any]
    value: float | None
    number: int | None
    run_dir: Path | None
    state: TrainState | None
    direction: str
    table: list[dict[str, Any]]
    study: Any = dataclasses.field(repr=False)


def search(
    make_task: Callable[..., Task],
    space: Mapping[str, Any],
    data: Any,
    init_params: Any,
    *,
    validation_data: Any,
    trials: int = 20,
    members: int = 8,
    monitor: str = "val_loss",
    mode: Literal["auto", "min", "max"] = "auto",
    sampler: Any = "tpe",
    pruner: Any = None,
    seed: int = 0,
    run_dir: Any = None,
    **options: Any,
) -> SearchResult:
    """Search for hyperparameters: trials of a study by Optuna, as many at a time as a population has members.

    Trials whose tasks differ in nothing but the numbers of `with_hyperparams` are trained as one population, in one
    program; others after one another. A trial's value is the best that its `monitor` had at a validation; one that
    never had a finite one is pruned.

    With a `run_dir` the study is a database there, `study.db`. The same call again goes on with it, after a kill too:
    trials that were under way are resumed where their population was saved. Several processes may share it, each by
    this same call; none waits for another. Every trial that has ended has a run directory, `trials/0007`.

    Args:
      make_task: `(**values) -> Task`.
      space: by argument, what to try: a list, any of it; `(low, high)`, a number between, whole if both are;
        `(low, high, "log")`, by magnitude; or a distribution of Optuna's.
      data: as for `fit`.
      init_params: as for `init_state`.
      validation_data: as for `fit`.
      trials: in all, also when going on, those that failed left out.
      members: the most that are trained at a time.
      monitor: the column of a validation that is compared.
      mode: whether more of it is better; `"auto"` asks the metric.
      sampler: `"tpe"`, `"random"`, or one of Optuna's.
      pruner: None; `asha(...)`; or one of Optuna's, asked at every validation.
      seed: of the study, of each run's key, and of the data's order.
      run_dir: a directory; None keeps nothing.
      **options: what else `fit` takes: `epochs`, `batch_size`, …

    Returns:
      A SearchResult.

    Raises:
      ConfigError: if Optuna is not installed, or an argument is out of range; as `fit` too.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> from fntrain import population
      >>> def make_task(learning_rate):
      ...     tx = ft.transforms.with_hyperparams(ft.optimizers.sgd, learning_rate=learning_rate)
      ...     return ft.Task(loss_fn, tx)
      >>> def loss_fn(params, batch, ctx):
      ...     return ft.losses.mse(batch * params["w"], 3 * batch)
      >>> x = np.ones(8, np.float32)
      >>> found = population.search(make_task, {"learning_rate": (1e-4, 1.0, "log")}, x, {"w": np.float32(0)},
      ...                           validation_data=x, trials=8, epochs=3, progress=False)
      >>> len(found.table), found.params["learning_rate"] > 0.01
      (8, True)

    References:
      Akiba et al., *Optuna: a next-generation hyperparameter optimization framework*, 2019.
    """
    check.function("make_task", make_task, "(**values) -> Task")
    check.integer("trials", trials, at_least=1)
    check.integer("members", members, at_least=1)
    if validation_data is None:
        raise ConfigError("`validation_data` must be given: trials are compared by it")
    distributions = distributions_of(space)
    values = {name: example_of(x) for name, x in distributions.items()}
    example = _made(make_task, values)
    better = LoopContext(example, None).direction(monitor, mode)  # type: ignore[arg-type]
    directory = None if run_dir is None else check.path("run_dir", run_dir)
    study = open_study(directory, better, pruner)
    options = {
        "progress": False,
        "callbacks": (),
        **options,
        "validation_data": validation_data,
        "seed": seed,
    }
    runs = _Runs(make_task, init_params, data, monitor, mode, pruner, seed, directory, options, study)
    for chunk in left_over(study):
        runs.train(chunk)
    while not runs.stopped:
        chunk = asked(study, distributions, trials, members, sampler, seed, directory)
        if not chunk:
            break
        runs.train(chunk)
    return _result(study, better, runs, directory)


def _made(make_task: Callable[..., Task], values: dict[str, Any]) -> Task:
    task = make_task(**values)
    if not isinstance(task, Task):
        raise ConfigError(f"`make_task` must return a Task, got {type(task).__name__}")
    return task


def _alike(task: Task) -> str:
    """What a program is made of: the task in words, without the numbers that stand in the state."""

    def bare(x: Any) -> Any:
        if isinstance(x, dict):
            x = {key: bare(value) for key, value in x.items()}
            if x.get("call") == "with_hyperparams":
                x["values"] = {
                    k: "number" if isinstance(v, float) else v for k, v in x.get("values", {}).items()
                }
            return x
        return [bare(value) for value in x] if isinstance(x, list) else x

    return json.dumps(bare(task.fingerprint()), sort_keys=True, default=str)


class _Trials(Control):
    """Reports each member's validations to its trial, and lets those go that are pruned."""

    def __init__(self, trials: list[Any], pruner: Any, monitor: str, mode: Any, seed: int):
        super().__init__(None, monitor, mode, len(trials), seed)
        self.trials = trials
        self.pruner = pruner
        self.pruned: list[int] = []

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Nobody is pruned."""
        super().on_fit_begin(ctx)
        self.pruned = []

    def act(self, ctx: LoopContext) -> None:
        """Report, prune, and go on without those that were, once they are half of all: each size is a program."""
        for i, value in zip(self.ids, ctx.logs[self.monitor + EACH].tolist()):
            if i in self.pruned or not np.isfinite(value):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a resumed run reports its last steps again
                self.trials[i].report(value, ctx.step)
            if self._is_beaten(self.trials[i], value, ctx.step):
                self.pruned.append(i)
        left = [place for place, i in enumerate(self.ids) if i not in self.pruned]
        if not left:
            ctx.stop("every trial is pruned")
        elif 2 * len(left) <= len(self.ids):
            ctx.state = select(ctx.state, left)
            self.regroup(np.array(left))

    def _is_beaten(self, trial: Any, value: float, step: int) -> bool:
        if not isinstance(self.pruner, Rungs):
            return self.pruner is not None and trial.should_prune()
        if not self.pruner.at(step):
            return False
        sign = -1 if self.direction == "min" else 1
        others = [
            sign * t.intermediate_values[step]
            for t in trial.study.trials
            if t.number != trial.number and step in t.intermediate_values
        ]
        return not self.pruner(sign * value, others)

    def state(self) -> dict[str, Any]:
        """Who is left, and who is pruned."""
        return {**super().state(), "pruned": list(self.pruned)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on so."""
        super().restore(state)
        self.pruned = [int(i) for i in state["pruned"]]

    def watches(self) -> dict[str, Any]:
        """What decides."""
        return {**super().watches(), "pruner": repr(self.pruner) if isinstance(self.pruner, Rungs) else ""}


@dataclasses.dataclass
class _Runs:
    """Trains trials, and tells the study how they went."""

    make_task: Callable[..., Task]
    init_params: Any
    data: Any
    monitor: str
    mode: Any
    pruner: Any
    seed: int
    directory: Path | None
    options: dict[str, Any]
    study: Any
    stopped: bool = False
    best: tuple[int, TrainState] | None = None
    known: dict[str, tuple[int, Task]] = dataclasses.field(
        default_factory=dict
    )  # by what a program is made of

    def train(self, chunk: list[Any]) -> None:
        """Trials that were asked for together, population by population."""
        groups: dict[str, list[tuple[Any, Task]]] = {}
        for trial in chunk:
            task = _made(self.make_task, trial.params)
            groups.setdefault(_alike(task), []).append((trial, task))
        for group in groups.values():
            if self.stopped:
                return
            trials, tasks = map(list, zip(*group))
            like = self._like(trials, tasks[0])
            run_dir = (
                None if self.directory is None else self.directory / "populations" / f"{trials[0].number:04d}"
            )
            control = _Trials(trials, self.pruner, self.monitor, self.mode, self.seed)
            saved = {} if run_dir is None else {"run_dir": run_dir, "resume": True}
            own = [self._states(like, tasks)]
            if run_dir is not None:
                run_dir.mkdir(parents=True, exist_ok=True)
            try:
                result = controlled(like, own, self.data, control, **saved, **self.options)
            except RunLockedError:
                continue  # another process is at it
            if result.interrupted:
                self.stopped = True
                return
            self._tell(trials, tasks, control, result)

    def _like(self, trials: list[Any], task: Task) -> Task:
        """The task that stands for these: the first of its kind, so that one program serves all that come.

        A population that is resumed goes on with the one that it was begun with.
        """
        number = trials[0].user_attrs.get(_LIKE)
        key = _alike(task)
        if number is None:
            number, task = self.known.setdefault(key, (trials[0].number, task))
            for trial in trials:
                trial.set_user_attr(_LIKE, number)
        elif self.known.get(key, (None,))[0] != number:
            task = _made(self.make_task, self.study.trials[number].params)
            self.known[key] = number, task
        return self.known[key][1]

    def _states(self, like: Task, tasks: list[Task]) -> TrainState:
        first = init_state(like, self.init_params, key=self.seed)
        trained, _ = tree.split(first.params)
        numbers: list[dict[str, float]] = []
        if any(True for _ in nodes(first.opt_state, HyperparamsState)):
            # By each task's own transform, which may make of a trial's values what it likes.
            numbers = [
                {k: float(x) for k, x in hyperparams(t.transform.init(trained)).items()} for t in tasks
            ]
        values = {name: [each[name] for each in numbers] for name in (numbers[0] if numbers else {})}
        return init(like, self.init_params, seeds=[self.seed] * len(tasks), hyperparams=values)

    def _tell(self, trials: list[Any], tasks: list[Task], control: _Trials, result: PopulationResult) -> None:
        states = optuna_().trial.TrialState
        for i, trial in enumerate(trials):
            rows = _rows_of(result, i)
            values = {step: row.get(self.monitor) for step, row in enumerate(rows)}
            found = best_of(values, result.direction)
            value = None if found is None else values[found]
            pruned = i in control.pruned or value is None
            state = member(result.state, result.ids.index(i)) if i in result.ids else None
            if self.directory is not None:
                told = {"value": value, "status": "pruned" if pruned else "done", "params": trial.params}
                _write(self.directory / "trials" / f"{trial.number:04d}", tasks[i], rows, state, told)
            # Another process may have found the same trials left by a killed one, and told the study meanwhile.
            if pruned:
                self.study.tell(trial, state=states.PRUNED, skip_if_finished=True)
            else:
                self.study.tell(trial, value, skip_if_finished=True)
                if self.study.best_trial.number == trial.number and state is not None:
                    self.best = trial.number, state


def _rows_of(result: PopulationResult, i: int) -> list[dict[str, Any]]:
    """A member's own history."""
    rows = []
    for row in result.history.rows():
        ids = list(row.get(MEMBERS, ()))
        if i not in ids:
            continue
        own = {
            name.removesuffix(EACH): x[ids.index(i)].item() if x.ndim == 1 else x[ids.index(i)]
            for name, x in row.items()
            if name.endswith(EACH)
        }
        rest = {name: x for name, x in row.items() if name in ("epoch", "step", UNFINISHED)}
        rows.append({**rest, **own})
    return rows


def _write(
    path: Path, task: Task, rows: list[dict[str, Any]], state: TrainState | None, told: dict[str, Any]
) -> None:
    """A trial's run directory; a kill before the study knew of it leaves one that is written again."""
    path.mkdir(parents=True, exist_ok=True)
    lock = RunLock(path)
    try:
        for make, name in ((JSONLWriter, "metrics.jsonl"), (CSVWriter, "metrics.csv")):
            (path / name).unlink(missing_ok=True)
            with make(path / name) as writer:
                writer.begin(rows)
        config = {"task": {"tx": repr(task.tx)}, **told}
        (path / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
        if state is not None:
            with Checkpointer(path / "checkpoints") as checkpoints:
                checkpoints.save(state, step=int(jax.device_get(state.step)), overwrite=True)
    finally:
        lock.release()


def _result(study: Any, better: str, runs: _Runs, directory: Path | None) -> SearchResult:
    done = [t for t in study.trials if t.state.name == "COMPLETE"]
    best = study.best_trial if done else None
    trained = runs.best if best is not None and runs.best and runs.best[0] == best.number else None
    return SearchResult(
        params=dict(best.params) if best else {},
        value=best.value if best else None,
        number=best.number if best else None,
        run_dir=directory / "trials" / f"{best.number:04d}" if best and directory else None,
        state=trained[1] if trained else None,
        direction=better,
        table=table_of(study),
        study=study,
    )
