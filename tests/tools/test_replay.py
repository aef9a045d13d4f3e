"""Capsules, replays, and what fit does about bad steps: found, kept, reproduced bitwise, gone back from."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import cli
from fntrain.callbacks import NaNGuard
from fntrain.run import rescue
from fntrain.tools import births

RNG = np.random.default_rng(0)
HERE = __file__


def find(loss_fn, params, batch, **task):
    made = ft.Task(loss_fn, ft.optimizers.sgd(0.1), **task)
    state = ft.init_state(made, params)
    return ft.tools.find_nonfinite(made, state, batch)


def line_of(text):
    """The number of the line of this file that ends with a marker."""
    with open(HERE) as file:
        return next(i for i, line in enumerate(file, 1) if line.rstrip().endswith(f"# {text}"))


def forward(p, b, ctx):
    h = b @ p["w"]
    return jnp.log(h)  # forward


def backward(p, b, ctx):
    return jnp.sqrt(b @ p["w"])  # backward


def in_scan(p, b, ctx):
    def body(c, i):
        return jnp.where(i == 2, jnp.exp(c * 1e4), c), c  # scan

    return jax.lax.scan(body, b @ p["w"], jnp.arange(4))[0]


def in_while(p, b, ctx):
    def body(c):
        return c[0] + 1, c[1] * 1e30  # while

    return (
        jax.lax.stop_gradient(jax.lax.while_loop(lambda c: c[0] < 3, body, (0, b @ p["w"]))[1]) + b @ p["w"]
    )


def in_cond(p, b, ctx):
    h = b @ p["w"]
    return jax.lax.cond(h[0] > 0, lambda h: h / (h - h), lambda h: h, h)  # cond


@jax.custom_vjp
def odd(x):
    return x


odd.defvjp(lambda x: (x, x), lambda x, g: (g / (x - x),))


def in_custom_vjp(p, b, ctx):
    return odd(b @ p["w"])  # custom


@jax.checkpoint
def layer(w, b):
    return jnp.arccosh(b @ w)  # remat


def in_checkpoint(p, b, ctx):
    return layer(p["w"], b)


ONES = {"w": np.full(2, 0.5, np.float32)}
CASES = {
    # name: (loss, parameters, first row of the batch, primitive, backward, what)
    "forward": (forward, ONES, [-1, -2], "log", False, "NaN"),
    "backward": (backward, ONES, [0, 0], None, True, "infinite"),
    "scan": (in_scan, ONES, [3, 2], "exp", False, "infinite"),
    "while": (in_while, ONES, [3, 2], "mul", False, "infinite"),
    "cond": (in_cond, ONES, [3, 2], "div", False, "infinite"),
    "custom": (in_custom_vjp, ONES, [3, 2], "div", True, "infinite"),
    "remat": (in_checkpoint, ONES, [0.1, 0.1], "acosh", False, "NaN"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_bad_operation_is_found(name):
    loss_fn, params, row, primitive, backwards, what = CASES[name]
    batch = np.array([row, [3, 4], [5, 6]], np.float32)
    birth = find(loss_fn, params, batch)[0]
    assert birth.what == what
    assert birth.backward == backwards
    assert f"test_replay.py:{line_of(name)}" in birth.source
    if primitive is not None:
        assert birth.primitive == primitive
    assert birth.count >= 1


def test_numbers_that_come_in_bad_are_named():
    def loss_fn(p, b, ctx):
        return b["x"] @ p["layers"][0]["w"]

    params = {"layers": [{"w": np.ones(2, np.float32)}]}
    x = np.ones((3, 2), np.float32)
    x[1, 1] = np.inf
    (birth,) = find(loss_fn, params, {"x": x})
    assert str(birth) == "`batch/x` came in with 1 of 6 infinite"
    params["layers"][0]["w"][0] = np.nan
    births = find(loss_fn, params, {"x": np.ones((3, 2), np.float32)})
    assert str(births[0]) == "`params/layers/0/w` came in with 1 of 2 NaN"


def test_infinities_on_purpose_are_none():
    def loss_fn(p, b, ctx):
        masked = jnp.where(jnp.arange(2)[None] < 1, b * p["w"][None], -jnp.inf)
        return jnp.log(jnp.sum(jax.nn.softmax(masked), axis=1) - 1 + b[:, 0])  # masked

    assert find(loss_fn, ONES, np.ones((3, 2), np.float32)) == ()
    births = find(loss_fn, ONES, np.array([[1, 1], [-1, 1]], np.float32))
    assert (births[0].primitive, births[0].what) == ("log", "NaN")
    assert f":{line_of('masked')}" in births[0].source


def test_an_infinity_and_the_nan_it_became():
    def loss_fn(p, b, ctx):
        h = jnp.exp(b @ p["w"])  # first
        return h / jnp.sum(h)  # then

    first, then = find(loss_fn, ONES, np.full((2, 2), 200, np.float32))
    assert (first.what, first.primitive, then.what, then.primitive) == ("infinite", "exp", "NaN", "div")
    assert f":{line_of('first')}" in first.source
    assert f":{line_of('then')}" in then.source


def test_float16_overflow_and_microbatches():
    def loss_fn(p, b, ctx):
        return (b * b * p["w"][None]).sum(axis=1)

    births = find(loss_fn, ONES, np.full((6, 2), 300, np.float32), policy="fp16", microbatches=3)
    assert births[0].what == "infinite"
    assert births[0].primitive == "mul"


# Whole runs.

N, B = 120, 8


def model(p, b, ctx):
    x, y = b
    h = jnp.tanh(x @ p["a"]["w"])
    key = ctx.stream("noise")
    out = (h @ p["b"]) + jnp.asarray(0.01 * jax.random.normal(key, y.shape), y.dtype)
    return (out - y) ** 2 * jnp.where(x[:, 0] > 100, jnp.asarray(jnp.nan, y.dtype), jnp.ones((), y.dtype))


def params():
    rng = np.random.default_rng(1)
    return {
        "a": {"w": rng.normal(size=(4, 8)).astype(np.float32)},
        "b": rng.normal(size=8).astype(np.float32),
    }


def data(*bad_rows):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(N, 4)).astype(np.float32)
    x[list(bad_rows), 0] = 1e3
    return x, x[:, 1].copy()


GUARDED = ft.Task(model, ft.skip_nonfinite(ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-2))))
PLAIN = ft.Task(model, ft.optimizers.adamw(1e-2))


def run(task, batches, tmp_path=None, **keywords):
    keywords = {"batch_size": B, "epochs": 2, "progress": False, "seed": 3, **keywords}
    state = ft.init_state(task, params(), key=5)
    return ft.fit(task, state, batches, run_dir=tmp_path and tmp_path / "run", **keywords)


def by_hand(task, batches, until):
    """The state before step `until`, and its batch, in a loop of one's own."""
    state = ft.init_state(task, params(), key=5)
    loader = ft.data_loader(batches, B, seed=3)
    step = 0
    for epoch in range(5):
        loader.seek(epoch, 0)
        for batch, _ in loader:  # all of them whole
            if step == until:
                return state, batch
            state, _ = ft.train_step(task, state, batch)
            step += 1
    raise AssertionError("no such step")


