"""Objects that print as the call that made them."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

import fntrain as ft
from fntrain._core.made import Made


class Stop(Made):
    def __init__(self, loss, *more, patience=3, name=None, **options):
        self.given = loss


class Sooner(Stop):
    def __init__(self, patience=1, where=None):
        super().__init__(0.5, patience=patience)  # a call inside another, which is not the one that is shown


class Same(Stop):
    pass


class Bare(Made):
    pass


def test_the_call_without_what_is_at_its_default():
    assert repr(Stop(0.5)) == "Stop(loss=0.5)"
    assert repr(Stop(loss=1, patience=3.0, name="a")) == "Stop(loss=1, name='a')"  # 3.0 is the default
    assert repr(Stop(1, 2, 3, patience=4, at="x")) == "Stop(loss=1, 2, 3, patience=4, at='x')"
    assert repr(Sooner()) == "Sooner()"
    assert repr(Sooner(2)) == "Sooner(patience=2)"
    assert repr(Same(2)) == "Same(loss=2)"
    assert repr(Bare()) == "Bare()"


def test_arguments_are_short_and_have_no_address(tmp_path):
    assert repr(Sooner(where=tmp_path)) == f"Sooner(where={str(tmp_path)!r})"
    assert repr(Sooner(where={"x": np.zeros((2, 3))})) == "Sooner(where={'x': float64[2, 3]})"
    assert repr(Sooner(where=ft.schedules.constant(0.1))) == "Sooner(where=constant(value=0.1))"
    assert repr(Sooner(where=print)) == "Sooner(where=print)"
    assert repr(Sooner(where=object())) == "Sooner(where=<object object>)"
    assert repr(Sooner(where=[Stop(1)])) == "Sooner(where=[Stop(loss=1)])"


def test_where_the_call_is_not_known_the_name_is():
    @dataclasses.dataclass(repr=False)
    class Later(Made):  # its `__init__` is put into the class when that is made already
        loss: float

    class Emptied(Stop):
        def __init__(self, loss):
            vars(self).clear()

    assert repr(Later(1)) == "Later(…)"
    assert repr(Emptied(1)) == "Emptied(…)"
    assert repr(Stop.__new__(Stop)) == "Stop(…)"


def test_a_copy_prints_as_what_it_is_of():
    made = Stop(0.5, patience=4)
    for again in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert repr(again) == "Stop(loss=0.5, patience=4)"
        assert again.given == 0.5


def test_a_call_that_does_not_fit_says_what_was_meant():
    with pytest.raises(TypeError, match=r"`patienc` is no argument of `Sooner.*did you mean 'patience'"):
        Sooner(patienc=3)
    with pytest.raises(TypeError, match="takes no arguments"):
        Bare(3)


def test_an_init_that_is_no_function_is_left_alone():
    class Odd(Made):
        __init__ = object.__init__

    assert repr(Odd()) == "Odd()"
