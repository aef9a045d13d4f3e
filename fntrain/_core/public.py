"""What a module shows: its public names, and, for a name or an argument that is not there, the one that was meant."""

import sys
import types
from collections.abc import Collection
from typing import Any

from .arguments import check_class, checked
from .check import did_you_mean

LIBRARY = __name__.partition(".")[0] + "."


def surface(module: str, *, hot: Collection[str] = ()) -> None:
    """Make `dir` of a module its `__all__`, and answer a name or an argument that is not there with one that is.

    Called at the end of the module. Type checkers see nothing of it.

    Args:
      module: its `__name__`.
      hot: names that are called at every step, and are left as Python made them.
    """
    this = sys.modules[module]
    for name in this.__all__:
        x = vars(this)[name]
        if name not in hot and getattr(x, "__module__", "").startswith(LIBRARY):
            if (
                isinstance(x, types.FunctionType)
                and not hasattr(x, "__checked__")
                and not hasattr(x, "makes")
            ):
                checked_x = checked(x)
                setattr(this, name, checked_x)
                setattr(sys.modules[x.__module__], name, checked_x)  # where pickle looks for it
            elif isinstance(x, type):
                check_class(x)

    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        rooms = [x for x in (vars(this)[name] for name in this.__all__) if isinstance(x, types.ModuleType)]
        home = next((room.__name__ for room in rooms if name in getattr(room, "__all__", ())), None)
        hint = f"; it is `{home}.{name}`" if home else did_you_mean(name, this.__all__)
        raise AttributeError(f"module {module!r} has no attribute {name!r}{hint}")

    this.__getattr__ = missing  # type: ignore[attr-defined]
    this.__dir__ = lambda: sorted({*this.__all__, *(name for name in vars(this) if name.startswith("__"))})  # type: ignore[attr-defined]
