"""How fast a run is, by a clock that the test turns: no history has it, and nothing waits for it."""

import itertools
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.run.throughput import PEAKS, Mark, Speed, peak_of, speed_of
from fntrain.step.cost import cost_of

X = np.arange(60, dtype=np.float32).reshape(20, 3)
TASK = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b[:, 0]), ft.optimizers.sgd(1e-5))


def start():
    return ft.init_state(TASK, {"w": np.ones(3, np.float32)})


def test_a_throughput_is_rows_and_operations_over_the_time_between_two_moments():
    device = types.SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 77})
    speed = Speed(32, flops=1000, peak=4000.0, device=device, clock=iter([10.0, 12.5]).__next__)
    before = speed.mark(100)
    assert before == Mark(10.0, 100)
    got = speed.since(before, 110)
    assert got == (
        110,
        10,
        2.5,
        128.0,
        1.0,
        77,
        None,
    )  # 10 steps of 32 rows, 10 * 1000 of 2.5 * 4000 operations


def test_steps_of_several_sizes_count_by_what_each_of_them_takes():
    flops = {32: 1000, 64: 2400}
    sizes = lambda first, last: {32: 6, 64: last - first - 6}
    speed = Speed(32, flops, peak=4000.0, clock=iter([10.0, 12.5]).__next__, sizes=sizes)
    got = speed.since(speed.mark(100), 110)
    assert got.examples_per_second == (6 * 32 + 4 * 64) / 2.5
    assert got.mfu == pytest.approx((6 * 1000 + 4 * 2400) / (2.5 * 4000))


@pytest.mark.parametrize("now", [10.0, 9.0, float("nan")])
def test_no_time_is_no_throughput(now):
    speed = Speed(32, clock=lambda: now)
    assert speed.since(Mark(10.0, 0), 5) is None
    assert Speed(32, clock=lambda: 11.0).since(Mark(10.0, 5), 5) is None
    assert Speed(32).since(None, 5) is None


def test_the_peak_is_that_of_the_longest_name_that_fits():
    assert peak_of("NVIDIA H100 80GB HBM3") == PEAKS["NVIDIA H100"] != peak_of("NVIDIA H100 PCIe")
    assert peak_of("NVIDIA H100 NVL") == PEAKS["NVIDIA H100 NVL"] != peak_of("NVIDIA H100 PCIe")
    assert peak_of("NVIDIA A100-SXM4-80GB") == PEAKS["NVIDIA A100"] != peak_of("NVIDIA A10G")
    assert peak_of("NVIDIA L4") == PEAKS["NVIDIA L4"] != peak_of("NVIDIA L40") != peak_of("NVIDIA L40S")
    assert peak_of("NVIDIA L400") is None  # a newer card is not taken for an older one
    assert peak_of("TPU v5 lite") == PEAKS["TPU v5 lite"] != peak_of("TPU v5p") == PEAKS["TPU v5p"]
    assert peak_of("cpu") is None


def test_a_cond_counts_by_its_cheapest_branch_as_every_step_does_that_much(monkeypatch):
    def update(updates, state, params=None, **extra):
        def dear(u):
            return jax.tree.map(lambda x: x @ jnp.ones((8, 8)) @ jnp.ones((8, 8)), u)

        return jax.lax.cond(state > 1, dear, lambda u: u, updates), state + 1

    import optax

    rare = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
    task = ft.Task(lambda p, b, ctx: ft.losses.mse((b @ p["w"]).sum(1), b[:, 0]), rare)
    state = ft.init_state(task, {"w": np.ones((8, 8), np.float32)})
    form = jax.ShapeDtypeStruct((4, 8), jnp.float32), None
    cost = cost_of(task, state, *form)
    step = 2 * (2 * 4 * 8 * 8)  # forward, and the kernel's gradient
    assert (cost.flops, cost.least_flops) == (step + 2 * (2 * 8 * 8 * 8), step)
    monkeypatch.setattr("fntrain.run.throughput.peak_of", lambda kind: 1e6)
    speed = speed_of(task, state, {4: form})
    assert speed.since(Mark(0.0, 0), 1).mfu == pytest.approx(step / 1e6 / speed.mark(0).seconds, rel=1e-3)


