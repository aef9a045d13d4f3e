"""fit and evaluate: the loop, which never waits for the device between log boundaries."""

import dataclasses
import functools
import signal
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from .. import _check, _step, sharding, tree
from .._check import ConfigError, DataError
from .._metrics import StepMetrics
from .._state import TrainState, check_state
from .._task import Task
from . import data as data_lib
from .callbacks import CallbackList, LoopContext
from .data import Position
from .history import History, plain
from .progress import ProgressBar
from .run import RunDirectory
from .signals import Signals


@dataclasses.dataclass
class FitResult:
    """What `fit` returns; `state, history = fit(...)` takes it apart.

    Attributes:
      state: the TrainState after the last step.
      history: one row an epoch.
      interrupted: True if an interrupt ended the run early.
      stop_reason: why a callback ended it early, or None.
      run_dir: the run directory, or None.
    """

    state: TrainState
    history: History
    interrupted: bool = False
    stop_reason: str | None = None
    run_dir: Any = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.state, self.history))


def fit(
    task: Task,
    state: TrainState,
    data: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int = 0,
    validation_data: Any = None,
    callbacks: Iterable[Any] = (),
    run_dir: Any = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    steps_per_call: int | str = "auto",
    log_every: int = 100,
    progress: bool = True,
) -> FitResult:
    """Train for a number of epochs or steps.

    Args:
      task: the Task.
      state: the TrainState to start from; it stays usable.
      data: a data set of arrays (an array, or a tuple, dict or any tree of them), or batches: a list, a
        generator, a loader, or a function `epoch -> iterable`.
      epochs: epochs in all, also when resuming; 10 if neither this nor `steps` is given.
      steps: batches in all, instead.
      batch_size: rows of a batch, where `data` is arrays.
      shuffle: a new order each epoch, where `data` is arrays.
      seed: of the order.
      validation_data: as `data`; evaluated at the end of each epoch, in order, into `val_…` columns.
      callbacks: functions of the epoch's logs, or objects with methods named as `callbacks.EVENTS`.
      run_dir: a directory for config, metrics and checkpoints. In use already is an error, unless `resume`.
      checkpoint_every: steps between checkpoints; None saves at each epoch's end. The last step is always saved.
      resume: go on from the last checkpoint in `run_dir`, if there is one, as if the run had never stopped.
      steps_per_call: how many steps one dispatch runs (`train_steps`); `"auto"` takes single steps.
      log_every: steps between fetches of running metrics (for `on_log` and the progress bar).
      progress: show progress: a live bar on a terminal, a line an epoch elsewhere.

    Returns:
      A FitResult, `(state, history, …)`.

    Raises:
      ConfigError: if arguments contradict each other, `run_dir` is in use, or a resume meets another task, data
        set, batch size or seed.
      DataError: if data is empty, batches differ in form, an iterable ends before the run does, or a scalar
        loss meets a padded tail.
      SystemExit: with status 143 after SIGTERM, once the state is saved.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b[0] * p["w"], b[1]), ft.optimizers.sgd(0.1))
      >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
      >>> state = ft.init_state(task, {"w": np.float32(0)})
      >>> state, history = ft.fit(task, state, (x, 3 * x), epochs=20, batch_size=16, progress=False)
      >>> round(float(state.params["w"]), 3), len(history["loss"])
      (2.99, 20)
    """
    _step.check_task(task)
    check_state(state, "fit")
    if epochs is not None and steps is not None:
        raise ConfigError(f"give `epochs` or `steps`, not both (got epochs={epochs}, steps={steps})")
    if epochs is None and steps is None:
        epochs = 10
    for name, value in (("epochs", epochs), ("steps", steps), ("checkpoint_every", checkpoint_every)):
        if value is not None:
            _check.integer(name, value, at_least=1)
    batch_size = _check.integer("batch_size", batch_size, at_least=1)
    log_every = _check.integer("log_every", log_every, at_least=1)
    chunk = 1 if steps_per_call == "auto" else _check.integer("steps_per_call", steps_per_call, at_least=1)
    if run_dir is None and (resume or checkpoint_every is not None):
        raise ConfigError("`resume` and `checkpoint_every` need a `run_dir`")
    if callable(callbacks) or not isinstance(callbacks, Iterable):
        raise ConfigError(
            f"`callbacks` must be a list, got {callbacks!r}; write `callbacks=[...]`, also for one"
        )
    listeners = CallbackList(callbacks)
    columns_known = not listeners.adds_logs
    if progress and jax.process_index() == 0:
        listeners = CallbackList([listeners, ProgressBar()])

    # From the set-up on: an exception raised in the middle of a compilation can take the interpreter down.
    with Signals() as signals:
        source = data_lib.as_source(data, batch_size, shuffle=shuffle, seed=seed)
        evaluation = None
        if validation_data is not None:
            evaluation = _Evaluation(task, state, validation_data, batch_size, name="validation_data")
        state = _step.copied(state)
        training = _Training(task, state, source)
        if isinstance(source, data_lib.Arrays):
            batch_size = source.loader.batch_size

        identity = _identity(task, source, batch_size, seed)
        config = dict(
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            parameters=tree.size(state.params),
            devices=[str(d) for d in jax.devices()],
            jax=jax.__version__,
        )
        with _directory(run_dir, identity, config, resume) as run:
            metrics, position, history = training.empty, Position(0, 0), History()
            if run is not None and run.extra is not None:
                state, metrics, position, history = run.restore(state, metrics)
            loop = _Loop(
                task=task,
                training=training,
                evaluation=evaluation,
                callbacks=listeners,
                run=run,
                signals=signals,
                chunk=chunk,
                log_every=log_every,
                checkpoint_every=checkpoint_every,
                metrics=metrics,
                position=position,
                ctx=LoopContext(
                    task=task,
                    state=state,
                    epoch=position.epoch + 1,
                    epochs=epochs,
                    step=int(state.step),
                    steps=steps if steps is not None or source.length is None else epochs * source.length,  # type: ignore[operator]
                    steps_per_epoch=source.length,
                    epoch_step=position.index,
                    batch_size=batch_size,
                    logs={},
                    history=history,
                    resumed=run is not None and run.extra is not None,
                    resumed_step=int(state.step),
                    run_dir=None if run is None else run.path,
                    columns=functools.partial(_columns, task, training, evaluation)
                    if columns_known
                    else None,
                ),
            )
            result = loop.run_all(steps)
    if signals.received == signal.SIGTERM:
        raise SystemExit(143)
    return result


