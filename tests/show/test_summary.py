"""The summary at a run's start: what it says is what the run does."""

import jax
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain.show.summary import summary
from fntrain.show.text import bytes_text

PARAMS = {"body": {"w": np.zeros((64, 128), np.float32)}, "bias": np.zeros(128, np.float32)}


def loss_fn(params, batch, ctx):
    output = batch @ params["body"]["w"] + params["bias"][None]
    return ft.losses.mse(output, 0 * output)


def facts(tx, mesh=None, rules=None, task=None, **run):
    task = task or ft.Task(loss_fn, tx)
    state = ft.init_state(task, PARAMS, mesh=mesh, rules=rules)
    lines = summary(task, state, **run).splitlines()
    return {line[:10].strip(): line[12:] for line in lines}


def test_parameters_and_memory_are_those_of_the_state():
    found = facts(ft.optimizers.adam(1e-3))
    # 8,320 float32 numbers; Adam keeps twice as much, and a few counters.
    assert found["parameters"].startswith("8,320 in 2 arrays (float32), 33.3 kB; the state with them 99.9 kB")
    assert found["devices"] == "1 cpu"
    assert list(found) == ["devices", "parameters", "optimizer", "rate", "clipping", "decay"]


def test_memory_a_device_on_a_mesh():
    mesh = ft.sharding.mesh(data=2, model=4)
    rules = [("w$", jax.P(None, "model")), (".*", jax.P())]
    found = facts(ft.optimizers.sgd(0.1), mesh, rules)
    assert found["devices"] == "8 cpu, mesh data=2 x model=4"
    state = ft.init_state(ft.Task(loss_fn, ft.optimizers.sgd(0.1)), PARAMS, mesh=mesh, rules=rules)
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert held < whole / 2
    assert f"the state with them {bytes_text(whole)}, {bytes_text(held)} a device" in found["parameters"]


@pytest.mark.parametrize(
    ("tx", "decay", "clipping", "rate"),
    [
        (ft.optimizers.sgd(0.1), "none", "none", "0.1"),
        (ft.optimizers.sgd(0.1, weight_decay=1e-4), "0.0001, L2", "none", "0.1"),
        (ft.optimizers.sgd(0.1, momentum=0.9, weight_decay=1e-4), "0.0001, L2", "none", "0.1"),
        (ft.optimizers.adamw(0.1), "0.0001, decoupled", "none", "0.1"),
        (ft.optimizers.adamw(0.1, mask="w$"), "0.0001, decoupled, where 'w$'", "none", "0.1"),
        (
            ft.chain(
                ft.clip_by_value(0.5), ft.clip_by_norm(1.0), ft.skip_nonfinite(ft.optimizers.adamw(0.1))
            ),
            "0.0001, decoupled",
            "clip_by_value(max_value=0.5); clip_by_norm(max_norm=1.0)",
            "0.1",
        ),
        (  # behind what rescales the gradient, though in another stage
            ft.chain(ft.scale_by_adam(), ft.add_weight_decay(0.5), ft.scale_by_learning_rate(0.1)),
            "0.5, decoupled",
            "none",
            "0.1",
        ),
        (
            ft.by_path(
                {"bias": ft.optimizers.sgd(ft.schedules.cosine(0.1, 9)), ".*": ft.optimizers.adamw(0.2)}
            ),
            "0.0001, decoupled for `.*`",
            "none",
            "cosine(start=0.1, steps=9) for `bias`; 0.2 for `.*`",
        ),
    ],
)
def test_what_is_effective(tx, decay, clipping, rate):
    found = facts(tx)
    assert (found["decay"], found["clipping"], found["rate"]) == (decay, clipping, rate)


def test_of_an_optax_transform_nothing_is_claimed():
    found = facts(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)))
    assert found["optimizer"] == "optax's chain"
    assert not {"rate", "clipping", "decay"} & set(found)
    found = facts(ft.chain(optax.clip_by_global_norm(1.0), ft.optimizers.sgd(0.1)))
    assert found["clipping"] == "optax's clip_by_global_norm"
    assert "decay" not in found


def test_the_effective_batch_and_the_updates_are_those_of_the_run():
    task = ft.Task(loss_fn, ft.chain(ft.clip_by_norm(1.0), ft.MultiSteps(ft.optimizers.sgd(0.1), 4)))
    found = facts(None, task=task, batch_size=8, steps_per_epoch=5, epochs=2, steps_per_call=5)
    assert found["batch"] == "8 examples, 32 an update (4 batches each)"
    assert found["run"] == "2 epochs of 5 steps: 10 steps, 2 updates, 5 a call"
    state = ft.init_state(task, PARAMS)
    for _ in range(10):
        state, _ = ft.train_step(task, state, np.zeros((8, 64), np.float32))
    assert (int(state.step), int(state.updates)) == (10, 2)


def test_other_lengths_and_batches():
    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1), microbatches=4, policy=ft.precision.policy("bf16"))
    found = facts(None, task=task, batch_size=1, steps=1)
    assert found["batch"] == "1 example in 4 micro-batches"
    assert found["run"] == "1 step"
    assert found["parameters"].endswith("; computed in bfloat16")
    assert facts(None, task=task, epochs=3)["run"] == "3 epochs"
    assert facts(None, task=task, steps=1000, steps_per_epoch=57)["run"] == "epochs of 57 steps: 1,000 steps"
    assert "run" not in facts(None, task=task)


def test_a_batch_size_that_grows_is_told_in_epochs_gone_by():
    task = ft.Task(loss_fn, ft.MultiSteps(ft.optimizers.sgd(0.1), 4))
    sizes = {0: 32, 3: 64, 6.5: 128}
    found = facts(None, task=task, batch_size=sizes, epochs=10, steps=100)
    assert found["batch"] == "32 examples, 64 after 3 epochs, 128 after 6.5 epochs, 4 batches an update"
    assert found["run"] == "10 epochs: 100 steps, 25 updates"


def test_bytes():
    assert [bytes_text(n) for n in (0, 999, 1000, 123456, 10**12, 10**16)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "123.5 kB",
        "1.0 TB",
        "10000.0 TB",
    ]