def bits(tree):
    return {k: np.asarray(v).tobytes() for k, v in ft.tree.items(tree)}


def first_bad_step(batches):
    loader = ft.data_loader(batches, B, seed=3)
    for epoch in range(2):
        loader.seek(epoch, 0)
        for i, ((x, _), _) in enumerate(loader):
            if (x[:, 0] > 100).any():
                return epoch * len(loader) + i
    return None


@pytest.mark.parametrize("task", [GUARDED, PLAIN], ids=["guarded", "plain"])
@pytest.mark.parametrize(
    "keywords", [{}, {"checkpoint_every": 4, "log_every": 3, "callbacks": [NaNGuard(10**6)]}]
)
def test_fit_keeps_the_first_bad_step_and_it_replays_bitwise(task, keywords, tmp_path):
    batches = data(77)
    step = first_bad_step(batches)
    assert step is not None
    result = run(task, batches, tmp_path, **keywords)
    assert result.bad_step.step == step
    assert result.bad_step.loss == "NaN"
    assert set(result.bad_step.gradients) == {"a/w", "b"}
    assert result.capsule == tmp_path / "run" / "capsules" / f"step_{step}"
    held = ft.run.capsule.load_capsule(result.capsule, task)
    state, batch = by_hand(task, batches, step)
    assert bits(held.state.replace(key=jax.random.key_data(held.state.key))) == bits(
        state.replace(key=jax.random.key_data(state.key))
    )
    assert bits(held.batch) == bits(batch)
    found = ft.tools.replay(task, result.capsule)
    assert found.bad == result.bad_step
    assert found.differs == ()
    assert found.births[0].what == "NaN"
    assert "reproduced bitwise" in str(found)


def test_in_the_second_epoch_too(tmp_path):
    def late(p, b, ctx):
        return jnp.where(ctx.step == 20, jnp.float32(jnp.inf), jnp.float32(1)) * model(p, b, ctx)

    task = ft.Task(late, GUARDED.tx)
    result = run(task, data(), tmp_path)
    assert (result.bad_step.step, result.bad_step.loss) == (20, "infinite")
    assert ft.tools.replay(task, result.capsule).differs == ()


