"""Schedules against the written formulas, at their boundaries, and where float32 can no longer count."""

import copy
import pickle

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fntrain import schedules
from fntrain._core.errors import ConfigError
from fntrain.schedules import (
    Schedule,
    constant,
    cooldown,
    cosine,
    exponential,
    in_epochs,
    join,
    linear,
    offset,
    one_cycle,
    piecewise,
    polynomial,
    rsqrt,
    scale,
    schedule,
    sgdr,
    step_decay,
    warmup,
)

LARGEST = 2**31 - 1
LONG = 2**24 + 1  # the first count that float32 does not have


# The oracles: the documented formulas of torch's schedulers (and of the papers where torch has none), in
# float64 on int64 counts.


def line(t, a, b, n):  # LinearLR, between the values themselves
    f = np.clip(t, 0, n) / n
    return a * (1 - f) + b * f


def half_cosine(t, a, b, n):  # CosineAnnealingLR
    return b + (a - b) * (1 + np.cos(np.pi * np.clip(t, 0, n) / n)) / 2


def tail_cosine(t, a, n):  # the same down to zero; the documented form cancels near the end, in float64 too
    return a * np.sin(np.pi / 2 * (n - np.clip(t, 0, n)) / n) ** 2


def power(t, a, b, n, p):  # PolynomialLR
    return b + (a - b) * (1 - np.clip(t, 0, n) / n) ** p


def cycle(t, peak, n, pct=0.3, div=25.0, final=1e4):  # OneCycleLR, anneal_strategy="cos"
    turn, last = pct * n - 1, n - 1

    def anneal(a, b, f):
        return b + (a - b) / 2 * (1 + np.cos(np.pi * f))

    t = np.minimum(t, last)
    up, down = (
        anneal(peak / div, peak, t / turn),
        anneal(peak, peak / div / final, (t - turn) / (last - turn)),
    )
    return np.where(t <= turn, up, down)


def restarts(t, a, b, n, m):  # CosineAnnealingWarmRestarts, its T_cur and T_i found by walking
    out = []
    for step in np.asarray(t).tolist():
        begin, length = 0, n
        if m == 1:
            begin = step // n * n
        while step >= begin + length:
            begin, length = begin + length, length * m
        out.append(b + (a - b) * (1 + np.cos(np.pi * (step - begin) / length)) / 2)
    return np.array(out)


@schedule
def doubled(value):
    """A schedule from outside the module: twice the value at update 0, the value after."""
    return lambda step: jnp.where(step < 1, 2 * value, value).astype(jnp.float32)


def triangle(step):
    """A foreign function with no length: 0, 1, 2, 3, 4, 0, 1, ..."""
    return (step % 5).astype(jnp.float32)


