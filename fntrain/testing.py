"""The laws as functions: run them on your own transforms, metrics, schedules and tasks.

Each check raises `LawError`, an AssertionError, that names the law and what broke it; passing returns None. A
check takes a function that makes the thing under test, so that "equal calls make equal things" can be tested.
"""

import itertools
import pickle
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import precision, tree
from ._core import check
from ._core.errors import ConfigError
from ._core.public import surface
from ._core.typing import Batch, Params, PyTree
from .losses.loss import Loss
from .metrics import Metric
from .step.checks import check_task as is_task
from .step.state import init_state
from .step.step import compute_gradients, compute_metrics, eval_step, train_step
from .step.task import Task
from .transforms.adapt import adapt
from .transforms.types import Transform, Window


class LawError(AssertionError):
    """A law does not hold; the message says which, and by what."""


def _require(condition: Any, law: str, detail: str) -> None:
    if not condition:
        raise LawError(f"{law}: {detail}")


def check_value(make: Callable[[], Any]) -> None:
    """Equal calls make equal things: `==`, `hash`, `repr`, and a pickle's round trip.

    Raises:
      LawError: if two calls of `make` differ in one of them, or the repr shows an address.
    """
    check.function("make", make, "() -> value", takes=0)
    a, b = make(), make()
    _require(a == b, "equal calls make equal values", f"{a!r} != {b!r}")
    _require(hash(a) == hash(b), "equal values hash alike", repr(a))
    _require(repr(a) == repr(b) and " at 0x" not in repr(a), "the repr is the call", repr(a))
    again = pickle.loads(pickle.dumps(a))
    _require(again == a, "a pickle's round trip gives an equal value", f"{a!r} became {again!r}")


def check_transform(
    make: Callable[[], optax.GradientTransformation],
    *,
    dtypes: Sequence[str] = ("float32", "bfloat16", "float16"),
    extra: Mapping[str, Any] | None = None,
    params: Params | None = None,
) -> None:
    """The laws of a transform.

    `init` and `update` agree in structure, shape, dtype and weak type; updates have the parameters' shapes and
    the gradients' dtypes; state is arrays, floating-point ones float32 (or float64, for float64 parameters); no
    buffer of the state is one of the parameters', and `update` leaves the state it is given as it is; equal calls
    give equal results, and compiled and eager ones agree; `apply` is what `update` and an addition are; zero
    gradients give finite updates; a batch of weight zero changes nothing; unknown extra arguments are accepted.

    Args:
      make: `() -> transform`.
      dtypes: dtypes of the parameters to run with.
      extra: extra arguments that `update` needs.
      params: parameters to run on; by default a small tree with a matrix, a vector and a scalar.

    Raises:
      LawError: naming the law, the dtype, and the leaf.
    """
    check_value(make)
    extra = dict(extra or {})
    for dtype in dtypes:
        tx = adapt(make())
        p = precision.cast(jax.tree.map(jnp.asarray, _params() if params is None else params), dtype)
        grads = jax.tree.map(lambda x: (jnp.cos(7 * x.astype(jnp.float32)) + 0.5).astype(x.dtype), p)
        state = tx.init(p)
        _check_state(state, p, dtype)
        both = _compiled(tx, extra)
        _check_update(tx, both, grads, state, p, extra, dtype)
        _check_apply(tx, both, grads, state, p, extra, dtype)


def _check_state(state: PyTree, params: Params, dtype: str) -> None:
    about = f"{dtype} parameters"
    buffers = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(params)}
    for path, x in tree.items(state):
        _require(isinstance(x, jax.Array), "state is arrays", f"`{path}` is a {type(x).__name__}, {about}")
        wide = not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype in (jnp.float32, tree.widest(params))
        _require(wide, "floating-point state is float32", f"`{path}` is {x.dtype.name} ({about})")
        alias = x.size and x.unsafe_buffer_pointer() in buffers
        _require(not alias, "no state aliases the parameters", f"`{path}`, {about}")


