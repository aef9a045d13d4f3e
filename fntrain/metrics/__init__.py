"""Metrics: pure reducers `(empty, update, merge, compute)`, exact under any split of the data."""

from .._core.interval import Interval as Interval
from .._core.public import surface
from .accuracy import accuracy as accuracy
from .agreement import balanced_accuracy as balanced_accuracy, cohen_kappa as cohen_kappa, mcc as mcc
from .areas import Bounded as Bounded
from .base import Metric as Metric, collect as collect, metric as metric
from .basic import mean as mean
from .binary import binary_stats as binary_stats
from .calibration import brier as brier, expected_calibration_error as expected_calibration_error
from .classification import (
    dice as dice,
    f1 as f1,
    fbeta as fbeta,
    iou as iou,
    precision as precision,
    recall as recall,
    specificity as specificity,
)
from .confusion import confusion_matrix as confusion_matrix, per_class_accuracy as per_class_accuracy
from .curves import (
    average_precision as average_precision,
    mean_average_precision as mean_average_precision,
    roc_auc as roc_auc,
)
from .exact import count_to_int as count_to_int
from .gain import ndcg as ndcg
from .intervals import bootstrap as bootstrap
from .names import METRICS as METRICS, get as get
from .perplexity import perplexity as perplexity
from .regression import (
    explained_variance as explained_variance,
    mae as mae,
    mape as mape,
    mse as mse,
    pearson as pearson,
    r2 as r2,
    rmse as rmse,
)

__all__ = [
    "METRICS",
    "Bounded",
    "Interval",
    "Metric",
    "accuracy",
    "average_precision",
    "balanced_accuracy",
    "binary_stats",
    "bootstrap",
    "brier",
    "cohen_kappa",
    "collect",
    "confusion_matrix",
    "count_to_int",
    "dice",
    "expected_calibration_error",
    "explained_variance",
    "f1",
    "fbeta",
    "get",
    "iou",
    "mae",
    "mape",
    "mcc",
    "mean",
    "mean_average_precision",
    "metric",
    "mse",
    "ndcg",
    "pearson",
    "per_class_accuracy",
    "perplexity",
    "precision",
    "r2",
    "recall",
    "rmse",
    "roc_auc",
    "specificity",
]

surface(__name__)
