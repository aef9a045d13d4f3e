"""fit: validate, prepare, loop."""

import dataclasses
import functools
import html
import os
import signal
import textwrap
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

import jax

from .._core.arguments import hands_over, taken
from .._core.errors import ConfigError
from ..show.text import number_text
from ..step import checks, programs
from ..step.provenance import BadStep
from ..step.replaced import replaced
from ..step.state import TrainState, check_state
from ..step.task import Task
from . import prepare
from .best import Best, Kept, kept
from .goodput import Goodput, Meter, goodput_of
from .history import History
from .options import Options
from .rehearsal import Rehearsal, rehearse as rehearse_run
from .signals import Interrupted, Signals
from .throughput import Throughput


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FitResult(tuple[TrainState, History]):
    """What `fit` returns; `state, history = fit(...)` takes it apart.

    A pair to Python and to type checkers, with the rest by name.

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
      diverged: whether the run came to nothing: no loss of it was finite, or the last one was not, and neither are the
        parameters. The `status` in the run directory's `config.json` says `"diverged"` then, and else `"done"`,
        `"stopped"` or `"interrupted"`.
      throughput: how fast the last epoch was: `examples_per_second`, `tokens_per_second`, `mfu`, … or None.
      rehearsal: what was rehearsed before, and the time and memory that it took, or None.
      goodput: where the time went, over all resumes.
      recompiled: why a step was compiled again, a line each.
    """

    state: TrainState
    history: History
    interrupted: bool = False
    stop_reason: str | None = None
    run_dir: Any = None
    steps_per_call: int = 1
    data_seconds: float = 0.0
    checkpoints: list[int] = dataclasses.field(default_factory=list)
    bad_step: BadStep | None = None
    capsule: Any = None
    diverged: bool = False
    rehearsal: Rehearsal | None = None
    throughput: Throughput | None = None
    goodput: Goodput | None = None
    recompiled: list[str] = dataclasses.field(default_factory=list)
    _kept: Kept | None = None

    def __new__(cls, state: TrainState, history: History, *_: Any, **__: Any) -> "FitResult":
        """The pair; the fields are set as any dataclass sets them."""
        return super().__new__(cls, (state, history))

    def __getnewargs__(self) -> tuple[TrainState, History]:
        return self.state, self.history

    def __repr__(self) -> str:
        """The state and the history in short, and what else there is to say."""
        fields = [field.name for field in dataclasses.fields(self) if not field.name.startswith("_")]
        said = [(name, getattr(self, name)) for name in fields]
        said = [(name, value) for name, value in said if value not in (None, False, [], 0.0)]
        shown = [f"{name}={_shown(value)}" for name, value in said]
        return "FitResult(\n" + textwrap.indent(",\n".join(shown), "  ") + "\n)"

    @functools.cached_property
    def best(self) -> Best:
        """The best validation: `state, row = result.best`, the state that was measured and its row.

        It is what `keep_best` kept; else the best of a `ModelCheckpoint` on a directory; else the best `val_loss` of
        the checkpoints in `run_dir`. What is on disk is read when this is first asked for.

        Raises:
          ConfigError: if none was kept, and it says how to have it.
          CheckpointError: if it cannot be read.
        """
        if self._kept is None:
            raise ConfigError("`result.best`: the run was interrupted before its first step")
        return self._kept.read(self.state)

    def _repr_html_(self) -> str:
        """The state and the history as tables, for a notebook."""
        why = f"<p>{html.escape(self.stop_reason)}</p>" if self.stop_reason else ""
        return why + self.state._repr_html_() + self.history._repr_html_()


def _shown(value: Any) -> str:
    """A field as people read it: four digits of a number, one line of a measurement."""
    if isinstance(value, Throughput | Goodput | os.PathLike):
        return repr(str(value))
    return number_text(value) if isinstance(value, float) else repr(value)


