"""Losses: one value per example, stable in low precision, with weights that say what a mean divides by."""

from .._core.public import surface
from .classification import binary_cross_entropy as binary_cross_entropy, cross_entropy as cross_entropy
from .combine import combine as combine
from .loss import Loss as Loss
from .regression import huber as huber, mae as mae, mse as mse

__all__ = [
    "Loss",
    "binary_cross_entropy",
    "combine",
    "cross_entropy",
    "huber",
    "mae",
    "mse",
]

surface(__name__)
