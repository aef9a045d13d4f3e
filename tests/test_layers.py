"""Layers only look down: the imports of every module, parsed, those inside functions too, against one list.

The folders are the layers. A module may import from the layers below its own, and from its own folder; inside a
folder no two files import each other, in however many steps.
"""

import ast
from pathlib import Path

import fntrain

PACKAGE = Path(fntrain.__file__).parent

# Low to high; what stands in one line does not look at what stands beside it.
LAYERS = [
    ["_core"],
    ["tree", "protocols", "resample"],
    ["sharding"],  # losses that work in chunks have to know which axes they are mapped over
    ["schedules", "losses", "precision", "metrics", "scores"],
    ["transforms"],
    ["optimizers"],
    ["step"],
    ["models", "data", "testing"],
    ["checkpoint", "show"],  # `fit` shows its progress, and so what shows stands below what runs
    ["run"],
    ["callbacks"],
    ["population", "tools"],
    ["demo"],
    ["cli"],
    ["__main__"],
]
DOORS = {"plots", "loop"}  # modules that hold nothing: names that have moved, or a short name
HEAVY = {
    "orbax",
    "rich",
    "flax",
    "chex",
    "matplotlib",
    "sklearn",
    "tensorstore",
    "grain",
    "tensorboardX",
    "safetensors",
    "equinox",
    "haiku",
    "optuna",
    "mlflow",
    "wandb",
}
ONLY_IN = {"orbax": "checkpoint.store", "tensorstore": "checkpoint.store"}


def rank(top: str) -> int:
    for i, names in enumerate(LAYERS):
        if top in names:
            return i
    raise AssertionError(f"module `{top}` has no layer; say in tests/test_layers.py where it stands")


def imports(path: Path, package: Path) -> list[tuple[str, bool, int]]:
    """`(dotted name, whether it is for the type checker or waits for a call, line)` of all that a file imports."""
    parents = [package.name, *path.relative_to(package).parent.parts]
    tree = ast.parse(path.read_text(), str(path))
    waiting = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING"))
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in waiting, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import tree` names modules, and is no import of the package they are in (which is being
            # imported already); `from .tree import where` names things in one.
            folder = package.parent.joinpath(*base.split("."))
            for alias in node.names:
                is_module = (folder / alias.name).is_dir() or (folder / f"{alias.name}.py").exists()
                target = f"{base}.{alias.name}" if is_module or base == package.name else base
                found.append((target, id(node) in waiting, node.lineno))
    return found


def files(package: Path) -> dict[str, Path]:
    out = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


def violations(package: Path) -> list[str]:
    """Every import that looks up or sideways, comes too early, or closes a circle."""
    problems, edges = [], {}
    modules = files(package)
    for module, path in modules.items():
        top = module.split(".")[0]
        if module == "" or top in DOORS:
            continue  # the public surface sees all
        where = path.relative_to(package)
        edges[module] = set()
        for target, waits, line in imports(path, package):
            parts = target.split(".")
            if parts[0] in HEAVY and not waits:
                problems.append(f"{where}:{line} imports {parts[0]} when it is itself imported")
            if ONLY_IN.get(parts[0], module) != module:
                problems.append(f"{where}:{line} imports {parts[0]}, which {ONLY_IN[parts[0]]} alone may")
            if parts[0] != package.name:
                continue
            if len(parts) == 1:
                problems.append(f"{where}:{line} imports the whole package, which hides what is used")
                continue
            other, inside = parts[1], ".".join(parts[1:])
            if other == top:
                if inside in modules and inside != module:
                    edges[module].add(inside)
                continue
            if other == "__version__":
                continue
            if other in DOORS:
                problems.append(
                    f"{where}:{line} goes through the door `{other}`; import from where things live"
                )
            elif rank(other) > rank(top):
                problems.append(f"{where}:{line} looks up to {other}")
            elif rank(other) == rank(top):
                problems.append(f"{where}:{line} looks sideways to {other}")
    return problems + [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(edges)]


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    # A folder's own `__init__` sees all of its files, and none of them may see it.
    found, done = [], set()

    def visit(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
            return
        if node in done:
            return
        for other in sorted(edges.get(node, ())):
            visit(other, [*path, node])
        done.add(node)

    for node in sorted(edges):
        visit(node, [])
    return found


def test_layers_only_look_down():
    assert violations(PACKAGE) == []


def test_every_module_has_a_layer():
    for module in files(PACKAGE):
        if module and module.split(".")[0] not in DOORS:
            rank(module.split(".")[0])


def test_the_parser_sees_the_edges_there_are():
    # A check that finds no imports finds no violations: some edges that must be seen.
    seen = {target for target, *_ in imports(PACKAGE / "step" / "programs.py", PACKAGE)}
    assert {"fntrain.step.gradients", "fntrain.tree", "fntrain.step.task", "jax"} <= seen
    lazy = [
        target
        for target, waits, _ in imports(PACKAGE / "checkpoint" / "store.py", PACKAGE)
        if waits and target.startswith("orbax")
    ]
    assert lazy


def specimen(tmp_path, **sources):
    package = tmp_path / "fntrain"
    for name, source in {"__init__": "", **sources}.items():
        path = package / (name.replace("__in__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return violations(package)


def test_a_sound_specimen_passes(tmp_path):
    sources = {
        "_core__in__check": "",
        "tree": "from ._core.check import x\n",
        "losses__in__loss": "from .. import tree\n",
        "losses__in____init__": "from .loss import Loss\n",
        "step__in__step": "def f():\n    from ..losses import Loss\n",
        "loop": "from .step import step\n",
    }
    assert specimen(tmp_path, **sources) == []


def test_broken_specimens_are_rejected(tmp_path):
    broken = {
        "upward": {"tree": "from .step import step\n", "step__in__step": ""},
        "upward, by a name": {"losses": "from .step.task import Task\n", "step__in__task": ""},
        "upward, absolute": {"tree": "from fntrain.step import train_step\n", "step": ""},
        "upward, in a folder": {"transforms__in__clip": "from ..step import task\n", "step__in__task": ""},
        "upward, in a function": {"tree": "def f():\n    from . import step\n", "step": ""},
        "upward, for the type checker": {
            "tree": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import step\n",
            "step": "",
        },
        "sideways": {"losses": "from . import schedules\n", "schedules": ""},
        "cycle": {"transforms__in__a": "from . import b\n", "transforms__in__b": "from .a import f\n"},
        "cycle, in a function": {
            "transforms__in__a": "from . import b\n",
            "transforms__in__b": "def g():\n    from .a import f\n",
        },
        "cycle, with the folder itself": {
            "transforms__in____init__": "from .a import f\n",
            "transforms__in__a": "from ..transforms import g\n",
        },
        "orbax": {"step__in__state": "def f():\n    import orbax.checkpoint as ocp\n"},
        "orbax at import": {"checkpoint__in__store": "import orbax.checkpoint\n"},
        "rich at import": {"show__in__progress": "from rich.progress import Progress\n"},
        "the whole package": {"step": "def f():\n    import fntrain as ft\n"},
        "through a door": {"tools": "from . import plots\n", "plots": ""},
        "no layer": {"helpers": "from . import tree\n", "tree": ""},
    }
    for name, sources in broken.items():
        try:
            found = specimen(tmp_path / name.replace(" ", "_"), **sources)
        except AssertionError as error:
            found = [str(error)]
        assert found, name
