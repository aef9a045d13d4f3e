"""The laws of transforms, over a registry: a new transform is one new row here.

Below the registry stand broken specimens: things that break one law each, which the same check must refuse,
with the right words. A check that lets its specimen pass proves nothing about the rows above it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import testing, tree
from fntrain.testing import LawError

RNG = np.random.default_rng(0)

TRANSFORMS = {
    "clip_by_norm": lambda: ft.clip_by_norm(1.0),
    "clip_by_value": lambda: ft.clip_by_value(0.5),
    "add_weight_decay": lambda: ft.add_weight_decay(1e-2),
    "add_weight_decay masked": lambda: ft.add_weight_decay(1e-2, mask="kernel"),
    "add_weight_decay scheduled": lambda: ft.add_weight_decay(ft.schedules.cosine(1e-2, 10)),
    "momentum": lambda: ft.momentum(0.9),
    "momentum dampened": lambda: ft.momentum(0.9, dampening=0.5),
    "nesterov": lambda: ft.nesterov(0.9),
    "scale_by_adam": lambda: ft.transforms.scale_by_adam(),
    "scale_by_learning_rate": lambda: ft.transforms.scale_by_learning_rate(ft.schedules.cosine(0.1, 10)),
    "MultiSteps": lambda: ft.MultiSteps(ft.optimizers.adamw(1e-3), 2),
    "chain": lambda: ft.chain(ft.clip_by_norm(1.0), ft.nesterov(0.9), decay=ft.add_weight_decay(1e-4)),
    "chain around MultiSteps": lambda: ft.chain(
        ft.clip_by_value(0.1), ft.MultiSteps(ft.optimizers.sgd(0.1), 3)
    ),
    "sgd": lambda: ft.optimizers.sgd(0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
    "adam": lambda: ft.optimizers.adam(1e-3),
    "adamw": lambda: ft.optimizers.adamw(1e-3),
    "rmsprop": lambda: ft.optimizers.rmsprop(1e-3, momentum=0.9, centered=True),
    "lion": lambda: ft.optimizers.lion(1e-4),
    "clip_by_norm scheduled": lambda: ft.clip_by_norm(ft.schedules.linear(2.0, 1.0, 10)),
    "clip_by_value scheduled": lambda: ft.clip_by_value(ft.schedules.linear(2.0, 1.0, 10)),
    "clip_by_leaf_norm": lambda: ft.clip_by_leaf_norm(1.0),
    "record_norms": lambda: ft.record_norms(),
    "record_updates": lambda: ft.transforms.record_updates(),
    "record_noise_scale": lambda: ft.transforms.record_noise_scale(),
    "momentum scheduled": lambda: ft.momentum(ft.schedules.linear(0.5, 0.9, 10)),
    "scale_by_adam scheduled": lambda: ft.scale_by_adam(b2=ft.schedules.linear(0.9, 0.99, 10)),
    "scale_by_rms": lambda: ft.scale_by_rms(),
    "scale_by_lion": lambda: ft.scale_by_lion(),
    "adafactor": lambda: ft.optimizers.adafactor(1e-3, min_dim_size_to_factor=2),
    "orthogonalize": lambda: ft.by_path(
        {"kernel": ft.transforms.orthogonalize(), ".*": ft.clip_by_norm(1.0)}
    ),
    "scale_by_muon": lambda: ft.by_path(
        {"kernel": ft.transforms.scale_by_muon(), ".*": ft.clip_by_norm(1.0)}
    ),
    "muon": lambda: ft.optimizers.muon(0.1, weight_decay=1e-2),
    "scale_by_soap": lambda: ft.transforms.scale_by_soap(),
    "soap": lambda: ft.optimizers.soap(1e-3, precondition_frequency=2, one_sided=True),
    "from_optax": lambda: ft.optimizers.get("optax:ademamix", lr=1e-3),
    "cautious": lambda: ft.transforms.cautious(ft.optimizers.sgd(0.1, momentum=0.9)),
    "keep_norm": lambda: ft.transforms.keep_norm(ft.scale_by_adam()),
    "mup": lambda: ft.transforms.mup(ft.optimizers.adam(1e-3), {"kernel": (1, 1), "bias": (1,), "scale": ()}),
    "clip_by_agc": lambda: ft.transforms.clip_by_agc(0.5),
    "clip_by_agc scheduled": lambda: ft.transforms.clip_by_agc(ft.schedules.linear(2.0, 1.0, 10)),
    "centralize": lambda: ft.transforms.centralize(),
    "noise": lambda: ft.transforms.noise(ft.schedules.linear(2.0, 1.0, 10)),
    "ema warmed up": lambda: ft.chain(ft.optimizers.sgd(0.1), ft.ema(0.9, debias=True, warmup=10)),
    "quantize_state": lambda: ft.transforms.quantize_state(ft.optimizers.adamw(1e-3), min_size=0),
    "skip_nonfinite": lambda: ft.skip_nonfinite(ft.optimizers.adamw(1e-3)),
    "skip_nonfinite around MultiSteps": lambda: ft.skip_nonfinite(ft.MultiSteps(ft.optimizers.sgd(0.1), 2)),
    "skip_spikes": lambda: ft.skip_spikes(ft.optimizers.adamw(1e-3), 10.0, 4),
    "dynamic_loss_scale": lambda: ft.dynamic_loss_scale(ft.optimizers.adamw(1e-3)),
    "dynamic_loss_scale around MultiSteps": lambda: ft.dynamic_loss_scale(
        ft.MultiSteps(ft.optimizers.sgd(0.1), 2)
    ),
    "ema": lambda: ft.chain(ft.optimizers.sgd(0.1), ft.ema(0.9)),
    "lookahead": lambda: ft.lookahead(ft.optimizers.adamw(1e-3), 2),
    "sam": lambda: ft.sam(ft.optimizers.sgd(0.1)),
    "by_path": lambda: ft.by_path({"kernel": ft.optimizers.adamw(1e-3), ".*": ft.optimizers.sgd(0.1)}),
    "freeze": lambda: ft.freeze(ft.chain(ft.clip_by_norm(1.0), ft.optimizers.sgd(0.1, 0.9)), "bias"),
    "with_hyperparams": lambda: ft.with_hyperparams(ft.optimizers.adamw, learning_rate=1e-3),
    "reduce_on_plateau": lambda: ft.reduce_on_plateau(0.5, 2, accumulation_size=2),
    "ema debiased": lambda: ft.chain(ft.optimizers.sgd(0.1), ft.ema(0.9, debias=True)),
    "adam held": lambda: ft.with_hyperparams(ft.optimizers.adam, b1=0.9),
}

# What train_step passes to every transform that takes extra arguments.
EXTRA = {
    "value": jnp.float32(1.0),
    "value_and_grad_fn": lambda params: (jnp.float32(1.0), params),
    "spread": (jnp.float32(3.0), jnp.float32(2.0)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(name):
    testing.check_transform(TRANSFORMS[name], extra=EXTRA, dtypes=("float32",))


# Half precision says what float32 said, but where sums are long, rounding shows or numbers overflow.
ROUNDS = ["clip_by_norm", "scale_by_adam", "ema", "MultiSteps"]
OVERFLOWS = ["clip_by_norm", "scale_by_adam", "skip_nonfinite", "dynamic_loss_scale"]


@pytest.mark.matrix(always=ROUNDS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform_of_bfloat16(name):
    testing.check_transform(TRANSFORMS[name], extra=EXTRA, dtypes=("bfloat16",))


@pytest.mark.matrix(always=OVERFLOWS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform_of_float16(name):
    testing.check_transform(TRANSFORMS[name], extra=EXTRA, dtypes=("float16",))


# What a sign or a limit is, float32 can say too.
COARSE = {"clip_by_value", "scale_by_lion", "clip_by_value scheduled"}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_float64_stays_float64(name):
    with jax.enable_x64(True):
        tx = TRANSFORMS[name]()
        p = {"kernel": jnp.asarray(RNG.normal(size=(3, 2))), "bias": jnp.asarray(RNG.normal(size=2))}
        extra = dict(EXTRA)
        grads = {"kernel": p["kernel"] / 3, "bias": p["bias"] * 7}
        update = jax.jit(lambda state: tx.update(grads, state, p, **extra))
        first = tx.init(p)
        state = update(first)[1]
        updates, state = update(state)
        assert tree.aval_difference(first, state) is None
        assert {u.dtype for u in jax.tree.leaves(updates)} == {np.dtype("float64")}
        large = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating) and x.ndim]
        assert name.startswith("skip_spikes") or {x.dtype for x in large} <= {np.dtype("float64")}
        digits = [np.asarray(x) for x in (large if name == "scale_by_lion" else jax.tree.leaves(updates))]
        lost = [np.array_equal(x, x.astype(np.float32)) for x in digits if x.any()]
        assert not any(lost) or name in COARSE


@pytest.mark.parametrize("name", TRANSFORMS)
def test_complex_leaves_are_refused(name):
    """Rather than made real without a word: nobody has said what their gradient is."""
    tx, z = TRANSFORMS[name](), {"kernel": jnp.ones((2, 2), jnp.complex64) * 1j, "bias": jnp.ones(2)}
    extra = dict(EXTRA)
    with pytest.raises(ft.ConfigError, match="complex"):
        tx.update(z, tx.init(z), z, **extra)
    p = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    with pytest.raises(ft.ConfigError, match="complex"):  # a complex gradient of real parameters
        tx.update(z, tx.init(p), p, **extra)


@pytest.mark.parametrize("make", [lambda: ft.transforms.plateau(patience=3), lambda: ft.stop_on_plateau(3)])
def test_controllers_compare_by_value(make):
    testing.check_value(make)


def _transform(update, init=lambda params: jnp.zeros((), jnp.int32)):
    made = ft.transforms.transform(lambda: (init, update))()
    return lambda: made


def _applying(apply):
    scaled = lambda g, s, p=None, **k: (jax.tree.map(lambda x: -0.1 * x, g), s)
    made = ft.Transform(lambda p: jnp.zeros((), jnp.int32), scaled, apply)
    return lambda: made


def _counts_in_place(updates, state, params=None, **extra):
    state["n"] = state["n"] + 1
    return updates, state


CALLS = []


def _remembers_its_calls(updates, state, params=None, **extra):
    CALLS.append(1)
    # The first four calls, three traced and one eager, agree: nobody would notice but by a fifth.
    return jax.tree.map(lambda g: g * float(min(len(CALLS), 5) // 5 + 1), updates), state


BROKEN_TRANSFORMS = {
    "equal calls make equal values": lambda: ft.Transform(lambda p: (), lambda u, s, p=None, **k: (u, s)),
    "init and update agree": _transform(lambda u, s, p=None, **k: (u, s.astype(jnp.float32))),
    "updates have the gradients' types": _transform(
        lambda u, s, p=None, **k: (jax.tree.map(lambda g: g.astype(jnp.float32), u), s)
    ),
    "floating-point state is float32": _transform(
        lambda u, s, p=None, **k: (u, s), lambda p: jax.tree.map(jnp.zeros_like, p)
    ),
    "no state aliases the parameters": _transform(lambda u, s, p=None, **k: (u, s), lambda p: p),
    "zero gradients give finite updates": _transform(
        lambda u, s, p=None, **k: (jax.tree.map(lambda g: g / jnp.max(jnp.abs(g)), u), s)
    ),
    "state is arrays": _transform(lambda u, s, p=None, **k: (u, s), lambda p: {"rate": 0.5}),
    "update leaves the state it is given as it is": _transform(
        _counts_in_place, lambda p: {"n": jnp.zeros(())}
    ),
    "equal calls of update give equal results": _transform(_remembers_its_calls),
    "apply agrees with update": _applying(lambda g, s, p, **k: (jax.tree.map(lambda x: x + 1, p), s, True)),
    "a batch of weight zero changes nothing": _applying(
        lambda g, s, p, **k: (tree.add(p, jax.tree.map(lambda x: -0.1 * x, g)), s, True)
    ),
}


@pytest.mark.parametrize("law", BROKEN_TRANSFORMS)
def test_a_broken_transform_is_refused(law, monkeypatch):
    if law != "equal calls make equal values":  # pickling a function made in a test is not what is tested
        monkeypatch.setattr(testing, "check_value", lambda make: None)
    with pytest.raises(LawError, match=law):
        testing.check_transform(BROKEN_TRANSFORMS[law])


def made(module, kind):
    return {name for name, f in vars(module).items() if getattr(f, "makes", None) is kind}


def test_every_public_transform_has_its_row():
    """A factory without a row is one whose laws nobody has checked; a row's first word is the factory's name."""
    wanted = made(ft.transforms, ft.Transform) | made(ft.optimizers, ft.Transform) | {"MultiSteps"}
    assert wanted - {name.split(" ")[0] for name in TRANSFORMS} == set()
    assert {"chain", "clip_by_norm", "adamw"} <= wanted  # the set is the one that is meant
