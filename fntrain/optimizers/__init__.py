"""Optimizers as users name them: chains of the transforms, under one spelling of every argument."""

from .._core.public import surface
from .adafactor import adafactor as adafactor
from .adam import adam as adam, adamw as adamw
from .aliases import ALIASES as ALIASES
from .foreign import from_optax as from_optax
from .lion import lion as lion
from .muon import muon as muon
from .names import OPTIMIZERS as OPTIMIZERS, PRESETS as PRESETS, get as get
from .rmsprop import rmsprop as rmsprop
from .sgd import sgd as sgd
from .soap import soap as soap

__all__ = [
    "ALIASES",
    "OPTIMIZERS",
    "PRESETS",
    "adafactor",
    "adam",
    "adamw",
    "from_optax",
    "get",
    "lion",
    "muon",
    "rmsprop",
    "sgd",
    "soap",
]

surface(__name__)
