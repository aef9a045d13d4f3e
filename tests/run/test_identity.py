"""What a run is, is what it does: another process knows it again, and a call that describes another one is refused."""

import functools
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3)).astype(np.float32)


def loss_fn(params, batch, ctx):
    return ft.losses.mse(batch * params["w"][None], batch)


def scaled(params, batch, ctx, by=1.0):
    return ft.losses.mse(batch * params["w"][None] * by, batch)


def run(directory, tx, epochs, loss=loss_fn, **task_options):
    task = ft.Task(loss, tx, **task_options)
    state = ft.init_state(task, {"w": jnp.zeros(3)})
    return ft.fit(task, state, X, epochs=epochs, progress=False, run_dir=directory, resume=True)


SCRIPT = """
import sys, numpy as np, optax, fntrain as ft
rng = np.random.default_rng(0)
x = rng.normal(size=(64, 3)).astype(np.float32)
y = (x @ np.array([1, -2, 0.5], np.float32)).astype(np.float32)

def loss_fn(params, batch, ctx):
    return ft.losses.mse(batch[0] @ params["w"], batch[1])

task = ft.Task(loss_fn, optax.adam(1e-2))
state = ft.init_state(task, {"w": np.zeros(3, np.float32)})
for directory, epochs in zip(sys.argv[1::2], sys.argv[2::2]):
    options = dict(epochs=int(epochs), batch_size=16, run_dir=directory, resume=True, progress=False)
    ended = ft.fit(task, state, (x, y), **options).state
    leaves = ft.tree.items((ended.params, ended.opt_state))
    print(int(ended.step), *(np.asarray(leaf).tobytes().hex() for _, leaf in leaves))
"""


@pytest.mark.slow
def test_a_bare_optax_optimizer_is_resumed_by_another_process_bitwise(tmp_path):
    def process(seed, *arguments):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    # One process stops one run after two epochs and does another one whole.
    stopped, straight = process("1", tmp_path / "stopped", 2, tmp_path / "straight", 5)
    (resumed,) = process("2", tmp_path / "stopped", 5)
    assert stopped.split()[0] == "8"
    assert resumed.split()[0] == "20"
    assert resumed == straight
    assert len(resumed.split()) >= 5  # parameters, both moments, the count


def sgd(rate):
    return ft.chain(ft.clip_by_norm(1.0), optax.sgd(rate))


OTHERS = {
    "a number of optax's": (
        dict(tx=optax.sgd(0.1)),
        dict(tx=optax.sgd(0.9)),
        r"task\.tx\.\S+: saved -0\.1, now -0\.9",
    ),
    "a number of optax's in a chain": (
        dict(tx=sgd(0.1)),
        dict(tx=sgd(0.9)),
        r"task\.tx\.txs\.1\.\S+: saved -0\.1, now -0\.9",
    ),
    "a number in an array of optax's": (
        dict(tx=optax.scale(jnp.float32(-0.1))),
        dict(tx=optax.scale(jnp.float32(-0.9))),
        r"task\.tx\.\S+: saved 'float32 -0\.1\d*', now 'float32 -0\.\d+'",
    ),
    "an optimizer of optax's": (
        dict(tx=optax.chain(optax.scale_by_adam(), optax.scale(-0.1))),
        dict(tx=optax.chain(optax.scale_by_rms(), optax.scale(-0.1))),
        r"task\.tx\.\S+: .*scale_by_adam.*scale_by_rms",
    ),
    "a rate": (
        dict(tx=ft.optimizers.sgd(0.1)),
        dict(tx=ft.optimizers.sgd(0.2)),
        r"task\.tx\.learning_rate: saved 0\.1, now 0\.2",
    ),
    "a lambda for the rate": (
        dict(tx=ft.optimizers.sgd(lambda t: 0.1)),
        dict(tx=ft.optimizers.sgd(lambda t: 0.9)),
        r"task\.tx\.learning_rate: the code of `<lambda>` is another one",
    ),
    "a lambda for the loss": (
        dict(loss=lambda p, b, ctx: ft.losses.mse(b * p["w"][None], b)),
        dict(loss=lambda p, b, ctx: ft.losses.mae(b * p["w"][None], b)),
        r"task\.loss_fn: the code of `<lambda>` is another one",
    ),
    "a partial of the loss": (
        dict(loss=functools.partial(scaled, by=1.0)),
        dict(loss=functools.partial(scaled, by=2.0)),
        r"task\.loss_fn\.keywords\.by: saved 1\.0, now 2\.0",
    ),
    "a metric": (
        dict(metrics={"mae": ft.metrics.mae("x", "y")}, loss=lambda p, b, ctx: outputs(p, b)),
        dict(metrics={"mae": ft.metrics.mse("x", "y")}, loss=lambda p, b, ctx: outputs(p, b)),
        r"task\.metrics\.mae: saved mae\(.*\), now mse\(",
    ),
}


