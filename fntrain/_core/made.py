"""Objects that print as the call that made them, and are otherwise what they are: a callback, say.

Unlike a `Value` such an object has a state of its own, so it is equal to itself alone, and another one is made of its
class for another run.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from .arguments import checked
from .value import call_text

_CALL = "(call)"  # no name that an attribute of a subclass could have


class Made:
    """Mixin: the repr is the call, without the arguments at their defaults; subclasses print as calls of their own.

    What an object was called with stays in it. Where that is not known, as its `__init__` was put into the class
    afterwards or it was unpickled without, the repr is the name of the class, and dots.
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if isinstance(init := vars(cls).get("__init__"), types.FunctionType):
            cls.__init__ = _remembered(checked(init))

    def __repr__(self) -> str:
        init = type(self).__init__
        if init is object.__init__:
            return f"{type(self).__name__}()"
        by, args, kwargs = vars(self).get(_CALL, (None, (), {}))
        if by is not init:
            return f"{type(self).__name__}(…)"
        signature = inspect.signature(init)
        bound = signature.bind(self, *args, **kwargs)
        this, *_ = bound.arguments
        del bound.arguments[this]
        return call_text(type(self).__name__, signature, bound.arguments)


def _remembered(init: Callable[..., None]) -> Callable[..., None]:
    """An `__init__` that leaves what it was called with in the object; of those that call each other, the outermost."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        vars(self).setdefault(_CALL, (__init__, args, kwargs))
        init(self, *args, **kwargs)

    return __init__
