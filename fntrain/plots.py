"""Pictures under their short name, `fntrain.plots`; they are drawn in `fntrain.show.plots`."""

from .show.plots import (
    confusion_matrix as confusion_matrix,
    learning_curves as learning_curves,
    lr_finding as lr_finding,
    population as population,
    precision_recall_curve as precision_recall_curve,
    roc_curve as roc_curve,
    schedule as schedule,
    text as text,
)
