"""describe: what it says is true of the transform and its state."""

import jax
import jax.numpy as jnp
import optax
import pytest

import fntrain as ft
from fntrain import ConfigError, optimizers, transforms as T
from fntrain.tools import describe

PARAMS = {
    "enc": {"kernel": jnp.zeros((100, 10)), "bias": jnp.zeros(10)},
    "head": {"kernel": jnp.zeros((10, 5), jnp.bfloat16), "bias": jnp.zeros(5)},
    "steps": jnp.arange(3),
}
TRAINED = ("enc/bias", "enc/kernel", "head/bias", "head/kernel")
NUMBERS = 1000 + 10 + 50 + 5


def rows(tx):
    return {row.name: row for row in describe(tx, PARAMS).rows}


def test_sizes_and_leaves():
    d = describe(T.chain(T.clip_by_norm(1.0), optimizers.adamw(1e-3, mask="kernel")), PARAMS)
    assert [(r.name, r.depth, r.state_bytes) for r in d.rows] == [
        ("clip_by_norm", 0, 8),
        ("adamw", 0, 4 + 2 * 4 * NUMBERS + 12),
        ("scale_by_adam", 1, 4 + 2 * 4 * NUMBERS),
        ("add_weight_decay", 1, 0),
        ("scale_by_learning_rate", 1, 12),
    ]
    assert d.leaves == TRAINED  # the integer leaf is not trained
    assert d.params_bytes == 4 * 1015 + 2 * 50
    assert d.state_bytes == sum(r.state_bytes for r in d.rows if r.depth == 0)
    touched = {r.name: r.touched for r in d.rows}
    assert touched["scale_by_adam"] == TRAINED
    assert touched["add_weight_decay"] == ("enc/kernel", "head/kernel")


def test_the_sizes_are_those_of_the_real_state():
    trained = {k: v for k, v in PARAMS.items() if k != "steps"}
    for tx in (
        T.skip_nonfinite(T.MultiSteps(optimizers.adam(), 4)),
        T.by_path({"head": optimizers.lion(), ".*": T.freeze(optimizers.rmsprop(centered=True), "bias")}),
        T.lookahead(T.sam(optimizers.adafactor(min_dim_size_to_factor=5)), 5),
        optax.adam(1e-3),
    ):
        real = sum(x.nbytes for x in jax.tree.leaves(tx.init(trained)))
        assert describe(tx, PARAMS).state_bytes == real
        assert describe(tx, PARAMS).rows[0].state_bytes == real


def test_groups_and_frozen_leaves():
    tx = T.by_path({"head/": optimizers.adam(), ".*": T.freeze(optimizers.sgd(0.1), "bias")})
    found = rows(tx)
    assert found["by_path"].touched == ("enc/kernel", "head/bias", "head/kernel")
    assert found["head/: adam"].touched == ("head/bias", "head/kernel")
    assert found["head/: adam"].state_bytes == 4 + 2 * 4 * 55 + 12
    assert found[".*: freeze"].touched == ("enc/kernel",)
    assert found["sgd"].touched == ("enc/kernel",)


def test_hyperparameters_are_shown_with_their_defaults_once():
    found = rows(T.MultiSteps(optimizers.adamw(1e-3, b1=0.8), 4))
    assert found["MultiSteps"].hyperparameters.startswith("every_k_schedule=4, use_grad_mean=True")
    assert found["adamw"].hyperparameters == "b1=0.8"  # what was asked for; its stages say the rest
    assert found["scale_by_adam"].hyperparameters == "b1=0.8, b2=0.999, eps=1e-08"
    assert found["scale_by_learning_rate"].hyperparameters == "learning_rate=0.001"


@T.transform
def own_preconditioner(b=0.9):
    """One whose name says nothing, and whose state has the parameters' shapes."""

    def init_fn(params):
        return {"nu": jax.tree.map(jnp.zeros_like, params)}

    def update_fn(updates, state, params=None, **extra):
        nu = jax.tree.map(lambda n, g: b * n + (1 - b) * g * g, state["nu"], updates)
        return jax.tree.map(lambda g, n: g / (jnp.sqrt(n) + 1e-8), updates, nu), {"nu": nu}

    return init_fn, update_fn


@pytest.mark.parametrize(
    ("tx", "kind"),
    [
        (T.chain(own_preconditioner(), T.add_weight_decay(0.1), optimizers.sgd(0.1)), "decoupled"),
        (T.chain(T.add_weight_decay(0.1), own_preconditioner(), optimizers.sgd(0.1)), "L2"),
        (optimizers.sgd(weight_decay=0.1), "L2"),
        (optimizers.sgd(momentum=0.9, weight_decay=0.1), "L2"),
        (optimizers.adamw(), "decoupled"),
        (optimizers.lion(), "decoupled"),
        (T.chain(T.clip_by_norm(1.0), T.add_weight_decay(0.1), T.scale_by_adam()), "L2"),
        (T.chain(optax.scale_by_adam(), T.add_weight_decay(0.1)), "decoupled"),
        (T.chain(T.momentum(0.9), T.skip_nonfinite(T.add_weight_decay(0.1))), "decoupled"),
        (T.by_path({"head": T.scale_by_adam(), ".*": T.add_weight_decay(0.1)}), "L2"),
    ],
)
def test_the_kind_of_decay(tx, kind):
    row = next(r for name, r in rows(tx).items() if "add_weight_decay" in name)
    assert row.hyperparameters.endswith(f"({kind})")


