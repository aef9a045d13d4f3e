"""What a module shows: its public names, and, for a name that it has not, the one that was meant."""

import sys
import types
from typing import Any

from .check import did_you_mean


def surface(module: str) -> None:
    """Make `dir` of a module its `__all__`, and let a name that is not there be answered with one that is.

    Called at the end of the module. Type checkers see nothing of it.
    """
    this = sys.modules[module]

    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        rooms = [x for x in (vars(this)[name] for name in this.__all__) if isinstance(x, types.ModuleType)]
        home = next((room.__name__ for room in rooms if name in getattr(room, "__all__", ())), None)
        hint = f"; it is `{home}.{name}`" if home else did_you_mean(name, this.__all__)
        raise AttributeError(f"module {module!r} has no attribute {name!r}{hint}")

    this.__getattr__ = missing  # type: ignore[attr-defined]
    this.__dir__ = lambda: sorted({*this.__all__, *(name for name in vars(this) if name.startswith("__"))})  # type: ignore[attr-defined]
