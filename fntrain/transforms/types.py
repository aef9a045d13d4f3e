"""Transform, and what a transform's state may say by its type.

A transform is optax's pair `(init, update)`: gradients in, updates out. Ours adds to the pair the call that made it
(so equal transforms are equal, and print as their call), `apply`, which a transform may own when adding its updates
to the parameters itself saves memory traffic, `flush`, if it holds gradients back, and the stages it is made of.

What the toolkit reads from a state it declares here, as a base class of the state's tuple: `Recording`, `Guard`,
`Window`, `Averaging`, `Moments`. The name of a field alone never has a meaning.
"""

import html
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._core.errors import ConfigError
from .._core.typing import Params, PyTree, ScheduleLike
from .._core.value import Value, factory
from .branch import either


class Recording:
    """Base of a state tuple some of whose scalars the step reports: those named in `records`.

    Examples:
      >>> from typing import NamedTuple
      >>> class Seen(NamedTuple):
      ...     largest: jax.Array
      >>> class SeenState(Recording, Seen):
      ...     records = ("largest",)
      >>> SeenState(jnp.float32(2)).recorded()
      {'largest': Array(2., dtype=float32)}
    """

    __slots__ = ()
    records: ClassVar[tuple[str, ...]] = ()

    def recorded(self) -> dict[str, jax.Array]:
        """The scalars by name."""
        return {name: getattr(self, name) for name in self.records}


class Guard(Recording):
    """Base of the state of a transform that may skip a call, so that it leaves no trace.

    Attributes:
      skipped: int32, shape (): 1 if the last call was skipped, else 0.
      total_skipped: int32, shape (): calls skipped so far.
      bad: what `bad_step` reads, as `transforms.notes` writes it.
    """

    __slots__ = ()
    skipped: jax.Array
    total_skipped: jax.Array
    bad: jax.Array

    @property
    def applied(self) -> jax.Array:
        """Whether the last call was let through."""
        return self.skipped == 0


class Window(Recording):
    """Base of the state of a transform that holds gradients back for later.

    Attributes:
      applied: bool, shape (): whether the last call let an update through.
    """

    __slots__ = ()
    applied: jax.Array

    def is_open(self) -> jax.Array:
        """Whether the window holds anything that a flush would apply."""
        return ~self.applied


class Averaging:
    """Base of the state of a transform that is to be evaluated at other parameters than those that are trained."""

    __slots__ = ()

    def evaluation_params(self, params: Params) -> Params:
        """Where to evaluate, float32 at least; None for leaves that are evaluated as they are."""
        raise NotImplementedError


class Moments:
    """Base of a state tuple whose fields in `moments` are running means of gradients or of their squares.

    They bear being rounded, as an average of parameters does not: `quantize_state` keeps them in fewer bits.
    """

    __slots__ = ()
    moments: ClassVar[tuple[str, ...]] = ()


class Carrier:
    """Base of what carries parameters and an optimizer's state together, as a TrainState does."""

    __slots__ = ()
    params: Params
    opt_state: Any

    def replace(self, **changes: Any) -> Any:
        """The same with some fields changed."""
        raise NotImplementedError


def opt_state_of(state: Any) -> Any:
    """The optimizer state of a TrainState; anything else is taken for one."""
    return state.opt_state if isinstance(state, Carrier) else state


