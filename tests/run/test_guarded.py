"""`fit` under a transfer guard: what comes to the host is asked for by name, `device_get`.

On a CPU JAX's own guard lets everything pass, as nothing moves. Here every method by which an array becomes a number
without being asked for raises, as under `jax.transfer_guard_device_to_host("disallow")` on an accelerator.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.run import loop

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
TASK = ft.Task(
    lambda p, b, ctx: ft.losses.mse(b @ p["w"], b[:, 0]),
    ft.skip_nonfinite(ft.chain(ft.clip_by_norm(1.0), ft.optimizers.sgd(0.01))),
)
IMPLICIT = ("__array__", "__float__", "__int__", "__bool__", "__index__", "item", "tolist")


def _only(asked, name, real):
    def implicit(self, *args, **kwargs):
        if not asked:
            raise RuntimeError(f"`{name}` fetches without being asked")
        return real(self, *args, **kwargs)

    return implicit


@contextlib.contextmanager
def guarded(monkeypatch):
    kind, get = type(jnp.zeros(())), jax.device_get
    asked = []

    def explicit(x):
        asked.append(1)
        try:
            return get(x)
        finally:
            asked.pop()

    with monkeypatch.context() as patched, jax.transfer_guard_device_to_host("disallow"):
        patched.setattr(jax, "device_get", explicit)
        for name in IMPLICIT:
            patched.setattr(kind, name, _only(asked, name, getattr(kind, name)))
        yield


@pytest.fixture
def state():
    return ft.init_state(TASK, {"w": np.ones(3, np.float32)})


def test_the_guard_guards(state, monkeypatch):
    with guarded(monkeypatch):
        assert jax.device_get(state.step) == 0
        for fetch in (int, float, bool, lambda x: x.tolist()):
            with pytest.raises(RuntimeError, match="without being asked"):
                fetch(state.step)


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_a_run_fetches_what_it_fetches_by_name(state, monkeypatch, tmp_path, steps_per_call):
    options = dict(batch_size=4, validation_data=X[:8], validation_every=7, log_every=3, progress=False)
    options["steps_per_call"] = steps_per_call
    seen = []

    class Logs:
        def on_log(self, ctx):
            seen.append(ctx.logs["loss"])

    stop = ft.callbacks.EarlyStopping("val_loss", patience=9)
    options["callbacks"] = [Logs(), stop, ft.callbacks.NaNGuard()]
    with guarded(monkeypatch):
        ft.fit(TASK, state, X, steps=15, run_dir=tmp_path, checkpoint_every=5, **options)
        result = ft.fit(
            TASK, state, X, epochs=2, run_dir=tmp_path, checkpoint_every=5, resume=True, **options
        )
    assert int(result.state.step) == 20
    assert len(seen) >= 4


def test_on_an_accelerator_batches_of_arrays_are_made_ahead_unless_told_otherwise(state, monkeypatch):
    made = []

    class Prefetcher(loop.Prefetcher):
        def __init__(self, pieces, put, size):
            made.append(size)
            super().__init__(pieces, put, size)

    monkeypatch.setattr(loop, "Prefetcher", Prefetcher)
    options = dict(epochs=1, batch_size=20, progress=False, data_on_device=False)
    batches = [X[:20], X[20:]]
    want = ft.fit(TASK, state, X, **options)
    ft.fit(TASK, state, batches, **options)
    assert made == []  # this is a CPU
    monkeypatch.setattr("fntrain.sharding.on_host", lambda x: False)
    got = ft.fit(TASK, state, X, **options)
    ft.fit(TASK, state, batches, **options)  # what others give is not read before it is due
    ft.fit(TASK, state, X, **options, prefetch=0)
    assert made == [2]
    assert got.history.rows() == want.history.rows()