def test_the_loop_says_it_at_logs_and_edges_and_the_history_does_not(monkeypatch):
    """Each reading of the clock is a second after the one before."""
    monkeypatch.setattr(time, "perf_counter", itertools.count(0.0).__next__)
    logs, epochs = [], []

    class Reads:
        adds_logs = False

        def on_log(self, ctx):
            logs.append((ctx.logs["step"], ctx.throughput and ctx.throughput.steps))

        def on_epoch_end(self, ctx):
            epochs.append((ctx.throughput.step, ctx.throughput.steps, ctx.throughput.examples_per_second > 0))

    result = ft.fit(
        TASK,
        start(),
        X,
        epochs=2,
        batch_size=2,
        log_every=3,
        callbacks=[Reads()],
        progress=False,
        steps_per_call=1,
    )
    # Ten steps an epoch; a log's values are fetched one window late, and the first of an epoch has none before it.
    assert logs == [(3, None), (6, 3), (9, 3), (12, None), (15, 3), (18, 3)]
    assert epochs == [(10, 9, True), (20, 10, True)]  # the first dispatch may have compiled
    assert result.throughput.step == 20
    assert result.throughput.mfu is None  # a CPU
    plain = ft.fit(TASK, start(), X, epochs=2, batch_size=2, progress=False, steps_per_call=1)
    assert plain.history.rows() == result.history.rows()
    assert not any("second" in column for column in result.history)


def test_the_clock_is_read_where_the_loop_waits_anyway(monkeypatch):
    waits = []
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waits.append(x) or x)
    with jax.transfer_guard_device_to_host("disallow_explicit"):
        speed = speed_of(TASK, start(), {2: (jax.ShapeDtypeStruct((2, 3), jnp.float32), None)})
        speed.since(speed.mark(0), 1)
    assert not waits


def test_a_loss_of_many_values_an_example_says_tokens_a_second(monkeypatch):
    """[B, T] values are T tokens an example, however the batch is cut and whatever is masked; one value is none."""
    tokens = np.arange(48).reshape(8, 6) % 5

    def loss_fn(p, b, ctx):
        return ft.losses.cross_entropy(p["w"][b], b, ignore_index=0)

    for cut in (1, 3):
        task = ft.Task(loss_fn, ft.optimizers.sgd(0.1), microbatches=cut)
        state = ft.init_state(task, {"w": np.zeros((5, 5), np.float32)})
        form = jax.ShapeDtypeStruct((4, 6), jnp.int32), None
        assert cost_of(task, state, *form).values == 6
        speed = speed_of(task, state, {4: form})
        before = speed.mark(0)._replace(seconds=0.0)
        got = speed.since(before, 10)
        assert got.tokens_per_second == pytest.approx(6 * got.examples_per_second)
    assert cost_of(TASK, start(), jax.ShapeDtypeStruct((2, 3), jnp.float32), None).values == 1
    scalar = ft.Task(lambda p, b, ctx: jnp.sum(p["w"]) + jnp.mean(b), ft.optimizers.sgd(0.1))
    assert cost_of(scalar, start(), jax.ShapeDtypeStruct((2, 3), jnp.float32), None).values is None

    printed = []
    monkeypatch.setattr("builtins.print", lambda *a, **k: printed.append(str(a[0]) if a else ""))
    result = ft.fit(task, state, tokens, epochs=1, batch_size=4, callbacks=[ft.callbacks.ProgressBar()])
    assert result.throughput.tokens_per_second == pytest.approx(6 * result.throughput.examples_per_second)
    assert any("tokens/s" in line for line in printed)


def test_examples_are_no_tokens():
    result = ft.fit(TASK, start(), X, epochs=1, batch_size=2, progress=False)
    assert result.throughput.tokens_per_second is None
