"""The Task of a run, which its directory cannot hold, found by name."""

import importlib
import os
import sys
from typing import Any

from .._core.errors import ConfigError
from ..step.task import Task


def task_named(where: str) -> Any:
    """The Task that `module:attribute` names."""
    module_name, _, attributes = where.partition(":")
    if not module_name or not attributes:
        raise ConfigError(f"--task {where}: give it as MODULE:ATTRIBUTE, such as train:task")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for name in attributes.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--task {where}: {error}") from None
    finally:
        sys.path.remove(os.getcwd())
    return found() if callable(found) and not isinstance(found, Task) else found


def fit_named(where: str) -> tuple[Any, Any, Any]:
    """The first arguments of a run's `fit`, `(task, state, data)`, that `module:attribute` names."""
    found = task_named(where)
    if not isinstance(found, tuple) or len(found) != 3:
        raise ConfigError(
            f"--task {where}: it must be `(task, state, data)` here, as `fit` was given them, or a function that makes "
            f"them, got {type(found).__name__}"
        )
    return found
