"""coord_check: whether the coordinates of every layer are, and move, as much at any width."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .._core.typing import Batch
from ..step import checks, programs
from ..step.state import TrainState, init_state
from ..step.step import train_step
from ..step.task import Task


@dataclasses.dataclass(frozen=True, eq=False)
class Coordinates:
    """How large the coordinates of a network's outputs are at several widths, and how far they move.

    Attributes:
      widths: the widths, increasing.
      sizes: by output, the root of the mean square of its coordinates, mean of the seeds: `[widths, steps + 1]`, at the
        start and after each step.
      moves: by output, the same of its change since the start, `[widths, steps]`.
    """

    widths: tuple[int, ...]
    sizes: dict[str, np.ndarray]
    moves: dict[str, np.ndarray]

    @property
    def slopes(self) -> dict[str, float]:
        """By output, the power of the width that its move after the last step grows with: 0 is flat."""
        logs = np.log(self.widths)
        with np.errstate(divide="ignore", invalid="ignore"):
            return {k: float(np.polyfit(logs, np.log(m[:, -1]), 1)[0]) for k, m in self.moves.items()}

    @property
    def spreads(self) -> dict[str, float]:
        """By output, the largest part by which its move after the last step is off the mean of all widths."""
        last = {name: moved[:, -1] for name, moved in self.moves.items()}
        with np.errstate(divide="ignore", invalid="ignore"):
            return {name: float(np.max(np.abs(m / m.mean() - 1))) for name, m in last.items()}

    def is_flat(self, tolerance: float = 0.1) -> bool:
        """Whether every output moves by as much at any width, within that part of their mean."""
        check.number("tolerance", tolerance, above=0)
        return all(spread <= tolerance for spread in self.spreads.values())

    def __str__(self) -> str:
        """A table: a row an output, a column a width, and what the move grows with."""
        head = ["moved after the last step", *(f"width {w}" for w in self.widths), "slope", "spread"]
        rows = [
            [name, *(f"{x:.3g}" for x in m[:, -1]), f"{self.slopes[name]:+.2f}", f"{self.spreads[name]:.0%}"]
            for name, m in self.moves.items()
        ]
        across = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        return "\n".join(
            "  ".join([row[0].ljust(across[0]), *(x.rjust(n) for x, n in zip(row[1:], across[1:]))])
            for row in [head, *rows]
        )


def coord_check(
    make: Callable[[int], tuple[Task, Any]],
    widths: Sequence[int],
    batch: Batch,
    steps: int = 4,
    seeds: Iterable[int] = range(4),
) -> Coordinates:
    r"""Train the same network at several widths for a few steps, and say how far its coordinates move.

    .. math:: \Delta_t(n) = \overline{\sqrt{\operatorname{mean}_i\, (x_{t,i}(n) - x_{0,i}(n))^2}}

    for each output x of the loss at width n, the mean being that of the seeds. Where a network is parametrised so
    that its rates carry over (`transforms.mup`), no output's move grows or shrinks with the width; where one does,
    the rate that is best at one width is too large or too small at another.

    Args:
      make: `width -> (task, init_params)`: a Task whose loss has the layers as outputs
        (`loss.with_outputs(hidden=h, logits=logits)`), and what `init_state` takes.
      widths: two or more, increasing.
      batch: the batch of every step.
      steps: how many, >= 1.
      seeds: of the first numbers.

    Returns:
      Coordinates, with `slopes`, `spreads` and `is_flat()`; they print as a table.

    Raises:
      ConfigError: if the widths are not increasing, or the loss has no outputs, or others at another width.

    Examples:
      >>> import fntrain as ft, jax, jax.numpy as jnp
      >>> def loss_fn(p, batch, ctx):
      ...     hidden = batch @ p["in"]
      ...     return ft.losses.mse(hidden @ p["out"], batch).with_outputs(hidden=hidden)
      >>> def make(width):
      ...     def init_params(key):
      ...         return {"in": jax.random.normal(key, (2, width)), "out": jnp.full((width, 2), 1 / width)}
      ...     return ft.Task(loss_fn, ft.optimizers.adam(0.1)), init_params
      >>> found = ft.tools.coord_check(make, (8, 32), jnp.eye(2), steps=1)
      >>> abs(found.slopes["hidden"]) < 0.01  # of an input layer, Adam's steps are right at any width
      True

    References:
      Yang et al., *Tensor programs V: tuning large neural networks via zero-shot hyperparameter transfer*, 2022.
    """
    widths = [check.integer("widths", width, at_least=1) for width in widths]
    if len(widths) < 2 or sorted(set(widths)) != widths:
        raise ConfigError(f"`widths` must be two or more, increasing, got {widths}")
    steps = check.integer("steps", steps, at_least=1)
    seeds = [check.integer("seeds", seed, at_least=0) for seed in seeds]
    if not seeds:
        raise ConfigError("`seeds` must have one at least, got none; leave it out for four")
    found = [_at_width(make, width, batch, steps, seeds) for width in widths]
    names = list(found[0][0])
    for width, (sizes, _) in zip(widths, found):
        if list(sizes) != names:
            raise ConfigError(
                f"`make`: the loss has the outputs {names} at width {widths[0]}, and {list(sizes)} at {width}"
            )
    stacked = [{name: np.stack([part[i][name] for part in found]) for name in names} for i in (0, 1)]
    return Coordinates(tuple(widths), *stacked)


Sizes = dict[str, np.ndarray]


def _at_width(make: Any, width: int, batch: Batch, steps: int, seeds: list[int]) -> tuple[Sizes, Sizes]:
    """`(sizes, moves)`, the mean of the seeds."""
    made = make(width)
    if not isinstance(made, tuple) or len(made) != 2:
        raise ConfigError(
            f"`make` must return `(task, init_params)`, got {check.said(made)} at width {width}"
        )
    task, init_params = made
    checks.check_task(task, "(task, init_params) of `make`")
    # One program a width: the first numbers are drawn inside it, one seed after the other.
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    run = jax.jit(lambda keys: jax.lax.map(lambda key: _run(task, steps, init_params, key, batch), keys))
    runs = jax.device_get(run(keys))
    if not runs[0]:
        raise ConfigError(
            "`make`: the task's loss has no outputs to look at; name the layers, "
            "`loss.with_outputs(hidden=h, logits=y)`"
        )
    sizes, moves = jax.tree.map(lambda x: x.mean(axis=0), runs)
    return sizes, moves


def _run(task: Task, steps: int, init_params: Any, key: jax.Array, batch: Batch) -> Any:
    """`(sizes, moves)` by path of the output, `[steps + 1]` and `[steps]`."""

    def seen(state: TrainState) -> dict[str, jax.Array]:
        out = tree.items(programs.outputs_of(task, state, batch, None))
        return {path: tree.wide(x) for path, x in out if jnp.issubdtype(x.dtype, jnp.floating)}

    state = init_state(task, init_params, key=key)
    first = seen(state)

    def step(state: TrainState, _: None) -> tuple[TrainState, Any]:
        state = train_step(task, state, batch)[0]
        now = seen(state)
        return state, (_size(now), _size({name: x - first[name] for name, x in now.items()}))

    sizes, moves = jax.lax.scan(step, state, None, length=steps)[1]
    start = _size(first)
    return {name: jnp.concatenate([start[name][None], x]) for name, x in sizes.items()}, moves


def _size(outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.sqrt(jnp.mean(jnp.square(x))) for name, x in outputs.items()}
