"""What a value is, as JSON: the same for what behaves the same, in every process, and another for everything else."""

import collections
import dataclasses
import functools
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain._core.fingerprint import differences, fingerprint


def cell(source):
    """`f` of a notebook cell that is run: each run makes its functions and classes anew."""
    names = {"__name__": "__main__"}
    exec(source, names)
    return names["f"]


def same(a, b):
    a, b = fingerprint(a), fingerprint(b)
    assert (a == b) == (differences(a, b) == [])
    assert (a == b) == (json.loads(json.dumps(a)) == json.loads(json.dumps(b)))
    return a == b


def scaled_by(factor):
    return lambda x: x * factor


def shifted(x, by=1.0, *, times=1):
    return x * times + by


def plain(x):
    return x + 1


@dataclasses.dataclass
class Model:
    width: int
    activation: object = jnp.tanh


class Scale:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by


Pair = collections.namedtuple("Pair", ["a", "b"])


# --- functions -------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "constants": ("f = lambda x: x * 2.0", "f = lambda x: x * 3.0"),
    "an operator": ("f = lambda x: x * 2.0", "f = lambda x: x + 2.0"),
    "a name": ("def f(x): return x.sum()", "def f(x): return x.mean()"),
    "a constant inside": ("f = lambda x: (lambda y: y * 2.0)(x)", "f = lambda x: (lambda y: y * 3.0)(x)"),
    "a name inside": ("f = lambda x: (lambda y: y.sum())(x)", "f = lambda x: (lambda y: y.mean())(x)"),
    "a set of constants": ("f = lambda x: x in {'a', 'b'}", "f = lambda x: x in {'a', 'c'}"),
    "zero and minus zero": ("f = lambda x: x + 0.0", "f = lambda x: x + -0.0"),
    "one and true": ("f = lambda x: (x, 1)", "f = lambda x: (x, True)"),
    "a default": ("def f(x, k=1): return x", "def f(x, k=2): return x"),
    "a keyword's default": ("def f(x, *, k=1): return x", "def f(x, *, k=2): return x"),
    "positional only": ("def f(x, k): return x", "def f(x, k, /): return x"),
    "keyword only": ("def f(x, k): return x", "def f(x, *, k): return x"),
    "under functools.wraps": (
        "import functools\n@functools.lru_cache\ndef f(x): return x * 2.0",
        "import functools\n@functools.lru_cache\ndef f(x): return x * 3.0",
    ),
    "compiled": ("import jax\nf = jax.jit(lambda x: x * 2)", "import jax\nf = jax.jit(lambda x: x * 3)"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_cell_run_again_is_the_same_and_another_is_another(name):
    one, other = FUNCTIONS[name]
    assert same(cell(one), cell(one))
    assert not same(cell(one), cell(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x): return x + 1", "\n\n\n# a remark\ndef f(x):\n    # another\n    return x + 1"),
        ("def f(x):\n    'Add.'\n    return x + 1", "def f(x):\n    'Add one.'\n    return x + 1"),
        ("f = lambda x: x in {'a', 'b', 'c'}", "f = lambda x: x in {'c', 'b', 'a'}"),
        ("class f: pass", "class f: pass"),
        ("class C: pass\nf = C()", "class C: pass\nf = C()"),
    ],
    ids=["lines and remarks", "a docstring", "the order of a set", "a class", "an object"],
)
def test_what_does_nothing_counts_for_nothing(one, other):
    assert same(cell(one), cell(other))


@pytest.mark.parametrize(
    "source",
    ["f = lambda rows: sum(row[{}] for row in rows)", "f = lambda rows: [row[{}] for row in rows]"],
    ids=["a generator", "a comprehension"],
)
def test_a_key_that_a_comprehension_reads_is_code(source):
    assert not same(cell(source.format("'x'")), cell(source.format("'y'")))


def test_where_a_function_was_defined_counts_for_nothing():
    inside = "def outer():\n    def f(x): return x + 1\n    return f\nf = outer()"
    assert same(cell("def f(x): return x + 1"), cell(inside))


def test_a_callable_object_is_what_it_does():
    source = "class Loss:\n    def __call__(self, p, b, ctx): return {}\nf = Loss()"
    assert not same(cell(source.format(1.0)), cell(source.format(2.0)))


