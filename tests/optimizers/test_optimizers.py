"""The named optimizers, against the update rules that torch documents and against optax, over 30 steps."""

import inspect
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fntrain import ConfigError, optimizers, schedules
from fntrain.transforms import ScaleByLearningRateState, chain, clip_by_norm
from fntrain.transforms.types import nodes

STEPS = 30
RNG = np.random.default_rng(0)
START = {"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=3)}
NOISE = {k: RNG.normal(size=(STEPS, *v.shape)) for k, v in START.items()}


def gradient(p, noise):
    """A gradient that depends on where we are, so that an error anywhere moves everything behind it."""
    return noise + 0.5 * p


def path(tx, dtype=jnp.float32):
    """The parameters after each of 30 steps, `[STEPS, ...]`: one scan."""
    start = jax.tree.map(lambda x: jnp.asarray(x, dtype), START)

    def body(carry, noise):
        p, state = carry
        updates, state = tx.update(jax.tree.map(gradient, p, noise), state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), p

    noise = jax.tree.map(lambda x: jnp.asarray(x, dtype), NOISE)
    return jax.jit(lambda: jax.lax.scan(body, (start, tx.init(start)), noise)[1])()


def oracle(step):
    """The same in float64 NumPy: `step(t, p, g, memory) -> p` for one array, t from 1."""
    out = {}
    for name, p in START.items():
        memory, rows = {}, []
        for t in range(1, STEPS + 1):
            p = step(t, p, gradient(p, NOISE[name][t - 1]), memory)
            rows.append(p)
        out[name] = np.stack(rows)
    return out


def assert_paths_equal(got, want):
    # 30 float32 steps of size ~1: a rounding error of 1e-7 each, so 3e-6 leaves no room for a wrong formula.
    for name in START:
        np.testing.assert_allclose(np.asarray(got[name]), want[name], rtol=3e-6, atol=3e-6, err_msg=name)


# torch's documented rules. https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html and so on.


def torch_sgd(lr, momentum, dampening, weight_decay, nesterov):
    def step(t, p, g, m):
        if weight_decay != 0:
            g = g + weight_decay * p
        if momentum != 0:
            m["b"] = momentum * m["b"] + (1 - dampening) * g if t > 1 else g
            g = g + momentum * m["b"] if nesterov else m["b"]
        return p - lr * g

    return step


def torch_adam(lr, b1, b2, eps, decoupled=0.0):
    def step(t, p, g, m):
        p = p - lr * decoupled * p
        m["m"] = b1 * m.get("m", 0) + (1 - b1) * g
        m["v"] = b2 * m.get("v", 0) + (1 - b2) * g * g
        return p - lr * (m["m"] / (1 - b1**t)) / (np.sqrt(m["v"] / (1 - b2**t)) + eps)

    return step


def torch_rmsprop(lr, alpha, eps, momentum, centered, inside=False):
    def step(t, p, g, m):
        m["v"] = alpha * m.get("v", 0) + (1 - alpha) * g * g
        v = m["v"]
        if centered:
            m["g"] = alpha * m.get("g", 0) + (1 - alpha) * g
            v = v - m["g"] ** 2
        u = g / (np.sqrt(v + eps) if inside else np.sqrt(v) + eps)
        if momentum:
            m["b"] = u = momentum * m.get("b", 0) + u
        return p - lr * u

    return step


SGD = [
    (m, d, w, n)
    for m, d, w, n in itertools.product((0.0, 0.9), (0.0, 0.3), (0.0, 0.1), (False, True))
    if not (n and (m == 0 or d != 0))  # torch refuses these, and so do we
]


@pytest.mark.parametrize(("momentum", "dampening", "weight_decay", "nesterov"), SGD)
def test_sgd_is_torchs(momentum, dampening, weight_decay, nesterov):
    arguments = (0.1, momentum, dampening, weight_decay, nesterov)
    assert_paths_equal(path(optimizers.sgd(*arguments)), oracle(torch_sgd(*arguments)))


def test_the_combinations_differ():
    # What the test above rests on: no two rules give the same path.
    ends = [oracle(torch_sgd(0.1, *c))["kernel"][-1] for c in SGD if c[0] != 0 or c[1] == 0]
    for a, b in itertools.combinations(ends, 2):
        assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize("eps", [1e-8, 1e-7, 0.1])
def test_adam_is_torchs(eps):
    assert_paths_equal(path(optimizers.adam(0.05, 0.8, 0.95, eps)), oracle(torch_adam(0.05, 0.8, 0.95, eps)))


def test_adamw_is_torchs():
    tx = optimizers.adamw(0.05, 0.8, 0.95, 1e-8, weight_decay=0.3)
    assert_paths_equal(path(tx), oracle(torch_adam(0.05, 0.8, 0.95, 1e-8, decoupled=0.3)))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_rmsprop_is_torchs(momentum, centered, inside):
    tx = optimizers.rmsprop(0.01, 0.9, 1e-2, momentum, centered, eps_in_sqrt=inside)
    assert_paths_equal(path(tx), oracle(torch_rmsprop(0.01, 0.9, 1e-2, momentum, centered, inside)))


def test_centered_rmsprop_does_not_cancel():
    # A gradient of 1000 ± 0.01: v - m^2 in float32 is noise of 0.06 where the variance is 1e-4.
    g = (1000 + 0.01 * RNG.normal(size=(200, 50))).astype(np.float32)
    tx = optimizers.rmsprop(1.0, 0.5, 0.0, centered=True)

    def body(state, g):
        u, state = tx.update(g, state)
        return state, u

    got = jax.lax.scan(body, tx.init(jnp.zeros(50)), jnp.asarray(g))[1]
    v = m = 0.0
    for x in g.astype(np.float64):
        v, m = 0.5 * v + 0.5 * x * x, 0.5 * m + 0.5 * x
    want = -g[-1] / np.sqrt(v - m * m)
    np.testing.assert_allclose(got[-1], want, rtol=2e-2)  # float32 leaves g - m 6e-5 of 1e-2


COSINE = schedules.cosine(0.05, 25)
AGAINST_OPTAX = {
    "sgd": (optimizers.sgd(0.1), optax.sgd(0.1)),
    "sgd scheduled": (optimizers.sgd(COSINE, 0.9, nesterov=True), optax.sgd(COSINE, 0.9, nesterov=True)),
    "adam": (optimizers.adam(0.05), optax.adam(0.05)),
    "adam scheduled": (optimizers.adam(COSINE, b1=0.5), optax.adam(COSINE, b1=0.5)),
    "adamw": (optimizers.adamw(COSINE, weight_decay=0.2), optax.adamw(COSINE, weight_decay=0.2)),
    "adamw masked": (
        optimizers.adamw(0.05, weight_decay=0.2, mask="kernel"),
        optax.adamw(0.05, weight_decay=0.2, mask={"kernel": True, "bias": False}),
    ),
    "rmsprop": (optimizers.rmsprop(0.01, eps_in_sqrt=True, eps=1e-3), optax.rmsprop(0.01, eps=1e-3)),
    "rmsprop outside": (
        optimizers.rmsprop(0.01, eps=1e-3, momentum=0.5),
        optax.rmsprop(0.01, eps=1e-3, momentum=0.5, eps_in_sqrt=False),
    ),
    "rmsprop centered": (
        optimizers.rmsprop(0.01, eps=1e-2, centered=True, eps_in_sqrt=True),
        optax.rmsprop(0.01, eps=1e-2, centered=True),
    ),
    "lion": (optimizers.lion(0.01, weight_decay=0.1), optax.lion(0.01, weight_decay=0.1)),
    "adafactor": (optimizers.adafactor(0.05), optax.adafactor(0.05)),
    "adafactor factored": (
        optimizers.adafactor(COSINE, min_dim_size_to_factor=2, decay_rate=0.6, clipping_threshold=0.5),
        optax.adafactor(COSINE, min_dim_size_to_factor=2, decay_rate=0.6, clipping_threshold=0.5),
    ),
    "adafactor absolute": (
        optimizers.adafactor(0.05, multiply_by_parameter_scale=False, clipping_threshold=None),
        optax.adafactor(0.05, multiply_by_parameter_scale=False, clipping_threshold=None),
    ),
}


@pytest.mark.parametrize("name", AGAINST_OPTAX)
def test_agrees_with_optax(name):
    mine, theirs = AGAINST_OPTAX[name]
    # optax in float64: in float32 its 1 - b2**t alone is off by 6e-5.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        want = jax.tree.map(np.asarray, path(theirs, jnp.float64))
    assert_paths_equal(path(mine), want)


def test_adafactor_decay_is_decoupled_and_scaled_by_the_rate():
    p = {"w": jnp.full((4,), 2.0)}
    tx = optimizers.adafactor(0.5, weight_decay=0.1)
    plain = optimizers.adafactor(0.5)
    u, _ = tx.update(p, tx.init(p), p)
    v, _ = plain.update(p, plain.init(p), p)
    np.testing.assert_allclose(u["w"] - v["w"], -0.5 * 0.1 * 2.0, rtol=1e-6)


def test_weight_decay_of_sgd_is_l2_and_of_adamw_is_decoupled():
    p, g = jnp.array([1.0]), jnp.array([1e-3])
    l2 = optimizers.sgd(1.0, momentum=0.5, weight_decay=0.1)
    state = l2.init(p)
    for _ in range(2):
        u, state = l2.update(g, state, p)
    np.testing.assert_allclose(u, -1.5 * (1e-3 + 0.1), rtol=1e-6)  # through the velocity
    decoupled = optimizers.adamw(1.0, weight_decay=0.1)
    u, _ = decoupled.update(g, decoupled.init(p), p)
    np.testing.assert_allclose(u, -(1.0 + 0.1), rtol=1e-4)  # not divided by Adam's root
    plain = optimizers.sgd(0.5, weight_decay=0.1)  # without momentum the two are one, but for the rate
    after, _, _ = plain.apply(g, plain.init(p), p)
    np.testing.assert_allclose(after, (1 - 0.5 * 0.1) * p - 0.5 * g, rtol=1e-6)


def test_defaults():
    def defaults(f):
        return {k: v.default for k, v in inspect.signature(f).parameters.items()}

    assert defaults(optimizers.sgd) == dict(
        learning_rate=0.01, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False
    )
    assert defaults(optimizers.adam) == dict(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-8)
    assert defaults(optimizers.adamw) == dict(
        learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4, mask=None
    )
    assert defaults(optimizers.rmsprop) == dict(
        learning_rate=0.001, decay=0.9, eps=1e-8, momentum=0.0, centered=False, eps_in_sqrt=False
    )


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_an_optimizer_is_a_value(name):
    make = optimizers.OPTIMIZERS[name]
    a, b = make(learning_rate=0.25), make(0.25)
    assert a == b
    assert hash(a) == hash(b)
    assert a != make(0.5)
    assert repr(a) == f"{name}(learning_rate=0.25)"
    assert pickle.loads(pickle.dumps(a)) == a
    assert optimizers.get(name, lr=0.25) == a
    assert list(chain(clip_by_norm(1.0), a).stages) == ["clip_by_norm", name]


def test_spellings():
    canonical = optimizers.adam(learning_rate=0.01, b1=0.8, b2=0.9, eps=1e-7)
    assert optimizers.adam(lr=0.01, beta_1=0.8, beta_2=0.9, epsilon=1e-7) == canonical
    assert optimizers.adam(0.01, beta1=0.8, beta2=0.9, epsilon=1e-7) == canonical
    assert optimizers.rmsprop(alpha=0.99) == optimizers.rmsprop(rho=0.99) == optimizers.rmsprop(decay=0.99)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: optimizers.adam(0.01, lr=0.1), "`learning_rate` and `lr` of adam are the same"),
        (lambda: optimizers.adam(beta1=0.9, beta_1=0.9), "`beta1` and `beta_1` of adam are the same"),
        (lambda: optimizers.get("adam", b1=0.9, beta1=0.9), "`b1` and `beta1` of adam are the same"),
        (
            lambda: optimizers.adam(nesterov=True),
            "`nesterov` is no argument of adam, which has `learning_rate`",
        ),
        (lambda: optimizers.sgd(beta1=0.9), "`beta1` is no argument of sgd"),
        (lambda: optimizers.adam(learning_rat=0.9), "did you mean 'learning_rate'"),
        (lambda: optimizers.get("adamv"), "did you mean 'adam"),
        (lambda: optimizers.get(None), "`name` must be one of 'sgd'"),
        (lambda: optimizers.sgd(0.1, nesterov=True), "needs `momentum` > 0"),
        (lambda: optimizers.sgd(0.1, 0.9, 0.1, nesterov=True), "needs `dampening=0`"),
        (lambda: optimizers.sgd(-0.1), "`learning_rate` must be a finite number >= 0"),
        (lambda: optimizers.sgd(float("nan")), "`learning_rate` must be a finite number >= 0"),
        (lambda: optimizers.sgd(None), "`learning_rate` must be a finite number >= 0"),
        (lambda: optimizers.sgd(dampening=1.5), "`dampening` must be a finite number >= 0 and <= 1"),
        (lambda: optimizers.sgd(momentum=1.0), "`momentum` must be a finite number >= 0 and < 1"),
        (lambda: optimizers.adam(b1=1.5), "`b1` must be"),
        (lambda: optimizers.adam(eps=-1.0), "`eps` must be"),
        (lambda: optimizers.lion(b2=1.0), "`b2` must be"),
        (lambda: optimizers.rmsprop(decay=-0.1), "`decay` must be"),
        (lambda: optimizers.adafactor(eps=0.0), "`eps` must be a finite number > 0"),
        (lambda: optimizers.adafactor(min_dim_size_to_factor=0), "`min_dim_size_to_factor` must be"),
        (
            lambda: optimizers.adamw(mask="kernle").init(START),
            "'kernle' matches no leaf.*did you mean 'kernel'",
        ),
        (
            lambda: optimizers.lion(mask={"kernel": True}).init(START),
            "`mask` must have the structure.*`bias`",
        ),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_presets():
    assert optimizers.get("sgd/basic") == optimizers.sgd(0.01)
    assert optimizers.get("sgd/momentum") == optimizers.sgd(0.01, 0.9)
    assert optimizers.get("sgd/fine_tuning") == optimizers.sgd(0.001, 0.9)
    assert optimizers.get("sgd/regularised") == optimizers.sgd(0.01, weight_decay=1e-4)
    assert optimizers.get("sgd/momentum", momentum=0.5, lr=0.1) == optimizers.sgd(0.1, 0.5)


