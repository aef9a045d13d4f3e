"""The door: every transform of optax does here what it does by hand, wherever it stands, or is refused by name."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain.transforms.adapt import Adapted, adapt

spec = importlib.util.spec_from_file_location("optax_rows", Path(__file__).with_name("optax_rows.py"))
rows: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rows)
ROWS, REFUSED, EVALUATES = rows.ROWS, rows.REFUSED, rows.EVALUATES
matrix = pytest.mark.matrix(always=rows.SPECIAL)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 16)).astype(np.float32)
Y = (X @ RNG.normal(size=(16, 8))).astype(np.float32)
PARAMS = {"a": {"kernel": RNG.normal(size=(16, 8)).astype(np.float32) / 4}, "b": np.full(8, 0.1, np.float32)}


TRACES = []


def loss_fn(params, batch, ctx):
    TRACES.append(1)
    x, y = batch
    return ft.losses.mse(x @ params["a"]["kernel"] + params["b"][None], y)


def by_hand(name, tx, steps):
    """optax's own loop, without a line of ours."""
    tx = optax.with_extra_args_support(
        tx.gradient_transformation() if isinstance(tx, optax.MultiSteps) else tx
    )

    def value(p):
        return jnp.mean(jnp.square(X @ p["a"]["kernel"] + p["b"][None] - Y))

    def arguments(name, v, g):
        if name.startswith("sam"):
            return {"grad_fn": lambda p, i=None: jax.grad(value)(p)}
        if name in ("lbfgs", "backtracking"):  # which refuse what they do not use
            return {"value": v, "grad": g, "value_fn": value}
        return {"value": v, "obj_fn": value}

    @jax.jit
    def step(p, s):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            v, g = jax.value_and_grad(value)(p)
            updates, s = tx.update(g, s, p, **arguments(name, v, g))
            return optax.apply_updates(p, updates), s

    p = jax.tree.map(jnp.asarray, PARAMS)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        s = tx.init(p)
    for _ in range(steps):
        p, s = step(p, s)
    return p


@matrix
@pytest.mark.parametrize("name", ROWS)
def test_alone_and_sharded_it_is_what_it_is_by_hand(name):
    make = ROWS[name]
    task = ft.Task(loss_fn, make())
    assert task == ft.Task(loss_fn, make())  # equal by code and cells
    assert " at 0x" not in repr(task)
    mesh = ft.sharding.mesh(data=-1)
    state = ft.init_state(task, PARAMS, mesh=mesh, rules=ft.sharding.fsdp(min_size=16))
    TRACES.clear()
    where = {path: x.sharding for path, x in ft.tree.items(state)}
    batch, _ = ft.sharding.shard_batch((X, Y), mesh)
    state, metrics = ft.train_step(task, state, batch)
    traces = len(TRACES)
    for _ in range(3):
        state, metrics = ft.train_step(task, state, batch)
    assert len(TRACES) == traces > 0  # law 2
    assert {path: x.sharding for path, x in ft.tree.items(state)} == where
    assert np.isfinite(float(ft.compute_metrics(task, metrics)["loss"]))
    expected = by_hand(name, make(), 4)
    for path, x in ft.tree.items(expected):
        np.testing.assert_allclose(
            dict(ft.tree.items(state.params))[path], x, rtol=2e-4, atol=2e-5, err_msg=path
        )
    assert int(state.updates) == (2 if name in rows.HOLDS else 4)


# Several stand in one program, which is compiled once: a group of parameters each. What sees the loss stands alone.
ALONE = [*sorted(EVALUATES), "momo", "momo_adam", "polyak_sgd"]
TOGETHER = [
    " ".join(kind[i : i + 8])
    for kind in (
        [name for name in ROWS if name not in ALONE and name in rows.SPECIAL],
        [name for name in ROWS if name not in ALONE and name not in rows.SPECIAL],
    )
    for i in range(0, len(kind), 8)
]
SEEN = {chunk for chunk in TOGETHER if set(chunk.split()) & rows.SPECIAL}


