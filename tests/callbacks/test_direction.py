"""Which values of a column are better is the metric's to say: no callback keeps the worst, and none guesses."""

import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.callbacks import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau
from fntrain.checkpoint.checkpointer import Checkpointer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3)).astype(np.float32)
LABELS = (X @ np.array([1, -2, 0.5], np.float32) > 0).astype(np.int32)


def loss_fn(params, batch, ctx):
    x, labels = batch
    logits = x @ params["w"]
    return ft.losses.cross_entropy(logits, labels).with_outputs(logits=logits, labels=labels)


TASK = ft.Task(
    loss_fn,
    ft.optimizers.sgd(0.5),
    metrics={
        "accuracy": ft.metrics.accuracy(),
        "one": ft.metrics.mean("labels"),
        "f": ft.metrics.f1(2),
        "binary": ft.metrics.collect(right=ft.metrics.accuracy(), perplexity=ft.metrics.perplexity()),
    },
)
# Every label is the other one at first, and the accuracy rises from there.
START = {"w": np.array([[1, -1], [-2, 2], [0.5, -0.5]], np.float32)}


def run(callbacks, epochs=8, validation=True, task=TASK):
    validation = {"validation_data": (X, LABELS)} if validation else {}
    state = ft.init_state(task, START)
    return ft.fit(
        task,
        state,
        (X, LABELS),
        batch_size=16,
        epochs=epochs,
        callbacks=callbacks,
        progress=False,
        **validation,
    )


class Script:
    """Writes these values over a column, an epoch each, and remembers the parameters."""

    def __init__(self, column, values):
        self.column, self.values, self.params = column, values, []

    def on_epoch_end(self, ctx):
        ctx.logs[self.column] = self.values[ctx.epoch - 1]
        self.params.append(np.asarray(ctx.state.params["w"]))


RISES = [0.2, 0.5, 0.9, 0.6, 0.4, 0.3]


def test_a_score_that_rises_stops_nothing_and_its_best_is_the_highest(tmp_path):
    stopping = EarlyStopping("val_accuracy", patience=2)
    saving = ModelCheckpoint(tmp_path, monitor="val_accuracy", save_best_only=True)
    result = run([stopping, saving])
    scores = result.history["val_accuracy"]
    assert scores[0] < 0.5 < scores[-1]  # it does rise
    assert len(scores) > 3  # as "min" it would have stopped after the third
    assert stopping.best == saving.best == max(scores)
    assert stopping.best_epoch == scores.index(max(scores)) + 1
    assert Checkpointer(tmp_path).steps() == [4 * stopping.best_epoch]


def test_a_score_that_falls_stops_the_run_and_the_best_comes_back(tmp_path):
    script = Script("val_accuracy", RISES)
    stopping = EarlyStopping("val_accuracy", patience=2, restore_best=True)
    saving = ModelCheckpoint(tmp_path, monitor="val_accuracy", save_best_only=True)
    result = run([script, stopping, saving])
    assert (result.history.epochs, stopping.best_epoch, stopping.best, saving.best) == (5, 3, 0.9, 0.9)
    np.testing.assert_array_equal(result.state.params["w"], script.params[2])
    assert Checkpointer(tmp_path).steps() == [12]


def test_one_file_keeps_the_best(tmp_path):
    path = tmp_path / "best.npz"
    script = Script("val_accuracy", RISES)
    run([script, ModelCheckpoint(path, monitor="val_accuracy")], epochs=6)
    with np.load(path) as file:
        np.testing.assert_array_equal(file["w"], script.params[2])
    # A column of one's own, with its mode.
    script = Script("mine", RISES)
    run([script, ModelCheckpoint(path, monitor="mine", mode="max")], epochs=6)
    with np.load(path) as file:
        np.testing.assert_array_equal(file["w"], script.params[2])
    run([script := Script("mine", RISES), ModelCheckpoint(path, monitor="mine", mode="min")], epochs=6)
    with np.load(path) as file:
        np.testing.assert_array_equal(file["w"], script.params[0])
    # Without a word about what is better, it is the last.
    run([script := Script("mine", RISES), ModelCheckpoint(path)], epochs=6, validation=False)
    with np.load(path) as file:
        np.testing.assert_array_equal(file["w"], script.params[-1])


@pytest.mark.parametrize("others", [[], [lambda logs: {"mine": 1.0}]], ids=["alone", "beside one that adds"])
def test_a_metric_goes_by_its_other_names_too(others, tmp_path):
    stopping = EarlyStopping(monitor="val_acc", patience=2)
    saving = ModelCheckpoint(filepath=tmp_path / "best.npz", monitor="val_acc", mode="max")
    scores = run([*others, stopping, saving]).history["val_accuracy"]
    assert stopping.best == saving.best == max(scores) > scores[0]


def test_a_column_of_a_name_is_that_column():
    stopping = EarlyStopping("val_acc", patience=2, mode="max")
    with pytest.raises(ft.ConfigError, match="was taken for 'val_accuracy', and a callback logs"):
        run([lambda logs: {"val_acc": 1.0}, stopping])
    # A task that has both; then, of the same instance, a run of one that has not.
    both = ft.Task(loss_fn, TASK.tx, {"acc": ft.metrics.accuracy(), "accuracy": ft.metrics.accuracy(top_k=2)})
    history = run([stopping], task=both).history
    assert stopping.best == max(history["val_acc"]) < max(history["val_accuracy"])
    scores = run([stopping]).history["val_accuracy"]
    assert stopping.best == max(scores)
    with pytest.raises(ft.ConfigError, match="'val_f1_scor'"):
        run([EarlyStopping("val_f1_scor", mode="max"), NoStep()])


