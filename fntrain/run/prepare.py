"""What a run needs before its first step: data at the door, its directory, where it stands, how it is cut."""

import dataclasses
import functools
import json
import warnings
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import tree
from .._core import check
from .._core.errors import CheckpointError, ConfigError, DataError
from .._core.ranking import Direction
from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.keep import Keep
from ..data.arrays import Arrays
from ..data.cut import as_json, largest, place_of
from ..data.examples import is_shuffled_loader
from ..data.feed import Feed
from ..data.named import by_name
from ..data.position import Position
from ..data.resident import resident
from ..data.source import as_source, fingerprint
from ..data.stream import Stream
from ..schedules.lengths import resolved, waits
from ..show.progress import ProgressBar
from ..show.summary import resumed as from_where, summary
from ..step import members, programs
from ..step.compiled import device_budget, fewest_microbatches
from ..step.state import TrainState
from ..step.task import Task
from ..transforms import averaged
from ..transforms.stages import accumulated
from . import dispatch
from .best import BestState
from .context import LoopContext
from .directory import RunDirectory
from .events import CallbackList
from .forms import Forms
from .goodput import Meter
from .history import History, direction, plain
from .identity import identity_of, in_words
from .loop import Loop
from .monitor import Monitor
from .options import Options
from .rescue import Rescue
from .signals import Signals
from .throughput import Sizes, speed_of
from .validation import Validation


class Feeds(NamedTuple):
    """Where batches come from."""

    training: Feed
    validation: Validation | None
    task: Task  # with the lengths of its schedules known


def check_processes(state: TrainState, options: Options) -> None:
    """Refuse what several processes would do each for itself."""
    if jax.process_count() == 1:
        return
    if options.max_time is not None:
        raise ConfigError(
            "`max_time` goes by one process's clock, and several would stop at different steps: have SIGTERM sent to "
            "one of them instead (Slurm: `--signal=TERM@120`)"
        )
    if isinstance(options.saving, float):
        raise ConfigError(
            f"`checkpoint_every={options.checkpoint_every!r}` goes by one process's clock, and several would save at "
            f"different steps: give a number of steps"
        )
    if all(x.is_fully_addressable for x in jax.tree.leaves(state)):
        raise ConfigError(
            f"`state` is on devices of this process alone, so each of the {jax.process_count()} processes would train "
            f"by itself: `init_state(..., mesh=fntrain.sharding.mesh(data=-1))` makes one that spans them"
        )


def feeds(task: Task, state: TrainState, data: Any, options: Options, signals: Signals) -> Feeds:
    """Data at the door, and what steps on it report.

    Raises:
      Interrupted: if a signal comes while the first batch is waited for.
    """
    waiting = signals.waiting
    source = as_source(data, options.batch_size, shuffle=options.shuffle, seed=options.seed)
    _go_on(source, options)
    task = of_this_length(task, steps_of(source, options.steps, options.epochs))
    training = Feed(task, state, source, train=True, name="data", waiting=waiting)
    if source.endless and options.steps is None and options.max_time is None:
        raise DataError("`data` has no end, and so an epoch of it has none: give `steps`, not `epochs`")
    if options.validation_data is None:
        return Feeds(training, None, task)
    found = {}
    sets = by_name(options.validation_data)
    for key, held_out in sets.items():
        name = "validation_data" if sets is not options.validation_data else f"validation_data, {key}"
        part = as_source(held_out, largest(options.batch_size), shuffle=False, seed=0, name=name)
        once = options.epochs == 1 and options.validation_every is None and options.evaluate_at != "both"
        if isinstance(part, Stream) and part.once and not once:
            raise DataError(
                f"`{name}` is read at every validation, and {type(held_out).__name__} can be read only "
                f"once: give arrays, a list (`list(...)`), a loader, or a function `epoch -> iterable`"
            )
        found[key] = Feed(task, state, part, train=False, name=name, waiting=waiting)
    if options.evaluate_at != "params":
        jax.eval_shape(averaged, state)  # refused here, if there is none, and not after an epoch
    return Feeds(training, Validation(found, options.evaluate_at), task)


