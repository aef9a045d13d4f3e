"""A state in print: what it is, in a few lines, whatever its leaves are, and no numbers of it."""

import jax
import jax.numpy as jnp
import numpy as np

import fntrain as ft

TASK = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], 0 * b[:, 0]), ft.optimizers.adam(1e-3))


def state():
    return ft.init_state(TASK, {"w": np.full(1000, 0.123, np.float32), "n": np.arange(3)})


def test_a_state_prints_in_a_few_lines_of_facts():
    given = state().replace(step=jnp.int32(12), updates=jnp.int32(3))
    text = repr(given)
    assert text.splitlines()[1] == "  step: 12, 3 updates"
    assert "1,003 in 2 arrays (float32, int32), 4.0 kB: n: int32[3], w: float32[1000]" in text
    assert "ScaleByAdamState" in text
    assert "0.123" not in text
    assert len(text) < 500
    table = given._repr_html_()
    assert table.startswith("<table>")
    assert "1,003 in 2 arrays" in table


def test_it_prints_with_leaves_of_every_kind_and_stays_a_pytree():
    given = state()
    assert "step: int32[], int32[] updates" in repr(jax.eval_shape(lambda x: x, given))
    traced = []
    jax.jit(lambda x: traced.append(repr(x)))(given)
    assert "step: int32[], int32[] updates" in traced[0]
    assert "SingleDeviceSharding" in repr(jax.tree.map(lambda x: x.sharding, given))
    assert "step: None" in repr(given.replace(step=None, params=None, opt_state=()))
    members = jax.vmap(lambda k: ft.init_state(TASK, {"w": jnp.zeros(2)}, key=k))(
        jax.random.split(jax.random.key(0), 3)
    )
    assert "step: int32[3], int32[3] updates" in repr(members)
    with jax.transfer_guard("disallow"):
        repr(given)
    ft.train_step(TASK, given, np.ones((4, 1000), np.float32))  # consumes it
    assert "step: 0, " in repr(given)
    assert len(jax.tree.leaves(state())) == len(jax.tree.leaves(given))


def test_results_and_histories_print_in_short_and_as_tables():
    x = np.ones((8, 1000), np.float32)
    result = ft.fit(TASK, state(), x, epochs=30, batch_size=8, progress=False)
    assert "state=TrainState(" in repr(result)
    assert "history=History(30 epochs, columns ['epoch', 'step', 'updates', 'loss'," in repr(result)
    assert len(repr(result)) < 1000
    assert " examples/s'" in repr(result)
    assert " % of " in repr(result)
    table = result._repr_html_()
    assert "the last 20 of 30 epochs" in table
    assert table.count("<tr>") == 4 + 1 + 20
    assert "<td style='text-align:right'>30</td>" in result.history._repr_html_()


def test_the_metrics_of_a_step_say_how_they_are_read():
    _, metrics = ft.train_step(TASK, state(), np.ones((4, 1000), np.float32))
    assert "`fntrain.compute_metrics(task, metrics)`" in repr(metrics)
    assert len(repr(metrics)) < 120
