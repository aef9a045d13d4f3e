"""Several validation sets by name, and validation at the average of the parameters."""

import numpy as np
import pytest

import fntrain as ft

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32)).astype(np.float32)
NEAR, FAR = (X[:11], Y[:11]), (X[:9] + 3, Y[:9])


def loss_fn(params, batch, ctx):
    predictions = batch[0] @ params["w"]
    return ft.losses.mse(predictions, batch[1]).with_outputs(predictions=predictions, targets=batch[1])


TASK = ft.Task(
    loss_fn, ft.chain(ft.optimizers.sgd(0.05), ft.ema(0.9)), {"r2": ft.metrics.r2(), "mae": ft.metrics.mae()}
)


def fit(**options):
    state = ft.init_state(TASK, {"w": np.zeros(3, np.float32)})
    options = {"epochs": 3, "batch_size": 8, "progress": False, **options}
    return ft.fit(TASK, state, (X, Y), **options)


def mse(w, data):
    return np.mean((data[0].astype(np.float64) @ np.asarray(w, np.float64) - data[1]) ** 2)


def test_each_set_has_its_columns_and_its_own_value():
    state, history = fit(validation_data=ft.named(val=NEAR, shifted=FAR))
    w = state.params["w"]
    assert history["val_loss"][-1] == pytest.approx(mse(w, NEAR), rel=1e-5)
    assert history["shifted_loss"][-1] == pytest.approx(mse(w, FAR), rel=1e-5)
    alone = fit(validation_data=NEAR)
    assert history["val_loss"] == alone.history["val_loss"]
    assert {"val_r2", "val_mae", "shifted_r2", "shifted_mae"} <= set(history)


def test_monitors_know_of_each_which_way_is_better():
    stopping = ft.callbacks.EarlyStopping("shifted_r2", patience=50)
    result = fit(validation_data=ft.named(val=NEAR, shifted=FAR), callbacks=[stopping])
    assert stopping.best == max(result.history["shifted_r2"])
    assert result.history.direction("shifted_mae") == "min"
    assert result.history.direction("other_mae") is None
    with pytest.raises(ft.ConfigError, match="shifted_lss"):
        fit(validation_data=ft.named(shifted=FAR), callbacks=[ft.callbacks.EarlyStopping("shifted_lss")])


def test_at_the_average_the_average_is_what_is_measured():
    state, history = fit(validation_data=NEAR, evaluate_at="averaged")
    mean = ft.averaged(state)["w"]
    assert history["val_loss"][-1] == pytest.approx(mse(mean, NEAR), rel=1e-5)
    assert history["val_loss"][-1] != pytest.approx(mse(state.params["w"], NEAR), rel=1e-2)
    both = fit(validation_data=NEAR, evaluate_at="both").history
    assert both["val_averaged_loss"] == history["val_loss"]
    assert both["val_loss"] == fit(validation_data=NEAR).history["val_loss"]
    stopping = ft.callbacks.EarlyStopping("val_averaged_r2", patience=50)
    result = fit(validation_data=NEAR, evaluate_at="both", callbacks=[stopping])
    assert stopping.best == max(result.history["val_averaged_r2"])


def test_inside_epochs_and_over_a_resume_too(tmp_path):
    options = dict(validation_data=ft.named(val=NEAR, shifted=FAR), evaluate_at="both", validation_every=2)
    straight = fit(**options)
    inside = [row for row in straight.history.rows() if row.get("unfinished")]
    assert inside
    assert {"val_loss", "val_averaged_loss", "shifted_loss", "shifted_averaged_loss"} <= set(inside[0])
    fit(**options, run_dir=tmp_path, epochs=2)
    again = fit(**options, run_dir=tmp_path, resume=True)
    assert again.history.rows() == straight.history.rows()


def test_one_evaluation_program_for_all_of_them():
    traces = []

    def counting(params, batch, ctx):
        if not ctx.train:
            traces.append(batch[0].shape)
        return loss_fn(params, batch, ctx)

    task = ft.Task(counting, TASK.tx)
    state = ft.init_state(task, {"w": np.zeros(3, np.float32)})
    data = ft.named(val=(X, Y), more=(X[:24], Y[:24]))
    ft.fit(
        task, state, (X, Y), epochs=2, batch_size=8, validation_data=data, evaluate_at="both", progress=False
    )
    assert len(traces) == 1


def test_what_cannot_be_is_refused_before_training():
    plain = ft.Task(loss_fn, ft.optimizers.sgd(0.1))
    state = ft.init_state(plain, {"w": np.zeros(3, np.float32)})
    with pytest.raises(ft.ConfigError, match="holds no average"):
        ft.fit(plain, state, (X, Y), validation_data=NEAR, evaluate_at="averaged", progress=False)
    with pytest.raises(ft.ConfigError, match="did you mean 'averaged'"):
        fit(validation_data=NEAR, evaluate_at="average")
    with pytest.raises(ft.ConfigError, match="`evaluate_at` is for `validation_data`"):
        fit(evaluate_at="averaged")
    with pytest.raises(ft.ConfigError, match="at least one data set"):
        ft.named()
    with pytest.raises(ft.ConfigError, match="'train' is a name of something else"):
        ft.named(train=NEAR)
    with pytest.raises(ft.DataError, match="`validation_data, shifted`"):
        fit(validation_data=ft.named(val=NEAR, shifted=()))
