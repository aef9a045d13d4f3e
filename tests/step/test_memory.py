"""What an update costs in memory, from XLA's own analysis of the compiled program: no clock, no noise.

Gradients are an argument that is read, parameters and state are donated, in the order in which `train_step` passes
them: what the analysis calls temporary is what an update needs besides.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fntrain as ft

WIDTH = 256
SHAPES = {"embed": (4096, WIDTH), "norm": (WIDTH,)} | {
    f"{layer}/{name}": shape
    for layer in range(3)
    for name, shape in {
        "query": (WIDTH, WIDTH),
        "output": (WIDTH, WIDTH),
        "up": (WIDTH, 4 * WIDTH),
        "down": (4 * WIDTH, WIDTH),
        "up_bias": (4 * WIDTH,),
        "scale": (WIDTH,),
        "bias": (WIDTH,),
    }.items()
}
PARAMS = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()}
SIZE = sum(int(np.prod(s)) for s in SHAPES.values())


def compiled(tx, *, weighted=False):
    state = jax.eval_shape(tx.init, PARAMS)

    def update(grads, params, state, weight):
        if isinstance(tx, ft.Transform):
            extra = {"weight": weight} if weighted else {}
            params, state, _ = tx.apply(grads, state, params, **extra)
        else:
            with jax.numpy_dtype_promotion("standard"):  # which optax is written for
                updates, state = tx.update(grads, state, params)
                params = optax.apply_updates(params, updates)
        return params, state

    weight = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.jit(update, donate_argnums=(1, 2)).lower(PARAMS, PARAMS, state, weight).compile()


def temporaries(program):
    """Bytes of temporaries over bytes of parameters."""
    return program.memory_analysis().temp_size_in_bytes / (4 * SIZE)


ADAMW = ft.optimizers.adamw(1e-3)
LEAN = {
    "adamw": ADAMW,
    "clip + adamw": ft.chain(ft.clip_by_norm(1.0), ADAMW),
    "nesterov": ft.optimizers.sgd(0.1, 0.9, nesterov=True),
    "MultiSteps": ft.MultiSteps(ADAMW, 8),
    "MultiSteps around clip": ft.MultiSteps(ft.chain(ft.clip_by_norm(1.0), ADAMW), 8),
    "clip, then MultiSteps": ft.chain(ft.clip_by_norm(1.0), ft.MultiSteps(ADAMW, 8)),
}


@pytest.mark.parametrize("name", LEAN)
def test_an_update_needs_no_temporaries(name):
    assert temporaries(compiled(LEAN[name])) <= 0.01


@pytest.mark.parametrize("name", ["MultiSteps", "MultiSteps around clip"])
def test_weights_cost_an_accumulating_step_nothing(name):
    assert temporaries(compiled(LEAN[name], weighted=True)) <= 0.01


def test_more_micro_batches_cost_no_more_memory():
    """By either way to accumulate: windows of `MultiSteps`, and micro-batches inside a step."""
    held = [jax.tree.leaves(jax.eval_shape(ft.MultiSteps(ADAMW, k).init, PARAMS)) for k in (2, 512)]
    assert [[(x.shape, x.dtype) for x in leaves] for leaves in held] == [
        [(x.shape, x.dtype) for x in held[0]]
    ] * 2

    def program(k):
        def loss_fn(params, batch, ctx):
            return ft.losses.mse(jnp.tanh(batch @ params["w"]) @ params["w"].T, batch)

        task = ft.Task(loss_fn, ft.optimizers.sgd(0.1), microbatches=k)
        state = ft.init_state(task, {"w": np.ones((8, 512), np.float32)})
        step = jax.jit(lambda s, b: ft.train_step(task, s, b), donate_argnums=0)
        return step.lower(state, np.ones((64 * k, 8), np.float32)).compile().memory_analysis()

    few, many = (program(k).temp_size_in_bytes for k in (2, 16))
    activations = 64 * 512 * 4
    assert few > activations  # of a micro-batch, at least
    assert many < few + activations  # and not of 14 more


def test_the_measure_sees_temporaries():
    """The broken specimens: optax's own clip, and its MultiSteps, hold one and more copies of the parameters."""
    clip = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    assert temporaries(compiled(clip)) > 0.5
    steps = optax.MultiSteps(optax.adamw(1e-3), 8).gradient_transformation()
    assert temporaries(compiled(steps)) > 0.5


def branches(hlo):
    """The texts of a program's computations by name, and its conditionals' branches."""
    computations, name = {}, None
    for line in hlo.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.split()[1 if line.startswith("ENTRY") else 0].lstrip("%")
            computations[name] = []
        elif name is not None:
            computations[name].append(line)
    conditionals = [line for lines in computations.values() for line in lines if " conditional(" in line]
    return computations, conditionals


def test_a_step_that_closes_no_window_computes_nothing():
    """The branch taken by a micro-step holds no arithmetic: it hands on what it was given."""
    hlo = compiled(ft.MultiSteps(ADAMW, 8)).as_text()
    computations, conditionals = branches(hlo)
    assert len(conditionals) == 1
    names = conditionals[0].split("branch_computations={")[1].split("}")[0].replace("%", "").split(", ")
    busy = [
        name for name in names if any("fusion(" in line or "multiply(" in line for line in computations[name])
    ]
    assert len(names) == 2
    assert len(busy) == 1  # the branch that closes the window does work, the other none