def _compiled(tx: Transform, extra: dict[str, Any]) -> Callable[..., Any]:
    """`((updates, state), (params, state))` by `update` and by `apply`: one program for all that is compared."""

    @jax.jit
    def both(grads, state, p, weight):
        given = {**extra, "weight": weight}
        return tx.update(grads, state, p, **given), tx.apply(grads, state, p, **given)[:2]

    return both


def _full(extra: dict[str, Any]) -> jax.Array:
    return jnp.asarray(extra.get("weight", 1.0), jnp.float32)


def _check_update(
    tx: Transform,
    both: Callable[..., Any],
    grads: PyTree,
    state: PyTree,
    p: Params,
    extra: dict[str, Any],
    dtype: str,
) -> None:
    about = f"{dtype} parameters"

    def compiled(grads, state, p):
        return both(grads, state, p, _full(extra))[0]

    def update(grads, state, p, **more):
        return tx.update(grads, state, p, **extra, **more)

    def types(before, updates, after):
        difference = tree.aval_difference(before, after)
        _require(difference is None, "init and update agree", f"state {difference}, {about}")
        difference = tree.aval_difference(grads, updates)
        _require(difference is None, "updates have the gradients' types", f"{difference}, {about}")

    types(state, *jax.eval_shape(update, grads, state, p))  # first: `apply` does not stand up without
    after = state
    for _ in range(3):
        before = after
        updates, after = compiled(grads, before, p)
        types(before, updates, after)
    held = dict(tree.items(state))
    eager, _ = update(grads, state, p)
    now = dict(tree.items(state))
    changed = [path for path in {**held, **now} if held.get(path) is not now.get(path)]
    _require(not changed, "update leaves the state it is given as it is", f"{tree.some(changed)}, {about}")
    first, _ = compiled(grads, state, p)
    _require(
        _close(eager, first, 1e-5 if dtype in ("float32", "float64") else 1e-2),
        "jit agrees with eager",
        dtype,
    )
    again, _ = update(grads, state, p)
    _require(_same(eager, again), "equal calls of update give equal results", about)
    zeros = tree.zeros_like(grads)
    still, later = compiled(zeros, state, p)
    _require(_finite((still, later)), "zero gradients give finite updates", about)
    jax.eval_shape(lambda *given: update(*given, an_argument_nobody_knows=1), grads, state, p)


def _check_apply(
    tx: Transform,
    both: Callable[..., Any],
    grads: PyTree,
    state: PyTree,
    p: Params,
    extra: dict[str, Any],
    dtype: str,
) -> None:
    """`apply` is `update` and an addition; what weighs nothing changes nothing."""
    tolerance = 1e-6 if dtype in ("float32", "float64") else 2e-2
    zero = jnp.zeros((), jnp.float32)
    for call in range(3):
        (updates, state_after), (got, new_state) = both(grads, state, p, _full(extra))
        expected = tree.add(p, updates)
        about = f"call {call + 1}, {dtype} parameters"
        _require(_close(got, expected, tolerance), "apply agrees with update", f"the parameters, {about}")
        _require(_close(new_state, state_after, tolerance), "apply agrees with update", f"the state, {about}")
        if call and tx.holds_back:  # a call that weighs nothing is one all the same, and may close a window
            state, p = new_state, got
            continue
        still, idle = both(grads, state, p, zero)[1]
        moved = [path for path, same in tree.items(jax.tree.map(_same, still, p)) if not same]
        moved += [path for path in _moved(state, idle) if path not in _counting(state)]
        _require(not moved, "a batch of weight zero changes nothing", f"{tree.some(moved)}, {about}")
        state, p = new_state, got


def _moved(before: PyTree, after: PyTree) -> list[str]:
    return [path for path, same in tree.items(jax.tree.map(_same, before, after)) if not same]


