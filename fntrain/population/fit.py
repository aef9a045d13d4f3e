"""population.fit and evaluate: the loop of one run over many, with a controller between two validations."""

import dataclasses
import html
from collections.abc import Iterable
from typing import Any, Literal

import jax
import numpy as np

from .._core import check
from .._core.arguments import hands_over, taken
from .._core.errors import ConfigError
from .._core.ranking import Direction
from ..checkpoint.checkpointer import Checkpointer
from ..run import epoch as epoch_lib, fit as run_lib
from ..run.context import LoopContext
from ..run.events import CallbackList
from ..run.fit import FitResult
from ..run.history import EACH
from ..sharding.processes import to_host
from ..show.notebook import Cell, page
from ..show.text import number_text
from ..step import checks
from ..step.state import TrainState
from ..step.task import Task
from ..transforms.hyperparams import HyperparamsState, hyperparams
from ..transforms.types import nodes
from .control import Controller
from .states import member, select, size

MEMBERS = "members"
"""The column of the history with the numbers of those members that a row is of."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PopulationResult(FitResult):
    """What `population.fit` returns; `states, history = population.fit(...)` takes it apart.

    Attributes:
      ids: which members are left, by their number at the start: that of each in `state`.
      monitor: the column that members were compared by.
      direction: which of its values are better.
      table: a row a member of the start: `member`, its hyperparameters there, the last `monitor` it had and the `step`
        that is from, and whether it is `left`. Of members that are left, the hyperparameters that have changed stand
        behind as `…_now`.
    """

    ids: tuple[int, ...] = ()
    monitor: str = "loss"
    direction: Direction = "min"
    table: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def ranked(self) -> list[int]:
        """The members that are left, by their place in `state`, the best first; NaN last."""
        last = {row["member"]: row[self.monitor] for row in self.table}
        scores = _signed(np.array([np.nan if last[i] is None else last[i] for i in self.ids]), self.direction)
        return np.argsort(-np.where(np.isnan(scores), -np.inf, scores), kind="stable").tolist()

    def winner(self) -> TrainState:
        """The state of the best member: an ordinary TrainState."""
        return member(self.state, self.ranked()[0])

    def __repr__(self) -> str:
        """The table of members, and which is the best."""
        best = self.ids[self.ranked()[0]]
        said = f"{len(self.ids)} of {len(self.table)} members left, the best of them {best}"
        why = f"; {self.stop_reason}" if self.stop_reason else ""
        return f"PopulationResult: {said} by {self.monitor}{why}\n{_lines(self.table)}"

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        columns = list(dict.fromkeys(name for row in self.table for name in row))
        cells = [[Cell(_text(row.get(name))) for name in columns] for row in self.table]
        why = f"<p>{html.escape(self.stop_reason)}</p>" if self.stop_reason else ""
        return (
            why
            + page("Population", None, f"{len(self.ids)} left", columns, cells)
            + self.history._repr_html_()
        )


@hands_over("states")
def fit(
    task: Task,
    states: TrainState,
    data: Any,
    *,
    controller: Controller | None = None,
    monitor: str | None = None,
    mode: Literal["auto", "min", "max"] = "auto",
    callbacks: Iterable[Any] = (),
    seed: int = 0,
    validation_data: Any = None,
    validation_every: int | None = None,
    run_dir: Any = None,
    resume: bool | Literal["must"] = False,
    **options: Any,
) -> PopulationResult:
    """Train a population: `fit` of all its members in one program.

    Rows of the history have the mean over members under a column's name (`val_loss`; of those where it is finite) and
    an array with each member's as `val_loss_each`; `plots.population` draws both. Callbacks decide for each member by
    its own values (`EarlyStopping`, `ReduceLROnPlateau`, `NaNGuard`), or are of all together: a `ModelCheckpoint` or
    `keep_best` keeps the whole population, and goes by the mean.

    Args:
      task: the Task.
      states: a population's state, as `init` makes one; it stays usable, unless `donate`.
      data: as for `fit`; every member sees the same batches. For an order of its own for each, see `orders`.
      controller: `halving(...)`, `pbt(...)`, or one of your own; used at validations: at each, or at every
        `controller.every` steps, at which there are validations then.
      monitor: the column that members are compared by; None is `val_loss`, or `loss` without validation.
      mode: whether more of it is better; `"auto"` asks the metric.
      callbacks: as for `fit`.
      seed: of the data's order, and of what a controller draws.
      validation_data: as for `fit`.
      validation_every: as for `fit`; with `controller.every` it has to divide that.
      run_dir: as for `fit`. The whole population is saved, and resumed bit for bit.
      resume: as for `fit`; the states given are those that the run was begun with.
      **options: what else `fit` takes.

    Returns:
      A PopulationResult, `(states, history, …)`.

    Raises:
      ConfigError: if a controller has no validation to go by, or would change whose mean `keep_best` compares;
        if `monitor` is no column, or `states` is no population's; as `fit` too.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> from fntrain import population
      >>> tx = ft.transforms.with_hyperparams(ft.optimizers.sgd, learning_rate=0.1)
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], 3 * b), tx)
      >>> rates = [0.001, 0.01, 0.1, 0.3]
      >>> states = population.init(task, {"w": np.float32(0)}, hyperparams={"learning_rate": rates})
      >>> x = np.ones(32, np.float32)
      >>> result = population.fit(task, states, x, epochs=4, validation_data=x, progress=False,
      ...                         controller=population.halving(every=2))
      >>> result.ids, len(result.history["val_loss_each"][0])
      ((3,), 4)
    """
    states = taken(states)
    checks.check_task(task, "(task, states, data)")
    number = size(states)
    if controller is not None:
        validation_every = _check(controller, validation_data, validation_every)
        if options.get("keep_best"):
            raise ConfigError(
                "`keep_best` compares the mean of all members, and a controller changes who they are: "
                "`result.winner()` is the best member, and `callbacks.ModelCheckpoint` saves populations as they were "
                "measured"
            )
    column = monitor or ("loss" if validation_data is None else "val_loss")
    control = Control(controller, column, mode, number, seed)
    given = [states]
    del states
    options.update(validation_data=validation_data, validation_every=validation_every, seed=seed)
    return controlled(
        task, given, data, control, callbacks=callbacks, run_dir=run_dir, resume=resume, **options
    )


def controlled(
    task: Task, own: list[TrainState], data: Any, control: "Control", *, callbacks: Any, **options: Any
) -> PopulationResult:
    """`fit` with a Control: the states in a list, which is emptied."""
    begun = _numbers(own[0])
    if options.get("resume") and options.get("run_dir") is not None:
        own.append(_as_saved(own.pop(), check.path("run_dir", options["run_dir"]), control))
    control.others = CallbackList(callbacks).callbacks
    # It says first whose row it is, and acts last, when all others have seen the members that the row is of.
    result = run_lib.fit(
        task, own.pop(), data, callbacks=[control, *control.others, _Acting(control)], **options
    )
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(FitResult)}
    return PopulationResult(
        **fields,
        ids=tuple(control.ids),
        monitor=control.monitor,
        direction=control.direction or "min",
        table=_table(begun, result, control),
    )


def _check(controller: Any, validation_data: Any, validation_every: int | None) -> int | None:
    """How often to validate, so that the controller has something to go by."""
    if not isinstance(controller, Controller):
        raise ConfigError(
            f"`controller` must be one, `population.halving()` say, got {check.said(controller)}"
        )
    if validation_data is None:
        raise ConfigError("`controller` goes by validations: give `validation_data`")
    every = controller.every
    if every is None or validation_every is None:
        return every if validation_every is None else validation_every
    check.integer("validation_every", validation_every, at_least=1)
    if every % validation_every:
        raise ConfigError(
            f"`validation_every` must divide the controller's `every`, {every}, got {validation_every}"
        )
    return validation_every


def _as_saved(states: TrainState, run_dir: Any, control: "Control") -> TrainState:
    """Those members that the last checkpoint has."""
    directory = run_dir / "checkpoints"
    if not directory.is_dir():
        return states
    with Checkpointer(directory) as checkpoints:
        if checkpoints.latest_step is None:
            return states
        saved = [
            x for x in checkpoints.extra().get("callbacks", []) if x["callback"] == type(control).__qualname__
        ]
    ids = [i for i in saved[0]["state"]["ids"] if i < size(states)] if saved else []
    return select(states, ids) if 0 < len(ids) < size(states) else states


class Control:
    """The callback between a run and its controller: it knows which members are left."""

    adds_logs = False

    def __init__(self, controller: Controller | None, monitor: str, mode: Any, number: int, seed: int):
        self.controller = controller
        self.monitor = monitor
        self.mode = mode
        self.number = number
        self.seed = seed
        self.direction: Direction | None = None
        self.ids: list[int] = []
        self.others: list[Any] = []

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """All are there; a resumed run's state says otherwise."""
        self.ids = list(range(self.number))
        known = None if ctx.columns is None else ctx.columns()
        if known is not None and self.monitor not in known:
            raise ConfigError(
                f"`monitor` must be one of {', '.join(map(repr, known))}, got {self.monitor!r}"
                + check.did_you_mean(self.monitor, known)
            )
        self.direction = ctx.direction(self.monitor, self.mode)

    def on_validation_end(self, ctx: LoopContext) -> None:
        """Say whose row it is."""
        ctx.logs[MEMBERS] = np.array(self.ids)

    def act(self, ctx: LoopContext) -> None:
        """Ask the controller, if it is time."""
        controller = self.controller
        if controller is None or (controller.every and ctx.step % controller.every):
            return
        if self.monitor + EACH not in ctx.logs:
            raise ConfigError(f"`monitor` {self.monitor!r} has no number a member at step {ctx.step}")
        scores = _signed(ctx.logs[self.monitor + EACH], self.direction)
        key = jax.random.fold_in(jax.random.key(self.seed), ctx.step)
        ctx.state, parents = controller.apply(ctx.state, scores, key)
        self.regroup(to_host(parents))

    def regroup(self, parents: np.ndarray) -> None:
        """Tell everyone who remembers something of the members which are there now."""
        if len(parents) < len(self.ids):
            self.ids = [self.ids[i] for i in parents]
        for callback in self.others:
            if callable(regroup := getattr(callback, "regroup", None)):
                regroup(parents)

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Say whose row it is, if no validation has."""
        ctx.logs.setdefault(MEMBERS, np.array(self.ids))

    def state(self) -> dict[str, Any]:
        """Which members are left."""
        return {"ids": list(self.ids)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with those."""
        self.ids = [int(i) for i in state["ids"]]

    def watches(self) -> dict[str, Any]:
        """What decides who is left."""
        return {"controller": repr(self.controller), "monitor": self.monitor, "members": self.number}