@hands_over("state")
def fit(
    task: Task,
    state: TrainState,
    data: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | Mapping[float, int] = 32,
    shuffle: bool = True,
    seed: int = 0,
    validation_data: Any = None,
    validation_every: int | None = None,
    evaluate_at: Literal["params", "averaged", "both"] = "params",
    callbacks: Iterable[Any] = (),
    run_dir: Any = None,
    checkpoint_every: int | str | None = None,
    resume: bool | Literal["must"] = False,
    override: Collection[str] = (),
    steps_per_call: int | Literal["auto"] = "auto",
    log_every: int = 100,
    max_time: float | None = None,
    prefetch: int | None = None,
    donate: bool = False,
    microbatches: int | Literal["auto"] | None = None,
    rebuild: int = 256,
    keep_best: bool | str | tuple[str, str] | None = None,
    rehearse: bool = False,
    data_on_device: bool | Literal["auto"] = "auto",
    recompile: Literal["warn", "raise", "ignore"] = "warn",
    train_step: Callable[..., Any] | None = None,
    eval_step: Callable[..., Any] | None = None,
    progress: bool = True,
    verbose: bool = False,
) -> FitResult:
    """Train for a number of epochs or steps.

    Args:
      task: the Task.
      state: the TrainState to start from; it stays usable, unless `donate`.
      data: a data set of arrays (an array, or a tuple, dict or any tree of them, of whatever `data_loader` takes) or
        of examples (of Hugging Face or torch: `len(data)` and `data[i]`), or batches: a list, a generator, a loader, a
        Grain dataset, or a function `epoch -> iterable`, or of nothing, which is called once an epoch, in order; not
        a torch loader that shuffles, where there is a `run_dir`: give its `dataset`. Batches that the loss cannot take
        as they are may be pairs `(batch, weight)`, as a loader yields them: a float a row, 0 for padding. A batch of a
        loader whose weights were left behind keeps them for as long as its columns are NumPy arrays with all their
        rows; where they become others (`jnp`), pass the pair on. A generator without an end has no epochs: give
        `steps`.
      epochs: epochs in all, also when resuming; 10 if neither this nor `steps` is given.
      steps: batches in all, instead.
      batch_size: rows of a batch, where `data` is arrays or examples. Or when it grows: `{0: 32, 3: 64, 6.5: 128}` is
        32 for the first three epochs, 64 for three and a half more (a fraction of an epoch is the example next to it),
        and then 128. A batch's size is that of the example it begins with, and every epoch sees every example once. A
        size is compiled when it begins. All that is counted in steps stays so: `steps`, `checkpoint_every`, the
        schedules of `tx` and the windows of `MultiSteps`, whose mean is over examples; lengths that are fractions of
        the run are of the number of updates that these batches make. Validations take the largest size.
      shuffle: a new order each epoch, where `data` is arrays or examples.
      seed: of the order.
      validation_data: as `data`; evaluated at the end of each epoch, in order, into `val_…` columns. Several sets:
        `fntrain.named(val=…, shifted=…)`, into columns of their names. What can be read only once serves a single
        epoch; what has no end, none.
      evaluate_at: at which parameters validations are: `"params"`, those trained; `"averaged"`, those of the `ema` (or
        another average, schedule-free ones too) in the optimizer; `"both"`, the second in columns `val_averaged_…`.
      validation_every: steps between validations besides those at an epoch's end; `on_validation_end` sees them.
      callbacks: functions of the epoch's logs, objects with methods named as `callbacks.EVENTS`, or Trackers.
      run_dir: a directory for config, metrics and checkpoints. In use already is an error, unless `resume`.
      checkpoint_every: steps between checkpoints, or the time between them, `"30s"`, `"10min"`, `"2h"`, after which
        the next step's edge saves; None saves at each epoch's end. The last step is always saved.
      resume: go on from the last checkpoint in `run_dir`, if there is one, as if the run had never stopped;
        `"must"`: it is an error if there is none.
      override: what may be another than in the run that is resumed: `"loss_fn"`, `"tx"`, `"metrics"`,
        `"microbatches"`, `"policy"`, `"axis_name"`, `"train_step"`, `"eval_step"`, `"data"`, `"batch_size"`, `"seed"`,
        `"callbacks"`, `"versions"` (of JAX and of this library, which are warned of otherwise). What is, `config.json`
        notes under `overridden`. Data and seed may change between two epochs only, as may the size of batches that come
        as they are; arrays and examples are cut otherwise from the next example on, and of the epoch none is seen
        twice or left out. The optimizer's state has to fit.
      steps_per_call: how many steps one dispatch runs (`train_steps`). `"auto"` takes several of arrays and examples
        where a step is short, as its program says it (operations, bytes, the kind of device): on a CPU 32 at most, on
        an accelerator 256 or a tenth of a second; one, where a callback of your own has `on_step_end`, so that it is
        called for every step. An explicit K calls it once a dispatch. A resumed run goes on with the number it had. A
        dispatch never runs over a validation or a checkpoint; the metrics of a log in the midst of it are computed
        there.
      log_every: steps between fetches of running metrics (for `on_log` and the progress bar).
      max_time: seconds after which the run ends, at the edge of a step, and is saved.
      prefetch: batches made ahead in a thread of their own, for data that is slow to read; 0 makes each when it is
        due, while the device still works on the one before. A generator loses what was read ahead of a run's end. None
        is 2 on an accelerator where `data` is arrays or examples, and else 0.
      donate: hand the state over: its buffers are the run's from here on, and no copy is made. Else the state given
        stays usable, and while you keep it there are two.
      microbatches: how many parts a step cuts a batch into, in place of the task's own number; `"auto"` takes the
        fewest with which the compiled step fits in the device's memory (`tools.fit_memory`). The results are the same.
        A resumed run goes on with the number it had.
      rebuild: how many steps may be taken again, from the last checkpoint, to keep the first bad step as a capsule;
        0 keeps none.
      keep_best: keep the state of the best validation, for `result.best`: True by `val_loss`, or a column
        (`"val_accuracy"`), or a column and which is better, `("kl", "min")`. With a `run_dir` each best one is saved
        there, whatever `checkpoint_every` says, and outlives a resume; without one it is a copy in the device's
        memory, a second state. NaN, infinity and parameters that are not finite are never the best.
      rehearse: do first all that the run will do, once, and throw it away: two steps on the first batch, one
        validation, one checkpoint, written beside `run_dir`, read back and compared bitwise. Times and memory are
        printed, and in `result.rehearsal`; then the run goes on, as it would have without. Callbacks are not called.
      data_on_device: put `data`, and `validation_data`, where they are arrays, on the device once, where an epoch's
        order is formed and each step gathers its rows; the order is the same, and so are the results. On a mesh every
        device holds all of it. True does so, and refuses `data` that is no array in memory; False never does; `"auto"`
        does so on one accelerator, if it fits a quarter of the memory that is free there. What is changed in the arrays
        during the run is then not seen.
      recompile: what to do when a step of the run is compiled a second time, for which a callback that has put other
        arrays into the state is the usual reason: `"warn"` of it, `"raise"`, or `"ignore"`. It names the leaf of the
        state or the batch that is another than before, from what to what.
      train_step: a function in the place of `fntrain.train_step`, `(task, state, batch, weight) -> (state, metrics)`;
        it may call that one, and change what goes in or comes out. It is traced into the compiled step, so it has to
        be pure; chunks are scans over it. The state's `step` and `key` stay the loop's. No bad step is kept as a
        capsule, as `replay` would take another step.
      eval_step: likewise in the place of `fntrain.eval_step`, `(task, state, batch, weight) -> metrics`. Both are part
        of what a resume compares.
      progress: show progress: a live bar on a terminal, a line an epoch elsewhere.
      verbose: say first what the run is about to do: devices, memory, what of the optimizer is effective, steps.

    Returns:
      A FitResult, `(state, history, …)`.

    Raises:
      ConfigError: if arguments contradict each other, `run_dir` is in use, or a resume meets another task, data
        set, batch size, seed or other callbacks, which `override` does not name.
      DataError: if data is empty, holds what is no array of numbers, or has not the form that the loss takes; batches
        differ in form or dtype, an iterable ends before the run does, or a scalar loss meets a padded tail.
      RunLockedError: if another process is training in `run_dir`.
      CheckpointError: if there is nothing to resume with `resume="must"`, every checkpoint is damaged, or two saves
        in a row failed (of one, a warning tells, and the current step is saved in its place).
      SystemExit: with status 143 after SIGTERM, 129 after SIGHUP, once the state is saved and handlers of your own
        for it were called. A second signal ends the process at once.
      Any error of data, callbacks or the loss, as it was raised, with a note of epoch, step and batch; the run is
        saved first, in `run_dir`, where its state is still whole and finite.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b[0] * p["w"], b[1]), ft.optimizers.sgd(0.1))
      >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
      >>> state = ft.init_state(task, {"w": np.float32(0)})
      >>> state, history = ft.fit(task, state, (x, 3 * x), epochs=20, batch_size=16, progress=False)
      >>> round(float(state.params["w"]), 3), len(history["loss"])
      (2.99, 20)
    """
    meter, state = Meter(), taken(state)
    options = Options(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        validation_data=validation_data,
        validation_every=validation_every,
        evaluate_at=evaluate_at,
        callbacks=callbacks,
        run_dir=run_dir,
        checkpoint_every=checkpoint_every,
        resume=resume,
        override=override,
        steps_per_call=steps_per_call,
        log_every=log_every,
        max_time=max_time,
        prefetch=prefetch,
        donate=donate,
        microbatches=microbatches,
        rebuild=rebuild,
        keep_best=keep_best,
        rehearse=rehearse,
        data_on_device=data_on_device,
        recompile=recompile,
        train_step=train_step,
        eval_step=eval_step,
        progress=progress,
        verbose=verbose,
    )
    checks.check_task(task, "(task, state, data)")
    task = replaced(task, train_step, eval_step)
    check_state(state, "fit")
    prepare.check_processes(state, options)
    # The run has a state of its own. The one given is the caller's to keep or to let go, and nobody's here.
    given = weakref.ref(state)
    own = [state if donate else programs.copied(state)]
    del state
    # Signals from here on: an exception raised in the middle of a compilation can take the interpreter down.
    saved = "" if run_dir is None else f", and is saved in {run_dir}"
    said = f"the run ends at the next step's edge{saved}; a second signal ends it at once, unsaved"
    with meter, Signals(said) as signals:
        try:
            feeds = prepare.feeds(task, own[0], data, options, signals)
        except Interrupted:  # before the first batch has come
            result = FitResult(own.pop(), History([], task.metrics), interrupted=True)
        else:
            task = prepare.cut(feeds.task, own[0], feeds, options)
            rehearsal = None
            if rehearse:
                rehearsal = rehearse_run(
                    task, own, given, *feeds[:2], run_dir, lambda: signals.received is not None
                )
                if jax.process_index() == 0:
                    print(rehearsal)
            with prepare.directory(task, feeds, options) as run:
                loop = prepare.loop(task, own, feeds, run, options, signals, given, meter)
                interrupted = loop.run_all()
                result = FitResult(
                    loop.ctx.state,
                    loop.ctx.history,
                    interrupted,
                    loop.ctx.stop_reason,
                    loop.ctx.run_dir,
                    loop.chunk,
                    loop.ctx.data_seconds or 0.0,
                    [] if run is None else run.checkpoints(),
                    loop.rescue.found,
                    loop.rescue.capsule,
                    loop.ctx.diverged,
                    rehearsal,
                    loop.ctx.throughput,
                    goodput_of([{"seconds": meter.seconds}] if run is None else run.parts.all),
                    loop.forms.found,
                    kept(loop.best, options.listeners, run, loop.ctx.history),
                )
    if signals.received not in (None, signal.SIGINT):
        raise SystemExit(128 + signals.received)  # as the system says of one that a signal has ended
    return result