def test_equal_lambdas_written_twice_are_equal():
    assert same(lambda x: x * 2.0, lambda x: x * 2.0)
    assert not same(lambda x: x * 2.0, lambda x: x * 3.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (2.0, 3.0),
        (np.arange(3), np.array([0, 1, 3])),
        (np.arange(3, dtype=np.int32), np.arange(3, dtype=np.int64)),
        ({"a": 1}, {"a": 2}),
        (scaled_by(2.0), scaled_by(3.0)),
        (ft.optimizers.sgd(0.1), ft.optimizers.sgd(0.2)),
    ],
    ids=["numbers", "arrays", "dtypes", "dicts", "functions", "transforms"],
)
def test_what_a_function_closes_over_is_part_of_it(one, other):
    assert same(scaled_by(one), scaled_by(one))
    assert not same(scaled_by(one), scaled_by(other))


def test_an_empty_cell_and_a_function_that_holds_itself():
    def counts(n):
        return n if n == 0 else counts(n - 1)

    def early():
        return late

    before = fingerprint(early)
    late = 1.0
    assert differences(before, fingerprint(early)) == ["cells.late: saved None, now 1.0"]
    assert fingerprint(counts)["cells"] == {"counts": "itself"}


def test_a_default_that_is_changed_is_seen():
    def f(x, by=1.0, *, times=1):
        return x * times + by

    before = fingerprint(f)
    assert same(f, f)
    f.__defaults__ = (2.0,)
    assert differences(before, fingerprint(f)) == ["defaults.0: saved 1.0, now 2.0"]
    f.__kwdefaults__ = {"times": 3}
    assert differences(before, fingerprint(f))[1:] == ["defaults.times: saved 1, now 3"]


def test_a_function_that_has_run_is_the_same():
    f = cell("def f(x):\n    total = 0\n    for i in range(3): total += x * i\n    return total")
    before = fingerprint(f)
    for _ in range(1000):  # the interpreter rewrites what runs often
        f(2)
    assert fingerprint(f) == before


def test_partials_are_their_function_and_what_is_given_to_it():
    partial = functools.partial
    assert same(partial(shifted, by=2.0), partial(shifted, by=2.0))
    for other in (
        partial(shifted, by=3.0),
        partial(shifted, times=2.0),
        partial(shifted, 2.0),
        partial(plain, by=2.0),
        shifted,
    ):
        assert not same(partial(shifted, by=2.0), other)
    assert same(partial(partial(shifted, by=2.0), times=3), partial(shifted, by=2.0, times=3))


def test_methods_are_their_function_and_whom_they_belong_to():
    source = "class C:\n    k = 0\n    def m(self, x): return x * {}\nf = C().m"
    assert same(cell(source.format(2)), cell(source.format(2)))
    assert not same(cell(source.format(2)), cell(source.format(3)))
    assert not same(Scale(2.0).__call__, Scale(3.0).__call__)


def test_a_library_is_known_by_name():
    assert fingerprint(round) == {"function": "builtins.round"}
    assert fingerprint(jnp.tanh) == fingerprint(jnp.tanh) != fingerprint(jnp.sinh)
    assert fingerprint(np.sin) == {"function": "numpy.sin"}
    assert "code" not in json.dumps(fingerprint(ft.losses.mse))


# --- values ----------------------------------------------------------------------------------------------------


def test_arrays_are_their_content_wherever_they_lie():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert same(x, x.copy())
    assert same(x, jnp.asarray(x))
    assert same(x, np.asfortranarray(x))
    assert same(x, np.repeat(x, 2, axis=0)[::2])
    for other in (x + 1, x.reshape(3, 2), x.astype(np.float64), x.astype(jnp.bfloat16), x.tolist(), x[:1]):
        assert not same(x, other)
    assert not same(np.float32(0.1), np.float64(0.1))
    assert not same(np.int32(1), 1)


def test_keys_are_their_data_and_their_kind():
    key = jax.random.key(0)
    assert same(key, jax.random.key(0))
    assert not same(key, jax.random.key(1))
    assert not same(key, jax.random.key(0, impl="rbg"))
    assert not same(key, jax.random.key_data(key))


def test_every_number_is_itself():
    numbers = [0, 1, True, False, None, 0.5, math.inf, -math.inf, 1j, b"1", "1", 2**80, np.dtype("float32")]
    for i, one in enumerate(numbers):
        for j, other in enumerate(numbers):
            assert same(one, other) == (i == j), (one, other)
    assert same(math.nan, float("nan"))
    json.dumps([fingerprint(x) for x in numbers], allow_nan=False)


def test_sets_have_no_order_and_mappings_have_one():
    assert same({"a", "b", "c"}, {"c", "b", "a"})
    assert same({1, "a", 2.5}, {2.5, "a", 1})
    assert same(frozenset({plain, shifted}), frozenset({shifted, plain}))
    assert not same({"a", "b"}, {"a", "c"})
    # A mapping's order is that of the groups, the metrics, the loop over it: another one behaves otherwise.
    assert same({"a": 1, "b": 2}, {"a": 1, "b": 2})
    assert differences(fingerprint({"a": 1, "b": 2}), fingerprint({"b": 2, "a": 1})) == [
        "(order): saved 'a, b', now 'b, a'"
    ]


