"""The cross-entropy of a linear layer, a few rows of logits at a time: as if all of them had been there."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

import fntrain as ft
from fntrain import ConfigError, DataError
from fntrain.losses import cross_entropy, linear, linear_cross_entropy

RNG = np.random.default_rng(0)
ROWS, D, V = (3, 5), 4, 7
H, K = RNG.normal(size=(*ROWS, D)), RNG.normal(size=(D, V)) * 2
Y = RNG.integers(0, V, ROWS)
W = np.where(Y == 2, 0, RNG.uniform(0.1, 3, ROWS))
CLASS = RNG.uniform(0.5, 2, V)
CLASS[1] = 0
OPTIONS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "smoothed, weighted": {"label_smoothing": 0.1, "class_weights": CLASS, "weights": W},
    "ignored": {"ignore_index": 3},
    "weighted, ignored": {"weights": W, "ignore_index": 3, "class_weights": CLASS},
}


UNEVEN = RNG.normal(size=ROWS) * 10  # cotangents that no weights have


def same_as(loss, oracle, h, k):
    """Values, weights, and gradients for the cotangents of a mean and for others, to 1e-12."""

    def pulled(of):
        def run(g, h, k):
            loss, pull = jax.vjp(of, h, k)
            zero = None if loss.weights is None else jnp.zeros_like(loss.weights)
            return loss.values, loss.weights, pull(ft.Loss(g, zero))

        return jax.jit(run)

    with jax.enable_x64(True):
        got, wanted = pulled(loss), pulled(oracle)
        w = oracle(h, k).weights
        w = np.ones(ROWS) if w is None else np.asarray(w)
        for g in (w / w.sum(), UNEVEN):
            a, b = got(g, h, k), wanted(g, h, k)
            assert jax.tree.structure(a) == jax.tree.structure(b)
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
                assert x.dtype == y.dtype == np.float64
                np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_cross_entropy_of_the_product(name):
    options = OPTIONS[name]
    same_as(
        lambda h, k: linear_cross_entropy(h, k, Y, chunk=4, **options),
        lambda h, k: cross_entropy(h @ k, Y, **options),
        H,
        K,
    )


@pytest.mark.parametrize("chunk", [1, 5, 4096])  # a row, one that divides, more than there are
def test_chunks_of_any_size(chunk):
    same_as(
        lambda h, k: linear_cross_entropy(h, k, Y, chunk=chunk), lambda h, k: cross_entropy(h @ k, Y), H, K
    )


def test_z_loss_is_the_square_of_the_normalisers_logarithm():
    def plain(h, k):
        z = jax.nn.logsumexp(h @ k, axis=-1)
        return ft.Loss(cross_entropy(h @ k, Y, label_smoothing=0.2).values + 0.3 * z**2)

    same_as(
        lambda h, k: linear_cross_entropy(h, k, Y, chunk=4, label_smoothing=0.2, z_loss=0.3),
        plain,
        H + 3,  # normalisers far from 1
        K,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_low_precision_is_in_the_factors_alone(dtype):
    """Against float64 on the same rounded numbers: products are exact in float32, and only sums there round."""
    h, k = jnp.asarray(H.reshape(-1, D), dtype), jnp.asarray(K, dtype)
    h64, k64, y = np.asarray(h, np.float64), np.asarray(k, np.float64), Y.reshape(-1)
    logits = h64 @ k64
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    slope = (p - np.eye(V)[y]) / len(y)
    loss, (by_h, by_k) = jax.jit(
        jax.value_and_grad(lambda h, k: linear_cross_entropy(h, k, y, chunk=4).mean(), (0, 1))
    )(h, k)
    assert (loss.dtype, by_h.dtype, by_k.dtype) == (jnp.float32, dtype, dtype)
    f32 = 2.0**-24
    bound = (
        8 * (D + V) * f32 * (np.abs(h64) @ np.abs(k64)).max()
    )  # a sum of D terms; then exponentials and logarithms
    np.testing.assert_allclose(loss, -np.log(p[np.arange(len(y)), y]).mean(), atol=bound, rtol=0)
    half = float(jnp.finfo(dtype).eps) / 2  # the slope is rounded once; by_h when kept and when it leaves
    around = 1.01 * (half + 4 * bound)
    error = np.abs(np.asarray(by_h, np.float64) - slope @ k64.T)
    assert (error <= around * (np.abs(slope) @ np.abs(k64.T)) + 2.01 * half * np.abs(slope @ k64.T)).all()
    error = np.abs(np.asarray(by_k, np.float64) - h64.T @ slope)
    assert (error <= around * (np.abs(h64.T) @ np.abs(slope)) + 1.01 * half * np.abs(h64.T @ slope)).all()
    if dtype == "bfloat16":  # a product that leaves in bfloat16 misses what the loss's bound allows, by far
        naive = cross_entropy(h @ k, y).mean()
        assert abs(naive + np.log(p[np.arange(len(y)), y]).mean()) > 5 * bound


def test_a_kernel_in_float32_keeps_its_gradient_there():
    h, k = jnp.asarray(H, jnp.bfloat16), jnp.asarray(K, jnp.float32)
    gradient = jax.jit(jax.grad(lambda k: linear_cross_entropy(h, k, Y).mean()))(k)
    assert gradient.dtype == jnp.float32
    assert (gradient != gradient.astype(jnp.bfloat16).astype(jnp.float32)).any()


def test_float16_gradients_do_not_underflow_among_many_rows():
    """The mean's 1 / N is applied to sums: 1e-6 of a slope of 1e-2 would be nothing in float16."""
    h, k = jnp.ones((2, D), jnp.float16), jnp.asarray(K * 0.1, jnp.float16)
    y, uneven = np.array([0, 3]), np.float32([1e-7, 3e-7])
    pull = jax.jit(lambda k, g: jax.vjp(lambda k: linear_cross_entropy(h, k, y).values, k)[1](g)[0])
    k, scale = k.astype(jnp.float32), np.float32(2.0**15)
    for g in (uneven, np.full(2, 1e-7, np.float32)):
        one, large = pull(k, g), pull(k, scale * g)
        np.testing.assert_array_equal(one * scale, large)
        assert (one != 0).all()


