"""EarlyStopping: end a run that no longer improves."""

from typing import Any

import jax

from .. import sharding, tree
from .._core import check
from .._core.errors import ConfigError
from ..run.context import LoopContext, Mode
from ..step import programs
from ..transforms.plateau import StopOnPlateauState, stop_on_plateau
from .monitor import Monitor


class EarlyStopping:
    """Stop when a column has not improved for `patience` epochs in a row.

    The first epoch sets the best. An epoch improves if it is better than the best by more than `min_delta`;
    NaN and infinity never do. Best and count survive a resume.

    Args:
      monitor: a column of the epoch's logs.
      patience: the run stops at this many epochs in a row without an improvement, >= 1.
      mode: `"min"` or `"max"`, which is better; `"auto"` is what the column's metric says.
      min_delta: the smallest change that counts, >= 0.
      restore_best: end with the parameters and the model state of the best epoch, of which a copy is kept on
        the device; however the run ends. The optimizer's state, and what `run_dir` holds, are of the last step.

    Attributes:
      best: the best value so far, or None.
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
        mode: Mode = "auto",
        min_delta: float = 0.0,
        restore_best: bool = False,
    ):
        stop_on_plateau(patience, min_delta)  # looked at before a run begins
        self._watched = Monitor(monitor, mode)
        self.monitor: str = monitor
        self.patience: int = int(patience)
        self.min_delta: float = float(min_delta)
        self.restore_best = check.flag("restore_best", restore_best)
        self._reset()

    def _reset(self) -> None:
        self._checks: StopOnPlateauState = stop_on_plateau(self.patience).init()
        self.best_epoch: int | None = None
        self._weights: dict[str, Any] = {}  # of the best epoch, by path

    @property
    def best(self) -> float | None:
        """The best value so far."""
        return None if self.best_epoch is None else float(self._checks.best)

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start anew."""
        self._watched.begin(ctx)
        self._reset()
        self._rule = stop_on_plateau(self.patience, self.min_delta, self._watched.direction)
        self._checks = self._rule.init()

    def on_epoch_begin(self, ctx: LoopContext) -> None:
        """Stop again, if a run that had stopped is resumed with no more patience than it had."""
        self._stop_if_due(ctx)

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Check."""
        self._checks, _ = self._rule.update(self._checks, self._watched.read(ctx))
        if self._checks.bad_checks == 0:
            self.best_epoch = ctx.epoch
            if self.restore_best:
                self._weights = dict(tree.items(programs.copied(_weights(ctx))))
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
    leaves = [sharding.put_like(values[path], x) for path, x in tree.items(reference)]
    return jax.tree.unflatten(jax.tree.structure(reference), leaves)
