"""Metrics: pure reducers `(empty, update, merge, compute)`, exact under any split of the data."""

from ._base import Metric as Metric, collect as collect, count_to_int as count_to_int, metric as metric
from .basic import mean as mean
from .classification import (
    accuracy as accuracy,
    binary_stats as binary_stats,
    confusion_matrix as confusion_matrix,
    f1 as f1,
    per_class_accuracy as per_class_accuracy,
    perplexity as perplexity,
    precision as precision,
    recall as recall,
)
from .curves import (
    Bounded as Bounded,
    average_precision as average_precision,
    mean_average_precision as mean_average_precision,
    roc_auc as roc_auc,
)
from .regression import mae as mae, mse as mse, r2 as r2, rmse as rmse
