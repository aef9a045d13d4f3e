"""A long run: what grows?"""

import json

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "every"), [(1000, 50), pytest.param(20_000, 100, marks=pytest.mark.reliability)]
)
def test_r15_nothing_grows(steps, every, server, tmp_path, record):
    result = tmp_path / "result"
    code = server.run(
        "soak", seconds=900, directory=tmp_path / "run", result=result, steps=steps, every=every
    )
    assert code == 0, server.log.read_text()[-3000:]
    found = json.loads(result.read_text())
    compiled = [name for name in found["compiled"] if "train" in name]
    figures = found["figures"]
    warm = figures[len(figures) // 4 :]  # thread pools and allocators have grown to their size
    resident = [row[1] for row in warm]
    growth = resident[-1] / resident[0] - 1
    files, threads, kept = ([row[i] for row in warm] for i in (2, 3, 4))
    print(json.dumps(found["figures"]), sorted(set(found["compiled"])))
    assert len(compiled) == len(set(compiled)) <= 2, compiled  # a step, and a chunk of steps
    assert max(files) - min(files) <= 2, files
    assert max(threads) - min(threads) <= 1, threads  # XLA's and TensorStore's pools come and go by one
    assert max(kept) <= 3
    assert growth < 0.05 if steps >= 20_000 else growth < 0.25
    record("R15", steps=steps, saves=steps // every, compiles=dict.fromkeys(compiled, 1),
           seconds_run=round(found["seconds"], 1),
           resident_growth=round(growth, 4), resident_mb=round(resident[-1] / 2**20), files=[min(files), max(files)],
           threads=[min(threads), max(threads)])  # fmt: skip