def _counting(state: PyTree) -> set[str]:
    """The leaves of accumulation windows, which count every call: of those nodes alone, whatever else is named so."""
    fields = ("mini_step", "weight", "applied", "acc_grads")
    found = set()
    for path, node in tree.named_nodes(state):
        if isinstance(node, Window):
            for name in fields:
                inner = getattr(node, name, None)
                found |= {"/".join(filter(None, (path, name, leaf))) for leaf in tree.paths(inner)}
    return found


def _same(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
    return all(np.array_equal(np.asarray(x), np.asarray(y), equal_nan=_is_float(x)) for x, y in pairs)


def _is_float(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def _params() -> Params:
    rng = np.random.default_rng(0)
    arrays = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4), "scale": 0.75}
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


def check_metric(
    make: Callable[[], Metric],
    outputs: Mapping[str, Any],
    weight: Any = None,
    *,
    cuts: Sequence[int] = (1, 4, 9),
    tolerance: float = 1e-6,
) -> None:
    """The laws of a metric: a commutative monoid that does not see how its data was cut.

    `empty` is the identity of `merge`; merge is commutative and associative; any split of the examples, merged in
    any order, gives the whole's value; rows of weight zero may hold anything; the accumulator keeps its structure
    and types; the value is the same compiled, eager, and from a scan.

    Args:
      make: `() -> metric`.
      outputs: arrays `[N, …]` by key, with a non-trivial value.
      weight: weights `[N]`, or None for ones.
      cuts: where to cut the N examples into parts.
      tolerance: relative tolerance of values; integer-counted ones come out equal at any.

    Raises:
      LawError: naming the law.
    """
    check_value(make)
    m = make()
    outputs = {k: jnp.asarray(v) for k, v in outputs.items()}
    rows = tree.leading_axis(outputs)
    weight = jnp.ones(rows, jnp.float32) if weight is None else jnp.asarray(weight, jnp.float32)
    update = jax.jit(m.update)
    whole = update(m.empty(), outputs, weight)
    value = m.compute(whole)
    _require(_has_number(value), "the check needs a value to compare", "the metric of all data is NaN")

    def same(acc: Any, law: str) -> None:
        _require(_close(m.compute(acc), value, tolerance), law, f"{m.compute(acc)} instead of {value}")

    difference = tree.aval_difference(m.empty(), whole)
    _require(difference is None, "the accumulator keeps its types", f"{difference}")
    same(m.update(m.empty(), outputs, weight), "jit agrees with eager")
    same(m.merge(m.empty(), whole), "empty is the identity of merge, on the left")
    same(m.merge(whole, m.empty()), "empty is the identity of merge, on the right")

    ends = [0, *(c for c in cuts if c < rows), rows]
    parts = [(slice(a, b), weight[a:b]) for a, b in itertools.pairwise(ends)]
    accs = [update(m.empty(), {k: v[s] for k, v in outputs.items()}, w) for s, w in parts]
    left = right = accs[0]
    for acc in accs[1:]:
        left, right = m.merge(left, acc), m.merge(acc, right)
    same(left, "a split does not matter")
    same(right, "merge is commutative")
    nested = accs[-1]
    for acc in reversed(accs[:-1]):
        nested = m.merge(acc, nested)
    same(nested, "merge is associative")
    folded = m.empty()
    for s, w in parts:
        folded = update(folded, {k: v[s] for k, v in outputs.items()}, w)
    same(folded, "update folds as merge joins")

    garbage = {k: jnp.concatenate([v, _garbage(v[:3])]) for k, v in outputs.items()}
    padded = jnp.concatenate([weight, jnp.zeros(3, jnp.float32)])
    same(update(m.empty(), garbage, padded), "rows of weight zero may hold anything")

    def body(acc: Any, x: Any) -> tuple[Any, None]:
        outputs, w = x
        return m.update(acc, jax.tree.map(lambda v: v[None], outputs), w[None]), None

    same(jax.lax.scan(body, m.empty(), (outputs, weight))[0], "a scan over single rows agrees")


def _garbage(x: jax.Array) -> jax.Array:
    return jnp.full_like(x, jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0)


