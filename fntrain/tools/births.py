"""Where the first number of a step goes bad, found one operation at a time."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

# All that is read of a program, by public names, so that a JAX that has renamed one of them says so at import.
from jax.extend.core import Literal, jaxpr_as_fun

from .. import tree
from .._core.errors import ConfigError
from .._core.typing import Batch
from ..step import checks, gradients, programs
from ..step.state import TrainState, check_state
from ..step.task import Task
from ..transforms import loss_scale

_PACKAGE = str(Path(__file__).parents[1])
_JAX = (*jax.__path__, *jaxlib.__path__)


@dataclasses.dataclass(frozen=True)
class Birth:
    """Where a number that is not finite came from.

    Attributes:
      what: `"NaN"` or `"infinite"`.
      primitive: JAX's name of the operation; `"input"` for an array that came in so.
      source: `file:line (function)` of the user's line, or the path of the input (`batch/image`, `params/w`).
      count: how many entries of its result are not finite.
      shape: the result's shape.
      backward: whether the operation serves the gradient alone, and not the loss.
      inputs: its operands in short.
    """

    what: str
    primitive: str
    source: str
    count: int
    shape: tuple[int, ...]
    backward: bool
    inputs: str

    def __str__(self) -> str:
        size = int(np.prod(self.shape))
        many = f"{self.count} of {size}" if size > 1 else "the result"
        if self.primitive == "input":
            return f"`{self.source}` came in with {many} {self.what}"
        where = "in the backward pass of" if self.backward else "at"
        return f"`{self.primitive}` {where} {self.source} made {many} {self.what}, of {self.inputs}"


def find_nonfinite(task: Task, state: TrainState, batch: Batch, weight: Any = None) -> tuple[Birth, ...]:
    """Where the next step's loss, or else its gradient, goes bad, found one operation at a time.

    Args:
      task: the Task.
      state: a TrainState; it stays usable.
      batch: a tree of arrays `[B, …]`.
      weight: a weight per example, `[B]`, or None.

    Returns:
      As `Replay.births`: none, one or two.
    """
    checks.check_task(task)
    check_state(state, "find_nonfinite")

    def gradient(params, model_state, batch, weight, key, step, scale):
        part = gradients.batch_gradient(task, params, model_state, batch, key, step, weight, scale)
        return gradients.mean(part)

    given = dict(params=state.params, model_state=state.model_state, batch=batch, weight=weight)
    args = *given.values(), programs.step_key(state), state.step, loss_scale(state.opt_state)
    closed = jax.make_jaxpr(gradient)(*args)
    values = [jax.numpy.asarray(x) for x in jax.tree.leaves(args)]
    # A dict's leaves come out sorted by key; the arguments stand in their own order.
    names = [path for name, part in given.items() for path in tree.paths({name: part})]
    names += [""] * (len(values) - len(names))
    trails = [_input(name, x) for name, x in zip(names, values)]
    serving = _serving_the_loss(closed.jaxpr)
    # An infinite mask is meant so; if nothing else is to blame, it is not.
    for spares_constants in (True, False):
        walk = _Walk("", spares_constants=spares_constants, forward=serving)
        outs, found = walk.run(closed.jaxpr, closed.consts, values, trails)
        births = next((trail for trail in found if trail), ())
        if births or not any(_badness(x)[0] for x in outs):
            break
    return births


def _serving_the_loss(jaxpr: Any) -> frozenset[int]:
    """The equations that the first output, the loss, depends on."""
    wanted, found = {jaxpr.outvars[0]}, set()
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(eqn.outvars):
            found.add(id(eqn))
            wanted |= {x for x in eqn.invars if not isinstance(x, Literal)}
    return frozenset(found)


def _badness(x: Any) -> tuple[str, int]:
    """`(what, how many)`: NaN before infinities, and nothing for what cannot be either."""
    if not hasattr(x, "dtype") or not jax.numpy.issubdtype(x.dtype, jax.numpy.floating):
        return "", 0
    host = np.asarray(x).astype(np.float64)
    nan = int(np.isnan(host).sum())
    return ("NaN", nan) if nan else (("infinite", inf) if (inf := int(np.isinf(host).sum())) else ("", 0))


def _input(name: str, x: Any) -> tuple[Birth, ...]:
    what, count = _badness(x)
    return (Birth(what, "input", name, count, np.shape(x), False, ""),) if what else ()


@dataclasses.dataclass(frozen=True)
class _Walk:
    """An evaluation of a jaxpr that knows of every bad value where it comes from: its trail of births."""

    line: str  # the source line around a nested jaxpr, whose own equations may have lost theirs
    backward: bool = False
    spares_constants: bool = True  # whether infinities that come from constants of the program are left alone
    forward: frozenset[int] | None = None  # the equations of the outermost jaxpr that serve the loss

    def run(
        self, jaxpr: Any, consts: Any, args: list[Any], trails: list[tuple[Birth, ...]]
    ) -> tuple[list[Any], list[tuple[Birth, ...]]]:
        values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))
        known: dict[Any, tuple[Birth, ...]] = dict(zip(jaxpr.invars, trails))

        def value(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        def trail(atom: Any) -> tuple[Birth, ...]:
            return () if isinstance(atom, Literal) else known.get(atom, ())

        for eqn in jaxpr.eqns:
            ins = [value(x) for x in eqn.invars]
            outs, found = self.equation(eqn, ins, [trail(x) for x in eqn.invars])
            for var, out, births in zip(eqn.outvars, outs, found):
                values[var] = out
                known[var] = births
        return [value(x) for x in jaxpr.outvars], [trail(x) for x in jaxpr.outvars]

    def equation(
        self, eqn: Any, ins: list[Any], trails: list[Any]
    ) -> tuple[list[Any], list[tuple[Birth, ...]]]:
        line = _line(eqn.source_info) or self.line
        backward = self.backward or "transpose" in str(eqn.source_info.name_stack)
        if self.forward is not None:
            backward |= id(eqn) not in self.forward
        inner = _Walk(line, backward, self.spares_constants)
        name, p = eqn.primitive.name, eqn.params
        if name == "cond":
            (branches,) = _said(p, "cond", "branches")
            branch = branches[int(ins[0])]
            return inner.run(branch.jaxpr, branch.consts, ins[1:], trails[1:])
        called = next((p[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in p), None)
        if name not in ("scan", "while") and called is not None:
            jaxpr, consts = (called.jaxpr, called.consts) if hasattr(called, "consts") else (called, ())
            if len(jaxpr.invars) == len(ins):
                return inner.run(jaxpr, consts, ins, trails)
        outs = _bind(eqn, ins)
        if name in ("scan", "while") and any(_badness(x)[0] for x in outs):
            return (inner.scan if name == "scan" else inner.loop)(p, ins, trails)
        return outs, [inner.judged(eqn, ins, trails, out) for out in outs]

    def judged(self, eqn: Any, ins: list[Any], trails: list[Any], out: Any) -> tuple[Birth, ...]:
        """Where a result's bad numbers come from: what its operands brought, or this operation."""
        what, count = _badness(out)
        if not what:
            return ()
        brought = next((t for t in trails if any(b.what == what for b in t)), None)
        if brought is None:
            brought = next((t for t in trails if t), ())
        if brought and (what == "infinite" or any(b.what == "NaN" for b in brought)):
            return brought
        if self.spares_constants and not brought and what == "infinite" and any(_badness(x)[0] for x in ins):
            return ()  # of a constant of the program's own: a mask, say
        operands = ", ".join(_short(x) for x in ins[:3])
        birth = Birth(what, eqn.primitive.name, self.line, count, np.shape(out), self.backward, operands)
        return (*brought[:1], birth)

    def scan(self, p: dict[str, Any], ins: list[Any], trails: list[Any]) -> tuple[list[Any], list[Any]]:
        names = ("num_consts", "num_carry", "jaxpr", "length", "reverse")
        consts, carry, jaxpr, length, backwards = _said(p, "scan", *names)
        fixed, state, xs = ins[:consts], ins[consts : consts + carry], ins[consts + carry :]
        known, of_state, of_xs = trails[:consts], trails[consts : consts + carry], trails[consts + carry :]
        order = reversed(range(length)) if backwards else range(length)
        rows: dict[int, list[Any]] = {}
        of_rows: list[tuple[Birth, ...]] = []
        for i in order:
            row = [x[i] for x in xs]
            # A row that is finite itself has nothing of what stands in another one.
            of_row = [t if _badness(x)[0] else () for t, x in zip(of_xs, row)]
            outs, found = self.run(
                jaxpr.jaxpr, jaxpr.consts, [*fixed, *state, *row], [*known, *of_state, *of_row]
            )
            state, of_state, rows[i] = outs[:carry], found[:carry], outs[carry:]
            of_rows = [a or b for a, b in zip(of_rows, found[carry:])] if of_rows else list(found[carry:])
        stacked = [jax.numpy.stack([rows[i][k] for i in range(length)]) for k in range(len(of_rows))]
        return [*state, *stacked], [*of_state, *of_rows]

    def loop(self, p: dict[str, Any], ins: list[Any], trails: list[Any]) -> tuple[list[Any], list[Any]]:
        names = ("cond_nconsts", "body_nconsts", "cond_jaxpr", "body_jaxpr")
        m, n, test, body = _said(p, "while", *names)
        state, of_state = ins[m + n :], trails[m + n :]
        while bool(jaxpr_as_fun(test)(*ins[:m], *state)[0]):
            state, of_state = self.run(
                body.jaxpr, body.consts, [*ins[m : m + n], *state], [*trails[m : m + n], *of_state]
            )
        return list(state), list(of_state)


