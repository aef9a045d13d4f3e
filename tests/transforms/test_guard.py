"""Guards: a bad step leaves no trace, wherever it stands, for ever."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fntrain import ConfigError, optimizers, transforms as T

RNG = np.random.default_rng(0)
BAD = [np.nan, np.inf, -np.inf]


def params(dtype=jnp.float32):
    # With a negative zero, which adding zero would turn into a positive one.
    return {"a": jnp.array([-0.0, 1.0, -2.0], dtype), "b": jnp.array([[0.5]], dtype)}


def gradients(n):
    return [
        {"a": RNG.normal(size=3).astype(np.float32), "b": RNG.normal(size=(1, 1)).astype(np.float32)}
        for _ in range(n)
    ]


def spoiled(g, value):
    g = {k: v.copy() for k, v in g.items()}
    g["b"][0, 0] = value
    return g


def bits(tree):
    return [(x.dtype.name, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def inner():
    # A norm, a moment, a schedule count, a decay and an average: everything that a bad step could mark.
    return T.chain(
        T.clip_by_norm(1.0), optimizers.adamw(lambda t: 0.1 / (1 + t.astype(jnp.float32))), T.ema(0.9)
    )


@functools.cache
def compiled(tx):
    """`update` and `apply` of one value, compiled once: eager, every call would compile its `cond` anew."""
    return jax.jit(tx.update), jax.jit(tx.apply)


def run(tx, steps, p=None):
    """`(params, state, applied of each)` after calls of `apply`."""
    apply = compiled(tx)[1]
    p = params() if p is None else p
    state, applied = tx.init(p), []
    for g in steps:
        p, state, a = apply(g, state, p)
        applied.append(bool(a))
    return p, state, applied


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("check_updates", [False, True])
def test_100_bad_steps_change_no_bit(dtype, check_updates):
    tx = T.skip_nonfinite(inner(), check_updates)
    good = gradients(2)
    p, state, _ = run(tx, good, params(dtype))
    apply = compiled(tx)[1]
    q, after = p, state
    for i in range(100):
        q, after, applied = apply(spoiled(good[0], BAD[i % 3]), after, q)
        assert not applied
        assert int(after.skipped) == 1
    assert bits(q) == bits(p)
    assert bits(after.inner_state) == bits(state.inner_state)
    assert (int(after.total_skipped), int(state.total_skipped)) == (100, 0)
    # And life goes on as if nothing had been.
    q, after, applied = apply(good[1], after, q)
    p, state, _ = apply(good[1], state, p)
    assert applied
    assert int(after.skipped) == 0
    assert int(after.total_skipped) == 100
    assert bits((q, after.inner_state)) == bits((p, state.inner_state))


def test_a_good_step_is_the_inner_transforms():
    steps = gradients(4)
    p, state, applied = run(T.skip_nonfinite(inner()), steps)
    q, inner_state, _ = run(inner(), steps)
    assert bits((p, state.inner_state)) == bits((q, inner_state))
    assert applied == [True] * 4


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_loss_is_a_bad_step(bad):
    tx = T.skip_nonfinite(inner())
    p = params()
    apply = compiled(tx)[1]
    q, state, applied = apply(gradients(1)[0], tx.init(p), p, value=jnp.float32(bad))
    assert not applied
    assert bits(q) == bits(p)
    _, state, applied = apply(gradients(1)[0], state, p, value=jnp.float32(3.0))
    assert applied
    assert int(state.total_skipped) == 1


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_large_is_not_infinite(dtype):
    g = {"a": jnp.full((3,), jnp.finfo(dtype).max), "b": jnp.full((1, 1), -jnp.finfo(dtype).max)}
    assert bool(T.guard.all_finite(g))
    for bad in BAD:
        assert not bool(T.guard.all_finite({**g, "b": g["b"].at[0, 0].set(bad)}))
    assert bool(T.guard.all_finite({"none": None, "int": jnp.arange(3), "empty": jnp.zeros((0, 2), dtype)}))
    assert bool(T.guard.all_finite({}))


def test_the_update_form_gives_zeros():
    tx = T.skip_nonfinite(inner())
    p, g = params(), gradients(1)[0]
    state = tx.init(p)
    update = compiled(tx)[0]
    updates, after = update(spoiled(g, np.nan), state, p)
    assert not any(np.asarray(u).any() for u in jax.tree.leaves(updates))
    assert bits(after.inner_state) == bits(state.inner_state)
    updates, after = update(g, after, p)
    want, _ = compiled(inner())[0](g, inner().init(p), p)
    for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def broken(at):
    """Updates that are NaN at the given count, whatever the gradient."""

    def init_fn(params):
        return jnp.zeros((), jnp.int32)

    def update_fn(updates, state, params=None, **extra):
        bad = jnp.where(state == at, jnp.nan, 0.0).astype(jnp.float32)
        return jax.tree.map(lambda u: u + bad, updates), state + 1

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@pytest.mark.parametrize("form", ["apply", "update", "in MultiSteps"])
def test_check_updates_sees_what_the_transform_itself_breaks(form):
    p = params()
    tx = T.skip_nonfinite(T.chain(broken(at=1), T.scale_by_learning_rate(0.1)), check_updates=True)
    tx = T.MultiSteps(tx, 1) if form == "in MultiSteps" else tx
    state = tx.init(p)
    update, apply = compiled(tx)
    for _ in range(5):  # the count stays at 1, and so does the NaN
        if form == "update":
            updates, state = update(gradients(1)[0], state, p)
            p = optax.apply_updates(p, updates)
        else:
            p, state, _ = apply(gradients(1)[0], state, p)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(p))
    guard = state.inner_opt_state if form == "in MultiSteps" else state
    assert int(guard.total_skipped) == 4
    assert int(next(iter(guard.inner_state.values()))) == 1  # the count of `broken`


K = 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("position", range(K))
def test_around_multisteps_a_bad_micro_step_is_left_out(position, bad):
    steps = gradients(2 * K)
    tx = T.skip_nonfinite(T.MultiSteps(inner(), K))
    want_p, want, want_applied = run(tx, steps)
    with_bad = [*steps[:position], spoiled(steps[0], bad), *steps[position:]]
    p, state, applied = run(tx, with_bad)
    assert bits(p) == bits(want_p)
    assert bits(state.inner_state) == bits(want.inner_state)
    assert int(state.total_skipped) == 1
    assert applied == [*want_applied[:position], False, *want_applied[position:]]
    assert want_applied == [False, False, False, True] * 2


@pytest.mark.parametrize("position", range(K))
def test_inside_multisteps_the_window_is_dropped(position):
    steps = gradients(2 * K)
    tx = T.MultiSteps(T.skip_nonfinite(inner()), K)
    bad_window = [*steps[:position], spoiled(steps[position], np.nan), *steps[position + 1 : K]]
    p, state, applied = run(tx, bad_window)
    assert bits(p) == bits(params())
    assert bits(state.inner_opt_state.inner_state) == bits(inner().init(params()))
    assert applied == [False] * K
    assert int(state.mini_step) == 0
    # The next window is whole, and owes nothing to the dropped one.
    p, state, applied = run(tx, [*bad_window, *steps[K:]])
    q, want, _ = run(tx, steps[K:])
    assert bits((p, state.inner_opt_state.inner_state)) == bits((q, want.inner_opt_state.inner_state))
    assert applied == [False] * (2 * K - 1) + [True]
    assert int(state.inner_opt_state.total_skipped) == 1


def test_both_nestings_at_once():
    steps = gradients(2 * K)
    tx = T.skip_nonfinite(T.MultiSteps(T.skip_nonfinite(inner()), K))
    p, state, applied = run(tx, [spoiled(steps[0], np.nan), *steps, spoiled(steps[0], np.inf)])
    q, want, _ = run(T.MultiSteps(inner(), K), steps)
    assert bits(p) == bits(q)
    assert applied == [False, False, False, False, True, False, False, False, True, False]
    assert int(state.total_skipped) == 2
    assert bits(state.inner_state.inner_opt_state.inner_state) == bits(want.inner_opt_state)


def test_a_skipped_window_is_not_reported_again():
    # `skipped` is what the last *call* did: the micro-steps behind a dropped window skip nothing.
    steps = gradients(2 * K)
    tx = T.MultiSteps(T.skip_nonfinite(inner()), K)
    p = params()
    state, skipped = tx.init(p), []
    for g in [spoiled(steps[0], np.nan), *steps[1:]]:
        p, state, _ = compiled(tx)[1](g, state, p)
        skipped.append(int(T.recorded(state)["skipped"]))
    assert skipped == [0, 0, 0, 1, 0, 0, 0, 0]


def test_flush_goes_through():
    steps = gradients(3)
    tx = T.skip_nonfinite(T.MultiSteps(optimizers.sgd(1.0), 4))
    p = params()
    state = tx.init(p)
    for g in [steps[0], spoiled(steps[0], np.nan), steps[1]]:
        p, state, _ = compiled(tx)[1](g, state, p)
    assert tx.holds_back
    updates, state = tx.flush(state, p)
    np.testing.assert_allclose(updates["a"], -(steps[0]["a"] + steps[1]["a"]) / 2, rtol=1e-6)
    assert int(state.inner_state.gradient_step) == 1
    assert not T.skip_nonfinite(optimizers.sgd()).holds_back


def test_in_a_chain_and_around_optax():
    for tx in (
        T.chain(T.clip_by_value(1.0), T.skip_nonfinite(optax.adam(0.1))),
        T.skip_nonfinite(optax.chain(optax.clip(1.0), optax.adam(0.1))),
    ):
        p, g = params(), gradients(1)[0]
        state = tx.init(p)
        apply = compiled(tx)[1]
        q, after, applied = apply(spoiled(g, np.nan), state, p)
        assert bits(q) == bits(p)
        assert not applied
        assert int(T.recorded(after)["skipped"]) == 1
        q, after, applied = apply(g, after, q)
        assert applied
        assert bits(q) != bits(p)


def test_under_vmap_each_run_is_guarded_by_itself():
    # cond becomes a selection under vmap; what is not taken must not leak.
    tx = T.skip_nonfinite(inner())
    good, bad = gradients(1)[0], spoiled(gradients(1)[0], np.nan)
    p = params()
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), good, bad)
    q, _, applied = jax.jit(jax.vmap(lambda g: tx.apply(g, tx.init(p), p)))(both)
    assert applied.tolist() == [True, False]
    assert bits(jax.tree.map(lambda x: x[1], q)) == bits(p)
    alone, _, _ = tx.apply(good, tx.init(p), p)
    for a, b in zip(jax.tree.leaves(q), jax.tree.leaves(alone)):
        np.testing.assert_allclose(a[0], b, rtol=1e-6)


def test_a_weight_of_zero_is_no_step_and_no_skip():
    tx = T.skip_nonfinite(inner())
    p = params()
    zero = jax.tree.map(np.zeros_like, gradients(1)[0])
    q, state, applied = compiled(tx)[1](zero, tx.init(p), p, weight=jnp.float32(0))
    assert bits((q, state.inner_state)) == bits((p, tx.init(p).inner_state))
    assert not applied
    assert int(state.skipped) == 0


def temporaries(tx, p):
    apply = jax.jit(lambda p, s, g: tx.apply(g, s, p), donate_argnums=(0, 1))
    return apply.lower(p, tx.init(p), p).compile().memory_analysis().temp_size_in_bytes


def test_a_guard_costs_no_memory():
    p = {f"w{i}": jnp.ones((256, 512)) for i in range(4)}
    plain = temporaries(optimizers.adamw(1e-3), p)
    guarded = temporaries(T.skip_nonfinite(optimizers.adamw(1e-3)), p)
    assert guarded - plain < 0.01 * 4 * 256 * 512 * 4


def test_refusals():
    with pytest.raises(ConfigError, match=r"looks like a factory: call it, `adamw\(...\)`"):
        T.skip_nonfinite(optimizers.adamw)


# skip_spikes. What others get wrong: a NaN that enters the window of norms makes every later step a spike, or none;
# a NaN in the warm-up is let through; a skip that multiplies by zero lets NaN through as well.


@functools.cache
def scanned(factor, window):
    tx = T.skip_spikes(optimizers.sgd(1.0), factor, window)
    p = {"w": jnp.zeros(2)}

    def body(carry, n):
        p, state, applied = tx.apply({"w": jnp.stack([n, jnp.float32(0)])}, carry[1], carry[0])
        return (p, state), applied

    return jax.jit(lambda n: jax.lax.scan(body, (p, tx.init(p)), n))


def spikes(norms, factor=4.0, window=3):
    """`(params, state, applied of each)` after gradients of these norms."""
    (p, state), applied = scanned(factor, window)(np.asarray(norms, np.float32))
    return np.asarray(p["w"])[0], state, applied.tolist()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("at", [0, 1, 2, 3, 10])
def test_a_nan_in_the_norms_is_skipped_and_forgotten(bad, at):
    norms = [1.0] * 20
    norms[at] = bad
    p, state, applied = spikes(norms)
    assert applied == [i != at for i in range(20)]
    assert p == -19.0
    assert state.norms.tolist() == [1.0] * 3
    assert (int(state.total_skipped), int(state.count)) == (1, 19)


def test_a_spike_is_skipped_and_does_not_make_the_next_one_usual():
    p, state, applied = spikes([1, 1, 1, 50, 50, 50, 4, 1, 50])
    #                            mean 1: 50 is more than 4, 4 is not; then the mean is 2, and 50 is still one
    assert applied == [True, True, True, False, False, False, True, True, False]
    assert p == -8.0
    assert float(state.grad_norm) == 50.0
    assert sorted(state.norms.tolist()) == [1.0, 1.0, 4.0]


def test_spikes_follow_an_oracle():
    rng = np.random.default_rng(3)
    norms = np.exp(rng.normal(size=300) * 1.2).astype(np.float32)
    norms[rng.integers(300, size=20)] = np.nan
    window, want = [], []
    for n in norms:
        full = len(window) == 5
        good = bool(np.isfinite(n)) and not (full and n > 3 * np.mean(window[-5:]))
        want.append(good)
        window = [*window, n][-5:] if good else window
    assert spikes(norms, 3.0, 5)[2] == want
    assert 20 < want.count(False) < 200


def test_until_the_window_is_full_only_what_is_not_finite_is_skipped():
    assert spikes([1, 1000, np.nan, 1e6, 1e6], window=4)[2] == [True, True, False, True, True]
    assert spikes([1, 1000, np.nan, 1e6, 1e8], window=3)[2] == [True, True, False, True, False]


def test_a_skipped_spike_changes_no_bit():
    tx = T.skip_spikes(inner(), 2.0, 1)
    good = gradients(1)[0]
    p, state, _ = run(tx, [good])
    spike = jax.tree.map(lambda g: 100 * g, good)
    q, after, applied = compiled(tx)[1](spike, state, p)
    assert not applied
    assert bits((q, after.inner_state, after.norms)) == bits((p, state.inner_state, state.norms))
    assert int(T.recorded(after)["skipped"]) == 1


def test_what_a_guard_further_in_skips_counts_outside():
    tx = T.dynamic_loss_scale(T.skip_spikes(optimizers.sgd(1.0), 2.0, 1))
    p = {"w": jnp.ones(2)}
    state, seen = tx.init(p), []
    for n in (1.0, 100.0, np.nan, 1.0):
        p, state, applied = compiled(tx)[1]({"w": jnp.full(2, n)}, state, p)
        seen.append((bool(applied), int(T.recorded(state)["skipped"])))
    assert seen == [(True, 0), (False, 1), (False, 1), (True, 0)]
    assert int(state.total_skipped) == 2
    assert float(state.loss_scale) == 2.0**14  # a spike of finite numbers is no overflow


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1.0,), "`factor` must be a finite number > 1"), ((2.0, 0), "`window` must be an integer >= 1")],
)
def test_spike_refusals(arguments, message):
    with pytest.raises(ConfigError, match=message):
        T.skip_spikes(optimizers.sgd(), *arguments)
