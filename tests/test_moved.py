"""Names that have moved are found under their old ones, with a warning that says where they are."""

import subprocess
import sys

import pytest


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("fntrain.loop.fit.fit", "ft.fit"),
        ("fntrain.loop.data.data_loader", "ft.data_loader"),
        ("fntrain.loop.checkpoint.Checkpointer", "ft.Checkpointer"),
        ("fntrain.loop.checkpoint.Keep", "ft.Keep"),
        ("fntrain.loop.callbacks.EarlyStopping", "ft.callbacks.EarlyStopping"),
        ("fntrain.loop.epoch.evaluate", "ft.evaluate"),
        ("fntrain.loop.export.load", "ft.load"),
        ("fntrain.loop.split.split", "ft.split"),
    ],
)
def test_fntrain_loop_is_found_and_warns(old, now):
    module, _, name = old.rpartition(".")
    done = run(f"from {module} import {name} as old\nimport fntrain as ft\nassert old is {now}")
    assert done.returncode == 0, done.stderr
    assert "DeprecationWarning: `fntrain.loop` has moved" in done.stderr


def test_what_never_was_there_is_no_attribute():
    done = run("from fntrain.loop.fit import no_such_thing")
    assert done.returncode
    assert "cannot import name 'no_such_thing'" in done.stderr


def test_the_library_itself_does_not_go_through_the_door():
    done = run("import fntrain, fntrain.cli, sys; assert 'fntrain.loop' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_pictures_have_their_short_name():
    done = run(
        "import fntrain.plots as p, fntrain as ft; assert p.learning_curves is ft.plots.learning_curves"
    )
    assert done.returncode == 0, done.stderr
