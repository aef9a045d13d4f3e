"""A full disk, a second run, signals, and every way out of a run."""

import json
import random
import re
import shutil
import signal
import time

import pytest

import fntrain as ft
from fntrain.checkpoint.checkpointer import Checkpointer

pytestmark = pytest.mark.slow
WHOLE = pytest.mark.reliability


@pytest.mark.parametrize("cycles", [2, pytest.param(20, marks=WHOLE)])
def test_r5_a_disk_that_fills_and_is_freed(cycles, server, tmp_path, record):
    result = tmp_path / "result"
    code = server.run("full_disk", directory=tmp_path / "c", result=result, cycles=cycles, seed=cycles)
    assert code == 0, server.log.read_text()[-3000:]
    counts = json.loads(result.read_text())
    assert counts == {
        "cycles": cycles,
        "said": cycles,
        "older restored": cycles,
        "first save after works": cycles,
        "raw": [],
        "left over": 0,
    }
    record("R5", **{name.replace(" ", "_"): n for name, n in counts.items() if name != "raw"}, raw_errors=0)


@pytest.mark.parametrize("pairs", [1, pytest.param(20, marks=WHOLE)])
def test_r6_two_runs_in_one_directory(pairs, servers, tmp_path, record):
    first, second = servers(2)
    slowest, freed = 0.0, 0
    for i in range(pairs):
        directory = tmp_path / str(i)
        files = [tmp_path / f"{i} {k}" for k in (0, 1)]
        for server, file, other in zip((first, second), files, reversed(files)):
            server.start("lock", directory=directory, result=file, other=other)
        codes = [server.wait() for server in (first, second)]
        assert codes == [0, 0], first.log.read_text()[-1500:] + second.log.read_text()[-1500:]
        said = [json.loads(file.read_text()) for file in files]
        refused = [entry for entry in said if "refused" in entry]
        assert len(refused) == 1, said
        assert re.search(r"is in use by process \d+ on .* since \d{4}-", refused[0]["refused"])
        slowest = max(slowest, refused[0]["seconds"])
        # The holder is killed, and the lock is free at once.
        files[0].unlink()
        first.start("lock", directory=tmp_path / f"{i} killed", result=files[0])
        while not files[0].exists():
            time.sleep(0.005)
        first.kill()
        assert first.wait() == -9
        assert second.run("lock", directory=tmp_path / f"{i} killed", result=files[1]) == 0
        freed += "began" in json.loads(files[1].read_text())
        shutil.rmtree(directory)
    assert freed == pairs
    # A second on a quiet machine: the data is looked at, and the step traced, before the directory is opened.
    assert slowest < 10
    record(
        "R6", pairs=pairs, exactly_one_went_on=pairs, slowest_refusal_s=round(slowest, 2), freed_by_kill=freed
    )


@pytest.mark.parametrize("signals", [4, pytest.param(100, marks=WHOLE)])
def test_r7_signals_at_any_moment(signals, server, tmp_path, record):
    rng = random.Random(signals)
    whole = tmp_path / "whole"
    assert server.run("train", directory=whole, result=tmp_path / "expected") == 0
    expected = json.loads((tmp_path / "expected").read_text())
    slowest, codes, after_the_end, twice, behind = 0.0, {}, 0, 0, 0
    for i in range(signals):
        number = (signal.SIGTERM, signal.SIGINT)[i % 2]
        directory, result, mark = tmp_path / str(i), tmp_path / "result", tmp_path / "mark"
        result.unlink(missing_ok=True)
        mark.unlink(missing_ok=True)
        server.start("train", directory=directory, result=result, mark=mark, pause=0.01)
        # From where `fit` holds the directory (it compiles then) to its end.
        while not (directory / "config.json").exists():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.5))
        double = i % 4 == 3
        sent = time.monotonic()
        server.kill(number)
        if double:
            time.sleep(rng.uniform(0, 0.03))
            server.kill(number)
        code = server.wait()
        took = time.monotonic() - sent
        saved = max(Checkpointer(directory / "checkpoints").steps(), default=0)
        if code == 0 or (code == -number and not double and saved == expected["step"]):
            after_the_end += 1  # `fit` had finished, and handed the signals back
        else:
            allowed = {143, 130} if not double else {143, 130, -number}
            assert code in allowed, (code, number, server.log.read_text()[-3000:])
            twice += code < 0
            slowest = max(slowest, took)
            if code > 0:
                assert code == 128 + number
                done = int(mark.read_text()) if mark.exists() else 0
                # Saved at the step's edge: what the program has seen, and at most the step after it.
                assert done <= saved <= done + 1, (done, saved)
                behind = max(behind, done - saved)
            assert server.run("train", directory=directory, result=result) == 0
            assert json.loads(result.read_text()) == expected
        codes[str(code)] = codes.get(str(code), 0) + 1
        shutil.rmtree(directory)
    record("R7", signals=signals, exit_codes=codes, came_after_the_end=after_the_end, ended_by_the_second=twice,
           slowest_exit_s=round(slowest, 2), most_steps_lost=behind)  # fmt: skip


CODES = {
    "end": 0,
    "exception": 1,
    "exit": 3,
    "interrupt": 130,
    "sigterm": 143,
    "sigint": 130,
    "thread": 0,
    "data": 1,
    "no with": 0,
}


@pytest.mark.parametrize("exits", [9, pytest.param(30, marks=WHOLE)])
def test_r13_every_way_out(exits, server, tmp_path, record):
    slowest = 0.0
    for i in range(exits):
        how = list(CODES)[i % len(CODES)]
        at = 3 + i // 3
        directory = tmp_path / str(i)
        start = time.monotonic()
        code = server.run("leave", seconds=60, directory=directory, how=how, at=at)
        slowest = max(slowest, time.monotonic() - start)
        log = server.log.read_text()
        assert code == CODES[how], (how, code, log[-3000:])
        steps = Checkpointer(directory / "checkpoints").steps()
        if how in ("end", "thread"):
            assert max(steps) >= 18
        else:  # whatever it was, the step that was taken is there
            assert max(steps) == at, (how, at, steps)
        assert not list(directory.rglob("*orbax-checkpoint-tmp")), how
        if how != "no with":
            ft.run.lock.RunLock(directory).release()
            assert (directory / ".lock").read_text() == "", "the lock was not handed back"
    record("R13", exits=exits, ways=len(CODES), saves_lost=0, hangs=0, slowest_s=round(slowest, 2))


def test_a_watchdog_ends_a_hang_with_tracebacks(server, tmp_path):
    server.start("hang", directory=tmp_path / "run", seconds=4.0)
    start = time.monotonic()
    code = server.wait(60)
    assert code == 75
    assert time.monotonic() - start < 30
    log = server.log.read_text()
    assert "Watchdog: no step for 4 s" in log
    assert "on_step_end" in log  # where the main thread stood
