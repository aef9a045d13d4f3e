"""predict: a model's outputs over a data set, row by row."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from .. import sharding, tree
from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.typing import PyTree
from ..data import source as data_lib
from ..data.examples import is_shuffled_loader
from ..data.feed import first_met
from ..sharding.place import mesh_of, place
from ..step import checks, programs
from ..step.state import TrainState, check_state
from ..step.task import Task


def predict(
    task: Task,
    state: TrainState,
    data: Any,
    *,
    outputs: str | Iterable[str] | None = None,
    batch_size: int = 32,
) -> PyTree:
    """A model's outputs for every row of a data set, in the data's own order.

    They are what `Task(predict_fn=)` returns, or without it the outputs of the loss (`with_outputs`), of which
    `outputs` names those that are wanted. As in evaluation, `ctx.train` is False. One batch is fetched while the next
    is computed; the program is compiled once, and rows of padding are left out.

    Args:
      task: the Task.
      state: a TrainState; nothing is changed.
      data: as in `fit`. Without `predict_fn` it has to hold what the loss reads, labels included.
      outputs: a name, for that array alone; names, for a dict of them; None is everything.
      batch_size: rows of a batch, where `data` is arrays or examples.

    Returns:
      A tree of NumPy arrays `[N, …]`, in the form in which the function returns them.

    Raises:
      ConfigError: if the task has neither `predict_fn` nor outputs, or none of that name.
      DataError: if the data is empty or a loader that shuffles, or an output has no row per example.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> def predict_fn(params, batch, ctx):
      ...     return batch * params["w"]
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1), predict_fn=predict_fn)
      >>> state = ft.init_state(task, {"w": np.float32(2)})
      >>> ft.predict(task, state, np.array([1.0, 2.0, 3.0], np.float32), batch_size=2).tolist()
      [2.0, 4.0, 6.0]
    """
    checks.check_task(task)
    check_state(state, "predict")
    batch_size = check.integer("batch_size", batch_size, at_least=1)
    wanted = outputs if outputs is None or isinstance(outputs, str) else tuple(outputs)
    if is_shuffled_loader(data):
        raise DataError(
            "`data` is a loader that shuffles by itself: whose outputs these are could not be told afterwards. Give "
            "its data set, `predict(task, state, loader.dataset, batch_size=loader.batch_size)`"
        )
    source = data_lib.as_source(data, batch_size, shuffle=False, seed=0)
    mesh = mesh_of(state)

    def placed(batch: Any, weight: Any) -> tuple[Any, Any]:
        return (batch, weight) if mesh is None else place(batch, weight, mesh)

    first_met(
        source,
        "data",
        lambda *first: jax.eval_shape(functools.partial(programs.outputs_of, task, state), *placed(*first)),
    )
    parts, waiting = [], None
    for batch, weight in source.epoch(0, 0):
        rows = np.asarray(weight) != 0
        with jax.transfer_guard_host_to_device("allow"):
            out = programs.outputs_of(task, state, *placed(batch, weight))
        out = _chosen(out, wanted, "predict_fn" if task.predict_fn else "loss_fn")
        if waiting is not None:
            parts.append(_fetched(*waiting))
        waiting = out, rows
    if waiting is None:
        raise DataError("`data` has no batch to predict for")
    parts.append(_fetched(*waiting))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _chosen(out: PyTree, wanted: Any, function: str) -> PyTree:
    if isinstance(out, dict) and not out:
        raise ConfigError(
            "`task` says nothing to predict: give `Task(..., predict_fn=lambda params, batch, ctx: …)`, or let the "
            "loss return its outputs, `loss.with_outputs(logits=logits)`"
        )
    if wanted is None:
        return out
    names = [wanted] if isinstance(wanted, str) else wanted
    for name in names:
        if not isinstance(out, dict) or name not in out:
            there = list(out) if isinstance(out, dict) else []
            raise ConfigError(
                f"`outputs`: `{function}` returns no {name!r}, only {tree.some(there) if there else tree.describe(out)}"
                + check.did_you_mean(name, there)
            )
    return out[wanted] if isinstance(wanted, str) else {name: out[name] for name in names}


def _fetched(out: PyTree, rows: np.ndarray) -> PyTree:
    def kept(path: Any, x: Any) -> Any:
        if np.ndim(x) == 0 or x.shape[0] < len(rows):
            raise DataError(
                f"the output `{path}` must have one row per example, {len(rows)} for this batch, got shape "
                f"{list(np.shape(x))}"
            )
        return x[: len(rows)] if rows.all() else x[: len(rows)][rows]

    host = sharding.to_host(out)
    leaves = [kept(path or "predictions", x) for path, x in tree.items(host)]
    return jax.tree.unflatten(jax.tree.structure(host), leaves)
