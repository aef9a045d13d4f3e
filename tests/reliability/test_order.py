"""Which checkpoints stay, save after save; and where the data goes on, from every position."""

import math
import random

import jax
import numpy as np
import pytest

import fntrain as ft
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.checkpoint.keep import Keep
from fntrain.data.source import as_source, fingerprint

WHOLE = pytest.mark.reliability
VALUES = [None, math.nan, math.inf, -math.inf, 1.0, 1, 0.5, 0.5, 2.0, -3.0, 1e300, -0.0]


def oracle(there, latest, mode, every):
    """What stays of `[(step, value)]`, by the words of `Keep`."""
    stay = {step for step, _ in sorted(there)[-latest:]}
    finite = [(step, value) for step, value in sorted(there) if value is not None and math.isfinite(value)]
    best = None
    if finite:
        extreme = (min if mode == "min" else max)(value for _, value in finite)
        best = next(step for step, value in finite if value == extreme)
        stay.add(best)
    return stay | {step for step, _ in there if every and step % every == 0}, best


def sequence(rng, length):
    """Steps, mostly upwards, with values that are missing, NaN, infinite, tied."""
    steps = rng.sample(range(60), length)
    if rng.random() < 0.8:
        steps.sort()
    return [(step, rng.choice(VALUES)) for step in steps]


@pytest.mark.parametrize(("sequences", "on_disk"), [(200, 2), pytest.param(500, 20, marks=WHOLE)])
def test_r9_retention_save_after_save(sequences, on_disk, tmp_path, record):
    rng = random.Random(sequences)
    saves, true_best_kept = 0, 0
    for i in range(sequences):
        latest, mode, every = rng.randint(1, 4), rng.choice(["min", "max"]), rng.choice([None, 2, 7])
        keep = Keep(latest, ("x", mode), every)
        rows = sequence(rng, rng.randint(1, 15))
        there = {}
        checkpoints = Checkpointer(tmp_path / str(i), keep) if i < on_disk else None
        for step, value in rows:
            there[step] = {} if value is None else {"x": value}
            expected, best = oracle([(s, r.get("x")) for s, r in there.items()], latest, mode, every)
            assert (keep.kept(there), keep.best_step(there)) == (expected, best)
            expected |= {step}  # the one saved last stays, wherever it stands
            if checkpoints is not None:
                checkpoints.save({"w": np.ones(1)}, step=step, metrics=there[step])
                assert set(checkpoints.steps()) == expected
                assert checkpoints.best_step == best
            there = {s: r for s, r in there.items() if s in expected}
            saves += 1
        finite = [value for _, value in rows if value is not None and math.isfinite(value)]
        if finite:  # over the whole sequence, and not just what was there: the best was never deleted
            kept = [row["x"] for row in there.values() if "x" in row and math.isfinite(row["x"])]
            pick = min if mode == "min" else max
            assert pick(kept) == pick(finite)
            true_best_kept += 1
        assert max(there) == max(step for step, _ in rows)
    record("R9", sequences=sequences, saves=saves, on_disk=on_disk, best_deleted=0, latest_deleted=0)


def batches(loader):
    return [jax.tree.map(np.array, pair) for pair in loader]


def same(a, b):
    return len(a) == len(b) and all(
        np.array_equal(x, y) for p, q in zip(a, b) for x, y in zip(jax.tree.leaves(p), jax.tree.leaves(q))
    )


def sources(rows, size, seed, shuffle):
    x = np.arange(rows)
    data = {"x": x, "y": x * 10.0}

    def function(epoch):
        order = np.random.default_rng([seed, epoch]).permutation(rows) if shuffle else x
        return ({"x": order[i : i + size]} for i in range(0, rows, size))

    yield "arrays", lambda: as_source(data, size, shuffle=shuffle, seed=seed)
    yield "function", lambda: as_source(function, size, shuffle=shuffle, seed=seed)
    yield "list", lambda: as_source(list(function(0)), size, shuffle=shuffle, seed=seed)
    try:
        import grain
    except ImportError:
        return

    def pipeline(epoch):
        return grain.MapDataset.source(x).seed(seed + epoch).shuffle().map(lambda i: i * 2).batch(size)

    yield "grain", lambda: as_source(pipeline, size, shuffle=shuffle, seed=seed)


