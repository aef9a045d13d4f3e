"""The laws of schedules, over a registry: a new schedule is one new row here.

Below the registry stand broken specimens: things that break one law each, which the same check must refuse,
with the right words. A check that lets its specimen pass proves nothing about the rows above it.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import testing
from fntrain.testing import LawError

RNG = np.random.default_rng(0)

SCHEDULES = {
    "constant": lambda: ft.schedules.constant(0.1),
    "cosine": lambda: ft.schedules.cosine(0.1, 100, end=0.01),
    "warmup": lambda: ft.schedules.warmup(ft.schedules.cosine(0.1, 100), 8),
    "linear": lambda: ft.schedules.linear(0.1, 0.01, 100),
    "exponential": lambda: ft.schedules.exponential(0.1, 0.9, 10),
    "step_decay": lambda: ft.schedules.step_decay(0.1, 0.5, 30),
    "polynomial": lambda: ft.schedules.polynomial(0.1, 0.0, 100, 2.0),
    "piecewise": lambda: ft.schedules.piecewise(0.1, {7: 0.5, 99: 0.1}),
    "rsqrt": lambda: ft.schedules.rsqrt(0.1, 10),
    "one_cycle": lambda: ft.schedules.one_cycle(0.1, 100),
    "sgdr": lambda: ft.schedules.sgdr(0.1, 10, 2),
    "cooldown": lambda: ft.schedules.cooldown(ft.schedules.cosine(0.1, 90, end=0.05), 10),
    "cooldown sqrt": lambda: ft.schedules.cooldown(0.1, 10, 0.01, start_at=30, shape="sqrt"),
    "cooldown cosine": lambda: ft.schedules.cooldown(0.1, 10, 0.01, start_at=30, shape="cosine"),
    "wsd": lambda: ft.schedules.wsd(0.1, 100, warmup=10, cooldown=0.3),
    "scale": lambda: ft.schedules.scale(ft.schedules.cosine(0.1, 100), 0.5),
    "offset": lambda: ft.schedules.offset(ft.schedules.cosine(0.1, 90), 10),
    "offset into its middle": lambda: ft.schedules.offset(
        ft.schedules.linear(0.1, 0.0, 110), -10, value=0.01
    ),
    "in_epochs": lambda: ft.schedules.in_epochs(ft.schedules.cosine(0.1, 10), 7),
    "join": lambda: ft.schedules.join([(ft.schedules.constant(0.1), 7), (ft.schedules.cosine(0.2, 90), 90)]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    testing.check_schedule(SCHEDULES[name])


BROKEN_SCHEDULES = {
    "a schedule is float32": lambda step: jnp.asarray(step) // 2,
    "an array of steps gives an array": lambda step: jnp.float32(0.1),
    "finite at any step": lambda step: jnp.where(
        jnp.asarray(step) > 2**30, jnp.inf, jnp.zeros(jnp.shape(step), jnp.float32)
    ),
}


@pytest.mark.parametrize("law", BROKEN_SCHEDULES)
def test_a_broken_schedule_is_refused(law, monkeypatch):
    monkeypatch.setattr(testing, "check_value", lambda make: None)
    with pytest.raises(LawError, match=law):
        testing.check_schedule(lambda: BROKEN_SCHEDULES[law])


def made(module, kind):
    return {name for name, f in vars(module).items() if getattr(f, "makes", None) is kind}


def test_every_public_schedule_has_its_row():
    """A factory without a row is one whose laws nobody has checked; a row's first word is the factory's name."""
    wanted = made(ft.schedules, ft.schedules.Schedule)
    assert wanted - {name.split(" ")[0] for name in SCHEDULES} == set()
    assert {"cosine", "warmup"} <= wanted  # the set is the one that is meant
