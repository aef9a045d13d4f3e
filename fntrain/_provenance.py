"""Where a step went bad: which numbers were not finite, noted on the device, read on the host.

A guard (`skip_nonfinite` and its kin) has a branch for a step that it does not take. There, and only there, it
notes what was wrong in one small vector of integers in its state: the step, the loss, and four counts a leaf.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _manual, tree
from ._check import ConfigError
from ._typing import PyTree

_SMALL, _BLOCK = 2**12, 2**10  # elements
_LOSS = ("", "finite", "NaN", "infinite")


def nothing(leaves: int) -> jax.Array:
    """The note of no bad step yet: int32 `[2 + 4 * leaves]`."""
    return jnp.zeros((2 + 4 * leaves,), jnp.int32)


def note(step: Any, loss: Any, grads: PyTree, params: PyTree) -> jax.Array:
    """What is not finite in a step: `[step, loss, NaN and infinities of each gradient, of each parameter]`.

    The step is -1 where it is not known; the loss an index into `_LOSS`, 0 if nothing is bad.
    """
    loss = jnp.zeros((), jnp.float32) if loss is None else loss
    kind = jnp.where(jnp.isnan(loss), 3, jnp.where(jnp.isinf(loss), 4, 2)).astype(jnp.int32) - 1
    leaves, places = jax.tree.leaves(grads), jax.tree.leaves(params)
    found = counts([*leaves, *places])
    kind = jnp.where((kind > 1) | jnp.any(found[: 2 * len(leaves)] > 0), kind, 0)
    step = jnp.full((), -1, jnp.int32) if step is None else jnp.asarray(step, jnp.int32)
    unknown = jnp.zeros((2 * (len(leaves) - len(places)),), jnp.int32)  # no parameters were given
    return jnp.concatenate([jnp.stack([step, kind]), found, unknown])


def counts(leaves: list[jax.Array]) -> jax.Array:
    """How many NaN and how many infinities each leaf has: int32 `[2 * len(leaves)]`, pair by pair.

    Hardly ever run, so written to cost little where it is not: few operations, and no large temporaries.
    """
    found: list[Any] = [None] * len(leaves)
    small = [i for i, x in enumerate(leaves) if x.size <= _SMALL]
    if small:
        sizes = np.array([leaves[i].size for i in small])
        longest, starts = int(sizes.max()), np.cumsum(sizes) - sizes
        joined = [jnp.ravel(leaves[i]).astype(jnp.float32) for i in small]
        line = jnp.concatenate([*joined, jnp.zeros((longest,), jnp.float32)])

        def leaf(x: tuple[jax.Array, jax.Array]) -> jax.Array:
            start, size = x
            part = jax.lax.dynamic_slice_in_dim(line, start, longest)
            return _counted(part, jnp.arange(longest) < size)

        pairs = jax.lax.map(leaf, (jnp.asarray(starts, jnp.int32), jnp.asarray(sizes, jnp.int32)))
        for i, pair in zip(small, jnp.unstack(pairs)):
            found[i] = pair
    for i, x in enumerate(leaves):
        if found[i] is None:
            found[i] = _by_blocks(x)
    return jnp.concatenate(found)


def _counted(x: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.sum(jnp.stack([jnp.isnan(x), jnp.isinf(x)]) & where[None], axis=1, dtype=jnp.int32)


def _by_blocks(x: jax.Array) -> jax.Array:
    """The counts of one large leaf, by blocks of rows."""
    rows, row = x.shape[0], x.size // x.shape[0]
    block = min(rows, max(1, max(_BLOCK, x.size // 256) // row))

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        start = jnp.minimum(i * block, rows - block)  # the last block reaches back, and counts what is new
        part = jax.lax.dynamic_slice_in_dim(x, start, block)
        new = jnp.repeat(start + jnp.arange(block) >= i * block, row)
        return total + _counted(jnp.ravel(part), new)

    none = _manual.vary(jnp.zeros((2,), jnp.int32), _manual.axes(x))
    return jax.lax.fori_loop(0, -(-rows // block), body, none)


@dataclasses.dataclass(frozen=True)
class BadStep:
    """A step whose loss or gradient was not finite.

    Attributes:
      step: which one, counted as `state.step`; None if the guard was not told.
      loss: `"finite"`, `"NaN"` or `"infinite"`.
      gradients: `(NaN, infinities)` by path, of the gradient leaves that are not finite.
      parameters: the same of the parameters that the gradient was taken at.
    """

    step: int | None
    loss: str
    gradients: Mapping[str, tuple[int, int]]
    parameters: Mapping[str, tuple[int, int]]

    @property
    def loss_is_finite(self) -> bool:
        """Whether the loss was a finite number."""
        return self.loss == "finite"

    def __str__(self) -> str:
        said = []
        if self.gradients:
            said.append(f"gradient of {_listed(self.gradients)}")
        said.append(f"loss was {self.loss}")
        if self.parameters:
            said.append(f"the parameters were not finite before it: {_listed(self.parameters)}")
        return f"step {'unknown' if self.step is None else self.step}: {'; '.join(said)}"


def _listed(found: Mapping[str, tuple[int, int]], most: int = 4) -> str:
    def number(nan: int, inf: int) -> str:
        return " and ".join(f"{n} {what}" for n, what in ((nan, "NaN"), (inf, "infinite")) if n)

    shown = [f"`{path}` has {number(*pair)}" for path, pair in list(found.items())[:most]]
    return ", ".join(shown) + (f", and {len(found) - most} more" if len(found) > most else "")


def bad_step(task: Any, state: Any) -> BadStep | None:
    """What a guard in the optimizer noted of the bad step that began the last run of them; None if there was none.

    `skip_nonfinite`, `skip_spikes` and `dynamic_loss_scale` note it in the branch that skips a step, so a good
    step costs nothing. The guard sees what stands before it: put it outermost, as a clip turns one NaN into
    a tree of them. Inside `MultiSteps`, the step is the one that closed the window.

    Args:
      task: the Task.
      state: a TrainState, as `train_step` returned it. Reading it waits for the device.

    Returns:
      A BadStep, or None.

    Raises:
      ConfigError: if the optimizer has no guard.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: b * p["w"], ft.skip_nonfinite(ft.optimizers.sgd(0.1)))
      >>> state = ft.init_state(task, {"w": jnp.ones(()), "b": jnp.ones(2)})
      >>> state, _ = ft.train_step(task, state, jnp.array([1.0, jnp.inf]))
      >>> print(ft.bad_step(task, state))
      step 0: gradient of `w` has 1 infinite; loss was infinite
    """
    guards = [node for _, node in tree.named_nodes(state.opt_state) if hasattr(node, "bad")]
    if not guards:
        raise ConfigError(
            "`bad_step` reads what a guard in the optimizer has noted, and there is none: "
            "`Task(loss_fn, skip_nonfinite(tx))`"
        )
    trained = tree.split(state.params)[0]
    notes = [np.asarray(node.bad) for node in guards]
    notes = sorted((n for n in notes if n[1]), key=lambda n: int(n[0]))
    return read(notes[-1], _paths_of(task, trained, len(notes[-1]) // 4)) if notes else None


def read(noted: np.ndarray, paths: list[str]) -> BadStep:
    """A note, and the paths of the leaves it counts, as a BadStep."""
    step, kind = (int(n) for n in noted[:2])
    gradients, parameters = (
        {path: (int(nan), int(inf)) for path, (nan, inf) in zip(paths, part) if nan or inf}
        for part in noted[2:].reshape(2, len(paths), 2)
    )
    return BadStep(None if step < 0 else step, _LOSS[kind], gradients, parameters)


_asked: list[list[list[str]]] = []


def announce(params: PyTree) -> None:
    """A guard's `init` says which parameters it sees, if anybody asks."""
    if _asked:
        _asked[-1].append(tree.paths(params))


@contextlib.contextmanager
def _asking() -> Iterator[list[list[str]]]:
    found: list[list[str]] = []
    _asked.append(found)
    try:
        yield found
    finally:
        _asked.pop()


def _paths_of(task: Any, trained: PyTree, leaves: int) -> list[str]:
    """The paths behind a note of so many leaves: all, or those that `by_path` or `freeze` leaves to the guard."""
    paths = tree.paths(trained)
    if len(paths) != leaves:
        with _asking() as found:
            jax.eval_shape(task.tx.init, trained)
        paths = next(seen for seen in found if len(seen) == leaves)
    return paths
