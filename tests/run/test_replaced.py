"""Steps of one's own in the loop: ours in their place is bitwise ours, another is used, identity and errors by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import protocols

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32)).astype(np.float32)
HELD = (X[:5], Y[:5])


def loss_fn(params, batch, ctx):
    predictions = batch[0] @ params["w"]
    return ft.losses.mse(predictions, batch[1]).with_outputs(predictions=predictions, targets=batch[1])


TASK = ft.Task(
    loss_fn, ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adam(0.05), ft.ema(0.9)), {"r2": ft.metrics.r2()}
)


def start():
    return ft.init_state(TASK, {"w": np.zeros(3, np.float32)})


def run(**options):
    options = {"epochs": 2, "batch_size": 8, "progress": False, "validation_data": HELD, **options}
    return ft.fit(TASK, start(), (X, Y), **options)


def bits(state):
    return [
        np.asarray(x).tobytes() for x in jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))
    ]


def ours(task, state, batch, weight):
    return ft.train_step(task, state, batch, weight)


def our_eval(task, state, batch, weight):
    return ft.eval_step(task, state, batch, weight)


def shrinking(task, state, batch, weight):
    state, metrics = ft.train_step(task, state, batch, weight)
    return state.replace(params=jax.tree.map(lambda x: 0.5 * x, state.params)), metrics


@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_ours_in_its_own_place_is_bitwise_ours(steps_per_call):
    plain = run(steps_per_call=steps_per_call)
    result = run(steps_per_call=steps_per_call, train_step=ours, eval_step=our_eval)
    assert bits(result.state) == bits(plain.state)
    assert result.history.rows() == plain.history.rows()
    assert bits(run(train_step=ft.train_step, eval_step=ft.eval_step).state) == bits(plain.state)


@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_another_one_is_used_padding_and_chunks_included(steps_per_call):
    result = run(steps_per_call=steps_per_call, train_step=shrinking)
    state = start()
    for epoch in range(2):
        for batch, weight in _epoch(epoch):
            state, _ = ft.train_step(TASK, state, batch, weight)
            state = state.replace(params=jax.tree.map(lambda x: 0.5 * x, state.params))
    np.testing.assert_allclose(result.state.params["w"], state.params["w"], rtol=1e-6)
    assert int(result.state.step) == 6


def _epoch(epoch):
    loader = ft.data_loader((X, Y), 8, seed=0)
    loader.seek(epoch, 0)
    return iter(loader)


def test_noise_by_the_states_key_differs_by_step_and_resumes_bitwise(tmp_path):
    def noisy(task, state, batch, weight):
        key = jax.random.fold_in(state.key, state.step)
        state, metrics = ft.train_step(task, state, batch, weight)
        noise = {"w": 0.01 * jax.random.normal(key, (3,))}
        return state.replace(params=jax.tree.map(jnp.add, state.params, noise)), metrics

    straight = run(train_step=noisy)
    assert bits(straight.state) != bits(run().state)
    run(train_step=noisy, steps=4, epochs=None, run_dir=tmp_path)
    again = run(train_step=noisy, run_dir=tmp_path, resume=True)
    assert bits(again.state) == bits(straight.state)
    with pytest.raises(ft.ConfigError, match=r"`resume`.*(?s:.)*train_step"):
        run(run_dir=tmp_path, resume=True, epochs=3)
    with pytest.raises(ft.ConfigError, match=r"`resume`.*(?s:.)*train_step"):
        run(train_step=shrinking, run_dir=tmp_path, resume=True, epochs=3)
    result = run(run_dir=tmp_path, resume=True, epochs=3, override=("train_step",))
    assert int(result.state.step) == 9


def test_the_count_and_the_key_stay_the_loops():
    def twice(task, state, batch, weight):
        state, _ = ft.train_step(task, state, batch, weight)
        state, metrics = ft.train_step(task, state, batch, weight)
        return state.replace(key=jax.random.key(9)), metrics

    result = run(train_step=twice)
    assert int(result.state.step) == 6
    assert result.history["updates"] == [6, 12]
    assert jnp.array_equal(jax.random.key_data(result.state.key), jax.random.key_data(start().key))


def test_an_evaluation_of_ones_own_sees_the_whole_state():
    def at_average(task, state, batch, weight):
        return ft.eval_step(task, state.replace(params=ft.averaged(state)), batch, weight)

    result = run(eval_step=at_average)
    wanted = run(evaluate_at="averaged")
    assert result.history["val_loss"] == pytest.approx(wanted.history["val_loss"], rel=1e-6)
    assert result.history["val_loss"] != run().history["val_loss"]
    assert bits(result.state) == bits(wanted.state)
    measured = ft.evaluate(TASK, result.state, HELD, eval_step=at_average)
    assert measured["loss"] == pytest.approx(result.history["val_loss"][-1], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_step": 3}, r"`train_step` must be a function `\(task, state, batch, weight\)"),
        ({"train_step": lambda state, batch: state}, r"`train_step` .* called with 4 arguments"),
        ({"eval_step": lambda task, state: 0}, r"`eval_step` .* called with 4 arguments"),
        (
            {"train_step": lambda *given: given[1]},
            r"`train_step` must return `\(state, metrics\)`.*TrainState",
        ),
        (
            {"train_step": lambda *given: (given[1], {"loss": 0.0})},
            r"`train_step` must return the metrics.*dict",
        ),
        ({"eval_step": lambda *given: 1.0}, r"`eval_step` must return the metrics.*float"),
        (
            {
                "train_step": lambda task, state, batch, weight: (
                    state.replace(params={"w": jnp.zeros(3, jnp.bfloat16)}),
                    ft.eval_step(task, state, batch, weight),
                )
            },
            r"`train_step` must return a state of the types.*params/w",
        ),
    ],
)
def test_what_is_no_step_is_refused_before_the_first_one(options, words):
    with pytest.raises(ft.ConfigError, match=words):
        run(**options)


def test_ours_satisfy_the_protocols_and_equal_ones_compile_once():
    assert isinstance(ft.train_step, protocols.TrainStep)
    assert isinstance(ft.eval_step, protocols.EvalStep)
    traces = []

    def counted(task, state, batch, weight):
        traces.append(1)
        return ft.train_step(task, state, batch, weight)

    run(train_step=counted)
    once = len(traces)
    run(train_step=counted)
    assert len(traces) == once