def evaluate(task: Task, state: TrainState, data: Any, *, batch_size: int = 32) -> dict[str, Any]:
    """The task's metrics over a whole data set, each example counted once.

    Args:
      task: the Task.
      state: a TrainState; nothing is changed.
      data: as in `fit`.
      batch_size: rows of a batch, where `data` is arrays.

    Returns:
      A dict of floats, `"loss"` and the task's metrics by name (NumPy arrays for those that are arrays).

    Raises:
      DataError: if the data is empty, or a scalar loss meets a padded tail.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], 0 * b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": np.float32(1)})
      >>> ft.evaluate(task, state, np.array([1.0, 2.0, 3.0], np.float32), batch_size=2)["loss"]
      4.666666507720947
    """
    _step.check_task(task)
    check_state(state, "evaluate")
    evaluation = _Evaluation(
        task, state, data, _check.integer("batch_size", batch_size, at_least=1), name="data"
    )
    return plain(_fetched(_step.compute_metrics(task, evaluation(state))))


def _fetched(values: dict[str, Any]) -> dict[str, Any]:
    """Values on the host, in one fetch and in their order: a dict would come back sorted by name."""
    return dict(zip(values, jax.device_get(list(values.values()))))


def _identity(task: Task, source: Any, batch_size: int, seed: int) -> dict[str, Any]:
    loss = getattr(task.loss_fn, "__qualname__", type(task.loss_fn).__name__)
    return {
        "task": {
            "loss_fn": loss,
            "tx": repr(task.tx),
            "metrics": {name: repr(m) for name, m in task.metrics.items()},
            "microbatches": task.microbatches,
            "policy": repr(task.policy),
        },
        "data": data_lib.fingerprint(source),
        "batch_size": batch_size,
        "seed": seed,
    }


def _directory(run_dir: Any, identity: dict, config: dict, resume: bool) -> Any:
    return nullcontext() if run_dir is None else RunDirectory(run_dir, identity, config, resume)


def _columns(task: Task, training: "_Training", evaluation: "_Evaluation | None") -> list[str]:
    """The numbers that an epoch logs, found without running anything."""
    names: list[str] = []
    for prefix, part in (("", training), ("val_", evaluation)):
        if part is not None:
            shapes = jax.eval_shape(functools.partial(_step.compute_metrics, task), part.empty)
            zeros = jax.tree.map(lambda x: np.zeros(x.shape), shapes)
            values = plain(_step.in_order(task, zeros), prefix)
            names += [name for name, x in values.items() if isinstance(x, float)]
    return names


