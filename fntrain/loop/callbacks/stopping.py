"""Callbacks that end a run: no more improvement, no more numbers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import _check, _step, tree
from ..._check import ConfigError, NonFiniteError
from ..._provenance import bad_step
from ...transforms._base import recorded
from ...transforms._guard import all_finite
from ...transforms._plateau import StopOnPlateauState, stop_on_plateau
from ._monitor import check_column, check_name, read
from ._protocol import LoopContext


class EarlyStopping:
    """Stop when a column has not improved for `patience` epochs in a row.

    The first epoch sets the best. An epoch improves if it is better than the best by more than `min_delta`;
    NaN and infinity never do. Best and count survive a resume.

    Args:
      monitor: a column of the epoch's logs.
      patience: the run stops at this many epochs in a row without an improvement, >= 1.
      mode: `"min"` or `"max"`.
      min_delta: the smallest change that counts, >= 0.
      restore_best: end with the parameters and the model state of the best epoch, of which a copy is kept on
        the device; however the run ends. The optimizer's state, and what `run_dir` holds, are of the last step.

    Attributes:
      best: the best value so far, in float32, or None.
      best_epoch: its epoch, or None.

    Raises:
      ConfigError: if an argument is out of range; by `fit`, before anything runs where that can be known, if there
        is no such column.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(2.0))
      >>> state = ft.init_state(task, {"w": np.float32(0)})  # diverges
      >>> stopping = ft.callbacks.EarlyStopping("loss", patience=3, restore_best=True)
      >>> data = np.ones(4, np.float32)
      >>> result = ft.fit(task, state, data, epochs=50, callbacks=[stopping], progress=False)
      >>> len(result.history["loss"]), stopping.best_epoch, float(result.state.params["w"])
      (4, 1, 4.0)
      >>> result.stop_reason
      'loss has not improved for 3 epochs: the best is 1, of epoch 1'
    """

    adds_logs = False

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        mode: str = "min",
        min_delta: float = 0.0,
        restore_best: bool = False,
    ):
        self.monitor = check_name(monitor)
        self.rule = stop_on_plateau(patience, min_delta, mode)
        self.patience = int(patience)
        self.restore_best = restore_best
        self._reset()

    def _reset(self) -> None:
        self._checks: StopOnPlateauState = self.rule.init()
        self.best_epoch: int | None = None
        self._weights: dict[str, Any] = {}  # of the best epoch, by path

    @property
    def best(self) -> float | None:
        """The best value so far."""
        return None if self.best_epoch is None else float(self._checks.best)

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start anew."""
        self._reset()
        check_column(ctx, self.monitor)

    def on_epoch_begin(self, ctx: LoopContext) -> None:
        """Stop again, if a run that had stopped is resumed with no more patience than it had."""
        self._stop_if_due(ctx)

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Check."""
        self._checks, _ = self.rule.update(self._checks, read(ctx, self.monitor))
        if self._checks.bad_checks == 0:
            self.best_epoch = ctx.epoch
            if self.restore_best:
                self._weights = dict(tree.items(_step.copied(_weights(ctx))))
        self._stop_if_due(ctx)

    def on_fit_end(self, ctx: LoopContext) -> None:
        """Put the best parameters back."""
        if self._weights:
            best = like(self._weights, _weights(ctx))
            ctx.state = ctx.state.replace(**best)

    def _stop_if_due(self, ctx: LoopContext) -> None:
        if self._checks.bad_checks >= self.patience:
            reason = f"{self.monitor} has not improved for {self.patience} epoch{'s' * (self.patience > 1)}"
            if self.best is not None:
                reason += f": the best is {self.best:.6g}, of epoch {self.best_epoch}"
            ctx.stop(reason)

    def state(self) -> dict[str, Any]:
        """Best, count, and the weights of the best epoch."""
        return {
            "checks": self._checks._asdict(),
            "best_epoch": self.best_epoch,
            "weights": self._weights,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self._checks = StopOnPlateauState(**state["checks"])
        self.best_epoch = state["best_epoch"]
        self._weights = state["weights"] if self.restore_best else {}
        if self.restore_best and self.best_epoch is not None and not self._weights:
            raise ConfigError(
                "`restore_best` must be False: the run that is resumed has kept no best weights"
            )


def _weights(ctx: LoopContext) -> dict[str, Any]:
    return {"params": ctx.state.params, "model_state": ctx.state.model_state}


def like(values: dict[str, Any], reference: Any) -> Any:
    """Arrays by path, from the device or a checkpoint, as fresh arrays in a tree's structure and places."""
    leaves = [
        # Committed to a device only if what they replace is, or the compiled step would compile again.
        jax.device_put(values[path], x.sharding if getattr(x, "committed", True) else None)
        for path, x in tree.items(reference)
    ]
    return _step.copied(jax.tree.unflatten(jax.tree.structure(reference), leaves))