MAKE = {
    "EarlyStopping": lambda path, *args, **kwargs: EarlyStopping(*args, **kwargs),
    "ReduceLROnPlateau": lambda path, *args, **kwargs: ReduceLROnPlateau(*args, **kwargs),
    "ModelCheckpoint": lambda path, *args, **kwargs: ModelCheckpoint(
        path, *args, save_best_only=True, **kwargs
    ),
    "ModelCheckpoint of one file": lambda path, *args, **kwargs: ModelCheckpoint(
        path / "best.npz", *args, **kwargs
    ),
}


class NoStep:
    adds_logs = False

    def on_step_end(self, ctx):
        pytest.fail("a step was run")


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("column", ["val_one", "one", "learning_rate"])
def test_a_column_of_unknown_direction_must_say_its_mode(name, column, tmp_path):
    with pytest.raises(ft.ConfigError, match=rf"`mode` must be \"min\" or \"max\" for '{column}'"):
        run([MAKE[name](tmp_path, column), NoStep()])
    run([MAKE[name](tmp_path, column, mode="max")], epochs=1)


@pytest.mark.parametrize("name", MAKE)
def test_so_must_one_that_a_callback_adds(name, tmp_path):
    script = Script("mine", RISES)
    with pytest.raises(ft.ConfigError, match="`mode` must be"):
        run([script, MAKE[name](tmp_path, "mine")])
    assert script.params == []


@pytest.mark.parametrize(
    "number",
    [
        jnp.float32,
        jnp.bfloat16,
        np.float32,
        np.float64,
        np.asarray,
        jnp.int32,
    ],
)
@pytest.mark.parametrize("name", MAKE)
def test_scalars_of_jax_and_numpy_are_monitored(name, number, tmp_path):
    values = [
        number(x) for x in ([2, 5, 9, 6, 4, 3] if number is jnp.int32 else [0.25, 0.5, 1, 0.5, 0.25, 0])
    ]
    watching = MAKE[name](tmp_path, "mine", mode="max")
    run([Script("mine", values), watching], epochs=6)
    if name != "ReduceLROnPlateau":
        assert watching.best == float(values[2])
    if name == "ModelCheckpoint":
        assert Checkpointer(tmp_path).steps() == [12]


def test_columns_that_come_from_a_metric_know_its_direction():
    history = run([], epochs=1).history
    known = {column: history.direction(column) for column in history}
    assert {column: better for column, better in known.items() if better} == {
        "loss": "min",
        "accuracy": "max",
        "f": "max",
        "binary/right": "max",
        "binary/perplexity": "min",
        "val_loss": "min",
        "val_accuracy": "max",
        "val_f": "max",
        "val_binary/right": "max",
        "val_binary/perplexity": "min",
    }


# --- every public metric -----------------------------------------------------------------------------------------

# Written out by hand: whoever adds a metric says here which of its values are better, or that none is.
BETTER = {
    "balanced_accuracy": "max",
    "bootstrap": "max",
    "brier": "min",
    "cohen_kappa": "max",
    "dice": "max",
    "expected_calibration_error": "min",
    "explained_variance": "max",
    "fbeta": "max",
    "iou": "max",
    "mape": "min",
    "mcc": "max",
    "ndcg": "max",
    "pearson": "max",
    "specificity": "max",
    "accuracy": "max",
    "average_precision": "max",
    "binary_stats": {"accuracy": "max", "precision": "max", "recall": "max", "f1": "max"},
    "collect": {"a": "max", "b": "min"},
    "confusion_matrix": None,
    "f1": "max",
    "mae": "min",
    "mean": None,
    "mean_average_precision": "max",
    "mse": "min",
    "per_class_accuracy": "max",
    "perplexity": "min",
    "precision": "max",
    "r2": "max",
    "recall": "max",
    "rmse": "min",
    "roc_auc": "max",
}

ARGUMENTS = {
    "bootstrap": dict(metric=ft.metrics.accuracy()),
    "balanced_accuracy": dict(num_classes=2),
    "cohen_kappa": dict(num_classes=2),
    "dice": dict(num_classes=2),
    "iou": dict(num_classes=2),
    "mcc": dict(num_classes=2),
    "specificity": dict(num_classes=2),
    "fbeta": dict(num_classes=2, beta=2.0),
    "collect": dict(a=ft.metrics.accuracy(), b=ft.metrics.mse(), c=ft.metrics.mean("x")),
    "confusion_matrix": dict(num_classes=2),
    "f1": dict(num_classes=2),
    "mean": dict(key="x"),
    "mean_average_precision": dict(num_classes=2),
    "per_class_accuracy": dict(num_classes=2),
    "precision": dict(num_classes=2),
    "recall": dict(num_classes=2),
}


@pytest.mark.parametrize("name", BETTER)
def test_a_metric_says_which_of_its_values_are_better(name):
    assert getattr(ft.metrics, name)(**ARGUMENTS.get(name, {})).better == BETTER[name]


def test_every_public_metric_is_in_the_table():
    made = {name for name, f in vars(ft.metrics).items() if getattr(f, "makes", None) is ft.metrics.Metric}
    assert made == set(BETTER)


def test_a_metric_of_ones_own_says_it_too(tmp_path):
    @ft.metrics.metric(better="max")
    def share():
        inner = ft.metrics.accuracy()
        return inner.empty, inner.update, inner.merge, inner.compute

    task = ft.Task(loss_fn, TASK.tx, metrics={"share": share()})
    stopping = EarlyStopping("val_share", patience=2)
    result = run([stopping], task=task)
    assert stopping.best == max(result.history["val_share"]) > 0.5
