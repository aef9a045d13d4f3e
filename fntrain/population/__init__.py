"""Many runs in one program: a population's state, controllers, a loop, folds and searches."""

from .._core.public import surface
from .control import Controller as Controller, Rungs as Rungs, asha as asha, halving as halving, pbt as pbt
from .fit import PopulationResult as PopulationResult, evaluate as evaluate, fit as fit
from .folds import CrossValidation as CrossValidation, cross_validate as cross_validate
from .orders import orders as orders
from .search import SearchResult as SearchResult, search as search
from .states import (
    grid as grid,
    init as init,
    member as member,
    per_member as per_member,
    select as select,
    size as size,
    stack as stack,
    step as step,
    steps as steps,
)

__all__ = [
    "Controller",
    "CrossValidation",
    "PopulationResult",
    "Rungs",
    "SearchResult",
    "asha",
    "cross_validate",
    "evaluate",
    "fit",
    "grid",
    "halving",
    "init",
    "member",
    "orders",
    "pbt",
    "per_member",
    "search",
    "select",
    "size",
    "stack",
    "step",
    "steps",
]

surface(__name__)
