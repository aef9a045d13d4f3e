"""Where a step went bad: the note that a guard took on the device, read on the host."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.errors import ConfigError
from .._core.typing import PyTree
from ..transforms.notes import LOSS, asking
from ..transforms.types import Guard, nodes


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
    guards = nodes(state.opt_state, Guard)
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
    return BadStep(None if step < 0 else step, LOSS[kind], gradients, parameters)


def _paths_of(task: Any, trained: PyTree, leaves: int) -> list[str]:
    """The paths behind a note of so many leaves: all, or those that `by_path` or `freeze` leaves to the guard."""
    paths = tree.paths(trained)
    if len(paths) != leaves:
        with asking() as found:
            jax.eval_shape(task.tx.init, trained)
        paths = next(seen for seen in found if len(seen) == leaves)
    return paths
