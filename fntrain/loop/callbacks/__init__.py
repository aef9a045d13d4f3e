"""Callbacks: the protocol, and those that are shipped."""

from ..progress import ProgressBar as ProgressBar
from ._protocol import (
    EVENTS as EVENTS,
    CallbackList as CallbackList,
    Histogram as Histogram,
    LoopContext as LoopContext,
)
from .checkpointing import ModelCheckpoint as ModelCheckpoint
from .loggers import (
    CSVLogger as CSVLogger,
    JSONLogger as JSONLogger,
    MetricLogger as MetricLogger,
    TensorBoardLogger as TensorBoardLogger,
)
from .monitors import (
    GradientStats as GradientStats,
    Profiler as Profiler,
    ResourceMonitor as ResourceMonitor,
)
from .rates import LearningRateScheduler as LearningRateScheduler, ReduceLROnPlateau as ReduceLROnPlateau
from .stopping import EarlyStopping as EarlyStopping, NaNGuard as NaNGuard
from .watchdog import Watchdog as Watchdog