@pytest.mark.matrix(always=(rows.SPECIAL | SEEN) - {"lbfgs"})  # a line search is a second to compile
@pytest.mark.parametrize("names", [*TOGETHER, *ALONE])
def test_inside_everything_of_ours_it_trains_and_comes_back_from_disk(names, tmp_path):
    evaluates, names = names in EVALUATES, [names] if names in ALONE else names.split()
    params = dict.fromkeys(names, PARAMS)

    def loss_of_all(params, batch, ctx):
        return sum(loss_fn(params[name], batch, ctx).values for name in names)

    groups = ft.by_path(
        {f"^{name}/.*kernel": ROWS[name]() for name in names} | {".*": ft.optimizers.sgd(1e-2)}
    )
    if evaluates:
        with pytest.raises(ft.ConfigError, match="there is no one loss to evaluate"):
            ft.MultiSteps(groups, 2)
    inner = groups if evaluates else ft.MultiSteps(groups, 2)
    task = ft.Task(loss_of_all, ft.skip_nonfinite(ft.chain(ft.clip_by_norm(10.0), inner)))
    state = ft.init_state(task, params)
    for i in range(6):
        batch = (X, np.full_like(Y, np.nan)) if i == 3 else (X, Y)
        kept = jax.tree.map(jnp.copy, (state.params, state.opt_state.inner_state)) if i == 3 else None
        state, metrics = ft.train_step(task, state, batch)
        if i == 3:  # a bad step leaves no trace
            assert int(ft.compute_metrics(task, metrics)["skipped"]) == 1
            after = (state.params, state.opt_state.inner_state)
            assert all(jax.tree.leaves(jax.tree.map(_equal, kept, after)))
    assert int(ft.compute_metrics(task, metrics)["skipped"]) == 0
    for name in names:
        assert not _equal(state.params[name]["a"]["kernel"], PARAMS["a"]["kernel"]), name
        assert error(state.params[name]) <= error(PARAMS) * 1.05, name
    with ft.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(state, step=6)
        again = checkpoints.restore(ft.init_state(task, params))
    assert all(jax.tree.leaves(jax.tree.map(_equal, state, again)))
    assert jax.tree.structure(state) == jax.tree.structure(again)


def error(p):
    return np.square(X @ np.asarray(p["a"]["kernel"]) + np.asarray(p["b"]) - Y).mean()


def _equal(a, b):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=a.dtype.kind == "f")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_our_words(name):
    make, words = REFUSED[name]
    task = ft.Task(loss_fn, make())
    with pytest.raises(ft.ConfigError, match=words):
        ft.train_step(task, ft.init_state(task, PARAMS), (X, Y))


def test_every_optimizer_of_optax_has_its_row():
    """A name that optax adds is one that nobody has tried."""
    contrib = (
        {name for name in optax.contrib.__all__ if name.islower()}
        if hasattr(optax.contrib, "__all__")
        else set()
    )
    aliases = {
        name
        for name, f in vars(optax._src.alias).items()
        if callable(f) and getattr(f, "__module__", "") == "optax._src.alias" and not name.startswith("_")
    }
    aliases = {name for name in aliases if name[0].islower()} - {"optimistic_adam"}  # an older form of `_v2`
    known = {name.split(" ")[0] for name in [*ROWS, *REFUSED]}
    assert aliases - known == set()
    assert {"adam", "lbfgs", "lion"} <= aliases
    assert contrib - known <= contrib  # what contrib exports beside optimizers is not counted