def test_stages_that_do_nothing_are_left_out():
    assert list(optimizers.sgd().stages) == ["scale_by_learning_rate"]
    assert list(optimizers.sgd(0.1, 0.9, weight_decay=0.1).stages) == [
        "add_weight_decay",
        "momentum",
        "scale_by_learning_rate",
    ]


def test_the_rate_can_be_set_without_a_recompile():
    traces = []

    @jax.jit
    def step(g, state, p):
        traces.append(1)
        return tx.update(g, state, p)

    tx = optimizers.sgd(0.5)
    p = jnp.array([1.0])
    state = tx.init(p)
    first, state = step(p, state, p)
    rate = state["scale_by_learning_rate"]
    state["scale_by_learning_rate"] = rate._replace(multiplier=rate.multiplier * jnp.float32(0.1))
    second, state = step(p, state, p)
    assert float(first[0]) == -0.5
    assert float(second[0]) == pytest.approx(-0.05, rel=1e-6)
    assert float(state["scale_by_learning_rate"].learning_rate) == pytest.approx(0.05, rel=1e-6)
    assert len(traces) == 1


def test_the_rate_may_be_traced():
    p = jnp.array([1.0, 2.0])
    step = jax.jit(lambda rate: optimizers.adam(rate).update(p, optimizers.adam(rate).init(p), p)[0])
    np.testing.assert_allclose(step(0.5), [-0.5, -0.5], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(step)(jnp.array([0.5, 1.0]))[1], [-1.0, -1.0], rtol=1e-6)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_the_rate_is_a_number_an_array_or_a_schedule(name):
    make, p = optimizers.OPTIMIZERS[name], jnp.array([[1.0, -2.0]])  # a matrix, which Muon is for
    rates = (
        0.25,
        np.float64(0.25),
        jnp.float32(0.25),
        schedules.constant(0.25),
        lambda step: jnp.float32(0.25),
    )
    updates = [make(rate).update(p, make(rate).init(p), p)[0] for rate in rates]
    twice = make(learning_rate=0.5).update(p, make(0.5).init(p), p)[0]
    for u in updates:
        np.testing.assert_array_equal(u, updates[0])
        np.testing.assert_allclose(2 * u, twice, rtol=1e-6)
    assert np.all(np.asarray(u) * np.asarray(p) < 0)


