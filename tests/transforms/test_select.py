"""by_path and freeze: each leaf has the transform it was given, and nothing else touches it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain import ConfigError, optimizers, transforms as T


def params():
    return {
        "encoder": {"0": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.array([-0.0, 1.0])}},
        "head": {"kernel": jnp.full((2,), 4.0), "bias": jnp.array([5.0])},
    }


def bits(tree):
    return {path: np.asarray(x).tobytes() for path, x in ft.tree.items(tree)}


def by_hand(p, g, rate):
    return p - rate * g


def test_first_match_wins():
    p = params()
    g = jax.tree.map(jnp.ones_like, p)
    tx = T.by_path({"bias": optimizers.sgd(1.0), "^head/": optimizers.sgd(0.5), ".*": optimizers.sgd(0.25)})
    updates, _ = jax.jit(tx.update)(g, tx.init(p), p)
    assert {path: float(x.ravel()[0]) for path, x in ft.tree.items(updates)} == {
        "encoder/0/bias": -1.0,
        "encoder/0/kernel": -0.25,
        "head/bias": -1.0,
        "head/kernel": -0.5,
    }


def test_groups_are_what_the_same_transforms_do_on_their_own_trees():
    p = params()
    tx = T.by_path(
        {"head": optimizers.adamw(0.1), ".*": T.chain(T.clip_by_norm(1.0), optimizers.sgd(0.1, 0.9))}
    )
    alone = {
        "head": (optimizers.adamw(0.1), {"head": p["head"]}),
        "encoder": (T.chain(T.clip_by_norm(1.0), optimizers.sgd(0.1, 0.9)), {"encoder": p["encoder"]}),
    }
    state = tx.init(p)
    states = {k: t.init(q) for k, (t, q) in alone.items()}
    for i in range(3):
        g = jax.tree.map(lambda x: jnp.cos(x + i), p)
        updates, state = tx.update(g, state, p)
        for k, (t, q) in alone.items():
            want, states[k] = t.update({k: g[k]}, states[k], q)
            assert bits({k: updates[k]}) == bits(want)  # the norm that is clipped is the group's own


def test_the_state_holds_each_leaf_once():
    p = params()
    tx = T.by_path({"head": optimizers.adam(0.1), ".*": optimizers.adam(0.1)})
    state = tx.init(p)
    assert list(state) == ["head", ".*"]
    nu = {pattern: s["scale_by_adam"].nu for pattern, s in state.items()}
    assert ft.tree.paths(nu["head"]) == ["head/bias", "head/kernel"]
    assert ft.tree.paths(nu[".*"]) == ["encoder/0/bias", "encoder/0/kernel"]
    frozen = T.freeze(optimizers.adam(0.1), "encoder").init(p)
    assert ft.tree.paths(frozen["scale_by_adam"].mu) == ["head/bias", "head/kernel"]


def test_against_optax_partition():
    p = params()
    labels = {"encoder": {"0": {"kernel": "w", "bias": "b"}}, "head": {"kernel": "w", "bias": "b"}}
    theirs = optax.partition({"w": optax.adam(0.1), "b": optax.sgd(0.5, momentum=0.9)}, labels)
    mine = T.by_path({"bias": optimizers.sgd(0.5, 0.9), "kernel": optimizers.adam(0.1)})
    q, s, r = p, mine.init(p), theirs.init(p)
    for _ in range(4):
        p, s, _ = mine.apply(jax.tree.map(lambda x: x / 2 + 1, p), s, p)
        with jax.numpy_dtype_promotion("standard"):
            updates, r = theirs.update(jax.tree.map(lambda x: x / 2 + 1, q), r, q)
        q = optax.apply_updates(q, updates)
    for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q)):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("form", ["update", "apply"])
def test_frozen_leaves_are_bit_identical(form):
    # Negative zero included, which p + 0.0 would turn; and NaN in a frozen gradient is nobody's business.
    p = params()
    tx = T.freeze(T.chain(T.clip_by_norm(1.0), optimizers.adamw(0.1, weight_decay=0.5)), "encoder")
    state = tx.init(p)
    q = p
    for _ in range(3):
        g = jax.tree.map(jnp.ones_like, q)
        g["encoder"] = jax.tree.map(lambda x: x * jnp.nan, g["encoder"])
        if form == "update":
            updates, state = jax.jit(tx.update)(g, state, q)
            q = optax.apply_updates(q, updates)
        else:
            q, state, applied = jax.jit(tx.apply)(g, state, q)
            assert applied
    assert bits(q["encoder"]) == bits(p["encoder"])
    assert bits(q["head"]) != bits(p["head"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(q["head"]))


def test_frozen_leaves_are_out_of_the_norm():
    p = params()
    g = {"encoder": jax.tree.map(lambda x: jnp.full_like(x, 100.0), p["encoder"]), "head": p["head"]}
    tx = T.freeze(T.chain(T.clip_by_norm(1.0), optimizers.sgd(1.0)), "^encoder/")
    updates, state = tx.update(g, tx.init(p), p)
    norm = np.sqrt(4.0**2 * 2 + 5.0**2)
    assert float(state["clip_by_norm"].grad_norm) == pytest.approx(norm, rel=1e-6)
    np.testing.assert_allclose(updates["head"]["kernel"], -4.0 / norm, rtol=1e-6)


def test_frozen_several():
    p = params()
    tx = T.freeze(optimizers.sgd(1.0), ["bias$", "(?i)^HEAD"])
    q, _, _ = tx.apply(jax.tree.map(jnp.ones_like, p), tx.init(p), p)
    changed = [path for path in bits(p) if bits(p)[path] != bits(q)[path]]
    assert changed == ["encoder/0/kernel"]


def test_the_backward_pass_of_frozen_leaves_is_dropped():
    # Two matrices, one frozen: XLA leaves out the product that only its gradient needs.
    def step(tx):
        def loss(p, x):
            return jnp.sum(jnp.tanh(x @ p["a"]) @ p["b"])

        def run(p, s, x):
            return tx.apply(jax.grad(loss)(p, x), s, p)

        p = {"a": jnp.ones((64, 64)), "b": jnp.ones((64, 64))}
        compiled = jax.jit(run).lower(p, tx.init(p), jnp.ones((64, 64))).compile()
        return compiled.cost_analysis()["flops"]

    product = 2 * 64**3
    full, frozen = step(optimizers.sgd(0.1)), step(T.freeze(optimizers.sgd(0.1), "b"))
    assert full - frozen > 0.9 * product


def test_none_and_integer_leaves_are_carried():
    p = {"w": jnp.ones(2), "none": None, "v": jnp.ones(2)}
    for tx in (
        T.freeze(optimizers.adam(0.1), "w"),
        T.by_path({"w": optimizers.sgd(0.1), ".*": optimizers.adam(0.1)}),
    ):
        q, _, _ = tx.apply(p, tx.init(p), p)
        assert q["none"] is None
        assert set(q) == {"w", "none", "v"}


def test_in_train_step():
    task = ft.Task(
        lambda p, b, ctx: ft.losses.mse(b @ p["head"]["w"] + jnp.sum(p["encoder"]), b[:, 0]),
        T.freeze(T.chain(T.clip_by_norm(1.0), optimizers.adamw(0.1)), "encoder"),
    )
    p = {"encoder": jnp.array([-0.0, 2.0]), "head": {"w": jnp.ones(3)}, "n": jnp.arange(2)}
    state = ft.init_state(task, p)
    for i in range(3):
        state, metrics = ft.train_step(task, state, jnp.ones((4, 3)) * i)
    assert bits(state.params["encoder"]) == bits(p["encoder"])
    assert bits(state.params["head"]) != bits(p["head"])
    assert "grad_norm" in ft.compute_metrics(task, metrics)


@pytest.mark.parametrize("wrap", ["by_path", "freeze"])
def test_windows_inside(wrap):
    # Two groups that accumulate over different windows; flush closes both.
    p = {"a": jnp.array([1.0]), "b": jnp.array([1.0]), "c": jnp.array([1.0])}
    slow = T.MultiSteps(optimizers.sgd(1.0), 3)
    tx = {
        "by_path": lambda: T.by_path(
            {"c": optimizers.sgd(1.0), "a": slow, "b": T.MultiSteps(optimizers.sgd(1.0), 2)}
        ),
        "freeze": lambda: T.freeze(slow, "b|c"),
    }[wrap]()
    assert tx.owns_apply
    assert tx.holds_back
    apply = jax.jit(tx.apply)
    state, seen = tx.init(p), []
    for g in (1.0, 2.0, 4.0, 8.0):
        p, state, applied = apply(
            jax.tree.map(lambda x: jnp.full_like(x, g), p), state, p, weight=jnp.float32(1)
        )
        seen.append((bool(applied), *(round(float(p[k][0]), 4) for k in "abc")))
    updates, state = tx.flush(state, p)
    left = {k: round(float(v[0]), 4) for k, v in updates.items()}
    if wrap == "by_path":
        assert seen == [
            (True, 1.0, 1.0, 0.0),
            (True, 1.0, -0.5, -2.0),
            (True, round(1 - 7 / 3, 4), -0.5, -6.0),
            (True, round(1 - 7 / 3, 4), -6.5, -14.0),
        ]
        assert left == {"a": -8.0, "b": 0.0, "c": 0.0}
    else:
        a = round(1 - 7 / 3, 4)
        assert seen == [
            (False, 1.0, 1.0, 1.0),
            (False, 1.0, 1.0, 1.0),
            (True, a, 1.0, 1.0),
            (False, a, 1.0, 1.0),
        ]
        assert left == {"a": -8.0, "b": 0.0, "c": 0.0}
    updates, _ = tx.flush(state, p)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(updates))


def test_a_guard_inside_a_group():
    p = {"a": jnp.array([1.0]), "b": jnp.array([1.0])}
    tx = T.by_path({"a": T.skip_nonfinite(optimizers.sgd(1.0)), "b": optimizers.sgd(1.0)})
    q, state, applied = tx.apply({"a": jnp.array([jnp.nan]), "b": jnp.array([0.5])}, tx.init(p), p)
    assert (q["a"].tolist(), q["b"].tolist(), bool(applied)) == ([1.0], [0.5], True)
    assert int(T.recorded(state)["skipped"]) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda p: T.by_path({"head": optimizers.sgd()}).init(p),
            r"no pattern matches `encoder/0/bias`, `encoder/0/kernel`; end with `'\.\*': transform`",
        ),
        (
            lambda p: T.by_path({"decoder": optimizers.sgd(), ".*": optimizers.sgd()}).init(p),
            "`groups`: the pattern 'decoder' matches no leaf; the paths are",
        ),
        (
            lambda p: T.by_path({".*": optimizers.sgd(), "head": optimizers.sgd()}).init(p),
            "'head' only matches leaves that patterns before it take .*`head/bias`.*put it in front",
        ),
        (lambda p: T.by_path({"(": optimizers.sgd()}), "`groups`: '\\(' is not a regular expression"),
        (lambda p: T.by_path({}), "`groups` must be a dict .* with at least one entry"),
        (lambda p: T.by_path([("head", optimizers.sgd())]), "`groups` must be a dict"),
        (lambda p: T.by_path({".*": optimizers.sgd}), "looks like a factory"),
        (
            lambda p: T.freeze(optimizers.sgd(), "decoder").init(p),
            "`regex`: the pattern 'decoder' matches no leaf",
        ),
        (lambda p: T.freeze(optimizers.sgd(), ["head", "decoder"]).init(p), "'decoder' matches no leaf"),
        (lambda p: T.freeze(optimizers.sgd(), "("), "`regex`: '\\(' is not a regular expression"),
        (lambda p: T.freeze(optimizers.sgd(), []), "`regex` must be a regex or several, got none"),
        (lambda p: T.freeze("sgd", "head"), "`tx` must be a gradient transform"),
        (
            lambda p: T.by_path({".*": optimizers.sgd()}).update(p, optimizers.adam().init(p), p),
            "`opt_state` belongs to another transform",
        ),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ConfigError, match=words):
        call(params())


def test_update_without_parameters_where_none_are_needed():
    g = params()
    for tx in (T.freeze(optimizers.sgd(1.0), "head"), T.by_path({".*": optimizers.sgd(1.0)})):
        updates, _ = tx.update(g, tx.init(g))
        np.testing.assert_array_equal(updates["encoder"]["0"]["kernel"], -g["encoder"]["0"]["kernel"])


def test_groups_have_rates_decays_and_schedules_of_their_own():
    own = ft.by_path(
        {
            "bias": ft.optimizers.sgd(1.0),
            "embed": ft.optimizers.adamw(ft.schedules.linear(0.1, 0.0, 2), weight_decay=0.0),
            ".*": ft.optimizers.adamw(0.01, weight_decay=0.5),
        }
    )
    p = {name: np.full(2, 4.0, np.float32) for name in ("bias", "embed", "kernel")}
    g = {name: np.full(2, 0.25, np.float32) for name in p}
    state = own.init(p)
    first, state = own.update(g, state, p)
    second, state = own.update(g, state, p)
    want = {"bias": (-0.25, -0.25), "embed": (-0.1, -0.05), "kernel": (-0.01 - 0.01 * 0.5 * 4,) * 2}
    for name, both in want.items():
        np.testing.assert_allclose([first[name][0], second[name][0]], both, rtol=1e-5, err_msg=name)
    rates = ft.transforms.recorded(state)
    assert sorted(round(float(x), 6) for name, x in rates.items() if "learning_rate" in name) == [
        0.01,
        0.05,
        1.0,
    ]