def test_a_replay_with_another_task_says_that_it_is_another_step(tmp_path):
    result = run(PLAIN, data(77), tmp_path)
    other = ft.Task(model, ft.optimizers.adamw(2e-2))
    found = ft.tools.replay(other, result.capsule)
    # Everything became NaN either way, but the recorded rate did not.
    assert found.differs
    assert "the step came out otherwise" in str(found)
    with pytest.raises(ft.CheckpointError):
        ft.tools.replay(GUARDED, result.capsule)


def test_without_a_run_directory_the_step_is_named_all_the_same():
    result = run(GUARDED, data(77))
    assert result.bad_step.step == first_bad_step(data(77))
    assert result.capsule is None
    assert run(GUARDED, data()).bad_step is None
    assert run(PLAIN, data(77)).bad_step is None  # nobody has noted it, and nothing can be made again


def test_data_that_cannot_be_read_again_gives_no_capsule(tmp_path):
    x, y = data(77)
    batches = ((x[i : i + B], y[i : i + B]) for i in range(0, N, B))
    result = run(GUARDED, batches, tmp_path, epochs=1)
    assert result.bad_step.step == 77 // B
    assert result.capsule is None
    batches = [(x[i : i + B], y[i : i + B]) for i in range(0, N, B)]  # a list can
    result = run(GUARDED, batches, tmp_path / "list", epochs=1)
    assert result.capsule.name == f"step_{77 // B}"


@pytest.mark.parametrize("rebuild", [0, 3])
def test_too_far_from_a_checkpoint_is_left_alone(rebuild, tmp_path, caplog):
    batches = data(77)
    assert first_bad_step(batches) > 3
    result = run(GUARDED, batches, tmp_path, rebuild=rebuild)
    assert result.bad_step.step == first_bad_step(batches)
    assert result.capsule is None
    assert ("within `rebuild=3` steps" in caplog.text) == bool(rebuild)
    again = run(GUARDED, batches, tmp_path / "far enough", rebuild=first_bad_step(batches) + 1)
    assert again.capsule is not None


def test_a_loss_scale_that_finds_its_size_keeps_nothing(tmp_path):
    task = ft.Task(model, ft.dynamic_loss_scale(PLAIN.tx, max=2.0**24, init=2.0**24), policy="fp16")
    x, y = data()
    result = run(task, (x, 30 * y), tmp_path)
    assert sum(result.history["skipped"]) > 0
    assert result.capsule is None
    # Unless a guard says that it is no longer that.
    result = run(task, data(*range(N)), tmp_path / "guard", callbacks=[NaNGuard(5)])
    assert result.stop_reason.startswith("15 steps in a row were skipped")
    assert result.capsule.name == "step_0"


def test_a_spike_of_finite_numbers_does_not_use_up_the_capsule(tmp_path):
    def loss_fn(p, b, ctx):
        factor = jnp.where(ctx.step == 6, 1e4, jnp.where(ctx.step == 22, jnp.nan, 1.0)).astype(jnp.float32)
        return factor * model(p, b, ctx)

    task = ft.Task(loss_fn, ft.skip_spikes(PLAIN.tx, 50.0, 3))
    result = run(task, data(), tmp_path)
    assert result.history["skipped"] == [1, 1]
    assert result.bad_step.step == 22
    assert result.capsule.name == "step_22"


def test_a_run_does_not_end_for_want_of_a_capsule(tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rescue, "save_capsule", full)
    result = run(GUARDED, data(77), tmp_path)
    assert int(result.state.step) == 2 * N // B
    assert result.bad_step.step == first_bad_step(data(77))
    assert result.capsule is None


# NaNGuard.


def test_raise_is_after_everything_is_saved(tmp_path):
    with pytest.raises(ft.NonFiniteError, match="steps in a row were not finite: params `a/w`, `b`"):
        run(PLAIN, data(77), tmp_path, callbacks=[NaNGuard(2, "raise")])
    checkpoints = ft.Checkpointer(tmp_path / "run" / "checkpoints")
    assert checkpoints.latest_step == N // B
    assert (tmp_path / "run" / "capsules").is_dir()


def bad_between(first, last):
    def loss_fn(p, b, ctx):
        bad = (ctx.step >= first) & (ctx.step < last)
        return jnp.where(bad, jnp.float32(jnp.nan), jnp.float32(1)) * model(p, b, ctx)

    return loss_fn


