"""Gradient transforms: pairs `(init, update)` after optax's protocol, composed by `chain`."""

from .._core.public import surface
from .accumulate import MultiSteps as MultiSteps, MultiStepsState as MultiStepsState
from .adaptive import (
    ScaleByAdamState as ScaleByAdamState,
    ScaleByLionState as ScaleByLionState,
    ScaleByRmsState as ScaleByRmsState,
    scale_by_adam as scale_by_adam,
    scale_by_lion as scale_by_lion,
    scale_by_rms as scale_by_rms,
)
from .average import (
    EmaState as EmaState,
    LookaheadState as LookaheadState,
    averaged as averaged,
    ema as ema,
    lookahead as lookahead,
    sam as sam,
)
from .chain import chain as chain
from .clip import (
    ClipByNormState as ClipByNormState,
    RecordNormsState as RecordNormsState,
    clip_by_agc as clip_by_agc,
    clip_by_leaf_norm as clip_by_leaf_norm,
    clip_by_norm as clip_by_norm,
    clip_by_value as clip_by_value,
    record_norms as record_norms,
)
from .decay import (
    ScaleByLearningRateState as ScaleByLearningRateState,
    add_weight_decay as add_weight_decay,
    scale_by_learning_rate as scale_by_learning_rate,
)
from .graft import cautious as cautious, keep_norm as keep_norm
from .guard import (
    SkipNonfiniteState as SkipNonfiniteState,
    SkipSpikesState as SkipSpikesState,
    skip_nonfinite as skip_nonfinite,
    skip_spikes as skip_spikes,
)
from .hyperparams import (
    HyperparamsState as HyperparamsState,
    hyperparams as hyperparams,
    set_hyperparams as set_hyperparams,
    set_multiplier as set_multiplier,
    with_hyperparams as with_hyperparams,
)
from .loss_scale import (
    DynamicLossScaleState as DynamicLossScaleState,
    dynamic_loss_scale as dynamic_loss_scale,
    loss_scale as loss_scale,
)
from .momentum import MomentumState as MomentumState, momentum as momentum, nesterov as nesterov
from .muon import (
    COEFFICIENTS as COEFFICIENTS,
    SCALINGS as SCALINGS,
    ScaleByMuonState as ScaleByMuonState,
    orthogonalize as orthogonalize,
    scale_by_muon as scale_by_muon,
)
from .noise_scale import NoiseScaleState as NoiseScaleState, record_noise_scale as record_noise_scale
from .perturb import NoiseState as NoiseState, centralize as centralize, noise as noise
from .plateau import (
    Controller as Controller,
    PlateauState as PlateauState,
    ReduceOnPlateauState as ReduceOnPlateauState,
    StopOnPlateauState as StopOnPlateauState,
    controller as controller,
    plateau as plateau,
    reduce_on_plateau as reduce_on_plateau,
    stop_on_plateau as stop_on_plateau,
)
from .quantize import QuantizedState as QuantizedState, quantize_state as quantize_state
from .select import by_path as by_path, freeze as freeze
from .soap import ScaleBySoapState as ScaleBySoapState, scale_by_soap as scale_by_soap
from .types import (
    Averaging as Averaging,
    Guard as Guard,
    Moments as Moments,
    Recording as Recording,
    Transform as Transform,
    Window as Window,
    recorded as recorded,
    transform as transform,
)
from .updates import RecordUpdatesState as RecordUpdatesState, record_updates as record_updates
from .width import mup as mup, mup_params as mup_params

__all__ = [
    "COEFFICIENTS",
    "SCALINGS",
    "Averaging",
    "ClipByNormState",
    "Controller",
    "DynamicLossScaleState",
    "EmaState",
    "Guard",
    "HyperparamsState",
    "LookaheadState",
    "Moments",
    "MomentumState",
    "MultiSteps",
    "MultiStepsState",
    "NoiseScaleState",
    "NoiseState",
    "PlateauState",
    "QuantizedState",
    "RecordNormsState",
    "RecordUpdatesState",
    "Recording",
    "ReduceOnPlateauState",
    "ScaleByAdamState",
    "ScaleByLearningRateState",
    "ScaleByLionState",
    "ScaleByMuonState",
    "ScaleByRmsState",
    "ScaleBySoapState",
    "SkipNonfiniteState",
    "SkipSpikesState",
    "StopOnPlateauState",
    "Transform",
    "Window",
    "add_weight_decay",
    "averaged",
    "by_path",
    "cautious",
    "centralize",
    "chain",
    "clip_by_agc",
    "clip_by_leaf_norm",
    "clip_by_norm",
    "clip_by_value",
    "controller",
    "dynamic_loss_scale",
    "ema",
    "freeze",
    "hyperparams",
    "keep_norm",
    "lookahead",
    "loss_scale",
    "momentum",
    "mup",
    "mup_params",
    "nesterov",
    "noise",
    "orthogonalize",
    "plateau",
    "quantize_state",
    "record_noise_scale",
    "record_norms",
    "record_updates",
    "recorded",
    "reduce_on_plateau",
    "sam",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_muon",
    "scale_by_rms",
    "scale_by_soap",
    "set_hyperparams",
    "set_multiplier",
    "skip_nonfinite",
    "skip_spikes",
    "stop_on_plateau",
    "transform",
    "with_hyperparams",
]

surface(__name__)