@pytest.fixture
def passes(monkeypatch):
    """How often the pass that makes a gradient has run."""
    ran, real = [], linear._with_gradient

    def counted(*arguments):
        jax.debug.callback(lambda: ran.append(1))
        return real(*arguments)

    monkeypatch.setattr(linear, "_with_gradient", counted)

    def count():
        jax.effects_barrier()
        n = len(ran)
        ran.clear()
        return n

    return count


def test_the_gradient_is_made_once_unless_cotangents_are_other_than_weights(passes):
    h, k = np.float32(H), np.float32(K)
    uneven = np.float32(RNG.uniform(0.5, 2, ROWS))

    def gradient(of, **options):
        return jax.jit(jax.grad(lambda h: of(linear_cross_entropy(h, k, Y, chunk=4, **options))))(h)

    for options in ({}, {"weights": np.float32(W)}, {"class_weights": CLASS, "ignore_index": 3}):
        assert np.isfinite(gradient(ft.Loss.mean, **options)).all()
        assert passes() == 1
    gradient(lambda loss: -0.37 * loss.sum())
    assert passes() == 1
    gradient(lambda loss: (loss.values * uneven).sum())
    assert passes() == 2
    linear_cross_entropy(h, k, Y)
    assert passes() == 0


def test_a_step_makes_it_once_and_again_for_a_padded_batch(passes):
    def loss_fn(params, batch, ctx):
        return linear_cross_entropy(params["table"][batch], params["head"], (batch + 1) % V, chunk=4)

    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1), microbatches=2)
    params = {"table": np.float32(RNG.normal(size=(V, D))), "head": np.float32(K)}
    state = ft.init_state(task, params)
    tokens = RNG.integers(0, V, (4, 6))
    state, _ = ft.train_step(task, state, tokens)
    assert passes() == 2  # one a micro-batch
    _, gradients = ft.compute_gradients(task, state, tokens, np.float32([1, 1, 1, 0]))
    assert passes() == 3
    plain = ft.Task(
        lambda p, t, ctx: cross_entropy(p["table"][t] @ p["head"], (t + 1) % V), task.tx, microbatches=2
    )
    _, wanted = ft.compute_gradients(plain, state, tokens, np.float32([1, 1, 1, 0]))
    for name in wanted:
        np.testing.assert_allclose(gradients[name], wanted[name], atol=1e-6)


