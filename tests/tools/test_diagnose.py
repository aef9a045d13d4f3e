"""diagnose: one sick run a rule, of which at least half are true runs, and silence on healthy ones."""

import dataclasses
import json
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import cli
from fntrain.run.goodput import Goodput
from fntrain.tools.causes.rule import RULES

RNG = np.random.default_rng(0)
N, CLASSES = 96, 3
X = RNG.normal(size=(N, 4)).astype(np.float32)
Y = np.argmax(X @ RNG.normal(size=(4, CLASSES)), axis=1).astype(np.int32)
WEIGHTS = RNG.normal(size=(4, CLASSES)).astype(np.float32) * 0.1


def classify(p, b, ctx):
    x, y = b
    logits = (jax.nn.relu(x @ p["in"] + p["bias"][None]) if "in" in p else x) @ p["out"]
    return ft.losses.cross_entropy(logits.astype(jnp.float32), y).with_outputs(logits=logits, labels=y)


def regress(p, b, ctx):
    return ft.losses.mse((b[0] @ p["w"].astype(b[0].dtype)), b[1])


SGD = ft.optimizers.sgd(0.5)
PLANE = {"w": np.zeros(4, np.float32)}
LINE = (X, X @ np.float32([1, -1, 2, 0]))


def run(loss_fn=classify, tx=SGD, params=None, data=(X, Y), epochs=4, **more):
    task = ft.Task(loss_fn, tx, policy=more.pop("policy", None) or ft.precision.Policy())
    params = params or ({"out": WEIGHTS} if loss_fn is classify else PLANE)
    state = ft.init_state(task, params)
    more = {"batch_size": 32, "progress": False, **more}
    return task, ft.fit(task, state, data, epochs=epochs, **more)


def with_rows(result, **columns):
    """A result with other columns in its history, as long as they are."""
    length = len(next(iter(columns.values())))
    rows = [{"epoch": i + 1, "step": i + 1, "updates": i + 1} for i in range(length)]
    rows = [{**row, **{k: v[i] for k, v in columns.items()}} for i, row in enumerate(rows)]
    return dataclasses.replace(result, history=type(result.history)(rows))


@pytest.fixture(scope="module")
def healthy():
    return run(validation_data=(X, Y))


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    where = tmp_path_factory.mktemp("padded") / "run"
    return where, *run(data=(X[:33], Y[:33]), run_dir=where)


NETWORK = {
    "in": RNG.normal(size=(4, 16)).astype(np.float32),
    "bias": np.zeros(16, np.float32),
    "out": RNG.normal(size=(16, 3)).astype(np.float32) / 4,
}
WATCHED = ft.chain(ft.optimizers.adamw(1e-2), ft.transforms.record_updates(), ft.ema(0.5))


DRAWN = {
    "flat_at_chance",
    "validation_gap",
    "labels_shuffled",
    "rate_above_curvature",
    "updates_large",
    "updates_small",
    "clipped",
    "no_learning_rate",
    "loss_scale_collapsed",
}


def of(rule, result, **more):
    found = ft.tools.diagnose(result, **more)
    assert [x.rule for x in found] == [rule], str(found)
    (finding,) = found
    bounds = RULES[rule]
    assert finding.number < bounds.threshold if bounds.below else finding.number > bounds.threshold
    assert finding.advice
    if rule in DRAWN:
        drawn = ElementTree.fromstring(f"<p>{finding.picture.html}</p>")  # of a page, and well-formed
        assert [x.text for x in drawn.iter("h3")] == [finding.picture.title]
        assert any(s.dashed for s in finding.picture.series)
    else:
        with pytest.raises(ft.ConfigError, match=f"`{rule}` has no picture"):
            finding.plot()
    assert f"{finding.rule}: {finding.says}" in str(found)
    return finding


# On what a run measured.


def test_all_nan():
    def nan(p, b, ctx):
        return regress(p, b, ctx).values * jnp.float32(jnp.nan)

    _, result = run(nan, params=PLANE, data=LINE)
    assert of("never_finite", result).number == 1


def test_flat_at_the_logarithm_of_the_classes():
    def cut_off(p, b, ctx):  # no gradient arrives
        return classify(jax.tree.map(lambda x: jax.lax.stop_gradient(0 * x), p) | {"b": p["out"]}, b, ctx)

    _, result = run(cut_off, params={"out": WEIGHTS})
    finding = of("flat_at_chance", result)
    assert "guessing among 3 classes" in finding.says
    assert finding.number < 1e-6


def test_a_validation_loss_that_rises(healthy, tmp_path):
    sick = with_rows(healthy[1], loss=[1.0, 0.5, 0.2, 0.1], val_loss=[1.0, 0.8, 0.9, 1.2])
    finding = of("validation_gap", sick)
    assert finding.number == pytest.approx(0.5)
    (axes,) = finding.plot(tmp_path / "gap.png").axes
    drawn = {line.get_label(): list(map(float, line.get_ydata())) for line in axes.lines}
    assert drawn["val_loss"] == [1.0, 0.8, 0.9, 1.2]
    assert drawn["a quarter above its best"] == [1.0, 1.0]
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")
    assert not ft.tools.diagnose(with_rows(healthy[1], loss=[1.0, 0.5, 0.2], val_loss=[1.0, 0.7, 0.72]))