def test_text():
    text = str(
        describe(T.chain(T.clip_by_norm(1.0), optax.scale(2.0), last=optimizers.adam(lambda t: 0.1)), PARAMS)
    )
    lines = text.splitlines()
    assert lines[0].split() == ["stage", "hyperparameters", "state", "leaves"]
    assert lines[2].split() == ["clip_by_norm", "max_norm=1.0", "8", "B", "all"]
    assert lines[3].split()[:2] == ["scale", "(optax)"]
    assert lines[4].startswith("last: adam")
    assert lines[5].startswith("  scale_by_adam")
    assert lines[-1] == "4 leaves, 4.2 kB of parameters, 8.5 kB of state (2.1 x)"
    for line in lines[2:-1]:
        assert line[lines[0].index("leaves") :] == "all"  # columns stand one below the other


def test_html_is_escaped_and_holds_the_same_cells():
    d = describe(T.by_path({"^(?P<x>head)": optimizers.adam(), ".*": optimizers.sgd()}), PARAMS)
    page = d._repr_html_()
    assert "<x>" not in page
    assert "(?P&lt;x&gt;head): adam" in page
    assert page.count("<tr>") == 1 + len(d.rows)
    assert "4 leaves" in page


def test_shapes_are_enough():
    shapes = jax.eval_shape(lambda: PARAMS)
    tx = T.lookahead(optimizers.adamw(1e-3, mask="kernel"))
    assert str(describe(tx, shapes)) == str(describe(tx, PARAMS))


def test_sizes_are_readable():
    huge = {"w": jax.ShapeDtypeStruct((1_500_000_000, 1000), jnp.float32)}
    assert "6.0 TB of parameters, 12.0 TB of state (2.0 x)" in str(describe(optimizers.adam(), huge))


def test_nothing_to_train():
    assert "0 leaves, 0 B of parameters" in str(describe(optimizers.adam(), {"n": jnp.arange(3)}))


def test_refusals():
    with pytest.raises(ConfigError, match="looks like a factory"):
        describe(optimizers.adam, PARAMS)
    with pytest.raises(ConfigError, match="'kernle' matches no leaf"):
        describe(optimizers.adamw(mask="kernle"), PARAMS)


def test_parts_of_an_optimizer_are_named_by_what_they_do():
    p = {"kernel": jnp.zeros((16, 16)), "bias": jnp.zeros(16)}
    rows = describe(ft.optimizers.muon(0.02, matrices="kernel"), p).rows
    assert [row.name for row in rows][:4] == [
        "muon",
        "directions",
        "matrices: scale_by_muon",
        "others: scale_by_adam",
    ]
    assert not any("optax" in row.hyperparameters for row in rows)
    assert "Transform(" not in ft.optimizers.muon(0.02)._repr_html_()


def test_what_is_kept_in_eight_bits_is_counted_so():
    p = {"kernel": jnp.zeros((16, 256)), "bias": jnp.zeros(16)}
    tx = ft.transforms.quantize_state(ft.optimizers.adamw(1e-3))
    sizes = {row.name.split()[-1]: row.state_bytes for row in describe(tx, p).rows}
    adam = 2 * (16 * 256 + 16 * 4 + 16 * 4) + 4  # codes, a scale a row, the whole bias; a count
    assert sizes["scale_by_adam"] == adam
    assert sizes["adamw"] == adam + 12  # the learning rate's
    assert sizes["quantize_state"] == adam + 12 + 4


def test_the_table_is_as_wide_as_the_terminal_and_alike_leaves_are_one(monkeypatch):
    p = {"layers": {i: {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)} for i in range(5)}}
    p["head"] = {"kernel": jnp.zeros(4), "scale": jnp.zeros(4)}
    rate = ft.schedules.warmup(ft.schedules.cosine(1e-3, 900, end=1e-5), 100)
    table = describe(ft.by_path({".*": optimizers.adamw(rate, mask="layers/.*kernel")}), p)
    (decay,) = (cells[3] for cells in table.cells() if "add_weight_decay" in cells[0])
    assert decay == "5 of 12: layers/*/kernel"
    fewer = describe(optimizers.adamw(rate, mask="layers/[123]/kernel|head/kernel"), p).cells()[2][3]
    assert fewer == "4 of 12: head/kernel, layers/1/kernel, layers/2/kernel, …"  # a star would say all five
    for columns in (90, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = str(table).splitlines()
        assert max(map(len, lines)) <= columns
        assert set(lines[1]) == {"-"}
        told = "".join("".join(lines).split())
        for part in ("start=0.001", "steps=900", "end=1e-05", "steps=100"):  # broken, and nothing left out
            assert part in told