def test_rows_that_do_not_count_may_hold_anything():
    garbage = np.where((W == 0)[..., None], np.nan, H).astype(np.float32)
    ignored = np.where(W == 0, -100, Y)
    clean = np.float32(H)

    def mean(h, k, **options):
        return linear_cross_entropy(h, k, ignored, ignore_index=-100, chunk=4, **options).mean()

    of = jax.jit(jax.value_and_grad(mean, (0, 1)))
    got, wanted = of(garbage, np.float32(K)), of(clean, np.float32(K))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(got[1][0][W == 0], 0)
    # What a step leaves out behind the loss, which the loss has counted.
    step = (W != 0).astype(np.float32)

    def stepped(h, k):
        values = linear_cross_entropy(h, k, Y, chunk=4).values
        return jnp.sum(jnp.where(step != 0, values, 0) * step)

    slopes = jax.jit(jax.grad(stepped, (0, 1)))
    for a, b in zip(slopes(garbage, np.float32(K)), slopes(clean, np.float32(K))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    nothing = jax.jit(jax.grad(lambda h, k: linear_cross_entropy(h, k, Y, weights=0 * W).mean(), (0, 1)))
    assert all((np.asarray(x) == 0).all() for x in nothing(garbage, np.float32(K)))


def test_a_label_that_is_no_class_is_nan_and_has_no_gradient():
    labels = np.where(Y == 2, V + 3, Y)
    h, k = np.float32(H), np.float32(K)
    values = jax.jit(lambda y: linear_cross_entropy(h, k, y).values)(labels)
    np.testing.assert_array_equal(np.isnan(values), Y == 2)
    gradient = jax.jit(jax.grad(lambda h, y: jnp.nansum(linear_cross_entropy(h, k, y).values)))(h, labels)
    assert (np.asarray(gradient)[Y == 2] == 0).all()
    assert np.isfinite(gradient).all()


def largest(program):
    """Elements of the largest array that a compiled program names, whatever its shape."""
    shapes = re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", program)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


def test_no_array_of_the_program_is_as_large_as_the_logits():
    n, d, v = 512, 8, 64
    h, k, y = np.ones((n, d), np.float32), np.ones((d, v), np.float32), np.arange(n) % v

    def program(loss):
        return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(h, k).compile()

    chunked = program(lambda h, k: linear_cross_entropy(h, k, y, chunk=32).mean())
    assert largest(chunked.as_text()) == n * d  # the hidden rows: more than the logits of a chunk, 32 * v
    whole = program(lambda h, k: cross_entropy(h @ k, y).mean())
    assert largest(whole.as_text()) == n * v  # and what has the logits is seen to have them
    held = [x.memory_analysis().temp_size_in_bytes for x in (chunked, whole)]
    assert held[0] < 0.65 * held[1]


@pytest.mark.parametrize(("data", "model"), [(1, 8), (2, 4), (8, 1)])
def test_rows_and_vocabulary_over_a_mesh(data, model):
    n, v = 64, 16
    h, k, y = RNG.normal(size=(n, D)), RNG.normal(size=(D, v)), RNG.integers(0, v, n)
    mesh = ft.sharding.mesh(jax.devices(), data=data, model=model)
    put = functools.partial(jax.device_put, device=None)
    split = [
        NamedSharding(mesh, P("data")),
        NamedSharding(mesh, P(None, "model")),
        NamedSharding(mesh, P("data")),
    ]
    if model == 1:
        split[1] = NamedSharding(mesh, P())
    with jax.enable_x64(True):
        given = [put(x, device=s) for x, s in zip((h, k, y), split)]
        step = jax.jit(
            jax.value_and_grad(
                lambda h, k, y: linear_cross_entropy(h, k, y, chunk=16, label_smoothing=0.1).mean(), (0, 1)
            )
        )
        program = step.lower(*given).compile()
        got = program(*given)
        whole = jax.jit(
            jax.value_and_grad(lambda h, k: cross_entropy(h @ k, y, label_smoothing=0.1).mean(), (0, 1))
        )
        wanted = whole(h, k)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    assert [x.sharding for x in got[1]] == split[:2]
    # Nothing is brought together but sums, and no device holds more than its own part of a chunk's logits.
    assert not re.search(r" (all-gather|all-to-all|collective-permute)", program.as_text())
    assert f"f64[{16 // data},{v // model}]" in program.as_text()
    assert f"f64[16,{v}]" not in program.as_text()


def test_axes_that_are_mapped_or_explicit():
    n = 16
    h, y = np.float32(RNG.normal(size=(n, D))), RNG.integers(0, V, n)
    k = np.float32(K)

    def mean(h, k, y):
        return linear_cross_entropy(h, k, y, chunk=4).mean()

    wanted = jax.jit(jax.grad(mean, (0, 1)))(h, k, y)
    mesh = ft.sharding.mesh(jax.devices()[:2])

    def over(h, k, y):
        return jax.grad(lambda h, k: jax.lax.pmean(mean(h, k, y), "data"), (0, 1))(h, k)

    split = jax.shard_map(over, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=(P("data"), P()))
    mapped = jax.jit(split).lower(h, k, y).compile()
    assert (
        mapped.as_text().count("] all-reduce(") + mapped.as_text().count("} all-reduce(") == 1
    )  # not one a chunk
    by_halves = jax.jit(jax.vmap(jax.grad(mean, (0, 1)), in_axes=(0, None, 0)))
    batched = by_halves(h.reshape(2, 8, D), k, y.reshape(2, 8))
    explicit = jax.make_mesh(
        (2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:2]
    )
    with jax.set_mesh(explicit):
        rows = [jax.device_put(x, NamedSharding(explicit, P("data"))) for x in (h, y)]
        typed = jax.jit(jax.grad(mean, (0, 1)))(
            rows[0], jax.device_put(k, NamedSharding(explicit, P())), rows[1]
        )
    for got in (
        mapped(h, k, y),
        (batched[0].reshape(n, D) / 2, batched[1].mean(0)),
        typed,
    ):
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_second_derivatives_are_those_of_cross_entropy_and_forward_mode_is_refused():
    def of(loss):
        def total(h, k):
            value, (by_h, by_k) = jax.value_and_grad(lambda h, k: loss(h, k).mean(), (0, 1))(h, k)
            return value**2 + jnp.sum(jnp.sin(7 * by_h)) + jnp.sum(jnp.sin(7 * by_k))

        return jax.jit(jax.grad(total, (0, 1)))

    with jax.enable_x64(True):
        options = {"label_smoothing": 0.1, "weights": W}
        got = of(lambda h, k: linear_cross_entropy(h, k, Y, chunk=4, **options))(H, K)
        wanted = of(lambda h, k: cross_entropy(h @ k, Y, **options))(H, K)
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda k: linear_cross_entropy(np.float32(H), k, Y).mean(), (K,), (K,))