ROWS = {
    "constant": (constant(0.3), lambda t: np.full(t.shape, 0.3)),
    "linear": (linear(0.0, 0.3, 10), lambda t: line(t, 0.0, 0.3, 10)),
    "linear, one update": (linear(0.3, 0.1, 1), lambda t: line(t, 0.3, 0.1, 1)),
    "linear, long": (linear(0.3, 0.0, LARGEST), lambda t: 0.3 * ((LARGEST - t) / LARGEST)),
    "cosine": (cosine(1e-3, 100, end=1e-6), lambda t: half_cosine(t, 1e-3, 1e-6, 100)),
    "cosine, rising": (cosine(0.85, 7, end=0.95), lambda t: half_cosine(t, 0.85, 0.95, 7)),
    "cosine, long": (cosine(1e-3, LARGEST), lambda t: tail_cosine(t, 1e-3, LARGEST)),
    "cosine, past float32": (cosine(1e-3, LONG), lambda t: tail_cosine(t, 1e-3, LONG)),
    "polynomial": (polynomial(0.3, 0.01, 50, 2.5), lambda t: power(t, 0.3, 0.01, 50, 2.5)),
    "polynomial, rising": (polynomial(0.0, 0.3, 50, 0.5), lambda t: power(t, 0.0, 0.3, 50, 0.5)),
    "polynomial, long": (polynomial(0.3, 0.0, LARGEST, 2.0), lambda t: 0.3 * ((LARGEST - t) / LARGEST) ** 2),
    "exponential": (exponential(0.1, 0.95), lambda t: 0.1 * 0.95**t),
    "exponential, every": (exponential(0.1, 0.5, every=30), lambda t: 0.1 * 0.5 ** (t / 30)),
    "exponential, stairs": (exponential(0.1, 0.7, every=3, staircase=True), lambda t: 0.1 * 0.7 ** (t // 3)),
    "exponential, rising": (exponential(1e-7, 10.0, every=12), lambda t: 1e-7 * 10.0 ** (t / 12)),
    "exponential, long": (exponential(0.1, 1 - 1e-8), lambda t: 0.1 * (1 - 1e-8) ** t),
    "step decay": (step_decay(0.1, 0.3, 30), lambda t: 0.1 * 0.3 ** (t // 30)),
    "step decay, long": (step_decay(0.1, 0.9, LONG), lambda t: 0.1 * 0.9 ** (t // LONG)),
    "piecewise": (
        piecewise(0.1, {60: 0.5, 30: 0.1, 80: 0.0}),
        lambda t: 0.1 * np.where(t >= 30, 0.1, 1) * np.where(t >= 60, 0.5, 1) * np.where(t >= 80, 0, 1),
    ),
    "piecewise, long": (
        piecewise(0.1, {LONG: 0.5, LARGEST: 0.5}),
        lambda t: 0.1 * 0.5 ** ((t >= LONG).astype(int) + (t >= LARGEST)),
    ),
    "rsqrt": (rsqrt(0.1, 40), lambda t: 0.1 * np.sqrt(40 / (40 + t))),
    "rsqrt, long": (rsqrt(0.1, LARGEST), lambda t: 0.1 * np.sqrt(LARGEST / (LARGEST + t))),
    "one cycle": (one_cycle(0.1, 100), lambda t: cycle(t, 0.1, 100)),
    "one cycle, long": (
        one_cycle(0.1, 5 * 2**24, 0.4, 10.0, 10.0),
        lambda t: cycle(t, 0.1, 5 * 2**24, 0.4, 10.0, 10.0),
    ),
    "sgdr": (sgdr(0.1, 10, end=0.01), lambda t: restarts(t, 0.1, 0.01, 10, 1)),
    "sgdr, growing": (sgdr(0.1, 10, 2, end=0.01), lambda t: restarts(t, 0.1, 0.01, 10, 2)),
    "sgdr, tenfold": (sgdr(0.1, 3, 10, end=0.01), lambda t: restarts(t, 0.1, 0.01, 3, 10)),
    "sgdr, two cycles": (
        sgdr(0.1, 10, end=0.01, cycles=2),
        lambda t: np.where(t < 20, restarts(t, 0.1, 0.01, 10, 1), 0.01),
    ),
    "sgdr, two growing": (
        sgdr(0.1, 10, 3, 0.01, cycles=2),
        lambda t: np.where(t < 40, restarts(t, 0.1, 0.01, 10, 3), 0.01),
    ),
    "sgdr, long": (sgdr(0.1, LONG, end=0.01), lambda t: restarts(t, 0.1, 0.01, LONG, 1)),
    "warmup": (
        warmup(cosine(1e-3, 100, end=1e-4), 10, start=1e-5),
        lambda t: np.where(t < 10, line(t, 1e-5, 1e-3, 10), half_cosine(t - 10, 1e-3, 1e-4, 100)),
    ),
    "warmup, to a number": (warmup(0.3, 10), lambda t: line(t, 0.0, 0.3, 10)),
    "warmup, of the root": (  # the Transformer's schedule, as its paper writes it
        warmup(rsqrt(0.3, 40), 40),
        lambda t: 0.3 * 40**0.5 * np.minimum(np.maximum(t, 1) ** -0.5, t * 40**-1.5),
    ),
    "warmup, long": (
        warmup(linear(0.3, 0.0, LONG), LONG),
        lambda t: np.where(t < LONG, 0.3 * (t / LONG), 0.3 * ((2 * LONG - np.minimum(t, 2 * LONG)) / LONG)),
    ),
    "cooldown": (
        cooldown(cosine(0.3, 50, end=0.1), 20, end=0.01),
        lambda t: np.where(t < 50, half_cosine(t, 0.3, 0.1, 50), line(t - 50, 0.1, 0.01, 20)),
    ),
    "cooldown, cutting short": (
        cooldown(piecewise(0.4, {10: 0.5, 30: 0.5}), 15, start_at=20),
        lambda t: np.where(t < 20, np.where(t < 10, 0.4, 0.2), line(t - 20, 0.2, 0.0, 15)),
    ),
    "cooldown, long": (
        cooldown(0.3, LONG, start_at=LONG),
        lambda t: np.where(t < LONG, 0.3, 0.3 * ((2 * LONG - np.minimum(t, 2 * LONG)) / LONG)),
    ),
    "warmup, stay, cooldown": (
        cooldown(join([(warmup(0.3, 10), 60)]), 20),
        lambda t: np.where(t < 60, line(t, 0.0, 0.3, 10), line(t - 60, 0.3, 0.0, 20)),
    ),
    "join": (
        join([(0.2, 3), (linear(0.1, 0.3, 10), 5), (triangle, 7), (exponential(0.3, 0.9), None)]),
        lambda t: np.select(
            [t < 3, t < 8, t < 15],
            [0.2, line(t - 3, 0.1, 0.3, 10), (t - 8) % 5],
            0.3 * 0.9 ** np.maximum(t - 15, 0),
        ),
    ),
    "join, last goes on": (
        join([(0.2, 3), (linear(0.0, 0.3, 10), 5)]),
        lambda t: np.where(t < 3, 0.2, line(t - 3, 0.0, 0.3, 10)),
    ),
    "join, long": (
        join([(0.2, LONG), (linear(0.3, 0.0, LONG), LONG), (0.1, None)]),
        lambda t: np.select([t < LONG, t < 2 * LONG], [0.2, 0.3 * ((2 * LONG - t) / LONG)], 0.1),
    ),
    "scale": (scale(cosine(1e-3, 100, end=1e-6), -2), lambda t: -2 * half_cosine(t, 1e-3, 1e-6, 100)),
    "scale, by a schedule": (
        scale(linear(1.0, 0.5, 10), piecewise(0.5, {4: 0.5})),
        lambda t: line(t, 1.0, 0.5, 10) * np.where(t < 4, 0.5, 0.25),
    ),
    "offset": (offset(linear(0.3, 0.0, 10), 4), lambda t: line(np.maximum(t - 4, 0), 0.3, 0.0, 10)),
    "offset into the middle": (
        offset(piecewise(0.5, {4: 0.5}), -3, value=-0.25),
        lambda t: np.where(t < 1, 0.25, 0.0),
    ),
    "offset, long": (
        offset(linear(0.3, 0.0, LONG), LONG),
        lambda t: line(np.maximum(t - LONG, 0), 0.3, 0.0, LONG),
    ),
    "offset, long, into the middle": (
        offset(linear(0.3, 0.0, 2 * LONG), -LONG),
        lambda t: line(t + LONG, 0.3, 0.0, 2 * LONG),
    ),
    "in epochs": (in_epochs(cosine(1e-3, 10, end=1e-6), 7), lambda t: half_cosine(t // 7, 1e-3, 1e-6, 10)),
    "in epochs, long": (in_epochs(linear(0.3, 0.0, 100), LONG), lambda t: line(t // LONG, 0.3, 0.0, 100)),
    "one's own": (doubled(0.25), lambda t: np.where(t < 1, 0.5, 0.25)),
}

rows = pytest.mark.parametrize("name", ROWS)


def points(boundaries):
    """The first updates, three around each boundary, and those where float32 and int32 run out of numbers."""
    near = [b + d for b in boundaries for d in (-1, 0, 1)]
    far = [2**24 - 1, 2**24, LONG, LONG + 1, 2**30 + 1, LARGEST - 1, LARGEST]
    found = sorted(t for t in {*range(130), *near, *far} if 0 <= t <= LARGEST)
    return np.pad(found, (0, 330 - len(found)), mode="edge")  # one shape for all, so that all share programs


def check_values(function, oracle, boundaries=()):
    """The law: float32's precision at every update, and the one nearest float32 where pieces meet."""
    t = points(boundaries)
    with np.errstate(over="ignore"):
        want = oracle(t)
    want = np.where(want > np.finfo(np.float32).max, np.inf, want)
    got, at = np.asarray(function(jnp.asarray(t, jnp.int32))), np.isin(t, boundaries)
    np.testing.assert_allclose(got, want, rtol=5e-7, atol=1e-37)  # the worst of all rows is 3e-7
    np.testing.assert_array_equal(got[at], want[at].astype(np.float32))


@rows
def test_values_of_the_formula(name):
    check_values(*ROWS[name], ROWS[name][0].boundaries)


@pytest.mark.parametrize(
    ("steps", "pct"), [(97, 0.3), (11, 0.1), (3, 0.5), (2, 0.6), (LONG, 0.3), (LARGEST, 0.7)]
)
def test_one_cycle_whose_peak_lies_between_updates(steps, pct):
    s = one_cycle(0.1, steps, pct_start=pct)
    assert pct * steps % 1 > 0
    check_values(s, lambda t: cycle(t, 0.1, steps, pct), (0, steps - 1, steps))


def test_the_law_rejects_a_step_counted_in_float32():
    def short(step):
        return 0.3 * ((100.0 - jnp.minimum(step.astype(jnp.float32), 100.0)) / 100.0)

    def long(step):
        return 0.3 * ((float(LARGEST) - step.astype(jnp.float32)) / float(LARGEST))

    def stairs(step):
        return 0.1 * 0.5 ** jnp.floor(step.astype(jnp.float32) / float(LONG))

    check_values(short, lambda t: line(t, 0.3, 0.0, 100))  # where float32 can count, nothing is wrong
    with pytest.raises(AssertionError):
        check_values(long, ROWS["linear, long"][1], (LARGEST,))
    with pytest.raises(AssertionError):
        check_values(stairs, lambda t: 0.1 * 0.5 ** (t // LONG), (LONG, 2 * LONG))


def test_the_law_rejects_a_boundary_off_by_one():
    with pytest.raises(AssertionError):
        check_values(lambda t: jnp.where(t > 30, 0.05, 0.1), lambda t: np.where(t >= 30, 0.05, 0.1), (30,))


@pytest.fixture(scope="module")
def compiled():
    """Every row, in one program, on the whole array, under vmap, and on one traced scalar after the other."""

    def run(t):
        return {
            name: (s(t[name]), jax.vmap(s)(t[name]), jax.lax.map(s, t[name])) for name, (s, _) in ROWS.items()
        }

    return jax.jit(run)({name: jnp.asarray(points(s.boundaries), jnp.int32) for name, (s, _) in ROWS.items()})


@rows
def test_every_way_to_call_gives_the_same(name, compiled):
    s = ROWS[name][0]
    t = points(s.boundaries)
    array = s(t)
    at = np.isin(t, (0, *s.boundaries))
    for other in compiled[name]:
        # Compilers may contract a product and a sum into one rounding, but not where pieces meet.
        np.testing.assert_allclose(other, array, rtol=5e-7, atol=1e-37)
        np.testing.assert_array_equal(other[at], array[at])
        assert (other.dtype, other.weak_type) == (jnp.float32, False)
    for i in (0, 1, 29, *s.boundaries[:3], LARGEST):
        np.testing.assert_allclose(s(i), array[np.searchsorted(t, i)], rtol=5e-7, atol=1e-37)


@rows
def test_counts_outside_int32(name):
    s = ROWS[name][0]
    for step, same in ((-1, 0), (-(2**40), 0), (2**31, LARGEST), (2**40, LARGEST)):
        assert s(step) == s(same), step
    np.testing.assert_array_equal(s(jnp.array([-(2**31), -1])), s(jnp.array([0, 0])))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64])
@pytest.mark.parametrize(
    "s", [constant(0.3), join([(triangle, 2), (piecewise(1.0, {2: 0.5}), None)])], ids=repr
)
def test_shape_and_dtype_of_the_step(s, dtype):
    for shape in ((), (2, 3), (0,)):
        step = np.arange(np.prod(shape, dtype=int), dtype=dtype).reshape(shape)
        want = s(step.astype(np.int32))
        on_device = jnp.asarray(step.astype(np.int32) if dtype == np.int64 else step)
        for value in (want, s(step), s(on_device), s(step.tolist()) if step.size else s(step)):
            assert (value.shape, value.dtype, value.weak_type) == (shape, jnp.float32, False)
            np.testing.assert_array_equal(value, want)
    assert s(jnp.uint32(2**32 - 1)) == s(LARGEST)


@pytest.mark.parametrize("step", [1.0, True, jnp.float32(3), np.array([0.0, 1.0]), "1", None])
def test_a_step_that_is_no_integer(step):
    with pytest.raises(ConfigError, match="`step` must be a count of updates"):
        constant(0.1)(step)


@rows
def test_value_semantics(name):
    s = ROWS[name][0]
    assert s == s
    assert hash(s) == hash(copy.deepcopy(s))
    again = pickle.loads(pickle.dumps(s)) if name != "one's own" else s
    assert again == s
    assert hash(again) == hash(s)
    others = [other for n, (other, _) in ROWS.items() if n != name]
    assert s not in others
    assert jax.tree.leaves(s) == []
    names = {**vars(schedules), "triangle": triangle, "doubled": doubled}
    assert eval(repr(s), names) == s  # the repr is the call


def test_nothing_grows_to_nothing():
    """Zero stays zero where the factor overflows, a start that is traced included."""
    for s in (exponential(0.0, 10.0), step_decay(0.0, 10.0, 2)):
        assert s([0, 1000, 2**20, LARGEST]).tolist() == [0.0] * 4
    assert (
        jax.jit(lambda start: exponential(start, 10.0)(np.array([0, 1000, LARGEST])))(0.0).tolist()
        == [0.0] * 3
    )


def test_composition_is_visible():
    s = warmup(cosine(1e-3, 1000), 100)
    assert repr(s) == "warmup(schedule=cosine(start=0.001, steps=1000), steps=100)"
    assert repr(join([(s, 500), (0.1, None)])) == f"join(parts=[({s!r}, 500), (0.1, None)])"


def test_equal_schedules_compile_once():
    traces = 0

    @jax.jit
    def f(s, step):
        nonlocal traces
        traces += 1
        return s(step)

    for s in (
        warmup(cosine(0.1, 10), 5),
        warmup(schedule=cosine(start=0.1, steps=10, end=0.0), steps=5, start=0),
    ):
        f(s, jnp.int32(3))
    assert traces == 1
    f(warmup(cosine(0.2, 10), 5), jnp.int32(3))
    assert traces == 2


# `steps` and `boundaries`


@pytest.mark.parametrize(
    ("s", "steps", "boundaries"),
    [
        (constant(0.1), None, ()),
        (linear(0.1, 0.0, 10), 10, (10,)),
        (exponential(0.1, 0.5, 10), None, ()),
        (step_decay(0.1, 0.5, 10), None, tuple(range(10, 650, 10))),
        (step_decay(0.1, 0.5, 2**30), None, (2**30,)),
        (piecewise(0.1, {20: 0.1, 10: 0.1}), None, (10, 20)),
        (rsqrt(0.1, 10), None, ()),
        (one_cycle(0.1, 100), 100, (29, 99)),
        (one_cycle(0.1, 99), 99, (29, 98)),  # the peak lies at 28.7
        (sgdr(0.1, 10), None, tuple(range(10, 650, 10))),
        (sgdr(0.1, 2**29, 2), None, (2**29, 3 * 2**29)),
        (sgdr(0.1, 10, 2, cycles=3), 70, (10, 30, 70)),
        (sgdr(0.1, 10, cycles=1), 10, (10,)),
        (sgdr(0.1, 10, 2, cycles=1), 10, (10,)),
        (sgdr(0.1, 10, 2, cycles=2**31 - 1), None, None),
        (warmup(0.1, 5), None, (5,)),
        (warmup(linear(0.1, 0.0, 10), 5), 15, (5, 15)),
        (cooldown(linear(0.1, 0.2, 10), 5), 15, (10, 15)),
        (cooldown(piecewise(0.1, {3: 0.1, 8: 0.1}), 5, start_at=8), 13, (3, 8, 13)),
        (cooldown(0.1, 5, start_at=0), 5, (5,)),
        (join([(0.1, 5), (linear(0.1, 0.0, 10), 10), (piecewise(0.1, {4: 0.1}), None)]), None, (5, 15, 19)),
        (join([(linear(0.1, 0.0, 10), 4), (linear(0.1, 0.0, 10), None)]), 14, (4, 14)),
        (join([(0.1, 5), (0.2, 6)]), 11, (5, 11)),
        (scale(linear(0.1, 0.0, 10), 2), 10, (10,)),
        (scale(linear(0.1, 0.0, 10), linear(0.1, 0.0, 20)), 20, (10, 20)),
        (scale(linear(0.1, 0.0, 10), rsqrt(0.1, 20)), None, (10,)),
        (offset(linear(0.1, 0.0, 10), 5), 15, (5, 15)),
        (offset(piecewise(0.1, {3: 0.1, 8: 0.1}), -5), None, (3,)),
        (offset(0.1, 0), None, ()),
        (in_epochs(warmup(linear(0.1, 0.0, 10), 5), 100), 1500, (500, 1500)),
        (in_epochs(linear(0.1, 0.0, 2**30), 10), 10 * 2**30, ()),
    ],
    ids=repr,
)
def test_length_and_boundaries(s, steps, boundaries):
    assert s.steps == steps
    if boundaries is not None:
        assert s.boundaries == boundaries
    assert all(type(b) is int for b in s.boundaries)


# Composition


def test_warmup_at_its_boundaries():
    s = warmup(cosine(0.3, 100), 8)
    np.testing.assert_allclose(
        s([0, 1, 7, 8, 9]), [0.0, 0.3 / 8, 0.3 * 7 / 8, 0.3, half_cosine(1, 0.3, 0.0, 100)], rtol=2e-7
    )
    assert s(8) == cosine(0.3, 100)(0)


@pytest.mark.parametrize("seed", range(3))
def test_the_three_common_decays(seed):
    """Step (rate, size, gamma), exponential (rate, factor) and cosine (max, min), as usually written."""
    rng = np.random.default_rng(seed)
    rate, gamma, lowest = rng.uniform(1e-3, 0.1), rng.uniform(0.1, 0.9), rng.uniform(1e-6, 1e-4)
    size, total, t = int(rng.integers(2, 9)), int(rng.integers(20, 60)), np.arange(70)
    np.testing.assert_allclose(step_decay(rate, gamma, size)(t), rate * gamma ** (t // size), rtol=5e-7)
    np.testing.assert_allclose(exponential(rate, gamma)(t), rate * gamma**t, rtol=5e-7, atol=1e-37)
    np.testing.assert_allclose(cosine(rate, total, lowest)(t), half_cosine(t, rate, lowest, total), rtol=5e-7)


values = st.floats(0.0, 1.0, width=32)
lengths = st.integers(1, 15)
pieces = st.one_of(
    values,
    st.just(triangle),
    st.builds(constant, values),
    st.builds(linear, values, values, lengths),
    st.builds(cosine, values, lengths, values),
    st.builds(step_decay, values, st.sampled_from([0.1, 0.5, 2.0]), lengths),
    st.builds(sgdr, values, lengths, st.integers(1, 2), cycles=st.sampled_from([None, 1, 2])),
    st.builds(warmup, values, lengths, values),
)


@hypothesis.given(parts=st.lists(st.tuples(pieces, lengths), min_size=1, max_size=5), cut=lengths)
@hypothesis.settings(max_examples=40, deadline=None)
def test_join_of_any_parts_equals_the_parts(parts, cut):
    t = np.arange(80)
    whole, begin = np.asarray(join(parts)(t)), 0
    for i, (part, length) in enumerate(parts):
        last = i == len(parts) - 1
        inside = (t >= begin) & (last | (t < begin + length))
        own = np.maximum(t - begin, 0)
        expected = Schedule(part)(own) if callable(part) else np.full(t.shape, part, np.float32)
        np.testing.assert_array_equal(whole[inside], np.asarray(expected)[inside])
        begin += length
    cut = min(cut, len(parts) - 1)
    if cut:  # and parentheses make no difference
        head, length = parts[:cut], sum(n for _, n in parts[:cut])
        np.testing.assert_array_equal(join([(join(head), length), (join(parts[cut:]), None)])(t), whole)


def test_a_part_sees_its_own_updates_only():
    seen = []

    def watched(step):
        seen.append(np.asarray(step))
        return step.astype(jnp.float32)

    join([(watched, 10), (watched, 5), (watched, None)])(jnp.arange(40))
    assert [(x.min(), x.max()) for x in seen] == [(0, 9), (0, 4), (0, 24)]


def test_foreign_schedules_and_numbers_stand_anywhere():
    foreign = optax.linear_schedule(1.0, 0.0, 10)
    ours = linear(1.0, 0.0, 10)
    t = jnp.arange(40)
    for combine in (
        lambda s: warmup(s, 4),
        lambda s: cooldown(s, 4, start_at=6),
        lambda s: join([(s, 5), (0.3, 5), (s, None)]),
        lambda s: scale(s, 3),
        lambda s: scale(0.5, s),
        lambda s: offset(s, 3, value=0.5),
        lambda s: in_epochs(s, 3),
        lambda s: Schedule(s),
    ):
        np.testing.assert_allclose(combine(foreign)(t), combine(ours)(t), rtol=1e-6, atol=2e-7)
    np.testing.assert_array_equal(
        join([(jnp.float32(0.3), 2), (np.float32(0.1), 2)])([0, 2]), np.float32([0.3, 0.1])
    )


def test_inside_an_optax_optimizer():
    tx = optax.sgd(warmup(0.5, 2))
    params, state = jnp.float32(1.0), tx.init(jnp.float32(1.0))
    for rate in (0.0, 0.25, 0.5, 0.5):
        updates, state = tx.update(jnp.float32(1.0), state, params)
        assert updates == -rate


def test_traced_values():
    """A rate may be traced, so a population over rates is one program."""
    t = np.arange(30)

    def curves(r):
        return [
            s(t)
            for s in (
                constant(r),
                linear(r, 0.01, 9),
                cosine(0.1, 9, r),
                polynomial(r, 0.01, 9, 2.0),
                exponential(r, 0.9),
                step_decay(r, 0.5, 7),
                piecewise(r, {5: 0.1, 9: 0.3}),
                rsqrt(r, 10),
                one_cycle(r, 20),
                sgdr(r, 5, 2, 0.01),
                warmup(r, 5),
                cooldown(0.3, 5, r, start_at=3),
                scale(cosine(0.1, 9), r),
                join([(r, 4), (linear(r, 0.0, 9), None)]),
            )
        ]

    many = jax.jit(jax.vmap(curves))(jnp.array([0.1, 0.3]))
    for i, rate in enumerate((0.1, 0.3)):
        for row, curve in zip(many, curves(rate)):
            np.testing.assert_allclose(row[i], curve, rtol=5e-7)


# optax's schedules, which count in float32 and cancel near an end: hence the absolute tolerance


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (linear(0.3, 0.1, 40), optax.linear_schedule(0.3, 0.1, 40)),
        (cosine(0.3, 40, end=0.03), optax.cosine_decay_schedule(0.3, 40, alpha=0.1)),
        (polynomial(0.3, 0.01, 40, 3.0), optax.polynomial_schedule(0.3, 0.01, 3, 40)),
        (exponential(0.3, 0.5, every=20), optax.exponential_decay(0.3, 20, 0.5)),
        (step_decay(0.3, 0.5, 20), optax.exponential_decay(0.3, 20, 0.5, staircase=True)),
        (piecewise(0.3, {10: 0.5, 20: 0.1}), optax.piecewise_constant_schedule(0.3, {10: 0.5, 20: 0.1})),
        (warmup(cosine(0.3, 30, end=0.01), 10), optax.warmup_cosine_decay_schedule(0.0, 0.3, 10, 40, 0.01)),
        (warmup(0.3, 10, start=0.1), optax.warmup_constant_schedule(0.1, 0.3, 10)),
        (
            join([(cosine(0.3, 20), 10), (linear(0.1, 0.2, 7), None)]),
            optax.join_schedules(
                [optax.cosine_decay_schedule(0.3, 20), optax.linear_schedule(0.1, 0.2, 7)], [10]
            ),
        ),
        (
            join([(warmup(cosine(0.3, 15), 5), 20), (warmup(cosine(0.2, 30), 10), None)]),
            optax.sgdr_schedule(
                [
                    {
                        "init_value": 0.0,
                        "peak_value": 0.3,
                        "decay_steps": 20,
                        "warmup_steps": 5,
                        "end_value": 0.0,
                    },
                    {
                        "init_value": 0.0,
                        "peak_value": 0.2,
                        "decay_steps": 40,
                        "warmup_steps": 10,
                        "end_value": 0.0,
                    },
                ]
            ),
        ),
    ],
    ids=lambda s: getattr(getattr(s, "call", None), "name", ""),
)
def test_against_optax(ours, theirs):
    t = jnp.arange(70)
    with jax.numpy_dtype_promotion("standard"):  # which they need
        want = [theirs(i) for i in range(70)]
    np.testing.assert_allclose(ours(t), want, rtol=1e-6, atol=1e-7)


# What cannot work is refused where it is written


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(-0.1), "`value` must be a finite number >= 0, got -0.1"),
        (lambda: constant(float("nan")), "`value` must be a finite number"),
        (lambda: constant("0.1"), "`value` must be a finite number"),
        (lambda: linear(-1.0, 0.0, 10), "`start`"),
        (lambda: linear(1.0, -1.0, 10), "`end`"),
        (lambda: linear(1.0, 0.0, 0), "`steps` must be an integer >= 1, got 0"),
        (lambda: linear(1.0, 0.0, -5), "`steps` must be an integer >= 1, got -5"),
        (lambda: linear(1.0, 0.0, 10.0), "`steps` must be an integer >= 1, got 10.0 of type float"),
        (lambda: linear(1.0, 0.0, True), "`steps` must be an integer >= 1, got True of type bool"),
        (lambda: linear(1.0, 0.0, 2**31), "`steps` must be at most 2147483647"),
        (lambda: cosine(-1e-3, 100), "`start`"),
        (lambda: cosine(1e-3, 100, end=-1.0), "`end`"),
        (lambda: cosine(1e-3, 0), "`steps`"),
        (lambda: polynomial(1.0, 0.0, 10, 0.0), "`power`"),
        (lambda: polynomial(1.0, 0.0, 0, 2.0), "`steps`"),
        (lambda: exponential(0.1, 0.0), "`rate` must be a finite number > 0"),
        (lambda: exponential(0.1, -0.5), "`rate`"),
        (lambda: exponential(-0.1, 0.5), "`start`"),
        (lambda: exponential(0.1, 0.5, every=0), "`every`"),
        (lambda: step_decay(0.1, -0.5, 10), "`factor`"),
        (lambda: step_decay(0.1, 30, 0.1), "`every` must be an integer >= 1, got 0.1"),
        (lambda: piecewise(0.1, {}), "`factors` must map"),
        (lambda: piecewise(0.1, [30, 60]), "`factors` must map"),
        (lambda: piecewise(0.1, {0: 0.1}), "`boundary in factors` must be an integer >= 1, got 0"),
        (lambda: piecewise(0.1, {30: -0.1}), r"`factors\[30\]`"),
        (lambda: rsqrt(0.1, 0), "`steps_offset`"),
        (lambda: rsqrt(-0.1, 10), "`peak`"),
        (lambda: one_cycle(-0.1, 100), "`peak`"),
        (lambda: one_cycle(0.1, 1), "`steps`"),
        (lambda: one_cycle(0.1, 100, pct_start=1.0), "`pct_start`"),
        (lambda: one_cycle(0.1, 3), "above 1 / 3"),
        (lambda: one_cycle(0.1, 100, div_factor=0), "`div_factor`"),
        (lambda: one_cycle(0.1, 100, final_div_factor=-1), "`final_div_factor`"),
        (lambda: sgdr(0.1, 0), "`steps`"),
        (lambda: sgdr(0.1, 10, 1.5), "`multiplier`"),
        (lambda: sgdr(0.1, 10, cycles=0), "`cycles`"),
        (lambda: warmup(0.1, 0), "`steps`"),
        (lambda: warmup(0.1, 10, start=-0.1), "`start`"),
        (lambda: warmup(-0.1, 10), "`schedule`"),
        (lambda: warmup(cosine(0.1, 100), 101), r"at most the length .* 100 updates, got 101; .*`join\("),
        (lambda: warmup(cosine, 10), r"`schedule` must be a schedule, got the factory `cosine`: call it"),
        (lambda: warmup("cosine", 10), "`schedule`"),
        (lambda: cooldown(constant(0.1), 10), r"constant\(value=0.1\) has none: .*start_at=1000.*`join\("),
        (lambda: cooldown(0.1, 10), "has none"),
        (lambda: cooldown(cosine(0.1, 10), 0), "`steps`"),
        (lambda: cooldown(cosine(0.1, 10), 10, end=-0.1), "`end`"),
        (lambda: cooldown(0.1, 10, start_at=-1), "`start_at`"),
        (lambda: join([]), "`parts` must be a list"),
        (lambda: join(cosine(0.1, 10)), "`parts` must be a list"),
        (lambda: join([cosine(0.1, 10)]), r"`parts\[0\]` must be a pair"),
        (lambda: join([(0.1, 0)]), r"`steps of parts\[0\]` must be an integer >= 1"),
        (lambda: join([(0.1, None), (0.2, None)]), r"`steps of parts\[0\]` must be an integer"),
        (lambda: join([(-0.1, 5)]), r"`parts\[0\]` must be a finite number >= 0"),
        (lambda: join([(0.1, LARGEST), (0.2, 1), (0.1, 1)]), "add up to at most 2147483647"),
        (lambda: scale(0.1, float("inf")), "`factor`"),
        (lambda: offset(0.1, 1.5), "`steps`"),
        (lambda: offset(linear(0.1, 0.0, 10), -10), "`steps` must leave some of the schedule, which is 10"),
        (lambda: offset(0.1, -LARGEST - 1), "`steps` must be at most 2147483647"),
        (lambda: offset(0.1, 1, value=float("nan")), "`value`"),
        (lambda: in_epochs(0.1, 0), "`steps_per_epoch`"),
        (lambda: in_epochs(0.1, 1.5), "`steps_per_epoch`"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