def check_schedule(
    make: Callable[[], Callable[[Any], Any]], *, steps: Sequence[int] = (0, 1, 7, 99, 2**24 + 1)
) -> None:
    """The laws of a schedule: float32, the same on ints, traced scalars and arrays, finite at any step.

    Args:
      make: `() -> schedule`.
      steps: the steps to compare at.

    Raises:
      LawError: naming the law and the step.
    """
    check_value(make)
    schedule = make()
    compiled = jax.jit(schedule)
    array = jnp.asarray(steps, jnp.int32)
    values = schedule(array)
    _require(values.dtype == jnp.float32, "a schedule is float32", f"{values.dtype.name}")
    _require(
        values.shape == array.shape, "an array of steps gives an array", f"{values.shape} for {array.shape}"
    )
    for step, value in zip(steps, values):
        for how, got in (("an int", schedule(step)), ("a traced scalar", compiled(jnp.int32(step)))):
            _require(got.dtype == jnp.float32 and got.shape == (), "a schedule is a float32 scalar", how)
            _require(
                _close(got, value, 1e-6), "every kind of step gives the same value", f"step {step} as {how}"
            )
    _require(_finite(schedule(jnp.int32(2**31 - 1))), "finite at any step", "step 2**31 - 1")


def check_loss(loss: Callable[..., Loss], predictions: Any, *others: Any, tolerance: float = 1e-6) -> None:
    """The laws of a loss: one value per example, a matter of that example alone, in float32 at least.

    Part of the rows give that part of the values and weights; low precision is widened, and compiled and eager
    results agree; the gradient of the sum is that of central differences, in float64.

    Args:
      loss: `(predictions, *others) -> Loss`.
      predictions: floating-point, `[N, …]`.
      others: arrays `[N, …]`: labels, targets.
      tolerance: relative tolerance of values.

    Raises:
      LawError: naming the law.
    """
    given = [np.asarray(x) for x in (predictions, *others)]
    rows = len(given[0])
    whole = loss(*map(jnp.asarray, given))
    shape = whole.values.shape
    _require(shape[:1] == (rows,), "a loss is one value per example", f"{list(shape)} for {rows} rows")
    _require(
        _close(jax.jit(lambda *x: loss(*x))(*given), whole, tolerance), "jit agrees with eager", "values"
    )
    half = loss(*(jnp.asarray(x[1::2]) for x in given))
    own = [x for x in (whole.values, whole.weights) if x is not None]
    part = [x for x in (half.values, half.weights) if x is not None]
    _require(
        _close([x[1::2] for x in own], part, tolerance),
        "a value is a matter of its example alone",
        "half of the rows",
    )
    low = loss(jnp.asarray(given[0], jnp.bfloat16), *map(jnp.asarray, given[1:])).values
    _require(low.dtype == jnp.float32, "values are float32 at least", f"{low.dtype.name} of bfloat16")
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64 if x.dtype.kind == "f" else None) for x in given]

        def total(p: jax.Array) -> jax.Array:
            return loss(p, *wide[1:]).sum()

        direction = jnp.cos(7 * jnp.arange(wide[0].size, dtype=jnp.float64)).reshape(wide[0].shape)
        slope = jnp.vdot(jax.grad(total)(wide[0]), direction)
        moved = [total(wide[0] + sign * 1e-5 * direction) for sign in (1, -1)]
        _require(
            _close(slope, (moved[0] - moved[1]) / 2e-5, 1e-6),
            "the gradient is that of differences",
            str(slope),
        )


