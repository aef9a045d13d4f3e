"""Replay capsules: one step of a run, with all that is needed to take it again."""

import os
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core.digest import crc32
from .._core.errors import CheckpointError
from .._core.typing import Batch, PyTree
from ..checkpoint.checkpointer import Checkpointer
from ..step import checks, gradients, programs, provenance
from ..step.provenance import BadStep
from ..step.state import TrainState, init_state
from ..step.step import train_step
from ..step.task import Task
from ..transforms import loss_scale, notes


class Capsule(NamedTuple):
    """One step, before it was taken."""

    path: Path
    state: TrainState
    batch: Batch
    weight: Any
    about: dict[
        str, Any
    ]  # `task`, `versions`, `bad` as text, and `after`: digests of the state behind the step


def examine(task: Task, state: TrainState, batch: Batch, weight: Any = None) -> BadStep | None:
    """What is not finite in the step that comes next; None if its loss and gradient are.

    The step's loss and gradient are computed, and nothing is updated. Where the optimizer has no guard to note
    it, or the question comes up afterwards, this answers for a state and a batch at hand.

    Args:
      task: the Task.
      state: a TrainState; it stays usable.
      batch: a tree of arrays `[B, …]`.
      weight: a weight per example, `[B]`, or None.

    Returns:
      A BadStep, or None.

    Raises:
      As `train_step`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: jnp.sqrt(b * p["w"]), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": jnp.zeros(())})
      >>> print(ft.tools.examine(task, state, jnp.ones(2)))
      step 0: gradient of `w` has 1 infinite; loss was finite
    """
    checks.check_task(task)
    checks.check_batch(batch)
    noted = np.asarray(_noted(task, state, batch, weight))
    return provenance.read(noted, tree.paths(tree.split(state.params)[0])) if noted[1] else None


def _noted_of(task: Task, state: TrainState, batch: Batch, weight: Any) -> jax.Array:
    key, scale = programs.step_key(state), loss_scale(state.opt_state)
    part = gradients.batch_gradient(
        task, state.params, state.model_state, batch, key, state.step, weight, scale
    )
    loss, grads = gradients.mean(part)
    return notes.note(state.step, loss, grads, tree.split(state.params)[0])


_noted = jax.jit(_noted_of, static_argnums=0)


def save_capsule(
    path: str | os.PathLike[str],
    task: Task,
    state: TrainState,
    batch: Batch,
    weight: Any = None,
    *,
    bad: BadStep | None = None,
) -> Path:
    """Write a step's capsule: the state before it, its batch and weight, versions, and digests of what it gives.

    The step is taken here once, on a copy, for the digests by which a replay knows itself to be the same. Arrays,
    numbers and text are all that is stored, as in a checkpoint.

    Args:
      path: a directory of its own, made.
      task: the Task.
      state: the state before the step; it stays usable.
      batch: the batch, of dicts, lists, tuples and arrays.
      weight: a weight per example, `[B]`, or None.
      bad: what was found to be wrong with the step, for the reader.

    Returns:
      The directory.

    Raises:
      CheckpointError: if it cannot be written.
    """
    after, _ = train_step(task, programs.copied(state), batch, weight)
    about = {
        "task": repr(task),
        "policy": repr(task.policy),
        "bad": "" if bad is None else str(bad),
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "optax")},
        "devices": [device.device_kind for device in jax.local_devices()[:1]],
        "after": digests(after),
    }
    with Checkpointer(path) as checkpoints:
        extra = {"batch": batch, "weight": weight, "about": about}
        checkpoints.save(state, step=int(state.step), extra=extra, overwrite=True)
    return Path(path)


def load_capsule(path: str | os.PathLike[str], task: Task, like: TrainState | None = None) -> Capsule:
    """A capsule that `save_capsule` or `fit` wrote.

    Args:
      path: its directory.
      task: the Task of the run.
      like: a state of the run's structure, values ignored; None makes one from the task and the saved parameters,
        which does for parameters that are dicts, lists and tuples of arrays.

    Raises:
      CheckpointError: if there is no capsule, it is damaged, or does not fit the task.
      ConfigError: if `task` is no Task.
    """
    checks.check_task(task)
    if not Path(path).is_dir():
        raise CheckpointError(f"there is no capsule {path}")
    with Checkpointer(path) as checkpoints:
        like = saved_form(checkpoints, task) if like is None else like
        state = checkpoints.restore(like)
        extra = checkpoints.extra()
    if not {"batch", "weight", "about"} <= set(extra):
        raise CheckpointError(f"{path} is a checkpoint, and no capsule: it holds no batch")
    return Capsule(Path(path), state, extra["batch"], extra["weight"], extra["about"])


def saved_form(checkpoints: Checkpointer, task: Task, step: int | None = None) -> TrainState:
    """The form of a state on disk, for parameters that are dicts, lists and tuples of arrays.

    Raises:
      CheckpointError: if it is no TrainState.
    """
    saved = checkpoints.as_saved(step=step)
    if not isinstance(saved, dict) or not {"params", "model_state", "key"} <= set(saved):
        raise CheckpointError(f"{checkpoints.directory} holds no TrainState")
    return jax.eval_shape(
        lambda p, m, k: init_state(task, p, model_state=m, key=k),
        *jax.tree.map(jnp.asarray, (saved["params"], saved["model_state"], saved["key"])),
    )


def digests(state: PyTree) -> dict[str, str]:
    """A digest of each leaf's bits, by path."""

    def one(x: Any) -> str:
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.extended)
        host = np.asarray(jax.random.key_data(x) if is_key else x)
        return f"{crc32(host):08x}"

    return {path: one(x) for path, x in tree.items(state)}
