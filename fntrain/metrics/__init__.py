"""Metrics: pure reducers `(empty, update, merge, compute)`, exact under any split of the data."""

from .._core.public import surface
from .accuracy import accuracy as accuracy
from .areas import Bounded as Bounded
from .base import Metric as Metric, collect as collect, metric as metric
from .basic import mean as mean
from .binary import binary_stats as binary_stats
from .classification import f1 as f1, precision as precision, recall as recall
from .confusion import confusion_matrix as confusion_matrix, per_class_accuracy as per_class_accuracy
from .curves import (
    average_precision as average_precision,
    mean_average_precision as mean_average_precision,
    roc_auc as roc_auc,
)
from .exact import count_to_int as count_to_int
from .perplexity import perplexity as perplexity
from .regression import mae as mae, mse as mse, r2 as r2, rmse as rmse

__all__ = [
    "Bounded",
    "Metric",
    "accuracy",
    "average_precision",
    "binary_stats",
    "collect",
    "confusion_matrix",
    "count_to_int",
    "f1",
    "mae",
    "mean",
    "mean_average_precision",
    "metric",
    "mse",
    "per_class_accuracy",
    "perplexity",
    "precision",
    "r2",
    "recall",
    "rmse",
    "roc_auc",
]

surface(__name__)
