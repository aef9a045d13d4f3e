"""kill -9 at any moment: what is resumed is the run that was never killed, and no half of a step is believed."""

import json
import random
import shutil
import time
import warnings

import numpy as np
import pytest

import fntrain as ft
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.checkpoint.keep import Keep
from fntrain.run.goodput import goodput_of

pytestmark = pytest.mark.slow

KINDS = ("arrays", "function", "grain")


@pytest.fixture(scope="module")
def straight(servers, tmp_path_factory):
    """Each kind of run from start to end, and how long it takes."""
    found = {}
    (server,) = servers(1)

    def get(kind):
        if kind == "grain":
            pytest.importorskip("grain")
        if kind not in found:
            folder = tmp_path_factory.mktemp(kind)
            assert server.run("train", directory=folder / "run", result=folder / "result", kind=kind) == 0
            start = time.monotonic()  # again: now it is compiled
            assert server.run("train", directory=folder / "again", kind=kind, pause=0.01) == 0
            found[kind] = (
                json.loads((folder / "result").read_text()),
                folder / "run",
                time.monotonic() - start,
            )
        return found[kind]

    return get


def assert_is_the_run(folder, straight):
    result, directory, _ = straight
    assert json.loads((folder / "result").read_text()) == result
    for name in ("metrics.csv", "metrics.jsonl"):
        assert (folder / "run" / name).read_bytes() == (directory / name).read_bytes()
    left = [path.name for path in (folder / "run" / "checkpoints").iterdir()]
    assert all(name.partition(".v")[0].isdigit() for name in left), left


def assert_every_step_is_accounted_for(folder):
    """What was taken is what counts and what was lost to kills; how many steps that were."""
    parts = json.loads((folder / "run" / "config.json").read_text())["parts"]
    whole = json.loads((folder / "result").read_text())["step"]
    for part in parts[
        :-1
    ]:  # a kill may come behind the run's last word, which the next part finds, and repeats
        assert part["ended"] == "killed" or (part["to"], part["ended"]) == (whole, parts[-1]["ended"]), parts
    lost = sum(part.get("lost_steps", 0) for part in parts)
    taken = sum(part["to"] - part["from"] for part in parts)
    assert taken == whole + lost
    goodput = goodput_of(parts)
    assert (goodput.lost_steps, goodput.lost > 0) == (lost, lost > 0)
    return lost


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.reliability)])
def test_r1_killed_and_resumed_is_bitwise_the_run(kills, server, straight, tmp_path, record):
    rng = random.Random(kills)
    landed = runs = starts = lost = 0
    by_kind = dict.fromkeys(KINDS, 0)
    while landed < kills:
        kind = KINDS[runs % len(KINDS)]
        reference = straight(kind)
        folder = tmp_path / str(runs)
        folder.mkdir()
        arguments = dict(directory=folder / "run", result=folder / "result", kind=kind, pause=0.01)
        for attempt in range(100):
            starts += 1
            mark = folder / "mark"
            mark.unlink(missing_ok=True)
            server.start("train", mark=mark, **arguments)
            last = attempt >= 6  # a chain of kills ends: what never gets anywhere never finishes
            if not last:
                if rng.random() < 0.7:  # somewhere in the steps; else anywhere, the start and compilation too
                    while not mark.exists() and server.alive:
                        time.sleep(0.002)
                    time.sleep(rng.uniform(0, 0.6))
                else:
                    time.sleep(rng.uniform(0, 1.1 * reference[2]))
                server.kill()
            code = server.wait()
            if code == 0:
                break
            assert (code, last) == (-9, False), server.log.read_text()[-3000:]
            landed += 1
            by_kind[kind] += 1
        assert_is_the_run(folder, reference)
        lost += assert_every_step_is_accounted_for(folder)
        shutil.rmtree(folder)
        runs += 1
    record(
        "R1",
        kills=landed,
        runs=runs,
        resumes=starts - runs,
        bitwise_equal=runs,
        steps_lost=lost,
        kills_by_source=by_kind,
    )


def values(state):
    return {name: np.asarray(x).tolist() for name, x in ft.tree.items(state)}


class Directories:
    """Looks at what killed saves leave, and counts."""

    def __init__(self, program):
        self.program = program
        self.bad = self.lost = self.orphans = self.fell_back = 0

    def check(self, directory, mode):
        checkpoints = Checkpointer(directory, Keep(latest=1, best=None))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            steps = checkpoints.steps()
            for step in steps:  # every step that is listed is whole, and what was saved as it
                state = checkpoints.restore(self.program.small(0), step=step)
                n = checkpoints.extra(step=step)["n"]
                right = n in (1, 2) if mode == "replace" else n == step
                self.bad += not right or values(state) != values(self.program.small(n))
            newest = checkpoints.extra()["n"]
        self.fell_back += bool(caught)
        self.lost += newest < 1  # step 1 was durable before
        checkpoints.save(self.program.small(9), step=9)
        checkpoints.wait()
        self.orphans += {path.name for path in directory.iterdir()} != {"9"}
        shutil.rmtree(directory)

    def figures(self):
        return dict(
            bad_steps_believed=self.bad,
            durable_steps_lost=self.lost,
            orphans_after_next_start=self.orphans,
            passed_over_with_a_warning=self.fell_back,
        )


@pytest.mark.parametrize(("stride", "timed"), [(18, 3), pytest.param(1, 120, marks=pytest.mark.reliability)])
def test_r2_killed_at_every_file_system_event_of_a_save(stride, timed, server, program, tmp_path, record):
    points, found = {}, Directories(program)
    events = tmp_path / "events"
    modes = ("next", "replace", "two")
    for mode in modes:
        assert server.run("saves", directory=tmp_path / f"{mode} whole", mode=mode, result=events) == 0
        names = json.loads(events.read_text())
        assert {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "open"} <= {n.split()[0] for n in names}, (
            names
        )
        points[mode] = 0
        for crash in range(1, len(names) + 1, stride):
            directory = tmp_path / f"{mode} {crash}"
            code = server.run("saves", directory=directory, mode=mode, result=events, crash=crash)
            # Events of another thread shift from run to run: the last ones may not come.
            assert code == -9 or crash > len(names) - 3, (mode, crash, code, server.log.read_text()[-2000:])
            points[mode] += code == -9
            found.check(directory, mode)
    landed, rng = 0, random.Random(timed)
    for i in range(timed):
        directory, mode = tmp_path / f"timed {i}", modes[i % 3]
        code = server.run("saves", directory=directory, mode=mode, result=events, after=rng.uniform(0, 0.12))
        landed += code == -9
        found.check(directory, mode)
    figures = found.figures()
    assert [figures[k] for k in ("bad_steps_believed", "durable_steps_lost", "orphans_after_next_start")] == [
        0,
        0,
        0,
    ]
    record("R2", crash_points=sum(points.values()), modes=points, kills_at_random_times=landed, **figures)
