"""Populations: members equal their own runs, one program for all, controllers, resume, a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain import population
from fntrain.step import programs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32) + 0.25).astype(np.float32)
XV, YV = RNG.normal(size=(7, 3)).astype(np.float32), RNG.normal(size=7).astype(np.float32)


def loss_fn(params, batch, ctx):
    x, y = batch
    noise = jax.random.normal(ctx.key, x.shape[:1]) * 0.1 * float(ctx.train)  # each member's own
    prediction = x @ params["w"] + params["b"] + noise
    return ft.losses.mse(prediction, y).with_outputs(predictions=prediction)


def init_params(key):
    return {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(())}


TX = ft.chain(
    ft.clip_by_norm(1.0), ft.with_hyperparams(ft.optimizers.adamw, learning_rate=0.1, weight_decay=0.0)
)
TASK = ft.Task(loss_fn, TX, metrics={"prediction": ft.metrics.mean("predictions")})
SEEDS, RATES = [0, 0, 7, 8], [0.01, 0.1, 0.1, 0.3]


def start(seeds=SEEDS, rates=RATES, **more):
    return population.init(TASK, init_params, seeds=seeds, hyperparams={"learning_rate": rates}, **more)


def own(i):
    return ft.set_hyperparams(ft.init_state(TASK, init_params, key=SEEDS[i]), learning_rate=RATES[i])


def run(states, **kwargs):
    kwargs = {"batch_size": 8, "progress": False, "epochs": 4, "validation_data": (XV, YV), **kwargs}
    return population.fit(TASK, states, (X, Y), **kwargs)


def plain(tree):
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree
    )


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(plain(a)), jax.tree.leaves(plain(b)), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(plain(a)), jax.tree.leaves(plain(b)), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-6, atol=1e-6)


def test_members_begin_as_their_own_runs_do():
    states = start()
    for i in range(4):
        assert_same_bits(population.member(states, i), own(i))
    assert_same_bits(population.stack([own(i) for i in range(4)]), states)


def test_members_equal_their_own_runs_and_take_the_same_decisions():
    result = run(start(), log_every=2)
    for i in range(4):
        alone = ft.fit(TASK, own(i), (X, Y), batch_size=8, epochs=4, validation_data=(XV, YV), progress=False)
        assert_close(population.member(result.state, i), alone.state)
        for column in ("loss", "prediction", "val_loss", "val_prediction", "grad_norm"):
            mine = [row[i] for row in result.history[column + "_each"]]
            np.testing.assert_allclose(mine, alone.history[column], rtol=2e-6, atol=1e-6)
    each = np.array(result.history["val_loss_each"])
    np.testing.assert_allclose(result.history["val_loss"], each.mean(1), rtol=1e-6)
    assert each[-1].argsort().tolist() == list(result.ranked())
    assert len(np.unique(np.array(result.history["loss_each"])[0])) == 4  # members are not one and the same


def test_steps_in_one_dispatch_are_single_steps():
    one, many = start(), start()
    batches = (np.stack([X[:8], X[8:16]]), np.stack([Y[:8], Y[8:16]]))
    many, metrics = population.steps(TASK, many, batches)
    for i in range(2):
        one, _ = population.step(TASK, one, (batches[0][i], batches[1][i]))
    assert_same_bits(one, many)
    assert ft.compute_metrics(TASK, metrics)["loss"].shape == (4,)


def test_250_members_are_one_compilation():
    states = population.init(
        TASK, init_params, **population.grid(seeds=range(5), learning_rate=np.geomspace(1e-4, 1, 50))
    )
    assert population.size(states) == 250
    counted = []

    def counting(params, batch, ctx):
        counted.append(1)
        return loss_fn(params, batch, ctx)

    task = ft.Task(counting, TX)
    for i in range(3):
        states, _ = population.step(task, states, (X[:8] + i, Y[:8]))
    traces = len(counted)
    for rate in (0.1, 0.2):
        states = ft.set_hyperparams(states, learning_rate=rate)
        states, _ = population.step(task, states, (X[:8], Y[:8]))
    assert len(counted) == traces <= 3  # one program, whatever the numbers in it


@pytest.mark.parametrize("members", [None, 4])
def test_a_second_population_of_the_same_form_compiles_nothing(caplog, members):
    mesh = None if members is None else ft.sharding.mesh(members=members, data=-1)

    def made(seeds, rates, start):
        params = {"w": np.full(3, start, np.float32), "b": np.float32(0)}
        task = ft.Task(loss_fn, TX, metrics={"prediction": ft.metrics.mean("predictions")})  # an equal one
        more = dict(hyperparams={"learning_rate": rates}, mesh=mesh)
        return population.init(task, params, seeds=seeds, **more), ft.init_state(task, params, key=seeds[3])

    made(SEEDS, RATES, 0)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        states, alone = made([5, 6, 7, 9], [0.4, 0.3, 0.2, 0.1], 2)
    assert [line for line in caplog.messages if "ompil" in line] == []
    assert_same_bits(population.member(states, 3), ft.set_hyperparams(alone, learning_rate=0.1))
    assert states.params["w"].tolist() == [[2.0] * 3] * 4

    width = 3

    def init_params(key):
        return {"w": jnp.ones(width), "b": jnp.zeros(())}

    assert population.init(TASK, init_params, seeds=SEEDS).params["w"].shape == (4, 3)
    width = 5  # as a notebook cell does
    assert population.init(TASK, init_params, seeds=SEEDS).params["w"].shape == (4, 5)


def test_each_member_may_have_its_own_batch_and_weight():
    rows = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [3, 2, 1, 0]])
    weight = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 2]], np.float32)
    states, metrics = population.step(TASK, start(), population.per_member((X[rows], Y[rows])), weight)
    for i in range(4):
        alone, other = ft.train_step(TASK, own(i), (X[rows[i]], Y[rows[i]]), weight[i])
        assert_close(population.member(states, i), alone)
        loss = ft.compute_metrics(TASK, metrics)["loss"][i]
        np.testing.assert_allclose(loss, ft.compute_metrics(TASK, other)["loss"], rtol=1e-6)


def test_a_member_that_diverges_hides_nobody():
    states = start(rates=[0.01, 0.1, 0.1, 3e38])
    result = run(states, epochs=3)
    last = result.history["val_loss_each"][-1]
    assert not np.isfinite(last[3])
    assert np.isfinite(last[:3]).all()
    np.testing.assert_allclose(result.history["val_loss"][-1], last[:3].mean(), rtol=1e-6)
    assert not result.diverged
    assert result.bad_step is None
    assert result.ranked()[-1] == 3


def test_members_go_on_alone_and_are_evaluated():
    states = run(start(), epochs=1).state
    values = population.evaluate(TASK, states, (XV, YV), batch_size=4)
    for i in range(4):
        alone = ft.evaluate(TASK, population.member(states, i), (XV, YV), batch_size=4)
        for name, x in alone.items():
            np.testing.assert_allclose(values[name][i], x, rtol=1e-6)
    state, history = ft.fit(
        TASK, population.member(states, 1), (X, Y), batch_size=8, epochs=1, progress=False
    )
    assert int(state.step) == 6
    assert isinstance(history["loss"][0], float)


def test_halving_keeps_the_best_bit_for_bit():
    states = start(seeds=range(5), rates=[0.1])
    scores = np.array([0.3, np.nan, 0.9, -np.inf, 0.5], np.float32)
    kept = population.halving(keep=0.6)(states, scores, jax.random.key(0))
    assert_same_bits(kept, population.select(states, [0, 2, 4]))
    assert population.size(population.halving(keep=0.01)(states, scores)) == 1
    with pytest.raises(ft.errors.DataError, match=r"`scores`.*\[5\], got \[4\]"):
        population.halving()(states, scores[:4])


def test_halving_in_a_run_gives_up_the_worst_and_leaves_the_rest_alone():
    result = run(start(), epochs=4, controller=population.halving(every=3))
    straight = run(start(), validation_every=3)
    sizes = [len(x) for x in result.history["val_loss_each"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 4
    assert sizes[-1] == 1
    first = straight.history["val_loss_each"][1 if straight.history["step"][0] != 3 else 0]
    best = int(np.argmin(straight.history["val_loss_each"][straight.history["step"].index(3)]))
    assert best in np.argsort(first)[:2]
    (left,) = result.ids
    assert_close(population.member(result.state, 0), population.member(straight.state, left))
    gone = [row for row in result.table if not row["left"]]
    assert len(gone) == 3
    assert all(row["step"] < 12 for row in gone)
    assert "val_loss" in repr(result)
    assert "<table>" in result._repr_html_()


def test_pbt_copies_the_best_over_the_worst():
    states = start()
    controller = population.pbt(quantile=0.25, factor=2.0, bounds={"weight_decay": (0.0, 1.0)})
    scores = np.array([-1.0, -0.5, np.nan, -0.1], np.float32)
    new, parents = controller.apply(states, scores, 3)
    assert np.asarray(parents).tolist() == [0, 1, 3, 3]
    assert_same_bits(new.params["w"][2], states.params["w"][3])
    assert_same_bits(new.key, states.key)
    before, after = (np.asarray(ft.hyperparams(x)["learning_rate"]) for x in (states, new))
    assert (after[[0, 1, 3]] == before[[0, 1, 3]]).all()
    assert round(float(after[2] / before[3]), 6) in (0.5, 2.0)
    traced = jax.jit(lambda s, x: controller(s, x, jax.random.key(3)))(states, scores)
    assert_same_bits(traced, new)
    assert controller == population.pbt(factor=2.0, bounds={"weight_decay": (0.0, 1.0)})
    equal = controller(states, np.zeros(4, np.float32))  # nobody is better than anybody
    assert_same_bits(equal, states)


def test_pbt_climbs_where_neither_member_can():
    # Jaderberg et al. 2017, figure 2: Q = 1.2 - a² - b², and each member sees one of the two coordinates alone.
    def scaled(h0, h1):
        def update(g, state, params=None, **extra):
            return {"x": -0.02 * g["x"] * jnp.stack([h0, h1])}, state

        return ft.transforms.Transform(lambda params: (), update)

    task = ft.Task(
        lambda p, b, ctx: jnp.sum(p["x"] ** 2) + 0 * b, ft.with_hyperparams(scaled, h0=1.0, h1=0.0)
    )

    def trained(controller):
        states = population.init(
            task, {"x": np.full(2, 0.9, np.float32)}, hyperparams={"h0": [1.0, 0.0], "h1": [0.0, 0.9]}
        )
        for i in range(40):
            states, _ = population.steps(task, states, np.ones((4, 1), np.float32))
            if controller is not None:
                scores = 1.2 - jnp.sum(states.params["x"] ** 2, 1)
                states = controller(states, scores, jax.random.key(i))
        return float(jnp.max(1.2 - jnp.sum(states.params["x"] ** 2, 1)))

    def explore(key, values):
        keys = jax.random.split(key, len(values))
        return {name: jax.random.uniform(k, x.shape) for k, (name, x) in zip(keys, values.items())}

    assert abs(trained(None) - (1.2 - 0.81)) < 0.01  # the grid never gets beyond 0.39
    assert trained(population.pbt(quantile=0.5, explore=explore)) > 1.15


@pytest.mark.parametrize("controller", [population.halving(every=3), population.pbt(quantile=0.5, every=2)])
def test_a_population_stopped_and_resumed_is_the_one_that_was_not(tmp_path, controller):
    options = dict(controller=controller, checkpoint_every=1, run_dir=tmp_path / "run")
    stopping = ft.callbacks.EarlyStopping("val_loss", patience=50)
    straight = run(start(), controller=controller, callbacks=[stopping])
    for steps in (2, 4, 7):
        run(start(), **options, epochs=None, steps=steps, resume=steps > 2, callbacks=[stopping])
    resumed = run(start(), **options, resume=True, callbacks=[stopping])
    assert_same_bits(resumed.state, straight.state)
    assert resumed.ids == straight.ids
    assert resumed.table == straight.table
    for a, b in zip(resumed.history.rows()[-2:], straight.history.rows()[-2:]):
        assert_same_bits({k: np.asarray(v) for k, v in a.items()}, {k: np.asarray(v) for k, v in b.items()})


@pytest.mark.parametrize("axes", [{"members": 8, "data": 1}, {"members": 4, "data": 2}])
def test_members_over_a_mesh_are_those_of_one_device(axes):
    mesh = ft.sharding.mesh(**axes)
    rates = np.geomspace(0.01, 0.3, 8)
    alone = run(start(range(8), rates), epochs=2)
    states = start(range(8), rates, mesh=mesh)
    assert states.params["w"].sharding.spec[0] == "members"
    programs_of = programs._train_step, programs._eval_step
    before = [f._cache_size() for f in programs_of]
    together = run(states, epochs=2, steps_per_call=1)
    assert [f._cache_size() for f in programs_of] == [n + 1 for n in before]
    assert together.state.params["w"].sharding.spec[0] == "members"
    assert_close(together.state, alone.state)
    np.testing.assert_allclose(
        np.array(together.history["val_loss_each"]), np.array(alone.history["val_loss_each"]), rtol=2e-6
    )
    assert len(population.member(together.state, 3).params["w"].devices()) == 1


def test_an_ensemble_is_at_least_as_good_as_its_members():
    # -log of the mean of probabilities is at most the mean of -log (Jensen), for whatever was trained.
    labels = (Y > 0.25).astype(np.int32)

    def classify(params, batch, ctx):
        x, y = batch
        logits = jnp.stack([x @ params["w"], x @ params["b"]], 1)
        return ft.losses.cross_entropy(logits, y).with_outputs(logits=logits)

    task = ft.Task(classify, ft.optimizers.sgd(0.1))
    states = population.init(
        task, lambda key: {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(3)}, seeds=range(6)
    )
    states = population.fit(task, states, (X, labels), epochs=3, progress=False).state
    logits = ft.predict(task, states, (X, labels))["logits"]
    assert logits.shape == (22, 6, 2)
    p = np.asarray(jax.nn.softmax(logits, -1))[np.arange(22), :, labels]
    members = population.evaluate(task, states, (X, labels))["loss"]
    np.testing.assert_allclose(members, -np.log(p).mean(0), rtol=1e-5)
    assert -np.log(p.mean(1)).mean() <= members.mean()


def test_asha_goes_by_what_is_known():
    rungs = population.asha(reduction=3, every=5)
    assert [rungs.at(step) for step in (1, 5, 15, 30, 45)] == [False, True, True, False, True]
    assert rungs(0.1, [])
    assert not rungs(float("nan"), [])
    assert rungs(0.5, [0.1, 0.2, 0.3, 0.4, 0.6])
    assert not rungs(0.5, [0.1, 0.2, 0.3, 0.7, 0.6])


BAD = {
    "a seed that is a number": (lambda: start(seeds=5), r"`seeds`.*range\(5\)"),
    "other lengths": (lambda: start(seeds=range(3)), r"`learning_rate`|`seeds`.*grid"),
    "no such hyperparameter": (
        lambda: population.init(TASK, init_params, hyperparams={"learning_rat": [0.1]}),
        "did you mean 'learning_rate'",
    ),
    "a number for a sequence": (
        lambda: population.init(TASK, init_params, hyperparams={"learning_rate": 0.1}),
        "`learning_rate` must be a sequence",
    ),
    "one run's state": (lambda: population.step(TASK, own(0), (X, Y)), "`states` must be a population's"),
    "no such member": (lambda: population.member(start(), 4), "`index` must be a member's, from 0 to 3"),
    "a mesh without members": (
        lambda: start(mesh=ft.sharding.mesh(data=-1)),
        r"`mesh` must have an axis `members`",
    ),
    "members that do not divide": (
        lambda: start(mesh=ft.sharding.mesh(members=8, data=1)),
        "4 members do not divide",
    ),
    "a controller without validation": (
        lambda: run(start(), controller=population.pbt(), validation_data=None),
        "give `validation_data`",
    ),
    "a factory for a controller": (lambda: run(start(), controller=population.pbt), "`controller` must be"),
    "validations that miss": (
        lambda: run(start(), controller=population.pbt(every=5), validation_every=2),
        "`validation_every` must divide",
    ),
    "an unknown monitor": (lambda: run(start(), monitor="val_los"), "did you mean 'val_loss'"),
    "a keep of one": (lambda: population.halving(keep=1.0), "`keep`"),
    "a factor of one": (lambda: population.pbt(factor=1.0), "`factor`"),
    "states apart": (
        lambda: population.stack([own(0), own(1).replace(step=jnp.int32(3))]),
        "at the same step",
    ),
    "an option of no fit": (lambda: run(start(), epoch=3), "did you mean 'epochs'"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_named(name):
    make, message = BAD[name]
    with pytest.raises(ft.errors.ConfigError, match=message):
        make()
