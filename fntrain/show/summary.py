"""What a run is about to do, in a few lines: devices, memory, what of the optimizer is effective, how many steps."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from .. import tree
from ..data.cut import in_words
from ..schedules import Schedule
from ..step.state import TrainState
from ..step.task import Task
from ..transforms.adapt import Adapted
from ..transforms.clip import clip_by_leaf_norm, clip_by_norm, clip_by_value
from ..transforms.decay import add_weight_decay, scale_by_learning_rate
from ..transforms.stages import accumulated, walk
from ..transforms.types import Transform
from .describe import KINDS
from .text import bytes_text

CLIPS = (clip_by_norm, clip_by_leaf_norm, clip_by_value)


def summary(
    task: Task,
    state: TrainState,
    *,
    batch_size: int | Mapping[float, int] | None = None,
    steps_per_epoch: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    steps_per_call: int | str | None = None,
) -> str:
    """Describe a run before it begins; what is not given, or not known, is left out.

    Weight decay is called decoupled where it stands behind what rescales the gradient (Adam's moments, momentum),
    and L2 where it stands before. The insides of an optax transform are not known, and so it is only named.

    Args:
      task: the Task.
      state: its TrainState.
      batch_size: rows of a batch; or several, by the epochs that are over when each begins.
      steps_per_epoch: batches of an epoch.
      epochs: epochs in all.
      steps: batches in all.
      steps_per_call: how many steps one dispatch runs.

    Returns:
      One fact a line, each under its label.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> tx = ft.chain(ft.clip_by_norm(1.0), ft.MultiSteps(ft.optimizers.adamw(1e-3), 4))
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b[:, 0]), tx)
      >>> state = ft.init_state(task, {"w": np.zeros(1000, np.float32)})
      >>> print(summary(task, state, batch_size=32, steps_per_epoch=57, epochs=10))
      devices     1 cpu
      parameters  1,000 in 1 array (float32), 4.0 kB; the state with them 16.1 kB
      optimizer   chain(clip_by_norm(max_norm=1.0), MultiSteps(opt=adamw(), every_k_schedule=4))
      rate        0.001
      clipping    clip_by_norm(max_norm=1.0)
      decay       0.0001, decoupled
      batch       32 examples, 128 an update (4 batches each)
      run         10 epochs of 57 steps: 570 steps, 142 updates
    """
    facts = {
        "devices": _devices(state),
        "parameters": _parameters(task, state),
        "optimizer": _name(task.transform),
        **_effective(task, state),
        "batch": _batch(task, batch_size),
        "run": _length(task, steps_per_epoch, epochs, steps, steps_per_call),
    }
    return "\n".join(f"{label:<10}  {text}" for label, text in facts.items() if text)


def resumed(task: Task, state: TrainState, *, step: int, steps: int | None, updates: int, where: Any) -> str:
    """Describe from where a run goes on, and where its schedules stand.

    Args:
      task: the Task.
      state: the TrainState that was restored.
      step: the batches that it has seen.
      steps: batches in all; None if nobody knows.
      updates: the updates that it has had, which schedules count.
      where: the checkpoint.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> tx = ft.optimizers.sgd(ft.schedules.cosine(0.1, 600))
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b[:, 0]), tx)
      >>> state = ft.init_state(task, {"w": np.zeros(3, np.float32)})
      >>> print(resumed(task, state, step=50, steps=600, updates=50, where="runs/one/checkpoints/50"))
      resumed     at step 50 of 600 from runs/one/checkpoints/50
      schedule    learning_rate=cosine(start=0.1, steps=600), at update 50 of 600
    """
    lines = [f"{'resumed':<10}  at step {step}{'' if steps is None else f' of {steps}'} from {where}"]
    for stage in walk(task.transform, tree.split(state.params)[0]):
        for name, x in (stage.tx.call.arguments if stage.tx.call is not None else {}).items():
            if isinstance(x, Schedule) and not stage.tx.stages:
                length = "" if x.steps is None else f" of {x.steps}"
                lines.append(f"{'schedule':<10}  {name}={x!r}, at update {updates}{length}")
    return "\n".join(dict.fromkeys(lines))


def _devices(state: TrainState) -> str:
    shardings = {x.sharding for x in jax.tree.leaves(state)}
    devices = sorted(set().union(*(sharding.device_set for sharding in shardings)), key=lambda d: d.id)
    kind = devices[0].device_kind
    text = f"{len(devices)} {kind}"
    meshes = [sharding.mesh for sharding in shardings if hasattr(sharding, "mesh") and sharding.mesh.size > 1]
    if meshes:
        text += ", mesh " + " x ".join(f"{axis}={n}" for axis, n in meshes[0].shape.items())
    if jax.process_count() > 1:
        text += f", {jax.process_count()} processes"
    return text


def _parameters(task: Task, state: TrainState) -> str:
    leaves = jax.tree.leaves(state.params)
    dtypes = ", ".join(sorted({x.dtype.name for x in leaves}))
    held = _held(state)
    whole = tree.nbytes(state)
    text = (
        f"{tree.size(state.params):,} in {len(leaves)} array{'s' * (len(leaves) != 1)} ({dtypes}), "
        f"{bytes_text(tree.nbytes(state.params))}; the state with them {bytes_text(whole)}"
    )
    if held < whole:
        text += f", {bytes_text(held)} a device"
    compute = getattr(task.policy, "compute", None)
    return text + (f"; computed in {compute}" if compute and dtypes != compute else "")


def _held(state: TrainState) -> int:
    """Bytes of the state on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))


