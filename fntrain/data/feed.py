"""Batches from a source to the device: what one dispatch takes, with weights where padding needs them."""

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .. import sharding, tree
from .._core.errors import DataError
from ..sharding.mesh import data_axis
from ..sharding.place import mesh_of, place, place_stacked
from ..step import programs
from ..step.gradients import ScalarLossError
from ..step.packed import Packed
from ..step.state import TrainState
from ..step.task import Task
from .arrays import ArrayLoader, Arrays
from .examples import Examples, batch_them
from .position import Position
from .tensors import is_column, to_numpy


class Piece(NamedTuple):
    """What one dispatch takes: a batch for one step, or several stacked for as many."""

    batch: Any
    weight: Any
    steps: int
    stacked: bool
    last: bool  # whether it is known to end its epoch
    rows: int  # of each batch, its own padding included


def _beside(state: TrainState, metrics: Packed) -> Packed:
    """Accumulators bound to the device if the state is, as a step returns them: else the second step compiles."""
    like = jax.tree.leaves(state)[0]
    return jax.device_put(metrics, like.sharding) if getattr(like, "committed", False) else metrics


def _ones(*shape: int) -> jax.Array:
    """The weights of whole batches. By a program: a constant put on the device would be an implicit transfer."""
    return jax.jit(lambda: jnp.ones(shape, jnp.float32))()


class _OneByOne(DataError):
    """Examples came in the place of batches, and this says so."""


