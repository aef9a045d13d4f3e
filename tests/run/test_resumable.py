"""`assert_resumable`, the law of a run, with specimens that break it."""

import itertools

import jax
import numpy as np
import pytest

import fntrain as ft

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(12, 2)


def loss_fn(params, batch, ctx):
    noise = jax.random.normal(ctx.key, (batch.shape[0],)) if ctx.train else 0.0
    return ft.losses.mse(batch @ params["w"] + noise, batch[:, 0])


def maker(data=lambda: X, callbacks=list, tx=None, **options):
    def make_run(run_dir, steps):
        task = ft.Task(loss_fn, tx or ft.MultiSteps(ft.optimizers.adam(0.1), 3))
        state = ft.init_state(task, {"w": np.zeros(2, np.float32)})
        arguments = {"run_dir": run_dir, "resume": True, "batch_size": 4, "progress": False, **options}
        return ft.fit(task, state, data(), steps=steps, callbacks=callbacks(), **arguments)

    return make_run


def test_a_run_of_ours_passes_inside_windows_and_epochs_and_at_their_edges():
    ft.testing.assert_resumable(
        maker(validation_data=X, callbacks=lambda: [ft.callbacks.EarlyStopping("val_loss", patience=9)]),
        at=[1, 3, 4],
        steps=7,
    )


class Forgetful:
    """A callback with a memory that no checkpoint knows of, which scales the parameters in every second epoch."""

    def __init__(self):
        self.epochs = 0

    def on_epoch_end(self, ctx):
        self.epochs += 1
        if self.epochs % 2 == 0:
            params = jax.tree.map(lambda x: x * 0.5, ctx.state.params)
            ctx.state = ft.TrainState(**{**vars_of(ctx.state), "params": params})


def vars_of(state):
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


def test_hidden_state_in_a_callback_is_found():
    with pytest.raises(ft.testing.LawError, match=r"stopped at step 3 and resumed.*`state/params/w`"):
        ft.testing.assert_resumable(maker(callbacks=lambda: [Forgetful()]), at=3, steps=9)


@pytest.mark.filterwarnings("ignore:`data` is a plain iterable")
def test_data_that_does_not_go_on_is_found():
    def data():
        order = np.random.default_rng(0)  # a stream of its own, which a new process starts again

        def epoch(number):
            del number
            return [X[order.permutation(12)[:4]] for _ in range(3)]

        return epoch

    with pytest.raises(ft.testing.LawError, match="a resumed run is the run"):
        # In the third epoch: a new process is asked for the first (what batches are like) and then for the third.
        ft.testing.assert_resumable(maker(data), at=7, steps=9)


def test_a_run_that_is_not_a_function_of_its_arguments_is_said_to_be_that():
    calls = itertools.count()
    with pytest.raises(ft.testing.LawError, match="equal runs give equal bits: two runs differ in `state/"):
        ft.testing.assert_resumable(maker(lambda: X + next(calls)), at=1)


def test_vacuous_checks_are_refused():
    def nowhere(run_dir, steps):
        del run_dir
        return maker(run_dir=None, resume=False)(None, steps)

    with pytest.raises(ft.testing.LawError, match="nothing is in `run_dir`"):
        ft.testing.assert_resumable(nowhere, at=1)

    def all_of_it(run_dir, steps):
        return maker()(run_dir, max(steps, 5))

    with pytest.raises(ft.testing.LawError, match="asked for 2 steps, it made 5"):
        ft.testing.assert_resumable(all_of_it, at=2)
    for at, steps in ((0, None), ([], None), (6, 5), (1.5, None)):
        with pytest.raises(ft.ConfigError, match="`at`"):
            ft.testing.assert_resumable(maker(), at=at, steps=steps)


def test_columns_that_differ_by_nature_are_left_out():
    clock = itertools.count()
    ft.testing.assert_resumable(maker(callbacks=lambda: [lambda logs: {"seconds": next(clock)}]), at=4)
