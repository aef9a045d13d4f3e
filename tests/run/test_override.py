"""What may change on a resume is said, noted, and refused where it cannot be; lost checkpoints are said by name."""

import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.checkpoint.keep import Keep
from fntrain.run import directory, identity
from fntrain.run.history import History

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3)).astype(np.float32)


def loss_fn(params, batch, ctx):
    values = batch * params["w"][None]
    return ft.losses.mse(values, batch).with_outputs(x=values, y=batch)


def fit(place, rate=0.1, data=X, metrics=None, **options):
    task = ft.Task(loss_fn, ft.optimizers.sgd(rate), metrics or {})
    state = ft.init_state(task, {"w": jnp.zeros(3)})
    options = {"batch_size": 16, "resume": True, "progress": False, **options}
    return ft.fit(task, state, data, run_dir=place, **options)


def noted(place):
    return json.loads((place / "config.json").read_text()).get("overridden", [])


def test_a_refusal_shows_the_way_and_the_way_works(tmp_path):
    place = tmp_path / "run"
    fit(place, epochs=1)
    with pytest.raises(ft.CheckpointMismatchError, match=r'`override=\("tx",\)`'):
        fit(place, rate=0.2, epochs=2)
    assert noted(place) == []
    result = fit(place, rate=0.2, epochs=2, override=("tx",))
    assert result.history["learning_rate"] == pytest.approx([0.1, 0.2])
    assert noted(place) == [{"step": 4, "changes": ["task.tx.learning_rate: saved 0.1, now 0.2"]}]
    fit(place, rate=0.2, epochs=3)  # it is the run's own now
    assert len(noted(place)) == 1


def test_only_what_is_named_may_differ(tmp_path):
    place = tmp_path / "run"
    fit(place, epochs=1)
    with pytest.raises(ft.CheckpointMismatchError, match=r"\n  seed: saved 0, now 1$"):
        fit(place, rate=0.2, seed=1, epochs=2, override=("tx",))
    assert noted(place) == []


def test_other_metrics_and_another_batch_size_from_one_epoch_to_the_next(tmp_path):
    place = tmp_path / "run"
    fit(place, epochs=1)
    metrics = {"mae": ft.metrics.mae("x", "y")}
    result = fit(place, metrics=metrics, batch_size=32, epochs=2, override=("metrics", "batch_size"))
    assert result.history["step"] == [4, 6]
    assert result.history["mae"][0] is None
    assert result.history["mae"][1] > 0


@pytest.mark.parametrize("options", [{"seed": 1}, {"data": X[:32]}])
def test_not_inside_an_epoch(options, tmp_path):
    place, (name,) = tmp_path / "run", options
    fit(place, steps=6)
    with pytest.raises(ft.ConfigError, match=r"inside epoch 2.*`epochs=2`"):
        fit(place, epochs=3, override=(name,), **options)
    fit(place, epochs=2)
    fit(place, epochs=3, override=(name,), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"override": "tx"}, r"write `override=\('tx',\)`"),
        ({"override": ("optimiser",)}, "`override` must be one of 'loss_fn', 'tx'"),
        ({"override": ("batchsize",)}, "did you mean 'batch_size'"),
        ({"override": ("tx",), "resume": False}, "needs `resume=True`"),
    ],
)
def test_what_override_may_be(options, message, tmp_path):
    with pytest.raises(ft.ConfigError, match=message):
        fit(tmp_path / "run", epochs=1, **options)


def test_another_version_is_named(tmp_path, monkeypatch):
    place = tmp_path / "run"
    now = identity.versions()
    monkeypatch.setattr(directory, "versions", lambda: {**now, "jax": "0.1.0"})
    fit(place, epochs=1)
    with pytest.warns(RuntimeWarning, match=f"jax 0.1.0, and this is {now['jax']}"):
        fit(place, epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(place, epochs=2, override=("versions",))
    assert "jax 0.1.0" in noted(place)[-1]["changes"][0]


# Lost checkpoints.


def emptied(place, steps):
    for step in steps:
        for path in (place / "checkpoints" / str(step)).rglob("*"):
            if path.is_file():
                path.unlink()


def test_a_checkpoint_whose_files_are_gone_is_named(tmp_path):
    place = tmp_path / "run"
    straight = fit(place, epochs=3)
    emptied(place, [12])
    with pytest.warns(RuntimeWarning, match="the files of `step 12` are gone"):
        result = fit(place, epochs=3)
    assert result.history.rows() == straight.history.rows()


def test_with_all_gone_a_run_does_not_start_over_silently(tmp_path):
    place = tmp_path / "run"
    fit(place, epochs=3)
    emptied(place, [4, 8, 12])
    with pytest.raises(ft.CheckpointCorruptError, match="`step 4`, `step 8`, `step 12` are gone"):
        fit(place, epochs=3)
    with pytest.raises(ft.CheckpointCorruptError, match="files of step 4, 8, 12 are gone"):
        ft.restore_params(place)


def test_parameters_of_a_run_are_found_in_its_directory(tmp_path):
    place = tmp_path / "run"
    result = fit(place, epochs=3, validation_data=X)
    assert np.array_equal(ft.restore_params(place)["w"], result.state.params["w"])
    with Checkpointer(place / "checkpoints") as checkpoints:
        assert checkpoints.best_step == 12
    assert np.array_equal(ft.restore_params(place, "best")["w"], result.state.params["w"])


# Which steps stay.


def test_steps_that_are_not_finite_push_no_other_out():
    losses = {1: 0.3, 2: 0.1, 3: 0.2, 4: 0.05, 5: 0.01}
    keep = Keep(latest=2, best=("loss", "auto"))
    metrics = {step: {"loss": loss} for step, loss in losses.items()}
    assert keep.kept(metrics) == {4, 5}
    assert keep.kept(metrics, spoilt={4, 5}) == {2, 3}
    assert keep.kept(metrics, spoilt={3, 4, 5}) == {1, 2}
    assert keep.kept(metrics, spoilt=set(losses)) == {4, 5}


def test_the_direction_of_a_loss_is_known_and_of_others_asked_for():
    assert Keep() == Keep(best=("val_loss", "min")) == Keep(best=("val_loss", "auto"))
    with pytest.raises(ft.ConfigError, match=r"`best` must say \"min\" or \"max\" for 'val_accuracy'"):
        Keep(best=("val_accuracy", "auto"))


def test_the_best_of_a_history_looks_at_each_row_once():
    history = History()
    looked = []

    class Row(dict):
        def get(self, key, default=None):
            looked.append(key)
            return super().get(key, default)

    for n in range(100):
        history.append({"loss": float(100 - n)})
        history._rows[-1] = Row(history._rows[-1])
        assert history.best("loss", "min") == 100 - n
        assert history.best("loss", "max") == 100
    assert looked.count("loss") == 200
