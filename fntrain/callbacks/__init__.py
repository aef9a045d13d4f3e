"""Callbacks that are shipped, and the protocol they follow: objects with methods named as `EVENTS`."""

from .._core.public import surface
from ..run.callback import Callback as Callback
from ..run.context import Histogram as Histogram, LoopContext as LoopContext, Sample as Sample
from ..run.events import EVENTS as EVENTS, CallbackList as CallbackList
from ..show.progress import ProgressBar as ProgressBar
from .early_stopping import EarlyStopping as EarlyStopping
from .file_loggers import CSVLogger as CSVLogger, JSONLogger as JSONLogger
from .gradient_stats import GradientStats as GradientStats
from .live_plot import LivePlot as LivePlot
from .lr_scheduler import LearningRateScheduler as LearningRateScheduler
from .metric_logger import MetricLogger as MetricLogger
from .mlflow import MLflow as MLflow
from .model_checkpoint import ModelCheckpoint as ModelCheckpoint
from .nan_guard import NaNGuard as NaNGuard
from .profiler import Profiler as Profiler
from .reduce_lr import ReduceLROnPlateau as ReduceLROnPlateau
from .resource_monitor import ResourceMonitor as ResourceMonitor
from .samples import Samples as Samples
from .tensorboard import TensorBoardLogger as TensorBoard, TensorBoardLogger as TensorBoardLogger
from .wandb import WandB as WandB
from .watchdog import Watchdog as Watchdog

__all__ = [
    "EVENTS",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "GradientStats",
    "Histogram",
    "JSONLogger",
    "LearningRateScheduler",
    "LivePlot",
    "LoopContext",
    "MLflow",
    "MetricLogger",
    "ModelCheckpoint",
    "NaNGuard",
    "Profiler",
    "ProgressBar",
    "ReduceLROnPlateau",
    "ResourceMonitor",
    "Sample",
    "Samples",
    "TensorBoard",
    "TensorBoardLogger",
    "WandB",
    "Watchdog",
]

surface(__name__)
