"""What a step costs besides its arithmetic: the arrays that cross its border, the operations of its program, and what
Python looks at for every call. None of it is seen in a result, and all of it in a step that takes microseconds."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft
from fntrain.step import programs, state as states


def loss_fn(params, batch, ctx):
    x, y = batch
    logits = jax.nn.relu(x @ params["w"] + params["a"][None]) @ params["v"] + params["b"][None]
    return ft.losses.cross_entropy(logits, y).with_outputs(logits=logits, labels=y)


PARAMS = {"w": np.ones((6, 8)), "a": np.zeros(8), "v": np.ones((8, 3)), "b": np.zeros(3)}
PARAMS = {name: x.astype(np.float32) for name, x in PARAMS.items()}
BATCH = (np.ones((4, 6), np.float32), np.array([0, 1, 2, 1], np.int32))


def make(tx=None):
    tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-3)) if tx is None else tx
    return ft.Task(loss_fn, tx, metrics={"accuracy": ft.metrics.accuracy()})


def operations(compiled):
    """How often each operation stands in the entry of a compiled program: about one kernel each."""
    text = compiled.as_text()
    return collections.Counter(re.findall(r" = \S+ ([a-z\-]+)\(", text[text.index("ENTRY") :]))


@pytest.fixture(scope="module")
def step():
    task = make()
    state = ft.init_state(task, PARAMS)
    impl, bits = programs._words(state)
    given = task, impl, None, state.step, *programs._donated(state), bits, BATCH, None, None
    lowered = programs._train_step.lower(*given)
    return state, lowered, lowered.compile()


@pytest.fixture(scope="module")
def by_hand():
    """The same step as anyone would write it, with our transforms."""
    tx = make().tx

    def step(params, opt_state, x, y):
        def loss(params):
            logits = jax.nn.relu(x @ params["w"] + params["a"][None]) @ params["v"] + params["b"][None]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

        (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        hits = jnp.sum(jnp.argmax(logits, -1) == y)
        return optax.apply_updates(params, updates), opt_state, value, hits

    params = jax.tree.map(jnp.array, PARAMS)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), *BATCH).compile()


def test_all_that_a_step_reports_leaves_it_as_two_arrays(step):
    state, lowered, _ = step
    assert (
        len(jax.tree.leaves(lowered.out_info)) == len(jax.tree.leaves(state)) - 1 + 2
    )  # the key stays outside


def test_what_transforms_recorded_last_is_not_read_by_the_next_step(step):
    state, _lowered, compiled = step
    recorded = 3  # grad_norm, clip_factor, learning_rate
    unread = recorded + 1  # and the key, as this loss draws nothing
    leaves = len(jax.tree.leaves(state)) + len(BATCH)
    assert operations(compiled)["parameter"] == leaves - unread


def test_the_program_is_that_of_a_step_by_hand_and_five_counters_more(step, by_hand):
    _, _, compiled = step
    ours, theirs = operations(compiled), operations(by_hand)
    idle = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
    assert sum(ours.values()) - sum(ours[x] for x in idle) <= 5 + sum(theirs.values()) - sum(
        theirs[x] for x in idle
    )


def test_on_an_accelerator_a_step_has_no_branch_by_its_data_and_no_loop():
    """Each would make the device, or the host, wait in the middle of a step. A `case` of a constant is the platform."""
    task = make()
    state = ft.init_state(task, PARAMS)
    impl, bits = programs._words(state)
    given = task, impl, None, state.step, *programs._donated(state), bits, BATCH, None, None
    waits = r"stablehlo\.(if|while)|\(tensor<i1>\) -> tensor<i32>"
    cuda, cpu = (
        programs._train_step.trace(*given).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cuda", "cpu")
    )
    assert not re.search(waits, cuda)
    assert re.search(waits, cpu), "of the norm, which has one there"
    assert not re.search("callback|infeed|outfeed|send|recv", cuda)


@pytest.mark.parametrize("log_every", [0, 1, 10])
def test_in_a_dispatch_of_several_steps_metrics_are_two_arrays_from_step_to_step(log_every):
    """Sum by sum each would be a kernel of its own, at every step; and a log is no branch, which a device waits for."""
    task = make()
    state = ft.init_state(task, PARAMS)
    impl, bits = programs._words(state)
    parts, batches = programs._donated(state), jax.tree.map(lambda x: np.stack([x] * 28), BATCH)
    metrics = programs.empty_metrics(task, state, BATCH, None, train=True)
    traced = programs._train_steps.trace(
        task, impl, None, state.step, *parts, bits, batches, None, metrics, log_every
    )
    (scan,) = (e for e in traced.jaxpr.jaxpr.eqns if e.primitive.name == "scan")
    changed = len(jax.tree.leaves((parts, state.step))) - 1  # but the rate's multiplier
    assert scan.params["num_carry"] == changed + 2 + 2 * (log_every > 0)
    cuda = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"stablehlo\.while", cuda)) == 1
    assert not re.search(r"stablehlo\.if|\(tensor<i1>\) -> tensor<i32>", cuda)


def test_few_classes_are_compared_with_labels_and_not_gathered(step, by_hand):
    _, _, compiled = step
    assert "scatter(" not in compiled.as_text()
    assert "gather(" not in compiled.as_text()
    assert "scatter(" in by_hand.as_text()  # what this is worth nothing without: the name is read rightly


def test_the_leaves_of_a_state_are_looked_at_in_a_trace_alone(monkeypatch):
    task = make(ft.optimizers.sgd(0.1))
    state = ft.init_state(task, PARAMS)
    seen = []
    leaves = jax.tree.leaves
    monkeypatch.setattr(states.jax.tree, "leaves", lambda *args, **kw: seen.append(1) or leaves(*args, **kw))
    assert not states.is_traced(state)
    assert not seen

    def inside(params):
        seen.append(states.is_traced(state.replace(params=params)))
        return jnp.sum(params["w"])

    jax.grad(inside)(state.params)
    assert seen[-1] is True
    jax.jit(lambda x: seen.append(states.is_traced(state)) or x)(1.0)
    assert seen[-1] is False, "in a trace, but of something else"


def test_equal_tasks_are_compared_once(monkeypatch):
    task, again, other = make(), make(), make(ft.optimizers.sgd(0.1))
    asked = []
    identity = ft.Task._identity
    monkeypatch.setattr(ft.Task, "_identity", lambda self: asked.append(self) or identity(self))
    assert task == again
    before = len(asked)
    assert before > 0
    assert task == again
    assert again == task
    assert len(asked) == before
    assert task != other
    assert again != other
    assert other == make(ft.optimizers.sgd(0.1))
