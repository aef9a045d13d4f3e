"""What a fingerprint sees besides a function's own code, and what its differences say."""

import functools

import pytest

from fntrain._core.fingerprint import differences, fingerprint

MODULE = """
def deep(x):
    return x + {number}

def helper(x, by=2):
    return deep(x) * by

def loss(x):
    return [helper(y) for y in x]

def other(x):
    return x
"""


def loss_of(number, **changes):
    names = {"__name__": "mine"}
    exec(MODULE.format(number=number), names)
    names.update(changes)
    return names["loss"]


def test_functions_of_the_same_module_are_followed_to_the_end():
    assert differences(fingerprint(loss_of(1)), fingerprint(loss_of(1))) == []
    assert differences(fingerprint(loss_of(1)), fingerprint(loss_of(2))) == [
        "helpers.deep: the code of `deep` is another one"
    ]
    # What the function does not call is not looked at, nor is a name that is no function's.
    assert differences(fingerprint(loss_of(1)), fingerprint(loss_of(1, other=lambda x: -x))) == []


def test_a_run_saved_before_helpers_were_followed_goes_on():
    saved = fingerprint(loss_of(1))
    del saved["helpers"]
    assert differences(saved, fingerprint(loss_of(1))) == []


def test_two_functions_that_call_each_other_end():
    names = {"__name__": "mine"}
    exec("def a(x): return b(x)\ndef b(x): return a(x)", names)
    assert set(fingerprint(names["a"])["helpers"]) == {"b"}


class Slotted:
    __slots__ = ("a", "unset")

    def __init__(self, a):
        self.a = a

    def __call__(self, x):
        return x * self.a


class Below(Slotted):
    __slots__ = "b"

    def __init__(self, a, b):
        super().__init__(a)
        self.b = b


def test_values_in_slots_count():
    assert differences(fingerprint(Slotted(1)), fingerprint(Slotted(1))) == []
    assert differences(fingerprint(Slotted(1)), fingerprint(Slotted(2))) == ["a: saved 1, now 2"]
    assert differences(fingerprint(Below(1, 2)), fingerprint(Below(1, 3))) == ["b: saved 2, now 3"]
    assert differences(fingerprint(Below(1, 2)), fingerprint(Below(0, 2))) == ["a: saved 1, now 0"]


@pytest.mark.parametrize(("value", "text"), [(True, "True"), (float("inf"), "inf"), (float("nan"), "nan")])
def test_text_is_not_what_it_spells(value, text):
    assert differences(fingerprint(value), fingerprint(text)) == [f": saved {text}, now '{text}'"]


def test_none_is_not_what_is_not_there():
    with_none = fingerprint(functools.partial(round, number=1, ndigits=None))
    without = fingerprint(functools.partial(round, number=1))
    lines = [line for line in differences(with_none, without) if "(order)" not in line]
    assert lines == ["keywords.ndigits: saved None, now nothing"]


def test_no_path_begins_with_a_dot():
    assert differences(fingerprint([(1, 2)]), fingerprint([(1, 3)])) == ["0.1: saved 2, now 3"]
