"""Hyperparameters as schedules, counted in optimizer updates, and as data in the state."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain import testing, transforms as T

RNG = np.random.default_rng(0)
P = {
    "kernel": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32),
    "bias": jnp.asarray(RNG.normal(size=2), jnp.float32),
}
GRADS = [jax.tree.map(lambda x: jnp.asarray(3 * RNG.normal(size=x.shape), jnp.float32), P) for _ in range(4)]


def schedule(*values):
    table = np.asarray(values, np.float32)
    return lambda step: jnp.asarray(table)[jnp.minimum(step, len(table) - 1)]


def _given_gradient(tx):
    """A transform that takes a second gradient, with a quartic's to take."""

    def value_and_grad_fn(params):
        value = sum(jnp.sum(p**4) for p in jax.tree.leaves(params))
        return value, jax.tree.map(lambda p: 4 * p**3, params)

    def update(updates, state, params=None):
        return tx.update(updates, state, params, value_and_grad_fn=value_and_grad_fn)

    return optax.GradientTransformation(tx.init, update)


# Dyadic values: 1 - b is exact whether formed before rounding or after, so equal means equal.
BETA = (0.5, 0.75, 0.875, 0.25)
SCHEDULED = {
    "max_norm of clip_by_norm": (T.clip_by_norm, {"max_norm": (1.0, 2.0, 0.5, 4.0)}, "max_norm"),
    "max_norm of clip_by_leaf_norm": (T.clip_by_leaf_norm, {"max_norm": (1.0, 2.0, 0.5, 4.0)}, "max_norm"),
    "clip_by_value": (T.clip_by_value, {"max_value": (1.0, 2.0, 0.5, 4.0)}, "max_value"),
    "add_weight_decay": (T.add_weight_decay, {"rate": (0.1, 0.2, 0.3, 0.0)}, "weight_decay"),
    "masked add_weight_decay": (
        lambda rate: T.add_weight_decay(rate, mask="kernel"),
        {"rate": (0.1, 0.2, 0.3, 0.0)},
        "weight_decay",
    ),
    "momentum": (T.momentum, {"decay": BETA}, "momentum"),
    "nesterov": (T.nesterov, {"decay": BETA}, "momentum"),
    "dampening": (lambda dampening: T.momentum(0.5, dampening=dampening), {"dampening": BETA}, "dampening"),
    # Adam's decays are no matter of one update alone: tests/transforms/test_scheduled_decay.py.
    "eps of Adam": (lambda eps: T.scale_by_adam(eps=eps), {"eps": (1e-8, 1.0, 0.0, 0.1)}, "eps"),
    "decay of rms": (T.scale_by_rms, {"decay": BETA}, "decay"),
    "eps of rms": (lambda eps: T.scale_by_rms(0.5, eps), {"eps": (1e-8, 1.0, 0.0, 0.1)}, "eps"),
    "eps of rms, centered, inside": (
        lambda eps: T.scale_by_rms(0.5, eps, eps_in_sqrt=True, centered=True),
        {"eps": (1e-8, 1.0, 0.0, 0.1)},
        "eps",
    ),
    "b1 of Lion": (lambda b1: T.scale_by_lion(b1, 0.5), {"b1": BETA}, "b1"),
    "b2 of Lion": (lambda b2: T.scale_by_lion(0.5, b2), {"b2": BETA}, "b2"),
    "dampening of sgd": (
        lambda dampening: ft.optimizers.sgd(0.5, 0.5, dampening),
        {"dampening": BETA},
        "dampening",
    ),
    "slow_step": (
        lambda slow_step: T.lookahead(ft.optimizers.sgd(0.5), 1, slow_step),
        {"slow_step": BETA},
        "slow_step",
    ),
    "rho": (
        lambda rho: _given_gradient(T.sam(ft.optimizers.sgd(0.5), rho)),
        {"rho": (0.5, 0.25, 1.0, 2.0)},
        "rho",
    ),
    "learning rate": (T.scale_by_learning_rate, {"learning_rate": (0.1, 0.2, 0.0, 4.0)}, "learning_rate"),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_schedule_is_its_value_at_each_update(name):
    """Against the same transform made anew for each update, with that update's number."""
    make, ((argument, values),), reported = SCHEDULED[name][0], SCHEDULED[name][1].items(), SCHEDULED[name][2]
    tx = make(**{argument: schedule(*values)})
    state, plain = tx.init(P), make(**{argument: values[0]}).init(P)
    assert float(T.recorded(state)[reported]) == np.float32(values[0])
    changed = 0
    for value, g in zip(values, GRADS):
        u, state = tx.update(g, state, P)
        want, plain = make(**{argument: value}).update(g, plain, P)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), u, want)
        other, _ = make(**{argument: values[0]}).update(g, plain, P)
        changed += not all(jax.tree.leaves(jax.tree.map(jnp.array_equal, u, other)))
        assert float(T.recorded(state)[reported]) == np.float32(value)
    assert changed  # or every value does the same and nothing was tested
    # Without a schedule there is nothing to report, and no count to keep.
    if reported != "learning_rate":
        assert reported not in T.recorded(plain)
    if name in ("clip_by_value", "add_weight_decay"):
        assert jax.tree.leaves(plain) == []


