"""Damaged and malicious files: found, passed over or refused; never believed, never run."""

import ast
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import fntrain as ft
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.checkpoint.keep import Keep
from fntrain.checkpoint.pack import canonical
from fntrain.checkpoint.params import restore_params
from fntrain.checkpoint.safetensors import export, load

WHOLE = pytest.mark.reliability


def flatten(state):
    return {name: (np.asarray(x).dtype.name, np.asarray(x).tobytes()) for name, x in ft.tree.items(state)}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A directory with two steps, and their states: many dtypes, one array in several chunks' worth of bytes."""
    directory = tmp_path_factory.mktemp("original")
    states = {}
    with Checkpointer(directory, Keep(best=None)) as checkpoints:
        for step in (1, 2):
            rng = np.random.default_rng(step)
            states[step] = {
                "params": {
                    "w": rng.standard_normal(3000).astype(np.float32),
                    "half": np.asarray(rng.standard_normal(7), ft.tree.jnp.bfloat16),
                    "mask": rng.random(9) > 0.5,
                },
                "count": np.int64(step),
            }
            checkpoints.save(states[step], step=step, extra={"step": step, "order": rng.permutation(50)})
    return directory, states


def damage(file, how, rng):
    content = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
        return
    if how == "flip":
        for _ in range(rng.choice((1, 1, 8))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        content = content[: rng.randrange(len(content))]
    elif how == "zeros":  # what a file system gives for blocks that never reached the disk
        start = rng.randrange(len(content))
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    elif how == "grow":
        content += rng.randbytes(16)
    file.write_bytes(content)


@pytest.mark.parametrize("corruptions", [120, pytest.param(1000, marks=WHOLE)])
def test_r3_no_damage_is_silent(corruptions, two_steps, tmp_path, record):
    original, states = two_steps
    rng = random.Random(corruptions)
    files = sorted(path.relative_to(original) for path in (original / "2").rglob("*") if path.is_file())
    files = [file for file in files if (original / file).stat().st_size]
    hows = ("delete", "flip", "cut", "zeros", "grow")
    counts = dict(harmless=0, fell_back=0, silent=0, raw_errors=0, both_damaged_refused=0)
    by_kind = dict.fromkeys(hows, 0)
    for i in range(corruptions):
        directory = tmp_path / "copy"
        shutil.copytree(original, directory)
        how, file = hows[i % len(hows)], files[(i // len(hows)) % len(files)]
        damage(directory / file, how, rng)
        by_kind[how] += 1
        both = i % 9 == 8  # with every kind of damage in turn
        if both:
            damage(directory / "1" / "meta" / "checkpoint.json", "cut", rng)
        try:
            with (
                Checkpointer(directory, Keep(best=None)) as checkpoints,
                warnings.catch_warnings(record=True) as w,
            ):
                warnings.simplefilter("always")
                restored = checkpoints.restore(states[1])
                extra = checkpoints.extra()
            step = int(restored["count"])
            right = flatten(restored) == flatten(states[step]) and extra["step"] == step and step in (1, 2)
            right = right and np.array_equal(extra["order"], _order(step))
            said = any("passing over" in str(x.message) for x in w)
            counts["silent"] += not right or said != (step == 1)
            counts["fell_back" if step == 1 else "harmless"] += 1
        except ft.CheckpointCorruptError:
            counts["both_damaged_refused"] += 1
            counts["silent"] += not both  # one intact step is enough
        except Exception as error:
            counts["raw_errors"] += 1
            print(how, file, repr(error))
        shutil.rmtree(directory)
    assert counts["silent"] == counts["raw_errors"] == 0, counts
    assert counts["harmless"]
    assert counts["fell_back"]
    assert counts["both_damaged_refused"]
    record("R3", corruptions=corruptions, files=len(files), by_kind=by_kind, **counts)


def _order(step):
    rng = np.random.default_rng(step)
    rng.standard_normal(3000), rng.standard_normal(7), rng.random(9)
    return rng.permutation(50)


@pytest.mark.parametrize("corruptions", [60, pytest.param(500, marks=WHOLE)])
def test_r3_no_damage_to_an_exported_file_is_silent(corruptions, two_steps, tmp_path, record):
    pytest.importorskip("safetensors")
    _, states = two_steps
    rng = random.Random(1)
    original, copy = tmp_path / "whole", tmp_path / "copy"
    export(states[1]["params"], original)
    refused = 0
    for i in range(corruptions):
        shutil.copy(original, copy)
        damage(copy, ("flip", "cut", "zeros", "grow")[i % 4], rng)
        if copy.read_bytes() == original.read_bytes():
            continue  # zeros over zeros
        try:
            same = flatten(load(copy)) == flatten(states[1]["params"])
        except ft.CheckpointError:
            refused += 1
        else:
            assert same, i
    assert refused > corruptions / 2
    record("R3 exported file", corruptions=corruptions, refused=refused, silent=0)


# Security


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def malicious(folder, bomb):
    """Pickles in every dress, as files and in the place of a step."""
    pickled = pickle.dumps({"params": Bomb(bomb)})
    npz, npy = io.BytesIO(), io.BytesIO()
    np.savez(npz, w=np.array([Bomb(bomb)], object))
    np.save(npy, np.array([Bomb(bomb)], object), allow_pickle=True)
    contents = {"a.pkl": pickled, "a.pt": pickled, "a.npz": npz.getvalue(), "a.npy": npy.getvalue(),
                "a.safetensors": pickled, "a.json": b'{"__reduce__": ["os.mkdir"]}'}  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        step = folder / f"in {name}" / "1"
        (step / "meta").mkdir(parents=True)
        (step / "state.pkl").write_bytes(content)
        (step / "meta" / "checkpoint.json").write_bytes(content)
    return list(contents)


def test_r14_pickles_are_refused_and_not_run(tmp_path, record):
    bomb = tmp_path / "exploded"
    refused = 0
    names = malicious(tmp_path, bomb)
    for name in names:
        for read in (restore_params, lambda p: Checkpointer(p).restore({"w": np.zeros(1)}), load):
            with pytest.raises(ft.CheckpointError) as error:
                read(tmp_path / name)
            assert str(tmp_path) in str(error.value)
            refused += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ft.CheckpointCorruptError):
                restore_params(tmp_path / f"in {name}")
        refused += 1
    assert not bomb.exists()
    (tmp_path / "only" / "5").mkdir(parents=True)
    (tmp_path / "only" / "5" / "state.pkl").write_bytes(pickle.dumps(1))
    with pytest.raises(ft.CheckpointError, match="not Orbax checkpoints, and never unpickled: `5`"):
        restore_params(tmp_path / "only")
    record("R14 pickles", refused=refused + 1, run=0)


READ = """
import sys
import numpy as np
import fntrain as ft
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.checkpoint.params import restore_params
from fntrain.checkpoint.safetensors import load
import tensorstore, safetensors.numpy
bad = ("pickle.find_class", "marshal.loads", "exec", "compile", "subprocess.Popen", "os.system", "os.exec",
       "socket.connect", "ctypes.dlopen")
seen = []
np.zeros(1) + 1
like = {"w": np.zeros(3)}
sys.addaudithook(lambda event, _: seen.append(event) if event in bad else None)
with Checkpointer(sys.argv[1]) as checkpoints:
    checkpoints.restore(like), checkpoints.extra()
load(sys.argv[2], like)
seen_so_far = list(seen)
assert not seen_so_far, seen_so_far
import pickle
pickle.loads(pickle.dumps(np.zeros))
assert "pickle.find_class" in seen, "the hook sees nothing"
"""


def test_r14_reading_runs_nothing(tmp_path, record):
    pytest.importorskip("safetensors")
    with Checkpointer(tmp_path / "c") as checkpoints:
        checkpoints.save({"w": np.arange(3.0)}, step=1, extra={"a": [1, "x", np.ones(2)]})
    export({"w": np.arange(3.0)}, tmp_path / "file")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "c"), str(tmp_path / "file")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record("R14 reading", events=0)


NAMES = ["../x", "../../evil", "/etc/x", "..", ".", "", "a/../../b", "a\0b", "x" * 300, "CON", "a\nb", "~", "~root/x",
         "%2e%2e/x", "..%2fx", "\\..\\x", "C:\\x", "//x", "a//b", "$HOME", "`id`", "; rm -rf", "é" * 200, "\u202e",
         "-rf", "a b", "*", "commit_success.txt", "_METADATA", "1.orbax-checkpoint-tmp"]  # fmt: skip


def listing(root):
    return {path for path in root.rglob("*") if not path.is_relative_to(root / "inside")}


def test_r14_no_name_leads_out(tmp_path, record):
    inside = tmp_path / "inside"
    inside.mkdir()
    before = listing(tmp_path)
    for i, name in enumerate(NAMES):
        directory = inside / str(i)
        state = {"params": {name: np.full(2, i)}, "other": {"a": {name: np.ones(1)}}}
        with Checkpointer(directory, Keep(best=None)) as checkpoints:
            checkpoints.save(state, step=1, metrics={name: 1.0}, extra={name: {name: np.ones(1)}})
            assert checkpoints.restore(state)["params"][name].tolist() == [i, i]
            assert checkpoints.extra()[name][name].tolist() == [1]
        if "\0" not in name:
            export(state["params"], inside / "file")
            assert load(inside / "file")[name].tolist() == [i, i]
    assert listing(tmp_path) == before
    refused = 0
    for name in ("", " ", "a\0b", "x" * 300, "a/" + "é" * 200, "s3://bucket/x", None, 3):
        for make in (
            Checkpointer,
            lambda p: ft.run.directory.RunDirectory(p, {}, {}, False),
            lambda p: export({"w": np.ones(1)}, p),
        ):
            with pytest.raises(ft.ConfigError, match=r"`(directory|run_dir|file)` must"):
                make(name)
            refused += 1
    for name in ("../x", "/x", "", ".", "a/../b", "a\0b", "a\nb", "x" * 300, 3, "\\..\\x"):
        with pytest.raises(ft.ConfigError, match="`best` must"):
            Keep(best=(name, "min"))
        refused += 1
    record("R14 names", kept_inside=len(NAMES), refused=refused)


def test_r14_links_and_huge_shapes(tmp_path, monkeypatch, record):
    with Checkpointer(tmp_path / "mine") as checkpoints:
        checkpoints.save({"params": {"w": np.ones(3)}}, step=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "7").symlink_to(tmp_path / "mine" / "1")
    with pytest.raises(ft.CheckpointError, match="no checkpoint in"):
        restore_params(tmp_path / "other")
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ft.CheckpointError):
        ft.run.lock.RunLock(tmp_path / "run")
    assert (tmp_path / "victim").read_text() == "precious"
    # A document with right digests may say anything of shapes: nothing of the size is asked of the machine.
    file = tmp_path / "mine" / "1" / "meta" / "checkpoint.json"
    document = json.loads(file.read_text())
    document.pop("sha256")
    document["arrays"]["state/params/w"]["shape"] = [2_000_000, 3_000_000]
    digest = hashlib.sha256(canonical(document).encode()).hexdigest()
    file.write_text(json.dumps({"sha256": digest, **document}))
    with pytest.raises(ft.CheckpointError, match="of memory, more than"):
        restore_params(tmp_path / "mine")
    record("R14 links and shapes", refused=3)


FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen"}


def dangers(source, path):
    """Imports and calls that could run what a file says."""
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            if FORBIDDEN_MODULES & {name.split(".")[0] for name in names}:
                yield f"{path}:{node.lineno} imports {names}"
        if isinstance(node, ast.Call):
            plain = isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS
            system = ast.unparse(node.func) in ("os.system", "os.popen")
            for keyword in node.keywords:
                yes = not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
                if keyword.arg in ("shell", "allow_pickle") and yes:
                    yield f"{path}:{node.lineno} {keyword.arg}"
            if plain or system:
                yield f"{path}:{node.lineno} calls {ast.unparse(node.func)}"


def test_r14_the_source_has_no_door(record):
    root = Path(ft.__file__).parent
    found = [danger for path in sorted(root.rglob("*.py")) for danger in dangers(path.read_text(), path.name)]
    # The laws pickle a user's own value and read it back, in the user's own process.
    found = [danger for danger in found if not danger.startswith("testing.py") or "import" not in danger]
    assert not found, found
    door = "import pickle\nnp.load(f, allow_pickle=True)\neval(x)\nrun(c, shell=True)\nos.system(c)"
    assert len(list(dangers(door, "x"))) == 5  # the scan sees
    record("R14 source", files=len(list(root.rglob("*.py"))), dangers=0)
