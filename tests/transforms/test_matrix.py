"""Muon and SOAP against NumPy written out, against what they promise, and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from fntrain import ConfigError, optimizers, schedules, sharding, transforms as T
from fntrain.tools.collectives import collectives

RNG = np.random.default_rng(0)
F32 = np.float32


def normal(*shape):
    return RNG.normal(size=shape).astype(F32)


def polar(g):
    """The nearest orthogonal matrix, by the singular value decomposition."""
    u, _, vt = np.linalg.svd(np.asarray(g, np.float64), full_matrices=False)
    return u @ vt


def iterated(g, triples):
    """The iteration as its paper has it, in float64, on the matrix as it stands."""
    x = np.asarray(g, np.float64)
    x = x / np.linalg.norm(x) / 1.01
    for a, b, c in triples:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


LEAVES = {"wide": normal(4, 7), "tall": normal(7, 4), "square": normal(5, 5), "layers": normal(3, 4, 7)}
EXACT = dict(steps=30, coefficients="newton_schulz", dtype="float32", scaling="none")


def test_orthogonalize_is_the_polar_factor_of_each_matrix():
    tx = T.orthogonalize(**EXACT)
    out, _ = tx.update(LEAVES, tx.init(LEAVES))
    for name in ("wide", "tall", "square"):
        np.testing.assert_allclose(out[name], polar(LEAVES[name]), atol=2e-5, err_msg=name)
    for got, g in zip(out["layers"], LEAVES["layers"]):
        np.testing.assert_allclose(got, polar(g), atol=2e-5)


def test_letters_say_what_a_matrix_is():
    p = {  # five matrices of one shape, which are taken together
        "query": normal(6, 2, 4),
        "joint": normal(6, 2, 2),
        "conv": normal(2, 1, 3, 4),
        "torch": normal(4, 6),
    }
    axes = {"query": "rbc", "joint": "rcc", "conv": "rrrc", "torch": "cr"}
    tx = T.orthogonalize(**{**EXACT, "scaling": "spectral"}, axes=axes)
    out, _ = jax.jit(tx.update)(p, tx.init(p))

    def check(found, matrix):
        np.testing.assert_allclose(found, polar(matrix) * np.sqrt(4 / 6), atol=2e-5)

    for head in range(2):
        check(out["query"][:, head], p["query"][:, head])
    check(out["joint"].reshape(6, 4), p["joint"].reshape(6, 4))
    check(out["conv"].reshape(6, 4), p["conv"].reshape(6, 4))
    # Rows are inputs: of a kernel kept the other way, those are the last axis.
    check(out["torch"].T, p["torch"].T)


def conditioned(rows, columns, least):
    """A matrix with singular values from 1 down to `least` of its Frobenius norm."""
    n = min(rows, columns)
    u, _ = np.linalg.qr(RNG.normal(size=(rows, n)))
    v, _ = np.linalg.qr(RNG.normal(size=(columns, n)))
    s = np.geomspace(1, least / 2, n)
    return (u * s @ v.T).astype(F32)


def singular_values(tx, g):
    out, _ = jax.jit(tx.update)({"w": g}, tx.init({"w": g}))
    return np.linalg.svd(np.asarray(out["w"], np.float64), compute_uv=False)


def test_singular_values_of_updates_are_near_one():
    tx = T.scale_by_muon(scaling="none")  # five steps in bfloat16, as it is used
    for g in (
        conditioned(24, 40, 4e-3),
        conditioned(32, 16, 4e-3),
        1e30 * normal(16, 64),
        1e-30 * normal(64, 16),
    ):
        s = singular_values(tx, g)
        assert s.min() > 0.7
        assert s.max() < 1.2
    # The check sees an iteration that has not come there: the first Muon's, on the smallest of them.
    s = singular_values(
        T.scale_by_muon(scaling="none", steps=3, coefficients="jordan"), conditioned(24, 40, 4e-3)
    )
    assert s.min() < 0.7


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_the_momentum_iterated(nesterov):
    tx = T.scale_by_muon(0.8, nesterov, dtype="float32", scaling="aspect")
    state = tx.init({"w": jnp.zeros((4, 6))})
    m = np.zeros((4, 6))
    update = jax.jit(tx.update)
    for _ in range(4):
        g = normal(4, 6)
        m = 0.8 * m + 0.2 * g
        seen = 0.8 * m + 0.2 * g if nesterov else m
        out, state = update({"w": g}, state)
        want = iterated(seen, T.COEFFICIENTS["polar_express"][:5]) * np.sqrt(6 / 4)
        np.testing.assert_allclose(out["w"], want, atol=3e-5)
    np.testing.assert_allclose(state.mu["w"], m, atol=1e-7)


def test_zero_matrices_stay_zero_and_one_bad_matrix_is_one_bad_matrix():
    g = {"a": np.zeros((3, 4), F32), "b": normal(3, 4), "c": np.full((3, 4), np.nan, F32)}
    tx = T.scale_by_muon()
    out, _ = tx.update(g, tx.init(g))
    assert not np.asarray(out["a"]).any()
    assert np.isfinite(np.asarray(out["b"])).all()
    assert np.isnan(np.asarray(out["c"])).all()


def test_muon_gives_matrices_to_muon_and_the_rest_to_adamw():
    p = {"kernel": normal(4, 6), "embedding": normal(5, 6), "bias": normal(6)}
    rate = schedules.linear(0.1, 0.0, 10)
    tx = optimizers.muon(rate, 0.01, matrices="kernel", weight_decay=0.5, dtype="float32", mask="kernel")
    g = {name: normal(*x.shape) for name, x in p.items()}
    out, state = tx.update(g, tx.init(p), p)
    ahead = iterated(g["kernel"], T.COEFFICIENTS["polar_express"][:5]) * np.sqrt(6 / 4)
    np.testing.assert_allclose(out["kernel"], -0.1 * (ahead + 0.5 * p["kernel"]), atol=3e-5)
    for name in ("embedding", "bias"):
        np.testing.assert_allclose(out[name], -0.01 * np.sign(g[name]), rtol=1e-4)
    # By default a leaf of two axes is a matrix: an embedding too, and Adam has no state for it.
    held = jax.eval_shape(optimizers.muon().init, p)
    assert held["directions"]["others"].mu["embedding"] is None
    assert state["directions"]["others"].mu["kernel"] is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: T.scale_by_muon().init({"bias": jnp.zeros(3)}),
            "`bias` of shape .* is no matrix.*optimizers.muon",
        ),
        (lambda: T.scale_by_muon(axes={"w": "rb"}), r"`axes\['w'\]` must have a letter an axis"),
        (
            lambda: T.scale_by_muon(axes={"w": "rbc"}).init({"w": jnp.zeros((2, 2))}),
            "3 letters, and `w` 2 axes",
        ),
        (lambda: T.scale_by_muon(axes={"v": "rc"}).init({"w": jnp.zeros((2, 2))}), "'v' matches no leaf"),
        (lambda: T.scale_by_muon(axes=["rc"]), "`axes` must be a dict"),
        (lambda: T.scale_by_muon(coefficients="polar"), "did you mean 'polar_express'"),
        (lambda: T.scale_by_muon(coefficients=[(1, 2)]), "`coefficients` must be one of .*, or triples"),
        (lambda: T.scale_by_muon(scaling="rmsd"), "`scaling` must be one of"),
        (lambda: T.scale_by_muon(steps=0), "`steps` must be"),
        (
            lambda: optimizers.muon(matrices="kernle").init({"kernel": jnp.zeros((2, 2))}),
            "`matrices`.*matches no",
        ),
        (lambda: optimizers.muon().init({"b": jnp.zeros(2)}), "hold no leaf of two axes"),
        (lambda: T.scale_by_soap(eps=0.0), "`eps` must be a finite number > 0"),
        (lambda: T.scale_by_soap(precondition_frequency=0), "`precondition_frequency` must be"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


# SOAP.


def numpy_soap(grads, b1, b2, eps, every, turn=(True, True)):
    """Its directions, one after another, as the paper has them, in float64."""
    n = grads[0].shape
    m, v, out = np.zeros(n), np.zeros(n), []
    grams, bases = [np.zeros((k, k)) for k in n], [np.eye(k) for k in n]
    for t, g in enumerate(grads):
        if t:
            into = bases[0].T @ g @ bases[1]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * into**2
            adam = (bases[0].T @ m @ bases[1] / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
            out.append(bases[0] @ adam @ bases[1].T)
        else:
            out.append(np.zeros(n))
        for side, square in enumerate((g @ g.T, g.T @ g)):
            grams[side] = b2 * grams[side] + (1 - b2) * square
            if not turn[side]:
                continue
            if t == 0:
                bases[side] = np.linalg.eigh(grams[side])[1]
            elif t % every == 0:
                values = np.diag(bases[side].T @ grams[side] @ bases[side])
                order = np.argsort(-values)
                v = v[order] if side == 0 else v[:, order]
                bases[side] = np.linalg.qr(grams[side] @ bases[side][:, order])[0]
    return out


def directions(tx, grads):
    update = jax.jit(tx.update)
    state, out = tx.init({"w": jnp.zeros_like(grads[0])}), []
    for g in grads:
        u, state = update({"w": jnp.asarray(g)}, state)
        out.append(np.asarray(u["w"]))
    return out


@pytest.mark.parametrize(
    ("options", "turn"),
    [({}, (True, True)), ({"one_sided": True}, (True, False)), ({"max_dim": 5}, (True, False))],
    ids=str,
)
def test_soap_is_adam_in_the_eigenbasis(options, turn):
    # Square where both sides are turned: eigenvectors of what the first gradient does not reach are anybody's choice.
    size = (4, 4) if all(turn) else (4, 6)
    grads = [RNG.normal(size=size) * np.array([3.0, 1.0, 0.3, 0.1])[:, None] for _ in range(10)]
    with jax.enable_x64(True):
        got = directions(T.scale_by_soap(0.9, 0.8, 1e-8, 3, **options), grads)
    for t, (u, want) in enumerate(zip(got, numpy_soap(grads, 0.9, 0.8, 1e-8, 3, turn))):
        np.testing.assert_allclose(u, want, atol=1e-7, err_msg=str(t))


def test_soap_without_turned_axes_is_adam_from_the_second_gradient_on():
    p = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)}
    tx, adam = T.scale_by_soap(0.9, 0.8, max_dim=1), T.scale_by_adam(0.9, 0.8)
    state, other = tx.init(p), adam.init(p)
    for t in range(4):
        g = {name: normal(*x.shape) for name, x in p.items()}
        u, state = tx.update(g, state)
        want = jax.tree.map(jnp.zeros_like, g)
        if t:
            want, other = adam.update(g, other)
        for name in p:
            np.testing.assert_allclose(u[name], want[name], rtol=2e-6, err_msg=f"{name} {t}")


def eager(jaxpr, names):
    """How often the operations are done at every update: outside of all branches."""
    found = sum(eqn.primitive.name in names for eqn in jaxpr.eqns)
    inside = [x for eqn in jaxpr.eqns if eqn.primitive.name != "cond" for x in jax.tree.leaves(eqn.params)]
    inside = [getattr(x, "jaxpr", x) for x in inside]
    return found + sum(eager(x, names) for x in inside if hasattr(x, "eqns"))


def test_a_population_turns_its_bases_when_a_run_would():
    tx, grads = T.scale_by_soap(precondition_frequency=3), RNG.normal(size=(7, 3, 4, 4)).astype(F32)
    states = jax.jit(jax.vmap(tx.init))(grads[0])
    states = states._replace(count=jnp.array([0, 0, 1]))  # the third takes its bases to be made
    alone = [jax.tree.map(lambda x, i=i: x[i], states) for i in range(3)]
    update, args = jax.vmap(tx.update), (grads[0], states)
    for _ in range(2):  # members, and members of members
        program = jax.make_jaxpr(update)(*args)
        assert "eigh" in str(program)
        assert "qr" in str(program)
        assert eager(program.jaxpr, ("eigh", "qr", "householder_product")) == 0
        update, args = jax.vmap(update), jax.tree.map(lambda x: jnp.stack([x, x]), args)
    # The broken specimen: a branch as it is everywhere else.
    plain = jax.vmap(lambda due, x: jax.lax.cond(due, lambda x: jnp.linalg.eigh(x)[1], lambda x: x, x))
    assert eager(jax.make_jaxpr(plain)(jnp.ones(3, bool), grads[0]).jaxpr, ("eigh",)) == 1
    one, all_of_them = jax.jit(tx.update), jax.jit(jax.vmap(tx.update))
    for g in grads:
        u, states = all_of_them(g, states)
        for i in range(3):
            want, alone[i] = one(g[i], alone[i])
            np.testing.assert_allclose(u[i], want, atol=2e-5)
    assert states.count.tolist() == [7, 7, 8]
    # And it can be differentiated, as an update without a branch.
    assert jax.eval_shape(jax.grad(lambda g: jnp.sum(one(g, one(g, alone[0])[1])[0])), g[0]).shape == (4, 4)


# What it costs, read from the programs: in all, and on each of eight devices.

LAYERS, ROWS, COLUMNS = 8, 32, 64
KERNELS = {f"{i}": np.zeros((ROWS, COLUMNS), F32) for i in range(LAYERS)}
TURN = 2 * LAYERS * (ROWS**3 + COLUMNS**3)  # of the bases: in the program, though not in every update
COSTS = {  # multiplications and additions of an update
    "muon": (
        lambda: T.scale_by_muon(dtype="float32"),
        2 * 5 * LAYERS * (2 * ROWS**2 * COLUMNS + ROWS**3),
        2 / 8,
    ),
    "soap": (
        lambda: T.scale_by_soap(),
        2 * LAYERS * 4 * (ROWS**2 * COLUMNS + ROWS * COLUMNS**2) + TURN,
        2.0,
    ),
}


def compiled(tx, mesh=None):
    """An update of layers that are split over a mesh, for one of its devices."""
    state = tx.init(KERNELS)
    if mesh is None:
        return jax.jit(tx.update).lower(KERNELS, state).compile()
    split = NamedSharding(mesh, P(None, "data"))
    last = lambda x: NamedSharding(mesh, P(*[None] * (x.ndim - 1), "data") if x.ndim else P())
    places = jax.tree.map(last, (KERNELS, state))
    update = jax.jit(
        tx.update, in_shardings=places, out_shardings=(jax.tree.map(lambda _: split, KERNELS), places[1])
    )
    return update.lower(KERNELS, state).compile()


@pytest.mark.parametrize("name", COSTS)
def test_cost_is_what_is_stated_and_shared_by_the_devices(name):
    make, stated, moved = COSTS[name]
    alone = compiled(make()).cost_analysis()["flops"]
    assert stated * 0.8 < alone < stated * 1.2
    mesh = sharding.mesh(data=-1)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # as a step of a state on a mesh does
        program = compiled(make(), mesh)
    assert program.cost_analysis()["flops"] < alone / 8 * 1.2
    # Only what goes to the device that works on it, and back.
    found = collectives(program.as_text())
    big = sum(c.bytes for kind, c in found.items()) / (4 * LAYERS * ROWS * COLUMNS)
    assert found.keys() <= {"all-to-all", "collective-permute", "all-reduce"}
    assert big <= moved


@pytest.mark.parametrize("make", [lambda: T.scale_by_muon(dtype="float32"), lambda: T.scale_by_soap()])
def test_what_devices_share_is_what_one_computes(make):
    """Three matrices on eight devices, five of which have a matrix of zeros."""
    tx, mesh = make(), sharding.mesh(data=-1)
    grads = [{name: normal(16, 16) for name in "abc"} for _ in range(3)]
    places = NamedSharding(mesh, P(None, "data"))

    def run(place):
        update = jax.jit(tx.update)
        state = tx.init(grads[0])
        for g in grads:
            u, state = update(jax.tree.map(place, g), state)
        return u

    alone = run(jnp.asarray)
    with jax.set_mesh(mesh):
        together = run(lambda x: jax.device_put(x, places))
    for name in "abc":
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-3, atol=1e-4)


def test_the_count_sees_work_that_is_not_shared():
    """The broken specimen: nobody says that there is a mesh; every device does it all, or tells all to the others."""
    program = compiled(T.scale_by_muon(dtype="float32"), sharding.mesh(data=-1))
    one = compiled(T.scale_by_muon(dtype="float32")).cost_analysis()["flops"]
    moved = sum(c.bytes for c in collectives(program.as_text()).values()) / (4 * LAYERS * ROWS * COLUMNS)
    assert program.cost_analysis()["flops"] > one / 8 * 1.2 or moved > 2 / 8
