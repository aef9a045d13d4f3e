"""Moments in eight bits: how far codes are off, what they cost, and that runs go as they would have gone."""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import fntrain as ft
from fntrain import ConfigError, optimizers, transforms as T
from fntrain.transforms import quantize

EXAMPLES = Path(__file__).parents[2] / "examples"
RNG = np.random.default_rng(0)


def around(x, count=0, block=64):
    """What comes back."""
    return np.asarray(_around(jnp.asarray(x), count, block))


@partial(jax.jit, static_argnums=2)
def _around(x, count, block):
    return quantize._decode(*quantize._encode(x, block, quantize._drawn(x.shape, count, "w")), block)


def test_codes_are_a_level_off_at_most():
    spread = 10.0 ** RNG.uniform(-4, 0, size=(8, 200)).astype(np.float32)  # 200 is no multiple of the block
    signed = spread * RNG.choice([-1, 1], size=spread.shape).astype(np.float32)
    for x in (spread, signed, spread * 1e-30, signed * 1e30):
        back = around(x)
        assert np.abs(back / x - 1).max() < 1 / 8
        # And what comes back is a level: a largest one times a power of two and an eighth of the next.
        for row in np.split(back, [64, 128, 192], axis=1):
            mantissa = np.frexp(np.float64(row) / np.abs(np.float64(row)).max(axis=1, keepdims=True))[0] * 16
            np.testing.assert_allclose(mantissa, np.round(mantissa), rtol=1e-6)
        assert np.array_equal(np.sign(back), np.sign(x))
    assert not around(np.zeros((3, 5))).any()
    # The largest of a block is exact, and so is what all are: one number.
    np.testing.assert_array_equal(around(np.full((2, 5), 0.3, np.float32)), np.full((2, 5), 0.3, np.float32))


def test_a_second_moment_that_is_not_zero_stays_so_and_a_bad_number_is_seen():
    x = np.array([[1.0, 1e-20, 0.0, 1e-9]], np.float32)
    back = around(x)[0]
    assert back[1] > 0
    assert back[2] == 0
    assert np.isnan(around([[1.0, np.nan, 0.5]])).any()
    assert not np.isfinite(around([[1.0, np.inf, 0.5]])).all()


def test_rounding_is_right_in_the_mean():
    x = np.stack([np.full(5000, 0.7), np.full(5000, -0.2)]).astype(np.float32)
    x[:, ::50] = 1.0  # the largest of each block
    drawn = np.stack([around(x, count, 50) for count in range(4)])[:, :, np.arange(5000) % 50 > 0]
    assert len(np.unique(drawn[:, 0])) == 2  # the level above and that below
    np.testing.assert_allclose(drawn[:, 0].mean(), 0.7, rtol=1e-3)
    np.testing.assert_allclose(drawn[:, 1].mean(), -0.2, rtol=2e-3)
    assert not np.array_equal(drawn[0], drawn[1])
    # So a moment that decays by a thousandth an update does decay: rounded to the nearest level it would stand still.
    v, n = jnp.concatenate([jnp.ones(10), jnp.full(990, 0.5)]).reshape(1, 1000), 200

    def step(v, t):
        v = v.at[:, 10:].multiply(0.999)
        return quantize._decode(*quantize._encode(v, 1000, quantize._drawn(v.shape, t, "v")), 1000), None

    after = np.asarray(jax.lax.scan(step, v, jnp.arange(n))[0])[0, 10:]
    np.testing.assert_allclose(after.mean(), 0.5 * 0.999**n, rtol=0.02)


IMAGES, LABELS = load_digits(return_X_y=True)
BATCH = (IMAGES[:512].astype(np.float32) / 16, LABELS[:512].astype(np.int32))


def digits_loss(p, batch, ctx):
    hidden = jax.nn.relu(batch[0] @ p["w1"])
    return ft.losses.cross_entropy(hidden @ p["w2"], batch[1])


START = {
    "w1": RNG.normal(size=(64, 96)).astype(np.float32) / 8,
    "w2": RNG.normal(size=(96, 10)).astype(np.float32) / 10,
}
SMALL = dict(min_size=512)


