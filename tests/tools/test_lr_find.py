"""lr_find, against plain SGD in NumPy on problems whose best rate is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain import transforms as T
from fntrain.tools.lr_find import LRFinding, _average, lr_find, smoothed, suggestion

RATES = np.geomspace(1e-7, 10, 100).astype(np.float32)


def quadratic(params, batch, ctx):
    return batch + 0.5 * jnp.sum(params["curvature"] * params["x"] ** 2)


def start(task, curvature):
    curvature = jnp.asarray(curvature, jnp.float32)
    # The curvature travels with the parameters, frozen: one loss function, and one program, for all.
    return ft.init_state(task, {"x": jnp.ones(curvature.shape), "curvature": curvature})


def frozen(tx):
    return ft.transforms.freeze(tx, "curvature")


def simulated(curvature, rates, momentum=0.0):
    """The loss after an update with each rate, in float64."""
    curvature = np.asarray(curvature, np.float64)
    x, v, losses = np.ones_like(curvature), 0.0, []
    for rate in rates:
        v = momentum * v + curvature * x
        x = x - rate * v
        losses.append(0.5 * np.sum(curvature * x**2))
    return np.array(losses)


def sweep(tx, curvature, state_change=lambda s: s, **arguments):
    task = ft.Task(quadratic, frozen(tx))
    return lr_find(task, state_change(start(task, curvature)), jnp.zeros(64), **arguments)


SPECTRA = {
    "1": [1.0],
    "1/2": [0.5],
    "100": [100.0],
    "1 and 10": [1.0, 10.0],
    "decades": [0.01, 0.1, 1.0],
    "even": np.linspace(0.1, 5, 20),
    "geometric": np.geomspace(0.001, 50, 30),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_on_a_quadratic_it_finds_the_inverse_of_the_largest_curvature(name):
    found = sweep(ft.optimizers.sgd(0.1), SPECTRA[name])
    assert 1 / 3 < found.suggestion * np.max(SPECTRA[name]) < 3
    # Wherever the loss has its zero: a minimum above it, or far below.
    for offset in (0.1, 10.0, -100.0):
        losses = simulated(SPECTRA[name], RATES) + offset * np.max(SPECTRA[name])
        assert 1 / 3 < suggestion(RATES, losses) * np.max(SPECTRA[name]) < 3


def test_the_usual_rule_would_not():
    # A broken specimen: where the loss itself, and not its logarithm, falls most steeply is ten times too low.
    for curvature in SPECTRA.values():
        losses = simulated(curvature, RATES)
        steepest = RATES[np.argmin(np.gradient(np.minimum(losses, losses[0])))]
        assert steepest * np.max(curvature) < 1 / 3


def bias_and_kernel(params, batch, ctx):
    return jnp.full(batch.shape, 0.5 * jnp.sum(params["bias"] ** 2) + 0.5 * jnp.sum(params["kernel"] ** 2))


OPTIMIZERS = {
    "a number": (lambda: ft.optimizers.sgd(0.3), {}),
    "momentum": (lambda: ft.optimizers.sgd(0.3, momentum=0.5), dict(momentum=0.5)),
    "a warm-up from zero": (
        lambda: ft.optimizers.sgd(ft.schedules.warmup(ft.schedules.cosine(0.3, 50), 10)),
        {},
    ),
    "a foreign schedule that ends at zero": (
        lambda: ft.optimizers.sgd(optax.linear_schedule(0.0, 0.2, 5)),
        {},
    ),
    "a peak between powers of two": (
        lambda: ft.optimizers.sgd(ft.schedules.piecewise(0.0, {100: 0.0})),
        None,
    ),
    "in a chain, in MultiSteps, in a guard": (
        lambda: T.skip_nonfinite(ft.MultiSteps(ft.chain(ft.clip_by_norm(1e30), ft.optimizers.sgd(0.3)), 1)),
        {},
    ),
    "by_path, with a slash": (lambda: T.by_path({"x|a/b": ft.optimizers.sgd(0.3)}), {}),
    "in the state": (lambda: T.with_hyperparams(ft.optimizers.sgd, learning_rate=0.3), {}),
    "optax's, in the state": (lambda: T.with_hyperparams(optax.sgd, learning_rate=0.3), {}),
    "of one's own": (lambda: T.transform(lambda rate: ft.chain(T.scale_by_learning_rate(rate)))(0.3), {}),
}


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if OPTIMIZERS[n][1] is not None])
def test_the_rates_are_those_it_says(name):
    make, arguments = OPTIMIZERS[name]

    def used_before(state):
        """A state that a controller had set something in."""
        if T.ScaleByLearningRateState in {type(x) for _, x in ft.tree.named_nodes(state.opt_state)}:
            state = T.set_multiplier(state, 0.01)
        return state

    found = sweep(make(), [1.0, 4.0], used_before, lowest=1e-3, highest=0.4, steps=20)
    rates = np.geomspace(1e-3, 0.4, 20)
    np.testing.assert_allclose(found.learning_rates, rates, rtol=1e-6)
    np.testing.assert_allclose(found.losses, simulated([1.0, 4.0], rates, **arguments), rtol=1e-5)


def test_groups_keep_their_ratios():
    tx = T.by_path(
        {"bias": ft.optimizers.sgd(ft.schedules.linear(0.1, 0.0, 9)), "kernel": ft.optimizers.sgd(0.2)}
    )
    task = ft.Task(bias_and_kernel, tx)
    state = ft.init_state(task, {"bias": jnp.float32(1), "kernel": jnp.float32(1)})
    found = lr_find(task, state, jnp.ones(64), lowest=0.1, highest=1.0, steps=10)
    bias = np.cumprod(1 - found.learning_rates.astype(np.float64) / 2)
    kernel = np.cumprod(1 - found.learning_rates.astype(np.float64))
    np.testing.assert_allclose(found.losses, 0.5 * (bias**2 + kernel**2), rtol=1e-5, atol=1e-12)


def test_the_state_is_as_it_was_and_one_program_does_it():
    traces = 0

    def counted(params, batch, ctx):
        nonlocal traces
        traces += 1
        noise = jax.random.normal(ctx.key, batch.shape)
        return batch * params["w"] ** 2 + noise

    task = ft.Task(counted, ft.optimizers.adam(0.1, b1=0.5))
    state, _ = ft.train_step(task, ft.init_state(task, {"w": jnp.ones(())}), jnp.ones(4))
    before = jax.tree.map(
        lambda x: np.array(jax.random.key_data(x) if x.dtype == state.key.dtype else x), state
    )
    traces = 0
    data = np.arange(10, dtype=np.float32)
    found = lr_find(task, state, data, batch_size=4, seed=3)
    assert traces <= 3  # what the loss returns, its shapes, and the program: not one a step
    after = jax.tree.map(
        lambda x: np.array(jax.random.key_data(x) if x.dtype == state.key.dtype else x), state
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert np.array_equal(lr_find(task, state, data, batch_size=4, seed=3).losses, found.losses)
    assert not np.array_equal(lr_find(task, state, data, batch_size=4, seed=4).losses, found.losses)
    assert found.losses.dtype == found.learning_rates.dtype == np.float32
    assert len(found.losses) == len(found.learning_rates) == 100
    np.testing.assert_allclose(found.learning_rates, RATES)


def test_data_in_every_form():
    x = np.arange(12, dtype=np.float32)
    task = ft.Task(lambda p, b, ctx: b * p["w"] ** 2, ft.optimizers.sgd(0.1))
    state = ft.init_state(task, {"w": jnp.ones(())})
    whole = lr_find(task, state, x, steps=10, batch_size=12).losses  # 11 batches from one an epoch
    # Full batches: their order in a batch does not matter, up to rounding.
    forms = [ft.data_loader(x, 12), [x], lambda epoch: iter([x])]
    for data in forms:
        np.testing.assert_allclose(lr_find(task, state, data, steps=10).losses, whole, rtol=1e-5)
    with pytest.raises(ft.DataError, match="`data` gave 2 whole batches of the 11"):
        lr_find(task, state, iter([x, x]), steps=10)
    # A padded tail weighs nothing where the loss tells rows apart, and is left out where it does not.
    seen = lr_find(
        task, state, np.ones(5, np.float32), steps=10, batch_size=4, lowest=1e-7, highest=2e-7
    ).losses
    np.testing.assert_allclose(seen, 1.0, rtol=1e-4)
    scalar = ft.Task(lambda p, b, ctx: jnp.mean(b) * p["w"] ** 2, ft.optimizers.sgd(0.1))
    seen = lr_find(
        scalar, state, np.ones(5, np.float32), steps=10, batch_size=4, lowest=1e-7, highest=2e-7
    ).losses
    np.testing.assert_allclose(seen, 1.0, rtol=1e-4)
    with pytest.raises(ft.DataError, match="gave 0 whole batches"):
        lr_find(scalar, state, np.ones(5, np.float32), steps=10, batch_size=8)


def test_foreign_optimizers_are_refused_with_the_way_out():
    for tx in (optax.adam(0.1), ft.chain(ft.clip_by_norm(1.0), optax.sgd(0.1))):
        with pytest.raises(ft.ConfigError, match=r"with_hyperparams\(optax.adam, learning_rate=1e-3\)"):
            sweep(tx, [1.0])
    # One of ours in a foreign chain: its state is there, but not the schedule.
    with pytest.raises(ft.ConfigError, match="belongs to no stage that can be seen"):
        sweep(optax.chain(ft.optimizers.sgd(0.1)), [1.0])
    for tx in (ft.optimizers.sgd(0.0), OPTIMIZERS["a peak between powers of two"][0]()):
        with pytest.raises(ft.ConfigError, match="zero wherever"):
            sweep(tx, [1.0])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lowest", dict(lowest=0.0)),
        ("highest", dict(lowest=1e-3, highest=1e-3)),
        ("highest", dict(highest=np.inf)),
        ("steps", dict(steps=9)),
        ("steps", dict(steps=50.0)),
        ("batch_size", dict(batch_size=0)),
        ("seed", dict(seed=-1)),
    ],
)
def test_bad_arguments_are_named(name, arguments):
    with pytest.raises(ft.ConfigError, match=f"`{name}`"):
        sweep(ft.optimizers.sgd(0.1), [1.0], **arguments)


def test_suggestions():
    # Falling in proportion to the rate, steepest in log at 0.1; the lowest point at 0.5; then up.
    at = np.log10(RATES)
    curve = 2 - np.tanh((at + 1) * 2) + 30 * np.maximum(at + 0.3, 0) ** 2
    found = suggestion(RATES, curve.astype(np.float32))
    assert 0.05 < found < 0.2
    # What comes after the loss stopped being finite does not count, however low it is.
    cut = curve.copy()
    cut[at > 0.3] = np.nan
    assert suggestion(RATES, cut) == pytest.approx(found)
    cut[at > 0.5] = 1e-6
    assert suggestion(RATES, cut) == pytest.approx(found)
    cut[(at > 0.3) & (at <= 0.5)] = np.inf
    assert suggestion(RATES, cut) == pytest.approx(found)
    # Nor after it has exploded.
    cut[at > 0.3] = 1e-6
    cut[np.argmax(at > 0.3)] = 100
    assert suggestion(RATES, cut) == pytest.approx(found)
    # Below zero as above it, where there is no logarithm.
    assert 0.02 < suggestion(RATES, curve - 10) < 0.3
    # Nothing falls: nothing is suggested.
    assert suggestion(RATES, np.ones(100)) is None
    assert suggestion(RATES, 1 + RATES.astype(np.float64)) is None
    assert suggestion(RATES, np.full(100, np.nan)) is None
    assert suggestion(RATES, np.r_[1.0, 1.0, np.full(98, np.inf)]) is None


def test_smoothing_is_corrected_and_does_not_move_the_curve():
    ones = smoothed(np.ones(7))
    np.testing.assert_allclose(ones, 1.0, rtol=1e-12)
    bump = np.exp(-0.5 * ((np.arange(101) - 50) / 6.0) ** 2)
    assert int(np.argmax(smoothed(bump))) == 50
    assert int(np.argmax(_average(bump))) > 52  # one direction alone comes late
    x = np.random.default_rng(0).normal(size=9)
    forward = [np.average(x[: i + 1], weights=0.8 ** np.arange(i, -1, -1)) for i in range(9)]
    np.testing.assert_allclose(_average(x), forward, rtol=1e-12)


def test_a_loss_that_is_never_finite():
    found = sweep(ft.optimizers.sgd(0.1), [np.nan])
    assert found.suggestion is None
    assert np.isnan(found.losses).all()
    assert "suggestion=none" in repr(found)


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    found = sweep(ft.optimizers.sgd(0.1), [1.0])
    figure = found.plot(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").stat().st_size > 1000
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_title().startswith("suggested learning rate")
    marks = [line.get_xdata()[0] for line in axes.lines[1:]]
    assert marks == [found.suggestion]
    none = LRFinding(RATES, np.full(100, np.nan, np.float32), None)
    assert none.plot().axes[0].get_title() == "the loss falls at no learning rate"
    with pytest.raises(ft.DataError):
        ft.plots.lr_finding([1.0], [1.0, 2.0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_on_the_digits_it_is_near_the_best_of_a_grid(name):
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    data = {"x": (x / 16).astype(np.float32), "y": y.astype(np.int32)}

    def params(key):
        a, b = jax.random.split(key)
        return {
            "w1": jax.random.normal(a, (64, 48)) / 8,
            "b1": jnp.zeros(48),
            "w2": jax.random.normal(b, (48, 10)) / 7,
            "b2": jnp.zeros(10),
        }

    def loss_fn(p, batch, ctx):
        hidden = jax.nn.relu(batch["x"] @ p["w1"] + p["b1"][None])
        return ft.losses.cross_entropy(hidden @ p["w2"] + p["b2"][None], batch["y"])

    tx = T.with_hyperparams(getattr(ft.optimizers, name), learning_rate=0.1)
    task = ft.Task(loss_fn, tx)
    state = ft.init_state(task, params, key=1)
    grid = 10.0 ** np.arange(-4, 1.1, 0.5)
    # A grid's runs in one program: the rate is data.
    loader = ft.data_loader(data, 32, seed=1)
    pairs = [pair for _ in range(3) for pair in loader]
    batches, weights = jax.tree.map(lambda *xs: np.stack(xs), *pairs)

    def final(rate):
        trained, _ = ft.train_steps(task, T.set_hyperparams(state, learning_rate=rate), batches, weights)
        return ft.compute_metrics(task, ft.eval_step(task, trained, data))["loss"]

    losses = np.asarray(jax.jit(lambda rates: jax.lax.map(final, rates))(jnp.asarray(grid, jnp.float32)))
    best = grid[np.nanargmin(losses)]
    assert losses.min() < 0.3 < 2 < np.nanmax(losses)  # the grid tells rates apart
    for seed in range(3):
        found = lr_find(task, state, data, seed=seed)
        assert best / 10 <= found.suggestion <= best * 10
    # And the plain optimizer, whose rate is no data, has the same curve.
    plain = ft.Task(loss_fn, getattr(ft.optimizers, name)(ft.schedules.warmup(0.1, 10)))
    same = lr_find(plain, ft.init_state(plain, params, key=1), data, seed=2)
    np.testing.assert_allclose(same.losses[:60], found.losses[:60], rtol=1e-4)
