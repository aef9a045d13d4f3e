"""A rule: a number that a run shows, and the threshold beyond which it is a cause."""

from collections.abc import Callable
from typing import NamedTuple

from .evidence import Evidence
from .picture import Picture


class Seen(NamedTuple):
    """What a rule sees in a run."""

    number: float
    says: str  # what the number is, in words
    advice: str
    picture: Callable[[], Picture | None] = lambda: None  # drawn only of what is found


class Rule(NamedTuple):
    """A rule of a family."""

    name: str
    threshold: float
    below: bool  # whether it is a cause below the threshold, and not above
    look: Callable[[Evidence], Seen | str]  # text says which evidence is missing


RULES: dict[str, Rule] = {}
"""All rules by name, in the order in which they are looked at."""


def rule(
    *, above: float | None = None, below: float | None = None
) -> Callable[[Callable[..., Seen | str]], Rule]:
    """Decorator: a function of the Evidence, under its own name."""

    def made(look: Callable[[Evidence], Seen | str]) -> Rule:
        threshold = above if above is not None else below
        assert threshold is not None
        RULES[look.__name__] = Rule(look.__name__, threshold, above is None, look)
        return RULES[look.__name__]

    return made
