"""What users of JAX do with any tree and any function: to NumPy, copies, pickles, Chex, derivatives, own scans."""

import copy
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3)).astype(np.float32)
V = RNG.normal(size=(6, 3)).astype(np.float32)
W = np.array([1.0, -0.5, 2.0], np.float32)


def loss_fn(params, batch, ctx):
    noise = jax.random.normal(ctx.stream("noise"), (len(batch),)) if ctx.train else 0
    out = batch @ params["w"]
    return ft.losses.mse(out + noise, batch[:, 0] ** 2).with_outputs(
        predictions=out, targets=batch[:, 0] ** 2
    )


TASK = ft.Task(loss_fn, ft.optimizers.adam(0.1), {"mae": ft.metrics.mae()})


def fresh(task=TASK, key=3):
    return ft.init_state(task, {"w": W}, key=key)


# --- a state is a tree of plain arrays ----------------------------------------------------------------------------

COPIES = {
    "numpy": lambda s: jax.tree.map(np.asarray, s),
    "there and back": lambda s: jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, s)),
    "device_get": jax.device_get,
    "to_host": ft.sharding.to_host,
    "deepcopy": copy.deepcopy,
    "pickle": lambda s: pickle.loads(pickle.dumps(s)),
    "pickle of numpy": lambda s: pickle.loads(pickle.dumps(jax.tree.map(np.asarray, s))),
    "leaves": lambda s: jax.tree.unflatten(jax.tree.structure(s), jax.tree.leaves(s)),
}


@pytest.mark.parametrize("key", [3, jax.random.key(3, impl="rbg")], ids=["threefry", "rbg"])
def test_a_copy_of_a_state_trains_as_the_state_does(key):
    straight, _ = ft.train_step(TASK, fresh(key=key), X)
    straight = jax.tree.map(np.array, straight)
    for name, made in COPIES.items():
        state = fresh(key=key)
        other = made(state)
        assert jax.tree.structure(other) == jax.tree.structure(state), name
        chex.assert_trees_all_close(other, state)
        chex.assert_trees_all_equal(other, state)
        after, _ = ft.train_step(TASK, other, X)
        chex.assert_trees_all_equal(jax.tree.map(np.array, after), straight)
        if name != "leaves":
            assert not state.params["w"].is_deleted(), name  # a copy has arrays of its own


def test_chex_sees_another_key():
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(fresh(key=3), fresh(key=4))
    assert jax.tree.structure(fresh()) != jax.tree.structure(fresh(key=jax.random.key(3, impl="rbg")))


def test_the_key_is_a_typed_one_wherever_it_is_read():
    state = fresh()
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    assert all(isinstance(x.dtype, np.dtype) for x in jax.tree.leaves(state))
    shapes = jax.eval_shape(fresh)
    assert shapes.key.dtype == state.key.dtype
    assert shapes.key.shape == ()
    many = jax.tree.map(lambda *x: jnp.stack(x), state, fresh(key=5))
    assert many.key.shape == (2,)
    drawn = jax.jit(lambda s: jax.random.normal(s.key))(state)
    assert drawn == jax.random.normal(jax.random.key(3))
    each = jax.vmap(lambda s: jax.random.normal(s.key))(many)
    np.testing.assert_array_equal(each, [jax.random.normal(jax.random.key(i)) for i in (3, 5)])
    assert jax.random.normal(state.replace(key=jax.random.key(5)).key) == each[1]
    other = state.replace(step=state.step + 1)
    assert other.key is state.key


def test_a_checkpoint_of_a_state_on_the_host_is_that_of_the_state(tmp_path):
    state = fresh(key=jax.random.key(1, impl="rbg"))
    with ft.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(jax.tree.map(np.asarray, state), step=1)
        checkpoints.save({"both": [state, {"one": state}]}, step=2)
        for like in (state, jax.eval_shape(lambda: fresh(key=jax.random.key(0, impl="rbg")))):
            got = checkpoints.restore(like, step=1)
            chex.assert_trees_all_equal(got, state)
            assert jax.random.key_impl(got.key) == "rbg"
        both = {"both": [state, {"one": state}]}
        chex.assert_trees_all_equal(checkpoints.restore(both, step=2), both)
        with pytest.raises(ft.CheckpointMismatchError, match="key<rbg>"):
            checkpoints.restore(fresh(), step=1)


# --- derivatives through steps --------------------------------------------------------------------------------------

SGD = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b[:, 0] ** 2), ft.optimizers.sgd(0.1))


def mean_loss(w, batch):
    return jnp.mean((batch @ w - batch[:, 0] ** 2) ** 2)


def stepped(w, rate=0.1):
    return w - rate * jax.grad(mean_loss)(w, X)


def through(verb):
    """The loss on V after one step on X from parameters `w`."""

    def after(w):
        state = ft.init_state(SGD, {"w": W}).replace(params={"w": w})
        if verb == "train_steps":
            state, _ = ft.train_steps(SGD, state, X[None])
        else:
            state, _ = ft.train_step(SGD, state, X, jnp.ones(4) if verb == "weighed" else None)
        return mean_loss(state.params["w"], V)

    return after


@pytest.mark.parametrize("verb", ["train_step", "weighed", "train_steps"])
def test_the_gradient_through_a_step_is_that_of_the_step_by_hand(verb):
    w = jnp.asarray(W)
    want = jax.grad(lambda w: mean_loss(stepped(w), V))(w)
    np.testing.assert_allclose(jax.grad(through(verb))(w), want, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(through(verb)))(w), want, rtol=1e-5)
    np.testing.assert_array_equal(w, W)  # the caller's array is still there
    jvp = jax.jvp(through(verb), (w,), (jnp.ones(3),))[1]
    np.testing.assert_allclose(jvp, want.sum(), rtol=1e-5)