@pytest.mark.parametrize("cases", [4, pytest.param(16, marks=WHOLE)])
def test_r10_every_position_of_three_epochs(cases, record):
    rng = random.Random(cases)
    positions, by_kind = 0, {}
    for case in range(cases):
        rows, size = rng.randint(5, 60), rng.randint(1, 9)
        for name, make in sources(rows, size, rng.randrange(100), case % 3 != 2):
            whole = [batches(make().epoch(epoch)) for epoch in range(3)]
            for epoch in range(3):
                for index in range(len(whole[epoch]) + 1):
                    fresh = make()
                    fresh.peek()  # as `fit` does first: the batch's size is known
                    remainder = batches(fresh.epoch(epoch, index))
                    assert same(remainder, whole[epoch][index:]), (name, epoch, index)
                    after = batches(fresh.epoch(epoch + 1)) if epoch < 2 else []
                    assert epoch == 2 or same(after, whole[epoch + 1])
                    positions += 1
                    by_kind[name] = by_kind.get(name, 0) + 1
            seen = np.concatenate([jax.tree.leaves(b)[0][w > 0] for b, w in whole[0]])
            assert sorted(seen.tolist()) == sorted((np.arange(rows) * (2 if name == "grain" else 1)).tolist())
    record("R10", positions=positions, by_source=by_kind, different=0)


def test_r10_other_data_is_refused(tmp_path, record):
    task = ft.Task(lambda p, b, ctx: ft.losses.mse(b["x"] @ p["w"], b["y"]), ft.optimizers.sgd(0.1))
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((20, 2)).astype(np.float32), "y": np.ones(20, np.float32)}

    def run(data, resume=True, batch_size=4, **more):
        state = ft.init_state(task, {"w": np.zeros(2, np.float32)})
        return ft.fit(task, state, data, epochs=1, batch_size=batch_size, run_dir=tmp_path / "run", resume=resume,
                      progress=False, **more)  # fmt: skip

    run(data, resume=False)
    kept = (tmp_path / "run" / "metrics.jsonl").read_text(), (tmp_path / "run" / "config.json").read_text()
    others = [
        (dict(data={**data, "y": data["y"] * 2}), "data"),
        (dict(data={k: v[:19] for k, v in data.items()}), "data"),
        (dict(data={k: v[::-1] for k, v in data.items()}), "data"),
        (dict(data={**data, "z": data["y"]}), "data"),
        (dict(data={**data, "x": data["x"].astype(np.float16).astype(np.float32)}), "data"),
        (dict(data=lambda epoch: [data]), "data"),
        (dict(data=data, seed=1), "seed"),
        (dict(data=data, batch_size=5), "batch_size"),
        (dict(data=data, shuffle=False), "shuffle"),
        (dict(data=ft.data_loader(data, 4, drop_last=True)), "drop_last"),
    ]
    for arguments, word in others:
        with pytest.raises(ft.ConfigError, match=f"(?s)another one than.*{word}.*saved .*now ") as error:
            run(**arguments)
        assert isinstance(error.value, ft.CheckpointMismatchError)
    assert kept == (
        (tmp_path / "run" / "metrics.jsonl").read_text(),
        (tmp_path / "run" / "config.json").read_text(),
    )
    assert fingerprint(as_source(data, 4, shuffle=True, seed=0)) != fingerprint(
        as_source(data, 4, shuffle=True, seed=2)
    )
    record("R10 other data", refused=len(others), of=len(others))


@WHOLE
def test_r10_a_run_stopped_at_every_step_of_three_epochs(program, record):
    def make_run(run_dir, steps):
        return program.fit(run_dir, monitors=False, epochs=None, steps=steps)

    ft.testing.assert_resumable(make_run, at=range(1, 19), steps=20)
    record("R10 through fit", stopped_at=18, bitwise_equal=18)