def losses(tx, steps=60):
    task = ft.Task(digits_loss, tx)
    state = ft.init_state(task, START)
    batches = jax.tree.map(lambda x: np.stack([x] * steps), BATCH)

    def step(state, batch):
        state, metrics = ft.train_step(task, state, batch)
        return state, ft.compute_metrics(task, metrics)["loss"]

    return np.asarray(jax.lax.scan(step, state, batches)[1])


def test_training_on_digits_goes_as_with_whole_moments(monkeypatch):
    adamw = optimizers.adamw(3e-3, b2=0.99)
    whole, coded = losses(adamw), losses(T.quantize_state(adamw, **SMALL))
    assert whole[-1] < 0.2  # from 2.4
    np.testing.assert_allclose(coded, whole, rtol=0.05)
    # The broken specimen: second moments on a linear scale, where most of them are zero.
    monkeypatch.setattr(quantize, "_encode", linear_encode)
    monkeypatch.setattr(quantize, "_decode", linear_decode)
    linear = losses(T.quantize_state(optimizers.adamw(3e-3, b2=0.99), block=255, **SMALL))
    assert not np.nanmax(linear) < 10


def linear_encode(x, block, uniform):
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    return (128 + jnp.round(x / jnp.where(scale > 0, scale, 1) * 127)).astype(jnp.uint8), scale


def linear_decode(codes, scales, block):
    return (codes.astype(jnp.float32) - 128) / 127 * scales


def test_a_state_is_a_quarter_and_its_bits_are_kept_by_a_checkpoint():
    tx = T.quantize_state(optimizers.adamw(1e-2))
    p = {"w": jnp.zeros((64, 256)), "b": jnp.zeros(64)}
    whole, coded = (jax.eval_shape(t.init, p) for t in (optimizers.adamw(1e-2), tx))
    assert ft.tree.nbytes(whole) > 3.7 * ft.tree.nbytes(coded)
    adam = coded.inner_state["scale_by_adam"]
    assert adam.mu["w"].dtype == adam.nu["w"].dtype == jnp.uint8
    assert adam.mu["b"].dtype == jnp.float32  # too few to be worth it
    update = jax.jit(tx.update)
    grads = [{name: RNG.normal(size=x.shape).astype(np.float32) for name, x in p.items()} for _ in range(4)]
    straight = resumed = jax.jit(tx.init)(p)
    for i, g in enumerate(grads):
        u, straight = update(g, straight, p)
        if i == 2:
            resumed = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), resumed)
        v, resumed = update(g, resumed, p)
    assert all(map(np.array_equal, jax.tree.leaves((u, straight)), jax.tree.leaves((v, resumed))))


def test_a_run_that_was_resumed_has_the_bits_of_one_that_was_not(tmp_path):
    task = ft.Task(digits_loss, T.quantize_state(optimizers.adamw(3e-3), **SMALL))
    options = dict(epochs=2, batch_size=128, progress=False)
    straight = ft.fit(task, ft.init_state(task, START), BATCH, **options)
    kwargs = dict(options, run_dir=tmp_path / "run")
    ft.fit(task, ft.init_state(task, START), BATCH, **kwargs | {"epochs": 1})
    resumed = ft.fit(task, ft.init_state(task, START), BATCH, **kwargs, resume=True)
    assert resumed.state.step == 8
    for a, b in zip(jax.tree.leaves(straight.state.opt_state), jax.tree.leaves(resumed.state.opt_state)):
        np.testing.assert_array_equal(a, b)
    assert straight.history["loss"] == resumed.history["loss"]


def test_plan_and_describe_count_the_bytes():
    p = jax.eval_shape(lambda: {"w": jnp.zeros((256, 1024)), "b": jnp.zeros(1024)})
    want = 2 * (
        256 * 1024 + 4 * 256 * 4 + 4 * 1024
    )  # a byte a number, a scale for 256, whole biases; of two moments
    tx = T.quantize_state(optimizers.adamw(1e-3))
    task = ft.Task(digits_loss, tx)
    alone, split = (ft.sharding.plan(task, p, {"data": n}, ft.sharding.fsdp(min_size=1)) for n in (1, 8))
    described = ft.tools.describe(tx, p)
    for found in (described.state_bytes, described.rows[0].state_bytes, alone.optimizer_state):
        assert 0 <= found - want < 64  # and the counts
    assert split.optimizer_state < alone.optimizer_state / 7


