"""A rehearsal: what a run will do, done once and thrown away, so that its errors come in the first minute."""

import dataclasses
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import sharding, tree
from .._core import check
from .._core.errors import CheckpointError
from .._core.sizes import bytes_text
from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.keep import Keep
from ..checkpoint.pack import check_state
from ..data import feed as feed_lib
from ..data.arrays import Arrays
from ..data.feed import Feed, Piece
from ..data.stream import Stream
from ..step import members, programs
from ..step.packed import Packed
from ..step.state import TrainState
from ..step.task import Task
from ..transforms import averaged
from .epoch import fetched
from .history import plain
from .validation import Validation


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal took; `print` shows it.

    Attributes:
      compile_seconds: of compiling a step.
      step_seconds: of the second step.
      peak_bytes: memory of a step on a device, as its program says it: state, batch and all that lies between.
      validation_seconds: of one validation, compiling included; None without one.
      validation_batches: how many batches that was: all, where the data is arrays or a list; else the first of each
        set, as reading more could change what the run reads.
      save_seconds: of one checkpoint, until it was on disk; None where none was saved.
      restore_seconds: of reading it back, each digest verified.
      checkpoint_bytes: its size on disk.
    """

    compile_seconds: float
    step_seconds: float
    peak_bytes: int
    validation_seconds: float | None = None
    validation_batches: int = 0
    save_seconds: float | None = None
    restore_seconds: float | None = None
    checkpoint_bytes: int = 0

    def __str__(self) -> str:
        lines = [
            f"rehearsal   compiled in {_text(self.compile_seconds)}, a step in {_text(self.step_seconds)}",
            f"memory      {bytes_text(self.peak_bytes)} a device in a step",
        ]
        if self.validation_seconds is not None:
            batches = f"{self.validation_batches} batch{'es' * (self.validation_batches != 1)}"
            lines.append(f"validation  {_text(self.validation_seconds)}, {batches}")
        if self.save_seconds is not None and self.restore_seconds is not None:
            lines.append(
                f"checkpoint  {bytes_text(self.checkpoint_bytes)}, saved in {_text(self.save_seconds)}, restored in "
                f"{_text(self.restore_seconds)}, bit for bit"
            )
        return "\n".join(lines)


def rehearse(
    task: Task,
    own: list[TrainState],
    given: "weakref.ref[TrainState]",
    training: Feed,
    validation: Validation | None,
    run_dir: Any,
    stopped: Callable[[], bool],
) -> Rehearsal:
    """Two steps on the first of the largest batches, one validation, a save and a restore, of a state thrown away.

    Args:
      task: the Task.
      own: the state that the run will start from, in a list; it holds an equal one afterwards.
      given: what that is a copy of, if the caller has kept it: then no third state is made.
      training: the training data.
      validation: what is measured, or None.
      run_dir: the run's directory, beside which the scratch directory is made; None takes the system's.
      stopped: whether a signal has come.

    Raises:
      CheckpointError: if the state cannot be saved, or comes back as another one.
      Any error that a step or a validation raises.
    """
    kept = given()
    state = programs.copied(own[0]) if kept is None or kept is own[0] else own.pop()
    try:
        source = training.source
        first = source.largest() if isinstance(source, Arrays) else source.peek()
        piece = Piece(*training.placed(*first), 1, False, False, len(first[1]))
        metrics = programs.copied(training.empty)
        marks = [time.perf_counter()]
        with jax.transfer_guard_host_to_device("allow"):
            peak = programs.peak_bytes(task, state, metrics, piece.batch, piece.weight)
        marks.append(time.perf_counter())
        for _ in range(2):
            state, metrics, _ = feed_lib.train(task, state, metrics, piece)
            jax.block_until_ready((state, metrics))
            marks.append(time.perf_counter())
        plain(fetched(programs.reported(task, metrics)))
        report: dict[str, Any] = {}
        if validation is not None:
            began = time.perf_counter()
            report["validation_batches"] = _validated(task, state, validation, stopped)
            report["validation_seconds"] = time.perf_counter() - began
        with _scratch(run_dir) as directory:
            if directory is not None:
                report.update(_saved(directory, [state], metrics))
                del state
    finally:
        if not own:
            own.append(programs.copied(kept))
    return Rehearsal(marks[1] - marks[0], marks[3] - marks[2], peak, **report)


def _validated(task: Task, state: TrainState, validation: Validation, stopped: Callable[[], bool]) -> int:
    batches = 0
    for prefix, feed, at_average in validation.parts():
        measured = dataclasses.replace(state, params=averaged(state)) if at_average else state
        source = feed.source
        if isinstance(source, Arrays) or (isinstance(source, Stream) and source.sure):
            metrics = feed_lib.evaluated(feed, measured, stopped)
            batches += source.length or 0
        else:
            with jax.transfer_guard_host_to_device("allow"):
                batch, weight = feed.placed(*source.peek())
                metrics = programs.eval_into(task, measured, programs.copied(feed.empty), batch, weight)
            batches += 1
        plain(fetched(programs.reported(task, metrics)), prefix)
    return batches


def _saved(directory: Path, held: list[TrainState], metrics: Packed) -> dict[str, Any]:
    """Save and restore the state, which is taken out of the list, so that there are never two."""
    state = held.pop()
    check_state(state)
    step = int(jax.device_get(members.first(state.step)))
    with Checkpointer(directory, Keep(latest=1, best=None)) as checkpointer:
        began = time.perf_counter()
        checkpointer.save(state, extra={"accumulators": dict(tree.items(programs.opened(metrics)))})
        checkpointer.wait()
        saved = time.perf_counter()
        before, like = _bits(state), jax.tree.map(_shape, state)
        del state
        began_restore = time.perf_counter()
        restored = checkpointer.restore(like, step=step)
        ended = time.perf_counter()
    after = _bits(restored)
    other = [path for path, leaf in before.items() if leaf != after[path]]
    if other:
        raise CheckpointError(f"the rehearsal's checkpoint comes back as another state: {tree.some(other)}")
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return dict(save_seconds=saved - began, restore_seconds=ended - began_restore, checkpoint_bytes=size)


def _shape(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _bits(state: TrainState) -> dict[str, list[bytes]]:
    """The words of each leaf, of its parts that are here."""

    def words(x: jax.Array) -> list[bytes]:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return [np.asarray(shard.data).tobytes() for shard in x.addressable_shards]

    return {path: words(x) for path, x in tree.items(state)}


@contextmanager
def _scratch(run_dir: Any) -> Iterator[Path | None]:
    """A directory that is gone afterwards, on the run directory's disk; none, where processes share no place."""
    if run_dir is not None:
        path = check.path("run_dir", run_dir)
        directory = path.parent / f".{path.name}.rehearsal"
    elif jax.process_count() == 1:
        directory = Path(tempfile.mkdtemp(prefix="fntrain-rehearsal-"))
    else:
        yield None
        return
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(directory, ignore_errors=True)  # what a killed one has left
    sharding.meet()
    try:
        yield directory
    finally:
        sharding.meet()
        if first:
            shutil.rmtree(directory, ignore_errors=True)


def _text(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
