"""Names that have moved are found under their old ones, with a warning that says where they are."""

import importlib
import subprocess
import sys
from operator import attrgetter

import pytest

import fntrain as ft


@pytest.fixture(autouse=True)
def the_door_is_closed(monkeypatch):
    """As in a process that has imported nothing by the old names."""
    for name in [name for name in sys.modules if name.split(".")[:2] == ["fntrain", "loop"]]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("fntrain.loop.fit.fit", "fit"),
        ("fntrain.loop.data.data_loader", "data_loader"),
        ("fntrain.loop.checkpoint.Checkpointer", "Checkpointer"),
        ("fntrain.loop.checkpoint.Keep", "Keep"),
        ("fntrain.loop.callbacks.EarlyStopping", "callbacks.EarlyStopping"),
        ("fntrain.loop.epoch.evaluate", "evaluate"),
        ("fntrain.loop.export.load", "load"),
        ("fntrain.loop.split.split", "split"),
    ],
)
def test_fntrain_loop_is_found_and_warns(old, now):
    module, _, name = old.rpartition(".")
    with pytest.warns(DeprecationWarning, match="`fntrain.loop` has moved"):
        found = getattr(importlib.import_module(module), name)
    assert found is attrgetter(now)(ft)


def test_what_never_was_there_is_no_attribute():
    with (
        pytest.warns(DeprecationWarning, match="`fntrain.loop` has moved"),
        pytest.raises(ImportError, match="cannot import name 'no_such_thing'"),
    ):
        from fntrain.loop.fit import no_such_thing  # noqa: F401


def test_the_library_itself_does_not_go_through_the_door():
    code = """
import fntrain, fntrain.cli, sys
assert "fntrain.loop" not in sys.modules
from fntrain.loop.fit import fit  # where a user's program stands, the warning is shown
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "DeprecationWarning: `fntrain.loop` has moved" in done.stderr


def test_pictures_have_their_short_name():
    import fntrain.plots

    assert fntrain.plots.learning_curves is ft.plots.learning_curves