def test_a_small_language_model_goes_as_with_whole_moments():
    """The example's GPT-2, of one layer: its leaves of every size, and few rows of the embedding seen."""
    spec = importlib.util.spec_from_file_location("gpt", EXAMPLES / "gpt.py")
    gpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpt)
    size = gpt.Size(1, 16, 2, 16, 64)
    shapes = jax.eval_shape(partial(gpt.init_params, size), jax.random.key(0))
    rng = np.random.default_rng(0)  # its own: what it draws is no matter of which tests ran before
    start = ft.tree.map_with_path(
        lambda path, x: np.float32("scale" in path) + 0.1 * rng.normal(size=x.shape).astype(np.float32),
        shapes,
    )
    rows = np.stack([np.arange(i, i + 17) * (1 + i % 3) % 61 for i in range(12)]).astype(np.int32)

    def loss(p):
        with jax.numpy_rank_promotion("allow"):  # an example is written as people write
            logits = gpt.hidden(p, rows[:, :-1]) @ p["token"]["kernel"].T
        return ft.losses.cross_entropy(logits, rows[:, 1:]).mean()

    adamw = optimizers.adamw(1e-2, b2=0.95)
    both = adamw, T.quantize_state(adamw, min_size=128)

    def step(carry, _):
        params, states = carry
        values, grads = jax.vmap(jax.value_and_grad(loss))(jax.tree.map(lambda *x: jnp.stack(x), *params))
        parts = (jax.tree.map(lambda g, i=i: g[i], grads) for i in range(2))
        after = [tx.apply(g, s, p)[:2] for tx, g, s, p in zip(both, parts, states, params)]
        return tuple(zip(*after)), values

    def curves(p):
        return jax.lax.scan(step, ((p, p), tuple(tx.init(p) for tx in both)), length=60)[1]

    whole, coded = np.asarray(jax.jit(curves)(start)).T
    assert whole[-1] < 1.0  # from 4.2
    # Within 5 % while there is something to learn; below a tenth of the start both jitter about their floor.
    falling = whole > 0.1 * whole[0]
    np.testing.assert_allclose(coded[falling], whole[falling], rtol=0.05)
    assert coded[~falling].max(initial=0) < 0.1 * whole[0] * 1.05


def test_whatever_says_what_its_moments_are():
    p = {"w": jnp.ones((8, 64))}
    for tx in (
        optax.adamw(1e-2),
        optimizers.sgd(0.1, 0.9),
        optimizers.muon(0.1),
        optimizers.soap(1e-2),
        optax.lion(1e-3),
    ):
        state = jax.eval_shape(T.quantize_state(tx, min_size=1).init, p)
        kinds = {x.dtype for x in jax.tree.leaves(state) if x.shape == (8, 64)}
        assert kinds == {np.dtype("uint8")}, tx
    # An average of the parameters is none, however like one it looks.
    state = jax.jit(T.quantize_state(ft.chain(optimizers.adam(0.1), ft.ema(0.9)), min_size=1).init)(p)
    np.testing.assert_array_equal(ft.averaged(state)["w"], p["w"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: T.quantize_state(optimizers.adam(0.1), bits=4), "`bits` must be one of 8"),
        (lambda: T.quantize_state(optimizers.adam(0.1), block=0), "`block` must be"),
        (lambda: T.quantize_state(optimizers.sgd(0.1)).init({"w": jnp.ones(4)}), "keeps no moments"),
        (lambda: T.quantize_state(ft.MultiSteps(optimizers.adam(0.1), 2)), "put it outside"),
        (
            lambda: T.quantize_state(ft.skip_nonfinite(optimizers.adam(0.1))),
            r"skip_nonfinite\(quantize_state",
        ),
        (
            lambda: T.quantize_state(optax.MultiSteps(optax.adam(0.1), 2)).init({"w": jnp.ones(4)}),
            "holds gradients",
        ),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
