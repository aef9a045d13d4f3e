"""Both forms of the norms: that of CPUs, with a branch, and that of everything else, in one pass.

The second is run here too, where it is slower and as right; that an accelerator gets it is read from what is lowered
for one, which takes none.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain._core import norms

F32 = np.dtype("float32")
LARGE = norms._BLOCK + 8
SIZES = [1e-32, 2e-18, 1e-10, 1.0, 1e19, 8.6e37, float(np.finfo(np.float32).max)]
SHAPES = {"w": (4, 3), "b": (5,), "scalar": (), "large": (LARGE // 8, 8)}
UNIT = {name: np.random.default_rng(0).uniform(-1, 1, s).astype(np.float32) for name, s in SHAPES.items()}
WHOLE = {"branch": partial(norms.whole_by_branch, kind=F32), "at once": partial(norms.whole_at_once, F32)}
EACH = {"branch": partial(norms.each_by_branch, kind=F32), "at once": partial(norms.each_at_once, F32)}
# A loop, or a branch by what is in the data. That by platform is a `case` of a constant, which XLA takes away.
BRANCHES = r"stablehlo\.(if|while)|\(tensor<i1>\) -> tensor<i32>"


def leaves(size):
    return [jnp.asarray(x * np.float32(size)) for x in UNIT.values()]


def wanted(given):
    return np.array([np.sqrt(np.sum(np.square(np.asarray(x, np.float64)))) for x in given])


def measured(parts):
    root, scale = (np.asarray(x, np.float64) for x in parts)
    return root / scale


@pytest.mark.parametrize("form", WHOLE)
def test_the_norm_of_all_is_exact_over_the_whole_range(form):
    f = jax.jit(WHOLE[form])
    for size in SIZES:
        given = leaves(size)
        np.testing.assert_allclose(measured(f(given)), np.linalg.norm(wanted(given)), rtol=1e-6)
    assert measured(f(leaves(0.0))) == 0


@pytest.mark.parametrize("form", EACH)
def test_the_norm_of_each_is_exact_beside_others_of_any_size(form):
    f = jax.jit(EACH[form])
    for first, second in ((1.0, 1.0), (1e-30, 1e30), (1e30, 0.0)):
        given = [a if i % 2 else b for i, (a, b) in enumerate(zip(leaves(first), leaves(second)))]
        given = given[
            :3
        ]  # the large one is added up in its order on a CPU, and loses a seventh digit by that
        np.testing.assert_allclose(measured(f(given)), wanted(given), rtol=1e-6)


def test_one_plain_sum_of_squares_is_no_norm():
    """What the two tests above would refuse."""
    given = leaves(1e30)
    assert not np.isfinite(sum(jnp.sum(jnp.square(x)) for x in given))
    assert jnp.sum(jnp.square(leaves(1e-30)[0])) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("form", WHOLE)
def test_what_is_not_finite_shows_where_it_is(form, bad):
    given = leaves(1.0)
    given[1] = jnp.array([1, bad, 0, 0, 0], jnp.float32)
    assert not np.isfinite(measured(WHOLE[form](given)))
    np.testing.assert_array_equal(np.isfinite(measured(EACH[form](given))), [True, False, True, True])


def test_the_two_forms_scale_alike():
    for size in (1e-30, 1.0, 1e30):
        given = leaves(size)
        for forms in (WHOLE, EACH):
            (_, one), (_, other) = (forms[name](given) for name in forms)
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_gradient_of_a_norm_is_the_direction(size):
    given = leaves(size)[:2]

    def total(given):
        root, scale = norms.whole_at_once(F32, given)
        roots, scales = norms.each_at_once(F32, given)
        return root / scale + jnp.sum(roots / scales)

    each = wanted(given)
    for x, norm, got in zip(given, each, jax.jit(jax.grad(total))(given)):
        np.testing.assert_allclose(
            got, np.asarray(x) / np.linalg.norm(each) + np.asarray(x) / norm, rtol=1e-5
        )


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("form", WHOLE)
def test_the_forward_derivative_of_a_norm_is_the_part_along_it(form, size):
    given = leaves(size)
    along = [jnp.asarray(np.random.default_rng(1).uniform(-1, 1, x.shape).astype(np.float32)) for x in given]
    products = [np.sum(np.asarray(x, np.float64) * np.asarray(v, np.float64)) for x, v in zip(given, along)]

    def norms(given):
        (root, scale), (roots, scales) = WHOLE[form](given), EACH[form](given)
        return root / scale, roots / scales

    _, (whole, each) = jax.jit(lambda *two: jax.jvp(norms, *two))((given,), (along,))
    np.testing.assert_allclose(whole, sum(products) / np.linalg.norm(wanted(given)), rtol=1e-5)
    np.testing.assert_allclose(each, products / wanted(given), rtol=1e-5)


def bend(given, along):
    """The Hessian of a norm, `(I - u uᵀ) / ‖x‖` with `u = x / ‖x‖`, times a direction, and times the norm."""
    x, v = (np.concatenate([np.ravel(np.asarray(a, np.float64)) for a in tree]) for tree in (given, along))
    u = x / np.sqrt(np.sum(x * x))
    return v - u * np.sum(u * v)


SECOND = {
    "forward over reverse": lambda f, x, v: jax.jvp(jax.grad(f), (x,), (v,))[1],
    "reverse over reverse": lambda f, x, v: jax.grad(lambda x: sum(map(jnp.vdot, jax.grad(f)(x), v)))(x),
    "reverse over forward": lambda f, x, v: jax.grad(lambda x: jax.jvp(f, (x,), (v,))[1])(x),
}


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("way", SECOND)
@pytest.mark.parametrize("form", WHOLE)
def test_the_second_derivative_of_a_norm_is_how_its_direction_turns(form, way, size):
    rng = np.random.default_rng(1)
    given = leaves(size)
    along = [jnp.asarray(rng.uniform(-1, 1, x.shape).astype(np.float32)) for x in given]

    def total(given):
        root, scale = WHOLE[form](given)
        return root / scale

    def parts(given):
        roots, scales = EACH[form](given)
        return jnp.sum(roots / scales)

    def measured(f, norms):  # the product with the norm, which is of order one
        got = jax.jit(partial(SECOND[way], f))(given, along)
        return [np.ravel(np.asarray(x, np.float64)) * norm for x, norm in zip(got, norms)]

    each = wanted(given)
    whole = np.concatenate(measured(total, [np.linalg.norm(each)] * len(given)))
    np.testing.assert_allclose(whole, bend(given, along), rtol=0, atol=1e-5)
    for got, x, v in zip(measured(parts, each), given, along):
        np.testing.assert_allclose(got, bend([x], [v]), rtol=0, atol=1e-5)


def lowered(f, given, platform):
    return jax.jit(f).trace(given).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_an_accelerator_reads_each_large_leaf_once_and_all_small_ones_as_one(platform):
    text = lowered(ft.tree.norm, UNIT, platform)
    assert not re.search(BRANCHES, text)
    assert len(re.findall(r"stablehlo\.reduce\(", text)) == 2
    assert len(re.findall(r"stablehlo\.concatenate", text)) == 1
    tx = ft.clip_by_leaf_norm(1.0)
    text = lowered(lambda g: tx.update(g, tx.init(g))[0], UNIT, platform)
    assert not re.search(BRANCHES, text)
    variadic = re.findall(r"stablehlo\.reduce\(\S+ init: \S+\), \(\S+ init: \S+\), \(", text)
    assert len(variadic) == len(UNIT)


def test_a_cpu_keeps_its_branch():
    assert re.search(BRANCHES, lowered(ft.tree.norm, UNIT, "cpu"))
    assert re.search(BRANCHES, lowered(WHOLE["branch"], list(UNIT.values()), "cuda")), "the pattern finds one"
