"""The types that a user's checker sees: of the package, of README's programs and of every docstring's example."""

import doctest
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fntrain

ROOT = Path(fntrain.__file__).parents[1]

# optax 0.2.8 has no py.typed, so that whatever is derived from it counts as unknown. These are the two classes that
# ours derive from, as optax declares them.
OPTAX_STUBS = """
from typing import Any, NamedTuple, Protocol

class _Init(Protocol):
    def __call__(self, params: Any) -> Any: ...

class _Update(Protocol):
    def __call__(self, updates: Any, state: Any, params: Any = ..., **extra: Any) -> tuple[Any, Any]: ...

class GradientTransformation(NamedTuple):
    init: _Init
    update: _Update

class GradientTransformationExtraArgs(GradientTransformation): ...

def __getattr__(name: str) -> Any: ...
"""


def pyright(*arguments: str, cwd: Path) -> dict:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *arguments]
    # What is in `cwd` goes before what is installed.
    environment = os.environ | {"PYTHONPATH": f"{cwd}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)
    return json.loads(done.stdout[done.stdout.index("{") :])


def errors(report: dict) -> list[str]:
    return [
        f"{Path(d['file']).name}:{d['range']['start']['line'] + 1}: {d['message']}"
        for d in report["generalDiagnostics"]
        if d["severity"] == "error"
    ]


def modules():
    for found in pkgutil.walk_packages(fntrain.__path__, "fntrain."):
        if not found.name.endswith("__main__") and found.name != "fntrain.loop":
            yield importlib.import_module(found.name)


@pytest.mark.slow
def test_at_least_95_percent_of_the_public_symbols_have_known_types(tmp_path):
    (tmp_path / "optax-stubs").mkdir()
    (tmp_path / "optax-stubs" / "__init__.pyi").write_text(OPTAX_STUBS)
    report = pyright("--verifytypes", "fntrain", "--ignoreexternal", cwd=tmp_path)
    completeness = report["typeCompleteness"]
    unknown = [s["name"] for s in completeness["symbols"] if s["isExported"] and not s["isTypeKnown"]]
    assert completeness["completenessScore"] >= 0.95, (completeness["completenessScore"], unknown)


@pytest.mark.slow
def test_what_the_documents_show_passes_a_type_checker(tmp_path):
    """README's programs, whose blocks go on from one another, and each docstring's example."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) >= 3
    (tmp_path / "readme.py").write_text("\n".join(blocks))
    # `state, history = fit(...)` tells a checker what they are.
    (tmp_path / "pair.py").write_text(
        "import fntrain as ft\n\ndef run(task: ft.Task, state: ft.TrainState) -> ft.TrainState:\n"
        "    state, history = ft.fit(task, state, [])\n    history.rows().nothing\n    return state\n"
    )
    finder, count = doctest.DocTestFinder(exclude_empty=True), 0
    for module in modules():
        for test in finder.find(module, module.__name__):
            examples = [e.source for e in test.examples if e.exc_msg is None]
            if examples:
                count += 1
                # As doctest runs it: the module's own names are there.
                names = [
                    f"from {module.__name__} import {n} as {n}\n"
                    for n in vars(module)
                    if n.isidentifier() and n[:2] != "__"
                ]
                (tmp_path / f"{test.name.replace('.', '_')}.py").write_text("".join(names + examples))
    assert count > 140
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps(
            {
                "extraPaths": [str(ROOT)],
                "reportUnusedExpression": False,
                "reportPossiblyUnboundVariable": False,
            }
        )
    )
    found = errors(pyright(".", cwd=tmp_path))
    meant = [e for e in found if e.startswith("pair.py:5")]
    assert len(meant) == 1, "the checker should see that a history's rows are a list"
    # Names of other libraries for our arguments are looked up at run time; to a checker there is one name.
    aliases = [e for e in found if re.search(r'No parameter named "(lr|beta_1|epsilon|alpha)"', e)]
    assert [e for e in found if e not in meant and e not in aliases] == []
