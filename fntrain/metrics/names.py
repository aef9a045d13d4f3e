"""Metrics by name."""

import inspect
from collections.abc import Callable
from typing import Any

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .accuracy import accuracy
from .agreement import balanced_accuracy, cohen_kappa, mcc
from .base import Metric
from .binary import binary_stats
from .calibration import brier, expected_calibration_error
from .classification import dice, f1, fbeta, iou, precision, recall, specificity
from .confusion import confusion_matrix, per_class_accuracy
from .curves import average_precision, mean_average_precision, roc_auc
from .gain import ndcg
from .perplexity import perplexity
from .regression import explained_variance, mae, mape, mse, pearson, r2, rmse

METRICS: dict[str, Callable[..., Metric]] = {
    f.__name__: f
    for f in (
        accuracy,
        average_precision,
        balanced_accuracy,
        binary_stats,
        brier,
        cohen_kappa,
        confusion_matrix,
        dice,
        expected_calibration_error,
        explained_variance,
        f1,
        fbeta,
        iou,
        mae,
        mape,
        mcc,
        mean_average_precision,
        mse,
        ndcg,
        pearson,
        per_class_accuracy,
        perplexity,
        precision,
        r2,
        recall,
        rmse,
        roc_auc,
        specificity,
    )
}
"""The metrics that `get` knows, by name."""

ALIASES = {
    "acc": "accuracy",
    "auc": "roc_auc",
    "balanced_accuracy_score": "balanced_accuracy",
    "brier_score": "brier",
    "cohen_kappa_score": "cohen_kappa",
    "ece": "expected_calibration_error",
    "explained_variance_score": "explained_variance",
    "f1_score": "f1",
    "jaccard": "iou",
    "kappa": "cohen_kappa",
    "map": "mean_average_precision",
    "matthews_corrcoef": "mcc",
    "mean_absolute_error": "mae",
    "mean_squared_error": "mse",
    "precision_score": "precision",
    "r2_score": "r2",
    "recall_score": "recall",
    "roc_auc_score": "roc_auc",
    "root_mean_squared_error": "rmse",
    "sensitivity": "recall",
}
"""Other libraries' names of a metric."""


def canonical(name: Any) -> str:
    """The name of METRICS that is meant.

    Raises:
      ConfigError: if there is none.
    """
    if isinstance(name, str):
        name = ALIASES.get(name, name)
    check.one_of("metric", name, list(METRICS))
    return name


def get(name: str, **options: Any) -> Metric:
    """A metric by name.

    Args:
      name: of METRICS, or one of ALIASES.
      **options: its arguments.

    Raises:
      ConfigError: if there is no metric of that name, no such option, or one is missing.

    Examples:
      >>> import fntrain as ft
      >>> ft.metrics.get("f1_score", num_classes=10) == ft.metrics.f1(10)
      True
    """
    name = canonical(name)
    signature = inspect.signature(METRICS[name])
    known = list(signature.parameters)
    for option in options:
        if option not in known:
            raise ConfigError(
                f"`{option}` is no argument of {name}, which has {tree.some(known, len(known))}"
                + check.did_you_mean(option, known)
            )
    missing = [
        p.name for p in signature.parameters.values() if p.default is p.empty and p.name not in options
    ]
    if missing:
        raise ConfigError(f"`{name}` needs {tree.some(missing)}: `metrics.get({name!r}, {missing[0]}=…)`")
    return METRICS[name](**options)
