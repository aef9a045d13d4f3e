"""The plateau rules, against the rules as torch and Keras document them, written out here, and golden sequences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain import testing
from fntrain.transforms import plateau, reduce_on_plateau, stop_on_plateau


def run(rule, values):
    """The decision after each value, on the host."""
    state, out = rule.init(), []
    for value in values:
        state, decision = rule.update(state, value)
        out.append(decision.item())
    return out


def torch_rule(
    values, factor, patience, rtol, atol, cooldown, mode, min_scale, *, signed=False, count_cooldown=False
):
    """ReduceLROnPlateau as torch documents it; its `patience` is one less, its margin a fraction of |best| here.

    `signed` and `count_cooldown` are two ways of getting it wrong.
    """
    sign = 1 if mode == "min" else -1
    best, bad, left, scale, out = math.inf, 0, 0, np.float32(1), []
    for x in values:
        x = sign * float(np.float32(x))
        if math.isinf(best):
            improved = math.isfinite(x)
        else:
            margin = rtol * (best if signed else abs(best)) + atol
            improved = math.isfinite(x) and x < best - margin
        if improved:
            best, bad = x, 0
        else:
            bad += 1
        if left > 0:
            left -= 1
            bad = bad if count_cooldown else 0
        if bad > patience - 1:
            scale = max(scale * np.float32(factor), np.float32(min_scale))
            left, bad = cooldown, 0
        out.append(float(scale))
    return out


RNG = np.random.default_rng(0)
# Values on a grid of 1/8, so that many tie, and margins that no tie can be near in float32.
SEQUENCES = {
    "falling, then flat": np.r_[np.linspace(3, 1, 9), np.ones(31)],
    "noise above zero": RNG.integers(1, 24, 40) / 8,
    "noise below zero": -RNG.integers(1, 24, 40) / 8,
    "noise around zero": RNG.integers(-12, 12, 40) / 8,
    "with NaN and infinity": np.where(
        RNG.random(40) < 0.2, np.nan, np.where(RNG.random(40) < 0.1, -np.inf, 1.0)
    ),
}
RULES = [
    dict(factor=0.5, patience=1, rtol=0.0, atol=0.0, cooldown=0, mode="min", min_scale=0.0),
    dict(factor=0.5, patience=3, rtol=0.03, atol=0.0, cooldown=0, mode="min", min_scale=0.1),
    dict(factor=0.1, patience=2, rtol=0.0, atol=0.2, cooldown=2, mode="min", min_scale=0.0),
    dict(factor=0.3, patience=2, rtol=0.03, atol=0.01, cooldown=3, mode="max", min_scale=0.05),
]


def traced(rule, sequences):
    """The decisions on several sequences at once, compiled."""
    state = jax.tree.map(jnp.asarray, rule.init())
    decisions = jax.jit(jax.vmap(lambda values: jax.lax.scan(rule.update, state, values)[1]))
    return np.asarray(decisions(jnp.asarray(np.stack(sequences), jnp.float32))).tolist()


@pytest.mark.parametrize("i", range(len(RULES)))
def test_plateau_is_torchs_rule(i):
    rule, sequences = plateau(**RULES[i]), list(SEQUENCES.values())
    want = [torch_rule(values, **RULES[i]) for values in sequences]
    assert [run(rule, values.tolist()) for values in sequences] == want
    assert traced(rule, sequences) == want  # bit for bit the same


def test_the_oracle_tells_wrong_rules_apart():
    # What the test above rests on: each mistake shows in at least one of its cases.
    def differs(**wrong):
        return any(
            torch_rule(v, **r) != torch_rule(v, **{**r, **wrong}) for r in RULES for v in SEQUENCES.values()
        )

    assert differs(signed=True)
    assert differs(count_cooldown=True)
    assert differs(patience=4)
    assert differs(cooldown=1)
    assert differs(min_scale=0.5)
    assert differs(mode="max")


def test_plateau_goldens():
    # After the fifth bad check, neither the fourth nor the sixth.
    rule = plateau(factor=0.5, patience=5)
    assert run(rule, [1.0] * 12) == [1.0] * 5 + [0.5] * 5 + [0.25] * 2
    # Metrics below zero: an improvement of half a per cent is none at a margin of one.
    falling = [-100.0, -99.5, -99.4, -100.5, -100.9]
    assert run(plateau(factor=0.5, patience=2, rtol=0.01), falling) == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert run(plateau(factor=0.5, patience=1, rtol=0.01), [-100.0, -102.0, -104.1]) == [1.0] * 3
    # The margin itself is no improvement, a little more is: all of these are exact in float32.
    exactly = [8.0, 6.0, 5.999]
    assert run(plateau(factor=0.5, patience=1, rtol=0.25), exactly) == [1.0, 0.5, 0.5]
    assert run(plateau(factor=0.5, patience=1, rtol=0.0, atol=2.0), exactly) == [1.0, 0.5, 0.5]
    assert run(plateau(factor=0.5, patience=1, rtol=0.25, mode="max"), [8.0, 10.0, 10.001]) == [1.0, 0.5, 0.5]
    # Three values that cannot be bad, then one that is. The best is kept through it.
    assert run(plateau(factor=0.5, patience=1, cooldown=3), [1.0] * 6) == [1.0] + [0.5] * 4 + [0.25]
    assert run(plateau(factor=0.5, patience=1, cooldown=1), [3.0, 3.0, 1.0, 2.0]) == [1.0, 0.5, 0.5, 0.25]
    # The floor.
    assert run(plateau(factor=0.5, patience=1, min_scale=0.3), [1.0] * 4) == [
        1.0,
        0.5,
        *[float(np.float32(0.3))] * 2,
    ]
    # NaN is never an improvement, not even as the first value.
    assert run(plateau(factor=0.5, patience=2), [math.nan, math.nan, 1.0]) == [1.0, 0.5, 0.5]


def test_plateau_is_optaxs_above_zero():
    values = jnp.asarray(SEQUENCES["noise above zero"], jnp.float32)
    reference = optax.contrib.reduce_on_plateau(factor=0.5, patience=3, rtol=0.03, cooldown=2, min_scale=0.1)
    state, want = reference.init(jnp.ones(1)), []
    update = jax.jit(reference.update)
    for value in values:
        with jax.numpy_dtype_promotion("standard"):
            _, state = update(jnp.ones(1), state, value=value)
        want.append(float(state.scale))
    assert len(set(want)) > 2
    assert run(plateau(0.5, 3, rtol=0.03, cooldown=2, min_scale=0.1), values.tolist()) == want


def keras_stop(values, patience, min_delta, mode):
    sign = 1 if mode == "min" else -1
    best, wait, out = math.inf, 0, []
    for x in values:
        x = sign * float(np.float32(x))
        if math.isfinite(x) and x + min_delta < best:
            best, wait = x, 0
        else:
            wait += 1
        out.append(wait >= patience)
    return out


@pytest.mark.parametrize(("patience", "delta", "mode"), [(1, 0.0, "min"), (3, 0.3, "min"), (4, 0.1, "max")])
def test_stop_is_kerass_rule(patience, delta, mode):
    rule, sequences = stop_on_plateau(patience, delta, mode), list(SEQUENCES.values())
    want = [keras_stop(values, patience, delta, mode) for values in sequences]
    assert any(map(any, want))
    assert not all(map(all, want))
    assert [run(rule, values.tolist()) for values in sequences] == want
    assert traced(rule, sequences) == want


def test_stop_goldens():
    assert run(stop_on_plateau(patience=3), [3.0, 2.0, 2.0, 2.0, 2.0]) == [False] * 4 + [True]
    # flax's would stop one check later: the broken specimen, which the line above tells apart.
    assert run(stop_on_plateau(patience=4), [3.0, 2.0, 2.0, 2.0, 2.0]) == [False] * 5
    assert run(stop_on_plateau(patience=1), [1.0, 1.0, 0.5]) == [False, True, False]
    # An improvement has to exceed `min_delta`.
    assert run(stop_on_plateau(patience=1, min_delta=0.5), [2.0, 1.5, 1.25]) == [False, True, False]
    assert run(stop_on_plateau(patience=1, min_delta=0.5, mode="max"), [2.0, 2.5, 2.75]) == [
        False,
        True,
        False,
    ]
    assert run(stop_on_plateau(patience=2), [math.nan, math.inf, 5.0]) == [False, True, False]


def test_the_host_needs_no_device():
    with jax.transfer_guard("disallow"):
        for rule in (plateau(patience=1), stop_on_plateau(1)):
            state = rule.init()
            before = [np.array(x) for x in state]
            for value in (1, 1.0, np.float64(1e300), np.float32(0.5)):
                new, decision = rule.update(state, value)
                assert not isinstance(decision, jax.Array)
            assert [x.dtype for x in new] == [x.dtype for x in state]
            assert all(np.array_equal(a, b) for a, b in zip(before, state))  # the old state is as it was


def test_the_count_of_bad_checks_does_not_wrap():
    rule = stop_on_plateau(patience=2)
    state = rule.init()._replace(bad_checks=np.int32(2**31 - 1))
    state, stop = rule.update(state._replace(best=np.float32(0)), 1.0)
    assert stop
    assert int(state.bad_checks) == 2


BAD = {
    "factor": [
        dict(factor=0.0),
        dict(factor=1.0),
        dict(factor=-1),
        dict(factor="0.1"),
        dict(factor=math.nan),
    ],
    "patience": [dict(patience=0), dict(patience=2.0), dict(patience=True), dict(patience=2**31)],
    "rtol": [dict(rtol=-1e-4)],
    "atol": [dict(atol=math.inf)],
    "cooldown": [dict(cooldown=-1), dict(cooldown=0.5)],
    "mode": [dict(mode="minimum")],
    "min_scale": [dict(min_scale=-0.1), dict(min_scale=1.5)],
    "accumulation_size": [dict(accumulation_size=0)],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    for arguments in BAD[name]:
        with pytest.raises(ft.ConfigError, match=f"`{name}`"):
            reduce_on_plateau(**arguments)
        if name != "accumulation_size":
            with pytest.raises(ft.ConfigError, match=f"`{name}`"):
                plateau(**arguments)
        if name in ("patience", "mode"):
            with pytest.raises(ft.ConfigError, match=f"`{name}`"):
                stop_on_plateau(**arguments)
    with pytest.raises(ft.ConfigError, match="`min_delta`"):
        stop_on_plateau(min_delta=-1.0)


def test_they_are_values():
    testing.check_value(lambda: plateau(patience=3))
    testing.check_value(lambda: stop_on_plateau(3, mode="max"))
    assert plateau() == plateau(0.1, 10)
    assert plateau(patience=3) != plateau(patience=4)
    assert repr(stop_on_plateau(3)) == "stop_on_plateau(patience=3)"
    testing.check_transform(
        lambda: reduce_on_plateau(0.5, 1, accumulation_size=2), extra={"value": 1.0, "weight": 3.0}
    )


def scales(tx, values, weights=None):
    state, out = tx.init(jnp.ones(1)), []
    update = jax.jit(lambda s, v, w: tx.update(jnp.ones(1), s, value=v, weight=w))
    for i, value in enumerate(values):
        u, state = update(state, jnp.float32(value), None if weights is None else jnp.float32(weights[i]))
        assert float(u[0]) == float(state.plateau_scale)  # the scale counts at once
        out.append(float(u[0]))
    return out


def test_the_transform_follows_the_rule():
    values = SEQUENCES["noise around zero"]
    want = torch_rule(values, **RULES[1])
    assert len(set(want)) > 2
    assert scales(reduce_on_plateau(**RULES[1]), values) == want


def test_losses_are_averaged_by_weight_before_a_check():
    # Windows of two: means 4, then (1·1 + 5·3)/4 = 4, no improvement; unweighted it would be 3, and one.
    tx = reduce_on_plateau(0.5, 1, accumulation_size=2)
    values, weights = [4, 4, 1, 5], [1, 1, 1, 3]
    assert scales(tx, values, weights) == [1, 1, 1, 0.5]
    assert scales(tx, values) == [1, 1, 1, 1]
    # What weighs nothing did not come, NaN included; and the window stays open for the one after.
    assert scales(tx, [4, math.nan, 4, 4, 4], [1, 0, 1, 1, 1]) == [1, 1, 1, 1, 0.5]
    # NaN that weighs something is a bad check, and gone with its window.
    assert scales(tx, [4, 4, math.nan, 4, 2, 2]) == [1, 1, 1, 0.5, 0.5, 0.5]


def test_at_scale_one_no_bit_changes():
    g = jnp.asarray(RNG.normal(size=99), jnp.bfloat16)
    tx = reduce_on_plateau()
    assert jnp.array_equal(tx.update(g, tx.init(g), value=1.0)[0], g)


def test_the_loss_is_needed():
    tx, g = reduce_on_plateau(), jnp.ones(1)
    with pytest.raises(ft.ConfigError, match="`value` is needed by reduce_on_plateau"):
        tx.update(g, tx.init(g))
    with pytest.raises(ft.ConfigError, match="`value` must be a single number"):
        tx.update(g, tx.init(g), value=jnp.ones(2))


def flat(params, batch, ctx):
    """A loss of 1 with gradient 1 in the parameter, except where the batch says NaN."""
    return batch + params["w"] - jax.lax.stop_gradient(params["w"])


def test_in_a_step():
    tx = ft.transforms.skip_nonfinite(ft.chain(ft.optimizers.sgd(1.0), reduce_on_plateau(0.5, 2)))
    task = ft.Task(flat, tx)
    state = ft.init_state(task, {"w": jnp.float32(0)})
    seen = []
    for value in [1, 1, math.nan, 1, 1]:  # a skipped step is no check
        before = state.params["w"].copy()
        state, metrics = ft.train_step(task, state, jnp.full(4, value, jnp.float32))
        values = ft.compute_metrics(task, metrics)
        seen.append((float(values["plateau_scale"]), float(before - state.params["w"])))
    assert seen == [(1.0, 1.0), (1.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.5, 0.5)]


def test_a_run_goes_on_across_a_checkpoint(tmp_path):
    # Four batches an epoch, all at loss 1: patience 3, a window of 2 open at the checkpoint of step 5.
    tx = ft.chain(ft.optimizers.sgd(0.25), reduce_on_plateau(0.5, 2, accumulation_size=2, cooldown=1))
    task, data = ft.Task(flat, tx), np.ones(16, np.float32)

    def start():
        return ft.init_state(task, {"w": jnp.float32(0)})

    arguments = dict(batch_size=4, progress=False)
    whole = ft.fit(task, start(), data, steps=16, **arguments).state
    assert float(whole.opt_state["reduce_on_plateau"].plateau_scale) < 0.5
    ft.fit(task, start(), data, steps=5, run_dir=tmp_path / "run", **arguments)
    again = ft.fit(task, start(), data, steps=16, run_dir=tmp_path / "run", resume=True, **arguments).state
    jax.tree.map(
        np.testing.assert_array_equal, *(s.replace(key=jax.random.key_data(s.key)) for s in (whole, again))
    )


def test_a_metric_of_the_hosts():
    # What a callback does: the rule on the host, the multiplier in the state, no new program.
    traces = 0

    def loss_fn(params, batch, ctx):
        nonlocal traces
        traces += 1
        return batch * params["w"]

    task = ft.Task(loss_fn, ft.MultiSteps(ft.optimizers.sgd(ft.schedules.constant(1.0), momentum=0.0), 1))
    state = ft.init_state(task, {"w": jnp.float32(0)})
    rule = plateau(factor=0.5, patience=1)
    memory, rates = rule.init(), []
    for metric in [0.9, 0.8, 0.8, 0.8]:
        state, metrics = ft.train_step(task, state, jnp.ones(2))
        rates.append(float(ft.compute_metrics(task, metrics)["learning_rate"]))
        memory, scale = rule.update(memory, metric)
        state = ft.transforms.set_multiplier(state, scale)
    assert rates == [1.0, 1.0, 1.0, 0.5]
    assert traces == 1
    with pytest.raises(ft.ConfigError, match="with_hyperparams"):
        ft.transforms.set_multiplier(optax.adam(0.1).init(jnp.ones(1)), 0.5)
    with pytest.raises(ft.ConfigError, match="`multiplier`"):
        ft.transforms.set_multiplier(state, -1.0)
