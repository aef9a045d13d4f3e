"""Names have one owner: what a step and a row report is never replaced; a state of one's own declares what it is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft

X = np.ones(8, np.float32)


def loss_fn(params, batch, ctx):
    return ft.losses.mse(batch * params["w"], batch).with_outputs(x=batch)


def start(task):
    return ft.init_state(task, {"w": np.float32(0)})


class Seen(NamedTuple):
    f1: Any
    largest: Any


class SeenState(ft.transforms.Recording, Seen):
    records = ("f1", "largest")


@ft.transforms.transform
def watch():
    def init(params):
        return SeenState(jnp.zeros(()), jnp.zeros(()))

    def update(updates, state, params=None, **extra):
        return updates, SeenState(jnp.float32(123), jnp.float32(7))

    return init, update


PLACES = {
    "alone": lambda tx: ft.chain(tx, ft.optimizers.sgd(0.1)),
    "in a window": lambda tx: ft.MultiSteps(ft.chain(tx, ft.optimizers.sgd(0.1)), 2),
    "under a guard": lambda tx: ft.skip_nonfinite(ft.chain(tx, ft.optimizers.sgd(0.1))),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["f1", "largest"])
def test_a_metric_of_a_name_that_the_optimizer_records_is_refused_before_any_step(name, place):
    task = ft.Task(loss_fn, PLACES[place](watch()), metrics={name: ft.metrics.mean("x")})
    with pytest.raises(ft.ConfigError, match=rf"`metrics`: `{name}` is what the optimizer records") as error:
        start(task)
    assert "watch()" in str(error.value)


def test_beside_metrics_of_other_names_what_is_recorded_is_reported():
    task = ft.Task(loss_fn, PLACES["alone"](watch()), metrics={"ones": ft.metrics.mean("x")})
    state, metrics = ft.train_step(task, start(task), X)
    values = ft.compute_metrics(task, metrics)
    assert (float(values["f1"]), float(values["largest"]), float(values["ones"])) == (123, 7, 1)
    assert float(state.params["w"]) > 0


@pytest.mark.parametrize("name", ["epoch", "step", "val_loss", "val_f1"])
def test_a_metric_of_a_columns_name_is_refused(name):
    with pytest.raises(ft.ConfigError, match=rf"`metrics`: the name '{name}' is a column of the history"):
        ft.Task(loss_fn, ft.optimizers.sgd(0.1), metrics={name: ft.metrics.mean("x")})


@pytest.mark.parametrize("name", ["loss", "learning_rate", "grad_norm", "skipped", "loss_scale", "loss/part"])
def test_a_metric_of_a_name_that_steps_report_is_refused(name):
    with pytest.raises(ft.ConfigError, match=rf"`metrics`: the name '{name}' is one the step reports"):
        ft.Task(loss_fn, ft.optimizers.sgd(0.1), metrics={name: ft.metrics.mean("x")})


# --- a state of one's own ----------------------------------------------------------------------------------------

# The fields that the toolkit's own states have; in a tuple that is of none of its kinds they are somebody's numbers.
NAMES = (
    "applied",
    "bad",
    "hyperparams",
    "is_open",
    "learning_rate",
    "loss_scale",
    "mini_step",
    "plateau_scale",
    "records",
    "skipped",
    "total_skipped",
    "window_open",
)


def own(name, value):
    """A transform of optax's kind that counts its calls in a field of that name."""
    State = NamedTuple("State", [(name, Any)])
    return optax.GradientTransformation(
        lambda params: State(jnp.asarray(value)),
        lambda updates, state, params=None: (updates, State(state[0] + 1)),
    )


def fitted(tx, data, **options):
    task = ft.Task(loss_fn, tx)
    result = ft.fit(task, start(task), data, batch_size=8, shuffle=False, epochs=2, progress=False, **options)
    return task, result


@pytest.mark.parametrize("name", NAMES)
def test_a_field_of_a_state_of_ones_own_means_nothing(name):
    data = np.ones(32, np.float32)
    _, plain = fitted(optax.chain(optax.sgd(0.1)), data)
    task, result = fitted(optax.chain(optax.sgd(0.1), own(name, np.int32(1))), data)
    np.testing.assert_array_equal(result.state.params["w"], plain.state.params["w"])
    assert list(result.history) == list(plain.history)
    assert int(result.state.updates) == int(result.state.step) == 8
    assert [int(x) for path, x in ft.tree.items(result.state.opt_state) if path.endswith(f"/{name}")] == [9]
    flushed = ft.flush(task, result.state)
    np.testing.assert_array_equal(flushed.params["w"], plain.state.params["w"])


@pytest.mark.parametrize("name", ["bad", "skipped", "total_skipped", "applied"])
def test_nor_where_a_run_looks_for_what_went_wrong(name, tmp_path):
    data = np.ones(64, np.float32)
    data[40] = np.nan
    arguments = dict(data=data, run_dir=tmp_path / "run")
    _, result = fitted(optax.chain(optax.sgd(0.1), own(name, np.int32(0))), **arguments)
    assert int(result.state.step) == 16
    assert np.isnan(result.history["loss"]).all()


def test_a_chain_of_ours_does_not_take_it_for_its_own_either():
    data = np.ones(32, np.float32)
    inner = ft.chain(own("applied", np.bool_(False)), ft.optimizers.sgd(0.1))
    _, plain = fitted(ft.MultiSteps(ft.optimizers.sgd(0.1), 2), data)
    with jax.numpy_dtype_promotion("standard"):
        _, result = fitted(ft.MultiSteps(inner, 2), data)
    np.testing.assert_array_equal(result.state.params["w"], plain.state.params["w"])
    assert int(result.state.updates) == int(plain.state.updates) == 4
