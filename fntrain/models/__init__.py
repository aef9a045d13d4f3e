"""The models people have, as what a task takes: `init` and `apply` over plain trees, and the module back."""

from .._core.public import surface
from ..step.state import Variables as Variables
from .equinox import equinox as equinox
from .haiku import haiku as haiku
from .linen import linen as linen
from .model import Model as Model
from .nnx import nnx as nnx
from .plain import plain as plain
from .remat import remat as remat
from .supervised import ALIASES as ALIASES

__all__ = ["ALIASES", "Model", "Variables", "equinox", "haiku", "linen", "nnx", "plain", "remat"]

surface(__name__)