def _effective(task: Task, state: TrainState) -> dict[str, str]:
    """Which rate, which clip, which decay the updates are made with."""
    found: dict[str, list[str]] = {"rate": [], "clipping": [], "decay": []}
    opaque = False
    for stage in walk(task.transform, tree.split(state.params)[0]):
        tx = stage.tx
        if tx.stages:
            continue
        where = "".join(f" for `{group}`" for group in stage.groups)
        arguments = tx.call.arguments if tx.call is not None else {}
        if tx.made_by(scale_by_learning_rate):
            found["rate"].append(f"{arguments['learning_rate']!r}{where}")
        elif any(tx.made_by(clip) for clip in CLIPS) or (isinstance(tx, Adapted) and "clip" in tx.name):
            found["clipping"].append(f"{_name(tx)}{where}")
        elif tx.made_by(add_weight_decay):
            mask = "" if arguments["mask"] is None else f", where {arguments['mask']!r}"
            found["decay"].append(f"{arguments['rate']!r}, {KINDS[stage.rescaled]}{mask}{where}")
        opaque |= isinstance(tx, Adapted) and not tx.in_float32
    if not opaque:
        found["clipping"] = found["clipping"] or ["none"]
        found["decay"] = found["decay"] or ["none"]
    return {label: "; ".join(dict.fromkeys(texts)) for label, texts in found.items()}


def _name(tx: Transform) -> str:
    return f"optax's {tx.name}" if isinstance(tx, Adapted) else repr(tx)


def _batch(task: Task, batch_size: Any) -> str:
    if batch_size is None:
        return ""
    first, *later = in_words(batch_size).split(", ")
    text = ", ".join([f"{first} example{'s' * (first != '1')}", *later])
    if task.microbatches > 1:
        text += f" in {task.microbatches} micro-batches"
    every = accumulated(task.transform)
    if isinstance(every, int) and every > 1:
        each = "" if isinstance(batch_size, Mapping) else f", {every * batch_size} an update"
        text += f"{each} ({every} batches each)" if each else f", {every} batches an update"
    elif not isinstance(every, int):
        text += f", accumulated over {every!r} batches"
    return text


def _length(
    task: Task, steps_per_epoch: int | None, epochs: int | None, steps: int | None, steps_per_call: Any
) -> str:
    if steps is None and epochs is not None and steps_per_epoch is not None:
        steps = epochs * steps_per_epoch
    parts = []
    if epochs is not None:
        parts.append(f"{epochs} epoch{'s' * (epochs != 1)}")
        if steps_per_epoch is not None:
            parts[0] += f" of {steps_per_epoch:,} step{'s' * (steps_per_epoch != 1)}"
    elif steps_per_epoch is not None:
        parts.append(f"epochs of {steps_per_epoch:,} steps")
    if steps is not None:
        parts.append(f"{steps:,} step{'s' * (steps != 1)}")
        every = accumulated(task.transform)
        if isinstance(every, int) and every > 1:
            parts[-1] += f", {steps // every:,} updates"
    if not parts:
        return ""
    text = ": ".join(parts)
    return text + (f", {steps_per_call} a call" if steps_per_call not in (None, 1) else "")