@pytest.mark.parametrize(
    ("one", "again", "other"),
    [
        (Model(3), Model(3), Model(4)),
        (Model(3, jnp.tanh), Model(3), Model(3, jnp.sin)),
        (Scale(2.0), Scale(2.0), Scale(3.0)),
        (Pair(1, 2), Pair(1, 2), Pair(2, 1)),
        (Pair(1, 2), Pair(1, 2), (1, 2)),
        ([1, [2]], [1, [2]], [1, [3]]),
        (Scale, Scale, Model),
        (ft.optimizers.adam(1e-3), ft.optimizers.adam(learning_rate=1e-3), ft.optimizers.adam(1e-4)),
        (ft.metrics.accuracy(), ft.metrics.accuracy(), ft.metrics.accuracy(top_k=5)),
        (ft.schedules.constant(0.1), ft.schedules.constant(0.1), ft.schedules.constant(0.2)),
    ],
    ids=[
        "a dataclass",
        "a function in one",
        "an object",
        "a named tuple",
        "its name",
        "a list",
        "a class",
        "an optimizer",
        "a metric",
        "a schedule",
    ],
)
def test_objects_are_their_type_and_what_is_in_them(one, again, other):
    assert same(one, again)
    assert not same(one, other)


# --- the difference in words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved", "now", "words"),
    [
        (1, 2, ": saved 1, now 2"),
        (
            {"tx": ft.optimizers.sgd(0.1)},
            {"tx": ft.optimizers.sgd(0.2)},
            "tx.learning_rate: saved 0.1, now 0.2",
        ),
        ({"f": scaled_by(2.0)}, {"f": scaled_by(3.0)}, "f.cells.factor: saved 2.0, now 3.0"),
        ({"f": lambda x: x}, {"f": lambda x: -x}, "f: the code of `<lambda>` is another one"),
        ({"f": plain}, {"f": shifted}, "f: the code of `plain` and now `shifted` is another one"),
        (
            {"f": functools.partial(shifted, by=1.0)},
            {"f": functools.partial(shifted, by=2.0)},
            "f.keywords.by: saved 1.0, now 2.0",
        ),
        ({"m": Model(3)}, {"m": Model(4)}, "m.width: saved 3, now 4"),
        ({"a": 1}, {"a": 1, "b": 2}, "b: saved None, now 2"),
        ([1, 2], [1, 2, 3], ": saved [1, 2], now [1, 2, 3]"),
        ({"x": [1, [2, 3]]}, {"x": [1, [2, 4]]}, "x.1.1: saved 3, now 4"),
        (round, 2, ": saved the function builtins.round, now 2"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_difference_names_what_changed(saved, now, words):
    found = [
        line for line in differences(fingerprint(saved), fingerprint(now)) if not line.startswith("(order)")
    ]
    assert found == [words]


def test_another_factory_is_shown_whole_and_a_long_text_is_cut():
    saved, now = fingerprint(ft.optimizers.sgd(0.1)), fingerprint(ft.optimizers.adam(0.1))
    (line,) = differences({"tx": saved}, {"tx": now})
    assert line.startswith("tx: saved sgd(learning_rate=0.1, ")
    assert "now adam(learning_rate=0.1, " in line
    (line,) = differences("x" * 10_000, "y")
    assert len(line) < 400


# --- over processes --------------------------------------------------------------------------------------------

SOURCE = """
import functools
from fntrain._core.fingerprint import fingerprint
import numpy as np

class C:
    def __init__(self): self.names = {"one", "two", "three"}

def closing(names):
    return lambda x, known=frozenset({"a", "b", "c"}): x in {"k", "l", "m"} and x in names and x in known

f = fingerprint([
    closing({"x", "y", "z"}), C(), C, functools.partial(closing, {"x", "y"}), {"p", "q", 1.5}, np.arange(4.0), np.sin,
    object(), C().__init__,
])
"""


def test_it_is_the_same_in_every_process():
    def run(seed):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        code = f"import json\n{SOURCE}\nprint(json.dumps(f))"
        return subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
        )

    processes = [run("1"), run("2")]
    one, other = (json.loads(p.communicate(timeout=120)[0]) for p in processes)
    assert one == other == json.loads(json.dumps(cell(SOURCE)))
    assert " at 0x" not in json.dumps(one)