def test_a_clip_that_is_the_rule():
    _, result = run(tx=ft.chain(ft.clip_by_norm(0.02), SGD))
    assert of("clipped", result).number == 1


def test_updates_of_the_wrong_size(healthy):
    _, result = run(tx=ft.chain(ft.optimizers.sgd(1e-8), ft.transforms.record_updates()))
    of("updates_small", result)
    ratios = {f"update_ratio/{i}": [2.0**i] * 4 for i in range(-4, 6)}
    finding = of("updates_large", with_rows(healthy[1], loss=[1.1, 0.9, 0.8, 0.7], **ratios))
    assert finding.number == np.median([2.0**i for i in range(-4, 6)])
    assert finding.picture.title == "update / weights, a leaf, 6 of 10"
    assert [s.label for s in finding.picture.series[:-1]] == ["-4", "-3", "-2", "3", "4", "5"]
    assert finding.picture.log


def test_a_loss_scale_that_collapses(healthy):
    scales = [2.0**k for k in (15, 9, 3, 0)]
    sick = with_rows(healthy[1], loss=[1.1, 0.9, 0.8, 0.7], loss_scale=scales)
    assert of("loss_scale_collapsed", sick).number == 15
    assert not ft.tools.diagnose(with_rows(healthy[1], loss=[1.1, 0.9], loss_scale=[2.0**15, 2.0**16]))


def test_an_average_longer_than_the_run(tmp_path):
    _, result = run(tx=ft.chain(SGD, ft.ema(0.999)), run_dir=tmp_path / "run")
    assert of("averaging_too_long", result).number == pytest.approx(1000 / 12)
    task = ft.Task(classify, ft.chain(SGD, ft.ema(0.999, debias=True)))
    assert not ft.tools.diagnose(result, task=task)


def test_a_chain_without_a_learning_rate(tmp_path):
    with pytest.warns(UserWarning, match="adds its updates along the gradient"):
        task, result = run(regress, ft.clip_by_norm(1e4), data=LINE, run_dir=tmp_path / "run")
    of("no_learning_rate", result)
    assert "no_learning_rate" in ft.tools.diagnose(tmp_path / "run")
    assert task.transform.descends is False


def test_batches_of_padding(padded):
    finding = of("padding", padded[2])
    assert finding.number == pytest.approx(31 / 64)
    assert "33 examples in batches of 32" in finding.says


def test_a_run_that_waits_for_its_data(healthy):
    zeros = {field.name: 0 for field in dataclasses.fields(Goodput)}
    slow = Goodput(**{**zeros, "total": 10.0, "step": 3.0, "data": 6.0})
    sick = dataclasses.replace(healthy[1], goodput=slow)
    assert of("data_bound", sick).number == pytest.approx(2 / 3)


def test_a_step_that_was_compiled_again():
    class Commits:
        adds_logs = False

        def on_epoch_end(self, ctx):
            moved = jax.device_put(ctx.state.params, jax.devices()[0])
            ctx.state = ctx.state.replace(params=moved)

    with pytest.warns(RuntimeWarning, match="compiled again"):
        _, result = run(callbacks=[Commits()], tx=ft.optimizers.sgd(0.4))
    assert "`state/params/out` was float32[4, 3]" in of("compiled_again", result).says


# With the task and a batch at hand.


def test_a_rate_above_the_curvature():
    """Of a quadratic whose largest eigenvalue is known: 2 X'X / n, by the mean of squares."""
    sharpest = np.linalg.eigvalsh(2 * X.T @ X / N)[-1]
    task, result = run(regress, ft.optimizers.sgd(float(4 / sharpest)), data=LINE, batch_size=N, epochs=2)
    found = ft.tools.diagnose(result, task=task, data=LINE)
    # The batch that is looked at has 64 rows of the 96, and so a sharpness of its own.
    assert found["rate_above_curvature"].number == pytest.approx(2, rel=0.3)
    with_momentum = ft.Task(regress, ft.optimizers.sgd(float(4 / sharpest), momentum=0.9))
    state = ft.init_state(with_momentum, PLANE)
    assert "rate_above_curvature" not in ft.tools.diagnose(result, task=with_momentum, state=state, data=LINE)


def test_dead_units(healthy):
    task = ft.Task(classify, WATCHED)
    state = ft.init_state(task, NETWORK | {"bias": np.where(np.arange(16) < 12, -1e3, 0).astype(np.float32)})
    finding = of("dead_units", healthy[1], task=task, state=state, data=(X, Y))
    assert finding.number == 0.75
    assert "`in`" in finding.says


def test_labels_that_cannot_be(healthy):
    task, result = healthy
    wrong = np.where(np.arange(N) % 2, Y, CLASSES).astype(np.int32)
    found = ft.tools.diagnose(result, task=task, data=(X, wrong))
    assert 0.3 < found["labels_out_of_range"].number < 0.7
    assert "outside of 0 to 2" in found["labels_out_of_range"].says