def outputs(params, batch):
    values = batch * params["w"][None]
    return ft.losses.mse(values, batch).with_outputs(x=values, y=batch)


@pytest.mark.parametrize("name", OTHERS)
def test_another_task_is_refused_with_the_difference_and_its_own_goes_on(name, tmp_path):
    mine, other, words = OTHERS[name]
    mine, other = ({"tx": ft.optimizers.sgd(0.1), **options} for options in (mine, other))
    run(tmp_path / "run", epochs=1, **mine)
    with pytest.raises(ft.CheckpointMismatchError, match=words) as error:
        run(tmp_path / "run", epochs=2, **other)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) <= 11
    assert all(line.startswith(("  task.", "  and ")) for line in lines)  # what differs, and nothing else
    assert " at 0x" not in str(error.value)
    assert int(run(tmp_path / "run", epochs=2, **mine).state.step) == 4


def test_the_same_task_written_again_is_the_same_run(tmp_path):
    def task():  # as a cell of a notebook makes it, each time it is run
        return dict(
            tx=ft.chain(optax.clip(1.0), optax.adam(lambda t: 0.1)),
            loss=functools.partial(lambda p, b, ctx, by: scaled(p, b, ctx, by), by=0.5),
        )

    run(tmp_path / "run", epochs=1, **task())
    assert run(tmp_path / "run", epochs=3, **task()).history["epoch"] == [1, 2, 3]


def both(params, batch, ctx):
    x, y = batch["both"] if isinstance(batch, dict) else batch
    return ft.losses.mse(x * params["w"][None], y)


@pytest.mark.parametrize("turned", [False, True])
def test_a_list_is_batches_and_a_tuple_is_columns_and_one_is_not_resumed_on_the_other(turned, tmp_path):
    """Two lots of 32 rows with their targets, or 32 rows in two columns: the same arrays, and another run."""
    parts = [X[:32], X[32:]]
    task = ft.Task(both, ft.optimizers.sgd(0.1))
    state = ft.init_state(task, {"w": jnp.zeros(3)})
    first, second = ([parts], tuple(parts))[:: -1 if turned else 1]
    options = dict(batch_size=32, progress=False, run_dir=tmp_path, resume=True)
    ft.fit(task, state, first, epochs=1, **options)
    with pytest.raises(ft.errors.RunMismatchError, match=r"data\.kind: saved '(iterable|arrays)', now"):
        ft.fit(task, state, second, epochs=2, **options)
    assert int(ft.fit(task, state, first, epochs=2, **options).state.step) == 2


def test_columns_of_a_list_inside_a_dict_are_those_of_a_tuple(tmp_path):
    """Below the top neither is batches, and the same rows come: the same run, as runs of earlier versions were."""
    task = ft.Task(both, ft.optimizers.sgd(0.1))
    state = ft.init_state(task, {"w": jnp.zeros(3)})
    options = dict(batch_size=32, progress=False)
    ft.fit(task, state, {"both": (X, X)}, epochs=1, run_dir=tmp_path, **options)
    resumed = ft.fit(task, state, {"both": [X, X]}, epochs=2, run_dir=tmp_path, resume=True, **options)
    alone = ft.fit(task, state, {"both": (X, X)}, epochs=2, **options)
    assert int(resumed.state.step) == 4
    np.testing.assert_array_equal(resumed.state.params["w"], alone.state.params["w"])
