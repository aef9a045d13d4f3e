"""Schedules: functions from the count of optimizer updates to a float32 value.

Every schedule subtracts, clips and divides the count as an integer, and makes a float of the result alone. So
values are exact where two pieces meet, and do not degrade past the 2^24 updates that float32 can count. The
first update is 0; a negative count is taken as 0.

Arguments by name read the same everywhere, whatever their order by position, which follows how each is
spoken of: `start` and `end` are values, `steps` a number of updates, as in `linear(start=0.1, end=0.0, steps=800)`
and `cosine(start=0.1, end=0.0, steps=800)`.

A length may be a fraction of the run, a float in (0, 1]: `warmup(cosine(1e-3, 0.95), 0.05)`. `fit` knows how many
updates that is; a loop of one's own says it, `resolved(tx, updates)`.

Values of the plain schedules are >= 0, like every rate, decay, momentum and norm; `scale` can turn the sign.
Wherever a schedule is taken as an argument, a number or any function of the step will do.
"""

from .._core.public import surface
from .combine import (
    cooldown as cooldown,
    in_epochs as in_epochs,
    join as join,
    offset as offset,
    scale as scale,
    warmup as warmup,
    wsd as wsd,
)
from .cycles import one_cycle as one_cycle, sgdr as sgdr
from .decays import (
    cosine as cosine,
    exponential as exponential,
    linear as linear,
    piecewise as piecewise,
    polynomial as polynomial,
    rsqrt as rsqrt,
    step_decay as step_decay,
)
from .lengths import resolved as resolved
from .names import FORMS as FORMS, get as get
from .types import Schedule as Schedule, constant as constant, schedule as schedule

__all__ = [
    "FORMS",
    "Schedule",
    "constant",
    "cooldown",
    "cosine",
    "exponential",
    "get",
    "in_epochs",
    "join",
    "linear",
    "offset",
    "one_cycle",
    "piecewise",
    "polynomial",
    "resolved",
    "rsqrt",
    "scale",
    "schedule",
    "sgdr",
    "step_decay",
    "warmup",
    "wsd",
]

surface(__name__)
