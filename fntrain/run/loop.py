"""The loop: epochs, steps, and what happens between them, in this order.

A run: `on_fit_begin`; epochs; the last save; `on_fit_end`. An epoch: `on_epoch_begin`; its dispatches; validation;
`on_validation_end`, `on_epoch_end`; its row into the history and the files; a save, if one is due. A dispatch: its
steps, sent and not waited for; `on_step_end`; at a log boundary the values of the one before, `on_log`; a validation
inside the epoch, if one is due: `on_validation_end`, and its row into the history and the files; a save likewise.

An epoch that the run is stopped in has no validation and no `on_epoch_end`, and a row in the history and the files
that says so. A run that goes on from there drops that row, and has the epoch's own in the end.

Nothing in it waits for the device but an epoch's end, a validation, a save, and, at a log boundary, values of a step
that is finished already. Where the run stands on the host is in `ctx` alone.
"""

import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax

from .._core.errors import CheckpointError, DataError
from ..data import feed as feed_lib
from ..data.feed import Feed, Piece
from ..data.position import Position
from ..data.prefetch import Prefetcher
from ..data.resident import Resident
from ..step import members, programs
from ..step.packed import Packed, on_host
from ..step.state import TrainState
from .best import BestState
from .context import LoopContext
from .directory import RunDirectory
from .epoch import fetched, updates_of
from .events import CallbackList
from .forms import Forms
from .goodput import CALLBACKS, CHECKPOINT, COMPILE, DATA, STEP, VALIDATION, Meter
from .history import UNFINISHED, History, plain, plain_rows
from .options import Options
from .rescue import Rescue, gone_back, has_finite_params
from .signals import Interrupted, Signals
from .throughput import Mark, Speed
from .validation import Validation, measured


