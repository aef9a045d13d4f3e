"""What people copy has to run: the examples as scripts, the notebooks in a kernel, the README's code."""

import contextlib
import io
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ELSEWHERE = {"sharded_lm": "test_multiprocess.py"}  # run there, on one device and on many
QUICK = {"gpt": ["--steps", 40, "--batch", 16]}
FEWER = {"equinox_transformer": 60}  # steps
# In processes of their own, with one device each; the others run here, where everything is imported.
APART = {"digits", "gpt"}
LONGER = {"sharded_lm": 120, "gpt": 180}  # lines, where there is more to show
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
README = (ROOT / "README.md").read_text()


def run(arguments, folder):
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def run_here(path, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(path)])
    out, err = io.StringIO(), io.StringIO()
    # A reader's JAX is not set up as strictly as the tests'.
    usual = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with usual[0], usual[1], contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if path.stem in FEWER:
            runpy.run_path(str(path))["main"](FEWER[path.stem])
        else:
            runpy.run_path(str(path), run_name="__main__")
    assert err.getvalue() == ""
    return out.getvalue()


def test_there_are_some():
    # Parametrised over nothing, the tests below would pass.
    assert {"digits", "custom_loop", "nnx_cnn", "linen_cnn", "equinox_transformer", "imbalanced", "gpt"} <= {
        path.stem for path in EXAMPLES
    }
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.stem not in ELSEWHERE], ids=lambda path: path.stem
)
def test_example(path, tmp_path, monkeypatch):
    if path.stem in APART:
        out = run([path, *QUICK.get(path.stem, [])], tmp_path)
    else:
        out = run_here(path, tmp_path, monkeypatch)
    if path.stem == "gpt":  # uniform: 8; how often each byte is there by itself: 4.9
        assert float(re.search(r"held out: ([\d.]+) bits a byte", out)[1]) < 4.6
    elif path.stem == "equinox_transformer":  # uniform: 5.545, and half of it is learned in 60 steps
        last, mean = map(float, re.search(r"last weights ([\d.]+), of their average ([\d.]+)", out).groups())
        assert max(last, mean) < 2.6
    else:
        (accuracy,) = re.findall(r"^validation accuracy ([\d.]+)$", out, re.M)
        assert float(accuracy) >= 0.95
    assert not list(tmp_path.iterdir())  # an example writes nothing


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert len(path.read_text().splitlines()) < LONGER.get(path.stem, 100)


def cells(path):
    return json.loads(path.read_text())["cells"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path):
    command = [sys.executable, ROOT / "notebooks" / "execute.py", path, "--into", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # What is in the repository was executed from what is in the repository.
    for kept, now in zip(cells(path), cells(tmp_path / path.name), strict=True):
        assert {**now, "outputs": None} == {**kept, "outputs": None}
        assert [shape(o) for o in now.get("outputs", [])] == [shape(o) for o in kept.get("outputs", [])]


def shape(output):
    """What must be the same on every machine: not the pixels of a picture, nor the last digits of a number."""
    kind = output["output_type"], output.get("name"), sorted(output.get("data", []))
    return *kind, len("".join(output.get("text", [])).splitlines())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_executed_and_clean(path):
    assert path.stat().st_size < 200_000
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(
        cell["metadata"] == {} for cell in cells(path)
    )  # when it ran, and how long, is nobody's business
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
        shown = json.dumps({k: v for k, v in output.get("data", {}).items() if k != "image/png"})
        shown += json.dumps(output.get("text", ""))
        assert not re.search(r"(?<![\w.<])/(home|tmp|root|usr|work|Users)\b|0x[0-9a-f]{6}", shown), shown


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


@pytest.mark.slow
def test_readme_code_runs(tmp_path):
    found = blocks("python")
    assert found
    # One after the other, as a reader would type them.
    (tmp_path / "readme.py").write_text("\n".join(found))
    out = run(["readme.py"], tmp_path)
    (accuracy,) = re.findall(r"accuracy.*?(0\.\d+)", out)[-1:]
    assert float(accuracy) >= 0.95


def test_readme_commands_come_first_and_are_those_that_ci_runs():
    first = blocks("sh")[0].splitlines()
    assert first[0].split("  #")[0].strip() == 'pip install -e ".[examples]" && fntrain demo'
    install, test = first[1].split("  #")[0].strip().split(" && ")
    ci = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert install == 'pip install -e ".[test]"'
    assert any(line.endswith('install -e ".[test]"') or '-e ".[test]"' in line for line in ci)
    assert ci[-1].split("/")[-1].strip('"') == test == "pytest"


def test_readme_and_the_laws_name_tests_and_files_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", README + (ROOT / "docs" / "ideas.md").read_text())
    assert len(named) >= 15
    for file, test in named:
        assert (ROOT / file).exists(), file
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.M) or not test, f"{file}::{test}"
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
