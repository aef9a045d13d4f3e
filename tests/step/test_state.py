"""init_state: forms of parameters and keys, carried leaves, aliases, dtypes, and a state born on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import fntrain as ft
from fntrain.step import state as _state
from fntrain.step.state import Variables


def loss_fn(params, batch, ctx):
    x = batch.astype(jnp.float32)
    return ft.losses.mse(x @ params["w"].astype(jnp.float32), x[:, 0] + 1)


ADAM = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(0.125))
TASK = ft.Task(loss_fn, ADAM)
BATCH = np.array([[1, 2, 0], [0, 1, -1], [2, 0, 0.5], [1, 1, 1]], np.float32)
W = np.array([0.5, -1, 2], np.float32)


def test_numpy_jax_and_function_forms_agree():
    states = [
        ft.init_state(TASK, {"w": W}, key=3),
        ft.init_state(TASK, {"w": jnp.asarray(W)}, key=jax.random.key(3)),
        ft.init_state(TASK, lambda key: {"w": jnp.asarray(W)}, key=jnp.asarray(jax.random.PRNGKey(3))),
        ft.init_state(TASK, lambda key: Variables({"w": W}), key=np.int32(3)),
    ]
    for state in states:
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))  # law 1: arrays only
        assert jax.tree.structure(state) == jax.tree.structure(states[0])
        assert (int(state.step), int(state.updates)) == (0, 0)
        assert state.step.dtype == state.updates.dtype == jnp.int32
        np.testing.assert_array_equal(state.params["w"], W)
        assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(3)))
    moved = [ft.train_step(TASK, state, BATCH)[0].params["w"] for state in states]
    for w in moved:
        np.testing.assert_array_equal(w, moved[0])
        assert not np.array_equal(w, W)


def test_a_function_gets_a_key_of_the_seed():
    make = lambda key: {"w": jax.random.normal(key, (3,))}
    a, b, c = (ft.init_state(TASK, make, key=k).params["w"] for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_model_state_from_the_function_or_the_argument():
    make = lambda key: Variables({"w": jnp.asarray(W)}, {"seen": jnp.zeros((), jnp.int32)})
    a = ft.init_state(TASK, make)
    b = ft.init_state(TASK, {"w": W}, model_state={"seen": np.int32(0)})
    assert a.model_state["seen"].dtype == b.model_state["seen"].dtype == jnp.int32
    assert ft.init_state(TASK, {"w": W}).model_state is None
    with pytest.raises(ft.ConfigError, match="`model_state`"):
        ft.init_state(TASK, make, model_state={"seen": np.int32(0)})


@pytest.mark.filterwarnings("ignore:.loss_fn. returns no model state")
def test_the_callers_arrays_stay_usable():
    params, key = {"w": jnp.asarray(W)}, jax.random.key(0)
    mutable = {"seen": jnp.zeros(())}
    state = ft.init_state(TASK, params, key=key, model_state=mutable)
    again = ft.init_state(TASK, params, key=key, model_state=mutable)
    ft.train_step(TASK, state, BATCH)
    ft.train_step(TASK, again, BATCH)
    np.testing.assert_array_equal(params["w"], W)
    jax.random.normal(key)
    assert float(mutable["seen"]) == 0
    # And a NumPy array changed later does not reach the state.
    mine = W.copy()
    state = ft.init_state(TASK, {"w": mine})
    mine[:] = 9
    np.testing.assert_array_equal(state.params["w"], W)


@pytest.mark.filterwarnings("ignore:.loss_fn. returns no model state")
def test_aliased_leaves_are_copied():
    shared = jnp.asarray(W)

    def tied(params, batch, ctx):
        return ft.losses.mse(batch @ params["a"] + batch @ params["b"], batch[:, 0])

    task = ft.Task(tied, ft.optimizers.sgd(0.125, momentum=0.5))
    state = ft.init_state(task, {"a": shared, "b": shared}, model_state={"c": shared})
    pointers = [
        x.unsafe_buffer_pointer() for x in (state.params["a"], state.params["b"], state.model_state["c"])
    ]
    assert len(set(pointers)) == 3
    state, _ = ft.train_step(task, state, BATCH)
    x = BATCH.astype(np.float64)
    gradient = (2 * (2 * x @ W - x[:, 0])[:, None] * x).mean(0)
    np.testing.assert_array_equal(state.params["a"], (W - 0.125 * gradient).astype(np.float32))
    np.testing.assert_array_equal(state.params["a"], state.params["b"])
    # A function that returns one array twice.
    state = ft.init_state(task, lambda key: dict.fromkeys("ab", jnp.ones(3)))
    ft.train_step(task, state, BATCH)


def test_integers_booleans_and_none_are_carried():
    params = {"w": W, "table": np.arange(3, dtype=np.int32), "flag": np.array(True), "nothing": None}
    state = ft.init_state(TASK, params)
    # Optimizer state is for what is trained: two moments of `w`, and nothing the size of `table`.
    sizes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state)]
    assert sizes.count((3,)) == 2
    _, grads = ft.compute_gradients(TASK, state, BATCH)
    assert grads["table"] is None
    assert grads["flag"] is None
    assert grads["nothing"] is None
    assert grads["w"].shape == (3,)
    state, metrics = ft.train_step(TASK, state, BATCH)
    np.testing.assert_array_equal(state.params["table"], [0, 1, 2])
    assert bool(state.params["flag"]) is True
    assert state.params["nothing"] is None
    gradient = (2 * (BATCH @ W - BATCH[:, 0] - 1)[:, None] * BATCH).mean(0)
    norm = ft.compute_metrics(TASK, metrics)["grad_norm"]  # of the trained leaves alone
    np.testing.assert_allclose(norm, np.linalg.norm(gradient), rtol=1e-6)


def test_bfloat16_parameters_keep_float32_statistics():
    # Law 4: whatever the dtype of the parameters.
    tx = ft.chain(ft.clip_by_norm(1.0), ft.nesterov(0.9), ft.optimizers.adamw(0.125))
    task = ft.Task(loss_fn, tx)
    state = ft.init_state(task, {"w": jnp.asarray(W, jnp.bfloat16)})
    assert state.params["w"].dtype == jnp.bfloat16
    for _ in range(2):
        for leaf in jax.tree.leaves(state.opt_state):
            assert leaf.dtype in (jnp.float32, jnp.int32)
        state, metrics = ft.train_step(task, state, jnp.asarray(BATCH, jnp.bfloat16))
        assert state.params["w"].dtype == jnp.bfloat16
        assert all(v.dtype == jnp.float32 for v in ft.compute_metrics(task, metrics).values())
    assert ft.compute_gradients(task, state, BATCH)[1]["w"].dtype == jnp.bfloat16


def test_the_policy_decides_what_parameters_are_kept_in():
    task = ft.Task(loss_fn, ADAM, policy=ft.Policy(params="bfloat16"))
    assert ft.init_state(task, {"w": W, "n": np.int32(1)}).params["w"].dtype == jnp.bfloat16
    task = ft.Task(loss_fn, ADAM, policy="bf16")
    state = ft.init_state(task, {"w": jnp.asarray(W, jnp.bfloat16), "n": np.int32(1)})
    assert state.params["w"].dtype == jnp.float32
    assert state.params["n"].dtype == jnp.int32


def test_the_state_is_frozen_and_a_pytree():
    state = ft.init_state(TASK, {"w": W})
    with pytest.raises(AttributeError):
        state.step = 3
    other = state.replace(step=jnp.asarray(3, jnp.int32))
    assert (int(state.step), int(other.step)) == (0, 3)
    assert [
        f for f in ("step", "updates", "params", "opt_state", "model_state", "key") if not hasattr(state, f)
    ] == []
    leaves, structure = jax.tree.flatten(state)
    assert isinstance(jax.tree.unflatten(structure, leaves), ft.TrainState)


def test_born_sharded_by_rules():
    mesh = ft.sharding.mesh(data=4, model=2)
    seen = []

    def make(key):
        seen.append(isinstance(key, jax.core.Tracer))  # under jit, so no device ever holds it whole
        return {
            "layer": {"kernel": jax.random.normal(key, (8, 6)), "bias": jnp.zeros(6)},
            "scale": jnp.ones(()),
        }

    rules = [("kernel", P("data", "model")), ("bias$", P("model")), (".*", P())]
    task = ft.Task(lambda p, b, c: b @ p["layer"]["kernel"] @ p["layer"]["bias"], ADAM)
    state = ft.init_state(task, make, mesh=mesh, rules=rules)
    assert all(seen)
    kernel = state.params["layer"]["kernel"]
    assert kernel.sharding.spec == P("data", "model")
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 3)
    assert state.params["layer"]["bias"].sharding.spec == P("model")
    assert state.params["scale"].sharding.is_fully_replicated
    # Moments inherit their parameter's split; counters are everywhere.
    by_shape = {(8, 6): P("data", "model"), (6,): P("model")}
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape in by_shape]
    assert len(moments) == 4
    assert all(x.sharding.spec == by_shape[x.shape] for x in moments)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(state))
    # Split or not, the numbers are those of the seed.
    alone = ft.init_state(task, make)
    np.testing.assert_array_equal(kernel, alone.params["layer"]["kernel"])


def test_a_tree_is_placed_by_rules_and_replicated_without():
    mesh = ft.sharding.mesh(data=4, model=2)
    task = ft.Task(lambda p, b, c: b @ p["w"], ADAM)
    params = {"w": np.arange(8, dtype=np.float32)}
    split = ft.init_state(task, params, mesh=mesh, rules=[("w", P("model"))])
    assert split.params["w"].sharding.shard_shape((8,)) == (4,)
    whole = ft.init_state(task, params, mesh=mesh)
    assert whole.params["w"].sharding.is_fully_replicated
    fsdp = ft.init_state(task, params, mesh=mesh, rules=ft.sharding.fsdp(min_size=8))
    assert fsdp.params["w"].sharding.spec == P("data")
    assert (
        ft.init_state(task, params, mesh=mesh, rules=ft.sharding.fsdp())
        .params["w"]
        .sharding.is_fully_replicated
    )
    report = ft.sharding.report(split)
    assert "params/w" in report
    assert "float32[8]" in report


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([("w", P("model"))], ["`rules`", "`b`"]),  # no rule covers `b`
        ([("kernel", P()), (".*", P())], ["`rules`", "kernel"]),  # matches nothing
        ([("w", P("rows")), (".*", P())], ["`rules`", "rows"]),  # no such axis
        ([("w", P("data", "model")), (".*", P())], ["`rules`", "`w`"]),  # one axis too many
        ([("b", P("model")), (".*", P())], ["`rules`", "`b`", "3"]),  # 3 does not divide by 2
    ],
)
def test_rules_that_do_not_fit_are_errors(rules, words):
    mesh = ft.sharding.mesh(data=4, model=2)
    with pytest.raises(ft.ConfigError) as error:
        ft.init_state(
            TASK, {"w": np.ones(8, np.float32), "b": np.ones(3, np.float32)}, mesh=mesh, rules=rules
        )
    assert all(word in str(error.value) for word in words), error.value


def test_rules_need_a_mesh():
    with pytest.raises(ft.ConfigError, match="`mesh`"):
        ft.init_state(TASK, {"w": W}, rules=[(".*", P())])


def test_states_of_one_form_compile_once_and_functions_are_traced_anew():
    task = ft.Task(lambda p, b, ctx: b @ p["w"], ft.optimizers.adamw(1e-3))
    before = _state._made._cache_size()
    states = [ft.init_state(task, {"w": np.full(3, i, np.float32)}, key=i) for i in range(3)]
    assert _state._made._cache_size() == before + 1
    assert [float(s.params["w"][0]) for s in states] == [0.0, 1.0, 2.0]

    width = 3

    def init_params(key):
        return {"w": jnp.ones(width)}

    assert ft.init_state(task, init_params).params["w"].shape == (3,)
    width = 4  # as a notebook cell does
    assert ft.init_state(task, init_params).params["w"].shape == (4,)
