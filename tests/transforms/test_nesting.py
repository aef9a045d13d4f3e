"""Law 5 for every nesting: a bad step leaves no trace, whatever stands in what, second gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain import tree

PARAMS = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5])}
GOOD = {"kernel": jnp.array([[0.3, 0.1]]), "bias": jnp.array([-0.2])}
SCHEDULE = ft.schedules.linear(0.1, 0.0, 10)

GUARDS = {
    "skip_nonfinite": ft.skip_nonfinite,
    "check_updates": lambda tx: ft.skip_nonfinite(tx, check_updates=True),
    "skip_spikes": ft.skip_spikes,
    "dynamic_loss_scale": ft.dynamic_loss_scale,
}


def adamw():
    return ft.optimizers.adamw(SCHEDULE, b1=lambda t: 0.5 + 0.04 * t)


INNER = {
    "sam": lambda: ft.sam(adamw()),
    "MultiSteps": lambda: ft.MultiSteps(adamw(), 2),
    "lookahead": lambda: ft.lookahead(adamw(), 2, ft.schedules.linear(0.9, 0.5, 10)),
    "ema": lambda: ft.chain(adamw(), ft.ema(0.9, debias=True)),
    "by_path": lambda: ft.by_path({"kernel": adamw(), ".*": ft.optimizers.sgd(SCHEDULE, momentum=0.9)}),
    "chain": lambda: ft.chain(ft.clip_by_norm(SCHEDULE), ft.momentum(0.9), ft.optimizers.sgd(SCHEDULE)),
    "freeze": lambda: ft.freeze(ft.chain(ft.clip_by_norm(1.0), adamw()), "bias"),
    "sam of lookahead": lambda: ft.sam(ft.lookahead(adamw(), 2)),
    "sam of MultiSteps": lambda: ft.sam(ft.MultiSteps(adamw(), 2)),
}
OUTER = {
    "sam": ft.sam,
    "lookahead": lambda tx: ft.lookahead(tx, 2),
    "ema": lambda tx: ft.chain(tx, ft.ema(0.9, debias=True)),
    "by_path": lambda tx: ft.by_path({".*": tx}),
    "chain": lambda tx: ft.chain(tx, ft.reduce_on_plateau(0.5, 1)),
    "freeze": lambda tx: ft.freeze(tx, "bias"),
}
# What a guard says of the step, and what a clip or a rate saw of it.
NOTES = {"skipped", "total_skipped", "bad", "loss_scale", "good_steps", "grad_norm", "clip_factor"}


def steps(tx):
    """One compiled step, whose gradient and second gradient are given."""
    value = jnp.float32(1)

    @jax.jit
    def step(state, params, grads, second):
        extra = {"value": value, "grad": grads, "value_and_grad_fn": lambda p: (value, second), "weight": 1.0}
        return tx.apply(grads, state, params, **extra)

    return lambda state, params, grads=GOOD, second=GOOD: step(state, params, grads, second)


def kept(state):
    return {path: x for path, x in tree.items(state) if path.rpartition("/")[2] not in NOTES}


def leaves_no_trace(tx, bad):
    state, params, step = jax.jit(tx.init)(PARAMS), PARAMS, steps(tx)
    for _ in range(3):
        params, state, _ = step(state, params)
    after, now, applied = step(state, params, **bad)
    assert not bool(applied)
    assert any(int(x) == 1 for path, x in tree.items(now) if path.endswith("total_skipped"))
    for before, later in ((params, after), (kept(state), kept(now))):
        pairs = zip(tree.items(before), jax.tree.leaves(later), strict=True)
        assert [path for (path, a), b in pairs if not np.array_equal(a, b)] == []


def spoiled(x):
    return jax.tree.map(lambda g: jnp.full_like(g, x), GOOD)


DEEP = ("freeze", "sam of lookahead", "sam of MultiSteps")


@pytest.mark.parametrize(
    ("guard", "inner"),
    [(g, i) for g in GUARDS for i in INNER if i not in DEEP or g == "skip_nonfinite"],
)
def test_a_guard_around(guard, inner):
    tx = GUARDS[guard](INNER[inner]())
    leaves_no_trace(tx, {"second": spoiled(jnp.nan)} if "sam" in inner else {"grads": spoiled(jnp.inf)})


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("guard", [name for name in GUARDS if name != "check_updates"])
def test_a_guard_inside(guard, outer):
    tx = OUTER[outer](GUARDS[guard](adamw()))
    leaves_no_trace(tx, {"second": spoiled(jnp.inf)} if outer == "sam" else {"grads": spoiled(jnp.nan)})


# What is finite, and leads to what is not.

HUGE = {"kernel": jnp.array([[1e20, 0.1]]), "bias": jnp.array([-0.2])}  # its square is infinite in float32


@pytest.mark.parametrize(
    "inner", [name for name in INNER if name != "chain"]
)  # whose clip lets no 1e20 through
def test_a_state_that_would_become_infinite_is_a_bad_step(inner):
    make = INNER[inner] if inner != "freeze" else lambda: ft.freeze(adamw(), "bias")
    tx = ft.skip_nonfinite(make(), check_updates=True)
    state, params, step = jax.jit(tx.init)(PARAMS), PARAMS, steps(tx)
    for _ in range(3):  # the window of MultiSteps closes with the next one
        params, state, _ = step(state, params)
    after, now, applied = step(state, params, **({"second": HUGE} if "sam" in inner else {"grads": HUGE}))
    assert not bool(applied)
    assert int(now.total_skipped) == 1
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(now))
    for _ in range(2):
        after, now, _ = step(now, after)
    assert float(after["kernel"][0, 0]) != float(params["kernel"][0, 0])  # the entry goes on


def test_without_a_look_ahead_the_state_becomes_infinite():
    """What the look ahead is for."""
    tx = ft.optimizers.adam(0.1)
    _, state, _ = tx.apply(HUGE, tx.init(PARAMS), PARAMS)
    assert np.isinf(np.asarray(state["scale_by_adam"].nu["kernel"][0, 0]))


def test_a_foreign_state_that_is_infinite_from_the_start_stops_nothing():
    def init(params):
        return {"best": jnp.asarray(jnp.inf), "n": jnp.zeros((), jnp.int32)}

    def update(updates, state, params=None):
        return updates, {"best": state["best"], "n": state["n"] + 1}

    tx = ft.skip_nonfinite(ft.chain(optax.GradientTransformation(init, update), ft.optimizers.sgd(1.0)), True)
    _, state, applied = tx.apply(GOOD, tx.init(PARAMS), PARAMS)
    assert bool(applied)
    assert int(state.total_skipped) == 0


def test_the_ring_of_norms_goes_on_past_an_int32():
    tx = ft.skip_spikes(ft.optimizers.sgd(1.0), 4.0, window=3)
    p = jnp.zeros(1)
    state = tx.init(p)
    for g in (1.0, 1.0, 1.0):
        p, state, _ = tx.apply(jnp.array([g]), state, p)
    state = state._replace(count=jnp.int32(2**31 - 2))
    at = [(2**31 - 2 + i) % 3 for i in range(4)]  # Python's integers know where each one belongs
    for i, g in zip(at, (1.5, 2.0, 2.5, 3.0), strict=True):
        p, state, applied = tx.apply(jnp.array([g]), state, p)
        assert bool(applied)
        assert float(state.norms[i]) == g
        assert int(state.count) >= 3
    _, state, applied = tx.apply(jnp.array([1e3]), state, p)
    assert not bool(applied)
