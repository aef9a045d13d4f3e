"""Data in an order of its own for each member of a population."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from .._core import check
from .._core.errors import ConfigError
from ..data.arrays import data_loader
from ..step.members import PerMember


def orders(
    data: Any, batch_size: int = 32, *, seeds: Sequence[int]
) -> Callable[[int], Iterator[tuple[PerMember, np.ndarray]]]:
    """A data set that each member of a population sees in its own order: what `fit` takes as `data`.

    Member i sees the batches of a run with `fit(..., seed=seeds[i])`. Shared batches are gathered once for all, these
    for each: take them where the order is part of what is asked, as in repeated runs.

    Args:
      data: arrays, as for `data_loader`.
      batch_size: rows of a batch.
      seeds: one a member.

    Returns:
      A function `epoch -> iterable` of pairs `(batch, weight)`.

    Raises:
      ConfigError: if there is no seed, or one is no integer; as `data_loader` too.

    Examples:
      >>> import numpy as np
      >>> from fntrain import population
      >>> batch, weight = next(iter(population.orders(np.arange(6), 3, seeds=[0, 1])(0)))
      >>> batch.rows.shape, weight.tolist()
      ((3, 2), [1.0, 1.0, 1.0])
    """
    if not len(seeds):
        raise ConfigError("`seeds` must hold one seed a member, got none")
    numbers = [check.integer("seeds", seed) for seed in seeds]
    batch_size = check.integer("batch_size", batch_size, at_least=1)
    loaders = [data_loader(data, batch_size, seed=seed) for seed in numbers]

    def epoch(number: int) -> Iterator[tuple[PerMember, np.ndarray]]:
        for index in range(len(loaders[0])):
            pairs = [loader.batch(number, index) for loader in loaders]
            weight = np.asarray(pairs[0][1])  # padding is at the end in all
            batches = [batch for batch, _ in pairs]
            yield PerMember(jax.tree.map(lambda *x: np.stack([*map(np.asarray, x)], 1), *batches)), weight

    return epoch
