"""Schedules as people write them: warm-up, stay and decay; and lengths that are fractions of the run."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import ConfigError, schedules
from fntrain.schedules import cooldown, cosine, join, linear, resolved, scale, warmup, wsd

SHAPES = {
    "linear": lambda x: x,
    "sqrt": np.sqrt,
    "cosine": lambda x: (1 - np.cos(np.pi * x)) / 2,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_wsd_is_its_formula(shape):
    t = np.arange(0, 130)
    fall = SHAPES[shape](np.clip((t - 70) / 30, 0, 1))
    want = np.where(t < 20, 0.4 * t / 20, np.where(t < 70, 0.4, 0.4 + (0.01 - 0.4) * fall))
    np.testing.assert_allclose(wsd(0.4, 100, 20, 30, 0.01, shape)(t), want, rtol=3e-6)
    s = wsd(0.4, 100, 20, 30, 0.01, shape)
    assert s.boundaries == (20, 70, 100)
    assert s.steps == 100
    # Exact where the pieces meet, and far behind the end.
    assert [float(s(t)) for t in (20, 70, 100, 2**31 - 1)] == [np.float32(x) for x in (0.4, 0.4, 0.01, 0.01)]


def test_the_root_of_a_cooldown_does_not_cancel_near_its_end():
    n = 10**7
    got = cooldown(1.0, n, start_at=0, shape="sqrt")(jnp.array([n - 1, n - 2]))
    x = np.array([1.0, 2.0]) / n  # 1 - sqrt(1 - x)
    np.testing.assert_allclose(got, x / (1 + np.sqrt(1 - x)), rtol=1e-6)


def test_fractions_of_its_own_length():
    assert wsd(1.0, 200, warmup=0.05, cooldown=0.25).boundaries == wsd(1.0, 200, 10, 50).boundaries


def test_fractions_of_the_run():
    cases = {
        warmup(cosine(0.1, 0.95), 0.05): warmup(cosine(0.1, 950), 50),
        scale(linear(0.1, 0.0, 1.0), 2.0): scale(linear(0.1, 0.0, 1000), 2.0),
        join([(0.1, 0.2), (cosine(0.1, 0.8), None)]): join([(0.1, 200), (cosine(0.1, 800), None)]),
        cooldown(0.1, 0.2, start_at=0.8, shape="sqrt"): cooldown(0.1, 200, start_at=800, shape="sqrt"),
        wsd(0.1, 1.0, 0.01): wsd(0.1, 1000, 0.01),
    }
    for waiting, known in cases.items():
        assert waiting.waits
        assert resolved(waiting, 1000) == known
        assert pickle.loads(pickle.dumps(waiting)) == waiting != known
    known = warmup(cosine(0.1, 950), 50)
    assert resolved(known, 1000) is known
    # In whatever has schedules in it, and in nothing else.
    make = lambda length, rise: ft.chain(
        ft.clip_by_norm(1.0),
        ft.by_path(
            {
                "w": ft.optimizers.sgd(cosine(0.1, length), weight_decay=warmup(0.1, rise)),
                ".*": ft.optimizers.get("optax:adopt", lr=cosine(0.1, length)),
            }
        ),
    )
    assert resolved(make(1.0, 0.1), 30) == make(30, 3)
    tx = make(30, 3)
    assert resolved(tx, 1000) is tx


X = np.linspace(0, 1, 24, dtype=np.float32).reshape(12, 2)


def task_with(rate, every=1):
    tx = ft.optimizers.sgd(rate)
    tx = tx if every == 1 else ft.MultiSteps(tx, every)
    return ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b[:, 0]), tx)


def trained(rate, every=1, **options):
    task = task_with(rate, every)
    state = ft.init_state(task, {"w": np.ones(2, np.float32)})
    return ft.fit(task, state, X, batch_size=4, progress=False, **options)


@pytest.mark.parametrize(("every", "updates", "options"), [(1, 12, {"epochs": 4}), (2, 8, {"steps": 16})])
def test_fit_knows_how_long_the_run_is(every, updates, options):
    got, history = trained(warmup(linear(0.1, 0.0, 0.75), 0.25), every, **options)
    want, other = trained(warmup(linear(0.1, 0.0, updates * 3 // 4), updates // 4), every, **options)
    np.testing.assert_array_equal(got.params["w"], want.params["w"])
    assert history["learning_rate"] == other["learning_rate"]
    assert history["learning_rate"][-1] < 0.1 / 4


def test_a_resumed_run_says_what_length_its_schedule_had(tmp_path):
    rate = cosine(0.1, 1.0)
    trained(rate, epochs=2, run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"steps.*6.*12|12.*6"):
        trained(rate, epochs=4, run_dir=tmp_path / "run", resume=True)


def test_a_step_by_itself_refuses_and_says_the_way_out():
    task = task_with(cosine(0.1, 1.0))
    state = ft.init_state(task, {"w": np.ones(2, np.float32)})
    with pytest.raises(ConfigError, match=r"fractions of the run.*schedules.resolved\(tx, updates\)"):
        ft.train_step(task, state, X)
    with pytest.raises(ConfigError, match="fractions of the run"):
        cosine(0.1, 1.0)(3)
    known = ft.Task(task.loss_fn, resolved(task.tx, 10))
    ft.train_step(known, state, X)  # the state is the same
    endless = lambda epoch: iter([X])
    with pytest.raises(ConfigError, match=r"fractions of the run.*give `steps`"):
        ft.fit(task, ft.init_state(task, {"w": np.ones(2, np.float32)}), endless, epochs=2, progress=False)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cooldown(0.1, 10, start_at=1, shape="root"), "`shape` must be one of"),
        (lambda: wsd(0.1, 10, 5, 6), "must fit into `steps`, 10 updates: they are 5 and 6"),
        (lambda: cosine(0.1, 1.5), "`steps` must be an integer"),
        (lambda: resolved(cosine(0.1, 1.0), 0), "`updates_in_run` must be"),
        (lambda: resolved(warmup(cosine(0.1, 0.1), 0.5), 10), "at most the length of what it leads to"),
    ],
)
def test_bad_lengths(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_schedules_are_the_same_compiled():
    s = schedules.wsd(0.1, 100, 10, 30, shape="cosine")
    t = jnp.arange(120)
    np.testing.assert_allclose(jax.jit(s)(t), s(t), rtol=1e-6)
