"""An update or what stays as it was: a branch on a CPU, a selection elsewhere, and the same numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import optimizers, transforms as T
from fntrain.optimizers.names import OPTIMIZERS
from fntrain.testing import check_transform
from fntrain.transforms import branch, types

PARAMS = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "b": np.ones(3, np.float32)}
ADAM = optimizers.adamw(1e-2)
GATED = {
    "a weight": ADAM,
    "MultiSteps": ft.MultiSteps(ADAM, 3),
    "behind MultiSteps": ft.chain(ft.MultiSteps(optimizers.sgd(1.0), 2), T.scale_by_adam()),
    "skip_nonfinite": ft.skip_nonfinite(ADAM),
    "looking ahead": ft.skip_nonfinite(ADAM, check_updates=True),
    "skip_spikes": ft.skip_spikes(ADAM, 5.0, 4),
    "dynamic_loss_scale": T.dynamic_loss_scale(ADAM, interval=2),
    "lookahead": ft.lookahead(ADAM, 2),
    "ema": ft.chain(ADAM, ft.ema(0.9)),
    "both": ft.skip_nonfinite(ft.MultiSteps(ft.chain(ft.clip_by_norm(1.0), ADAM), 2)),
}


def branches(text):
    """Branches by data in a lowered program, and loops: the index of another `case`, the platform's, is a constant."""
    found = len(re.findall(r"stablehlo\.(?:if|while)", text))
    for case in re.finditer(r'"stablehlo\.case"\((%\w+)\)', text):
        index = text.rfind(f"{case[1]} = ", 0, case.start())
        found += text[index:].startswith(f"{case[1]} = stablehlo.convert")  # of a bool
    return found


def calls():
    """Gradients and weights of eight calls: two of them bad, one of weight zero."""
    rng = np.random.default_rng(0)
    for i in range(8):
        grads = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), PARAMS)
        if i in (2, 5):
            grads["w"][1, 1] = (np.nan, np.inf)[i == 5]
        yield grads, np.float32(i != 3)


def applied(tx):
    def step(params, state, grads, weight):
        return tx.apply(grads, state, params, weight=weight, step=jnp.int32(0), value=jnp.float32(1))

    return step


def run(tx):
    step = jax.jit(applied(tx))
    params, state, seen = PARAMS, tx.init(jax.tree.map(jnp.asarray, PARAMS)), []
    for grads, weight in calls():
        params, state, took = step(params, state, grads, weight)
        seen.append((params, state, took))
    return seen


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The form that a GPU gets, in the CPU's place."""
    jax.clear_caches()
    monkeypatch.setattr(branch, "_by_branch", branch._by_selection)
    yield
    jax.clear_caches()


@pytest.mark.parametrize("name", GATED)
def test_on_a_gpu_there_is_no_branch(name):
    state = jax.eval_shape(GATED[name].init, PARAMS)
    traced = jax.jit(applied(GATED[name])).trace(PARAMS, state, PARAMS, np.float32(1))
    cuda, rocm, tpu, cpu = (
        traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cuda", "rocm", "tpu", "cpu")
    )
    assert branches(cuda) == branches(rocm) == 0
    assert branches(cpu) >= 1
    # A TPU is told by nobody, and leaves out what is rarely due.
    assert (branches(tpu) > 0) == bool(types.nodes(state, types.Window))


def test_the_note_of_many_leaves_is_a_branch_of_its_own_before_they_are_written_over():
    params = {f"w{i:02}": np.ones(3, np.float32) for i in range(70)}
    tx = ft.skip_nonfinite(optimizers.sgd(0.1))
    traced = jax.jit(applied(tx)).trace(params, jax.eval_shape(tx.init, params), params, np.float32(1))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    inside = text.count("stablehlo.while")  # of the counts, which go through blocks
    assert branches(text) - inside == 1
    assert "optimization_barrier" in text


@pytest.mark.parametrize("name", GATED)
def test_a_selection_gives_what_a_branch_gives(name, as_on_a_gpu, monkeypatch):
    selected = run(GATED[name])
    monkeypatch.undo()
    jax.clear_caches()
    branched = run(GATED[name])
    for one, other in zip(selected, branched, strict=True):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            if jnp.issubdtype(a.dtype, jnp.floating):
                np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)
            else:
                np.testing.assert_array_equal(a, b)
    final = selected[-1][0]
    assert not np.array_equal(final["w"], PARAMS["w"])


@pytest.mark.parametrize("name", ["MultiSteps", "skip_nonfinite", "dynamic_loss_scale", "lookahead"])
def test_the_laws_hold_of_a_selection(name, as_on_a_gpu):
    check_transform(lambda: GATED[name], params=PARAMS)


def test_a_selection_drops_what_is_not_due_and_a_sum_with_it_would_not(as_on_a_gpu):
    """The broken specimen: zero times NaN, in place of a selection, is NaN."""
    due, bad = jnp.asarray(False), jnp.float32(jnp.nan)
    assert branch.either(due, lambda x: x * bad, lambda x: x, jnp.float32(2)) == 2
    assert jnp.isnan(jnp.float32(0) * bad + 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_of_no_optimizer_makes_a_gpu_wait_but_one_that_turns_its_bases_at_times(name):
    tx = ft.chain(ft.clip_by_norm(1.0), OPTIMIZERS[name](1e-3))
    task = ft.Task(lambda p, b, ctx: ft.losses.mse(b[0] @ p["w"] + p["b"][None], b[1]), tx, microbatches=2)
    state = ft.init_state(task, PARAMS)
    batch, weight = (np.ones((6, 4), np.float32), np.ones((6, 3), np.float32)), np.ones(6, np.float32)
    traced = jax.jit(lambda state: ft.train_step(task, state, batch, weight)).trace(state)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    microbatches = text.count("stablehlo.while")
    assert microbatches == 1
    assert (branches(text) - microbatches > 0) == (name == "soap")
    assert not re.search("callback|infeed|outfeed", text)
