"""fntrain: a JAX-native functional training toolkit.

Three nouns, each a small value made of pure functions: transforms `(init, update)`, schedules `step -> value`,
metrics `(empty, update, merge, compute)`. Three verbs over one pytree: `init_state`, `train_step`, `eval_step`.
"""

from . import (
    callbacks as callbacks,
    losses as losses,
    metrics as metrics,
    models as models,
    optimizers as optimizers,
    population as population,
    precision as precision,
    schedules as schedules,
    scores as scores,
    sharding as sharding,
    testing as testing,
    tools as tools,
    transforms as transforms,
    tree as tree,
)
from ._core import errors as errors
from ._core.errors import (
    CheckpointCorruptError as CheckpointCorruptError,
    CheckpointError as CheckpointError,
    CheckpointMismatchError as CheckpointMismatchError,
    ConfigError as ConfigError,
    ConsumedStateError as ConsumedStateError,
    DataError as DataError,
    NonFiniteError as NonFiniteError,
    RunLockedError as RunLockedError,
)
from ._core.public import surface
from .checkpoint.checkpointer import Checkpointer as Checkpointer
from .checkpoint.keep import Keep as Keep
from .checkpoint.params import restore_params as restore_params
from .checkpoint.safetensors import export as export, load as load
from .data.arrays import data_loader as data_loader
from .data.named import named as named
from .data.split import split as split
from .losses.loss import Loss as Loss
from .models.supervised import supervised as supervised
from .precision import Policy as Policy
from .run.epoch import evaluate as evaluate, run_epoch as run_epoch, steps as steps
from .run.fit import FitResult as FitResult, fit as fit
from .run.predict import predict as predict
from .show import plots as plots
from .step.provenance import BadStep as BadStep, bad_step as bad_step
from .step.state import TrainState as TrainState, init_state as init_state
from .step.step import (
    compute_gradients as compute_gradients,
    compute_metrics as compute_metrics,
    empty_metrics as empty_metrics,
    eval_step as eval_step,
    flush as flush,
    merge_metrics as merge_metrics,
    train_step as train_step,
    train_steps as train_steps,
)
from .step.task import Context as Context, Task as Task
from .transforms import (
    MultiSteps as MultiSteps,
    Transform as Transform,
    add_weight_decay as add_weight_decay,
    averaged as averaged,
    by_path as by_path,
    chain as chain,
    clip_by_leaf_norm as clip_by_leaf_norm,
    clip_by_norm as clip_by_norm,
    clip_by_value as clip_by_value,
    dynamic_loss_scale as dynamic_loss_scale,
    ema as ema,
    freeze as freeze,
    hyperparams as hyperparams,
    lookahead as lookahead,
    momentum as momentum,
    nesterov as nesterov,
    record_norms as record_norms,
    reduce_on_plateau as reduce_on_plateau,
    sam as sam,
    scale_by_adam as scale_by_adam,
    scale_by_learning_rate as scale_by_learning_rate,
    scale_by_lion as scale_by_lion,
    scale_by_rms as scale_by_rms,
    set_hyperparams as set_hyperparams,
    skip_nonfinite as skip_nonfinite,
    skip_spikes as skip_spikes,
    stop_on_plateau as stop_on_plateau,
    with_hyperparams as with_hyperparams,
)

__version__ = "0.1.0"

__all__ = [
    "Checkpointer",
    "Context",
    "FitResult",
    "Keep",
    "Loss",
    "MultiSteps",
    "Policy",
    "Task",
    "TrainState",
    "Transform",
    "by_path",
    "callbacks",
    "chain",
    "clip_by_norm",
    "compute_gradients",
    "compute_metrics",
    "data_loader",
    "empty_metrics",
    "errors",
    "eval_step",
    "evaluate",
    "export",
    "fit",
    "flush",
    "init_state",
    "load",
    "losses",
    "merge_metrics",
    "metrics",
    "models",
    "named",
    "optimizers",
    "plots",
    "population",
    "precision",
    "predict",
    "restore_params",
    "run_epoch",
    "schedules",
    "scores",
    "sharding",
    "split",
    "steps",
    "supervised",
    "testing",
    "tools",
    "train_step",
    "train_steps",
    "transforms",
    "tree",
]

surface(__name__, hot=("TrainState",))  # each step makes one