def check_task(
    task: Task, params: Params, batch: Batch, weight: Any = None, *, tolerance: float = 1e-6
) -> None:
    """The laws of a whole step on your own loss, model and transforms.

    The state keeps its types; `train_step` traces `loss_fn` once; micro-batches, and a tail padded with
    garbage, give the whole batch's gradient, loss and metrics; a batch of weight zero changes nothing.
    Randomness in the loss is drawn anew for each micro-batch, so give a task without dropout. Products are in full
    float32: elsewhere than on a CPU they are rounded, and batches of other sizes not alike.

    Args:
      task: the Task; its loss gives one value per example.
      params: parameters, as for `init_state`.
      batch: one batch.
      weight: weights `[B]`, or None for ones.
      tolerance: relative tolerance of loss, gradient and metrics.

    Raises:
      LawError: naming the law and the leaf.
    """
    is_task(task, "(task, params, batch)")
    traces = 0

    def counted(params, batch, ctx):
        nonlocal traces
        traces += 1
        return task.loss_fn(params, batch, ctx)

    keywords = dict(metrics=dict(list(task.metrics.items())[1:]), policy=task.policy)
    rows = tree.leading_axis(batch)
    weight = jnp.ones(rows, jnp.float32) if weight is None else jnp.asarray(weight, jnp.float32)

    with jax.default_matmul_precision("highest"):
        same = Task(counted, task.tx, **keywords)  # type: ignore[arg-type]
        state = init_state(same, params)
        before = jax.tree.map(jnp.copy, state)
        for _ in range(3):
            state, metrics = train_step(same, state, batch, weight)
        _require(
            traces == 1,
            "one run compiles train_step once",
            f"loss_fn was traced {traces} times in 3 equal steps",
        )
        difference = tree.aval_difference(before, state)
        _require(difference is None, "the state keeps its types", str(difference))

        state = init_state(task, params)
        loss, grads = compute_gradients(task, state, batch, weight)
        expected = compute_metrics(task, eval_step(task, state, batch, weight))
        for k in (2, 3):
            cut = Task(task.loss_fn, task.tx, microbatches=k, **keywords)  # type: ignore[arg-type]
            got = compute_gradients(cut, state, batch, weight)
            _require(
                _close(got, (loss, grads), tolerance), "micro-batches add up to the batch", f"{k} of them"
            )
        padded = jax.tree.map(
            lambda x: jnp.concatenate([jnp.asarray(x), _garbage(jnp.asarray(x)[:2])]), batch
        )
        longer = jnp.concatenate([weight, jnp.zeros(2, jnp.float32)])
        got = compute_gradients(task, state, padded, longer)
        _require(
            _close(got, (loss, grads), tolerance),
            "rows of weight zero may hold anything",
            "loss and gradient",
        )
        values = compute_metrics(task, eval_step(task, state, padded, longer))
        _require(_close(values, expected, tolerance), "rows of weight zero may hold anything", "metrics")

        kept = {"params": state.params, "opt_state": state.opt_state}
        kept = jax.tree.map(np.array, kept)
        exempt = {f"opt_state/{path}".rstrip("/") for path in _counting(state.opt_state)}
        state, metrics = train_step(task, state, batch, jnp.zeros(rows, jnp.float32))
        moved = _moved(kept, {"params": state.params, "opt_state": state.opt_state})
        named = [path for path in moved if path not in exempt]
        _require(not named, "a batch of weight zero changes nothing", tree.some(named))
        _require(float(compute_metrics(task, metrics)["loss"]) == 0, "a batch of weight zero has loss 0", "")