def test_pairs_of_gradient_and_variable():
    # `apply_gradients(zip(grads, variables))` of other libraries: a list is a tree like any other.
    names = list(START)
    tree_of = {k: jnp.asarray(v, jnp.float32) for k, v in START.items()}
    pairs = [(tree_of[k] * 2, tree_of[k]) for k in names]
    tx = optimizers.adam(0.1)
    grads, variables = map(list, zip(*pairs))
    from_list, _, _ = tx.apply(grads, tx.init(variables), variables)
    from_dict, _, _ = tx.apply({k: 2 * v for k, v in tree_of.items()}, tx.init(tree_of), tree_of)
    for k, p in zip(names, from_list):
        np.testing.assert_array_equal(p, from_dict[k])


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_state_keeps_its_types_for_100_updates(name):
    tx = optimizers.get(name, learning_rate=1e-2)
    p = {"w": jnp.ones((3, 4), jnp.bfloat16), "b": jnp.zeros((4,), jnp.bfloat16)}
    state = tx.init(p)

    def body(carry, _):
        p, state = carry
        p, state, _ = tx.apply(jax.tree.map(lambda x: x * 2 + 1, p), state, p)
        return (p, state), None  # scan refuses a carry whose types move

    (p, after), _ = jax.lax.scan(body, (p, state), None, length=100)
    assert all(bool(jnp.all(jnp.isfinite(x.astype(jnp.float32)))) for x in jax.tree.leaves((p, after)))
    rates = nodes(after, ScaleByLearningRateState)
    assert rates
    assert {int(rate.count) for rate in rates} == {100}
