"""What a run is about to do, in a few lines: devices, memory, what of the optimizer is effective, how many steps."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import optax

from .. import tree
from .._core.value import closure_name
from ..step.state import TrainState
from ..step.task import Task
from ..transforms import MultiSteps, Transform
from .text import bytes_text


def summary(
    task: Task,
    state: TrainState,
    *,
    batch_size: int | None = None,
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
      batch_size: rows of a batch.
      steps_per_epoch: batches of an epoch.
      epochs: epochs in all.
      steps: batches in all.
      steps_per_call: how many steps one dispatch runs.

    Returns:
      One fact a line, each under its label.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> tx = ft.chain(ft.clip_by_norm(1.0), ft.MultiSteps(ft.optimizers.adamw(1e-3), 4))
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], 0), tx)
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
        "optimizer": _name(task.tx),
        **_effective(task.tx),
        "batch": _batch(task, batch_size),
        "run": _length(task, steps_per_epoch, epochs, steps, steps_per_call),
    }
    return "\n".join(f"{label:<10}  {text}" for label, text in facts.items() if text)


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


def _effective(tx: optax.GradientTransformation) -> dict[str, str]:
    """Which rate, which clip, which decay the updates are made with."""
    found: dict[str, list[str]] = {"rate": [], "clipping": [], "decay": []}
    opaque = False
    for where, stage, preconditioned in _stages(tx):
        name = _factory(stage)
        arguments = stage.call.arguments if isinstance(stage, Transform) and stage.call else {}
        if name == "scale_by_learning_rate" and "learning_rate" in arguments:
            found["rate"].append(f"{arguments['learning_rate']!r}{where}")
        elif name.startswith(("clip", "adaptive_grad_clip")):
            found["clipping"].append(f"{_name(stage)}{where}")
        elif name == "add_weight_decay" and "rate" in arguments:
            kind = "decoupled" if preconditioned else "L2"
            mask = "" if arguments["mask"] is None else f", where {arguments['mask']!r}"
            found["decay"].append(f"{arguments['rate']!r}, {kind}{mask}{where}")
        opaque |= not isinstance(stage, Transform)
    if not opaque:
        found["clipping"] = found["clipping"] or ["none"]
        found["decay"] = found["decay"] or ["none"]
    return {label: "; ".join(dict.fromkeys(texts)) for label, texts in found.items()}


def _stages(
    tx: optax.GradientTransformation, where: str = "", preconditioned: bool = False
) -> Iterator[tuple[str, optax.GradientTransformation, bool]]:
    """Every innermost stage in order, the group it is for, and whether its input is no longer a gradient."""
    if _factory(tx) == "_in_float32":
        tx = tx.call.arguments["tx"]  # type: ignore[attr-defined]
    stages = tx.stages if isinstance(tx, Transform) else {}
    if not stages:
        yield where, tx, preconditioned
        return
    groups = _factory(tx) == "by_path"
    for key, stage in stages.items():
        for part in _stages(stage, f" for `{key}`{where}" if groups else where, preconditioned):
            yield part
            if not groups:  # which do not follow one another
                preconditioned = preconditioned or _preconditions(_factory(part[1]))


def _preconditions(name: str) -> bool:
    return name in ("momentum", "nesterov", "trace") or (
        name.startswith("scale_by_") and name != "scale_by_learning_rate"
    )


def _factory(tx: optax.GradientTransformation) -> str:
    if isinstance(tx, Transform) and tx.call is not None:
        return tx.call.name
    return closure_name(tx) or type(tx).__name__


def _name(tx: optax.GradientTransformation) -> str:
    return repr(tx) if isinstance(tx, Transform) else f"optax's {_factory(tx)}"


def _batch(task: Task, batch_size: int | None) -> str:
    if batch_size is None:
        return ""
    text = f"{batch_size} example{'s' * (batch_size != 1)}"
    if task.microbatches > 1:
        text += f" in {task.microbatches} micro-batches"
    every = _accumulated(task.tx)
    if isinstance(every, int) and every > 1:
        text += f", {every * batch_size} an update ({every} batches each)"
    elif not isinstance(every, int):
        text += f", accumulated over {every!r} batches"
    return text


def _accumulated(tx: optax.GradientTransformation) -> Any:
    """How many batches an update takes: a number, or its schedule."""
    if isinstance(tx, MultiSteps):
        return tx.call.arguments["every_k_schedule"]  # type: ignore[union-attr]
    inner = [_accumulated(stage) for stage in tx.stages.values()] if isinstance(tx, Transform) else []
    return next((every for every in inner if every != 1), 1)


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
        every = _accumulated(task.tx)
        if isinstance(every, int) and every > 1:
            parts[-1] += f", {steps // every:,} updates"
    if not parts:
        return ""
    text = ": ".join(parts)
    return text + (f", {steps_per_call} a call" if steps_per_call not in (None, 1) else "")
