"""Cross-validation as a population: one program for all folds and seeds, held-out rows at weight zero."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core import check
from .._core.errors import DataError
from .._core.typing import Params
from ..data.arrays import data_loader
from ..run.epoch import fetched
from ..step.state import TrainState
from ..step.step import compute_metrics, eval_step, merge_metrics, train_step
from ..step.task import Task
from .states import init


@dataclasses.dataclass(frozen=True, eq=False)
class CrossValidation:
    """What a cross-validation has found.

    Attributes:
      scores: by metric, what each fold's member has on the rows it was not trained on, `[seeds, folds, …]`.
      folds: the fold of each row, `[rows]`.
      state: the trained members, seed by seed, folds fastest: a population.
    """

    scores: dict[str, np.ndarray]
    folds: np.ndarray
    state: TrainState

    def summary(self) -> dict[str, tuple[float, float]]:
        """By metric the mean over folds and seeds, and the standard deviation between them."""
        return {
            name: (float(np.mean(x)), float(np.std(x, ddof=1)))
            for name, x in self.scores.items()
            if x.ndim == 2
        }

    def __repr__(self) -> str:
        seeds, folds = self.scores["loss"].shape
        found = ", ".join(f"{name} {mean:.4g} ± {std:.2g}" for name, (mean, std) in self.summary().items())
        return f"CrossValidation({folds} folds, {seeds} seed{'s' * (seeds > 1)}: {found})"


def cross_validate(
    task: Task,
    init_params: Params | Callable[[jax.Array], Params],
    data: Any,
    *,
    folds: int = 5,
    seeds: Sequence[int] = (0,),
    stratify: Any = None,
    epochs: int = 10,
    batch_size: int = 32,
    seed: int = 0,
) -> CrossValidation:
    r"""Train a member on all folds but one, for each fold and each seed, and evaluate it on that one.

    All members take the same batches, in one program; a member's own fold has weight 0 in training, and weight 1 in
    evaluation, where all others have none. For a loss of one value an example that is training on the rest, by law 3;
    what mixes the rows of a batch has to heed `ctx.weight`.

    Args:
      task: the Task; its loss gives one value an example.
      init_params: as for `init_state`.
      data: arrays, as for `data_loader`.
      folds: K, >= 2; rows are dealt to them by chance, as evenly as can be.
      seeds: each fold is trained once with each: repeated runs.
      stratify: labels, `[rows]`: each fold gets its share of every one.
      epochs: of training.
      batch_size: rows of a batch, of which a K-th is held out.
      seed: of the folds, and of the order of the data.

    Returns:
      A CrossValidation.

    Raises:
      DataError: if there are fewer rows than folds, or `stratify` does not fit; as `train_step` too.
      ConfigError: if a number is out of range.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> from fntrain import population
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b[0] * p["w"], b[1]), ft.optimizers.sgd(0.3))
      >>> x = np.linspace(-1, 1, 40, dtype=np.float32)
      >>> found = population.cross_validate(task, {"w": np.float32(0)}, (x, 2 * x), folds=4, batch_size=8)
      >>> found.scores["loss"].shape, found.summary()["loss"][0] < 0.01
      ((1, 4), True)
    """
    number = check.integer("folds", folds, at_least=2)
    epochs = check.integer("epochs", epochs, at_least=1)
    loader = data_loader(data, batch_size, seed=seed)
    fold = _dealt(loader.rows, number, stratify, seed)
    loader = data_loader((loader.data, fold), batch_size, seed=seed)
    own = np.tile(np.arange(number), len(seeds))  # each member's fold
    states = init(task, init_params, seeds=np.repeat(np.asarray(seeds), number))
    for epoch in range(epochs):
        for index in range(len(loader)):
            (batch, of), weight = loader.batch(epoch, index)
            held_out = np.asarray(of)[:, None] == own[None]
            states, _ = train_step(task, states, batch, np.asarray(weight)[:, None] * ~held_out)
    total = None
    for index in range(len(loader)):
        (batch, of), weight = loader.batch(0, index)
        held_out = np.asarray(of)[:, None] == own[None]
        found = eval_step(task, states, batch, np.asarray(weight)[:, None] * held_out)
        total = found if total is None else merge_metrics(task, total, found)
    assert total is not None
    values = fetched(compute_metrics(task, total))
    scores = {
        name: np.asarray(x).reshape(len(seeds), number, *np.shape(x)[1:])
        for key, value in values.items()
        for name, x in _named(key, value)
    }
    return CrossValidation(scores, fold, states)


def _named(name: str, value: Any) -> list[tuple[str, Any]]:
    """The arrays of a metric's value, by column."""
    return [(f"{name}/{path}" if path else name, x) for path, x in tree.items(value)]


def _dealt(rows: int, folds: int, stratify: Any, seed: int) -> np.ndarray:
    if rows < folds:
        raise DataError(f"`data` has {rows} rows, too few for {folds} folds")
    order = np.random.default_rng(seed).permutation(rows)
    if stratify is not None:
        labels = np.asarray(stratify)
        if labels.shape != (rows,):
            raise DataError(f"`stratify` must have one label a row, [{rows}], got {list(labels.shape)}")
        order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(rows, np.int32)
    fold[order] = np.arange(rows, dtype=np.int32) % folds
    return fold