@pytest.mark.parametrize("name", ["dampening", "eps of Adam"])
def test_scheduled_transforms_keep_the_laws(name):
    # Scheduled limits and rates have their rows in tests/laws/test_transforms.py.
    make, ((argument, _),), _ = SCHEDULED[name][0], SCHEDULED[name][1].items(), SCHEDULED[name][2]
    testing.check_transform(lambda: make(**{argument: ft.schedules.linear(0.5, 0.25, 8)}))


def loss_fn(params, batch, ctx):
    return batch["x"] @ params["w"]


RATE = ft.schedules.warmup(ft.schedules.cosine(0.5, 6), 4)
NORM = ft.schedules.linear(4.0, 1.0, 6)
DECAY = ft.schedules.linear(0.0, 0.3, 6)


def scheduled_chain():
    return ft.chain(
        ft.clip_by_norm(NORM),
        ft.optimizers.sgd(RATE, momentum=ft.schedules.linear(0.0, 0.5, 6), weight_decay=DECAY),
    )


def batches(number, bad=()):
    x = np.random.default_rng(1).normal(size=(number, 4, 3)).astype(np.float32)
    x[list(bad)] = np.nan
    return [{"x": a} for a in x]


def run(tx, data):
    task = ft.Task(loss_fn, tx)
    state = ft.init_state(task, {"w": jnp.ones(3)})
    rows = []
    for batch in data:
        state, metrics = ft.train_step(task, state, batch)
        rows.append({"updates": int(state.updates), **ft.compute_metrics(task, metrics)})
    return state, rows


def curves(t):
    return [float(f(t)) for f in (RATE, NORM, DECAY, ft.schedules.linear(0.0, 0.5, 6))]


def reported(row):
    return [float(row[name]) for name in ("learning_rate", "max_norm", "weight_decay", "momentum")]