@dataclasses.dataclass
class Loop:
    """The run in progress."""

    options: Options
    training: Feed
    validation: Validation | None
    callbacks: CallbackList
    run: RunDirectory | None
    signals: Signals
    rescue: Rescue
    chunk: int  # how many steps a dispatch takes, where it can
    metrics: Packed  # of the epoch so far, on the device
    ctx: LoopContext
    speed: Speed
    meter: Meter
    forms: Forms
    over: bool = False  # whether the epoch that `ctx` speaks of has ended
    late: Any = None  # what the next log boundary will read
    saved_step: int | None = None
    deadline: float | None = None
    save_due: float | None = None  # when the next save is, by the clock, if saves are due by time
    best: BestState | None = None
    logs: bool = False  # whether anybody listens to on_log
    resident: Resident | None = None  # the training data on the device, if it is there
    window: Mark | None = (
        None  # from where the next log's throughput counts: the log before, if nothing came between
    )
    began: Mark | None = None  # and the epoch's
    # What a resumed run has to start from while an epoch's last events are not over, as it calls them again.
    resume_point: tuple[TrainState, list[Any]] | None = None

    def run_all(self) -> bool:
        """Epoch after epoch, until the total, a callback, the time or a signal ends it; whether it was interrupted."""
        ctx, interrupted = self.ctx, False
        self.logs = self.callbacks.listens("on_log")
        limit = self.options.max_time
        self.deadline = None if limit is None else time.monotonic() + limit
        self.saved_step = ctx.step if ctx.resumed else None
        self._next_save()
        try:
            self._call("on_fit_begin")
            if self.run is not None and self.run.extra is not None:
                others = "callbacks" in self.options.override
                self.run.note_changes(self.callbacks.restore(self.run.extra.get("callbacks", []), others))
            if self.run is not None and not ctx.resumed and self.callbacks.rolls_back:
                self._save()  # so that there is something to go back to
            if ctx.resumed and self._done() and self.signals.received is None:
                ctx.stop(f"{ctx.run_dir} holds the whole run, up to step {ctx.step}")
            try:
                while not self._done():
                    self._epoch()
            except Interrupted:
                pass  # `signals.received` says it
            except KeyboardInterrupt:
                interrupted = True
            except BaseException as error:
                self._keep(error)
                raise
            interrupted |= self.signals.received == signal.SIGINT
            while self.run is not None and (self.saved_step != ctx.step or self.run.failed(wait=True)):
                self._save()
            if ctx.bad_steps:
                self.rescue.keep(ctx.state, ctx.step - 1)
            self._note_unfinished()
            ctx.diverged = self._has_diverged()
            ctx.status = self._status(interrupted)
            self._end(ctx.status)
            self._call("on_fit_end")
        except BaseException as error:
            self._failed(error)
            raise
        return interrupted

    def _call(self, event: str) -> None:
        """Call those who listen to an event, on their time."""
        was = self.meter.to(CALLBACKS)
        self.ctx.compile_seconds = self.meter.cells[COMPILE]
        self.callbacks.call(event, self.ctx)
        self.meter.to(was)

    @property
    def position(self) -> Position:
        """The next batch."""
        return Position(self.ctx.epoch, 0) if self.over else self.ctx.position

    def _done(self) -> bool:
        if self._stopped():
            return True
        if self.options.steps is not None:
            return self.ctx.step >= self.options.steps
        return self.position.epoch >= (self.ctx.epochs or 0)

    def _stopped(self) -> bool:
        """Whether something else than the total ends the run here."""
        ctx = self.ctx
        if self.deadline is not None and ctx.stop_reason is None and time.monotonic() >= self.deadline:
            ctx.stop(f"`max_time` of {self.options.max_time:g} s is over")
        return ctx.stop_reason is not None or self.signals.received is not None

    def _has_diverged(self) -> bool:
        history = self.ctx.history
        last = history.last.get("loss")
        if last is None or math.isfinite(last):
            return False
        return history.best("loss", "min") is None or not has_finite_params(self.ctx.state)

    def _status(self, interrupted: bool) -> str:
        """How the run ended, in a word."""
        if self.ctx.diverged:
            return "diverged"
        if interrupted or self._interrupted():
            return "interrupted"
        return "done" if self.ctx.stop_reason is None else "stopped"

    def _end(self, status: str, error: BaseException | None = None) -> None:
        """Write down how this part of the run ended."""
        if self.run is not None:
            self.run.parts.end(status, error, self.signals.received, self.ctx.stop_reason, self.forms.found)
            self.run.note(status=status, parts=self.run.parts.all)

    def _failed(self, error: BaseException) -> None:
        """End after an error as after an interrupt, as far as that goes; what matters is the error."""
        try:
            self._note_unfinished()
            self._end("failed", error)
        except Exception as failure:
            error.add_note(f"besides, the run's end could not be written down: {failure}")
        self.callbacks.close(error)

    def _interrupted(self) -> bool:
        return self.signals.received is not None

    def _epoch(self) -> None:
        ctx, options = self.ctx, self.options
        if self.over:
            ctx.epoch, ctx.epoch_step, self.over = ctx.epoch + 1, 0, False
        ctx.logs = {}
        ctx.steps_per_epoch = self.training.batches(ctx.epoch - 1)
        if ctx.epoch_step == 0:
            self.metrics = programs.started(self.training.empty, self.ctx.state)
            self.rescue.skipped = 0.0
        self.late = self.window = None
        # The first dispatch of all may compile: then the epoch's throughput counts from behind it.
        self.began = self.speed.mark(ctx.step) if ctx.step > ctx.resumed_step else None
        self._call("on_epoch_begin")
        if ctx.stop_reason is not None:
            return
        if self._owes_validation():
            self._validate()
            if ctx.save_requested and self.run is not None:
                self._save()
            if self._stopped():
                return
        whole, before = True, ctx.step
        for piece in self._pieces():
            self._dispatch(piece)
            self.signals.poll()
            whole = piece.last
            if whole or ctx.step == options.steps:
                break
            if options.validation_every and ctx.step % options.validation_every == 0:
                self._validate()
            if self.run is not None and (self._save_is_due() or self.run.failed()):
                self._save()
            if self._stopped():
                return
            whole = True  # if there is no more, this was an epoch
        # A run that was resumed right behind an epoch's last batch finds none, and ends the epoch.
        if ctx.step == before and ctx.epoch_step == 0:
            total = f"{ctx.epochs} epochs" if options.steps is None else f"{options.steps} steps"
            raise DataError(
                f"`data` ended at step {ctx.step}, before the run's {total}: an iterable that can be read only once "
                f"ends for good; pass a list, a loader, or a function `epoch -> iterable`"
            )
        self._end_of_epoch(whole)

    def _save_is_due(self) -> bool:
        """Whether a checkpoint is due at this step."""
        every = self.options.saving
        if self.save_due is not None:
            return self.ctx.save_requested or time.monotonic() >= self.save_due
        return self.ctx.save_requested or bool(every and self.ctx.step % every == 0)

    def _next_save(self) -> None:
        """Where saves are due by time, when the next one is."""
        if isinstance(self.options.saving, float):
            self.save_due = time.monotonic() + self.options.saving

    def _owes_validation(self) -> bool:
        """Whether a run that was to end at this step, inside an epoch, goes on from where a validation was due."""
        ctx, every = self.ctx, self.options.validation_every
        if every is None or not ctx.resumed or ctx.step != ctx.resumed_step:
            return False
        inside = ctx.epoch_step not in (0, ctx.steps_per_epoch)
        return inside and ctx.step % every == 0 and ctx.history.last.get("step") != ctx.step

    def _pieces(self) -> Iterator[Piece]:
        """The epoch's pieces from the position on, made ahead if that was asked for."""
        start = self.ctx.step
        pieces = (self.resident or self.training).pieces(
            self.ctx.position, lambda done: self._room(start + done)
        )
        ahead = self.training.ahead if self.options.prefetch is None else self.options.prefetch
        if ahead and self.resident is None:
            pieces = Prefetcher(pieces, feed_lib.on_device, ahead)
        try:
            while True:
                self.meter.to(DATA)
                if isinstance(pieces, Prefetcher):
                    with self.signals.waiting:
                        piece = next(pieces, None)
                else:  # it makes the batch, and says itself where it waits
                    piece = next(pieces, None)
                self.meter.to(STEP)
                self.ctx.data_seconds = self.meter.cells[DATA]
                if piece is None:
                    return
                yield piece
        finally:
            if isinstance(pieces, Prefetcher):
                pieces.close(wait=not self._interrupted())

    def _room(self, step: int) -> int:
        """How many steps the next dispatch may take after this one; 0 where the run ends."""
        room = min((every - step % every for every in self.options.edges), default=self.chunk)
        if self.options.steps is not None:
            room = min(room, self.options.steps - step)
        return self.chunk if room >= self.chunk else min(1, room)

    def _dispatch(self, piece: Piece) -> None:
        ctx, log_every = self.ctx, self.options.log_every
        before, compiled = (ctx.state, self.metrics), self.meter.compiles
        ctx.state, self.metrics, values = feed_lib.train(
            ctx.task, ctx.state, self.metrics, piece, log_every if self.logs else 0
        )
        # The counts move with the state, before anybody else runs: an interrupt finds them in agreement.
        ctx.step += piece.steps
        ctx.epoch_step += piece.steps
        ctx.batch_size = piece.rows
        self.began = self.began or self.speed.mark(ctx.step)
        self.meter.cells[-1] = ctx.step
        if piece not in self.forms or self.meter.compiles != compiled:
            self.forms.compiled(*before, piece, ctx.step)
        ctx.last_batch = None
        if self.callbacks.wants_batch:
            seen = piece if self.resident is None else self.resident.opened(piece)
            ctx.last_batch = seen.batch, seen.weight, seen.stacked
        if self.callbacks.listens("on_step_end"):
            self._call("on_step_end")
        if self.logs:
            first = ctx.step - piece.steps + 1 if values is not None else ctx.step
            due = [step for step in range(first, ctx.step + 1) if step % log_every == 0]
            if due:
                # One window late: what is fetched now was dispatched before what has just been, and is finished.
                late, self.late = self.late, (due, values or programs.computed(ctx.task, self.metrics))
                self._log(late)

    def _log(self, late: Any) -> None:
        """Fetch what was computed for the logs of some steps, and call those who listen, step by step."""
        if late is None:
            return
        due, values = late
        rows = plain_rows(programs.in_order(self.ctx.task, on_host(values)))
        self.ctx.throughput = self.speed.since(self.window, due[-1])
        self.window = self.speed.mark(due[-1])
        for step, row in zip(due, rows):
            self.ctx.logs = {"step": step, **row}
            self.rescue.watch(self.ctx.logs, self.ctx.state, step - 1)
            self._call("on_log")
            self._roll_back_if_due()

    def _roll_back_if_due(self) -> bool:
        """Go on from the last good state, at this step and with the data behind it, if a callback said so."""
        ctx = self.ctx
        if ctx.rollback_reason is None:
            return False
        reason, ctx.rollback_reason = ctx.rollback_reason, None
        self.rescue.keep(ctx.state, ctx.step - 1)
        good = self.rescue.good(ctx.state)
        if good is None:
            ctx.stop(f"{reason}; there is no good state to go back to")
            return False
        ctx.state = gone_back(good, ctx.state)
        self.metrics, self.late, self.rescue.skipped = (
            programs.started(self.training.empty, self.ctx.state),
            None,
            0.0,
        )
        ctx.save_requested = True  # so that a resume goes on from here
        return True

    def _validate(self) -> None:
        """A validation in the middle of an epoch: the loop waits for it."""
        ctx = self.ctx
        assert self.validation is not None
        with self.meter.during(VALIDATION, after=ctx.state):
            started = self.validation.started(ctx.task, ctx.state, self._interrupted)
            if started is None:
                return
            columns, self.window = measured(started), None
        ctx.logs, ctx.validated = {**self._row_inside(), **columns}, frozenset(columns)
        before = members.count(ctx.state)
        self._call("on_validation_end")
        seen = self.best is not None and self.best.watched.column in columns
        ctx.validated = frozenset()
        self._regroup(before)
        self._measured(seen)

    def _regroup(self, before: int | None) -> None:
        """Begin to accumulate anew, if a callback has let members of a population go."""
        if members.count(self.ctx.state) != before:
            self.metrics = programs.started(self.training.empty, self.ctx.state)

    def _row_inside(self) -> dict[str, Any]:
        """A row of the epoch so far."""
        ctx = self.ctx
        return {**self._head(), UNFINISHED: True, **plain(fetched(programs.reported(ctx.task, self.metrics)))}

    def _head(self) -> dict[str, Any]:
        """What a row begins with; the loop waits here."""
        ctx = self.ctx
        return {"epoch": ctx.epoch, "step": ctx.step, "updates": updates_of(ctx.state)}

    def _measured(self, ranked: bool) -> None:
        """A row is whole: go back or keep the best, if that is due, and write it."""
        gone_back = self._roll_back_if_due()
        if ranked and not gone_back and self.best is not None:
            self.best.look(self.ctx)
        self._record()

    def _record(self) -> None:
        """The logs as a row of the history and of the files."""
        self.ctx.history.append(self.ctx.logs)
        if self.run is not None:
            with self.meter.during(CHECKPOINT):
                self.run.write(self.ctx.logs)

    def _note_unfinished(self) -> None:
        """If the run has stopped inside an epoch, a row that says so, which the last save before it does not know."""
        ctx = self.ctx
        if not self.over and ctx.epoch_step > 0 and ctx.history.last.get("step") != ctx.step:
            ctx.logs = self._row_inside()
            self._record()

    def _end_of_epoch(self, whole: bool) -> None:
        ctx = self.ctx
        values = programs.reported(ctx.task, self.metrics)
        validation = None
        if self.validation is not None:
            with self.meter.during(VALIDATION, after=ctx.state):
                validation = self.validation.started(ctx.task, ctx.state, self._interrupted)
            if validation is None:
                return  # an epoch without its validation has not ended; a resumed run does that first
        values = fetched(values)  # the epoch's edge: the loop waits here
        done = self.speed.since(self.began, ctx.step)
        late, self.late = self.late, None
        self._log(late)
        ctx.throughput = done
        row = {**self._head(), **plain(values)}
        if validation is not None:
            with self.meter.during(VALIDATION):
                row.update(measured(validation))
        ctx.logs = row
        self.rescue.watch(row, ctx.state, ctx.step - 1)
        if ctx.last_batch is not None:
            ctx.last_batch = feed_lib.put(ctx.last_batch)
        self.resume_point = ctx.state, self.callbacks.state()
        before = members.count(ctx.state)
        if validation is not None:
            self._call("on_validation_end")
        self._call("on_epoch_end")
        self._regroup(before)
        self._measured(True)
        if whole:
            self.over, self.resume_point = True, None
        rows = ctx.history.length - (not whole)  # what a checkpoint knows: the end of whole epochs
        due = self.options.saving is None or self._save_is_due()
        if self.run is not None and (due or not whole or self.run.failed()):
            self._save(rows)

    def _keep(self, error: BaseException) -> None:
        """Save what an error would lose, and note on it where the run was."""
        ctx = self.ctx
        error.add_note(
            f"raised in epoch {ctx.epoch} at step {ctx.step}, with {ctx.epoch_step} batches of the epoch trained on: "
            f"batch {ctx.epoch_step} comes next"
        )
        if self.run is None or ctx.step in (ctx.resumed_step, self.saved_step):
            return
        if jax.process_count() > 1:
            return  # the others know nothing of the error, and saving takes all of them
        try:
            if any(x.is_deleted() for x in jax.tree.leaves((ctx.state, self.metrics))):
                raise CheckpointError("the step that failed has consumed it")
            if not has_finite_params(ctx.state):
                raise CheckpointError("its parameters are not finite")
            self._save()
            self.run.checkpoints()  # waits for it
        except Exception as failure:  # what matters is the first error
            last = "" if self.saved_step is None else f"; saved is step {self.saved_step}"
            error.add_note(f"the state of step {ctx.step} was not saved: {failure}{last}")
        else:
            error.add_note(f"step {ctx.step} is saved in {self.run.path}: `resume=True` goes on from it")

    def _save(self, rows: int | None = None) -> None:
        """A checkpoint of the run, with so many rows in its history; None is all there are."""
        ctx = self.ctx
        done = History(ctx.history.rows()[:rows])
        state, callbacks = self.resume_point or (ctx.state, self.callbacks.state())
        accumulators = programs.opened(self.metrics)
        source = self.training.source
        data_state = source.state(self.position) if hasattr(source, "state") else None
        measured = ctx.history.last if ctx.history.last.get("step") == ctx.step else None
        assert self.run is not None
        with self.meter.during(CHECKPOINT, after=ctx.state):
            self.run.save(state, ctx.step, accumulators, self.position, done, callbacks, data_state, measured)
        self.saved_step, self.window = ctx.step, None
        ctx.save_requested = False
        self._next_save()