class Feed:
    """A source's batches as dispatches take them, and what steps on them report.

    With a loss of one value per example, a source that may have a padded batch has a weight with every batch, so
    that the padded one is the same program. A scalar loss has none, so there every batch must be whole.

    Args:
      task: the Task.
      state: a TrainState; says on which devices batches go.
      source: where batches come from.
      train: for training, or for evaluation.
      name: the data's argument, for messages.
      waiting: a context manager around each wait for a batch of the source, in whichever thread that is.

    Raises:
      DataError: if a scalar loss meets a padded tail.
    """

    def __init__(
        self,
        task: Task,
        state: TrainState,
        source: Any,
        *,
        train: bool,
        name: str,
        waiting: AbstractContextManager[None] | None = None,
    ):
        self.rows: int  # of the first batch
        self.form: tuple[Any, Any]  # of it and its weight, as they reach a step
        self.task = task
        self.source = source
        self.name = name
        self.mesh: Mesh | None = mesh_of(state)
        self._waiting = nullcontext() if waiting is None else waiting
        # Whole batches of arrays, on one device: nothing is ever padded, unless at an epoch's end.
        self.whole: bool = isinstance(source, Arrays) and self.mesh is None
        # How many are made ahead unless another number is asked for. On a CPU it works on what came before instead; and
        # what others give is not read before it is due.
        leaf = jax.tree.leaves(state)[0]  # NumPy's, where the state is
        there = isinstance(leaf, jax.Array) and not sharding.on_host(leaf)
        self.ahead: int = 2 if isinstance(source, Arrays) and there else 0
        self.ones: Callable[..., jax.Array] = functools.cache(_ones)
        self.weighed = source.has_tail or not self.whole
        with self._waiting:
            source.peek()
        empty = first_met(source, name, functools.partial(self._met, state, train))
        if not train and source.endless:
            raise DataError(f"`{name}` has no end, and all of it is read each time: give a part of it")
        for size in self.sizes:
            self._padding(size)
        # Where a step will return them: accumulators that moved after the first step would compile it twice.
        self.empty: Packed = (
            _beside(state, empty) if self.mesh is None else sharding.replicate(empty, self.mesh)
        )

    def _met(self, state: TrainState, train: bool, first: Any, weight: Any) -> Packed:
        """Empty accumulators of steps on such batches, which are what batches are from here on."""
        self.rows = len(weight)
        self.form = self._shapes(first, weight)
        try:
            return programs.empty_metrics(self.task, state, *self.form, train=train)
        except ScalarLossError:
            if self.source.has_tail:
                raise self._scalar_tail() from None
            self._refuse_examples(state, train, first)
        self.weighed = False
        self.form = self._shapes(first, weight)
        return programs.empty_metrics(self.task, state, *self.form, train=train)

    def _refuse_examples(self, state: TrainState, train: bool, first: Any) -> None:
        """A loss that gives one number for what comes, and one a row for two of it stacked, was given an example.

        If it holds a number beside its arrays, that is: a batch of nothing but rows may be summed up as well.
        """
        if isinstance(self.source, Arrays) or all(np.ndim(x) for x in jax.tree.leaves(first)):
            return
        try:
            takes = programs.takes_weights(self.task, state, _two(first), train=train)
        except Exception:  # whatever the loss raises on what it was not written for
            return
        if takes:
            raise _OneByOne(
                f"`{self.name}` gives examples, one by one, {tree.describe(first)}: "
                f"{batch_them(first, self.name)}"
            )

    @property
    def sizes(self) -> list[int]:
        """Of which sizes batches are."""
        return self.source.sizes if isinstance(self.source, Arrays) else [self.rows]

    def batches(self, epoch: int) -> int | None:
        """How many batches an epoch has, if the data says."""
        return self.source.loader.cut.length(epoch) if isinstance(self.source, Arrays) else self.source.length

    def pieces(self, position: Position, room: Callable[[int], int]) -> Iterator[Piece]:
        """An epoch's batches from a position on.

        Args:
          position: where to begin.
          room: how many steps the next dispatch may take, after so many from the position on; 0 for no more.
        """
        if isinstance(self.source, Arrays):
            return self._gathered(self.source.loader, position, room)
        return self._collected(position, room)

    def _gathered(
        self, loader: ArrayLoader, position: Position, room: Callable[[int], int]
    ) -> Iterator[Piece]:
        epoch, index = position
        total = loader.cut.length(epoch)
        # Arrays are there; examples may be read from anywhere.
        waiting = self._waiting if isinstance(loader.data, Examples) else nullcontext()
        while index < total and (steps := room(index - position.index)):
            alike = loader.cut.at(epoch, index)  # of which a dispatch takes several
            stacked = 1 < steps <= alike.count
            steps = steps if stacked else 1
            if stacked and not self.whole:
                with waiting:
                    pairs = [loader.batch(epoch, i) for i in range(index, index + steps)]
                given = self._stacked(pairs)
            else:
                with waiting:
                    pair = loader.stacked(epoch, index, steps) if stacked else loader.batch(epoch, index)
                given = self.placed(*pair)
            yield Piece(*given, steps, stacked, index + steps == total, alike.size)
            index += steps

    def _collected(self, position: Position, room: Callable[[int], int]) -> Iterator[Piece]:
        pairs = iter(self.source.epoch(*position))
        waiting: list[Any] = []
        done, ended = 0, False
        length = self.source.length if self.source.sure else None  # else the data is what is read
        error: Exception | None = None
        while steps := room(done):
            # One batch ahead of what is taken, to know the last one; not beyond the run's end.
            ahead = 0 if length is not None or room(done + steps) == 0 else 1
            while len(waiting) < steps + ahead and not ended:
                try:
                    with self._waiting:
                        waiting.append(next(pairs))
                except StopIteration:
                    ended = True
                except Exception as failure:  # after the batches before it were trained on
                    error, ended = failure, True
            if not waiting:
                if error is not None:
                    raise error
                return
            steps = steps if steps <= len(waiting) else 1
            taken, waiting = waiting[:steps], waiting[steps:]
            done += steps
            last = position.index + done == length or (ended and error is None and not waiting)
            batch, weight = self._stacked(taken) if steps > 1 else self.placed(*taken[0])
            yield Piece(batch, weight, steps, steps > 1, last, self.rows)

    def _shapes(self, batch: Any, weight: np.ndarray) -> tuple[Any, Any]:
        """The form in which batches reach a step, without one being placed."""
        padding = self._padding(len(weight))

        def one(x: Any) -> jax.ShapeDtypeStruct:
            shape = jax.eval_shape(jnp.asarray, x)
            rows = [shape.shape[0] + padding, *shape.shape[1:]] if shape.shape else []
            return jax.ShapeDtypeStruct(rows, shape.dtype)

        return jax.tree.map(one, (batch, weight if self.weighed else None))

    def form_of(self, rows: int) -> tuple[Any, Any]:
        """The form of a batch of so many rows, where that is not as many as the first one's."""
        if rows == self.rows:
            return self.form
        rows += self._padding(rows)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), self.form)

    def _padding(self, rows: int) -> int:
        """Rows that a batch is padded with, so that it divides over the devices."""
        padding = 0 if self.mesh is None else -rows % self.mesh.shape[data_axis(self.mesh)]
        if padding and not self.weighed:
            raise self._scalar_tail()
        return padding

    def placed(self, batch: Any, weight: Any) -> tuple[Any, Any]:
        """One batch as `train_into` and `eval_into` take it; or several, stacked, on one device."""
        if self.weighed and self.whole:
            return batch, self.ones(*weight.shape) if weight.all() else jax.device_put(weight)
        weight = self._weight(weight)
        return (batch, weight) if self.mesh is None else place(batch, weight, self.mesh)

    def _stacked(self, pairs: list[Any]) -> tuple[Any, Any]:
        return place_stacked([(batch, self._weight(weight)) for batch, weight in pairs], self.mesh)

    def _weight(self, weight: Any) -> Any:
        if self.weighed:
            return weight
        if not (weight == 1).all():
            raise self._scalar_tail()
        return None

    def _scalar_tail(self) -> DataError:
        return DataError(
            f"`{self.name}` does not divide into whole batches, and `loss_fn` returns a scalar, in which padding "
            f"cannot be told from examples: return one value per example (`fntrain.losses.mse(...)` without "
            f"`.mean()`), choose a `batch_size` that divides the data, or pass `data_loader(..., drop_last=True)`"
        )