class _Acting:
    """The last of all callbacks, at which a Control acts: at a validation inside an epoch, or at the epoch's end."""

    adds_logs = False

    def __init__(self, control: Control):
        self.control = control

    def on_validation_end(self, ctx: LoopContext) -> None:
        """Act, if the epoch does not end here."""
        if ctx.validated:
            self.control.act(ctx)

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Act."""
        self.control.act(ctx)


def _signed(scores: Any, direction: Direction | None) -> np.ndarray:
    """More is better."""
    return np.asarray(scores, np.float32) * (-1 if direction == "min" else 1)


def _numbers(states: TrainState) -> dict[str, np.ndarray]:
    """The hyperparameters of each member, by name; nothing, where there are none."""
    if not any(True for _ in nodes(states.opt_state, HyperparamsState)):
        return {}
    return to_host(hyperparams(states))


def _table(begun: dict[str, np.ndarray], result: FitResult, control: Control) -> list[dict[str, Any]]:
    rows = [
        {"member": i, **{name: float(x[i]) for name, x in begun.items()}, control.monitor: None, "step": None}
        for i in range(control.number)
    ]
    for row in result.history.rows():
        values = row.get(control.monitor + EACH)
        for i, x in zip(row.get(MEMBERS, ()), () if values is None else values):
            rows[i].update({control.monitor: float(x), "step": row["step"]})
    now = _numbers(result.state)
    for row in rows:
        row["left"] = row["member"] in control.ids
    for place, i in enumerate(control.ids):
        changed = {name: float(x[place]) for name, x in now.items() if x[place] != begun[name][i]}
        rows[i].update({f"{name}_now": x for name, x in changed.items()})
    return rows


def _lines(table: list[dict[str, Any]]) -> str:
    """A table as text."""
    columns = list(dict.fromkeys(name for row in table for name in row))
    cells = [columns, *([_text(row.get(name)) for name in columns] for row in table)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(x.rjust(w) for x, w in zip(row, widths)) for row in cells)


def _text(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else number_text(value)


def evaluate(task: Task, states: TrainState, data: Any, *, batch_size: int = 32) -> dict[str, np.ndarray]:
    """The metrics of every member over a whole data set.

    Args:
      task: the Task.
      states: a population's state; nothing is changed.
      data: as in `evaluate`.
      batch_size: rows of a batch, where `data` is arrays.

    Returns:
      A dict of arrays, `[N]` for each number of `evaluate`.

    Raises:
      As `evaluate`; ConfigError if `states` is no population's.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> from fntrain import population
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], 0 * b), ft.optimizers.sgd(0.1))
      >>> states = population.stack([ft.init_state(task, {"w": np.float32(i)}) for i in (1, 2)])
      >>> population.evaluate(task, states, np.ones(3, np.float32))["loss"].tolist()
      [1.0, 4.0]
    """
    size(states)
    values = epoch_lib.evaluate(task, states, data, batch_size=batch_size)
    return {name.removesuffix(EACH): x for name, x in values.items() if name.endswith(EACH)}