def test_the_gradient_with_respect_to_a_learning_rate():
    def given(rate):
        task = ft.Task(SGD.loss_fn, ft.optimizers.sgd(rate))
        state, _ = ft.train_step(task, ft.init_state(task, {"w": W}), X)
        return mean_loss(state.params["w"], V)

    def held(rate):
        task = ft.Task(SGD.loss_fn, ft.with_hyperparams(ft.optimizers.sgd, learning_rate=0.3))
        state = ft.set_hyperparams(ft.init_state(task, {"w": W}), learning_rate=rate)
        state, _ = ft.train_step(task, state, X)
        return mean_loss(state.params["w"], V)

    want = jax.grad(lambda rate: mean_loss(stepped(jnp.asarray(W), rate), V))(0.1)
    np.testing.assert_allclose(jax.grad(given)(0.1), want, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(held)(0.1), want, rtol=1e-5)


def test_metrics_are_differentiable_where_they_are():
    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1), {"mae": ft.metrics.mae(), "r2": ft.metrics.r2()})
    state = ft.init_state(task, {"w": W})
    w = jnp.asarray(W)

    def value(name, verb=ft.eval_step):
        def of(w):
            out = verb(task, state.replace(params={"w": w}), V)
            out = out[1] if verb is ft.train_step else out
            return ft.compute_metrics(task, ft.merge_metrics(task, out, out))[name]

        return of

    np.testing.assert_allclose(jax.grad(value("loss"))(w), jax.grad(mean_loss)(w, V), rtol=1e-5)
    mae = jax.grad(lambda w: jnp.mean(jnp.abs(V @ w - V[:, 0] ** 2)))(w)
    np.testing.assert_allclose(jax.grad(value("mae"))(w), mae, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(value("mae", ft.train_step))(w), mae, rtol=1e-5)
    targets = V[:, 0] ** 2
    spread = np.sum((targets - targets.mean()) ** 2)
    r2 = jax.grad(lambda w: 1 - jnp.sum((V @ w - targets) ** 2) / spread)(w)
    np.testing.assert_allclose(jax.grad(value("r2"))(w), r2, rtol=1e-4)


# --- a scan of one's own ----------------------------------------------------------------------------------------------


def test_a_scan_that_merges_from_empty_metrics_is_train_steps():
    batches = RNG.normal(size=(5, 4, 3)).astype(np.float32)
    weights = RNG.integers(0, 2, (5, 4)).astype(np.float32)

    @jax.jit
    def scanned(state):
        def body(carry, x):
            state, metrics = carry
            state, new = ft.train_step(TASK, state, *x)
            return (state, ft.merge_metrics(TASK, metrics, new)), None

        start = state, ft.empty_metrics(TASK, state, batches[0], weights[0])
        return jax.lax.scan(body, start, (batches, weights))[0]

    state, metrics = scanned(fresh())
    wanted_state, wanted = ft.train_steps(TASK, fresh(), batches, weights)
    chex.assert_trees_all_equal(metrics, wanted)
    chex.assert_trees_all_equal(state, wanted_state)


def test_empty_metrics_are_those_of_nothing():
    state = fresh()
    shapes = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    seen = {True: ft.train_step(TASK, fresh(), X)[1], False: ft.eval_step(TASK, state, X)}
    for train, some in seen.items():
        empty = ft.empty_metrics(TASK, state, shapes, train=train)
        values = ft.compute_metrics(TASK, empty)
        assert np.isnan(values["mae"])
        chex.assert_trees_all_equal(ft.merge_metrics(TASK, empty, some), some)
        chex.assert_trees_all_equal(ft.merge_metrics(TASK, some, empty), some)
    with pytest.raises(ft.ConfigError, match="`train`"):
        ft.empty_metrics(TASK, state, X, train="yes")


# --- pickles ----------------------------------------------------------------------------------------------------------


def test_a_task_and_what_its_steps_return_survive_a_pickle():
    """Transforms, schedules and metrics do by `testing.check_value`, over their registries."""
    rate = ft.schedules.warmup(ft.schedules.cosine(1e-3, 100), 10)
    tx = ft.chain(ft.clip_by_norm(1.0), ft.MultiSteps(ft.optimizers.adamw(rate), 2))
    task = ft.Task(loss_fn, tx, {"mae": ft.metrics.mae()}, microbatches=2, policy="bf16")
    again = pickle.loads(pickle.dumps(task))
    assert again == task
    assert hash(again) == hash(task)
    metrics = ft.eval_step(TASK, fresh(), X)
    for other in (pickle.loads(pickle.dumps(metrics)), copy.deepcopy(metrics)):
        chex.assert_trees_all_equal(
            ft.merge_metrics(TASK, other, metrics), ft.merge_metrics(TASK, metrics, metrics)
        )
    losses = loss_fn({"w": jnp.asarray(W)}, X, ft.Context(jax.random.key(0), False, jnp.int32(0), None))
    chex.assert_trees_all_equal(pickle.loads(pickle.dumps(losses)), losses)
    assert copy.deepcopy(task) == task


def test_a_function_that_no_module_has_is_named_by_the_pickle():
    task = ft.Task(lambda params, batch, ctx: ft.losses.mse(batch, batch), ft.optimizers.sgd(0.1))
    with pytest.raises((AttributeError, pickle.PicklingError), match=r"pickle.*<lambda>"):
        pickle.dumps(task)