def test_labels_that_belong_to_others(healthy):
    task, result = healthy
    sick = with_rows(result, loss=[1.1, 0.6, 0.3], val_loss=[1.11, 1.2, 1.3])
    finding = of("labels_shuffled", sick, task=task, data=(X, Y))
    assert finding.number == pytest.approx(1.11 / np.log(3))


def test_updates_that_round_away():
    params = {"w": np.array([100.0, -200, 300, 400], jnp.bfloat16)}
    task, result = run(regress, ft.optimizers.sgd(1e-4), params, LINE)
    finding = of("updates_round_away", result, task=task, data=LINE)
    assert finding.number == 1
    stochastic = ft.Task(
        regress, task.tx, policy=ft.precision.Policy(params="bfloat16", stochastic_rounding=True)
    )
    state = ft.init_state(stochastic, params)
    assert not ft.tools.diagnose(result, task=stochastic, state=state, data=LINE)


def test_why_a_rule_was_not_looked_at(healthy):
    """Each says what it lacks: nothing of a run, of a Task, of a batch; what was looked at says nothing."""
    task, result = healthy
    bare = ft.tools.diagnose(with_rows(result, loss=[1.1]))
    lacks = dict(bare.unasked)
    assert lacks["flat_at_chance"] == "it takes 3 epochs with a finite `loss`, and the run has 1"
    assert "had no `validation_data`" in lacks["validation_gap"]
    assert "`transforms.record_updates()`" in lacks["updates_small"]
    assert "no row has a `clip_factor`" in lacks["clipped"]
    assert lacks["dead_units"].startswith("it takes a step: give `task=` and `data=`")
    assert not set(lacks) & {"never_finite", "compiled_again"}
    assert all(f"not looked at, {rule}: {why}" in str(bare).splitlines() for rule, why in lacks.items())
    lacks = ft.tools.diagnose(with_rows(result, loss=[1.1], learning_rate=[0.1]), task=task).unasked
    assert lacks["rate_above_curvature"] == lacks["dead_units"] == "it takes a batch: give `data=`"
    adam = ft.Task(lambda p, b, ctx: classify(p, b, ctx).values, ft.optimizers.adam(1e-3))
    state = ft.init_state(adam, {"out": WEIGHTS})
    sick = with_rows(result, loss=[1.1, 1.0], learning_rate=[0.1, 0.1])
    lacks = ft.tools.diagnose(sick, task=adam, state=state, data=(X, Y)).unasked
    assert "this optimizer is another" in lacks["rate_above_curvature"]
    assert "`logits`" in lacks["labels_out_of_range"]


def test_every_rule_has_its_sick_run():
    """Which is a test above that names it."""
    with open(__file__) as file:
        text = file.read()
    assert all(f'"{name}"' in text for name in RULES)
    assert len(RULES) >= 15
    assert set(RULES) >= DRAWN


HEALTHY = {
    "logistic": lambda: run(validation_data=(X, Y), epochs=8),
    "regression, clipped at times": lambda: run(
        regress, ft.chain(ft.clip_by_norm(2.0), ft.optimizers.sgd(0.1, momentum=0.5)), data=LINE
    ),
    "network, averaged, watched": lambda: run(
        tx=WATCHED,
        params=NETWORK,
        validation_data=(X, Y),
    ),
    "bfloat16": lambda: run(
        regress, ft.optimizers.sgd(0.1), {"w": np.zeros(4, jnp.bfloat16)}, LINE, epochs=2
    ),
    "loss scale": lambda: run(
        regress, ft.dynamic_loss_scale(ft.optimizers.sgd(0.05)), data=LINE, policy=ft.precision.policy("fp16")
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_healthy_is_left_in_silence(name):
    task, result = HEALTHY[name]()
    data = LINE if task.loss_fn is regress else (X, Y)
    found = ft.tools.diagnose(result, task=task, data=data)
    assert not found, str(found)
    assert not ft.tools.diagnose(result)
    assert str(found).startswith("nothing wrong was found")


def test_a_directory_and_the_command_line(padded, tmp_path, capsys):
    where, task, result = padded
    found = ft.tools.diagnose(where, task=task, data=(X[:33], Y[:33]))
    assert [x.rule for x in found] == ["padding"]
    assert "dead_units" not in found.unasked  # the newest checkpoint has the parameters
    assert "dead_units" in ft.tools.diagnose(where).unasked
    assert cli.main(["doctor", str(where)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("padding: 48% of the rows")
    assert (
        "not looked at, dead_units: it takes a step: give `task=` and `data=` (`fntrain doctor RUN --task"
        in text
    )
    assert cli.main(["inspect", str(where)]) == 0
    text = capsys.readouterr().out
    assert text.count("\ngoodput ") == 1
    assert "0 to 8" in text
    parts = json.loads((where / "config.json").read_text())["parts"]
    assert parts[0]["ended"] == "done"
    with pytest.raises(ft.CheckpointError, match="holds no run"):
        ft.tools.diagnose(tmp_path)
    with pytest.raises(ft.ConfigError, match="`data` is looked at with the run's `task`"):
        ft.tools.diagnose(result, data=(X, Y))
