"""Importing the library is light, and everything public is importable from the root."""

import subprocess
import sys

import pytest

HEAVY = ("orbax", "rich", "flax", "matplotlib", "sklearn", "tensorboardX", "grain", "optuna", "pandas")


def loaded(code: str) -> set[str]:
    """Which heavy packages are in sys.modules after running `code` in a fresh interpreter."""
    code += f"\nimport sys; print('\\n'.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_loads_nothing_heavy():
    # What jax and optax load themselves is not ours.
    assert loaded("import fntrain") == loaded("import jax, optax") == set()


def test_the_check_sees_a_heavy_import():
    assert loaded("import fntrain, rich") == {"rich"}


PUBLIC = [
    "clip_by_leaf_norm",
    "record_norms",
    "skip_nonfinite",
    "ema",
    "averaged",
    "lookahead",
    "sam",
    "by_path",
    "freeze",
    "scale_by_adam",
    "scale_by_rms",
    "scale_by_learning_rate",
    "reduce_on_plateau",
    "with_hyperparams",
    "set_hyperparams",
    "hyperparams",
    "Checkpointer",
    "Keep",
    "restore_params",
    "scores.classification_metrics",
    "plots.learning_curves",
    "testing.check_transform",
    "tools.describe",
    "tools.coord_check",
    "tools.lr_find",
    "transforms.mup",
    "callbacks.Callback",
    "tools.fit_memory",
    "metrics.bootstrap",
    "scores.bootstrap",
    "scores.compare",
    "plots.population",
    "population.init",
    "population.fit",
    "population.search",
    "population.cross_validate",
    "callbacks.EarlyStopping",
    "callbacks.ModelCheckpoint",
    "callbacks.CSVLogger",
    "callbacks.JSONLogger",
    "callbacks.TensorBoardLogger",
    "callbacks.MetricLogger",
    "callbacks.ProgressBar",
    "callbacks.LearningRateScheduler",
    "callbacks.ReduceLROnPlateau",
    "callbacks.GradientStats",
    "callbacks.ResourceMonitor",
    "callbacks.Profiler",
    "callbacks.NaNGuard",
    "Task",
    "Loss",
    "Context",
    "TrainState",
    "init_state",
    "train_step",
    "train_steps",
    "eval_step",
    "compute_gradients",
    "compute_metrics",
    "merge_metrics",
    "flush",
    "fit",
    "evaluate",
    "FitResult",
    "data_loader",
    "Policy",
    "Transform",
    "MultiSteps",
    "chain",
    "clip_by_norm",
    "clip_by_value",
    "add_weight_decay",
    "momentum",
    "nesterov",
    "ConfigError",
    "DataError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointCorruptError",
    "RunLockedError",
    "NonFiniteError",
    "transforms.clip_by_norm",
    "transforms.chain",
    "transforms.MultiSteps",
    "transforms.scale_by_adam",
    "transforms.scale_by_learning_rate",
    "optimizers.sgd",
    "optimizers.adamw",
    "schedules.constant",
    "schedules.cosine",
    "schedules.warmup",
    "schedules.join",
    "losses.cross_entropy",
    "losses.mse",
    "metrics.Metric",
    "metrics.collect",
    "metrics.mean",
    "metrics.accuracy",
    "metrics.confusion_matrix",
    "sharding.mesh",
    "sharding.fsdp",
    "sharding.shard_batch",
    "sharding.report",
    "sharding.plan",
    "sharding.initialize",
    "sharding.to_host",
    "tools.compile_report",
    "tools.profile_step",
    "tools.trace",
    "precision.Policy",
    "callbacks.CallbackList",
    "tree",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_there_and_documented(name):
    import fntrain

    value = fntrain
    for part in name.split("."):
        value = getattr(value, part)
    assert value.__doc__
    assert value.__doc__.strip()


def test_errors_are_also_the_builtin_kinds():
    import fntrain as ft

    assert issubclass(ft.ConfigError, ValueError)
    assert issubclass(ft.DataError, ValueError)
    assert issubclass(ft.CheckpointError, RuntimeError)
    for error in (ft.CheckpointMismatchError, ft.CheckpointCorruptError, ft.RunLockedError):
        assert issubclass(error, ft.CheckpointError)
    assert issubclass(ft.NonFiniteError, FloatingPointError)
