"""Schedules read back from a repr: the same values, and nothing else is called."""

import pytest

import fntrain as ft
from fntrain.show.schedule_text import schedules_in

S = ft.schedules
SCHEDULES = [
    S.warmup(S.cosine(0.1, 90), 10),
    S.join([(S.constant(0.1), 7), (S.linear(0.1, 0.01, 20), None)]),
    S.piecewise(0.1, {7: 0.5, 99: 0.1}),
    S.exponential(0.1, 0.9, 10, staircase=True),
    S.scale(S.one_cycle(0.1, 100), 0.5),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_repr_gives_the_schedule_back(schedule):
    assert schedules_in(repr(schedule)) == [schedule]
    assert schedules_in(
        repr(ft.MultiSteps(ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(schedule)), 4))
    ) == [schedule]


def test_outermost_and_equal_ones_once():
    rate, decay = SCHEDULES[0], S.cosine(0.01, 90)
    tx = ft.by_path(
        {"bias": ft.optimizers.sgd(rate), ".*": ft.chain(ft.add_weight_decay(decay), ft.optimizers.sgd(rate))}
    )
    assert schedules_in(repr(tx)) == [rate, decay]


@pytest.mark.parametrize(
    "text",
    [
        "sgd(learning_rate=my_rate)",
        "print('x')",
        "cosine(start=open('x'), steps=3)",
        "Schedule(print)",
        "warmup(f, 3)",
    ],
)
def test_nothing_else_is_called(text, capsys):
    assert schedules_in(text) == []
    assert capsys.readouterr().out == ""


def test_no_expression_is_an_error():
    with pytest.raises(ft.ConfigError, match="`text` must be"):
        schedules_in("chain(")