class Transform(Value, optax.GradientTransformationExtraArgs):
    """A gradient transform that knows the call that made it.

    It is an `optax.GradientTransformationExtraArgs`, so it can stand in any `optax.chain`, and any optax
    transform can stand in `fntrain.chain`. To write one, return `(init_fn, update_fn)` from a function
    decorated with `fntrain.transforms.transform`.

    Attributes:
      init: `params -> state`.
      update: `(updates, state, params=None, **extra) -> (updates, state)`; unknown extra arguments are ignored.
        `train_step` gives `value` and `grad` (loss and gradient of the step), `weight` (the total weight behind
        them), `step`, and `value_fn` and `value_and_grad_fn`, functions of parameters.
      apply: `(updates, state, params, **extra) -> (params, state, applied)`: one whole step on the parameters;
        `applied` is a scalar bool array, False if this call changed no parameter on purpose (a window of
        `MultiSteps` that stays open, say).
      stages: the transforms this one is made of, by name; empty for a plain one.
      side_by_side: whether the stages have a part of the parameters each, and do not follow one another.
      rescales: whether the updates behind it are another direction than the gradient's, so that decay added to them
        is decoupled; None where nobody said.
      descends: whether its updates point against what it is given, as behind a learning rate; None where nobody said.
      evaluates: whether it may evaluate the loss at parameters of its own choice, as line searches do.
      gates: whether it may keep a call back, or skip it.
      spreads: whether it asks the step how far apart the gradients of its micro-batches were, `spread`.
      observes: whether it lets updates through as they are, and only looks at them.
      mixed: whether it may keep a call from a part of the parameters alone.
    """

    # optax types the fields by what an update may be at all: a number, say, which nobody can index.
    init: Callable[..., Any]  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    update: Callable[..., tuple[Any, Any]]  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    stages: Mapping[str, "Transform"]
    _apply: Callable[..., Any] | None
    _flush: Callable[..., Any] | None
    _look: Callable[..., Any] | None
    _sees: Callable[[str, PyTree], PyTree] | None
    _passed: Callable[[Any], jax.Array] | None
    side_by_side: bool
    rescales: bool | None
    descends: bool | None
    evaluates: bool
    gates: bool
    mixed: bool
    observes: bool
    spreads: bool

    def __new__(
        cls,
        init: Callable[..., Any],
        update: Callable[..., Any],
        apply: Callable[..., Any] | None = None,
        stages: "Mapping[str, Transform] | None" = None,
        flush: Callable[..., Any] | None = None,
        *,
        look: Callable[..., Any] | None = None,
        sees: Callable[[str, PyTree], PyTree] | None = None,
        side_by_side: bool = False,
        rescales: bool | None = None,
        descends: bool | None = None,
        evaluates: bool = False,
        passed: Callable[[Any], jax.Array] | None = None,
        gates: bool = False,
        observes: bool = False,
        spreads: bool = False,
    ) -> Self:
        """Make one; see the class for what the functions are."""
        self = super().__new__(cls, init, update)  # type: ignore[call-arg]
        self._apply, self._flush, self._look, self._sees, self._passed = apply, flush, look, sees, passed
        self.stages = dict(stages or {})
        self.side_by_side, self.observes = side_by_side, observes
        inner = self.stages.values()
        said = [stage.rescales for stage in inner]
        if rescales is None and said:
            rescales = True if True in said else None if None in said else False
        self.rescales = rescales
        self.descends = _descends(list(inner), side_by_side) if descends is None else descends
        self.evaluates = evaluates or any(stage.evaluates for stage in inner)
        self.spreads = spreads or any(stage.spreads for stage in inner)
        self.gates = gates or any(stage.gates for stage in inner)
        self.mixed = (side_by_side and self.gates and len(inner) > 1) or any(stage.mixed for stage in inner)
        return self

    def _parts(self) -> tuple[Any, ...]:
        return (self.init, self.update)

    @property
    def name(self) -> str:
        """The name it has in a chain's state: that of its factory."""
        return self.call.name if self.call is not None else type(self).__name__.lower()

    def made_by(self, factory: Callable[..., Any]) -> bool:
        """Whether this very factory made it."""
        return self.call is not None and self.call.factory is factory

    @property
    def owns_apply(self) -> bool:
        """True if the transform adds its updates to the parameters itself."""
        return self._apply is not None

    def apply(self, updates: Any, state: Any, params: Params, **extra: Any) -> tuple[Params, Any, jax.Array]:
        """One step on the parameters: `(params, state, applied)`.

        Extra arguments as in `update`. A `weight` (the total weight behind the gradient) of zero means that
        nothing was seen: nothing changes, not even a decay or a count.
        """
        if self._apply is not None:
            return self._apply(updates, state, params, **extra)
        return update_and_add(self, updates, state, params, **extra)

    @property
    def holds_back(self) -> bool:
        """True if the transform may hold gradients back for later, so that `flush` has something to do."""
        return self._flush is not None

    def flush(self, state: Any, params: Params, **extra: Any) -> tuple[Any, Any]:
        """Close what is held back: `(updates, state)`; zero updates if nothing is."""
        if self._flush is None:
            return tree.zeros_like(params), state
        return self._flush(state, params, **extra)

    @property
    def looks(self) -> bool:
        """True if the transform acts on another gradient than the one it is given: one that it takes itself."""
        return self._look is not None

    @property
    def looks_late(self) -> bool:
        """True if a transform inside takes a gradient of its own at a time of its own: when a window closes."""
        return not self.looks and any(stage.looks or stage.looks_late for stage in self.stages.values())

    def look(self, updates: Any, state: Any, params: Params, **extra: Any) -> tuple[Any, dict[str, Any]]:
        """The gradient it acts on, and the extra arguments that `update` is to get with it instead.

        So a guard around it judges what arrives, and not what was left behind.
        """
        if self._look is None:
            return updates, extra
        return self._look(updates, state, params, **extra)

    def passed(self, state: Any) -> jax.Array:
        """Whether the call that returned this state let an update through: a scalar bool array."""
        return let_through(state) if self._passed is None else self._passed(state)

    def seen(self, name: str, params: PyTree) -> PyTree:
        """The part of a tree of parameters that a stage sees; None for the leaves that it does not."""
        return params if self._sees is None else self._sees(name, params)

    def evaluation_params(self, opt_state: Any, params: Params) -> Params:
        """The parameters to evaluate at: averages, where the transform keeps some; else `params`.

        Args:
          opt_state: its state.
          params: the parameters that are trained.

        Returns:
          A tree like `params`, in its dtypes.
        """
        for node in nodes(opt_state, Averaging):
            params = _evaluated(node, params)
        return params

    def _repr_html_(self) -> str:
        """The table a notebook shows: one row a stage, with its arguments."""
        rows = "".join(
            f"<tr><td style='text-align:left'><code>{html.escape(name)}</code></td>"
            f"<td style='text-align:left'><code>{html.escape(what)}</code></td>"
            f"<td style='text-align:left'>{html.escape(arguments)}</td></tr>"
            for name, what, arguments in _stage_rows(self)
        )
        head = "".join(f"<th style='text-align:left'>{h}</th>" for h in ("stage", "transform", "arguments"))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


