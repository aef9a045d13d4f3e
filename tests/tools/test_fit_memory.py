"""fit_memory and fit(microbatches="auto"): the fewest parts that fit, by the compiled program; the same gradient."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.run import prepare


def loss_fn(params, batch, ctx):
    x = batch
    for _ in range(4):
        x = jnp.tanh(x @ params["w"])
    return ft.losses.mse(x, batch)


TASK = ft.Task(loss_fn, ft.optimizers.sgd(0.5))
BATCH = np.random.default_rng(0).normal(size=(4096, 8)).astype(np.float32)


def start():
    return ft.init_state(TASK, {"w": np.eye(8, dtype=np.float32) * 0.5})


def test_the_choice_fits_and_half_of_it_does_not():
    state = start()
    whole = ft.tools.compile_report(TASK, state, BATCH).peak_bytes
    budget = whole * 8 // 10
    found = ft.tools.fit_memory(TASK, state, BATCH, budget)
    assert found > 1
    peaks = {
        k: ft.tools.compile_report(ft.Task(loss_fn, TASK.tx, microbatches=k), state, BATCH).peak_bytes
        for k in (found // 2, int(found))
    }
    assert peaks[found] == found.peak_bytes <= budget < peaks[found // 2] == found.tried[found // 2]
    assert list(found.tried.values()) == sorted(found.tried.values(), reverse=True)
    assert ft.tools.fit_memory(TASK, state, BATCH, whole) == 1
    loss, gradient = ft.compute_gradients(found.task, state, BATCH)
    one, other = ft.compute_gradients(TASK, state, BATCH)
    np.testing.assert_allclose(loss, one, rtol=1e-6)
    np.testing.assert_allclose(gradient["w"], other["w"], rtol=1e-6, atol=1e-7)
    assert "micro-batches" in str(found)


def test_what_never_fits_is_said():
    with pytest.raises(ft.errors.DataError, match=r"does not fit .*however it is cut.* the state is"):
        ft.tools.fit_memory(TASK, start(), BATCH[:4], 100)
    scalar = ft.Task(lambda p, b, ctx: jnp.mean(loss_fn(p, b, ctx).values), TASK.tx)
    with pytest.raises(ft.errors.DataError, match="only parts that divide"):
        ft.tools.fit_memory(scalar, start(), BATCH[:6], 100)
    with pytest.raises(ft.errors.ConfigError, match="`budget`"):
        ft.tools.fit_memory(TASK, start(), BATCH, 0)
    assert ft.tools.fit_memory(TASK, start(), BATCH) == 1  # the machine has that much


def test_fit_takes_what_fits_and_keeps_it(tmp_path, monkeypatch):
    def run(epochs, **kwargs):
        kwargs = {"batch_size": 4096, "progress": False, "shuffle": False, **kwargs}
        return ft.fit(TASK, start(), BATCH, epochs=epochs, **kwargs)

    budget = ft.tools.compile_report(TASK, start(), BATCH).peak_bytes * 8 // 10
    monkeypatch.setattr(prepare, "device_budget", lambda state: budget)
    result = run(1, microbatches="auto", run_dir=tmp_path)
    chosen = json.loads((tmp_path / "config.json").read_text())["microbatches"]
    assert chosen > 1
    monkeypatch.setattr(prepare, "device_budget", lambda state: 2**40)  # another machine
    resumed = run(2, microbatches="auto", run_dir=tmp_path, resume=True)
    assert json.loads((tmp_path / "config.json").read_text())["microbatches"] == chosen
    for epochs, one in ((1, result), (2, resumed)):
        whole = run(epochs)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
            one.state.params,
            whole.state.params,
        )
    with pytest.raises(ft.errors.ConfigError, match="`microbatches`"):
        run(1, microbatches="most")
