"""Names that have moved: `fntrain.loop` is `fntrain.run`, `data`, `checkpoint`, `callbacks` and `show` now.

Kept for one version. The public names never were here: they are `fntrain.fit`, `fntrain.data_loader` and so on.
"""

import importlib
import sys
import types
import warnings

_MOVED = {
    "callbacks": ["callbacks"],
    "capsule": ["run.capsule"],
    "checkpoint": ["checkpoint.checkpointer", "checkpoint.keep"],
    "chunks": ["run.dispatch"],
    "data": ["data.source", "data.arrays", "data.stream", "data.position", "data.columns"],
    "epoch": ["run.epoch"],
    "export": ["checkpoint.safetensors"],
    "feed": ["data.feed"],
    "fit": ["run.fit"],
    "grain": ["data.grain"],
    "history": ["run.history"],
    "lock": ["run.lock"],
    "notebook": ["show.notebook"],
    "parts": ["checkpoint.parts"],
    "prefetch": ["data.prefetch"],
    "progress": ["show.progress", "show.text"],
    "rescue": ["run.rescue"],
    "run": ["run.directory"],
    "signals": ["run.signals"],
    "split": ["data.split"],
    "summary": ["show.summary", "show.text"],
    "tensors": ["data.tensors"],
    "writers": ["run.writers"],
}


def _door(name: str, homes: list[str]) -> types.ModuleType:
    """A module of the old name that finds things where they are now."""
    modules = [importlib.import_module(f"fntrain.{home}") for home in homes]
    door = types.ModuleType(f"{__name__}.{name}", f"Moved to {', '.join(m.__name__ for m in modules)}.")

    def find(attribute: str) -> object:
        for module in modules:
            if hasattr(module, attribute):
                return getattr(module, attribute)
        raise AttributeError(f"module {door.__name__!r} has no attribute {attribute!r}")

    door.__getattr__ = find  # type: ignore[method-assign]
    return door


for _name, _homes in _MOVED.items():
    globals()[_name] = sys.modules[f"{__name__}.{_name}"] = _door(_name, _homes)

warnings.warn(
    "`fntrain.loop` has moved and will be gone in the next version: everything public is in `fntrain` itself "
    "(`fntrain.fit`, `fntrain.data_loader`), the rest in `fntrain.run`, `fntrain.data` and `fntrain.checkpoint`",
    DeprecationWarning,
    stacklevel=2,
)
