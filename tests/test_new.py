"""`fntrain new`: what it writes trains at once, and its own test passes."""

import importlib
import sys

import jax
import pytest

from fntrain import cli
from fntrain.cli.new import DATA, MODELS, project


def make(folder, model, data):
    assert cli.main(["new", str(folder), "--model", model, "--data", data]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [".gitignore", "test_train.py", "train.py"]


@pytest.mark.parametrize(("model", "data"), [("plain", "arrays"), ("equinox", "iterable")])
def test_its_test_passes(model, data, tmp_path, monkeypatch, capsys):
    make(tmp_path / "project", model, data)
    monkeypatch.syspath_prepend(tmp_path / "project")
    # A reader's JAX is not set up as strictly as the tests'.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        try:
            importlib.import_module("test_train").test_it_learns(tmp_path)
            again = importlib.import_module("train").main(
                tmp_path / "run", epochs=4
            )  # goes on, and has nothing to do
        finally:
            sys.modules.pop("train", None), sys.modules.pop("test_train", None)
    assert again > 0.8
    assert capsys.readouterr().out.count("validation accuracy") == 2


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("data", DATA)
def test_every_combination_is_a_program(model, data):
    files = project(model, data)
    compile(files["train.py"], "train.py", "exec")
    assert "/runs/" in files[".gitignore"]
    assert max(map(len, files["train.py"].splitlines())) <= 110
    assert (
        "{" not in files["train.py"].partition("def main")[0].partition("def make_task")[2]
    )  # nothing left to fill in


def test_what_is_there_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("x = 1\n")
    assert cli.main(["new", str(tmp_path)]) == 2
    assert "is there already, and not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
    assert cli.main(["new", str(tmp_path / "mine.py")]) == 2


def test_a_wrong_option_names_the_one_meant(capsys):
    with pytest.raises(SystemExit):
        cli.main(["new", "x", "--model", "equinoks"])
    assert "did you mean 'equinox'" in capsys.readouterr().err