def test_schedules_count_applied_updates():
    # Micro-steps that close no window and skipped steps do not move any schedule. Steps 3 and 4 are bad.
    k, data = 2, batches(12, bad=(3, 4))
    _, rows = run(ft.MultiSteps(scheduled_chain(), k), [data[i] for i in range(12) if i not in (3, 4)])
    assert [r["updates"] for r in rows] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    for row in rows[1:]:
        assert reported(row) == pytest.approx(curves(row["updates"] - 1), rel=3e-7)
    assert len({tuple(reported(r)) for r in rows[1:]}) == 5

    guarded, rows = run(T.skip_nonfinite(scheduled_chain()), data)
    assert [r["updates"] for r in rows] == [1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10]
    for row in rows:
        assert reported(row) == pytest.approx(curves(row["updates"] - 1), rel=3e-7)
    # The same bits as if the bad batches had never come.
    clean, _ = run(T.skip_nonfinite(scheduled_chain()), [b for i, b in enumerate(data) if i not in (3, 4)])
    assert int(guarded.opt_state.total_skipped) == 2
    jax.tree.map(np.testing.assert_array_equal, guarded.params, clean.params)
    jax.tree.map(np.testing.assert_array_equal, guarded.opt_state.inner_state, clean.opt_state.inner_state)

    # Both: a bad micro-step is left out of its window.
    _, rows = run(T.skip_nonfinite(ft.MultiSteps(scheduled_chain(), k)), data)
    assert [r["updates"] for r in rows] == [0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    for row in rows[1:]:
        assert reported(row) == pytest.approx(curves(row["updates"] - 1), rel=3e-7)


@pytest.mark.parametrize("stop", [2, 7])
def test_a_resume_inside_a_warm_up_goes_on_bitwise(tmp_path, stop):
    # Windows of 2 and a warm-up of 4 updates: step 2 is between two, step 7 with a window open.
    task = ft.Task(loss_fn, ft.MultiSteps(scheduled_chain(), 2))
    data = {"x": np.random.default_rng(2).normal(size=(20, 3)).astype(np.float32)}
    arguments = dict(batch_size=4, progress=False)

    def start():
        return ft.init_state(task, {"w": jnp.ones(3)})

    whole = ft.fit(task, start(), data, steps=12, **arguments).state
    ft.fit(task, start(), data, steps=stop, run_dir=tmp_path / "run", **arguments)
    again = ft.fit(task, start(), data, steps=12, run_dir=tmp_path / "run", resume=True, **arguments).state
    assert int(whole.updates) == 6
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again)):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)


# With hyperparameters


def steps(tx, params, grads, change=lambda i, state: state):
    @jax.jit
    def step(g, state, p):
        u, state = tx.update(g, state, p)
        return optax.apply_updates(p, u), state

    state = tx.init(params)
    for i, g in enumerate(grads):
        state = change(i, state)
        params, state = step(g, state, params)
    return params, state


@pytest.mark.parametrize(
    ("factory", "values"),
    [
        (ft.optimizers.adamw, dict(learning_rate=0.1, weight_decay=0.25, mask="kernel")),
        (ft.optimizers.sgd, dict(learning_rate=0.1, momentum=0.75, nesterov=True)),
        (ft.optimizers.lion, dict(learning_rate=0.1, b1=0.5)),
        (
            lambda size, rate: ft.chain(ft.clip_by_norm(size), ft.optimizers.rmsprop(rate)),
            dict(size=1.0, rate=0.1),
        ),
        (lambda d: T.momentum(0.5, dampening=d), dict(d=0.25)),
        (lambda rho, lr: T.lookahead(ft.optimizers.sgd(lr), 2, rho), dict(rho=0.5, lr=0.1)),
    ],
)
def test_with_hyperparams_is_the_factorys_transform(factory, values):
    got, _ = steps(T.with_hyperparams(factory, **values), P, GRADS)
    want, _ = steps(factory(**values), P, GRADS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), got, want)