class NaNGuard:
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

    Args:
      patience: how many bad steps in a row are too many, >= 1.
      action: `"stop"`, `"raise"` or `"rollback"`.

    Raises:
      ConfigError: if `patience` is no integer >= 1, or `action` another word; by `fit`, if there is nothing to roll
        back to for want of a run directory.
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
        _check.integer("patience", patience, at_least=1)
        _check.one_of("action", action, ("stop", "raise", "rollback"))
        self.patience = patience
        self.action = action
        self._reset()

    def _reset(self) -> None:
        # Bad steps in a row, the most so far, and as of the last call the updates, the skips and the steps.
        self._counts: Any = np.zeros(5, np.int32)
        self._late: Any = None
        self._reason: str | None = None

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start anew."""
        if self.action == "rollback" and ctx.run_dir is None:
            raise ConfigError("`NaNGuard(action='rollback')` needs a run directory: `fit(..., run_dir=...)`")
        self._reset()

    def on_step_end(self, ctx: LoopContext) -> None:
        """Count, on the device."""
        if isinstance(self._counts, np.ndarray):  # at the beginning, and behind a resume
            where = ctx.state.step.sharding if ctx.state.step.committed else None
            self._counts = jax.device_put(self._counts, where)
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
        if counts is None or (most := int(jax.device_get(counts)[1])) < self.patience:
            return
        flags = dict(tree.items(jax.device_get(_finite_leaves(ctx.state.params))))
        bad = [path for path, finite in flags.items() if not finite]
        guarded = any(hasattr(node, "bad") for _, node in tree.named_nodes(ctx.state.opt_state))
        first = bad_step(ctx.task, ctx.state) if guarded else None
        what = "skipped, as not finite" if first is not None or not guarded else "skipped"  # spikes, that is
        what = f"not finite: params {tree.some(bad)}" if bad else what
        reason = f"{most} step{'s' * (most > 1)} in a row {'was' if most == 1 else 'were'} {what}"
        reason += f"; most recently, {first}" if first is not None else ""
        ctx.bad_steps = True
        if self.action == "rollback":
            self._reset()
            ctx.roll_back(reason)
        else:
            self._reason = reason
            ctx.stop(reason)

    def state(self) -> dict[str, Any]:
        """The counts."""
        return {"counts": self._counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self._counts = state["counts"]


@jax.jit
def _count(counts: jax.Array, state: Any) -> jax.Array:
    in_a_row, most, updates, total, steps = counts
    skipped = recorded(state.opt_state).get("skipped")
    if skipped is None:
        taken = jnp.where(
            in_a_row > 0, state.step - steps, 1
        )  # in a call before which all was well, one at least
        in_a_row = jnp.where(all_finite(tree.split(state.params)[0]), 0, in_a_row + taken)
    else:
        nodes = (node for _, node in tree.named_nodes(state.opt_state) if hasattr(node, "total_skipped"))
        now = next(nodes).total_skipped
        # A step inside an open accumulation window is neither good nor bad.
        updated = state.updates != updates
        in_a_row = jnp.where(updated, (skipped > 0).astype(jnp.int32), in_a_row + now - total)
        total = now
    return jnp.stack([in_a_row, jnp.maximum(most, in_a_row), state.updates, total, state.step])


_finite_leaves = jax.jit(partial(jax.tree.map, all_finite))
