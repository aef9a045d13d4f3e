"""The transforms: the laws for every one in every dtype, clips to the edges, chains, and MultiSteps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fntrain import ConfigError, optimizers, schedules, testing, transforms as T

RNG = np.random.default_rng(0)
F32 = np.float32


def square_loss(p):
    """The value and gradient of half the sum of squares: what `sam` asks for."""
    return jnp.float32(0), jax.tree.map(lambda x: 1.5 * x, p)


REGISTRY = {
    "clip_by_leaf_norm": lambda: T.clip_by_leaf_norm(1.0),
    "record_norms": lambda: T.record_norms(),
    "scale_by_adam without eps": lambda: T.scale_by_adam(eps=0.0),
    "scale_by_adam scheduled": lambda: T.scale_by_adam(b1=schedules.cosine(0.9, 10)),
    "scale_by_rms": lambda: T.scale_by_rms(0.9, 1e-8),
    "scale_by_rms inside": lambda: T.scale_by_rms(0.9, 1e-8, eps_in_sqrt=True),
    "scale_by_rms centered": lambda: T.scale_by_rms(0.9, 0.0, centered=True),
    "scale_by_lion": lambda: T.scale_by_lion(),
    "skip_nonfinite": lambda: T.skip_nonfinite(optimizers.adamw(1e-3)),
    "skip_nonfinite checked": lambda: T.skip_nonfinite(optimizers.adamw(1e-3), check_updates=True),
    "ema": lambda: T.ema(0.9),
    "ema scheduled": lambda: T.ema(schedules.cosine(0.9, 10)),
    "chain with ema": lambda: T.chain(optimizers.sgd(0.1), T.ema(0.9)),
    "lookahead": lambda: T.lookahead(optimizers.adam(1e-2), 2, 0.5),
    "sam": lambda: T.sam(optimizers.sgd(0.1, 0.9), 0.05),
    "by_path": lambda: T.by_path({"bias": optimizers.sgd(0.1, 0.9), ".*": optimizers.adam(1e-3)}),
    "freeze": lambda: T.freeze(optimizers.adamw(1e-3), "bias"),
    "sgd": lambda: optimizers.sgd(0.1, 0.9, 0.5, 1e-4),
    "adam": lambda: optimizers.adam(1e-3),
    "rmsprop": lambda: optimizers.rmsprop(1e-3, momentum=0.9, centered=True),
    "lion": lambda: optimizers.lion(1e-3),
    "adafactor": lambda: optimizers.adafactor(1e-3, weight_decay=0.1),
    "adafactor factored": lambda: optimizers.adafactor(1e-3, min_dim_size_to_factor=2),
}


# Those that the table of laws (`tests/laws/test_transforms.py`) has no row like.
OWN = [
    "scale_by_adam without eps",
    "scale_by_rms inside",
    "scale_by_rms centered",
    "skip_nonfinite checked",
    "ema scheduled",
    "adafactor",
]


@pytest.mark.parametrize("name", OWN)
def test_laws(name):
    # init and update agree, float32 state, nothing aliased, zero gradients finite, in float32, bfloat16, float16.
    extra = {"value_and_grad_fn": square_loss} if name == "sam" else None
    testing.check_transform(REGISTRY[name], extra=extra)


@pytest.mark.parametrize("name", REGISTRY)
def test_a_state_can_be_donated_with_its_parameters(name):
    # A buffer that stands twice in (params, state) cannot.
    p = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4), "scale": jnp.float32(1)}
    tx = REGISTRY[name]()
    leaves = jax.tree.leaves((p, tx.init(p)))
    pointers = [x.unsafe_buffer_pointer() for x in leaves if x.size]
    assert len(pointers) == len(set(pointers))


# Clipping. Rows: (updates, max_norm, what comes out).

BIG = 1e20
CLIPS = {
    "zero": (np.zeros(3, F32), 1.0, np.zeros(3)),
    "tiny": (np.full(4, 1e-30, F32), 1.0, np.full(4, 1e-30)),
    "smaller than any square": (np.full(4, 3e-25, F32), 1e-25, np.full(4, 5e-26)),
    "equal": (np.array([3, 4], F32), 5.0, [3, 4]),
    "just below": (np.array([3, 4], F32), float(np.nextafter(F32(5), F32(6))), [3, 4]),
    "above": (np.array([3, 4], F32), 1.0, [0.6, 0.8]),
    "huge": (np.full(4, BIG, F32), 1.0, np.full(4, 0.5)),
    "huge, not clipped": (np.full(4, BIG, F32), 1e21, np.full(4, BIG)),
    "infinite": (np.array([np.inf, 1], F32), 1.0, [np.nan, np.nan]),
    "minus infinite": (np.array([-np.inf, 1], F32), 1.0, [np.nan, np.nan]),
    "NaN": (np.array([np.nan, 1], F32), 1.0, [np.nan, np.nan]),
    "fp16 100x100": (np.full((100, 100), 100, np.float16), 1.0, np.full((100, 100), 0.01)),  # norm 10^4
    "fp16 large": (np.full((100, 100), 6e4, np.float16), 1e7, np.full((100, 100), 6e4, np.float16)),
}


@pytest.mark.parametrize("clip", [T.clip_by_norm, T.clip_by_leaf_norm])
@pytest.mark.parametrize("name", CLIPS)
def test_clip_by_norm(name, clip):
    g, max_norm, want = CLIPS[name]
    tx = clip(max_norm)
    got, state = jax.jit(tx.update)({"w": jnp.asarray(g)}, tx.init(None))
    got = np.asarray(got["w"])
    norm = math.sqrt(np.sum(g.astype(np.float64) ** 2)) if np.isfinite(g).all() else np.nan
    assert got.dtype == g.dtype
    if np.isfinite(norm):
        np.testing.assert_allclose(float(state.grad_norm), norm, rtol=1e-6)
        np.testing.assert_allclose(
            float(state.clip_factor), min(1, max_norm / norm) if norm else 1, rtol=1e-6
        )
        if norm <= max_norm:
            np.testing.assert_array_equal(got, g)  # bit for bit
    else:
        assert not np.isfinite(float(state.grad_norm))
    np.testing.assert_allclose(got, want, rtol=1e-3 if g.dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("clip", [T.clip_by_norm, T.clip_by_leaf_norm])
def test_just_above_is_clipped(clip):
    above = F32(5 * (1 + 1e-5))
    g = jnp.array([0.6, 0.8], jnp.float32) * above
    got, state = clip(5.0).update(g, clip(5.0).init(None))
    assert float(state.clip_factor) < 1
    np.testing.assert_allclose(np.linalg.norm(np.asarray(got, np.float64)), 5.0, rtol=2e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_norm_of_1000_unit_leaves(dtype):
    # Summed in bfloat16 this is 16; the truth is 31.6.
    g = [jnp.ones((), dtype)] * 1000
    tx = T.clip_by_norm(1.0)
    got, state = tx.update(g, tx.init(g))
    assert float(state.grad_norm) == pytest.approx(math.sqrt(1000), rel=1e-6)
    norm = math.sqrt(sum(float(x) ** 2 for x in got))
    assert norm == pytest.approx(1.0, rel=2**-8)  # each entry rounded to its dtype


def test_leaf_norms_are_each_leafs_own():
    g = {
        "a": jnp.array([3.0, 4.0]),
        "b": jnp.array([0.3, 0.4]),
        "huge": jnp.full((4,), 1e25),
        "nan": jnp.array([jnp.nan, 1.0]),
        "tiny": jnp.full((4,), 1e-30),
        "zero": jnp.zeros(2),
    }
    got, state = jax.jit(T.clip_by_leaf_norm(1.0).update)(g, T.clip_by_leaf_norm(1.0).init(g))
    np.testing.assert_allclose(got["a"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(got["b"], g["b"])
    np.testing.assert_allclose(got["huge"], 0.5, rtol=1e-6)
    assert np.isnan(got["nan"]).all()  # and nothing else
    np.testing.assert_array_equal(got["tiny"], g["tiny"])
    np.testing.assert_array_equal(got["zero"], g["zero"])
    assert np.isnan(state.grad_norm)
    del g["nan"]
    _, state = T.clip_by_leaf_norm(1.0).update(g, state)
    assert float(state.clip_factor) == pytest.approx(1 / 2e25, rel=1e-6)
    assert float(state.grad_norm) == pytest.approx(2e25, rel=1e-6)


def test_global_norm_is_not_the_leaves_own():
    g = {"a": jnp.array([0.6]), "b": jnp.array([0.8])}
    both = T.clip_by_norm(0.5).update(g, T.clip_by_norm(0.5).init(g))[0]
    each = T.clip_by_leaf_norm(0.5).update(g, T.clip_by_leaf_norm(0.5).init(g))[0]
    np.testing.assert_allclose([both["a"][0], both["b"][0]], [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose([each["a"][0], each["b"][0]], [0.5, 0.5], rtol=1e-6)


def test_clip_by_value():
    g = jnp.array([-np.inf, -2.0, -0.0, 0.25, np.inf, np.nan])
    got = T.clip_by_value(0.5).update(g, T.clip_by_value(0.5).init(None))[0]
    np.testing.assert_array_equal(got, [-0.5, -0.5, -0.0, 0.25, 0.5, np.nan])


@pytest.mark.parametrize("make", [T.clip_by_norm, T.clip_by_leaf_norm, T.clip_by_value])
@pytest.mark.parametrize("limit", [0, 0.0, -1.0, float("nan"), float("inf"), None, "1", True])
def test_a_clip_refuses(make, limit):
    with pytest.raises(ConfigError, match=r"`max_(norm|value)` must be a finite number > 0"):
        make(limit)


# Hyperparameters are float32, whatever the parameters are.


def test_hyperparameters_are_not_cast_to_bfloat16():
    # bfloat16(0.999) is 1: with it Adam's second moment never sees a gradient, and 1 - b2**t is 0.
    p = jnp.full((4,), 1.0, jnp.bfloat16)
    g = jnp.array([1e-3, -1.0, 2.0, 0.0], jnp.bfloat16)
    for tx in (optimizers.adam(0.3), optimizers.adam(jnp.float32(0.3)), optimizers.adam(np.float64(0.3))):
        u, state = tx.update(g.astype(jnp.float32), tx.init(p), p)
        np.testing.assert_allclose(u, [-0.3, 0.3, -0.3, 0.0], rtol=2e-5)  # eps against a gradient of 1e-3
        np.testing.assert_allclose(
            state["scale_by_adam"].nu, 0.001 * np.asarray(g, np.float64) ** 2, rtol=1e-6
        )
    decay = T.add_weight_decay(1e-3)
    u, _ = decay.update(jnp.zeros((4,), jnp.float32), decay.init(p), p)
    np.testing.assert_array_equal(u, np.full(4, F32(1e-3)))  # bfloat16(1e-3) is 0.00099945


def test_numpy_scalars_do_not_widen():
    with jax.enable_x64(True):
        p = jnp.ones((2,), jnp.float32)
        tx = optimizers.adamw(np.float64(0.1), b1=np.float64(0.9), weight_decay=np.float64(0.1))
        u, state = tx.update(p, tx.init(p), p)
        assert u.dtype == jnp.float32
        dtypes = {x.dtype.name for x in jax.tree.leaves(state)}
        assert dtypes == {"int32", "float32"}


# Weight decay and its masks.

P = {"dense": {"kernel": jnp.full((2,), 2.0), "bias": jnp.full((2,), 2.0)}, "norm": jnp.full((2,), 2.0)}


@pytest.mark.parametrize(
    ("mask", "decayed"),
    [
        (None, {"dense/kernel", "dense/bias", "norm"}),
        ("kernel", {"dense/kernel"}),
        (["kernel", "norm"], {"dense/kernel", "norm"}),
        ("^dense/", {"dense/kernel", "dense/bias"}),
        ({"dense": {"kernel": True, "bias": False}, "norm": False}, {"dense/kernel"}),
        (lambda p: jax.tree.map(lambda x: x.ndim > 0, p), {"dense/kernel", "dense/bias", "norm"}),
    ],
)
def test_decay_mask(mask, decayed):
    tx = T.add_weight_decay(0.5, mask)
    u, _ = tx.update(jax.tree.map(jnp.zeros_like, P), tx.init(P), P)
    got = {"dense/kernel": u["dense"]["kernel"], "dense/bias": u["dense"]["bias"], "norm": u["norm"]}
    assert {k for k, v in got.items() if float(v[0]) == 1.0} == decayed
    assert {k for k, v in got.items() if float(v[0]) == 0.0} == set(got) - decayed


def test_decay_leaves_counts_alone():
    p = {"w": jnp.full((2,), 2.0), "half": jnp.full((2,), 2.0, jnp.bfloat16), "count": jnp.int32(7)}
    tx = T.add_weight_decay(0.5)
    u, _ = tx.update({"w": jnp.zeros(2), "half": jnp.zeros(2, jnp.bfloat16), "count": None}, tx.init(p), p)
    assert (u["w"].tolist(), u["half"].tolist(), u["count"]) == ([1.0, 1.0], [1.0, 1.0], None)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("kernl", "`mask`.*'kernl' matches no leaf.*`dense/kernel`"),
        (["kernel", "embedding"], "'embedding' matches no leaf"),
        ("(", "is not a regular expression"),
        ({"dense": {"kernel": True}, "norm": True}, "`mask` must have the structure.*dense/bias"),
    ],
)
def test_a_mask_that_fits_nothing_is_refused_at_init(mask, words):
    with pytest.raises(ConfigError, match=words):
        T.add_weight_decay(0.1, mask).init(P)


def test_decay_follows_its_own_schedule():
    tx = T.add_weight_decay(lambda t: 0.5 * (t + 1).astype(jnp.float32))
    p = jnp.array([1.0])
    state = tx.init(p)
    seen = []
    for _ in range(3):
        u, state = tx.update(jnp.array([0.0]), state, p)
        seen.append(float(u[0]))
    assert seen == [0.5, 1.0, 1.5]


# Chains.


def probe():
    """A transform that keeps the extra argument `answer` it was given."""

    def init_fn(params):
        return jnp.zeros((), jnp.float32)

    def update_fn(updates, state, params=None, *, answer=None, **extra):
        return updates, state if answer is None else jnp.asarray(answer, jnp.float32)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@pytest.mark.parametrize("depth", ["ours in optax's", "optax's in ours", "both"])
def test_extra_arguments_travel_through_chains(depth):
    inner = T.chain(T.clip_by_norm(1.0), probe=probe())
    tx = {
        "ours in optax's": lambda: optax.chain(optax.scale(2.0), inner, T.scale_by_learning_rate(0.1)),
        "optax's in ours": lambda: T.chain(optax.chain(optax.scale(2.0), probe()), T.clip_by_norm(1.0)),
        "both": lambda: optax.chain(T.chain(optax.chain(inner, optax.scale(2.0)), T.momentum(0.9))),
    }[depth]()
    p = jnp.array([3.0, 4.0])
    updates, state = jax.jit(tx.update)(p, tx.init(p), p, answer=jnp.float32(42), nobody_knows=1)
    found = [float(x) for x in jax.tree.leaves(state) if x.shape == () and float(x) == 42]
    assert found == [42.0]
    assert np.isfinite(updates).all()


BETWEEN = {
    "clip_by_norm": (T.clip_by_norm(1.0), lambda g, p, v: g / np.linalg.norm(g)),
    "clip_by_value": (T.clip_by_value(0.5), lambda g, p, v: np.clip(g, -0.5, 0.5)),
    "add_weight_decay": (T.add_weight_decay(0.25), lambda g, p, v: g + 0.25 * p),
    "nesterov": (T.nesterov(0.9), lambda g, p, v: g + 0.9 * (0.9 * v + g)),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_optaxs_on_either_side(name):
    tx, formula = BETWEEN[name]
    p, g = np.array([3.0, -4.0], F32), np.array([1.0, 2.0], F32)
    for chained in (
        T.chain(optax.scale(2.0), tx, optax.scale(-0.5)),
        optax.chain(optax.scale(2.0), tx, optax.scale(-0.5)),
    ):
        state, velocity = chained.init(jnp.asarray(p)), 0.0
        for gradient in (g, -3 * g, g):
            got, state = chained.update(jnp.asarray(gradient), state, jnp.asarray(p))
            want = formula(2.0 * gradient, p, velocity)
            velocity = 0.9 * velocity + 2.0 * gradient
            np.testing.assert_allclose(got, -0.5 * want, rtol=1e-6)


def test_extra_arguments_travel_through_every_wrapper():
    p = {"a": jnp.ones(2), "b": jnp.ones(2)}
    for wrap in (
        T.skip_nonfinite,
        lambda tx: T.MultiSteps(tx, 1),
        lambda tx: T.lookahead(tx, 2, 0.5),
        T.sam,
        lambda tx: T.freeze(tx, "a"),
        lambda tx: T.by_path({".*": tx}),
        lambda tx: T.chain(T.ema(0.9), tx),
    ):
        tx = wrap(T.chain(T.clip_by_norm(1.0), probe=probe()))
        for call in (tx.update, tx.apply):
            state = call(p, tx.init(p), p, answer=42.0, value_and_grad_fn=square_loss)[1]
            assert 42.0 in [float(x) for x in jax.tree.leaves(state) if x.shape == ()], (tx, call)


def test_a_foreign_transform_meets_low_precision():
    # optax's Adam makes its state in the parameters' dtype, and must get gradients in it.
    p = {"w": jnp.ones((3,), jnp.bfloat16)}
    tx = T.chain(T.clip_by_norm(1.0), optax.adam(1e-2))
    state = tx.init(p)
    _, after = tx.update({"w": jnp.ones((3,), jnp.float32)}, state, p)
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]


def test_chain_state_is_by_name():
    tx = T.chain(T.clip_by_value(1.0), T.momentum(0.9), T.momentum(0.5), late=T.record_norms())
    assert list(tx.init(jnp.ones(2))) == [
        "momentum",
        "momentum_2",
        "late",
    ]  # what holds nothing leaves no entry
    with pytest.raises(ConfigError, match="choose another"):
        T.chain(T.momentum(0.9), momentum=T.momentum(0.5))
    with pytest.raises(ConfigError, match=r"call it, `momentum\(...\)`"):
        T.chain(T.momentum)
    with pytest.raises(ConfigError, match=r"pass several transforms as `chain"):
        T.chain([T.momentum(0.9)])
    other = T.chain(T.ema(0.9))
    with pytest.raises(ConfigError, match="`opt_state` belongs to another transform"):
        other.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))


def test_recorded_values():
    tx = T.chain(T.record_norms(), T.clip_by_norm(1.0), optimizers.sgd(0.5))
    p = jnp.array([3.0, 4.0])
    recorded = T.recorded(tx.update(p, tx.init(p), p)[1])
    assert {k: float(v) for k, v in recorded.items()} == pytest.approx(
        {"grad_norm": 5.0, "clip_by_norm/grad_norm": 5.0, "clip_factor": 0.2, "learning_rate": 0.5}
    )


# MultiSteps.

MICRO = RNG.normal(size=(30, 4)).astype(F32)


def micro_steps(tx, gradients=MICRO, weights=None):
    """Updates and states of a run of calls of `update`, and the parameters they lead to."""
    p = jnp.asarray(RNG.normal(size=4), jnp.float32) * 0 + 1
    update = jax.jit(tx.update)
    state, out = tx.init(p), []
    for i, g in enumerate(gradients):
        extra = {} if weights is None else {"weight": jnp.float32(weights[i])}
        updates, state = update(jnp.asarray(g), state, p, **extra)
        p = optax.apply_updates(p, updates)
        out.append((np.asarray(updates), state, np.asarray(p)))
    return out


def growing(gradient_step):
    return jnp.where(gradient_step < 3, 2, 5)


@pytest.mark.parametrize("every_k", [1, 4, growing], ids=["1", "4", "a schedule"])
@pytest.mark.parametrize("mean", [True, False])
def test_multi_steps_is_optaxs(every_k, mean):
    inner = optax.chain(optax.trace(0.9), optax.scale(-0.1))
    mine = T.MultiSteps(inner, every_k_schedule=every_k, use_grad_mean=mean)
    theirs = optax.MultiSteps(inner, every_k_schedule=every_k, use_grad_mean=mean)
    with jax.numpy_dtype_promotion("standard"):
        want = micro_steps(theirs)
        got = micro_steps(mine)
    for i, ((u, s, p), (v, r, q)) in enumerate(zip(got, want)):
        np.testing.assert_allclose(u, v, rtol=1e-6, atol=1e-7, err_msg=f"call {i}")
        np.testing.assert_allclose(p, q, rtol=1e-6, err_msg=f"call {i}")
        assert int(s.mini_step) == int(r.mini_step), i
        assert int(s.gradient_step) == int(r.gradient_step), i
        assert bool(mine.has_updated(s)) == bool(theirs.has_updated(r)), i
    assert int(got[-1][1].gradient_step) >= 7


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_multi_steps_skips_as_optaxs_does(bad):
    gradients = MICRO.copy()
    gradients[[0, 5, 6, 11, 29], 2] = bad
    inner = optax.sgd(0.1)
    kwargs = dict(every_k_schedule=3, should_skip_update_fn=optax.skip_not_finite)
    with jax.numpy_dtype_promotion("standard"):
        want = micro_steps(optax.MultiSteps(inner, **kwargs), gradients)
        got = micro_steps(T.MultiSteps(inner, **kwargs), gradients)
    for i, ((_, s, p), (_, r, q)) in enumerate(zip(got, want)):
        np.testing.assert_allclose(p, q, rtol=1e-6, err_msg=f"call {i}")
        assert int(s.mini_step) == int(r.mini_step), i
        assert int(s.gradient_step) == int(r.gradient_step), i
        assert jax.tree.map(bool, s.skip_state["should_skip"]) == bool(r.skip_state["should_skip"]), i
        assert int(s.skip_state["num_not_finite"]) == int(r.skip_state["num_not_finite"]), i
    assert np.isfinite(got[-1][2]).all()


@pytest.mark.parametrize("rate", [1e-8, 1e-4])
def test_a_window_of_low_precision_returns_what_the_inner_transform_does(rate):
    p, g = jnp.ones(3), jnp.ones(3, jnp.float16)
    tx = T.MultiSteps(optax.adam(rate), 2)
    state = tx.init(p)
    for _ in range(2):
        u, state = tx.update(g, state, p)
    assert u.dtype == jnp.float32
    np.testing.assert_allclose(u, -rate, rtol=1e-4)  # float16 has nothing between 0 and 6e-8


def test_weighted_windows():
    k, weights = 3, np.array([1, 2, 5, 0, 4, 0.5, 0, 0, 3, 7, 1, 1], F32)
    got = micro_steps(T.MultiSteps(optimizers.sgd(1.0), k), MICRO[:12], weights)
    for window in range(4):
        rows = slice(3 * window, 3 * window + 3)
        w, g = weights[rows, None].astype(np.float64), MICRO[rows].astype(np.float64)
        np.testing.assert_allclose(got[3 * window + 2][0], -(w * g).sum(0) / w.sum(), rtol=1e-6, atol=1e-7)
        for i in (0, 1):
            assert not got[3 * window + i][0].any()


def test_windows_of_weight_zero_are_no_updates():
    tx = T.MultiSteps(optimizers.adamw(0.1, weight_decay=0.5), 2)
    weights = np.array([0, 0, 1, 1], F32)
    got = micro_steps(tx, MICRO[:4] * weights[:, None], weights)
    np.testing.assert_array_equal(got[1][2], np.ones(4))  # not even the decay
    assert [int(s.gradient_step) for _, s, _ in got] == [0, 0, 0, 1]
    assert [int(s.mini_step) for _, s, _ in got] == [1, 0, 1, 0]


def test_a_micro_step_of_weight_zero_may_hold_anything():
    gradients = MICRO[:4].copy()
    gradients[1] = np.nan
    got = micro_steps(T.MultiSteps(optimizers.sgd(1.0), 4), gradients, [1, 0, 1, 1])
    np.testing.assert_allclose(got[3][0], -gradients[[0, 2, 3]].mean(0), rtol=1e-6)


def test_a_window_cut_short_is_flushed_by_its_own_weight():
    tx = T.chain(T.clip_by_norm(100.0), T.MultiSteps(optimizers.sgd(1.0, momentum=0.5), 4), T.record_norms())
    p = jnp.ones(4)
    state = tx.init(p)
    for g, w in zip(MICRO[:6], (1, 1, 1, 1, 2, 6)):
        _, state = tx.update(jnp.asarray(g), state, p, weight=jnp.float32(w))
    updates, flushed = jax.jit(tx.flush)(state, p)
    velocity = 0.5 * MICRO[:4].mean(0) + (2 * MICRO[4] + 6 * MICRO[5]) / 8
    np.testing.assert_allclose(updates, -velocity, rtol=1e-6, atol=1e-7)
    window = flushed["MultiSteps"]
    assert (int(window.mini_step), int(window.gradient_step)) == (0, 2)
    assert float(flushed["record_norms"].grad_norm) == pytest.approx(np.linalg.norm(velocity), rel=1e-6)
    again, after = tx.flush(flushed, p)  # nothing is left to flush
    assert not np.asarray(again).any()
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), after, flushed)
    same["MultiSteps"] = same["MultiSteps"]._replace(
        applied=True
    )  # what the last call did, not what it holds
    assert all(jax.tree.leaves(same))
    g = jnp.asarray(MICRO[6])
    _, state = tx.update(g, flushed, p, weight=jnp.float32(1))  # the next window starts empty
    np.testing.assert_allclose(state["MultiSteps"].acc_grads, g, rtol=1e-6)


def test_only_closed_windows_are_updates_behind_a_chain():
    # A MultiSteps that is not last does not apply; whether it let a call through is in its state.
    tx = T.chain(T.MultiSteps(optimizers.sgd(1.0), 3), T.record_norms())
    p = jnp.ones(4)
    state, applied = tx.init(p), []
    for g in MICRO[:6]:
        p, state, a = tx.apply(jnp.asarray(g), state, p, weight=jnp.float32(1))
        applied.append(bool(a))
    assert applied == [False, False, True] * 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: T.MultiSteps(optimizers.sgd(), 0), "`every_k_schedule` must be an integer >= 1"),
        (lambda: T.MultiSteps(optimizers.sgd(), -1), "`every_k_schedule` must be an integer >= 1"),
        (lambda: T.MultiSteps(optimizers.sgd, 2), "looks like a factory"),
        (lambda: T.MultiSteps(optimizers.sgd(), 2, accumulator_dtype=jnp.int32), "`accumulator_dtype`"),
        (
            lambda: T.MultiSteps(optimizers.sgd(), 2, use_grad_mean=False).update(
                jnp.ones(1), T.MultiSteps(optimizers.sgd(), 2).init(jnp.ones(1)), jnp.ones(1), weight=2.0
            ),
            "`weight` has no meaning with `use_grad_mean=False`",
        ),
        (lambda: T.scale_by_rms(1.0), "`decay` must be"),
        (lambda: T.scale_by_rms(0.9, -1.0), "`eps` must be"),
        (lambda: T.scale_by_lion(1.0), "`b1` must be"),
        (lambda: T.momentum(0.9, True, 0.1), "`nesterov=True` needs `dampening=0`"),
        (lambda: T.momentum(-0.1), "`decay` must be"),
        (lambda: T.add_weight_decay(-1.0), "`rate` must be"),
        (lambda: T.add_weight_decay(0.1).update(jnp.ones(1), ()), "`params` is needed"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