def test_a_change_is_the_other_transform():
    tx = T.with_hyperparams(ft.optimizers.sgd, learning_rate=0.5, momentum=0.0, weight_decay=0.0)

    def change(i, state):  # a zero is no reason to leave a stage out: it may become another number
        return (
            T.set_hyperparams(state, momentum=0.5, weight_decay=0.25, learning_rate=0.125)
            if i == 2
            else state
        )

    got, state = steps(tx, P, GRADS, change)
    first, _ = steps(ft.optimizers.sgd(0.5), P, GRADS[:2])
    # The velocity of a momentum of zero is the last gradient.
    p, v = first, GRADS[1]
    for g in GRADS[2:]:
        v = jax.tree.map(lambda v, g, p: 0.5 * v + g + 0.25 * p, v, g, p)
        p = jax.tree.map(lambda p, v: p - 0.125 * v, p, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, p)
    assert {k: float(x) for k, x in T.hyperparams(state).items()} == dict(
        learning_rate=0.125, momentum=0.5, weight_decay=0.25
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_they_are_float32_whatever_the_parameters_are(dtype):
    # optax's own keeps b2 = 0.999 as 1.0 in bfloat16, and returns NaN.
    params = {"w": jnp.ones(3, dtype)}
    tx = T.with_hyperparams(ft.optimizers.adam, learning_rate=1e-3, b2=0.999)
    state = T.set_hyperparams(tx.init(params), b2=0.9995)
    u, state = tx.update(params, state, params)
    assert {x.dtype for x in T.hyperparams(state).values()} == {jnp.dtype("float32")}
    assert float(T.hyperparams(state)["b2"]) == np.float32(0.9995)
    assert u["w"].dtype == dtype
    assert np.isfinite(np.asarray(u["w"], np.float32)).all()


def test_changing_a_value_compiles_nothing(caplog):
    traces = 0

    def counted(params, batch, ctx):
        nonlocal traces
        traces += 1
        return loss_fn(params, batch, ctx)

    wraps = {
        "in a chain, in MultiSteps, in a guard": lambda tx: T.skip_nonfinite(
            ft.MultiSteps(ft.chain(ft.clip_by_norm(1.0), tx), 2)
        ),
        "around MultiSteps": None,
    }
    for name, wrap in wraps.items():
        if wrap is None:
            tx = T.with_hyperparams(
                lambda learning_rate: ft.MultiSteps(ft.optimizers.adamw(learning_rate), 2), learning_rate=0.0
            )
        else:
            tx = wrap(T.with_hyperparams(ft.optimizers.adamw, learning_rate=0.0))
        task, traces = ft.Task(counted, tx), 0
        state = ft.init_state(task, {"w": jnp.ones(3)})
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            for i, batch in enumerate(batches(8)):
                caplog.clear()
                state = T.set_hyperparams(state, learning_rate=0.1 * i)
                assert isinstance(state, ft.TrainState)
                state, metrics = ft.train_step(task, state, batch)
                messages = [r.getMessage() for r in caplog.records]
                compiled = any(m.startswith("Compiling") and "_train_step" in m for m in messages)
                assert compiled == (i == 0), (name, i)
                if i % 2:
                    rate = ft.compute_metrics(task, metrics)["learning_rate"]
                    assert float(rate) == np.float32(0.1 * i), name
        assert traces == 1, name
        assert int(state.updates) == 4
        assert float(T.hyperparams(state)["learning_rate"]) == np.float32(0.7)


def test_on_a_mesh_nothing_moves():
    tx = T.with_hyperparams(ft.optimizers.sgd, learning_rate=0.5)
    task = ft.Task(loss_fn, tx)
    state = ft.init_state(task, {"w": jnp.ones(3)}, mesh=ft.sharding.mesh(data=8))
    before = state.opt_state.hyperparams["learning_rate"].sharding
    after = T.set_hyperparams(state, learning_rate=0.25).opt_state.hyperparams["learning_rate"]
    assert after.sharding == before
    assert len(after.sharding.device_set) == 8


def test_what_was_read_survives_the_next_step():
    task = ft.Task(loss_fn, T.with_hyperparams(ft.optimizers.sgd, learning_rate=0.5))
    state = ft.init_state(task, {"w": jnp.ones(3)})
    held = T.hyperparams(state)
    ft.train_step(task, state, batches(1)[0])  # donates the state
    assert float(held["learning_rate"]) == 0.5


def test_foreign_factories_report_their_rate():
    task = ft.Task(
        loss_fn, ft.chain(T.with_hyperparams(optax.sgd, learning_rate=0.5), ft.clip_by_value(100.0))
    )
    state = ft.init_state(task, {"w": jnp.ones(3)})
    x = {"x": np.ones((2, 3), np.float32)}
    state, _ = ft.train_step(task, state, x)
    state = T.set_hyperparams(state, learning_rate=0.25)
    state, metrics = ft.train_step(task, state, x)
    assert state.params["w"].tolist() == [0.25] * 3
    assert float(ft.compute_metrics(task, metrics)["learning_rate"]) == 0.25


def test_what_is_kept_in_the_state():
    def factory(rate, depth: int, width=4, mask=None, flag=True, schedule=None):
        assert isinstance(depth, int)
        assert isinstance(width, int)
        assert callable(schedule)
        return ft.optimizers.sgd(rate)

    tx = T.with_hyperparams(
        factory, rate=1, depth=2, width=3, flag=False, mask="x", schedule=ft.schedules.constant(1.0)
    )
    assert list(T.hyperparams(tx.init(P))) == ["rate"]
    assert tx.update(P, tx.init(P))[0]["bias"].tolist() == (-P["bias"]).tolist()
    # Arrays and NumPy's numbers too.
    tx = T.with_hyperparams(ft.optimizers.sgd, learning_rate=jnp.float32(0.5), momentum=np.float64(0.5))
    assert sorted(T.hyperparams(tx.init(P))) == ["learning_rate", "momentum"]


def test_a_name_in_several_places():
    tx = ft.transforms.by_path(
        {
            "bias": T.with_hyperparams(ft.optimizers.sgd, learning_rate=0.5, momentum=0.5),
            ".*": T.skip_nonfinite(T.with_hyperparams(ft.optimizers.sgd, learning_rate=0.25)),
        }
    )
    state = tx.init(P)
    assert {k: float(v) for k, v in T.hyperparams(state).items()} == {
        "bias/learning_rate": 0.5,
        ".*/learning_rate": 0.25,
        "momentum": 0.5,
    }
    state = T.set_hyperparams(state, **{"bias/learning_rate": 1.0, "momentum": 0.0})
    u, _ = tx.update(P, state, P)
    assert u["bias"].tolist() == (-P["bias"]).tolist()
    assert u["kernel"].tolist() == (-P["kernel"] * 0.25).tolist()
    with pytest.raises(ft.ConfigError, match=r"`learning_rate` is no hyperparameter .*`bias/learning_rate`"):
        T.set_hyperparams(state, learning_rate=1.0)
    # One inside the other: the outer makes the inner, and both can be changed.
    nested = T.with_hyperparams(
        lambda decay: ft.chain(
            ft.add_weight_decay(decay), T.with_hyperparams(ft.optimizers.sgd, learning_rate=0.5)
        ),
        decay=0.5,
    )
    state = T.set_hyperparams(nested.init(P), learning_rate=1.0, decay=1.0)
    assert nested.update(P, state, P)[0]["bias"].tolist() == (-2 * P["bias"]).tolist()


def test_under_vmap_each_run_has_its_own():
    tx = T.with_hyperparams(ft.optimizers.adam, learning_rate=0.5)

    def one(rate):
        state = T.set_hyperparams(tx.init(P), learning_rate=rate)
        return tx.update(GRADS[0], state, P)[0]["bias"]

    rates = jnp.asarray([0.1, 0.2, 0.4])
    got = jax.jit(jax.vmap(one))(rates)
    want = [
        ft.optimizers.adam(r).update(GRADS[0], ft.optimizers.adam(r).init(P), P)[0]["bias"]
        for r in (0.1, 0.2, 0.4)
    ]
    np.testing.assert_allclose(got, np.stack(want), rtol=1e-6)


def test_errors():
    tx = T.with_hyperparams(ft.optimizers.adamw, learning_rate=0.5, weight_decay=0.1)
    state = tx.init(P)
    with pytest.raises(
        ft.ConfigError,
        match=r"`learning_rat` .* `learning_rate`, `weight_decay`.*did you mean 'learning_rate'",
    ):
        T.set_hyperparams(state, learning_rat=1.0)
    for bad in (np.nan, "0.1", None, np.ones(2)):
        with pytest.raises(ft.ConfigError, match="`learning_rate` must be a finite number"):
            T.set_hyperparams(state, learning_rate=bad)
    for call in (T.hyperparams, lambda s: T.set_hyperparams(s, learning_rate=1.0)):
        with pytest.raises(ft.ConfigError, match="`with_hyperparams"):
            call(ft.optimizers.adam(0.1).init(P))
    with pytest.raises(ft.ConfigError, match="`learning_rate` must be"):  # the factory's own refusal, at once
        T.with_hyperparams(ft.optimizers.adamw, learning_rate=-0.5)
    with pytest.raises(ft.ConfigError, match="`learing_rate` is no argument of adamw"):
        T.with_hyperparams(ft.optimizers.adamw, learing_rate=0.5)
    with pytest.raises(ft.ConfigError, match="at least one"):
        T.with_hyperparams(ft.optimizers.adamw, mask="kernel")
    with pytest.raises(ft.ConfigError, match="`factory`"):
        T.with_hyperparams(ft.optimizers.adamw(0.1), learning_rate=0.5)
    with pytest.raises(ft.ConfigError, match="must be a gradient transform"):
        T.with_hyperparams(lambda x: None, x=0.5)


def test_with_hyperparams_keeps_the_laws():
    testing.check_transform(
        lambda: T.with_hyperparams(ft.optimizers.adamw, learning_rate=1e-3, b1=0.8, weight_decay=0.1)
    )
    tx = T.with_hyperparams(ft.optimizers.sgd, learning_rate=0.5)
    assert tx != T.with_hyperparams(ft.optimizers.sgd, learning_rate=0.25)
    assert repr(tx) == "with_hyperparams(factory=sgd, learning_rate=0.5)"


def test_flush_reaches_through():
    make = lambda learning_rate: ft.MultiSteps(ft.optimizers.sgd(learning_rate), 4)
    task = ft.Task(loss_fn, T.with_hyperparams(make, learning_rate=0.5))
    state = ft.init_state(task, {"w": jnp.ones(3)})
    state, _ = ft.train_step(task, state, {"x": np.ones((2, 3), np.float32)})
    state = ft.flush(task, T.set_hyperparams(state, learning_rate=0.25))
    assert state.params["w"].tolist() == [0.75] * 3
    assert int(state.updates) == 1


def test_ema_decay_may_be_a_schedule_and_is_reported():
    values = (0.5, 0.75, 0.25, 0.875)
    tx = ft.chain(ft.optimizers.sgd(1.0), T.ema(schedule(*values)))
    p = jnp.array([8.0])
    state, want, fast = tx.init(p), 8.0, 8.0
    for beta in values:
        p, state, _ = tx.apply(jnp.array([2.0]), state, p)
        fast -= 2.0
        want = beta * want + (1 - beta) * fast
        assert float(T.recorded(state)["ema_decay"]) == beta
        assert float(ft.averaged(state)[0]) == want


@pytest.mark.parametrize("name", ["slow_step", "rho"])
def test_a_schedule_of_a_wrapper_counts_applied_updates_only(name):
    make = {
        "slow_step": lambda s: T.lookahead(ft.optimizers.sgd(0.5), 2, s),
        "rho": lambda s: T.sam(ft.optimizers.sgd(0.5), s),
    }[name]
    values = (0.5, 0.25, 0.125, 0.0625)
    task = ft.Task(loss_fn, make(schedule(*values)))
    inside = {
        "slow_step": lambda s: T.MultiSteps(T.lookahead(ft.optimizers.sgd(0.5), 2, s), 2),
        "rho": lambda s: T.sam(T.MultiSteps(ft.optimizers.sgd(0.5), 2), s),
    }[name]
    for tx, calls in ((task.tx, 1), (inside(schedule(*values)), 2)):
        task = ft.Task(loss_fn, tx)
        state = ft.init_state(task, {"w": jnp.ones(3)})
        seen = []
        for batch in batches(4 * calls):
            state, metrics = ft.train_step(task, state, batch)
            if int(state.step) % calls == 0:
                seen.append(float(ft.compute_metrics(task, metrics)[name]))
        assert seen == list(values)


def test_a_recorded_rate_is_that_of_the_new_number():
    twice = T.with_hyperparams(lambda learning_rate: ft.optimizers.sgd(2 * learning_rate), learning_rate=0.5)
    for tx, factor in ((T.with_hyperparams(ft.optimizers.sgd, learning_rate=0.5), 1), (twice, 2)):
        state = tx.init({"w": np.zeros(2, np.float32)})
        for rate, recorded in ((0.3, 0.3), (0.0, 0.0)):
            state = T.set_hyperparams(state, learning_rate=rate)
            (node,) = T.types.nodes(state, T.decay.ScaleByLearningRateState)
            np.testing.assert_allclose(node.learning_rate / node.multiplier, factor * recorded, rtol=1e-6)
