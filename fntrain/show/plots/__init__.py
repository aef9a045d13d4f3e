"""Pictures of a run and of its results, as Matplotlib figures.

Every function returns a `matplotlib.figure.Figure` that belongs to nobody else: nothing is registered with
pyplot, so figures work without a display, need no closing, and show themselves in a notebook. The user's own
style settings neither change the pictures nor are changed by them.
"""

from ..._core.public import surface
from .confusion import confusion_matrix as confusion_matrix
from .learning_curves import learning_curves as learning_curves
from .lr_finding import lr_finding as lr_finding
from .population import population as population
from .ranking import precision_recall_curve as precision_recall_curve, roc_curve as roc_curve
from .schedules import schedule as schedule
from .text import text as text

__all__ = [
    "confusion_matrix",
    "learning_curves",
    "lr_finding",
    "population",
    "precision_recall_curve",
    "roc_curve",
    "schedule",
    "text",
]

surface(__name__)
