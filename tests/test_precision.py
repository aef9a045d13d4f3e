"""Half precision: policies, loss scaling against a plain Python oracle, stochastic rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import demo, precision, transforms as T

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 3.0], np.float32)).astype(np.float32)


@pytest.fixture(autouse=True)
def seeded():
    """Each test draws the same numbers whichever ran before it."""
    global RNG
    RNG = np.random.default_rng(0)


def bits(tree):
    return [(x.dtype.name, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def tiny(params, batch, ctx):
    """Least squares in a small unit: float16 holds the errors well, and of their products with it hardly a bit."""
    unit = jnp.asarray(2.0**-12, params["w"].dtype)
    error = (batch["x"] @ params["w"] - batch["y"]) * unit
    return error * error


def trained(tx, policy, steps=50):
    task = ft.Task(tiny, tx, policy=policy)
    state = ft.init_state(task, {"w": np.zeros(4, np.float32)})
    for _ in range(steps):
        state, metrics = ft.train_step(task, state, {"x": X, "y": Y})
    return np.asarray(state.params["w"]), ft.compute_metrics(task, metrics)


def test_where_float16_underflows_the_scaled_run_agrees_with_float32():
    tx = ft.optimizers.sgd(0.02 * 2.0**24)
    reference, _ = trained(tx, "float32")
    assert np.abs(reference).max() > 0.5  # it has learned something
    unscaled, _ = trained(tx, "fp16")
    assert np.abs(unscaled - reference).max() > 0.1  # most of the gradient is gone
    scaled, metrics = trained(ft.dynamic_loss_scale(tx), "fp16")
    np.testing.assert_allclose(scaled, reference, rtol=5e-3, atol=5e-3)
    assert float(metrics["loss_scale"]) == 2.0**15  # no step was skipped


def oracle(flags, init, growth, interval, low, high):
    scale, run, out = init, 0, []
    for good in flags:
        if not good:
            scale, run = max(scale / growth, low), 0
        else:
            run += 1
            if run == interval:
                scale, run = min(scale * growth, high), 0
        out.append(scale)
    return out


@pytest.mark.parametrize("growth", [2.0, 3.0])
def test_the_scale_follows_the_rule(growth):
    tx = ft.dynamic_loss_scale(ft.optimizers.sgd(0.1), 2.0**4, growth, 3, 2.0, 2.0**9)
    p = {"w": jnp.ones(2)}
    flags = RNG.random(200) < np.repeat([0.95, 0.2, 1.0, 0.6], 50)
    grads = jnp.where(flags[:, None], jnp.ones((200, 2)), jnp.array([1.0, jnp.inf])[None])

    def body(carry, g):
        p, state = carry
        p, state, applied = tx.apply({"w": g}, state, p)
        return (p, state), (state.loss_scale, applied)

    (_, state), (scales, applied) = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), grads))(p)
    want = oracle(flags, 2.0**4, growth, 3, 2.0, 2.0**9)
    np.testing.assert_allclose(scales, want, rtol=1e-6)
    assert min(want) == 2.0
    assert max(want) == 2.0**9
    assert applied.tolist() == flags.tolist()
    assert int(state.total_skipped) == (~flags).sum()


@pytest.mark.parametrize(("bad", "limit"), [(True, 1.0), (False, 2.0**24)])
def test_100000_steps_stay_within_bounds(bad, limit):
    tx = ft.dynamic_loss_scale(ft.optimizers.sgd(0.0), interval=2)
    p = jnp.ones(1)
    g = jnp.full(1, jnp.nan if bad else 1.0)

    def body(carry, _):
        p, state, _ = tx.apply(g, carry[1], carry[0])
        return (p, state), None

    (q, state), _ = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), None, length=100_000))(p)
    assert float(state.loss_scale) == limit
    assert q.tolist() == [1.0]


def spoilable(params, batch, ctx):
    error = batch["x"] @ params["w"] - batch["y"]
    return error * error * batch["factor"]


def batch(factor=1.0, rows=6):
    return {
        "x": RNG.normal(size=(rows, 4)).astype(np.float32),
        "y": RNG.normal(size=rows).astype(np.float32),
        "factor": np.full(rows, factor, np.float32),
    }


K = 3


@pytest.mark.parametrize("position", range(K))
@pytest.mark.parametrize("nesting", ["around", "inside"])
def test_with_accumulation_at_every_position(nesting, position):
    if nesting == "around":
        tx = ft.dynamic_loss_scale(ft.MultiSteps(ft.optimizers.adamw(0.1), K), interval=100)
    else:
        tx = ft.MultiSteps(ft.dynamic_loss_scale(ft.optimizers.adamw(0.1), interval=100), K)
    task, p = ft.Task(spoilable, tx), {"w": np.ones(4, np.float32)}
    batches = [batch() for _ in range(2 * K)]
    bad = {**batches[position], "factor": np.full(6, np.inf, np.float32)}

    def run(batches):
        state = ft.init_state(task, p)
        for b in batches:
            state, _ = ft.train_step(task, state, b)
        return state

    if nesting == "around":  # the micro-step is left out of its window
        state = run([*batches[:position], bad, *batches[position:]])
        want = run(batches)
        assert int(state.updates) == int(want.updates) == 2
    else:  # the window is dropped
        state = run([*batches[:position], bad, *batches[position + 1 :]])
        want = run(batches[K:])
        assert int(state.updates) == int(want.updates) == 1
    # The scale is a power of two, so that another one of them changes no bit.
    assert bits(state.params) == bits(want.params)
    assert float(T.loss_scale(want.opt_state)) == 2.0**15
    assert float(T.loss_scale(state.opt_state)) == 2.0**14


def test_a_bad_step_leaves_no_trace_but_the_scale():
    tx = ft.dynamic_loss_scale(ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(0.1)))
    task = ft.Task(spoilable, tx)
    state = ft.init_state(task, {"w": np.ones(4, np.float32)})
    state, _ = ft.train_step(task, state, batch())
    before = jax.tree.map(np.asarray, state.replace(key=None))
    for i in range(100):
        state, metrics = ft.train_step(task, state, batch([np.nan, np.inf, -np.inf][i % 3]))
    assert bits(state.params) == bits(before.params)
    assert bits(state.opt_state.inner_state) == bits(before.opt_state.inner_state)
    assert int(state.updates) == 1
    assert float(state.opt_state.loss_scale) == 1.0
    state, metrics = ft.train_step(task, state, batch())
    assert int(state.updates) == 2
    assert float(ft.compute_metrics(task, metrics)["skipped"]) == 0


def test_a_batch_of_weight_zero_is_neither_good_nor_bad():
    tx = ft.dynamic_loss_scale(ft.optimizers.sgd(0.1), interval=2)
    task = ft.Task(spoilable, tx)
    state = ft.init_state(task, {"w": np.ones(4, np.float32)})
    for weight in (1, 0, 0, 0):
        state, _ = ft.train_step(task, state, batch(), np.full(6, weight, np.float32))
    assert (int(state.opt_state.good_steps), float(state.opt_state.loss_scale)) == (1, 2.0**15)


def test_the_scale_is_invisible_behind_the_gradient():
    """Clipping, norms, gradients and micro-batches see the gradient itself, bit for bit."""
    p, b = {"w": np.ones(4, np.float32)}, batch(rows=7)
    plain = ft.Task(spoilable, ft.chain(ft.clip_by_norm(0.1), ft.optimizers.sgd(0.1)))
    state = ft.init_state(plain, p)
    loss, grads = ft.compute_gradients(plain, state, b)
    want, metrics = ft.train_step(plain, state, b)
    norm = ft.compute_metrics(plain, metrics)["grad_norm"]
    for tx in (
        ft.dynamic_loss_scale(ft.chain(ft.clip_by_norm(0.1), ft.optimizers.sgd(0.1))),
        ft.chain(ft.clip_by_norm(0.1), ft.dynamic_loss_scale(ft.optimizers.sgd(0.1), init=2**7)),
    ):
        for microbatches in (1, 3):
            task = ft.Task(spoilable, tx, microbatches=microbatches)
            state = ft.init_state(task, p)
            got = ft.compute_gradients(task, state, b)
            state, metrics = ft.train_step(task, state, b)
            values = ft.compute_metrics(task, metrics)
            if microbatches == 1:
                assert bits(got) == bits((loss, grads))
                assert bits(state.params) == bits(want.params)
                assert float(values["grad_norm"]) == float(norm)
            atol = 1e-6 * float(jnp.max(jnp.abs(grads["w"])))
            np.testing.assert_allclose(got[1]["w"], grads["w"], rtol=1e-6, atol=atol)
            np.testing.assert_allclose(values["grad_norm"], norm, rtol=1e-6)


def test_a_sum_over_many_rows_does_not_overflow_float16():
    def loss_fn(params, b, ctx):
        return b * params["w"]

    for tx in (ft.optimizers.sgd(1.0), ft.dynamic_loss_scale(ft.optimizers.sgd(1.0))):
        # The sum of the gradients is 4096 * 24 > 65504, their mean 24. Scaled, 24 * 2^15 is too much, and shall be.
        task = ft.Task(loss_fn, tx, policy="fp16")
        state = ft.init_state(task, {"w": jnp.zeros(())})
        steps = 1 if tx.call.name == "sgd" else 12
        for _ in range(steps):
            state, _ = ft.train_step(task, state, jnp.full((4096,), 24.0))
        assert int(state.updates) >= 1
        assert float(state.params["w"]) == -24.0 * int(state.updates)


def test_the_scale_is_found_once():
    task = ft.Task(spoilable, ft.dynamic_loss_scale(ft.dynamic_loss_scale(ft.optimizers.sgd(0.1))))
    state = ft.init_state(task, {"w": np.ones(4, np.float32)})
    with pytest.raises(ft.ConfigError, match="must stand in a transform once"):
        ft.train_step(task, state, batch())
    assert T.loss_scale(ft.optimizers.sgd(0.1).init({"w": jnp.ones(2)})) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(growth=1), "`growth` must be a finite number > 1"),
        (dict(interval=0), "`interval` must be an integer >= 1"),
        (dict(min=0), "`min` must be a finite number > 0"),
        (dict(min=4, max=2), "`max` must be a finite number >= 4"),
        (dict(init=2**25), "`init` must be a finite number >= 1.0 and <= 16777216"),
        (dict(init=float("nan")), "`init` must be a finite number"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ft.ConfigError, match=message):
        ft.dynamic_loss_scale(ft.optimizers.sgd(0.1), **arguments)


# Policies.


def test_gradients_are_float32_before_anything_is_done_with_them():
    """300 unit gradients have norm 17.3, which a sum in bfloat16, where 256 + 1 is 256, makes 16."""
    p = {f"w{i}": np.float32(0) for i in range(300)}
    task = ft.Task(
        lambda p, b, ctx: b * sum(p.values()).astype(jnp.float32),
        ft.chain(ft.clip_by_norm(1.0), ft.optimizers.sgd(1.0)),
        policy=ft.Policy("bfloat16"),
    )
    state, metrics = ft.train_step(task, ft.init_state(task, p), jnp.ones(2))
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"bfloat16"}
    np.testing.assert_allclose(ft.compute_metrics(task, metrics)["grad_norm"], np.sqrt(300), rtol=1e-5)
    after = np.array([float(x) for x in jax.tree.leaves(state.params)])
    np.testing.assert_allclose(np.sqrt((after**2).sum()), 1.0, rtol=4e-3)


def test_stochastic_rounding_is_unbiased():
    x = jnp.asarray(np.r_[RNG.normal(size=61), 1 + 2.0**-9, 3.3e38, 1e-39].astype(np.float32))
    like = jnp.zeros(64, jnp.bfloat16)
    n = 4096
    keys = jax.random.split(jax.random.key(0), n)
    drawn = np.asarray(
        jax.jit(jax.vmap(lambda k: precision.round_stochastically(x, like, k)))(keys), np.float64
    )
    exact = np.asarray(x, np.float64)
    # The two neighbours that bfloat16 has, by cutting off the last sixteen bits, and one more in the last place.
    cut = np.asarray(x).view(np.uint32) & 0xFFFF0000
    ends = np.stack([cut, cut + 0x10000]).view(np.float32).astype(np.float64)
    assert ((drawn == ends[0]) | (drawn == ends[1])).all()
    gap = np.abs(ends[1] - ends[0])
    p = np.abs(exact - ends[0]) / gap
    assert (np.abs((drawn == ends[1]).mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1 / n).all()
    assert (np.abs(drawn.mean(0) - exact) <= gap * (5 * np.sqrt(p * (1 - p) / n) + 1 / n)).all()


def test_what_bfloat16_holds_stays_as_it_is():
    x = jnp.array([0.0, -0.0, 1.0, -2.5, jnp.inf, -jnp.inf, jnp.nan, 2.0**-133], jnp.float32)
    odd_nan = jax.lax.bitcast_convert_type(jnp.uint32(0x7F800001), jnp.float32)  # NaN by its last bits alone
    x = jnp.concatenate([x, odd_nan[None]])
    for seed in range(20):
        got = precision.round_stochastically(x, x.astype(jnp.bfloat16), jax.random.key(seed))
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(x))
        assert np.signbit(np.asarray(got, np.float32))[1]


def test_small_updates_are_lost_by_rounding_and_kept_on_average():
    def after(policy, tx):
        task = ft.Task(lambda p, b, ctx: b * jnp.mean(tree_wide(p["w"])), tx, policy=policy)
        state = ft.init_state(task, {"w": np.ones(1000, np.float32)})
        for _ in range(100):
            state, _ = ft.train_step(task, state, jnp.ones(2))
        assert state.params["w"].dtype == jnp.bfloat16
        return np.asarray(state.params["w"], np.float64)

    def tree_wide(x):
        return x.astype(jnp.float32)

    sgd = ft.optimizers.sgd(1.0)  # 1e-3 a step, where the next number below 1 is 1 - 2^-8
    assert (after(ft.Policy("bfloat16"), sgd) == 1).all()
    rounded = ft.Policy("bfloat16", stochastic_rounding=True)
    assert abs(after(rounded, sgd).mean() - 0.9) < 5 * 2**-8 * np.sqrt(100) / 2 / np.sqrt(1000)
    # What holds back or skips draws nothing: an accumulated update is one draw, a skipped step none.
    assert abs(after(rounded, ft.MultiSteps(sgd, 10)).mean() - 0.99) < 5 * 2**-8 * np.sqrt(10) / 2 / np.sqrt(
        1000
    )


def test_a_skipped_step_under_stochastic_rounding_changes_no_bit():
    task = ft.Task(
        spoilable,
        ft.skip_nonfinite(ft.optimizers.adamw(0.01)),
        policy=ft.Policy("bfloat16", stochastic_rounding=True),
    )
    state = ft.init_state(task, {"w": RNG.normal(size=4).astype(np.float32)})
    mixed = batch()
    mixed = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), mixed)
    state, _ = ft.train_step(task, state, mixed)
    before = bits(state.params)
    for _ in range(5):
        state, _ = ft.train_step(task, state, {**mixed, "factor": jnp.full(6, jnp.nan, jnp.bfloat16)})
    assert bits(state.params) == before
    state, _ = ft.train_step(task, state, mixed)
    assert bits(state.params) != before


def test_stochastic_rounding_is_to_bfloat16():
    for params in (None, "float32", "float16"):
        with pytest.raises(ft.ConfigError, match="give `params='bfloat16'` with it"):
            ft.Policy(params, stochastic_rounding=True)


POLICIES = {
    "float32": "float32",
    "bf16": "bf16",
    "bfloat16 parameters": ft.Policy("bfloat16", "bfloat16", "float32", stochastic_rounding=True),
    "fp16": "fp16",
}


@pytest.mark.slow
def test_digits_train_as_well_in_half_precision():
    """Validation accuracy within 1 % of float32's, with the same batches and the same steps."""
    data, validation = demo.load()
    epochs, size = 8, 64
    steps = len(data["label"]) // size
    order = np.concatenate(
        [np.random.default_rng(e).permutation(len(data["label"]))[: steps * size] for e in range(epochs)]
    )
    batches = {k: v[order].reshape(epochs * steps, size, *v.shape[1:]) for k, v in data.items()}
    accuracy = {}
    for name, policy in POLICIES.items():
        tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(3e-3))
        tx = ft.dynamic_loss_scale(tx, interval=50) if name == "fp16" else tx
        task = ft.Task(demo.loss_fn, tx, {"accuracy": ft.metrics.accuracy()}, policy=policy)
        state = ft.init_state(task, demo.init_params, key=0)
        state, _ = ft.train_steps(task, state, batches)
        accuracy[name] = float(ft.compute_metrics(task, ft.eval_step(task, state, validation))["accuracy"])
    assert accuracy["float32"] > 0.95
    for value in accuracy.values():
        assert abs(value - accuracy["float32"]) <= 0.01, accuracy


def test_autocast_is_a_policy_and_no_context():
    for dtype, short in (("bfloat16", "bf16"), (jnp.float16, "fp16"), (np.dtype("float32"), "float32")):
        assert precision.autocast(dtype) == precision.policy(short)
    with pytest.raises(ft.ConfigError, match=r"Task\(loss_fn, tx, policy='bf16'\)"), precision.autocast():
        pass
    with pytest.raises(ft.ConfigError, match=r"`dtype`.*'bfloat16'"):
        precision.autocast("bfloat")