def assert_resumable(
    make_run: Callable[[Path, int], Any], at: int | Sequence[int], *, steps: int | None = None
) -> None:
    """The law of a run: N steps, and k steps, a new start, and the other N - k, give the same bits.

    It runs N steps twice to see that the run is a function of its arguments at all, and then for each k a run of
    k steps and one that resumes it. State and history are compared bitwise, NaN included; columns of the
    history in which the first two runs differ (times, memory) are left out.

    Args:
      make_run: `(run_dir, steps) -> FitResult`, a run of so many steps in all, which goes on with what is in
        `run_dir`. It builds all it needs (task, state, data, callbacks) anew, as a new process would: whatever
        it shares between calls is what this check cannot see.
      at: the k to stop at, one or several: inside an epoch and at its edge, inside an accumulation window.
      steps: N; None takes twice the largest k, and one.

    Raises:
      LawError: naming k, and the leaf or column that differs; or that a run did not stop at k, or left no
        checkpoint to resume from.
      ConfigError: if a k is not between 1 and N.

    Examples:
      >>> import functools, fntrain as ft, numpy as np
      >>> def make_run(run_dir, steps):
      ...     task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.adam(0.1))
      ...     state = ft.init_state(task, {"w": np.float32(0)})
      ...     data = np.linspace(-1, 1, 12, dtype=np.float32)
      ...     go = functools.partial(ft.fit, batch_size=4, run_dir=run_dir, resume=True, progress=False)
      ...     return go(task, state, data, steps=steps)
      >>> ft.testing.assert_resumable(make_run, at=4)
    """
    stops = [check.integer("at", k, at_least=1) for k in (at if isinstance(at, Sequence) else [at])]
    steps = 2 * max(stops, default=1) + 1 if steps is None else check.integer("steps", steps, at_least=1)
    if not stops or max(stops) > steps:
        raise ConfigError(f"`at` must hold steps of 1 to {steps}, got {at!r}")
    with tempfile.TemporaryDirectory() as root:
        straight, again = (_outcome(make_run(Path(root, name), steps)) for name in ("straight", "again"))
        noisy = {name for name in _unequal(straight, again) if name.startswith("history/")}
        wrong = _unequal(straight, again, noisy)
        _require(not wrong, "equal runs give equal bits", f"two runs differ in {tree.some(wrong)}")
        for k in stops:
            directory = Path(root, f"at {k}")
            stopped = make_run(directory, k)
            reached = int(getattr(stopped, "state", stopped).step)
            _require(reached == k, "a run of k steps ends at k", f"asked for {k} steps, it made {reached}")
            left = directory.is_dir() and any(directory.iterdir())
            _require(left, "a run leaves what it can be resumed from", "nothing is in `run_dir`")
            wrong = _unequal(straight, _outcome(make_run(directory, steps)), noisy)
            law = "a resumed run is the run"
            _require(not wrong, law, f"stopped at step {k} and resumed, it differs in {tree.some(wrong)}")


def _outcome(result: Any) -> dict[str, tuple[Any, ...]]:
    """The bits of a run by name: the leaves of its state, the columns of its history."""
    state = getattr(result, "state", result)
    leaves = {f"state/{path}": x for path, x in tree.items(state)}
    keys = {name for name, x in leaves.items() if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)}
    arrays = {name: np.asarray(jax.random.key_data(x) if name in keys else x) for name, x in leaves.items()}
    bits = {name: (x.dtype.name, x.shape, x.tobytes()) for name, x in arrays.items()}
    history = getattr(result, "history", {})
    rows = {f"history/{name}": history[name] for name in history}
    return bits | {
        n: tuple(x.tobytes() if isinstance(x, np.ndarray) else repr(x) for x in column)
        for n, column in rows.items()
    }


def _unequal(a: Mapping[str, Any], b: Mapping[str, Any], but: Collection[str] = ()) -> list[str]:
    return [name for name in {**a, **b} if a.get(name) != b.get(name) and name not in but]


def _close(a: PyTree, b: PyTree, tolerance: float) -> bool:
    """Equal up to the tolerance, relative to each leaf's largest magnitude; NaN equals NaN."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        scale = np.max(np.abs(y), initial=0.0, where=np.isfinite(y))
        if not np.allclose(x, y, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return False
    return True


def _finite(x: PyTree) -> bool:
    return all(np.all(np.isfinite(np.asarray(v, np.float64))) for v in jax.tree.leaves(x))


def _has_number(x: PyTree) -> bool:
    return any(np.any(np.isfinite(np.asarray(v, np.float64))) for v in jax.tree.leaves(x))


__all__ = [
    "LawError",
    "assert_resumable",
    "check_loss",
    "check_metric",
    "check_schedule",
    "check_task",
    "check_transform",
    "check_value",
]

surface(__name__)