def _with_last(batches: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    """Each batch, and whether it is the last one: known one batch ahead."""
    previous = next(batches, None)
    while previous is not None:
        following = next(batches, None)
        yield previous, following is None
        previous = following


class _Weighing:
    """Decides whether batches go with weights, from the loss and the data, before anything runs.

    With a loss of one value per example every batch has a weight, whole ones too, so that a padded tail is
    the same program. A scalar loss has none, so every batch must be whole.
    """

    def __init__(
        self, task: Task, state: TrainState, source: Any, first: tuple[Any, Any], train: bool, name: str
    ):
        self.name = name
        self.per_example = _step.is_per_example(task, state, first[0], train=train)
        if not self.per_example and source.has_tail:
            raise _scalar_tail(name)

    def __call__(self, weight: np.ndarray) -> np.ndarray | None:
        if self.per_example:
            return weight
        if not weight.all():
            raise _scalar_tail(self.name)
        return None


def _scalar_tail(name: str) -> DataError:
    return DataError(
        f"`{name}` does not divide into whole batches, and `loss_fn` returns a scalar, in which padding cannot be "
        f"told from examples: return one value per example (`fntrain.losses.mse(...)` without `.mean()`), choose a "
        f"`batch_size` that divides the data, or pass `data_loader(..., drop_last=True)`"
    )


def _on_mesh(metrics: StepMetrics, mesh: Any) -> StepMetrics:
    # Where a step will return them: accumulators that moved after the first step would compile it twice.
    return metrics if mesh is None else sharding.replicate(metrics, mesh)


class _Training:
    """Batches of the training data, on the device, and what steps on them report."""

    def __init__(self, task: Task, state: TrainState, source: Any):
        self.source = source
        self.mesh = data_lib.mesh_of(state)
        first = source.peek()
        self.weighing = _Weighing(task, state, source, first, True, "data")
        batch, weight = self.put(first)
        self.empty = _on_mesh(_step.empty_metrics(task, state, batch, weight, train=True), self.mesh)

    def put(self, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        batch, weight = pair
        return data_lib.place(batch, self.weighing(weight), self.mesh)

    def put_many(self, pairs: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        pairs = [(batch, self.weighing(weight)) for batch, weight in pairs]
        return data_lib.place_stacked(pairs, self.mesh)


class _Evaluation:
    """The metrics of a whole data set, accumulated on the device."""

    def __init__(self, task: Task, state: TrainState, data: Any, batch_size: int, *, name: str):
        self.task = task
        self.source = data_lib.as_source(data, batch_size, shuffle=False, seed=0, name=name)
        self.mesh = data_lib.mesh_of(state)
        first = self.source.peek()
        self.weighing = _Weighing(task, state, self.source, first, False, name)
        batch, weight = self.put(first)
        self.empty = _on_mesh(_step.empty_metrics(task, state, batch, weight, train=False), self.mesh)

    def put(self, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        return data_lib.place(pair[0], self.weighing(pair[1]), self.mesh)

    def __call__(self, state: TrainState) -> StepMetrics:
        metrics = _step.copied(self.empty)
        for pair in self.source.epoch(0):
            metrics = _step.eval_into(self.task, state, metrics, *self.put(pair))
        return metrics


@dataclasses.dataclass
class _Loop:
    """The run in progress: host-side counters here, everything else in `ctx.state` and `metrics`."""

    task: Task
    training: _Training
    evaluation: _Evaluation | None
    callbacks: CallbackList
    run: RunDirectory | None
    signals: Signals
    chunk: int
    log_every: int
    checkpoint_every: int | None
    metrics: StepMetrics
    position: Position
    ctx: LoopContext
    late: Any = None
    saved_step: int | None = None
    # What a resumed run has to start from while an epoch's last events are not over, as it calls them again.
    resume_point: tuple[TrainState, list] | None = None

    def run_all(self, steps: int | None) -> FitResult:
        """Epoch after epoch, until the total, a callback, or a signal ends it."""
        ctx, interrupted = self.ctx, False
        self.saved_step = ctx.step if self.run is not None and self.run.extra is not None else None
        try:
            self.callbacks.call("on_fit_begin", ctx)
            if self.run is not None and self.run.extra is not None:
                self.callbacks.restore(self.run.extra.get("callbacks", []))
            try:
                while not self._done(steps):
                    self._epoch(steps)
            except KeyboardInterrupt:
                interrupted = True
            interrupted |= self.signals.received == signal.SIGINT
            if self.run is not None and self.saved_step != ctx.step:
                self._save()
            self.callbacks.call("on_fit_end", ctx)
        except BaseException as error:
            self.callbacks.close(error)
            raise
        path = None if self.run is None else self.run.path
        return FitResult(ctx.state, ctx.history, interrupted, ctx.stop_reason, path)

    def _done(self, steps: int | None) -> bool:
        ctx = self.ctx
        if ctx.stop_reason is not None or self.signals.received is not None:
            return True
        return ctx.step >= steps if steps is not None else self.position.epoch >= (ctx.epochs or 0)

    def _epoch(self, steps: int | None) -> None:
        ctx = self.ctx
        ctx.epoch, ctx.epoch_step, ctx.logs = self.position.epoch + 1, self.position.index, {}
        if self.position.index == 0:
            self.metrics = _step.copied(self.training.empty)
        self.late = None
        self.callbacks.call("on_epoch_begin", ctx)
        if ctx.stop_reason is not None:
            return
        waiting: list[Any] = []
        whole = False
        before = ctx.step
        for pair, last in _with_last(self.training.source.epoch(*self.position)):
            waiting.append(pair)
            step = ctx.step + len(waiting)
            ends = steps is not None and step >= steps
            if not (last or ends or len(waiting) == self.chunk or self._edge(step)):
                continue
            self._dispatch(waiting)
            waiting = []
            whole = last
            if last or ends:
                break
            due = ctx.save_requested or bool(self.checkpoint_every and ctx.step % self.checkpoint_every == 0)
            if self.run is not None and due:
                self._save()
            if self.signals.received is not None or ctx.stop_reason is not None:
                return
        if ctx.step == before and self.position.index > 0:
            whole = True  # resumed right behind an epoch's last batch
        elif ctx.step == before:
            total = f"{steps} steps" if steps is not None else f"{ctx.epochs} epochs"
            raise DataError(
                f"`data` ended at step {ctx.step}, before the run's {total}: an iterable that can be read only once "
                f"ends for good; pass a list, a loader, or a function `epoch -> iterable`"
            )
        self._end_of_epoch(whole)

    def _edge(self, step: int) -> bool:
        """Whether something has to happen after this step that a chunk may not run over."""
        return step % self.log_every == 0 or bool(self.checkpoint_every and step % self.checkpoint_every == 0)

    def _dispatch(self, pairs: list[Any]) -> None:
        ctx = self.ctx
        if len(pairs) == self.chunk > 1:
            batches, weights = self.training.put_many(pairs)
            ctx.state, self.metrics = _step.train_many_into(
                self.task, ctx.state, self.metrics, batches, weights
            )
            self._advance(len(pairs), (batches, weights, True))
            return
        for pair in pairs:
            batch, weight = self.training.put(pair)
            ctx.state, self.metrics = _step.train_into(self.task, ctx.state, self.metrics, batch, weight)
            self._advance(1, (batch, weight, False))

    def _advance(self, n: int, batch: tuple[Any, Any, bool]) -> None:
        ctx = self.ctx
        # The position moves with the state, before anybody else runs: an interrupt finds the two in agreement.
        ctx.step += n
        ctx.epoch_step += n
        self.position = Position(self.position.epoch, ctx.epoch_step)
        ctx.last_batch = batch if self.callbacks.wants_batch else None
        self.callbacks.call("on_step_end", ctx)
        if ctx.step % self.log_every == 0 and self.callbacks.listens("on_log"):
            # One window late: what is fetched now was dispatched log_every steps ago, and is long finished.
            finished, self.late = self.late, (ctx.step, _step.compute_metrics(self.task, self.metrics))
            if finished is not None:
                ctx.logs = {"step": finished[0], **plain(_fetched(finished[1]))}
                self.callbacks.call("on_log", ctx)

    def _end_of_epoch(self, whole: bool) -> None:
        ctx = self.ctx
        values = _step.compute_metrics(self.task, self.metrics)
        validation = None
        if self.evaluation is not None:
            validation = _step.compute_metrics(self.task, self.evaluation(ctx.state))
        values = _fetched(values)  # the epoch's edge: the loop waits here
        validation = None if validation is None else _fetched(validation)
        row = {"epoch": ctx.epoch, "step": ctx.step, **plain(values)}
        if validation is not None:
            row.update(plain(validation, "val_"))
        ctx.logs = row
        self.resume_point = ctx.state, self.callbacks.state()
        if validation is not None:
            self.callbacks.call("on_validation_end", ctx)
        self.callbacks.call("on_epoch_end", ctx)
        done = History(ctx.history.rows())  # what a checkpoint knows: whole epochs
        ctx.history.append(ctx.logs)
        if self.run is not None:
            self.run.write(ctx.logs)
        if whole:
            self.position = Position(self.position.epoch + 1, 0)
            self.resume_point = None
            done = ctx.history
        due = self.checkpoint_every is None or ctx.step % self.checkpoint_every == 0 or ctx.save_requested
        if self.run is not None and (due or not whole):
            self._save(done)

    def _save(self, history: History | None = None) -> None:
        ctx = self.ctx
        done = ctx.history if history is None else history
        state, callbacks = self.resume_point or (ctx.state, self.callbacks.state())
        self.run.save(state, ctx.step, self.metrics, self.position, done, callbacks)  # type: ignore[union-attr]
        self.saved_step = ctx.step
        ctx.save_requested = False
