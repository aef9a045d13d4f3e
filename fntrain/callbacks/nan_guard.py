"""NaNGuard: end, or take back, a run whose steps are no longer finite."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import sharding, tree
from .._core import check
from .._core.errors import ConfigError, NonFiniteError
from .._core.made import Made
from ..run.context import LoopContext
from ..step import members
from ..step.provenance import bad_step
from ..transforms.guard import all_finite
from ..transforms.types import Guard, nodes, skipped as skipped_last
from .by_member import picked


class NaNGuard(Made):
    """End a run whose steps are no longer finite, with everything saved, or go back to where they were.

    With a guard in the optimizer (`skip_nonfinite`, say) a step is bad if it was skipped; without one, if it leaves
    parameters that are not finite. Bad steps in a row are counted on the device, so no step waits; the count is read
    at log points, one late, and at the end of each epoch, so a run goes on for up to two log windows. Of a call of
    several steps (`steps_per_call`), all count if all were bad, and else at least the last.

    What is done is said in the reason, with what a guard noted of the first of them, or else the parameters that are
    not finite; in a run directory, the step is kept as a capsule for `tools.replay`.

    - `"stop"` ends the run in good order; `stop_reason` says why.
    - `"raise"` ends it so, and then raises.
    - `"rollback"` goes back to the newest checkpoint from before the bad steps whose parameters are finite (or to
      the state that the run began with), and on with the data behind them: the steps in between count as taken, so
      keys and data are new. It needs a `run_dir`. If there is no such state, the run stops.

    Of a population, a member whose steps are bad is a finding, and the others go on: it ends once this would have ended
    every member's own run. To go on from good members in the place of bad ones is what `population.pbt` does.

    Args:
      patience: how many bad steps in a row are too many, >= 1.
      action: `"stop"`, `"raise"` or `"rollback"`.

    Raises:
      ConfigError: if `patience` is no integer >= 1, or `action` another word; by `fit`, if there is nothing to roll
        back to for want of a run directory, or the state is a population's.
      NonFiniteError: by `fit`, at the end of a run that it ended with `"raise"`.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(1e20))
      >>> state = ft.init_state(task, {"w": np.float32(0)})
      >>> data = np.ones((400, 1), np.float32)
      >>> guard = ft.callbacks.NaNGuard(patience=2)
      >>> result = ft.fit(task, state, data, batch_size=4, callbacks=[guard], log_every=5, progress=False,
      ...                 steps_per_call=1)
      >>> int(result.state.step), result.stop_reason
      (15, '9 steps in a row were not finite: params `w`')
    """

    adds_logs = False

    def __init__(self, patience: int = 3, action: str = "stop"):
        check.integer("patience", patience, at_least=1)
        check.one_of("action", action, ("stop", "raise", "rollback"))
        self.patience = patience
        self.action = action
        self._reset()

    @property
    def rolls_back(self) -> bool:
        """Whether it needs a saved state from the run's beginning on."""
        return self.action == "rollback"

    def _reset(self) -> None:
        # Bad steps in a row, the most so far, and as of the last call the updates, the skips and the steps.
        self._counts: Any = np.zeros(5, np.int32)
        self._late: Any = None
        self._reason: str | None = None

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start anew."""
        if self.action == "rollback" and ctx.run_dir is None:
            raise ConfigError("`NaNGuard(action='rollback')` needs a run directory: `fit(..., run_dir=...)`")
        if self.action == "rollback" and members.count(ctx.state) is not None:
            raise ConfigError(
                "`NaNGuard(action='rollback')` takes a whole run back, and the members of a population do not go bad "
                "together: have `population.pbt()` put copies of good ones in the place of bad ones, or choose "
                "`action='stop'`, which stops once all are bad"
            )
        self._reset()

    def on_step_end(self, ctx: LoopContext) -> None:
        """Count, on the device."""
        if isinstance(self._counts, np.ndarray):  # at the beginning, and behind a resume
            self._counts = np.broadcast_to(self._counts, (*np.shape(ctx.state.step), 5))
            self._counts = sharding.put_like(self._counts, ctx.state.step)
        self._counts = _count(self._counts, ctx.state)

    def on_log(self, ctx: LoopContext) -> None:
        """Look at the count of one window ago, which is long finished."""
        self._late, finished = self._counts, self._late
        self._act_if_due(finished, ctx)

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Look at the count."""
        self._act_if_due(self._counts, ctx)

    def on_fit_end(self, ctx: LoopContext) -> None:
        """Raise, if that is what is wanted, now that all is saved."""
        if self.action == "raise" and self._reason is not None and ctx.stop_reason == self._reason:
            raise NonFiniteError(self._reason)

    def _act_if_due(self, counts: Any, ctx: LoopContext) -> None:
        if counts is None or (most := int(np.min(sharding.to_host(counts)[..., 1]))) < self.patience:
            return
        number = members.count(ctx.state)
        flags = dict(tree.items(jax.device_get(_finite_leaves(ctx.state.params))))
        bad = [path for path, finite in flags.items() if not finite]
        guarded = tree.has(ctx.state.opt_state, Guard)
        first = bad_step(ctx.task, ctx.state) if guarded and number is None else None
        what = "skipped, as not finite" if first is not None or not guarded else "skipped"  # spikes, that is
        what = f"not finite: params {tree.some(bad)}" if bad else what
        reason = f"{most} step{'s' * (most > 1)} in a row {'was' if most == 1 else 'were'} {what}"
        reason += f"; most recently, {first}" if first is not None else ""
        reason = reason if number is None else f"of each of {number} members, {reason}"
        ctx.bad_steps = True
        if self.action == "rollback":
            self._reset()
            ctx.roll_back(reason)
        else:
            self._reason = reason
            ctx.stop(reason)

    def regroup(self, parents: np.ndarray) -> None:
        """Go on with what each member's parent had."""
        self._counts, self._late = picked((self._counts, self._late), parents)

    def state(self) -> dict[str, Any]:
        """The counts."""
        return {"counts": self._counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self._counts = state["counts"]


@jax.jit
def _count(counts: jax.Array, state: Any) -> jax.Array:
    return _counted(counts, state) if counts.ndim == 1 else jax.vmap(_counted)(counts, state)


def _counted(counts: jax.Array, state: Any) -> jax.Array:
    in_a_row, most, updates, total, steps = counts
    skipped = skipped_last(state.opt_state)
    if skipped is None:
        taken = jnp.where(
            in_a_row > 0, state.step - steps, 1
        )  # in a call before which all was well, one at least
        in_a_row = jnp.where(all_finite(tree.split(state.params)[0]), 0, in_a_row + taken)
    else:
        now = nodes(state.opt_state, Guard)[0].total_skipped
        # A step inside an open accumulation window is neither good nor bad.
        updated = state.updates != updates
        in_a_row = jnp.where(updated, skipped.astype(jnp.int32), in_a_row + now - total)
        total = now
    return jnp.stack([in_a_row, jnp.maximum(most, in_a_row), state.updates, total, state.step])


_finite_leaves = jax.jit(partial(jax.tree.map, all_finite))
