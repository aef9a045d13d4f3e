"""Checkpoints: bitwise round trips, strict restoring, retention, and damage that is never believed."""

import asyncio
import dataclasses
import json
import math
import random
import shutil
import subprocess
import sys
import threading
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import fntrain as ft
from fntrain._core.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError, ConfigError
from fntrain.checkpoint import checkpointer, shelf
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.checkpoint.keep import Keep
from fntrain.checkpoint.params import restore_params


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A state of no class of the library: all that is asked for is `.step`."""

    step: Any
    params: Any


def raw(x):
    """Dtype, shape and bytes of any leaf."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return (str(x.dtype), *raw(jax.random.key_data(x)))
    x = np.asarray(x)
    return x.dtype.name, x.shape, x.tobytes()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
        assert type(x) is type(y), path
        assert raw(x) == raw(y), path


def simple(value=0.0, n=4):
    return {"params": {"w": jnp.full((n,), value, jnp.float32)}, "count": jnp.int32(value)}


# Round trips


def test_every_kind_of_leaf_comes_back_as_it_was(tmp_path):
    mesh = Mesh(np.array(jax.devices()), ("d",))
    dtypes = [
        "bool",
        "int8",
        "uint8",
        "int16",
        "int32",
        "float16",
        "bfloat16",
        "float32",
        "complex64",
        "int4",
        "float8_e4m3fn",
    ]
    state = {
        "dtypes": {name: jnp.array([1, 0, 1]).astype(name) for name in dtypes},
        "split": jax.device_put(jnp.arange(16.0), NamedSharding(mesh, P("d"))),
        "replicated": jax.device_put(jnp.arange(3.0), NamedSharding(mesh, P())),
        "elsewhere": jax.device_put(jnp.arange(3.0), jax.devices()[5]),
        "keys": Pair(jax.random.key(1), jax.random.split(jax.random.key(2, impl="rbg"), 3)),
        "float bits": np.array([-0.0, np.nan, -np.inf, 5e-324, 0.1]),
        "negative zeros": jnp.full((1000,), -0.0),  # a store that leaves zeros out must see the sign
        "numpy": [np.arange(5), np.float32(2), np.arange(6).reshape(2, 3).T, np.zeros((0, 3), np.int16)],
        "empty": [None, (), {}, [], jnp.zeros((2, 0))],
        "numbers": (3, 2.5, True, 1j),
        7: {0: jnp.ones(()), 1: jnp.zeros(2)},
        "names": {
            "a/b": jnp.ones(1),
            "..": jnp.ones(2),
            "%2e\n\0é:*": jnp.ones(3),
            "": jnp.ones(4),
            "x" * 300: jnp.ones(5),
        },
        "names.a": jnp.ones(6),
    }
    state = {str(k): v for k, v in state.items()}
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(state, step=0)
        restored = checkpoints.restore(state)
    assert_same(state, restored)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(restored)):
        if isinstance(x, jax.Array):
            assert x.sharding == y.sharding
            assert x.committed == y.committed
    assert restored["numpy"][0].flags.writeable


