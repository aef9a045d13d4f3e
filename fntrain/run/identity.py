"""What makes a run the run it is: its task, data, batch size and seed, compared when it is resumed."""

import json
import platform
import warnings
from collections.abc import Collection
from typing import Any

from .._core.errors import RunMismatchError
from .._core.fingerprint import differences
from ..checkpoint.store import version_of
from ..step.task import Task


def identity_of(task: Task, data: dict[str, Any], batch_size: Any, seed: int) -> dict[str, Any]:
    """The identity of a run, as JSON: equal exactly when task, data, batch size and seed are."""
    python = ".".join(platform.python_version_tuple()[:2])
    identity = {
        "task": task.fingerprint(),
        "data": data,
        "batch_size": batch_size,
        "seed": seed,
        "python": python,
    }
    return json.loads(json.dumps(identity, default=str))


def in_words(task: Task) -> dict[str, Any]:
    """A task for people to read, and for tools that show it."""
    return {
        "loss_fn": getattr(task.loss_fn, "__qualname__", type(task.loss_fn).__name__),
        "tx": repr(task.tx),
        "metrics": {name: repr(m) for name, m in task.metrics.items()},
        "microbatches": task.microbatches,
        "policy": repr(task.policy),
    }


OVERRIDES = (
    "loss_fn",
    "tx",
    "metrics",
    "microbatches",
    "policy",
    "axis_name",
    "train_step",
    "eval_step",
    "data",
    "batch_size",
    "seed",
    "callbacks",
    "versions",
)
"""What may be said to differ on a resume."""


def check_identity(
    saved: dict[str, Any],
    now: dict[str, Any],
    task: dict[str, Any],
    where: Any,
    override: Collection[str] = (),
) -> dict[str, list[str]]:
    """Refuse to go on with another run.

    Args:
      saved: the identity in the run directory.
      now: that of the call.
      task: the call's task in words, which the first version compared.
      where: the run directory.
      override: the parts that may differ, of `OVERRIDES`.

    Returns:
      What differs and may, by part, a line each.

    Raises:
      RunMismatchError: with the differences that may not be, a line each, and how to say that they may.
    """
    parts = compared(saved, now, task, where)
    lines = [line for part in parts if part not in override for line in parts[part]]
    if lines:
        more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
        names = ", ".join(f'"{part}"' for part in parts)
        raise RunMismatchError(
            f"`resume`: the run in {where} is another one than this call describes (go on all the same with "
            f"`override=({names},)`, which the run notes, or choose another `run_dir`):\n  "
            + "\n  ".join([*lines[:10], *more])
        )
    return parts


def compared(
    saved: dict[str, Any], now: dict[str, Any], task: dict[str, Any], where: Any
) -> dict[str, list[str]]:
    """What differs between two identities, by part of `OVERRIDES`, a line each."""
    saved, now = dict(saved), dict(now)
    if "python" in now and "python" not in saved:  # the first version's: a task was its text
        saved["python"], now["task"] = now["python"], task
        if "object at 0x" in str(saved) or "<function" in str(saved):
            saved["task"] = now["task"]  # an address says nothing
            warnings.warn(
                f"the run in {where} was saved by a version that could not tell transforms of other libraries apart; "
                f"whether this task is the same one is not known",
                RuntimeWarning,
                stacklevel=5,
            )
    if saved.get("python") != now.get("python"):
        warnings.warn(
            f"the run in {where} was saved under Python {saved['python']}, and this is {now['python']}: whether the "
            f"code of your functions is the same is not known",
            RuntimeWarning,
            stacklevel=5,
        )
        saved, now = _without_code(saved), _without_code(now)
    if isinstance(
        saved.get("task"), dict
    ):  # what another version did not know of, and this call does not use
        unused = {key: None for key, value in now["task"].items() if value is None}
        saved["task"] = {**unused, **saved["task"]}
    parts: dict[str, list[str]] = {}
    for line in differences(saved, now):
        parts.setdefault(_part(line), []).append(line)
    return parts


def versions() -> dict[str, str]:
    """The versions that decide what a step's program computes."""
    return {name: version_of(name) for name in ("fntrain", "jax", "jaxlib")}


def check_versions(saved: dict[str, str], where: Any, override: Collection[str] = ()) -> list[str]:
    """Warn of a run that was saved under other versions, unless they may differ; what differs, a line each."""
    now = versions()
    others = [name for name in now if saved.get(name) not in (None, now[name])]
    lines = [f"{name} {saved[name]}, and this is {now[name]}" for name in others]
    if lines and "versions" not in override:
        warnings.warn(
            f"the run in {where} was saved under {'; '.join(lines)}: a step may round otherwise, so "
            f'that the run is not bit for bit what it would have been; `override=("versions",)` takes that, in silence',
            RuntimeWarning,
            stacklevel=4,
        )
    return lines


def _part(line: str) -> str:
    """The name in `OVERRIDES` of what a line of differences is about."""
    first, *more = line.partition(":")[0].split(".")
    inner = first == "task" or (first == "data" and more[:1] in (["batch_size"], ["seed"]))
    return more[0] if inner and more else first


def _without_code(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _without_code(v) for k, v in x.items() if k not in ("code", "python")}
    return [_without_code(v) for v in x] if isinstance(x, list) else x
