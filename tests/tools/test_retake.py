"""Any step of a run again: its metrics are those that the run logged, bit for bit."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import cli
from fntrain._core.errors import RunMismatchError

N, B, EPOCHS = 60, 8, 5  # eight batches an epoch, the last one padded: 40 steps
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 4)).astype(np.float32)
DATA = {"x": X, "y": np.sin(X.sum(1))}


def loss_fn(p, b, ctx):
    h = jnp.tanh(b["x"] @ p["in"]) * (1 + 0.1 * jax.random.normal(ctx.key, (b["x"].shape[0], 4)))
    out = h @ p["out"]
    return ft.losses.mse(out, b["y"]).with_outputs(predictions=out, targets=b["y"])


def make():
    tx = ft.MultiSteps(ft.chain(ft.clip_by_norm(0.5), ft.optimizers.adamw(ft.schedules.cosine(0.05, 20))), 2)
    task = ft.Task(loss_fn, tx, metrics={"mae": ft.metrics.mae()})
    rng = np.random.default_rng(1)
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in (("in", (4, 4)), ("out", (4,)))}
    return task, ft.init_state(task, params, key=3)


def batches():
    return [jax.tree.map(lambda x: x[i : i + B], DATA) for i in range(0, N, B)]


def grain_data():
    grain = pytest.importorskip("grain")
    rows = grain.MapDataset.source(np.arange(N // B * B)).shuffle(seed=1).batch(B)
    return rows.map(lambda rows: jax.tree.map(lambda x: x[rows], DATA))


class Logged:
    def __init__(self):
        self.rows = {}

    def on_log(self, ctx):
        self.rows[ctx.logs["step"]] = {k: v for k, v in ctx.logs.items() if k != "step"}


def logged(data, run_dir, **more):
    task, state = make()
    log = Logged()
    result = ft.fit(
        task, state, data, epochs=EPOCHS, batch_size=B, seed=2, run_dir=run_dir, log_every=1,
        callbacks=[log], progress=False, **more,
    )  # fmt: skip
    return task, state, log.rows, result


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("kind", ["arrays", "list", "grain"])
def test_every_step_is_as_it_was_logged(kind, tmp_path):
    data = {"arrays": lambda: DATA, "list": batches, "grain": grain_data}[kind]()
    task, state, rows, result = logged(data, tmp_path / "run", checkpoint_every=9)
    assert len(rows) == (35 if kind == "grain" else 40)
    for step, row in rows.items():
        found = ft.tools.replay(tmp_path / "run", step=step, task=task, data=data, state=state)
        assert_same(found.metrics, row)
        assert found.differs == ()
        assert (found.step, found.bad) == (step, None)
    assert found.checkpoint == result.checkpoints[-2]  # the nearest from before the last step
    assert jax.tree.all(jax.tree.map(np.array_equal, found.after.params, result.state.params))


def test_a_step_of_chunks_from_the_files_alone(tmp_path):
    task, _, rows, result = logged(DATA, tmp_path / "run", steps_per_call=4)
    found = ft.tools.replay(result, step=35, task=task, data=DATA)  # no state: its form is on disk
    assert_same(found.metrics, rows[35])
    assert (found.epoch, found.index, found.checkpoint) == (5, 2, 32)
    # The batch alone, by a step of one's own from the state before it.
    before = jax.tree.map(jnp.copy, found.before)
    alone = ft.compute_metrics(task, ft.train_step(task, before, found.batch, found.weight)[1])
    assert found.alone["loss"] == float(alone["loss"])
    assert found.alone["loss"] != found.metrics["loss"]
    text = str(found)
    assert text.startswith("step 35: batch 2 of epoch 5, from the checkpoint of step 32\n  loss ")
    assert f"epoch so far {found.metrics['loss']:.6g}" in text


def test_what_the_run_wrote_down_is_held_against_it(tmp_path):
    class Halved:
        """Changes the state on the way, which nobody can do again without it."""

        def on_epoch_end(self, ctx):
            if ctx.epoch == 1:
                ctx.state = ctx.state.replace(params=jax.tree.map(lambda x: x / 2, ctx.state.params))

    task, state = make()
    ft.fit(
        task, state, DATA, epochs=3, batch_size=B, seed=2, run_dir=tmp_path / "run", callbacks=[Halved()],
        checkpoint_every=24, progress=False,
    )  # fmt: skip
    found = ft.tools.replay(tmp_path / "run", step=18, task=task, data=DATA, state=state)
    assert found.differs[0].startswith("at step 16 the run wrote other values down of `loss`, `mae`")
    assert "at step 16 the run wrote other" in str(found)
    assert ft.tools.replay(tmp_path / "run", step=8, task=task, data=DATA, state=state).differs == ()


def test_what_cannot_be_taken_again_is_refused_by_name(tmp_path):
    task, state, _, _ = logged(DATA, tmp_path / "run")
    run = tmp_path / "run"
    with pytest.raises(ft.ConfigError, match=r"`data` is missing: .*a directory holds no code and no data"):
        ft.tools.replay(run, step=3, task=task)
    with pytest.raises(ft.ConfigError, match=r"`state` is missing: .* no checkpoint from before step 3"):
        ft.tools.replay(run, step=3, task=task, data=DATA)
    with pytest.raises(RunMismatchError, match=r"task\.tx"):
        ft.tools.replay(run, step=3, task=ft.Task(loss_fn, ft.optimizers.sgd(0.1)), data=DATA, state=state)
    other = {**DATA, "y": DATA["y"] + 1}
    with pytest.raises(RunMismatchError, match="sample_crc32"):
        ft.tools.replay(run, step=3, task=task, data=other, state=state)
    with pytest.raises(ft.ConfigError, match="`step` must be an integer >= 1"):
        ft.tools.replay(run, step=0, task=task, data=DATA)
    with pytest.raises(ft.CheckpointError, match="holds no run"):
        ft.tools.replay(tmp_path, step=1, task=task, data=DATA)
    ones = batches()
    logged(ones, tmp_path / "list")
    short = dict(task=task, state=state, data=lambda epoch: ones if not epoch else [])
    with pytest.raises(ft.DataError, match="ends before step 9"):
        ft.tools.replay(tmp_path / "list", step=9, **short)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    rows = logged(DATA, tmp_path / "run")[2]
    (tmp_path / "script.py").write_text(
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('test_retake', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(module)\n"
        "def run():\n    return *module.make(), module.DATA\n"
        "def task():\n    return module.make()[0]\n"
    )
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    assert cli.main(["replay", "run", "--step", "5", "--task", "script:run"]) == 0
    assert f"epoch so far {rows[5]['loss']:.6g}" in capsys.readouterr().out
    assert cli.main(["replay", "run", "--step", "5", "--task", "script:task"]) == 2
    assert "--task script:task: it must be `(task, state, data)` here" in capsys.readouterr().err