jax.tree_util.register_static(Transform)  # a transform inside a pytree is structure, not data

transform = factory(Transform)
"""Decorator: a function that returns `(init_fn, update_fn)` (or a fresh Transform) makes Transforms."""


def _descends(stages: "list[Transform]", side_by_side: bool) -> bool | None:
    """Whether the updates of several go downhill: each, side by side; in a row, if an odd number turns the sign."""
    said = [stage.descends for stage in stages]
    if side_by_side:
        return False if False in said else None if None in said else True
    return None if None in said or not said else sum(map(bool, said)) % 2 == 1


def _evaluated(node: Averaging, params: Params) -> Params:
    found = node.evaluation_params(params)
    return jax.tree.map(
        lambda a, p: p if a is None else a.astype(p.dtype), found, params, is_leaf=lambda x: x is None
    )


def _stage_rows(tx: Transform, prefix: str = "") -> list[tuple[str, str, str]]:
    """`(name, transform, arguments)` of every stage in order, nested ones by path."""
    part = type(tx) is Transform and tx.call is None and bool(tx.stages)  # its stages say what it is
    what = tx.call.name if tx.call is not None else "" if part else repr(tx)
    inner = {repr(stage) for stage in tx.stages.values()}
    shown = {} if tx.call is None else tx.call.shown()
    shown = {k: v for k, v in shown.items() if v not in inner and not k.startswith("*")}
    row = (prefix or tx.name, what, ", ".join(f"{k}={v}" for k, v in shown.items()))
    rows = [] if what == "chain" else [row]  # the chain itself says nothing its stages don't
    for key, stage in tx.stages.items():
        rows += _stage_rows(stage, f"{prefix}/{key}" if prefix else key)
    return rows


def update_and_add(
    tx: Transform, updates: Any, state: Any, params: Params, **extra: Any
) -> tuple[Params, Any, jax.Array]:
    """`update`, then addition to the parameters, with nothing changed where the weight is zero."""
    weight = extra.get("weight")
    if weight is None or is_positive(weight):
        new_updates, new_state = tx.update(updates, state, params, **extra)
        return tree.add(params, new_updates), new_state, tx.passed(new_state)
    seen = jnp.asarray(weight) > 0

    def run(updates: Any, state: Any) -> tuple[Any, Any]:
        new_updates, new_state = tx.update(updates, state, params, **extra)
        return tree.cast_like(new_updates, updates), new_state

    # The gradients' slot carries the updates out, and the parameters stay outside: other forms make XLA copy what
    # they do not change where this is a branch (measured on CPU: one to two times the parameters).
    updates, new_state = either(seen, run, lambda *kept: kept, updates, state)
    params = jax.tree.map(lambda new, p: jnp.where(seen, new, p), tree.add(params, updates), params)
    return params, new_state, tx.passed(new_state) & seen