def first_met(source: Any, name: str, met: Callable[[Any, Any], Any]) -> Any:
    """What `met(batch, weight)`, which traces the loss, makes of a source's first batch.

    Where the loss cannot take it, and it is a pair by its form, the source is one of pairs `(batch, weight)`: a loss
    that takes what comes as it is, takes it so.

    Raises:
      DataError: if the loss takes another form of batch than `data` has, and it shows which.
    """
    batch, weight = source.peek()
    try:
        return met(batch, weight)
    except Exception as error:
        if not isinstance(source, Arrays) and source.pair_up():
            try:
                return met(*source.peek())
            except Exception:  # nor can it take that: what it said of the first is what there is to say
                pass
        if isinstance(error, _OneByOne):
            raise DataError(str(error)) from None
        way = _other_form(source, batch, weight, error, met)
        if way is None:
            error.add_note(f"the first batch of `{name}` is {tree.describe(batch)}")
            raise
        raise DataError(
            f"`loss_fn` does not take the batches of `{name}`, {tree.describe(batch)}: a batch has the form of the "
            f"data, and {way} ({type(error).__name__}: {error})"
        ) from error


def _other_form(
    source: Any, batch: Any, weight: Any, error: Exception, met: Callable[[Any, Any], Any]
) -> str | None:
    """In which form the loss would have taken its batch, in words; None if that is not known."""

    def takes(other: Any, weight: Any = weight) -> bool:
        try:
            met(other, weight)
        except Exception:
            return False
        return True

    given = getattr(source, "source", None)
    if isinstance(batch, dict) and 1 < len(batch) <= 3:
        for names in itertools.permutations(batch):
            if takes(tuple(batch[key] for key in names)):
                order = ", ".join(map(str, names))
                return f"this loss takes a tuple: give `({order})`, or read `batch[{names[0]!r}]` in it"
    if isinstance(given, list) and 1 < len(given) <= 3 and all(is_column(x) for x in given):
        columns = tuple(to_numpy(x)[: len(weight)] for x in given)
        if all(np.ndim(x) and len(x) == len(weight) for x in columns) and takes(columns):
            return "this loss takes a tuple: a list holds batches, and columns go into a tuple, `(x, y)`"
    if (
        isinstance(error, TypeError)
        and "indices must be integers" in str(error)
        and isinstance(batch, tuple | list)
    ):
        return "this loss takes a dict: give `{name: column}`, or take the batch apart in it, `x, y = batch`"
    if not isinstance(source, Arrays) and takes(_two(batch), np.ones(2, np.float32)):
        return f"this one is an example, for two of them stacked are taken: {batch_them(batch, source.name)}"
    return None


def _two(example: Any) -> Any:
    """The form of a batch of two such examples."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        shape = jax.eval_shape(jnp.asarray, x)
        return jax.ShapeDtypeStruct((2, *shape.shape), shape.dtype)

    return jax.tree.map(one, example)


def on_device(piece: Piece) -> Piece:
    """A piece whose arrays are on the device already."""
    return piece._replace(**dict(zip(("batch", "weight"), put((piece.batch, piece.weight)))))


def put(arrays: Any) -> Any:
    """Arrays on the device, and those that are there left where they are; all else as it is."""
    return jax.tree.map(lambda x: jax.device_put(x) if isinstance(x, np.ndarray) else x, arrays)


def train(
    task: Task, state: TrainState, metrics: Packed | None, piece: Piece, log_every: int = 0
) -> tuple[TrainState, Packed, Packed | None]:
    """The steps of a piece, in one dispatch: `(state, metrics, values)`.

    `values` are those of the metrics after several steps, where `log_every` asks for them.

    Its arrays go to the device with the call, several times faster than put there one by one before; they are meant
    to go there, so a transfer guard lets them pass.
    """
    given = task, state, metrics, piece.batch, piece.weight
    with jax.transfer_guard_host_to_device("allow"):
        if not piece.stacked:
            return *programs.train_into(*given), None
        if log_every:
            return programs.train_many_into(*given, log_every)
        return *programs.train_many_into(*given), None


def evaluated(
    feed: Feed, state: TrainState, stopped: Callable[[], bool] | None = None, there: Any = None
) -> Packed:
    """The metrics of a whole data set, accumulated on the device, where its arrays may be already: `there`."""
    metrics = programs.started(feed.empty, state)
    piece = None
    for piece in (there or feed).pieces(Position(0, 0), lambda done: 1):
        with jax.transfer_guard_host_to_device("allow"):
            metrics = programs.eval_into(feed.task, state, metrics, piece.batch, piece.weight)
        if stopped is not None and stopped():
            break
    if piece is None:
        raise DataError(
            f"`{feed.name}` gave no batch: what can be read only once has none the second time; give a list, a loader, "
            f"or a function `epoch -> iterable`"
        )
    return metrics