def test_no_rows():
    loss = linear_cross_entropy(jnp.zeros((0, D)), jnp.ones((D, V)), jnp.zeros(0, int))
    assert loss.values.shape == (0,)
    gradient = jax.grad(lambda k: linear_cross_entropy(jnp.zeros((0, D)), k, jnp.zeros(0, int)).mean())
    np.testing.assert_array_equal(gradient(jnp.ones((D, V))), 0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"chunk": 0}, ConfigError, "`chunk` must be an integer >= 1, got 0"),
        ({"chunk": 2.5}, ConfigError, "`chunk` must be an integer"),
        ({"z_loss": -1.0}, ConfigError, "`z_loss` must be a finite number >= 0"),
        ({"label_smoothing": 2}, ConfigError, "`label_smoothing`"),
        ({"class_weights": np.ones(3)}, ConfigError, r"`class_weights` must have shape \[7\]"),
        ({"kernel": K.T}, DataError, r"\[3, 5, 4\] and \[7, 4\]; did you mean `kernel.T`\?"),
        ({"kernel": K[0]}, DataError, r"shapes \[…, D\] and \[D, V\]"),
        ({"hidden": Y}, DataError, "`hidden` must be floating-point, got int"),
        ({"labels": Y[0]}, DataError, r"`labels` must be integers of shape \[3, 5\], got"),
        ({"labels": np.ones((3, 5, 7))}, DataError, r"integers of shape \[3, 5\], got float"),
        ({"labels": np.full(ROWS, V)}, DataError, r"`labels` must be in \[0, 7\), got 7 at \[0, 0\]"),
        ({"weights": np.ones(4)}, DataError, "`weights` must broadcast"),
    ],
)
def test_what_does_not_fit_is_named(change, error, words):
    given = {"hidden": H, "kernel": K, "labels": Y, **change}
    with pytest.raises(error, match=words):
        linear_cross_entropy(**given)


def test_a_smoothing_that_is_traced_is_refused():
    with pytest.raises(ConfigError, match="`label_smoothing` must be a number while tracing"):
        jax.jit(lambda e: linear_cross_entropy(np.float32(H), np.float32(K), Y, label_smoothing=e).mean())(
            0.1
        )
