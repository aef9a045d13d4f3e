"""ema, lookahead and sam: against their formulas in NumPy, in the update form, in `apply` and in train_step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain import ConfigError, optimizers, transforms as T

RNG = np.random.default_rng(0)
STEPS = RNG.normal(size=(12, 3))
START = np.array([1.0, -2.0, 0.5])


@functools.cache
def compiled(tx):
    """`update` and `apply` of one value, compiled once: eager, every call would compile its `cond` anew."""
    return jax.jit(tx.update), jax.jit(tx.apply)


def run(tx, form, dtype=jnp.float32):
    """The parameters after each step, and the last state. The gradient is `noise + p / 2`."""
    p = jnp.asarray(START, dtype)
    state, path = tx.init(p), []
    update, apply = compiled(tx)
    for noise in STEPS:
        g = jnp.asarray(noise, dtype) + p / 2
        if form == "update":
            updates, state = update(g, state, p)
            p = optax.apply_updates(p, updates)
        else:
            p, state, _ = apply(g, state, p)
        path.append(np.asarray(p, np.float64))
    return np.stack(path), state


def sgd(p, noise, rate=0.1):
    return p - rate * (noise + p / 2)


FORMS = ["update", "apply"]


@pytest.mark.parametrize("form", FORMS)
def test_ema(form):
    decay = 0.8
    path, state = run(T.chain(optimizers.sgd(0.1), T.ema(decay)), form)
    plain, _ = run(optimizers.sgd(0.1), form)
    np.testing.assert_array_equal(path, plain)  # the updates pass through
    average = START
    for p in path:
        average = decay * average + (1 - decay) * p
    np.testing.assert_allclose(ft.transforms.averaged(state), average, rtol=1e-6)
    assert np.abs(average - path[-1]).max() > 0.05
    assert int(state["ema"].count) == len(STEPS)


def test_ema_with_a_scheduled_decay():
    tx = T.chain(
        optimizers.sgd(0.1), T.ema(lambda t: (1.0 + t.astype(jnp.float32)) / (10.0 + t.astype(jnp.float32)))
    )
    path, state = run(tx, "apply")
    average = START
    for t, p in enumerate(path):
        d = (1 + t) / (10 + t)
        average = d * average + (1 - d) * p
    np.testing.assert_allclose(T.averaged(state), average, rtol=1e-6)


def test_ema_of_bfloat16_parameters_is_float32():
    # In bfloat16 the average could not move at all: 1 + 0.001 · 0.01 is 1.
    path, state = run(T.chain(optimizers.sgd(0.01), T.ema(0.999)), "apply", jnp.bfloat16)
    average = START
    for p in path:
        average = 0.999 * average + 0.001 * p
    got = T.averaged(state)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, average, rtol=1e-6)


def test_ema_with_a_slow_decay_keeps_its_digits():
    # 1 - float32(0.99999) is off by 0.1 %; formed before rounding it is exact.
    tx = T.ema(0.99999)
    p = jnp.zeros(1)
    _, state = tx.update(jnp.ones(1), tx.init(p), p)
    np.testing.assert_allclose(T.averaged(state), [1e-5], rtol=1e-6)


def test_ema_stands_inside_what_holds_steps_back():
    tx = T.MultiSteps(T.chain(optimizers.sgd(0.1), T.ema(0.5)), 3)
    p = jnp.asarray(START, jnp.float32)
    state = tx.init(p)
    seen = []
    for noise in STEPS:
        p, state, _ = compiled(tx)[1](jnp.asarray(noise, jnp.float32), state, p)
        seen.append(np.asarray(T.averaged(state)))
    assert len({x.tobytes() for x in seen}) == 1 + 4  # four windows, four averages


def problem(tx, **params):
    params = {"w": jnp.asarray(START, jnp.float32), "n": jnp.arange(2), **params}

    def loss(p, batch, ctx):
        return ft.losses.mse(batch["x"] @ p["w"].astype(jnp.float32), batch["y"])

    task = ft.Task(loss, tx)
    batch = {"x": jnp.asarray(STEPS, jnp.float32), "y": jnp.asarray(STEPS.sum(1), jnp.float32)}
    return task, ft.init_state(task, params), batch


def test_averaged_reads_a_train_state():
    task, state, batch = problem(
        T.chain(optimizers.adamw(0.1), T.ema(0.9)), w=jnp.asarray(START, jnp.bfloat16)
    )
    for _ in range(3):
        state, _ = ft.train_step(task, state, batch)
    average = T.averaged(state)
    # Alike in every type, so evaluating it is no recompile; and copies, so the next step leaves them whole.
    assert ft.tree.aval_difference(state.params, average) is None
    np.testing.assert_array_equal(average["n"], [0, 1])
    before, after = (
        float(ft.compute_metrics(task, ft.eval_step(task, s, batch))["loss"])
        for s in (state, state.replace(params=average))
    )
    assert after > before  # it lags behind
    state, _ = ft.train_step(task, state, batch)
    assert not average["w"].is_deleted()
    assert not average["n"].is_deleted()
    state, _ = ft.train_step(
        task, state.replace(params=T.averaged(state)), batch
    )  # no buffer stands twice in it
    kept = T.averaged(state.opt_state)
    assert kept["w"].dtype == jnp.float32
    assert kept["n"] is None


def test_averaged_fills_what_is_frozen():
    p = {"a": jnp.ones(1), "b": jnp.ones(1)}
    tx = T.freeze(T.chain(optimizers.sgd(1.0), T.ema(0.5)), "a")
    _, state = tx.update(p, tx.init(p), p)
    assert T.averaged(state)["a"] is None
    assert T.averaged(state, like=p)["a"].tolist() == [1.0]
    assert T.averaged(state, like=p)["b"].tolist() == [0.5]


def test_averaged_names_what_is_wrong():
    p = jnp.ones(1)
    with pytest.raises(ConfigError, match=r"holds no average: put `ema\(decay\)` last in the chain"):
        T.averaged(optimizers.adam().init(p))
    two = T.chain(T.ema(0.9), T.ema(0.99)).init(p)
    with pytest.raises(ConfigError, match=r"found 2 .*`ema`, `ema_2`.*pass the part that holds one"):
        T.averaged(two)
    assert T.averaged(two["ema_2"]).tolist() == [1.0]
    with pytest.raises(ConfigError, match="`params` is needed by ema"):
        T.ema(0.9).update(p, T.ema(0.9).init(p))


def lookahead_oracle(k, alpha, rate=0.1):
    slow = fast = START
    path = []
    for t, noise in enumerate(STEPS, 1):
        fast = sgd(fast, noise, rate)
        if t % k == 0:
            slow = slow + alpha * (fast - slow)
            fast = slow
        path.append(fast)
    return np.stack(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("k", "alpha"), [(1, 0.5), (3, 0.5), (5, 0.8), (4, 1.0)])
def test_lookahead(k, alpha, form):
    path, state = run(T.lookahead(optimizers.sgd(0.1), k, alpha), form)
    np.testing.assert_allclose(path, lookahead_oracle(k, alpha), rtol=2e-6, atol=1e-6)
    assert int(state.count) == len(STEPS) % k


def test_lookahead_is_optaxs():
    # optax keeps both copies in a wrapper around the parameters; ours works without one.
    path, _ = run(T.lookahead(optimizers.adam(0.1), 3, 0.5), "update")
    tx = optax.lookahead(optax.adam(0.1), 3, 0.5)
    p = optax.LookaheadParams.init_synced(jnp.asarray(START, jnp.float32))
    state = tx.init(p)
    update = jax.jit(tx.update)
    with jax.numpy_dtype_promotion("standard"):
        for i, noise in enumerate(STEPS):
            updates, state = update(jnp.asarray(noise, jnp.float32) + p.fast / 2, state, p)
            p = optax.apply_updates(p, updates)
            np.testing.assert_allclose(path[i], p.fast, rtol=2e-5, atol=1e-5, err_msg=str(i))


def test_lookahead_in_bfloat16_keeps_a_float32_slow_copy():
    path, state = run(T.lookahead(optimizers.sgd(0.1), 4, 0.5), "apply", jnp.bfloat16)
    assert state.slow.dtype == jnp.float32
    np.testing.assert_array_equal(path[-1], np.asarray(state.slow.astype(jnp.bfloat16), np.float64))


@pytest.mark.parametrize("nesting", ["inside", "around"])
def test_lookahead_counts_updates_and_not_micro_steps(nesting):
    if nesting == "inside":
        tx = T.MultiSteps(T.lookahead(optimizers.sgd(0.1), 2, 0.5), 3)
    else:
        tx = T.lookahead(T.MultiSteps(optimizers.sgd(0.1), 3), 2, 0.5)
    update, apply = compiled(tx)
    for form in FORMS:
        p = jnp.asarray(START, jnp.float32)
        state = tx.init(p)
        for g in STEPS:
            if form == "update":
                updates, state = update(jnp.asarray(g, jnp.float32), state, p)
                p = optax.apply_updates(p, updates)
            else:
                p, state, _ = apply(jnp.asarray(g, jnp.float32), state, p)
        windows = STEPS.reshape(4, 3, 3).mean(1)
        slow = fast = START
        for t, g in enumerate(windows, 1):
            fast = fast - 0.1 * g
            if t % 2 == 0:
                slow = fast = slow + 0.5 * (fast - slow)
        np.testing.assert_allclose(p, fast, rtol=1e-6, atol=1e-6)


def test_lookahead_counts_a_flushed_window():
    tx = T.lookahead(T.MultiSteps(optimizers.sgd(1.0), 4), 1, 0.5)
    p = jnp.array([8.0])
    p, state, _ = tx.apply(jnp.array([4.0]), tx.init(p), p)
    updates, state = tx.flush(state, p)
    assert (p + updates).tolist() == [6.0]  # halfway to 8 - 4
    assert state.slow.tolist() == [6.0]
    updates, state = tx.flush(state, p)
    assert updates.tolist() == [0.0]


def test_a_skipped_step_is_not_one_of_lookaheads():
    tx = T.lookahead(T.skip_nonfinite(optimizers.sgd(1.0)), 2, 0.5)
    update, apply = compiled(tx)
    for form in FORMS:
        p = jnp.array([8.0])
        state = tx.init(p)
        for g in (4.0, np.nan, 2.0):
            g = jnp.array([g], jnp.float32)
            if form == "update":
                updates, state = update(g, state, p)
                p = p + updates
            else:
                p, state, _ = apply(g, state, p)
        assert p.tolist() == [5.0]  # halfway from 8 to 8 - 4 - 2
        assert int(state.count) == 0


# SAM, on f(p) = p' A p / 2 + sum(p^4) / 4, whose gradient turns as one walks uphill.

A = np.diag([1.0, 3.0, 0.5]) + 0.2


def gradient(p):
    return A @ p + p**3


def value_and_grad(p):
    f = lambda p: 0.5 * p @ jnp.asarray(A, p.dtype) @ p + 0.25 * jnp.sum(p**4)
    return jax.value_and_grad(f)(p)


@pytest.mark.parametrize("form", FORMS)
def test_sam(form):
    rho, rate, mu = 0.3, 0.05, 0.9
    tx = T.sam(optimizers.sgd(rate, mu), rho)
    p = jnp.asarray(START, jnp.float32)
    state = tx.init(p)
    want, velocity = START, None
    update, apply = (
        jax.jit(functools.partial(f, value_and_grad_fn=value_and_grad)) for f in (tx.update, tx.apply)
    )
    for _ in range(10):
        g = value_and_grad(p)[1]
        if form == "update":
            updates, state = update(g, state, p)
            p = p + updates
        else:
            p, state, _ = apply(g, state, p)
        g = gradient(want)
        g = gradient(want + rho * g / np.linalg.norm(g))
        velocity = g if velocity is None else mu * velocity + g
        want = want - rate * velocity
    np.testing.assert_allclose(p, want, rtol=2e-5, atol=2e-6)


def test_sam_without_a_gradient_has_no_direction():
    tx = T.sam(optimizers.sgd(1.0), 0.5)
    p = jnp.zeros(3)
    updates, _ = tx.update(jnp.zeros(3), tx.init(p), p, value_and_grad_fn=value_and_grad)
    assert updates.tolist() == [0, 0, 0]


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_sam_of_tiny_and_huge_gradients(scale):
    moved = []
    tx = T.sam(optimizers.sgd(1.0), 0.5)
    p = jnp.zeros(2)
    tx.update(jnp.array([3.0, 4.0]) * scale, tx.init(p), p, value_and_grad_fn=lambda q: (moved.append(q), p))
    np.testing.assert_allclose(moved[0], [0.3, 0.4], rtol=1e-6)


def test_sam_says_what_it_needs():
    tx = T.sam(optimizers.sgd(1.0))
    p = jnp.ones(2)
    with pytest.raises(
        ConfigError, match=r"`value_and_grad_fn` \(and `params`\) are needed by sam.*train_step passes"
    ):
        tx.update(p, tx.init(p), p)
    with pytest.raises(ConfigError, match="are needed by sam"):
        tx.update(p, tx.init(p), value_and_grad_fn=value_and_grad)


def test_sam_and_lookahead_in_train_step():
    # A plain TrainState and a plain train_step, no wrapper around the parameters.
    rho, rate = 0.5, 0.05
    tx = T.lookahead(T.sam(optimizers.sgd(rate), rho), 2, 0.5)
    task, state, batch = problem(tx)
    x, y = np.asarray(batch["x"], np.float64), np.asarray(batch["y"], np.float64)
    grad = lambda w: 2 * x.T @ (x @ w - y) / len(y)
    slow = fast = START
    for t in range(1, 5):
        state, _ = ft.train_step(task, state, batch)
        g = grad(fast)
        fast = fast - rate * grad(fast + rho * g / np.linalg.norm(g))
        if t % 2 == 0:
            slow = fast = slow + 0.5 * (fast - slow)
        np.testing.assert_allclose(state.params["w"], fast, rtol=2e-5, atol=1e-6)
    assert int(state.updates) == 4


def test_sam_with_frozen_leaves_and_groups():
    # The second gradient is taken at the whole parameters, of which sam moves its own leaves only.
    moved = []

    def fn(p):
        moved.append(p)
        return jnp.float32(0), jax.tree.map(lambda x: 2 * x, p)

    p = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    for tx in (
        T.freeze(T.sam(optimizers.sgd(1.0), 0.5), "a"),
        T.by_path({"a": optimizers.sgd(1.0), "b": T.sam(optimizers.sgd(1.0), 0.5)}),
    ):
        for call in (tx.update, tx.apply):
            moved.clear()
            call(p, tx.init(p), p, value_and_grad_fn=fn)
            assert {k: v.tolist() for k, v in moved[0].items()} == {"a": [3.0], "b": [4.5]}
            assert len(moved) == 1


def test_sam_around_multisteps_looks_at_every_micro_step():
    tx = T.sam(T.MultiSteps(optimizers.sgd(1.0), 2), 0.3)
    assert tx.owns_apply
    assert tx.holds_back
    p = jnp.asarray(START, jnp.float32)
    state = tx.init(p)
    total = 0
    for scale in (1.0, 2.0):
        fn = lambda q, scale=scale: (0.0, scale * value_and_grad(q)[1])
        q, state, applied = tx.apply(fn(p)[1], state, p, value_and_grad_fn=fn)
        g = gradient(START)
        total = total + scale * gradient(START + 0.3 * g / np.linalg.norm(g)) / 2
    assert applied
    np.testing.assert_allclose(q, START - total, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: T.ema(1.0), "`decay` must be a finite number >= 0 and < 1"),
        (lambda: T.ema(-0.1), "`decay` must be"),
        (lambda: T.lookahead(optimizers.sgd(), 0), "`sync_period` must be an integer >= 1"),
        (lambda: T.lookahead(optimizers.sgd(), 2.0), "`sync_period` must be an integer >= 1"),
        (lambda: T.lookahead(optimizers.sgd(), 2, 0.0), "`slow_step` must be a finite number > 0 and <= 1"),
        (lambda: T.lookahead(optimizers.sgd(), 2, 1.5), "`slow_step` must be"),
        (lambda: T.lookahead(optimizers.sgd), "looks like a factory"),
        (
            lambda: T.lookahead(optimizers.sgd()).update(
                jnp.ones(1), T.lookahead(optimizers.sgd()).init(jnp.ones(1))
            ),
            "`params` is needed by lookahead",
        ),
        (lambda: T.sam(optimizers.sgd(), 0.0), "`rho` must be a finite number > 0"),
        (lambda: T.sam(None), "`tx` must be a gradient transform"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