@pytest.mark.parametrize("tx", [PLAIN.tx, GUARDED.tx], ids=["plain", "guarded"])
def test_rollback_goes_back_to_the_good_state_and_on_with_new_data(tx, tmp_path):
    task = ft.Task(bad_between(17, 20), tx)
    kwargs = dict(checkpoint_every=5, log_every=2, epochs=4, steps_per_call=1)
    result = run(task, data(), tmp_path, callbacks=[NaNGuard(2, "rollback")], **kwargs)
    assert result.stop_reason is None
    assert int(result.state.step) == 4 * N // B
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.state.params))
    assert np.isfinite(result.history["loss"][-1])
    assert result.bad_step.step == 17
    assert result.capsule.name == "step_17"
    # By hand: the state of step 15, moved to the step where the guard saw it, and on from there.
    updates = int(result.state.updates)
    candidates = []
    for seen in range(18, 30):
        state, _ = by_hand(task, data(), 15)
        state = state.replace(step=jnp.int32(seen))
        loader = ft.data_loader(data(), B, seed=3)
        for step in range(seen, 60):
            loader.seek(*divmod(step, N // B))
            batch, _ = next(iter(loader))
            state, _ = ft.train_step(task, state, batch)
        candidates.append(bits(state.params) == bits(result.state.params) and int(state.updates) == updates)
    assert sum(candidates) == 1
    assert 20 <= 18 + candidates.index(True) <= 24  # up to two log windows behind the second bad step


@pytest.mark.parametrize("tx", [PLAIN.tx, GUARDED.tx], ids=["plain", "guarded"])
def test_all_steps_of_a_bad_call_count(tx):
    # Of the steps 15 to 19 the first two are good; then come two calls of five bad ones.
    task = ft.Task(bad_between(17, 99), tx)
    result = run(task, data(), callbacks=[NaNGuard(11)], steps_per_call=5)
    assert result.stop_reason.startswith("11 steps in a row were")
    assert run(task, data(), callbacks=[NaNGuard(12)], steps_per_call=5).stop_reason is None


def test_rollback_resumes_bitwise(tmp_path):
    task = ft.Task(bad_between(17, 20), PLAIN.tx)
    kwargs = dict(checkpoint_every=5, log_every=2, steps_per_call=1)

    def go(where, epochs, **more):
        return run(task, data(), where, callbacks=[NaNGuard(2, "rollback")], epochs=epochs, **kwargs, **more)

    straight = go(tmp_path / "a", 4)
    for stop in (1, 2, 3):
        go(tmp_path / f"b{stop}", stop)
        resumed = go(tmp_path / f"b{stop}", 4, resume=True)
        assert bits(resumed.state.params) == bits(straight.state.params)
        assert bits(resumed.state.opt_state) == bits(straight.state.opt_state)


def test_rollback_needs_somewhere_to_go(tmp_path):
    with pytest.raises(ft.ConfigError, match=r"needs a run directory: `fit\(..., run_dir=...\)`"):
        run(PLAIN, data(), callbacks=[NaNGuard(2, "rollback")])
    with pytest.raises(ft.ConfigError, match="`action`"):
        NaNGuard(2, "rolback")


# The command line.


def test_the_command_line_in_another_process(tmp_path):
    (tmp_path / "train.py").write_text(
        textwrap.dedent("""
        import sys
        import jax.numpy as jnp, numpy as np
        import fntrain as ft

        def loss_fn(p, b, ctx):
            return jnp.log(b @ p["w"])

        def make():
            return ft.Task(loss_fn, ft.skip_nonfinite(ft.optimizers.sgd(0.1)))

        if __name__ == "__main__":
            x = np.ones((32, 2), np.float32)
            x[20] = -1
            state = ft.init_state(make(), {"w": np.ones(2, np.float32)})
            ft.fit(make(), state, x, batch_size=4, epochs=1, shuffle=False, run_dir="run", progress=False)
        """)
    )
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path, check=True, capture_output=True)
    command = [sys.executable, "-m", "fntrain", "replay", "run/capsules/step_5", "--task", "train:make"]
    command[1:3] = ["-c", "import sys; from fntrain.cli import main; sys.exit(main())"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("step 5: loss was NaN")
    assert lines[1] == "the step was reproduced bitwise"
    assert lines[2].startswith("first: `log` at ")
    assert "train.py:7 (loss_fn)" in lines[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--task", "fntrain:Task"], "must be a Task"),
        (["nowhere", "--task", "fntrain"], "give it as MODULE:ATTRIBUTE"),
        (["nowhere", "--task", "no_such_module:x"], "No module named 'no_such_module'"),
        (["nowhere", "--task", "fntrain:nope"], "has no attribute 'nope'"),
    ],
)
def test_mistakes_cost_one_line(arguments, message, capsys):
    if arguments[2] == "fntrain:Task":
        arguments = ["nowhere", "--task", "fntrain:testing.check_value.__name__"]
    assert cli.main(["replay", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("primitive", "renamed"), [("scan", "num_consts"), ("while", "cond_nconsts"), ("cond", "branches")]
)
def test_what_jax_has_renamed_is_said_by_name(primitive, renamed):
    """JAX's operations have no public description: a name that is gone is no KeyError, and no wrong answer."""
    with pytest.raises(ft.ConfigError, match=f"into a `{primitive}` under JAX .*`{renamed}`"):
        births._said({"other": 1}, primitive, renamed)
