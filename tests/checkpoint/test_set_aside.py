"""A save on an accelerator: the state is copied there, and nothing waits for its way to the host."""

import threading

import jax
import jax.numpy as jnp
import numpy as np

import fntrain as ft
from fntrain.checkpoint import leaves


def on_an_accelerator(monkeypatch, room):
    monkeypatch.setattr(leaves.sharding, "on_host", lambda x: False)
    monkeypatch.setattr(leaves, "_has_room", lambda arrays: room)
    threads, get = [], jax.device_get
    monkeypatch.setattr(
        jax, "device_get", lambda x: threads.append((threading.get_ident(), bool(x))) or get(x)
    )
    return threads


def test_a_state_that_the_next_step_consumes_is_what_is_saved(monkeypatch, tmp_path):
    task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
    state = ft.init_state(task, {"w": jnp.zeros(())}, key=7)
    with ft.Checkpointer(tmp_path) as checkpoints:
        with monkeypatch.context() as patched:
            threads = on_an_accelerator(patched, room=True)
            checkpoints.save(state, step=0, extra={"seen": np.arange(3), "name": "a"})
            me = threading.get_ident()
            assert (me, True) in threads  # what is the host's already
            with_state = [thread for thread, something in threads if something and thread != me]
            new, _ = ft.train_step(task, state, jnp.ones(2))
            checkpoints.wait()
            with_state = [thread for thread, something in threads if something and thread != me]
            assert len(with_state) == 1
        back = checkpoints.restore(jax.eval_shape(lambda: new), step=0)
        assert float(back.params["w"]) == 0.0
        assert float(new.params["w"]) > 0.0
        assert jax.random.key_data(back.key).tolist() == jax.random.key_data(new.key).tolist()
        assert checkpoints.extra(0)["seen"].tolist() == [0, 1, 2]


def test_without_room_for_a_second_state_it_goes_to_the_host_at_once(monkeypatch):
    threads = on_an_accelerator(monkeypatch, room=False)
    x = jnp.arange(3.0)
    give = leaves.set_aside({"x": x})
    before = len(threads)
    x.delete()
    assert give()["x"].tolist() == [0, 1, 2]
    assert [something for _, something in threads[before:]] == [False]


def test_there_is_room_if_the_most_ever_held_and_a_copy_fit(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 100, "peak_bytes_in_use": 88}

    class Part:
        device = Device()

        def __init__(self, n):
            self.data = np.zeros(n, np.int8)

    class Array:
        def __init__(self, *sizes):
            self.addressable_shards = [Part(n) for n in sizes]

    assert leaves._has_room({"a": Array(7), "b": Array(5)})
    assert not leaves._has_room({"a": Array(7), "b": Array(6)})
    assert not leaves._has_room({"a": jnp.zeros(3)})  # a CPU does not say
