"""Callbacks by the short name: `from fntrain.callbacks import EarlyStopping`. They live in `fntrain.loop.callbacks`."""

from .loop.callbacks import (
    EVENTS as EVENTS,
    CallbackList as CallbackList,
    CSVLogger as CSVLogger,
    EarlyStopping as EarlyStopping,
    GradientStats as GradientStats,
    Histogram as Histogram,
    JSONLogger as JSONLogger,
    LearningRateScheduler as LearningRateScheduler,
    LoopContext as LoopContext,
    MetricLogger as MetricLogger,
    ModelCheckpoint as ModelCheckpoint,
    NaNGuard as NaNGuard,
    Profiler as Profiler,
    ProgressBar as ProgressBar,
    ReduceLROnPlateau as ReduceLROnPlateau,
    ResourceMonitor as ResourceMonitor,
    TensorBoardLogger as TensorBoardLogger,
    Watchdog as Watchdog,
)
