"""fit: the loop, which never waits for the device between log boundaries."""

import dataclasses
import functools
import signal
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Literal

import jax
import numpy as np

from .. import tree
from .._core import check
from .._core.errors import ConfigError, DataError
from ..data import feed as feed_lib, source as data_lib
from ..data.feed import Feed, Piece
from ..data.position import Position
from ..data.prefetch import Prefetcher
from ..show.progress import ProgressBar
from ..show.summary import summary
from ..step import step as engine
from ..step.packed import Packed, on_host
from ..step.provenance import BadStep
from ..step.state import TrainState, check_state
from ..step.task import Task
from . import dispatch as chunks
from .directory import RunDirectory
from .epoch import fetched
from .events import CallbackList, LoopContext
from .history import History, plain, plain_rows
from .rescue import Rescue, gone_back
from .signals import Signals


@dataclasses.dataclass
class FitResult:
    """What `fit` returns; `state, history = fit(...)` takes it apart.

    Attributes:
      state: the TrainState after the last step.
      history: one row an epoch.
      interrupted: True if an interrupt ended the run early.
      stop_reason: why a callback ended it early, or that there was nothing left to do, or None.
      run_dir: the run directory, or None.
      steps_per_call: how many steps a dispatch took, given or chosen.
      data_seconds: how long the loop waited for batches in all.
      checkpoints: the steps that are on disk in `run_dir`, all of them whole.
      bad_step: the first step that was found to be not finite, or None.
      capsule: the directory that keeps that step for `tools.replay`, or None.
    """

    state: TrainState = dataclasses.field(repr=False)
    history: History
    interrupted: bool = False
    stop_reason: str | None = None
    run_dir: Any = None
    steps_per_call: int = 1
    data_seconds: float = 0.0
    checkpoints: list[int] = dataclasses.field(default_factory=list)
    bad_step: BadStep | None = None
    capsule: Any = None

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
    validation_every: int | None = None,
    callbacks: Iterable[Any] = (),
    run_dir: Any = None,
    checkpoint_every: int | None = None,
    resume: bool | Literal["must"] = False,
    steps_per_call: int | Literal["auto"] = "auto",
    log_every: int = 100,
    max_time: float | None = None,
    prefetch: int = 0,
    progress: bool = True,
    verbose: bool = False,
) -> FitResult:
    """Train for a number of epochs or steps.

    Args:
      task: the Task.
      state: the TrainState to start from; it stays usable.
      data: a data set of arrays (an array, or a tuple, dict or any tree of them), or batches: a list, a
        generator, a loader, a Grain dataset, or a function `epoch -> iterable`.
      epochs: epochs in all, also when resuming; 10 if neither this nor `steps` is given.
      steps: batches in all, instead.
      batch_size: rows of a batch, where `data` is arrays.
      shuffle: a new order each epoch, where `data` is arrays.
      seed: of the order.
      validation_data: as `data`; evaluated at the end of each epoch, in order, into `val_…` columns.
      validation_every: steps between validations besides those at an epoch's end; `on_validation_end` sees them.
      callbacks: functions of the epoch's logs, or objects with methods named as `callbacks.EVENTS`.
      run_dir: a directory for config, metrics and checkpoints. In use already is an error, unless `resume`.
      checkpoint_every: steps between checkpoints; None saves at each epoch's end. The last step is always saved.
      resume: go on from the last checkpoint in `run_dir`, if there is one, as if the run had never stopped;
        `"must"`: it is an error if there is none.
      steps_per_call: how many steps one dispatch runs (`train_steps`). `"auto"` measures on the first batches of
        array data whether several are faster than one, and takes them if they also give the same bits; a resumed
        run goes on with the number it had. A dispatch never runs over a validation or a checkpoint; the metrics
        of a log in the midst of it are computed there.
      log_every: steps between fetches of running metrics (for `on_log` and the progress bar).
      max_time: seconds after which the run ends, at the edge of a step, and is saved.
      prefetch: batches made ahead in a thread of their own, for data that is slow to read; 0 makes each when it is
        due, while the device still works on the one before. A generator loses what was read ahead of a run's end.
      progress: show progress: a live bar on a terminal, a line an epoch elsewhere.
      verbose: say first what the run is about to do: devices, memory, what of the optimizer is effective, steps.

    Returns:
      A FitResult, `(state, history, …)`.

    Raises:
      ConfigError: if arguments contradict each other, `run_dir` is in use, or a resume meets another task, data
        set, batch size or seed.
      DataError: if data is empty, batches differ in form, an iterable ends before the run does, or a scalar
        loss meets a padded tail.
      RunLockedError: if another process is training in `run_dir`.
      CheckpointError: if there is nothing to resume with `resume="must"`, every checkpoint is damaged, or two saves
        in a row failed (of one, a warning tells, and the current step is saved in its place).
      SystemExit: with status 143 after SIGTERM, once the state is saved. A second signal ends the process at once.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b[0] * p["w"], b[1]), ft.optimizers.sgd(0.1))
      >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
      >>> state = ft.init_state(task, {"w": np.float32(0)})
      >>> state, history = ft.fit(task, state, (x, 3 * x), epochs=20, batch_size=16, progress=False)
      >>> round(float(state.params["w"]), 3), len(history["loss"])
      (2.99, 20)
    """
    engine.check_task(task)
    check_state(state, "fit")
    if epochs is not None and steps is not None:
        raise ConfigError(f"give `epochs` or `steps`, not both (got epochs={epochs}, steps={steps})")
    if epochs is None and steps is None:
        epochs = 10
    for name, value in (
        ("epochs", epochs),
        ("steps", steps),
        ("checkpoint_every", checkpoint_every),
        ("validation_every", validation_every),
    ):
        if value is not None:
            check.integer(name, value, at_least=1)
    if max_time is not None:
        check.number("max_time", max_time, above=0)
    if jax.process_count() > 1:
        _check_for_several(state, max_time)
    prefetch = check.integer("prefetch", prefetch, at_least=0)
    batch_size = check.integer("batch_size", batch_size, at_least=1)
    log_every = check.integer("log_every", log_every, at_least=1)
    chunk = None if steps_per_call == "auto" else check.integer("steps_per_call", steps_per_call, at_least=1)
    if validation_every is not None and validation_data is None:
        raise ConfigError("`validation_every` needs `validation_data`")
    if run_dir is None and (resume or checkpoint_every is not None):
        raise ConfigError("`resume` and `checkpoint_every` need a `run_dir`")
    if callable(callbacks) or not isinstance(callbacks, Iterable):
        raise ConfigError(
            f"`callbacks` must be a list, got {callbacks!r}; write `callbacks=[...]`, also for one"
        )
    listeners = CallbackList(callbacks)
    columns_known = not listeners.adds_logs
    if progress:
        listeners = CallbackList([listeners, ProgressBar() if jax.process_index() == 0 else _Unseen()])

    # From the set-up on: an exception raised in the middle of a compilation can take the interpreter down.
    with Signals() as signals:
        source = data_lib.as_source(data, batch_size, shuffle=shuffle, seed=seed)
        evaluation = None
        if validation_data is not None:
            name = "validation_data"
            held_out = data_lib.as_source(validation_data, batch_size, shuffle=False, seed=0, name=name)
            evaluation = Feed(task, state, held_out, train=False, name=name)
        given, state = state, engine.copied(state)
        training = Feed(task, state, source, train=True, name="data")
        if isinstance(source, data_lib.Arrays):
            batch_size = source.loader.batch_size
        rows = training.rows

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
            if run is not None:
                run.check(state)
            if run is not None and run.extra is not None:
                state, accumulators, position, history = run.restore(state, engine.opened(metrics))
                metrics = engine.closed(accumulators)
            total = steps if steps is not None or source.length is None else epochs * source.length  # type: ignore[operator]
            edges = [every for every in (checkpoint_every, validation_every) if every is not None]
            if chunk is None and run is not None and run.extra is not None:
                chunk = run.extra.get("steps_per_call")  # a resumed run cuts the chunks that it cut before
            if chunk is None:
                left = None if total is None else total - int(state.step)
                span = min([source.length or 1, *edges])
                logged = log_every if listeners.listens("on_log") else 0
                chunk = chunks.choose(task, state, training, left, span, logged)
            if run is not None:
                run.note(steps_per_call=chunk)
                if run.extra is not None:
                    _resume_data(source, run.extra.get("data_state"), position)
            if verbose and jax.process_index() == 0:
                per_epoch = source.length
                print(
                    summary(
                        task,
                        state,
                        batch_size=rows,
                        steps_per_epoch=per_epoch,
                        epochs=epochs,
                        steps=steps,
                        steps_per_call=chunk,
                    )
                )
            resumed = run is not None and run.extra is not None
            rescue = Rescue(task, training, run, None if run is None or resumed else given, position)
            loop = _Loop(
                task=task,
                rescue=rescue,
                training=training,
                evaluation=evaluation,
                callbacks=listeners,
                run=run,
                signals=signals,
                chunk=chunk,
                edges=edges,
                total_steps=steps,
                log_every=log_every,
                checkpoint_every=checkpoint_every,
                validation_every=validation_every,
                max_time=max_time,
                prefetch=prefetch,
                metrics=metrics,
                position=position,
                ctx=LoopContext(
                    task=task,
                    state=state,
                    epoch=position.epoch + 1,
                    epochs=epochs,
                    step=int(state.step),
                    steps=total,
                    steps_per_epoch=source.length,
                    epoch_step=position.index,
                    batch_size=rows,
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
            result = loop.run_all()
    if signals.received == signal.SIGTERM:
        raise SystemExit(143)
    return result


def _check_for_several(state: TrainState, max_time: float | None) -> None:
    """Refuse what several processes would do each for itself."""
    if max_time is not None:
        raise ConfigError(
            "`max_time` goes by one process's clock, and several would stop at different steps: have SIGTERM sent to "
            "one of them instead (Slurm: `--signal=TERM@120`)"
        )
    if all(x.is_fully_addressable for x in jax.tree.leaves(state)):
        raise ConfigError(
            f"`state` is on devices of this process alone, so each of the {jax.process_count()} processes would train "
            f"by itself: `init_state(..., mesh=fntrain.sharding.mesh(data=-1))` makes one that spans them"
        )


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


def _directory(run_dir: Any, identity: dict, config: dict, resume: bool | Literal["must"]) -> Any:
    return nullcontext() if run_dir is None else RunDirectory(run_dir, identity, config, resume)


def _resume_data(source: Any, saved: Any, position: Position) -> None:
    if hasattr(source, "restore"):
        source.restore(saved or {})
    elif isinstance(source, data_lib.Stream) and position.index > 0:
        warnings.warn(
            f"`data` is a plain iterable: to resume, the {position.index} batches of epoch {position.epoch + 1} that "
            f"were trained on are read again and dropped; a data set of arrays or of Grain goes on at once",
            RuntimeWarning,
            stacklevel=3,
        )


def _columns(task: Task, training: Feed, evaluation: Feed | None) -> list[str]:
    """The numbers that an epoch logs, found without running anything."""
    names: list[str] = []
    for prefix, part in (("", training), ("val_", evaluation)):
        if part is not None:
            shapes = jax.eval_shape(functools.partial(engine.compute_metrics, task), part.empty)
            zeros = jax.tree.map(lambda x: np.zeros(x.shape), shapes)
            values = plain(engine.in_order(task, zeros), prefix)
            names += [name for name, x in values.items() if isinstance(x, float)]
    return names


class _Unseen:
    """The progress bar of the other processes: who listens decides where dispatches end, the same everywhere."""

    adds_logs = False

    def on_log(self, ctx: LoopContext) -> None:
        """Show nothing."""


@dataclasses.dataclass
class _Loop:
    """The run in progress: host-side counters here, everything else in `ctx.state` and `metrics`."""

    task: Task
    rescue: Rescue
    training: Feed
    evaluation: Feed | None
    callbacks: CallbackList
    run: RunDirectory | None
    signals: Signals
    chunk: int
    edges: list[int]  # a dispatch does not run over a multiple of these
    total_steps: int | None
    log_every: int
    checkpoint_every: int | None
    validation_every: int | None
    max_time: float | None
    prefetch: int
    metrics: Packed
    position: Position
    ctx: LoopContext
    late: Any = None
    saved_step: int | None = None
    deadline: float | None = None
    logs: bool = False  # whether anybody listens to on_log
    # What a resumed run has to start from while an epoch's last events are not over, as it calls them again.
    resume_point: tuple[TrainState, list] | None = None

    def run_all(self) -> FitResult:
        """Epoch after epoch, until the total, a callback, the time or a signal ends it."""
        ctx, interrupted = self.ctx, False
        self.logs = self.callbacks.listens("on_log")
        self.deadline = None if self.max_time is None else time.monotonic() + self.max_time
        self.saved_step = ctx.step if self.run is not None and self.run.extra is not None else None
        try:
            self.callbacks.call("on_fit_begin", ctx)
            if self.run is not None and self.run.extra is not None:
                self.callbacks.restore(self.run.extra.get("callbacks", []))
            if ctx.resumed and self._done() and self.signals.received is None:
                ctx.stop(f"{self.run.path} holds the whole run, up to step {ctx.step}")  # type: ignore[union-attr]
            try:
                while not self._done():
                    self._epoch()
            except KeyboardInterrupt:
                interrupted = True
            interrupted |= self.signals.received == signal.SIGINT
            while self.run is not None and (self.saved_step != ctx.step or self.run.failed(wait=True)):
                self._save()
            if ctx.bad_steps:
                self.rescue.keep(ctx.state, ctx.step - 1)
            self.callbacks.call("on_fit_end", ctx)
        except BaseException as error:
            self.callbacks.close(error)
            raise
        path = None if self.run is None else self.run.path
        saved = [] if self.run is None else self.run.checkpoints()
        return FitResult(
            ctx.state,
            ctx.history,
            interrupted,
            ctx.stop_reason,
            path,
            self.chunk,
            ctx.data_seconds or 0.0,
            saved,
            self.rescue.found,
            self.rescue.capsule,
        )

    def _done(self) -> bool:
        if self._stopped():
            return True
        if self.total_steps is not None:
            return self.ctx.step >= self.total_steps
        return self.position.epoch >= (self.ctx.epochs or 0)

    def _stopped(self) -> bool:
        """Whether something else than the total ends the run here."""
        ctx = self.ctx
        if self.deadline is not None and ctx.stop_reason is None and time.monotonic() >= self.deadline:
            ctx.stop(f"`max_time` of {self.max_time:g} s is over")
        return ctx.stop_reason is not None or self.signals.received is not None

    def _interrupted(self) -> bool:
        return self.signals.received is not None

    def _epoch(self) -> None:
        ctx = self.ctx
        ctx.epoch, ctx.epoch_step, ctx.logs = self.position.epoch + 1, self.position.index, {}
        if self.position.index == 0:
            self.metrics = engine.copied(self.training.empty)
            self.rescue.skipped = 0.0
        self.late = None
        self.callbacks.call("on_epoch_begin", ctx)
        if ctx.stop_reason is not None:
            return
        whole, before = True, ctx.step
        for piece in self._pieces():
            self._dispatch(piece)
            self.signals.poll()
            whole = piece.last
            if whole or ctx.step == self.total_steps:
                break
            if self.validation_every and ctx.step % self.validation_every == 0:
                self._validate()
            due = ctx.save_requested or bool(self.checkpoint_every and ctx.step % self.checkpoint_every == 0)
            if self.run is not None and (due or self.run.failed()):
                self._save()
            if self._stopped():
                return
            whole = True  # if there is no more, this was an epoch
        # A run that was resumed right behind an epoch's last batch finds none, and ends the epoch.
        if ctx.step == before and self.position.index == 0:
            total = f"{ctx.epochs} epochs" if self.total_steps is None else f"{self.total_steps} steps"
            raise DataError(
                f"`data` ended at step {ctx.step}, before the run's {total}: an iterable that can be read only once "
                f"ends for good; pass a list, a loader, or a function `epoch -> iterable`"
            )
        self._end_of_epoch(whole)

    def _pieces(self) -> Iterator[Piece]:
        """The epoch's pieces from the position on, made ahead if that was asked for."""
        start = self.ctx.step
        pieces = self.training.pieces(self.position, lambda done: self._room(start + done))
        if self.prefetch:
            pieces = Prefetcher(pieces, feed_lib.on_device, self.prefetch)
        try:
            while True:
                began = time.perf_counter()
                piece = next(pieces, None)
                self.ctx.data_seconds = (self.ctx.data_seconds or 0.0) + time.perf_counter() - began
                if piece is None:
                    return
                yield piece
        finally:
            if isinstance(pieces, Prefetcher):
                pieces.close()

    def _room(self, step: int) -> int:
        """How many steps the next dispatch may take after this one; 0 where the run ends."""
        room = min((every - step % every for every in self.edges), default=self.chunk)
        if self.total_steps is not None:
            room = min(room, self.total_steps - step)
        return self.chunk if room >= self.chunk else min(1, room)

    def _dispatch(self, piece: Piece) -> None:
        ctx = self.ctx
        ctx.state, self.metrics, values = feed_lib.train(
            self.task, ctx.state, self.metrics, piece, self.log_every if self.logs else 0
        )
        # The position moves with the state, before anybody else runs: an interrupt finds the two in agreement.
        ctx.step += piece.steps
        ctx.epoch_step += piece.steps
        self.position = Position(self.position.epoch, ctx.epoch_step)
        ctx.last_batch = (piece.batch, piece.weight, piece.stacked) if self.callbacks.wants_batch else None
        self.callbacks.call("on_step_end", ctx)
        if self.logs:
            first = ctx.step - piece.steps + 1 if values is not None else ctx.step
            due = [step for step in range(first, ctx.step + 1) if step % self.log_every == 0]
            if due:
                # One window late: what is fetched now was dispatched before what has just been, and is finished.
                late, self.late = (
                    self.late,
                    (first, due, values or engine.computed(self.task, self.metrics)),
                )
                self._log(late)

    def _log(self, late: Any) -> None:
        """Fetch what was computed for the logs of some steps, and call those who listen, step by step."""
        if late is None:
            return
        first, due, values = late
        rows = plain_rows(engine.in_order(self.task, on_host(values)))
        for step in due:
            self.ctx.logs = {"step": step, **rows[step - first]}
            self.rescue.watch(self.ctx.logs, self.ctx.state, step - 1)
            self.callbacks.call("on_log", self.ctx)
            self._roll_back_if_due()

    def _roll_back_if_due(self) -> None:
        """Go on from the last good state, at this step and with the data behind it, if a callback said so."""
        ctx = self.ctx
        if ctx.rollback_reason is None:
            return
        reason, ctx.rollback_reason = ctx.rollback_reason, None
        self.rescue.keep(ctx.state, ctx.step - 1)
        good = self.rescue.good(ctx.state)
        if good is None:
            ctx.stop(f"{reason}; there is no good state to go back to")
            return
        ctx.state = gone_back(good, ctx.state)
        self.metrics, self.late, self.rescue.skipped = engine.copied(self.training.empty), None, 0.0
        ctx.save_requested = True  # so that a resume goes on from here

    def _validate(self) -> None:
        """A validation in the middle of an epoch: the loop waits for it."""
        ctx, evaluation = self.ctx, self.evaluation
        assert evaluation is not None
        metrics = feed_lib.evaluated(evaluation, ctx.state, self._interrupted)
        if self._interrupted():
            return
        values = fetched(engine.compute_metrics(self.task, metrics))
        ctx.logs = {"epoch": ctx.epoch, "step": ctx.step, **plain(values, "val_")}
        self.callbacks.call("on_validation_end", ctx)

    def _end_of_epoch(self, whole: bool) -> None:
        ctx = self.ctx
        values = engine.compute_metrics(self.task, self.metrics)
        validation = None
        if self.evaluation is not None:
            metrics = feed_lib.evaluated(self.evaluation, ctx.state, self._interrupted)
            if self._interrupted():
                return  # an epoch without its validation has not ended; a resumed run does that first
            validation = engine.compute_metrics(self.task, metrics)
        values = fetched(values)  # the epoch's edge: the loop waits here
        late, self.late = self.late, None
        self._log(late)
        validation = None if validation is None else fetched(validation)
        row = {"epoch": ctx.epoch, "step": ctx.step, **plain(values)}
        if validation is not None:
            row.update(plain(validation, "val_"))
        ctx.logs = row
        self.rescue.watch(row, ctx.state, ctx.step - 1)
        if ctx.last_batch is not None:
            ctx.last_batch = feed_lib.put(ctx.last_batch)
        self.resume_point = ctx.state, self.callbacks.state()
        if validation is not None:
            self.callbacks.call("on_validation_end", ctx)
        self.callbacks.call("on_epoch_end", ctx)
        self._roll_back_if_due()
        done = History(ctx.history.rows())  # what a checkpoint knows: whole epochs
        ctx.history.append(ctx.logs)
        if self.run is not None:
            self.run.write(ctx.logs)
        if whole:
            self.position = Position(self.position.epoch + 1, 0)
            self.resume_point = None
            done = ctx.history
        due = self.checkpoint_every is None or ctx.step % self.checkpoint_every == 0 or ctx.save_requested
        if self.run is not None and (due or not whole or self.run.failed()):
            self._save(done)

    def _save(self, history: History | None = None) -> None:
        ctx = self.ctx
        done = ctx.history if history is None else history
        state, callbacks = self.resume_point or (ctx.state, self.callbacks.state())
        accumulators = engine.opened(self.metrics)
        source = self.training.source
        data_state = source.state(self.position) if hasattr(source, "state") else None
        self.run.save(state, ctx.step, accumulators, self.position, done, callbacks, data_state)  # type: ignore[union-attr]
        self.saved_step = ctx.step
        ctx.save_requested = False