def test_a_bare_array_is_a_state_too(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(jnp.arange(3.0), step=1)
        assert checkpoints.restore(jnp.zeros(3)).tolist() == [0.0, 1.0, 2.0]


def test_shapes_alone_are_enough_to_restore(tmp_path):
    state = State(jnp.int32(2), {"key": jax.random.key(3), "w": jnp.arange(3.0)})
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(state)
        assert_same(state, checkpoints.restore(jax.eval_shape(lambda s: s, state)))


def test_big_endian_arrays_are_stored_as_numbers(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save({"w": np.array([1.5, -2.0], ">f4")}, step=0)
        assert checkpoints.restore({"w": np.zeros(2, np.float32)})["w"].tolist() == [1.5, -2.0]


def test_the_state_may_be_donated_and_changed_once_save_returned(tmp_path, monkeypatch):
    gate = threading.Event()
    write = Checkpointer._write
    monkeypatch.setattr(Checkpointer, "_write", lambda *a: (gate.wait(10), write(*a))[1])
    overwrite = jax.jit(lambda w: w * 0 - 1, donate_argnums=0)
    mine = np.ones(1000)
    state = {"w": jnp.ones(100_000), "mine": mine}
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(state, step=0)
        overwrite(state["w"]).block_until_ready()
        assert state["w"].is_deleted()
        mine[:] = 7
        gate.set()
        restored = checkpoints.restore({"w": jnp.zeros(100_000), "mine": mine})
    assert float(restored["w"].min()) == 1.0
    assert restored["mine"].max() == 1.0


def test_a_restored_state_is_donated_and_compiles_nothing_anew(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    mesh = Mesh(np.array(jax.devices()), ("d",))
    state = {"w": jnp.zeros(64), "split": jax.device_put(jnp.zeros(64), NamedSharding(mesh, P("d")))}
    for part in state.values():  # one committed to devices, one not
        before = step(part)
        compiled = step._cache_size()
        with Checkpointer(tmp_path / str(compiled)) as checkpoints:
            checkpoints.save({"x": before}, step=0)
            restored = checkpoints.restore({"x": before})["x"]
        pointer = [s.data.unsafe_buffer_pointer() for s in restored.addressable_shards]
        after = step(restored)
        assert step._cache_size() == compiled
        assert restored.is_deleted()
        assert [s.data.unsafe_buffer_pointer() for s in after.addressable_shards] == pointer


def test_a_run_goes_on_bitwise_in_a_rebuilt_task(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 8, 3)).astype(np.float32)
    y = x.sum(-1, keepdims=True) + 1

    def loss_fn(params, batch, ctx):
        noise = jax.random.normal(ctx.key, batch["y"].shape) * 0.1
        return ft.losses.mse(batch["x"] @ params["w"] + params["b"][None], batch["y"] + noise)

    def build():
        tx = ft.chain(
            ft.clip_by_norm(1.0), ft.optimizers.adamw(ft.schedules.cosine(0.1, 10), weight_decay=0.01)
        )
        task = ft.Task(loss_fn, tx)
        return task, ft.init_state(task, {"w": jnp.zeros((3, 1)), "b": jnp.zeros(1)}, key=3)

    def run(task, state, steps):
        for i in steps:
            state, _ = ft.train_step(task, state, {"x": x[i], "y": y[i]})
        return state

    task, state = build()
    expected = run(task, state, range(6))
    task, state = build()
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(run(task, state, range(3)))
        task, fresh = build()
        assert checkpoints.latest_step == 3
        assert_same(expected, run(task, checkpoints.restore(fresh), range(3, 6)))


def test_plain_orbax_reads_the_arrays_under_their_paths(tmp_path):
    import orbax.checkpoint as ocp

    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save({"a": {"b.c": np.arange(3.0)}}, step=4, extra={"best": np.ones(2)})
    read = ocp.PyTreeCheckpointer().restore(tmp_path / "4" / "arrays")
    assert {name: value.tolist() for name, value in read.items()} == {
        "state.a.b%2Ec": [0.0, 1.0, 2.0],
        "extra.best": [1.0, 1.0],
    }


def test_extra_comes_back(tmp_path):
    extra = {
        "plain": [1, 2.5, None, True, "text", 2**70, "\ud800"],
        "not finite": [math.inf, -math.inf],
        "tuple": (1, (2, []), {}),
        "keys": {1: "a", "$array": "b", "": "c"},
        "best": {"w": jnp.arange(3, dtype=jnp.bfloat16), "key": jax.random.key(4)},
        "fields": Pair(np.int64(3), OrderedDict(a=np.float32(0.5))),
    }
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(simple(), step=0, extra=extra)
        checkpoints.save(simple(), step=1, extra={"nan": math.nan})
        checkpoints.save(simple(), step=2)
        assert checkpoints.extra() == {}
        assert math.isnan(checkpoints.extra(step=1)["nan"])
        back = checkpoints.extra(step=0)
    best = back.pop("best")
    assert raw(best["w"]) == raw(extra["best"]["w"])
    assert isinstance(best["w"], np.ndarray)
    assert raw(best["key"]) == raw(extra["best"]["key"])
    assert back.pop("fields") == {"first": 3, "second": {"a": 0.5}}
    assert back == {k: v for k, v in extra.items() if k in back}


def test_dicts_in_extra_keep_their_order(tmp_path):
    rows = [{"z": 1, "a": 2}, {"b": {"y": 0, "x": 1}, 3: 0, "a": 1}]
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(simple(), step=0, extra={"rows": rows, "more": 1})
    assert json.dumps(Checkpointer(tmp_path).extra()) == json.dumps({"rows": rows, "more": 1})


# Strictness


def test_all_differences_stand_in_one_table(tmp_path):
    saved = {
        "same": jnp.ones(1),
        "gone": jnp.ones(2),
        "shape": jnp.ones((2, 3)),
        "dtype": jnp.ones(2),
        "key": jax.random.key(0),
    }
    like = {
        "same": jnp.ones(1),
        "new": jnp.ones(2),
        "shape": jnp.ones((3, 2)),
        "dtype": jnp.ones(2, jnp.int32),
        "key": jnp.zeros(2, jnp.uint32),
    }
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(saved, step=0)
        with pytest.raises(CheckpointMismatchError) as error:
            checkpoints.restore(like)
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in str(error.value).splitlines()}
    assert rows["new"] == "- float32[2] missing from the checkpoint"
    assert rows["gone"] == "float32[2] - unexpected, not in `like`"
    assert rows["shape"] == "float32[2, 3] float32[3, 2] shape"
    assert rows["dtype"] == "float32[2] int32[2] dtype"
    assert rows["key"] == "key<fry>[] uint32[2] shape"
    assert "same" not in rows
    assert "partial=True" in str(error.value)


def test_long_tables_are_cut(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save({"a": np.ones(1)}, step=0)
        with pytest.raises(CheckpointMismatchError, match=r"and 62 more") as error:
            checkpoints.restore({f"{'x' * 200}{i}": np.ones(1) for i in range(101)})
    assert max(map(len, str(error.value).splitlines()[1:])) < 130


def test_partial_restores_what_both_sides_have(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save({"a": np.ones(2), "old": np.ones(2)}, step=0)
        restored = checkpoints.restore({"a": np.zeros(2), "new": np.full(3, 5.0)}, partial=True)
        assert {k: v.tolist() for k, v in restored.items()} == {"a": [1.0, 1.0], "new": [5.0, 5.0, 5.0]}
        with pytest.raises(CheckpointMismatchError, match="shape"):
            checkpoints.restore({"a": np.zeros(3)}, partial=True)
        with pytest.raises(CheckpointMismatchError, match="missing"):  # nothing in common is no restoring
            checkpoints.restore({"b": np.zeros(2)}, partial=True)


@pytest.mark.parametrize(
    "rename",
    [
        {"params/dense": "params/fc", "n": "m"},  # a subtree, a leaf
        {"params/dense/w": "params/fc/w", "params/dense/b": "params/fc/b", "n": "m"},
        {r"dense/(\w)$": r"fc/\1", "^n$": "m"},
    ],
)
def test_rename(tmp_path, rename):
    saved = {
        "params": {"dense": {"w": np.ones(1), "b": np.zeros(1)}, "dense2": {"w": np.full(1, 2.0)}},
        "n": np.full(1, 3.0),
    }
    like = {
        "params": {"fc": {"w": np.ones(1), "b": np.ones(1)}, "dense2": {"w": np.ones(1)}},
        "m": np.ones(1),
    }
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(saved, step=0)
        restored = checkpoints.restore(like, rename=rename)
    assert [float(x[0]) for x in jax.tree.leaves(restored)] == [3.0, 2.0, 0.0, 1.0]


def test_rename_must_match_and_must_not_collide(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save({"a": np.ones(1), "b": np.ones(1)}, step=0)
        with pytest.raises(ConfigError, match="matches no leaf"):
            checkpoints.restore({"a": np.ones(1), "b": np.ones(1)}, rename={"^c": "d"})
        with pytest.raises(ConfigError, match="both to `a`"):
            checkpoints.restore({"a": np.ones(1)}, rename={"b": "a"})
        with pytest.raises(ConfigError, match="regular expression"):
            checkpoints.restore({"a": np.ones(1)}, rename={"(": "a"})


def test_cast_is_explicit_and_loses_no_integers(tmp_path):
    state = {"f": jnp.array([1.5, 1e30]), "i": np.array([1, 300])}
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(state, step=0)
        like = {"f": jnp.zeros(2, jnp.bfloat16), "i": np.zeros(2, np.int16)}
        with pytest.raises(CheckpointMismatchError, match="cast=True"):
            checkpoints.restore(like)
        restored = checkpoints.restore(like, cast=True)
        assert raw(restored["f"]) == raw(state["f"].astype(jnp.bfloat16))
        assert raw(restored["i"]) == raw(state["i"].astype(np.int16))
        half = checkpoints.restore({**like, "f": jnp.zeros(2, jnp.float16)}, cast=True)
        assert half["f"].tolist() == [1.5, math.inf]
        with pytest.raises(CheckpointMismatchError, match="`i` holds int64 numbers that int8 cannot hold"):
            checkpoints.restore({**like, "i": np.zeros(2, np.int8)}, cast=True)
        with pytest.raises(CheckpointMismatchError, match="dtype"):  # weights as integers: never
            checkpoints.restore({**like, "f": jnp.zeros(2, jnp.int32)}, cast=True)


def test_what_cannot_be_stored_is_named(tmp_path):
    donated = jnp.ones(3)
    jax.jit(lambda x: x + 1, donate_argnums=0)(donated)
    cases = [
        ({"f": {"g": len}}, "`f/g` must be an array"),
        ({"s": "text"}, "`s` must be an array"),
        ({"o": np.array([None])}, "`state/o` must hold numbers"),
        ({"t": np.array(["a"])}, "`state/t` must hold numbers"),
        ({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, "two leaves have the path `a/b`"),
        (OrderedDict([(1, np.ones(1)), ("1", np.ones(1))]), "two leaves have the path `1`"),
        ({"w": donated}, "`state/w` was donated"),
        ({"w": np.zeros(0)}, "at least one number"),
        ({}, "at least one number"),
    ]
    checkpoints = Checkpointer(tmp_path)
    for state, message in cases:
        with pytest.raises(ConfigError, match=message):
            checkpoints.save(state, step=0)
    for extra, message in [
        ({"f": len}, "`extra/f`"),
        ([1], "`extra` must be a dict"),
        ({"k": {(1,): 2}}, "keys of"),
    ]:
        with pytest.raises(ConfigError, match=message):
            checkpoints.save(simple(), step=0, extra=extra)
    with pytest.raises(ConfigError, match=r"metrics\['loss'\]"):
        checkpoints.save(simple(), step=0, metrics={"loss": "low"})
    assert list(tmp_path.iterdir()) == []


def test_arguments_are_checked(tmp_path):
    for arguments in (
        {"latest": 0},
        {"latest": 1.5},
        {"every": 0},
        {"best": "val_loss"},
        {"best": ("val_loss", "least")},
        {"best": ("../x", "min")},
        {"best": ("", "min")},
        {"best": ("a\nb", "min")},
    ):
        with pytest.raises(ConfigError, match=next(iter(arguments))):
            Keep(**arguments)
    for bad in ("gs://bucket/run", "", "a\0b", "x" * 300, None, 3):
        with pytest.raises(ConfigError, match="`directory` must"):
            Checkpointer(bad)
    with pytest.raises(ConfigError, match="keep"):
        Checkpointer(tmp_path, keep=3)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match="not a directory"):
        Checkpointer(file)
    with pytest.raises(CheckpointError, match="cannot write to"):
        Checkpointer(file / "below").save(simple(), step=0)
    checkpoints = Checkpointer(tmp_path / "run", Keep(best=None))
    for step, message in ((-1, "step"), (1.0, "step"), (None, "no integer `.step`")):
        with pytest.raises(ConfigError, match=message):
            checkpoints.save(simple(), step=step)
    with pytest.raises(ConfigError, match="step"):
        checkpoints.restore(simple(), step="bset")
    with pytest.raises(ConfigError, match=r"keep\.best"):
        checkpoints.restore(simple(), step="best")


# Which steps there are


def oracle(rows, latest, mode, every):
    """The steps that stay, by the words of the docstring."""
    steps = [step for step, _ in rows]
    stay = set(sorted(steps)[-latest:])
    best = None
    for step, value in rows:  # in order: a tie changes nothing
        if (
            value is not None
            and math.isfinite(value)
            and (best is None or (value < best[1] if mode == "min" else value > best[1]))
        ):
            best = (step, value)
    if best:
        stay.add(best[0])
    return stay | {s for s in steps if every and s % every == 0}, best and best[0]


def test_retention_against_an_oracle():
    rng = random.Random(0)
    values = [None, math.nan, math.inf, -math.inf, 1.0, 1, 0.5, 2.0, -3.0]
    for _ in range(500):
        rows = [(step, rng.choice(values)) for step in sorted(rng.sample(range(40), rng.randrange(12)))]
        latest, mode, every = rng.randint(1, 4), rng.choice(["min", "max"]), rng.choice([None, 1, 2, 5])
        keep = Keep(latest, ("x", mode), every)
        metrics = {step: {} if value is None else {"x": value} for step, value in rows}
        assert (keep.kept(metrics), keep.best_step(metrics)) == oracle(rows, latest, mode, every)


def test_nan_never_displaces_the_best_on_disk(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: math.nan, 4: 2.0, 5: -math.inf, 6: jnp.float32(1.0)}
    with Checkpointer(tmp_path, Keep(latest=1, best=("loss", "min"))) as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest_step, checkpoints.best_step) == ([], None, None)
        for step, loss in losses.items():
            checkpoints.save(simple(step), step=step, metrics={"loss": loss, "vector": np.ones(2)})
        assert checkpoints.steps() == [2, 6]
        assert checkpoints.best_step == 2
        assert float(checkpoints.restore(simple(), step="best")["params"]["w"][0]) == 2.0
    with Checkpointer(tmp_path, Keep(latest=1, best=("loss", "max"))) as checkpoints:  # read from the disk
        assert checkpoints.best_step == 2  # 1.0 both: the earlier
    with pytest.raises(CheckpointError, match="finite"):
        Checkpointer(tmp_path, Keep(best=("other", "max"))).restore(simple(), step="best")


def test_the_step_saved_last_stays_even_if_it_is_not_the_highest(tmp_path):
    with Checkpointer(tmp_path, Keep(latest=1)) as checkpoints:
        checkpoints.save(simple(), step=9)
        checkpoints.save(simple(), step=2)
        assert checkpoints.steps() == [2, 9]


def test_an_existing_step_is_replaced_on_demand_only(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(simple(1), step=5)
        with pytest.raises(CheckpointError, match="step 5 exists"):
            checkpoints.save(simple(2), step=5)
        assert float(checkpoints.restore(simple())["count"]) == 1
        for value in (2, 3):
            checkpoints.save(simple(value), step=5, overwrite=True)
            assert checkpoints.steps() == [5]
            assert float(checkpoints.restore(simple())["count"]) == value
        assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_replacement_leaves_the_old_step(tmp_path, monkeypatch):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(simple(1), step=5)
        checkpoints.wait()
        monkeypatch.setattr(checkpointer, "orbax_save", full_disk)
        checkpoints.save(simple(2), step=5, overwrite=True)
        with pytest.raises(CheckpointError):
            checkpoints.wait()
        assert float(checkpoints.restore(simple())["count"]) == 1


def test_what_is_no_finished_step_is_ignored_and_left_alone(tmp_path):
    with Checkpointer(tmp_path, Keep(latest=1, best=None)) as checkpoints:
        checkpoints.save(simple(3), step=3)
    (tmp_path / "11").symlink_to(tmp_path / "3")
    for name in ("9", "007", "-1", "best", "12"):
        (tmp_path / name).mkdir()
    (tmp_path / "12" / "notes").write_text("mine")
    (tmp_path / "8").write_text("a file")
    for name in ("10.orbax-checkpoint-tmp", "4.deleted"):  # what a kill leaves
        shutil.copytree(tmp_path / "3", tmp_path / name)
    with Checkpointer(tmp_path, Keep(latest=1, best=None)) as checkpoints:
        assert checkpoints.steps() == [3]
        assert float(checkpoints.restore(simple())["count"]) == 3
        with pytest.raises(CheckpointError, match=r"no step 9 .* there are 3"):
            checkpoints.restore(simple(), step=9)
        assert (tmp_path / "4.deleted").exists()  # a reader cleans nothing: it could be a writer's
        checkpoints.save(simple(9), step=9)
        assert checkpoints.steps() == [9]
        assert float(checkpoints.restore(simple())["count"]) == 9
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"11", "9", "9.v2", "007", "-1", "best", "12", "8"}


def test_checkpoints_of_others_are_not_deleted(tmp_path):
    import orbax.checkpoint as ocp

    ocp.PyTreeCheckpointer().save(tmp_path / "1", {"a": np.ones(2)})
    with Checkpointer(tmp_path, Keep(latest=1)) as checkpoints:
        with pytest.warns(RuntimeWarning, match="missing"), pytest.raises(CheckpointCorruptError):
            checkpoints.restore({"a": np.ones(2)})
        for step in (2, 3):
            checkpoints.save(simple(), step=step)
        assert checkpoints.steps() == [3]
        assert (tmp_path / "1").exists()


# Damage


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Two saved steps, and their states."""
    directory = tmp_path_factory.mktemp("two")
    rng = np.random.default_rng(1)
    states = {s: {"params": {"w": rng.standard_normal(500), "v": rng.standard_normal(3)}} for s in (1, 2)}
    with Checkpointer(directory) as checkpoints:
        for step, state in states.items():
            checkpoints.save(
                state, step=step, metrics={"val_loss": step}, extra={"step": step, "x": np.ones(9)}
            )
    return directory, states


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    elif how == "flip":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2 if how == "half" else 0])


@pytest.mark.parametrize("how", ["delete", "empty", "half", "flip"])
def test_a_damaged_file_is_survived_or_passed_over_never_believed(two_steps, tmp_path, how):
    original, states = two_steps
    outcomes = []
    for file in sorted(p for p in (original / "2").rglob("*") if p.is_file()):
        directory = tmp_path / "copy"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(original, directory)
        damage(directory / file.relative_to(original), how)
        with Checkpointer(directory) as checkpoints, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            restored = checkpoints.restore(states[1])
            step = 1 if caught else 2
            assert_same(states[step], restored)
            assert checkpoints.extra()["step"] == checkpoints.latest_step == step
            outcomes.append(step)
    assert set(outcomes) == {1, 2}  # some files matter, some do not


def largest(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_one_flipped_bit_is_found_and_the_leaf_named(two_steps, tmp_path):
    original, states = two_steps
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    damage(largest(tmp_path / "2" / "arrays"), "flip")
    with Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(CheckpointCorruptError, match="`params/w`"):
            checkpoints.restore(states[1], step=2)
        assert_same(states[1], checkpoints.restore(states[1], step=1))
        with pytest.warns(RuntimeWarning, match="passing over"):
            assert (
                checkpoints.extra()["step"] == 1
            )  # the same step as restore takes, though its part is sound
        assert checkpoints.steps() == [1]
        checkpoints.save(states[2], step=2)  # what is damaged may be saved again
        assert_same(states[2], checkpoints.restore(states[1]))
        assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(CheckpointError, match="no step 5"):
        restore_params(tmp_path, step=5)


def test_if_every_step_is_damaged_that_is_an_error(two_steps, tmp_path):
    original, states = two_steps
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    for step in ("1", "2"):
        damage(tmp_path / step / "meta" / "checkpoint.json", "flip")
    with (
        Checkpointer(tmp_path) as checkpoints,
        pytest.warns(RuntimeWarning, match="passing over"),
        pytest.raises(CheckpointCorruptError, match="no intact"),
    ):
        checkpoints.restore(states[1])
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        Checkpointer(tmp_path / "nowhere").restore(states[1])


def test_what_stands_in_the_place_of_steps_is_named(tmp_path):
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "state.pkl").write_bytes(b"")
    (tmp_path / "7.pt").write_bytes(b"")
    (tmp_path / "notes").write_text("")
    with pytest.raises(CheckpointError, match=r"not Orbax checkpoints, and never unpickled: `5`, `7\.pt`$"):
        restore_params(tmp_path)


def test_a_newer_format_is_refused_by_name(two_steps, tmp_path, monkeypatch):
    original, states = two_steps
    monkeypatch.setattr(shelf, "FORMAT", 0)
    with pytest.raises(CheckpointError, match=r"format 1 of .*jax.* reads up to 0"):
        Checkpointer(original).restore(states[1])


def test_the_document_is_valid_json_with_versions(two_steps):
    document = json.loads((two_steps[0] / "2" / "meta" / "checkpoint.json").read_text())
    assert document["format"] == 1
    assert document["versions"]["jax"] == jax.__version__
    assert document["arrays"]["state/params/w"]["shape"] == [500]


# Failures, threads and exits


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_a_failed_save_is_said_once_and_the_next_one_works(tmp_path, monkeypatch):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(simple(1), step=1)
    checkpoints.wait()
    with monkeypatch.context() as broken:
        broken.setattr(checkpointer, "orbax_save", full_disk)
        checkpoints.save(simple(2), step=2)
        with pytest.raises(CheckpointError, match=r"step 2 was not saved.*No space left"):
            checkpoints.save(simple(3), step=3)
    assert checkpoints.steps() == [1]
    checkpoints.save(simple(3), step=3)
    checkpoints.close()
    assert checkpoints.steps() == [1, 3]
    checkpoints.save(simple(4), step=4)  # closing ends a save, not the checkpointer
    checkpoints.close()
    assert checkpoints.steps() == [1, 3, 4]


def test_a_real_failure_of_the_engine(tmp_path):
    checkpoints = Checkpointer(tmp_path / "run")
    checkpoints.save(simple(), step=1)
    checkpoints.wait()
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("in the way")
    checkpoints.save(simple(), step=2)
    with pytest.raises(CheckpointError, match="step 2 was not saved"):
        checkpoints.close()


def test_check_raises_a_failure_without_waiting(tmp_path, monkeypatch):
    gate = threading.Event()

    def fail(*_):
        gate.wait(10)
        full_disk()

    monkeypatch.setattr(checkpointer, "orbax_save", fail)
    checkpoints = Checkpointer(tmp_path)
    checkpoints.check()
    checkpoints.save(simple(), step=1)
    checkpoints.check()  # still running: nothing to say yet
    assert not checkpoints.failed()
    gate.set()
    assert checkpoints.failed(wait=True)
    assert checkpoints.failed()  # until it is said
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoints.check()
    assert not checkpoints.failed()
    checkpoints.close()


def test_an_error_in_the_block_is_not_hidden_by_a_failed_save(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointer, "orbax_save", full_disk)
    with pytest.raises(ZeroDivisionError) as error, Checkpointer(tmp_path) as checkpoints:  # noqa: PT012
        checkpoints.save(simple(), step=1)
        1 / 0  # noqa: B018
    assert "No space left" in error.value.__notes__[0]


def test_an_error_in_the_block_does_not_lose_the_save(tmp_path):
    with pytest.raises(KeyboardInterrupt), Checkpointer(tmp_path) as checkpoints:  # noqa: PT012
        checkpoints.save(simple(), step=1)
        raise KeyboardInterrupt
    assert checkpoints.steps() == [1]


def test_it_works_inside_a_running_event_loop_as_in_a_notebook(tmp_path):
    async def cell():
        checkpoints = Checkpointer(tmp_path)
        checkpoints.save(simple(3), step=1)
        state = checkpoints.restore(simple())
        await asyncio.sleep(0)
        checkpoints.close()
        return float(state["count"])

    assert asyncio.run(cell()) == 3


SCRIPT = """
import sys
import numpy as np
from fntrain.checkpoint.checkpointer import Checkpointer
assert not [m for m in sys.modules if m.startswith(("orbax", "tensorstore"))], "imported too early"
checkpoints = Checkpointer(sys.argv[1])
checkpoints.save({"w": np.arange(3.0)}, step=1, extra={"x": np.ones(2)})
checkpoints.wait()
seen = []
names = ("pickle.find_class", "marshal.loads", "exec", "subprocess.Popen", "socket.connect")
import tensorstore
sys.addaudithook(lambda event, _: seen.append(event) if event in names else None)
assert checkpoints.restore({"w": np.zeros(3)})["w"][2] == 2 and checkpoints.extra()["x"][0] == 1
assert not seen, seen
checkpoints.save({"w": np.zeros(1_000_000)}, step=2)
"""


def test_a_script_that_just_ends_saves_its_last_step_and_reading_unpickles_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert Checkpointer(tmp_path).steps() == [1, 2]
    assert list(Path(tmp_path).glob("*tmp*")) == []


# Parameters alone


def test_restore_params_needs_no_types(tmp_path):
    params = {
        "layers": [{"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}, {}, (jnp.ones(1), None, ())],
        "named": Pair(jnp.arange(2), {3: jnp.ones(1, jnp.bfloat16)}),
        "wide": np.arange(2.0),
    }
    with Checkpointer(tmp_path, Keep(best=("loss", "min"))) as checkpoints:
        checkpoints.save(State(jnp.int32(1), params), metrics={"loss": 0.5})
        checkpoints.save(State(jnp.int32(2), jax.tree.map(lambda x: x * 0, params)), metrics={"loss": 0.7})
    expected = {**params, "named": params["named"]._asdict()}
    assert_same(expected, restore_params(tmp_path, "best"))
    assert_same(expected, restore_params(tmp_path, 1))
    newest = restore_params(tmp_path)
    damage(tmp_path / "2" / "meta" / "checkpoint.json", "flip")
    assert_same(expected, restore_params(tmp_path, "best"))
    assert isinstance(newest["layers"][0]["w"], jax.Array)
    assert float(newest["layers"][0]["w"].sum()) == 0.0


def test_restore_params_errors(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        restore_params(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        restore_params(tmp_path, "best")
    with Checkpointer(tmp_path, Keep(best=None)) as checkpoints:
        checkpoints.save({"weights": np.ones(1)}, step=1)
    with pytest.raises(ConfigError, match="nothing is ranked"):
        restore_params(tmp_path, "best")
    with pytest.raises(CheckpointError, match="no `params`"):
        restore_params(tmp_path)
