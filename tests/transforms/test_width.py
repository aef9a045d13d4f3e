"""mup: its factors by the formulas, and networks whose coordinates move as much at any width, by coord_check."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain import ConfigError, optimizers, transforms as T
from fntrain._core.fingerprint import fingerprint
from fntrain.tools import coord_check
from fntrain.transforms.adapt import adapt
from fntrain.transforms.width import _factor, _growth, _rules, _shapes

INPUTS, CLASSES, BASE = 8, 4, 16


def init_params(width, key):
    normal = jax.random.normal
    return {
        "in": {"kernel": normal(key, (INPUTS, width)) / INPUTS**0.5, "bias": jnp.zeros(width)},
        "hidden": normal(key, (width, width)) / width**0.5,
        "out": normal(key, (width, CLASSES)) / width**0.5,
    }


def shapes(width):
    return jax.eval_shape(partial(init_params, width), jax.random.key(0))


def factors(tx, rule=None):
    """What mup multiplies the updates by, leaf by leaf."""
    base, now = (_shapes("", shapes(width)) for width in (BASE, 64))
    rules = dict.fromkeys(base, (rule, "none")) if rule else _rules(adapt(tx), base)
    return {path: _factor(*rules[path], _growth(path, base[path], now[path], None)) for path in now}


ADAM = {"in/kernel": 1, "in/bias": 1, "hidden": 1 / 4, "out": 1 / 4}
SGD = {"in/kernel": 4, "in/bias": 4, "hidden": 1, "out": 1 / 4}


@pytest.mark.parametrize(
    ("tx", "options", "want"),
    [
        (optimizers.adam(0.1), {}, ADAM),
        (ft.chain(ft.clip_by_norm(1.0), optimizers.lion(0.1)), {}, ADAM),
        (optimizers.rmsprop(0.1, momentum=0.9), {}, ADAM),
        (optimizers.sgd(0.1, momentum=0.9), {}, SGD),
        (T.cautious(T.scale_by_adam()), {}, ADAM),
        (optax.sgd(0.1), {"rule": "sgd"}, SGD),
        (optimizers.adam(0.1), {"rule": "sgd"}, SGD),
        (
            ft.by_path({"in": optimizers.sgd(0.1), ".*": optimizers.adam(0.1)}),
            {},
            ADAM | {"in/kernel": 4, "in/bias": 4},
        ),
        # Muon's own scale is right between layers that are equally wider; 0.2 sqrt(largest) grows too fast.
        (optimizers.muon(0.1, matrices="hidden", dtype="float32"), {}, ADAM | {"hidden": 1}),
        (optimizers.muon(0.1, matrices="hidden", scaling="rms", dtype="float32"), {}, ADAM | {"hidden": 0.5}),
    ],
)
def test_factors_are_those_of_the_table(tx, options, want):
    assert factors(tx, **options) == pytest.approx(want)


def test_updates_are_multiplied_by_them():
    tx, p = optimizers.sgd(0.5), jax.tree.map(lambda x: np.full(x.shape, 2.0, np.float32), shapes(64))
    scaled = T.mup(tx, shapes(BASE), shapes(64))
    for path, u in ft.tree.items(scaled.update(p, scaled.init(p), p)[0]):
        np.testing.assert_array_equal(u, np.full(u.shape, -SGD[path], np.float32), err_msg=path)


def test_letters_say_which_axes_are_inputs():
    base, now = (
        {"query": np.ones((4 * m, 2, 3 * m), np.float32), "out": np.ones((2, 3 * m, 4 * m), np.float32)}
        for m in (1, 2)
    )
    tx = T.mup(optimizers.sgd(1.0), base, now, axes={"query": "rcc", "out": "rrc"})
    u, _ = tx.update(now, tx.init(now), now)
    assert float(u["query"][0, 0, 0]) == -1.0  # twice the inputs and twice the outputs


def test_first_numbers_of_the_last_layer_are_smaller():
    p = jax.tree.map(lambda x: np.linspace(1, 2, x.size, dtype=np.float32).reshape(x.shape), shapes(64))
    got = T.mup_params(p, partial(init_params, BASE))
    np.testing.assert_allclose(got["out"], p["out"] / 2, rtol=1e-7)
    for path, x in ft.tree.items(got):
        if path != "out":
            np.testing.assert_array_equal(x, dict(ft.tree.items(p))[path])


def test_it_is_a_value_however_shapes_are_given():
    init = partial(init_params, BASE)
    a = T.mup(optimizers.adam(0.1), init, shapes(64))
    b = T.mup(optimizers.adam(0.1), shapes(BASE), shapes(64))
    assert a == b
    assert pickle.loads(pickle.dumps(a)) == a
    assert fingerprint(a) == fingerprint(b) != fingerprint(T.mup(optimizers.adam(0.1), init, shapes(32)))
    assert "now={'hidden': (64, 64)" in repr(a)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: T.mup(optimizers.soap(0.1), shapes(8), shapes(16)),
            "updates of scale_by_soap.* say it by `rule`",
        ),
        (lambda: T.mup(optax.adam(0.1), shapes(8), shapes(16)), "say it by `rule`"),
        (lambda: T.mup(optimizers.adam(0.1), shapes(8), shapes(16), rule="adm"), "did you mean 'adam'"),
        (
            lambda: T.mup(ft.MultiSteps(optimizers.adam(0.1), 2), shapes(8), shapes(8)),
            r"MultiSteps\(mup\(tx\)",
        ),
        (
            lambda: T.mup(optimizers.adam(0.1), {"a": jnp.ones(2)}, {"b": jnp.ones(2)}),
            "one alone has `a`, `b`",
        ),
        (lambda: T.mup(optimizers.adam(0.1), {}, {"b": jnp.ones(2)}), "`base` must be parameters"),
        (
            lambda: T.mup(optimizers.adam(0.1), {"q": jnp.ones((4, 2, 3))}, {"q": jnp.ones((8, 2, 3))}),
            "neither rows nor columns: say which are, `axes=",
        ),
        (
            lambda: T.mup(optimizers.adam(0.1), shapes(8), shapes(16)).init(shapes(8)),
            r"`now` of mup has shape \[16\] at `in/bias`|`now` of mup has shape \[16, 16\] at `hidden`",
        ),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


ROWS = np.random.default_rng(0).normal(size=(16, INPUTS)).astype(np.float32)
BATCH = (ROWS, (np.arange(16) % CLASSES).astype(np.int32))


def loss_fn(p, batch, ctx):
    first = jnp.tanh(batch[0] @ p["in"]["kernel"] + p["in"]["bias"][None])
    hidden = first @ p["hidden"]
    logits = jnp.tanh(hidden) @ p["out"]
    return ft.losses.cross_entropy(logits, batch[1]).with_outputs(first=first, hidden=hidden, logits=logits)


def plain(width):
    return ft.Task(loss_fn, optimizers.adam(3e-3)), partial(init_params, width)


def parametrised(width):
    narrow, wide = partial(init_params, 64), partial(init_params, width)
    tx = T.mup(optimizers.adam(3e-3), narrow, wide)
    return ft.Task(loss_fn, tx), lambda key: T.mup_params(wide(key), narrow)


def test_coordinates_move_as_much_at_any_width():
    found = coord_check(parametrised, (64, 256), BATCH)
    assert found.is_flat(0.1), str(found)
    assert min(m.min() for m in found.moves.values()) > 1e-3  # and move they do
    # The broken specimen: one rate for all widths and layers.
    broken = coord_check(plain, (64, 256), BATCH)
    assert not broken.is_flat(0.1)
    assert broken.slopes["logits"] > 0.5
    assert "logits" in str(broken)
    np.testing.assert_allclose(
        broken.moves["first"][0], found.moves["first"][0], rtol=0.1
    )  # at the base they agree


def test_what_coord_check_refuses():
    for call, words in [
        (lambda: coord_check(plain, (8,), BATCH), "`widths` must be two or more"),
        (lambda: coord_check(plain, (16, 8), BATCH), "increasing"),
        (lambda: coord_check(lambda w: plain(w)[0], (8, 16), BATCH), "`make` must return"),
        (lambda: coord_check(plain, (8, 16), BATCH, seeds=()), "`seeds` must have one at least"),
    ]:
        with pytest.raises(ConfigError, match=words):
            call()
