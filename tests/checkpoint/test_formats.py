"""Every format that a version has written is read: samples that were kept of each."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import fntrain as ft

SAMPLES = Path(__file__).with_name("samples")


# What run_format1 was made with, by the version whose identity of a task was its text.


def loss_fn(params, batch, ctx):
    x, y = batch
    return ft.losses.mse(x @ params["kernel"] + params["bias"], y)


def data():
    i = np.arange(40, dtype=np.float32)
    x = np.stack([np.sin(i), np.cos(2 * i), i / 40], axis=1).astype(np.float32)
    return x, (x @ np.array([1.0, -2.0, 0.5], np.float32) + 0.25).astype(np.float32)


def make_task(rate=0.05):
    optimizer = ft.optimizers.adamw(ft.schedules.cosine(rate, 20))
    return ft.Task(loss_fn, ft.MultiSteps(ft.chain(ft.clip_by_norm(1.0), optimizer), 2))


def fit(task, batch_size=16, **kwargs):
    params = {"kernel": np.zeros(3, np.float32), "bias": np.zeros((), np.float32)}
    stopping = ft.callbacks.EarlyStopping("loss", patience=5)
    return ft.fit(
        task,
        ft.init_state(task, params, key=3),
        data(),
        batch_size=batch_size,
        seed=5,
        progress=False,
        callbacks=[stopping],
        **kwargs,
    )


@pytest.fixture
def run(tmp_path):
    """A run of 5 steps: in the middle of its second epoch, and of an accumulation window."""
    shutil.unpack_archive(SAMPLES / "run_format1.zip", tmp_path / "run")
    return tmp_path / "run"


def test_a_run_of_format_1_is_read(run):
    with ft.Checkpointer(run / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [3, 5]
        state = checkpoints.restore(ft.init_state(make_task(), ft.restore_params(run / "checkpoints")))
    assert (int(state.step), int(state.updates)) == (5, 2)
    assert int(state.opt_state.mini_step) == 1
    np.testing.assert_allclose(state.params["kernel"], ft.restore_params(run / "checkpoints")["kernel"])


def test_a_run_of_format_1_goes_on_as_it_would_have(run):
    resumed = fit(make_task(), run_dir=run, resume=True, steps=12)
    straight = fit(make_task(), steps=12)
    assert resumed.history["loss"] == straight.history["loss"]
    np.testing.assert_array_equal(resumed.state.params["kernel"], straight.state.params["kernel"])
    # As the version that wrote it computed them.
    expected = [2.875120162963867, 2.5266506671905518, 2.2300186157226562, 2.0062732696533203]
    np.testing.assert_allclose(resumed.history["loss"], expected, rtol=1e-6)


def test_another_task_is_refused_by_the_text_that_format_1_kept(run):
    with pytest.raises(ft.ConfigError, match=r"(?s)0\.05.*0\.1"):
        fit(make_task(rate=0.1), run_dir=run, resume=True, steps=12)


def test_exported_parameters_of_format_1_are_read():
    pytest.importorskip("safetensors")
    params = ft.load(SAMPLES / "params_format1.safetensors")
    np.testing.assert_array_equal(params["kernel"], np.arange(6, dtype=np.float32).reshape(2, 3) / 7)
    assert float(params["bias"]) == np.float32(0.1)


def test_a_run_of_format_1_goes_on_with_another_batch_size(run):
    """Its place is counted in batches: behind two of 16 rows of 40 eight are left, then an epoch of 10."""
    resumed = fit(make_task(), batch_size=4, run_dir=run, resume=True, override=("batch_size",), epochs=3)
    assert int(resumed.state.step) == 5 + 2 + 10
    extra = ft.Checkpointer(run / "checkpoints").extra(step=17)
    assert extra["data_state"] == {"example": 0, "cut": [[0, 0, 16], [1, 32, 4]]}
