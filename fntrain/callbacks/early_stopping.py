"""EarlyStopping: end a run that no longer improves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import sharding, tree
from .._core import check
from .._core.errors import ConfigError
from .._core.made import Made
from .._core.ranking import improves
from ..run.context import LoopContext, Mode
from ..run.monitor import Monitor
from ..run.rescue import finite_params
from ..show.text import best_text
from ..step import programs
from ..transforms.plateau import StopOnPlateauState, stop_on_plateau
from .by_member import of_each, picked


class EarlyStopping(Made):
    """Stop when a column has not improved for `patience` epochs in a row.

    The first epoch sets the best. An epoch improves if it is better than the best by more than `min_delta`;
    NaN and infinity never do. Best and count survive a resume.

    Where validations fall inside epochs (`validation_every`), a column of theirs is looked at in each of them, and
    patience counts validations. A column of the training is looked at when an epoch ends.

    Of a population each member is judged by its own value, and the run stops once every one's own run would have. What
    a member has come to after that is not looked at any more: with `restore_best` it ends as its own run does.

    Args:
      monitor: a column of the epoch's logs.
      patience: the run stops at this many epochs in a row without an improvement, >= 1.
      mode: `"min"` or `"max"`, which is better; `"auto"` is what the column's metric says.
      min_delta: the smallest change that counts, >= 0.
      restore_best: end with the parameters and the model state of the best epoch, of which a copy is kept on
        the device; however the run ends, as in Keras since its version 3. Parameters that are not finite are never
        the best. The optimizer's state, and what `run_dir` holds, are of the last step.
      start_from_epoch: how many epochs at the beginning are not looked at, >= 0.
      baseline: what has to be improved on: until a value is better than it by more than `min_delta`, the count of
        `patience` goes on through epochs that are the best so far, too. None asks for nothing.
      restore_best_weights: Keras's name for `restore_best`.

    Attributes:
      best: the best value so far, or None; of a population, `[N]`, NaN where there is none.
      best_epoch: its epoch, or None; of a population, `[N]`, 0 where there is none.
      best_step: its step, likewise.

    Raises:
      ConfigError: if an argument is out of range, or both names of one are given; by `fit`, before anything runs
        where that can be known, if there is no such column.

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

    References:
      Keras's `EarlyStopping`, whose `start_from_epoch` and `baseline` these are.
    """

    adds_logs = False

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        mode: Mode = "auto",
        min_delta: float = 0.0,
        restore_best: bool = False,
        *,
        start_from_epoch: int = 0,
        baseline: float | None = None,
        restore_best_weights: bool | None = None,
    ):
        stop_on_plateau(patience, min_delta)  # looked at before a run begins
        if restore_best and restore_best_weights is not None:
            raise ConfigError("give `restore_best` or `restore_best_weights`, not both: they are one")
        if baseline is not None:
            check.number("baseline", baseline)
        self._watched = Monitor(monitor, mode)
        self.monitor: str = monitor
        self.patience: int = int(patience)
        self.min_delta: float = float(min_delta)
        if restore_best_weights is not None:
            restore_best = check.flag("restore_best_weights", restore_best_weights)
        self.restore_best: bool = check.flag("restore_best", restore_best)
        self.start_from_epoch: int = check.integer("start_from_epoch", start_from_epoch, at_least=0)
        self.baseline: float | None = None if baseline is None else float(baseline)
        self._reset()

    def _reset(self) -> None:
        self._checks: StopOnPlateauState = stop_on_plateau(self.patience).init()
        self.best_epoch: Any = None
        self.best_step: Any = None
        self._inside = False  # whether it has looked at a validation inside an epoch
        self._weights: dict[str, Any] = {}  # of the best epoch, by path

    @property
    def best(self) -> Any:
        """The best value so far."""
        if np.ndim(self.best_epoch):
            return np.where(self.best_epoch > 0, self._checks.best, np.nan)
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

    def on_validation_end(self, ctx: LoopContext) -> None:
        """Check, if this is a validation inside an epoch."""
        if self._watched.column in ctx.validated:
            self._inside = True
            self._check(ctx)

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Check."""
        self._check(ctx)

    def _check(self, ctx: LoopContext) -> None:
        value = self._watched.each(ctx)
        if ctx.epoch <= self.start_from_epoch:
            return
        if self.restore_best:
            value = np.where(finite_params(ctx.state), value, np.nan)
        before = of_each(self._checks, value)
        after, _ = self._rule.update(before, value)
        if np.ndim(value):  # a member whose own run has stopped goes along, unseen
            stopped = before.bad_checks >= self.patience
            after = StopOnPlateauState(*(np.where(stopped, a, b) for a, b in zip(before, after)))
        improved = after.bad_checks == 0
        if np.any(improved):
            self._note(improved, ctx)
            if self.baseline is not None:
                short = improved & ~improves(value, self.baseline, self._watched.direction, self.min_delta)
                counted = np.minimum(before.bad_checks + np.int32(1), np.int32(self.patience))
                after = after._replace(bad_checks=np.where(short, counted, after.bad_checks))
        self._checks = after
        self._stop_if_due(ctx)

    def _note(self, improved: Any, ctx: LoopContext) -> None:
        """Note where the best is, and keep its weights; of a population, those of the members that have improved."""
        many = bool(np.ndim(improved))
        if many:
            known = (0, 0) if self.best_epoch is None else (self.best_epoch, self.best_step)
            epoch, step = of_each(known, improved)
            self.best_epoch, self.best_step = (
                np.where(improved, ctx.epoch, epoch),
                np.where(improved, ctx.step, step),
            )
        else:
            self.best_epoch, self.best_step = ctx.epoch, ctx.step
        if self.restore_best:
            now = dict(tree.items(_weights(ctx)))
            some = many and bool(self._weights)
            self._weights = _chosen(improved, now, self._weights) if some else programs.copied(now)

    def on_fit_end(self, ctx: LoopContext) -> None:
        """Put the best parameters back."""
        if self._weights:
            now = _weights(ctx)
            best = self._weights
            if np.ndim(self.best_epoch):
                best = _chosen(self.best_epoch > 0, best, dict(tree.items(now)))
            ctx.state = ctx.state.replace(**like(best, now))

    def _stop_if_due(self, ctx: LoopContext) -> None:
        if not np.all(self._checks.bad_checks >= self.patience):
            return
        what = "validation" if self._inside else "epoch"
        best = np.ravel(self._checks.best)  # the best of one run, or of each member
        first = int(np.argmin(best) if self._watched.direction == "min" else np.argmax(best))
        short = self.baseline is not None and not improves(
            float(best[first]), self.baseline, self._watched.direction, self.min_delta
        )
        on = f" on the baseline {self.baseline:g}" if short else ""
        of = f" in any of {len(best)} members" if np.ndim(self._checks.best) else ""
        reason = (
            f"{self.monitor} has not improved{on} for {self.patience} {what}{'s' * (self.patience > 1)}{of}"
        )
        if self.best_epoch is not None:
            epoch, step = np.ravel(self.best_epoch)[first], np.ravel(self.best_step)[first]
            where = f"step {step}" if self._inside else f"epoch {epoch}"
            reason += f": {best_text(best[first], where)}"
        ctx.stop(reason)

    def regroup(self, parents: np.ndarray) -> None:
        """Go on with what each member's parent had."""
        self._checks, self._weights = picked((self._checks, self._weights), parents)
        self.best_epoch, self.best_step = picked((self.best_epoch, self.best_step), parents)

    def watches(self) -> dict[str, Any]:
        """The column and which of its values are better, by which a resumed run knows its state again."""
        return self._watched.watches()

    def state(self) -> dict[str, Any]:
        """Best, count, and the weights of the best epoch."""
        return {
            "checks": self._checks._asdict(),
            "best_epoch": self.best_epoch,
            "best_step": self.best_step,
            "inside": self._inside,
            "weights": self._weights,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self._checks = StopOnPlateauState(**state["checks"])
        self.best_epoch = state["best_epoch"]
        self.best_step = state.get("best_step")  # the first version had none, nor validations inside epochs
        self._inside = state.get("inside", False)
        self._weights = state["weights"] if self.restore_best else {}
        if self.restore_best and self.best_epoch is not None and not self._weights:
            raise ConfigError(
                "`restore_best` must be False: the run that is resumed has kept no best weights"
            )


@jax.jit
def _chosen(which: jax.Array, these: dict[str, Any], those: dict[str, Any]) -> dict[str, Any]:
    """Of some members these arrays, of the others those."""

    def choice(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(which.reshape(which.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choice, these, those)


def _weights(ctx: LoopContext) -> dict[str, Any]:
    return {"params": ctx.state.params, "model_state": ctx.state.model_state}


def like(values: dict[str, Any], reference: Any) -> Any:
    """Arrays by path, from the device or a checkpoint, as fresh arrays in a tree's structure and places."""
    leaves = [sharding.put_like(values[path], x) for path, x in tree.items(reference)]
    return jax.tree.unflatten(jax.tree.structure(reference), leaves)
