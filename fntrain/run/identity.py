"""What makes a run the run it is: its task, data, batch size and seed, compared when it is resumed."""

import json
import platform
import warnings
from typing import Any

from .._core.errors import RunMismatchError
from .._core.fingerprint import differences
from ..step.task import Task


def identity_of(task: Task, data: dict[str, Any], batch_size: int, seed: int) -> dict[str, Any]:
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


def check_identity(saved: dict[str, Any], now: dict[str, Any], task: dict[str, Any], where: Any) -> None:
    """Refuse to go on with another run.

    Args:
      saved: the identity in the run directory.
      now: that of the call.
      task: the call's task in words, which the first version compared.
      where: the run directory.

    Raises:
      RunMismatchError: with the differences, a line each.
    """
    saved, now = dict(saved), dict(now)
    if "python" in now and "python" not in saved:  # the first version's: a task was its text
        saved["python"], now["task"] = now["python"], task
        if "object at 0x" in str(saved) or "<function" in str(saved):
            saved["task"] = now["task"]  # an address says nothing
            warnings.warn(
                f"the run in {where} was saved by a version that could not tell transforms of other libraries apart; "
                f"whether this task is the same one is not known",
                RuntimeWarning,
                stacklevel=4,
            )
    if saved.get("python") != now.get("python"):
        warnings.warn(
            f"the run in {where} was saved under Python {saved['python']}, and this is {now['python']}: whether the "
            f"code of your functions is the same is not known",
            RuntimeWarning,
            stacklevel=4,
        )
        saved, now = _without_code(saved), _without_code(now)
    lines = differences(saved, now)
    if lines:
        more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
        raise RunMismatchError(
            f"`resume`: the run in {where} is another one than this call describes:\n  "
            + "\n  ".join([*lines[:10], *more])
        )


def _without_code(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _without_code(v) for k, v in x.items() if k not in ("code", "python")}
    return [_without_code(v) for v in x] if isinstance(x, list) else x
