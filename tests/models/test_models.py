"""Models of other libraries against the same steps taken by hand in those libraries."""

import dataclasses
import inspect
import pickle
import sys
import warnings
from pathlib import Path

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx

import fntrain as ft

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import by_hand as by_hand_lib  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 6)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int32)


@pytest.fixture(autouse=True)
def usual_promotion():
    """Their layers are written for JAX's own defaults, and not for the strict ones of these tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class NNXNet(nnx.Module):
    def __init__(self, rngs, rate=0.5):
        self.first = nnx.Linear(6, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(16, 16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)])

    def __call__(self, x):
        x = self.drop(nnx.relu(self.norm(self.first(x))))
        for head in self.heads:
            x = head(x)
        return x


class LinenNet(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x)))
        return nn.Dense(2)(nn.Dropout(self.rate, deterministic=not train)(x))


class EquinoxNet(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    last: eqx.nn.Linear
    activation: object = jax.nn.relu

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.first, self.last = eqx.nn.Linear(6, 16, key=a), eqx.nn.Linear(16, 2, key=b)
        self.norm, self.drop = eqx.nn.BatchNorm(16, "batch", mode="batch"), eqx.nn.Dropout(0.5)

    def __call__(self, x, state, *, key):
        x, state = self.norm(self.first(x), state)
        return self.last(self.drop(self.activation(x), key=key)), state


def haiku_net(x, is_training):
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Linear(16)(x), is_training))
    return hk.Linear(2)(hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x)


def plain_init(key):
    return {"w": 0.3 * jax.random.normal(key, (6, 2))}


def plain_apply(params, x):
    return x @ params["w"]


MAKE = {
    "nnx": lambda: ft.models.nnx(NNXNet),
    "linen": lambda: ft.models.linen(LinenNet(), X[:1]),
    "equinox": lambda: ft.models.equinox(eqx.nn.make_with_state(EquinoxNet)),
    "haiku": lambda: ft.models.haiku(hk.transform_with_state(haiku_net), X[:1]),
    "plain": lambda: ft.models.plain(plain_init, plain_apply),
}


def task_of(model, **options):
    def loss_fn(params, batch, ctx):
        logits, model_state = model.apply(params, batch[0], ctx=ctx)
        loss = ft.losses.cross_entropy(logits, batch[1]).with_outputs(logits=logits, labels=batch[1])
        return loss.with_state(model_state)

    options = {"metrics": {"accuracy": ft.metrics.accuracy()}, **options}
    return ft.Task(loss_fn, ft.optimizers.sgd(0.1), **options)


def bits(tree):
    return [
        (str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(ft.sharding.to_host(tree))
    ]


# -- paths and the way back ---------------------------------------------------------------------------------------


def test_parameters_have_the_modules_own_names():
    wanted = {
        "nnx": ["first/kernel", "heads/0/kernel", "norm/scale"],
        "linen": ["Dense_0/kernel", "Dense_1/bias", "BatchNorm_0/scale"],
        "equinox": ["first/weight", "last/bias", "norm/weight"],
        "haiku": ["linear/w", "batch_norm/scale"],
    }
    kept = {
        "nnx": ["norm/mean", "norm/var"],
        "linen": ["batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var"],
        "equinox": ["norm/batch_counter", "norm/batch_state_index/0", "norm/batch_state_index/1"],
    }
    for name, paths in wanted.items():
        params, model_state = MAKE[name]().init(jax.random.key(0))
        assert set(paths) <= set(ft.tree.paths(params)), name
        assert not any("key" in path or "count" in path.split("/") for path in ft.tree.paths(params))
        if name in kept:
            assert ft.tree.paths(model_state) == kept[name]
    # ... so whatever goes by path works on them.
    model = MAKE["nnx"]()
    tx = ft.by_path({"heads/.*": ft.optimizers.sgd(0.5), ".*": ft.optimizers.sgd(0.0)})
    task = ft.Task(task_of(model).loss_fn, tx)
    before = ft.init_state(task, model.init)
    first, head = (
        np.asarray(before.params[a][b]["kernel"] if b is not None else before.params[a]["kernel"])
        for a, b in (("first", None), ("heads", 1))
    )
    after, _ = ft.train_step(task, before, (X, Y))
    np.testing.assert_array_equal(after.params["first"]["kernel"], first)
    assert not np.array_equal(after.params["heads"][1]["kernel"], head)


def test_the_module_comes_back_with_copies_of_the_trained_numbers():
    outputs = {
        "nnx": lambda m: m(X),
        "linen": lambda m: m(X, train=False),
        "equinox": lambda m: jax.vmap(lambda x: m[0](x, m[1], key=None)[0], axis_name="batch")(X),
        "haiku": lambda m: m(X),
        "plain": lambda m: m(X),
    }
    for name, make in MAKE.items():
        model = make()
        task = task_of(model)
        state, _ = ft.fit(
            task, ft.init_state(task, model.init), (X, Y), epochs=2, batch_size=8, progress=False
        )
        module = model.module(state)
        wanted = ft.predict(task, state, (X, Y), outputs="logits", batch_size=24)
        ft.train_step(task, state, (X, Y))  # which consumes the state, and not what came out of it
        np.testing.assert_allclose(outputs[name](module), wanted, rtol=2e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", MAKE)
def test_a_module_comes_back_of_a_state_and_of_nothing_else(name):
    model = MAKE[name]()
    task = task_of(model)
    state = ft.init_state(task, model.init)
    assert model.module(ft.models.Variables(state.params, state.model_state)) is not None
    for other in (state.params, (state.params, state.model_state), None):
        with pytest.raises(
            ft.ConfigError, match=r"`state` must be a TrainState or Variables, got .*`model\.module\("
        ):
            model.module(other)
    ft.train_step(task, state, (X, Y))
    with pytest.raises(ft.ConfigError, match="consumed by a train step at step 0"):
        model.module(state)


@pytest.mark.parametrize("name", MAKE)
def test_equal_models_are_equal_and_survive_pickling(name):
    if name in ("haiku", "equinox", "plain"):
        a = MAKE[name]()
        b = pickle.loads(pickle.dumps(a)) if name == "plain" else a
    else:
        a, b = MAKE[name](), pickle.loads(pickle.dumps(MAKE[name]()))
    assert a == b
    assert hash(a) == hash(b)
    assert " at 0x" not in repr(a)


# -- against the library by hand ----------------------------------------------------------------------------------


def test_an_nnx_step_is_that_of_split_and_merge():
    module = NNXNet(nnx.Rngs(3), rate=0.0)
    model = ft.models.nnx(module)
    task = task_of(model)
    state, _ = ft.train_step(task, ft.init_state(task, model.init), (X, Y))

    graph, params, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def step(params, rest):
        def loss(params, rest):
            model = nnx.merge(graph, params, rest, copy=True)
            model.train()
            values = optax.softmax_cross_entropy_with_integer_labels(model(X), Y)
            return values.mean(), nnx.state(model, nnx.BatchStat)

        grads, stats = jax.grad(loss, has_aux=True)(params, rest)
        tx = optax.sgd(0.1)
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates), stats

    wanted, stats = step(params, rest)
    for path, x in nnx.to_flat_state(wanted):
        np.testing.assert_allclose(
            _at(state.params, path), x.get_value(), rtol=1e-5, atol=1e-6, err_msg=str(path)
        )
    for path, x in nnx.to_flat_state(stats):
        np.testing.assert_array_equal(_at(state.model_state, path), x.get_value())


def test_a_linen_step_is_that_of_apply():
    module = LinenNet(rate=0.0)
    model = ft.models.linen(module, X[:1])
    task = task_of(model)
    first = ft.init_state(task, model.init)
    params, stats = jax.tree.map(jnp.copy, (first.params, first.model_state))
    state, metrics = ft.train_step(task, first, (X, Y))

    @jax.jit
    def by_hand(params):
        def loss(params):
            out, after = module.apply({"params": params, **stats}, X, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(out, Y).mean(), after

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, after), grads = by_hand(params)
    np.testing.assert_allclose(ft.compute_metrics(task, metrics)["loss"], value, rtol=1e-6)
    assert bits(state.model_state) == bits(after)
    tx = optax.sgd(0.1)
    wanted = optax.apply_updates(params, tx.update(grads, tx.init(params), params)[0])
    for (path, a), b in zip(ft.tree.items(state.params), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=path)


def test_an_equinox_gradient_is_that_of_partition_and_combine():
    module = eqx.nn.MLP(6, 2, 8, depth=1, key=jax.random.key(1))
    model = ft.models.equinox(module)
    task = task_of(model)
    state = ft.init_state(task, model.init)
    _, got = ft.compute_gradients(task, state, (X, Y))

    @eqx.filter_grad
    def wanted(module):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(module)(X), Y).mean()

    wanted = dict(ft.tree.items(eqx.filter(wanted(module), eqx.is_array)))
    assert set(wanted) == set(ft.tree.paths(got))
    for path, x in ft.tree.items(got):
        np.testing.assert_allclose(x, wanted[path], rtol=2e-5, atol=1e-7, err_msg=path)


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


# -- keys, statistics, padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nnx", "linen", "equinox", "haiku"])
def test_dropout_differs_by_step_is_the_same_again_and_off_in_evaluation(name):
    model = MAKE[name]()
    params, model_state = model.init(jax.random.key(0))

    def out(train, key):
        ctx = ft.Context(jax.random.key(key), train, jnp.zeros((), jnp.int32), model_state)
        return np.asarray(model.apply(params, X, ctx=ctx)[0])

    np.testing.assert_array_equal(out(True, 1), out(True, 1))
    assert np.abs(out(True, 1) - out(True, 2)).max() > 1e-2
    np.testing.assert_array_equal(out(False, 1), out(False, 2))


def test_two_dropouts_of_one_nnx_module_draw_apart_and_rows_of_one_batch_too():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = (nnx.Dropout(0.5, rngs=rngs) for _ in range(2))
            self.w = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            return jnp.stack([self.a(x), self.b(x)]) * self.w

    model = ft.models.nnx(Two)
    params, _ = model.init(jax.random.key(0))
    ctx = ft.Context(jax.random.key(1), True, jnp.zeros((), jnp.int32), None)
    first, second = model.apply(params, jnp.ones((64, 8)), ctx=ctx)[0]
    assert 0.2 < float(jnp.mean(first == second)) < 0.8
    assert len({np.asarray(row).tobytes() for row in first}) > 32


@pytest.mark.parametrize("name", ["nnx", "linen"])
def test_rows_of_padding_leave_no_trace_in_batch_statistics_and_gradients(name):
    model = (
        ft.models.nnx(lambda rngs: NNXNet(rngs, 0.0))
        if name == "nnx"
        else ft.models.linen(LinenNet(0.0), X[:1])
    )
    task = task_of(model)
    exact, _ = ft.train_step(task, ft.init_state(task, model.init), (X[:5], Y[:5]))
    rows = np.concatenate([X[:5], np.full((3, 6), 1e3, np.float32)])
    weight = np.array([1] * 5 + [0] * 3, np.float32)
    padded, _ = ft.train_step(
        task, ft.init_state(task, model.init), (rows, np.zeros(8, np.int32) + np.pad(Y[:5], (0, 3))), weight
    )
    for (path, a), b in zip(
        ft.tree.items((exact.params, exact.model_state)), jax.tree.leaves((padded.params, padded.model_state))
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=path)
    # A broken specimen: a model that does not ask for the mask is changed by them a great deal.
    blind = ft.Task(lambda p, b, ctx: ft.losses.cross_entropy(*_unmasked(model, p, b, ctx)), task.tx)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong, _ = ft.train_step(
            blind, ft.init_state(blind, model.init), (rows, np.pad(Y[:5], (0, 3))), weight
        )
    assert any(
        np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-3
        for a, b in zip(jax.tree.leaves(exact.params), jax.tree.leaves(wrong.params))
    )


def _unmasked(model, params, batch, ctx):
    return model.apply(params, batch[0], ctx=dataclasses.replace(ctx, weight=None))[0], batch[1]


@pytest.mark.parametrize("name", ["nnx", "linen"])
def test_micro_batches_of_padding_alone_change_nothing_and_are_no_nan(name):
    model = MAKE[name]()
    task = task_of(model, microbatches=4)
    state = ft.init_state(task, model.init)
    weight = np.zeros(8, np.float32)
    weight[0] = weight[1] = 1  # rows go to micro-batches in turn, so two of the four are padding
    state, _ = ft.train_step(task, state, (X[:8], Y[:8]), weight)
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves((state.params, state.model_state)))
    before = bits((state.params, state.model_state))
    state, _ = ft.train_step(task, state, (X[:8], Y[:8]), np.zeros(8, np.float32))
    assert bits(state.model_state) == before[-len(jax.tree.leaves(state.model_state)) :]


def test_what_takes_no_mask_says_so():
    for name, layer in (("equinox", "Equinox's BatchNorm"), ("haiku", "Haiku's BatchNorm")):
        model = MAKE[name]()
        task = task_of(model)
        state = ft.init_state(task, model.init)
        with pytest.warns(UserWarning, match=f"{layer} takes no mask"):
            ft.train_step(task, state, (X, Y), np.ones(24, np.float32))


def test_a_ragged_data_set_trains_as_an_unpadded_one():
    """The fault as it was met: 1,030 rows in batches of 1,024, where padding made the statistics 3 times too small."""
    rng = np.random.default_rng(1)
    x = rng.normal(2, 1, size=(1030, 6)).astype(np.float32)
    y = (x.sum(1) > 12).astype(np.int32)
    model = ft.models.linen(LinenNet(0.0), x[:1])
    task = task_of(model)
    state, _ = ft.fit(
        task,
        ft.init_state(task, model.init),
        (x, y),
        epochs=2,
        batch_size=1024,
        shuffle=False,
        progress=False,
    )
    by_hand = ft.init_state(task, model.init)
    for _ in range(2):
        for rows in (slice(0, 1024), slice(1024, 1030)):
            by_hand, _ = ft.train_step(task, by_hand, (x[rows], y[rows]))
    for (path, a), b in zip(
        ft.tree.items((state.params, state.model_state)),
        jax.tree.leaves((by_hand.params, by_hand.model_state)),
    ):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=path)


# -- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKE)
def test_runs_resume_bitwise_and_export_comes_back(name, tmp_path):
    model = MAKE[name]()
    task = task_of(model)
    data = (X, Y)

    def run(epochs, **options):
        state = ft.init_state(task, model.init)
        return ft.fit(task, state, data, epochs=epochs, batch_size=8, progress=False, **options)

    straight = run(4)
    run(2, run_dir=tmp_path / "run")
    again = run(4, run_dir=tmp_path / "run", resume="must")
    assert bits(again.state) == bits(straight.state)
    ft.export(straight.state.params, tmp_path / "weights.safetensors")
    back = ft.load(tmp_path / "weights.safetensors", like=straight.state.params)
    assert bits(back) == bits(straight.state.params)


@pytest.mark.parametrize("name", ["nnx", "linen", "equinox"])
def test_eight_devices_are_one_and_parameters_are_born_sharded(name):
    mesh = ft.sharding.mesh(data=8)
    model, rows = {
        "nnx": lambda: (ft.models.nnx(lambda rngs: NNXNet(rngs, 0.0)), 21),
        "linen": lambda: (ft.models.linen(LinenNet(0.0), X[:1]), 21),
        "equinox": lambda: (MAKE["equinox"](), 24),  # all of them: its norm takes no mask; dropout is by row
    }[name]()
    task = task_of(model)
    rules = ft.sharding.fsdp(min_size=16)
    many = ft.init_state(task, model.init, mesh=mesh, rules=rules)
    split = [x for x in jax.tree.leaves(many.params) if not x.sharding.is_fully_replicated]
    assert split
    one = ft.init_state(task, model.init)
    batch, weight = ft.sharding.shard_batch((X[:rows], Y[:rows]), mesh)
    many, _ = ft.train_step(task, many, batch, None if rows == 24 else weight)
    one, _ = ft.train_step(task, one, (X[:rows], Y[:rows]))
    for (path, a), b in zip(
        ft.tree.items((one.params, one.model_state)), jax.tree.leaves((many.params, many.model_state))
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=path)


# -- traps --------------------------------------------------------------------------------------------------------


def test_tied_weights_are_there_once_and_stay_tied():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Param(jax.random.normal(rngs.params(), (6, 4)))
            self.out = self.embed

        def __call__(self, x):
            return (x @ self.embed) @ self.out.T

    model = ft.models.nnx(Tied)
    params, _ = model.init(jax.random.key(0))
    assert ft.tree.paths(params) == ["embed"]
    ctx = ft.Context(jax.random.key(0), True, jnp.zeros((), jnp.int32), None)
    got = jax.grad(lambda p: model.apply(p, X, ctx=ctx)[0].sum())(params)["embed"]
    wanted = jax.grad(lambda e: ((X @ e) @ e.T).sum())(params["embed"])
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    shared = eqx.nn.Linear(6, 6, key=jax.random.key(0))
    with pytest.warns(
        UserWarning, match="layers/0/weight` and `layers/1/weight`, `layers/0/bias` and `layers/1/bias`"
    ):
        ft.models.equinox(eqx.nn.Sequential([shared, shared]))


def test_what_is_no_model_is_refused_by_name():
    with pytest.raises(ft.ConfigError, match="must be a Flax Linen module, got NNXNet"):
        ft.models.linen(NNXNet(nnx.Rngs(0)), X)
    with pytest.raises(ft.ConfigError, match="needs an example"):
        ft.models.linen(LinenNet())
    with pytest.raises(ft.ConfigError, match="needs an example"):
        ft.models.haiku(hk.transform(haiku_net))
    with pytest.raises(ft.ConfigError, match=r"must be what `hk\.transform"):
        ft.models.haiku(haiku_net, X)
    with pytest.raises(ft.ConfigError, match=r"nnx\.Param"):
        ft.models.nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    for module in (NNXNet(nnx.Rngs(0)), LinenNet(), eqx.nn.MLP(2, 2, 2, depth=1, key=jax.random.key(0))):
        with pytest.raises(ft.ConfigError, match=r"wrap it, `fntrain\.models"):
            ft.supervised(module)
    model = MAKE["nnx"]()
    task = task_of(model)
    with pytest.raises(ft.ConfigError, match="has no `first`"):
        ft.train_step(task, ft.init_state(task, {"w": np.ones(3, np.float32)}), (X, Y))


def test_a_loss_that_forgets_the_statistics_is_told():
    model = MAKE["linen"]()
    task = ft.Task(
        lambda p, b, ctx: ft.losses.cross_entropy(model.apply(p, b[0], ctx=ctx)[0], b[1]),
        ft.optimizers.sgd(0.1),
    )
    with pytest.warns(UserWarning, match="returns no model state in training"):
        ft.train_step(task, ft.init_state(task, model.init), (X, Y))


# -- what the documentation counts --------------------------------------------------------------------------------


def test_by_hand_it_takes_the_lines_that_are_counted_and_comes_to_the_same():
    by_hand = {"NNX": (by_hand_lib.with_nnx, NNXNet), "Linen": (by_hand_lib.with_linen, LinenNet()),
               "Equinox": (by_hand_lib.with_equinox, EquinoxNet)}  # fmt: skip
    text = " ".join((ROOT / "docs" / "models.md").read_text().split())
    x, y = np.tile(X, (3, 1)), np.tile(Y, 3)
    for name, (function, net) in by_hand.items():
        lines = [line for line in inspect.getsource(function).splitlines()[1:] if line.strip()]
        assert f"{len(lines)} lines with {name}" in text or f"{len(lines)} with {name}" in text, (
            name,
            len(lines),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Equinox's padding
            model = MAKE[name.lower()]()
            task = ft.supervised(model, optimizer=ft.optimizers.adamw(3e-3), metrics=())
            state = ft.init_state(task, model.init)
            state, _ = ft.fit(task, state, (x, y), epochs=3, progress=False)
            ours = ft.evaluate(task, state, (x, y))["loss"]
        assert abs(function(net, x, y) - ours) < 0.25  # other draws, the same network