def nodes(state: PyTree, kind: type | tuple[type, ...]) -> list[Any]:
    """The nodes of a kind in a state, outermost first."""
    return [node for _, node in tree.named_nodes(state) if isinstance(node, kind)]


def let_through(state: Any) -> jax.Array:
    """Whether the guards and windows in a state let the call through that returned it."""
    applied = jnp.asarray(True)
    for node in nodes(state, (Guard, Window)):
        applied &= node.applied
    return applied


def has_gate(state: Any) -> bool:
    """Whether a state has a guard or a window in it, which may keep a call from what stands behind."""
    return bool(nodes(state, (Guard, Window)))


def skipped(state: Any) -> jax.Array | None:
    """Whether any guard in a state skipped the last call; None if there is none."""
    found = [flag for _, node, flag in _asked(state) if isinstance(node, Guard)]
    return jnp.any(jnp.stack(found)) if found else None


def _asked(state: Any) -> list[tuple[str, Recording, jax.Array]]:
    """Every recording node with its path, and, of a guard, whether it skipped the last call.

    A guard inside a window that stays open was not asked, and what it says is of an older call.
    """
    found = [(path, node) for path, node in tree.named_nodes(state) if isinstance(node, Recording)]
    windows = [(f"{path}/".lstrip("/"), node.applied) for path, node in found if isinstance(node, Window)]
    out = []
    for path, node in found:
        flag = node.skipped > 0 if isinstance(node, Guard) else jnp.asarray(False)
        for window, closed in windows:
            if path.startswith(window):
                flag &= closed
        out.append((path, node, flag))
    return out


def holds_gradients(state: Any) -> jax.Array:
    """Whether an accumulation window stands open, with weight in it, anywhere in an optimizer state."""
    found = jnp.asarray(False)
    for node in nodes(state, Window):
        found |= node.is_open()
    return found


def recorded(opt_state: PyTree) -> dict[str, jax.Array]:
    """The scalars that transforms recorded in their states (`learning_rate`, `grad_norm`, …), by name.

    The outermost in the tree has the plain name; another of the same name is reported under its path too.
    """
    out: dict[str, jax.Array] = {}
    for path, node, flag in _asked(opt_state):
        for name, value in node.recorded().items():
            if isinstance(node, Guard) and name == "skipped":
                value = flag.astype(value.dtype)
            out[name if name not in out else f"{path}/{name}"] = value
    return out


def is_positive(weight: Any) -> bool:
    """True for a plain positive number: a weight known while tracing, which needs no guard against zero."""
    return isinstance(weight, int | float) and weight > 0


def kept(states: dict[str, Any]) -> dict[str, Any]:
    """The entries that hold something: a stateless stage leaves no trace in a checkpoint."""
    return {k: v for k, v in states.items() if not (isinstance(v, tuple) and len(v) == 0)}


def check_stages(state: Any, stages: Mapping[str, Any]) -> None:
    """Refuse the state of another transform, naming both."""
    if not isinstance(state, dict) or not set(state) <= set(stages):
        has = sorted(state) if isinstance(state, dict) else type(state).__name__
        raise ConfigError(
            f"`opt_state` belongs to another transform: it holds {has}, this one has {list(stages)}; "
            f"make it with this transform's `init(params)`, or the whole with `init_state`"
        )


def at_step(value: ScheduleLike, count: jax.Array) -> Any:
    """A hyperparameter's value at an update.

    A plain number is itself, and has yet to get a dtype (`like`); a schedule's value, and any other, is float32.
    """
    if isinstance(value, int | float):
        return float(value)
    if not callable(value):
        return jnp.asarray(value, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # a schedule of the user's may well write 0.5 * step
        return jnp.asarray(value(count), jnp.float32)


def is_zero(value: Any) -> bool:
    """True for a plain zero, which lets a factory leave a stage out; a schedule or traced value is not one."""
    return isinstance(value, bool | int | float) and value == 0


def like(x: Any, reference: jax.Array) -> jax.Array:
    """`x`, an array or a plain number, in the dtype of `reference`; complex numbers are refused, not made real."""
    return jnp.asarray(tree.wide(x) if isinstance(x, jax.Array) else x, reference.dtype)


def increment(count: jax.Array) -> jax.Array:
    """`count + 1`, held at the largest int32 instead of wrapping."""
    largest = jnp.iinfo(jnp.int32).max
    return jnp.where(count < largest, count + 1, largest)
