"""Losses: one value per example, stable in low precision, with weights that say what a mean divides by."""

from .._core.public import surface
from .classification import binary_cross_entropy as binary_cross_entropy, cross_entropy as cross_entropy
from .combine import combine as combine
from .divergence import kl_divergence as kl_divergence
from .focal import binary_focal as binary_focal, focal as focal
from .linear import linear_cross_entropy as linear_cross_entropy
from .loss import Loss as Loss
from .margin import hinge as hinge, squared_hinge as squared_hinge
from .names import LOSSES as LOSSES, get as get
from .overlap import dice as dice
from .regression import (
    cosine_distance as cosine_distance,
    huber as huber,
    log_cosh as log_cosh,
    mae as mae,
    mse as mse,
)

__all__ = [
    "LOSSES",
    "Loss",
    "binary_cross_entropy",
    "binary_focal",
    "combine",
    "cosine_distance",
    "cross_entropy",
    "dice",
    "focal",
    "get",
    "hinge",
    "huber",
    "kl_divergence",
    "linear_cross_entropy",
    "log_cosh",
    "mae",
    "mse",
    "squared_hinge",
]

surface(__name__)
