"""Layers only look down: the imports of every module, parsed, against the order the plan states."""

import ast
from pathlib import Path

import fntrain

PACKAGE = Path(fntrain.__file__).parent

# Low to high. A module imports from lower layers only, or from within its own package.
LAYERS = [
    ["_typing", "_check", "_value"],
    ["tree", "_manual", "_explicit", "_processes"],
    ["_provenance"],
    ["schedules", "losses", "_loss", "precision", "_sharding", "metrics", "scores", "transforms"],
    ["optimizers"],
    ["_task", "_packed"],
    ["_state", "_metrics"],
    ["_gradients"],
    ["_plan"],
    ["sharding"],
    ["_numerical"],
    ["_step"],
    ["interop", "testing"],
    ["loop"],
    ["plots", "tools", "callbacks"],
    ["demo", "cli"],
]
# Inside a layer of several modules, who may look at whom.
BESIDE = {
    ("losses", "_loss"),
    ("_check", "_typing"),
    ("_value", "_check"),
    ("_value", "_typing"),
    ("cli", "demo"),
    ("tools", "plots"),
}
HOST = ["interop", "testing", "loop", "plots", "tools", "callbacks", "demo", "cli"]


def rank(top: str) -> int:
    for i, names in enumerate(LAYERS):
        if top in names:
            return i
    raise AssertionError(f"module `{top}` has no layer; say in tests/test_layers.py where it stands")


def imports(path: Path, package: Path) -> list[tuple[str, bool, int]]:
    """`(dotted name, whether it waits, line)` of everything a file imports, ours made absolute.

    An import waits if it stands in a function, or is there for the type checker alone.
    """
    name = package.name
    parents = [name, *path.relative_to(package).parent.parts]
    tree = ast.parse(path.read_text(), str(path))
    inner = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING"))
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inner, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import tree` names modules, and is no import of the package they are in (which is being
            # imported already); `from .tree import where` names things in one.
            folder = package.parent.joinpath(*base.split("."))
            for alias in node.names:
                is_module = (folder / alias.name).is_dir() or (folder / f"{alias.name}.py").exists()
                target = f"{base}.{alias.name}" if is_module or base == name else base
                found.append((target, id(node) in inner, node.lineno))
    return found


def files(package: Path) -> dict[str, Path]:
    out = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        dotted = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        out[dotted] = path
    return out


def violations(package: Path) -> list[str]:
    """Every import that looks up, sideways, or hides, and every cycle."""
    problems, edges = [], {}
    modules = files(package)
    for module, path in modules.items():
        if module == "":
            continue  # the public surface sees all
        top = module.split(".")[0]
        where = path.relative_to(package)
        edges[module] = set()
        for target, in_function, line in imports(path, package):
            parts = target.split(".")
            if parts[0] == "orbax" and module != "loop.checkpoint":
                problems.append(f"{where}:{line} imports orbax, which loop/checkpoint.py alone may")
            if parts[0] in ("orbax", "rich", "flax", "matplotlib", "sklearn") and not in_function:
                problems.append(f"{where}:{line} imports {parts[0]} when it is itself imported")
            if parts[0] != package.name:
                continue
            if len(parts) == 1:
                # `import fntrain` inside itself hides what is used.
                problems.append(f"{where}:{line} imports the whole package")
                continue
            other = parts[1]
            inside = ".".join(parts[1:])
            if not in_function and inside in modules and inside != module:
                edges[module].add(inside)
            if other == top or other == "__version__":
                continue
            if in_function and top not in HOST and other in HOST:
                problems.append(f"{where}:{line} hides host code ({other}) in a function of device code")
            elif rank(other) > rank(top):
                problems.append(f"{where}:{line} looks up to {other}")
            elif rank(other) == rank(top) and (top, other) not in BESIDE:
                problems.append(f"{where}:{line} looks sideways to {other}")
    return problems + [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(edges)]


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
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
        if module:
            rank(module.split(".")[0])


def test_the_parser_sees_the_edges_there_are():
    # A check that finds no imports finds no violations: some edges that must be seen.
    seen = {target for target, *_ in imports(PACKAGE / "_step.py", PACKAGE)}
    assert {"fntrain._gradients", "fntrain.tree", "fntrain._task", "jax"} <= seen
    lazy = [
        t
        for t, inside, _ in imports(PACKAGE / "loop" / "checkpoint.py", PACKAGE)
        if inside and t.startswith("orbax")
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
    assert (
        specimen(tmp_path, tree="from ._check import x\n", _step="from . import tree, losses\n", losses="")
        == []
    )


def test_broken_specimens_are_rejected(tmp_path):
    broken = {
        "upward": dict(tree="from . import _step\n", _step=""),
        "upward, by a name": dict(losses="from ._task import Task\n", _task=""),
        "upward, absolute": dict(tree="from fntrain._step import train_step\n", _step=""),
        "upward, in a package": {
            "transforms__in____init__": "",
            "transforms__in___clip": "from .._task import Task\n",
        },
        "sideways": dict(losses="from . import schedules\n", schedules=""),
        "cycle": {"transforms__in__a": "from . import b\n", "transforms__in__b": "from .a import f\n"},
        "hidden host code": dict(_step="def f():\n    from .loop import fit\n", loop__in__fit=""),
        "hidden upward edge": dict(tree="def f():\n    from . import _step\n", _step=""),
        "orbax": dict(_state="def f():\n    import orbax.checkpoint as ocp\n"),
        "orbax at import": {"loop__in__checkpoint": "import orbax.checkpoint\n"},
        "rich at import": {"loop__in__progress": "from rich.progress import Progress\n"},
        "the whole package": dict(_step="def f():\n    import fntrain as ft\n"),
        "no layer": dict(helpers="from . import tree\n", tree=""),
    }
    for name, sources in broken.items():
        try:
            found = specimen(tmp_path / name.replace(" ", "_"), **sources)
        except AssertionError as error:
            found = [str(error)]
        assert found, name