def _said(p: dict[str, Any], primitive: str, *names: str) -> list[Any]:
    """What an operation says of itself, by JAX's own names, for which there is no public way.

    Raises:
      ConfigError: if this JAX has renamed one of them.
    """
    gone = [name for name in names if name not in p]
    if gone:
        raise ConfigError(
            f"a replay cannot go into a `{primitive}` under JAX {jax.__version__}, which no longer says "
            f"{tree.some(gone)} of it (but {tree.some(sorted(p))}): replay with a JAX that this version of fntrain was "
            f"tested with"
        )
    return [p[name] for name in names]


def _bind(eqn: Any, ins: list[Any]) -> list[Any]:
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def _short(x: Any) -> str:
    host = np.asarray(x) if not jax.numpy.issubdtype(x.dtype, jax.dtypes.extended) else None
    if host is None or host.size == 0 or host.dtype == bool:
        return str(jax.typeof(x))
    wide = host.astype(np.float64)
    if host.size == 1:
        return f"{float(wide.reshape(())):.3g}"
    return f"{host.dtype.name}{list(host.shape)} in {wide.min():.3g}..{wide.max():.3g}"


def _line(info: Any) -> str:
    """The innermost line outside this package, and, where they differ, the line of ours that it called."""
    if info.traceback is None:
        return ""
    frames = [f for f in info.traceback.frames if not f.file_name.startswith(_JAX)]
    if not frames:
        return ""

    def text(frame: Any) -> str:
        name = frame.function_name.rpartition(".")[2]
        return f"{frame.file_name}:{frame.line_num} ({name})"

    outside = next((f for f in frames if not f.file_name.startswith(_PACKAGE)), None)
    if outside is None or outside is frames[0]:
        return text(frames[0])
    return f"{text(outside)}, through {text(frames[0])}"