def test_fingerprints_are_the_same_in_another_process():
    here = {name: ft.Task(loss_fn, make()).fingerprint()["tx"] for name, make in ROWS.items()}
    code = (
        "import importlib.util, json, sys, fntrain as ft\n"
        f"spec = importlib.util.spec_from_file_location('optax_rows', {str(Path(rows.__file__))!r})\n"
        "rows = importlib.util.module_from_spec(spec); spec.loader.exec_module(rows)\n"
        "tasks = {n: ft.Task(lambda p, b, c: b, make()) for n, make in rows.ROWS.items()}\n"
        "print(json.dumps({n: task.fingerprint()['tx'] for n, task in tasks.items()}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert there == json.loads(json.dumps(here))
    assert len({json.dumps(x, sort_keys=True) for x in there.values()}) == len(ROWS)  # and no two are one


def test_a_guard_looks_at_what_a_line_search_finds():
    """The loss is NaN a little further on, where only the line search goes: the step leaves no trace."""

    def steep(params, batch, ctx):
        return jnp.where(params["w"] > 3, jnp.nan, 1.0) * jnp.square(params["w"]) + 0 * batch

    uphill = optax.contrib.sam(optax.sgd(0.1), optax.sgd(100.0), opaque_mode=True)
    for tx, skipped in ((ft.skip_nonfinite(uphill), 1), (ft.skip_spikes(uphill), 1)):
        task = ft.Task(steep, tx)
        state = ft.init_state(task, {"w": jnp.float32(1)})
        state, metrics = ft.train_step(task, state, jnp.zeros(2))
        assert float(state.params["w"]) == 1.0
        assert int(ft.compute_metrics(task, metrics)["skipped"]) == skipped


class Numbers(NamedTuple):
    seen: Any
    done: Any


def test_python_numbers_in_a_foreign_state_become_arrays():
    def init(params):
        return Numbers(0, False)

    def update(updates, state, params=None):
        return updates, Numbers(state.seen + 1, True)

    task = ft.Task(loss_fn, ft.chain(optax.GradientTransformation(init, update), ft.optimizers.sgd(0.1)))
    state = ft.init_state(task, PARAMS)
    for _ in range(3):
        state, _ = ft.train_step(task, state, (X, Y))
    found = state.opt_state["test_python_numbers_in_a_foreign_state_become_arrays"]
    assert (int(found.seen), bool(found.done)) == (3, True)


def test_integer_leaves_are_no_business_of_optax():
    params = {**PARAMS, "step": np.arange(3)}
    for make in (ROWS["adamw"], ROWS["muon"], ROWS["backtracking"]):
        task = ft.Task(loss_fn, make())
        state = ft.init_state(task, params)
        state, _ = ft.train_step(task, state, (X, Y))
        assert state.params["step"].tolist() == [0, 1, 2]


def test_optaxs_average_is_read_as_ours_is():
    task = ft.Task(loss_fn, optax.contrib.schedule_free_sgd(1e-2))
    state = ft.init_state(task, PARAMS)
    for _ in range(3):
        state, _ = ft.train_step(task, state, (X, Y))
    inner = state.opt_state.inner_state
    expected = optax.contrib.schedule_free_eval_params(inner, state.params)
    for own in (ft.averaged(state), task.transform.evaluation_params(state.opt_state, state.params)):
        for path, x in ft.tree.items(expected):
            np.testing.assert_allclose(dict(ft.tree.items(own))[path], x, rtol=1e-6)


def test_the_door_gives_ours_back():
    tx = ft.optimizers.adam()
    assert adapt(tx) is tx
    assert isinstance(adapt(optax.adam(1e-3)), Adapted)
    assert adapt(optax.adam(1e-3)) != adapt(optax.adam(1e-2))
    assert adapt(optax.add_noise(0.1, 0.5, jax.random.key(0))) == adapt(
        optax.add_noise(0.1, 0.5, jax.random.key(0))
    )
    assert adapt(optax.add_noise(0.1, 0.5, jax.random.key(0))) != adapt(
        optax.add_noise(0.1, 0.5, jax.random.key(1))
    )


def test_in_a_repr_a_foreign_transform_is_its_factory():
    tx = ft.chain(ft.clip_by_norm(1.0), optax.scale_by_adam(), optax.scale(-0.1))
    assert "init_fn" not in repr(tx)
    assert "scale_by_adam" in repr(tx)