def _go_on(source: Any, options: Options) -> None:
    """Cut arrays from where a run that is to be resumed stands, before anybody asks how long it is."""
    if not options.resume or not isinstance(source, Arrays):
        return
    with warnings.catch_warnings():  # whoever goes on from it says what is wrong with it
        warnings.simplefilter("ignore")
        try:
            checkpoints = check.path("run_dir", options.run_dir) / "checkpoints"
            if not checkpoints.is_dir():
                return
            with Checkpointer(checkpoints) as there:
                extra = there.extra() if there.steps() else {}
        except CheckpointError:
            return
    if "position" in extra:
        source.go_on(place_of(extra))


def steps_of(source: Any, steps: int | None, epochs: int | None) -> int | None:
    """How many batches a run of so many steps or epochs has; None if nobody knows."""
    if steps is not None or epochs is None:
        return steps
    if isinstance(source, Arrays):
        return source.loader.cut.batches(epochs)
    return None if source.length is None else epochs * source.length


def of_this_length(task: Task, steps: int | None) -> Task:
    """The task with the lengths of its schedules that are fractions of the run made numbers of updates."""
    if not waits(task.tx):
        return task
    every = accumulated(task.transform)
    if steps is None or not isinstance(every, int):
        cause = (
            "the length of `data` is not known"
            if steps is None
            else "a schedule says how many batches an update has"
        )
        raise ConfigError(
            f"`tx` has schedules whose lengths are fractions of the run, and {cause}: give `steps`, or "
            f"`schedules.resolved(tx, updates)`"
        )
    return dataclasses.replace(task, tx=resolved(task.tx, max(1, steps // every)))


def cut(task: Task, state: TrainState, feeds: Feeds, options: Options) -> Task:
    """The task with as many micro-batches as were asked for, or as it takes; the feeds have it too then."""
    number = options.microbatches
    if number is None:
        return task
    if number == "auto":
        number = _microbatches_before(options)
    if number is None:
        form = feeds.training.form_of(max(feeds.training.sizes))
        number, _ = fewest_microbatches(task, state, *form, device_budget(state))
    task = dataclasses.replace(task, microbatches=int(number))
    validation = {} if feeds.validation is None else feeds.validation.feeds
    for feed in (feeds.training, *validation.values()):
        feed.task = task
    return task


def _microbatches_before(options: Options) -> int | None:
    """What a run that is to be resumed has taken, on whatever machine that was."""
    if not options.resume:
        return None
    path = check.path("run_dir", options.run_dir) / "config.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["microbatches"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def directory(task: Task, feeds: Feeds, options: Options) -> AbstractContextManager[RunDirectory | None]:
    """The run directory, open and locked; nothing, without one."""
    if options.run_dir is None:
        return nullcontext()
    source = feeds.training.source
    if isinstance(source, Stream) and is_shuffled_loader(source.source):
        raise DataError(
            "`data` is a loader that shuffles by itself, and `run_dir` is there to resume: its order cannot be had a "
            "second time. Give its data set, `fit(task, state, loader.dataset, batch_size=loader.batch_size)`, whose "
            "order is a function of the seed and the epoch; or, to keep the loader and how it samples, a function that "
            "seeds what it draws from, `def data(epoch): torch.manual_seed(epoch); return loader` (or the generator "
            "that it was made with)"
        )
    batch_size = source.loader.batch_size if isinstance(source, Arrays) else options.batch_size
    identity = identity_of(task, fingerprint(source), as_json(batch_size), options.seed)
    keep = _keep(task, feeds, options)
    config: dict[str, Any] = dict(
        epochs=options.epochs,
        steps=options.steps,
        batch_size=as_json(batch_size),
        seed=options.seed,
        microbatches=task.microbatches,
        devices=[str(d) for d in jax.devices()],
        processes=jax.process_count(),
        jax=jax.__version__,
        better={name: metric.better for name, metric in task.metrics.items()},
        prefixes=_prefixes(feeds.validation),
        best=None if keep.best is None else dict(column=keep.best[0], mode=keep.best[1]),
    )
    if isinstance(source, Arrays):
        config.update(examples=source.loader.rows, cut=[list(stage) for stage in source.loader.cut.stages])
    more = in_words(task), options.override, keep
    return RunDirectory(options.run_dir, identity, config, options.resume, *more)


def _keep(task: Task, feeds: Feeds, options: Options) -> Keep:
    """Which checkpoints stay: the newest, and the best by the column that was asked for."""
    return Keep() if options.best is None else Keep(best=_ranked(task, feeds, options.best))


def _ranked(task: Task, feeds: Feeds, best: tuple[str, Any]) -> tuple[str, Direction]:
    """The column to keep the best of, and which of its values are better."""
    column, mode = best
    known = direction(task.metrics, column, _prefixes(feeds.validation)) if mode == "auto" else mode
    if known is None:
        raise ConfigError(
            f'`keep_best` must say which values of {column!r} are better, as in `keep_best=({column!r}, "max")`: no '
            f"metric of the task tells" + check.did_you_mean(column, _columns(task, *feeds[:2]))
        )
    return column, known


def _prefixes(validation: Validation | None) -> tuple[str, ...]:
    return ("val_",) if validation is None else tuple(prefix for prefix, _, _ in validation.parts())


def loop(
    task: Task,
    own: list[TrainState],
    feeds: Feeds,
    run: RunDirectory | None,
    options: Options,
    signals: Signals,
    given: "weakref.ref[TrainState]",
    meter: Meter,
) -> Loop:
    """The loop, where it begins: at the first step, or where the run in the directory stands.

    Args:
      task: the Task.
      own: the state to start from, in a list, which is emptied: nothing but the loop holds it then.
      feeds: where batches come from.
      run: the run directory, or None.
      options: what `fit` was asked for.
      signals: what may end the run.
      given: the state the caller gave, as long as the caller keeps it.
      meter: where the time goes.
    """
    training = feeds.training
    source = training.source
    callbacks = options.listeners
    columns_known = not callbacks.adds_logs
    if options.progress:
        callbacks = CallbackList([callbacks, ProgressBar() if jax.process_index() == 0 else _Unseen()])
    state, metrics, position, history = own.pop(), training.empty, Position(0, 0), History()
    resumed = run is not None and run.extra is not None
    if run is not None:
        run.check(state)
        if resumed:
            state, accumulators, position, history = run.restore(state, programs.opened(metrics))
            metrics = programs.closed(accumulators)
    history.metrics.update(task.metrics)
    history.prefixes = _prefixes(feeds.validation)
    total = steps_of(source, options.steps, options.epochs)
    step = int(jax.device_get(members.first(state.step)))
    chunk = _steps_per_call(task, state, training, callbacks, run, options, total, step)
    if run is not None:
        if jax.process_index() == 0:
            run.parts.begin(meter)
        more = dict(status="running", parts=run.parts.all)
        run.note(steps_per_call=chunk, parameters=tree.size(state.params), **more)
        if run.extra is not None:
            _resume_data(source, run.extra.get("data_state"), position)
    if options.verbose and jax.process_index() == 0:
        print(
            summary(
                task,
                state,
                batch_size=source.loader.batch_size if isinstance(source, Arrays) else training.rows,
                steps_per_epoch=source.length,
                epochs=options.epochs,
                steps=total,
                steps_per_call=chunk,
            )
        )
        if run is not None and resumed:
            updates, where = int(jax.device_get(members.first(state.updates))), run.checkpointer.path(step)
            print(from_where(task, state, step=step, steps=total, updates=updates, where=where))
    sizes = _sizes(source, step, position)
    ctx = LoopContext(
        task=task,
        state=state,
        epoch=position.epoch + 1,
        epochs=options.epochs,
        step=step,
        steps=total,
        steps_per_epoch=training.batches(position.epoch),
        epoch_step=position.index,
        batch_size=training.rows if sizes is None else source.loader.cut.at(*position).size,
        history=history,
        resumed=resumed,
        resumed_step=step,
        run_dir=None if run is None else run.path,
        rows_before=None if sizes is None else functools.partial(_rows, sizes, 0),
        columns=functools.partial(_columns, task, *feeds[:2]) if columns_known else None,
    )
    start = None if run is None or resumed else given
    rescue = Rescue(task, training, run, start, position, options.rebuild)
    best = None
    if options.best is not None:
        watched = Monitor(*_ranked(task, feeds, options.best), argument="keep_best")
        watched.begin(ctx)
        best = BestState(watched, run)
    there = resident(training, state, options.data_on_device)
    if feeds.validation is not None:
        feeds.validation.put(state, options.data_on_device)
    return Loop(
        options,
        training,
        feeds.validation,
        callbacks,
        run,
        signals,
        rescue,
        chunk,
        metrics,
        ctx,
        speed_of(task, state, {size: training.form_of(size) for size in training.sizes}, sizes),
        meter,
        Forms(options.recompile),
        best=best,
        resident=there,
    )


def _steps_per_call(
    task: Task,
    state: TrainState,
    training: Feed,
    callbacks: CallbackList,
    run: RunDirectory | None,
    options: Options,
    total: int | None,
    step: int,
) -> int:
    if options.steps_per_call != "auto":
        return int(options.steps_per_call)
    if run is not None and run.extra is not None and run.extra.get("steps_per_call") is not None:
        return run.extra["steps_per_call"]  # a resumed run cuts the chunks that it cut before
    if callbacks.needs_every_step:
        return 1
    left = None if total is None else total - step
    return dispatch.choose(task, state, training, left, options.edges)


def _sizes(source: Any, step: int, position: Position) -> Sizes | None:
    """Of which sizes the batches between two steps are, of a run that stands at a step; None if all are of one."""
    if not isinstance(source, Arrays) or source.loader.cut.even:
        return None
    cut = source.loader.cut
    # What the state had seen before this run's first.
    before = step - cut.batches(position.epoch) - position.index
    return lambda first, last: cut.sizes(last - before) - cut.sizes(first - before)


def _rows(sizes: Sizes, first: int, last: int) -> int:
    return sum(size * number for size, number in sizes(first, last).items())


def _resume_data(source: Any, saved: Any, position: Position) -> None:
    if hasattr(source, "restore"):
        source.restore(saved or {})
    elif isinstance(source, Stream) and position.index > 0:
        warnings.warn(
            f"`data` is a plain iterable: to resume, the {position.index} batches of epoch {position.epoch + 1} that "
            f"were trained on are read again and dropped; a data set of arrays or of Grain goes on at once",
            RuntimeWarning,
            stacklevel=5,
        )


def _columns(task: Task, training: Feed, validation: Validation | None) -> list[str]:
    """The numbers that an epoch logs, found without running anything."""
    names: list[str] = []
    parts = [
        ("", training),
        *((prefix, feed) for prefix, feed, _ in (validation.parts() if validation else ())),
    ]
    for prefix, part in parts:
        shapes = jax.eval_shape(functools.partial(programs.reported, task), part.empty)
        zeros = jax.tree.map(lambda x: np.zeros(x.shape), shapes)
        values = plain(programs.in_order(task, zeros), prefix)
        names += [name for name, x in values.items() if isinstance(x, float)]
    return names


class _Unseen:
    """The progress bar of the other processes: who listens decides where dispatches end, the same everywhere."""

    adds_logs = False

    def on_log(self, ctx: LoopContext) -> None:
        """Show nothing."""
