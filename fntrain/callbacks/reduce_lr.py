"""ReduceLROnPlateau: a lower learning rate where a column no longer improves."""

import functools
from typing import Any

import numpy as np

from .._core import check
from .._core.made import Made
from ..run.context import LoopContext, Mode
from ..run.monitor import Monitor
from ..sharding.processes import to_host
from ..transforms.decay import ScaleByLearningRateState
from ..transforms.hyperparams import placed_like, replace_nodes
from ..transforms.plateau import PlateauState, plateau
from .by_member import of_each, picked
from .rate_nodes import nodes


class ReduceLROnPlateau(Made):
    r"""Multiply the learning rate by `factor` when a column has not improved for `patience` epochs in a row.

    Where validations fall inside epochs (`validation_every`), a column of theirs is looked at in each of them, and
    patience and cooldown count validations.

    .. math:: \eta \leftarrow \max(f\, \eta,\ \eta_{\min})

    The compiled step stays as it is: what changes is a number in the optimizer's state. A schedule goes on
    below it, and may take the rate below `min_lr` itself. Don't combine it with `LearningRateScheduler`, which
    sets the rate. Of a population, each member's rate is reduced when that member's own value no longer improves.

    Args:
      monitor: a column of the epoch's logs.
      factor: > 0 and < 1.
      patience: the rate is reduced at this many epochs in a row without an improvement, >= 1; then the count
        begins anew.
      mode: `"min"` or `"max"`, which is better; `"auto"` is what the column's metric says.
      min_delta: the smallest change that counts as an improvement, >= 0. NaN and infinity are none.
      cooldown: how many epochs after a reduction are not counted, >= 0.
      min_lr: the rate is not reduced below this, >= 0.

    Raises:
      ConfigError: if an argument is out of range; by `fit`, if the optimizer has no `scale_by_learning_rate` or there
        is no such column.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(1.0))
      >>> state = ft.init_state(task, {"w": np.float32(0)})  # goes from 0 to 2 and back
      >>> plateau = ft.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=2)
      >>> data = np.ones(4, np.float32)
      >>> ft.fit(task, state, data, epochs=5, callbacks=[plateau], progress=False).history["learning_rate"]
      [1.0, 1.0, 1.0, 0.5, 0.5]

    References:
      `torch.optim.lr_scheduler.ReduceLROnPlateau`, whose cooldown this is; its patience acts one epoch later.
    """

    adds_logs = False

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        mode: Mode = "auto",
        min_delta: float = 0.0,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ):
        check.number("min_delta", min_delta, at_least=0)  # by our name for it, not the rule's
        check.number("min_lr", min_lr, at_least=0)
        self._watched = Monitor(monitor, mode)
        self._rule_for = functools.partial(
            plateau, factor, patience, rtol=0.0, atol=min_delta, cooldown=cooldown
        )
        self._checks: PlateauState = self._rule_for().init()  # looked at before a run begins
        self.monitor: str = monitor
        self.factor: float = float(factor)
        self.min_lr: float = float(min_lr)
        self._bases: list[tuple[Any, Any]] = []  # of each rate: when it was last reduced, and from what

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start anew."""
        nodes(ctx.state)
        self._watched.begin(ctx)
        self._rule = self._rule_for(mode=self._watched.direction)
        self._checks = self._rule.init()
        self._bases = []

    def on_validation_end(self, ctx: LoopContext) -> None:
        """Check, if this is a validation inside an epoch."""
        if self._watched.column in ctx.validated:
            self._check(ctx)

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Check."""
        self._check(ctx)

    def _check(self, ctx: LoopContext) -> None:
        value = self._watched.each(ctx)
        before = of_each(self._checks, value)
        self._checks, scale = self._rule.update(before, value)
        due = scale < before.scale
        if np.any(due):
            known, self._bases = iter(self._bases), []

            def reduced(node: ScaleByLearningRateState) -> ScaleByLearningRateState:
                return self._reduced(node, next(known, (-1, 0.0)), due)

            opt_state = replace_nodes(ctx.state.opt_state, ScaleByLearningRateState, reduced)
            ctx.state = ctx.state.replace(opt_state=opt_state)

    def _reduced(
        self, node: ScaleByLearningRateState, known: tuple[Any, Any], due: Any
    ) -> ScaleByLearningRateState:
        count, *numbers = to_host((node.count, node.learning_rate, node.multiplier))
        rate, multiplier = (np.asarray(x, np.float64) for x in numbers)
        # The rate in the state is that of the last update, and knows nothing of a reduction since.
        base = np.where(count == known[0], known[1], _ratio(rate, multiplier, 0.0))
        self._bases.append((count, base))
        floor = np.minimum(multiplier, _ratio(self.min_lr, base, np.inf))
        lower = multiplier * self.factor
        lower = lower if self.min_lr == 0 else np.maximum(lower, floor)
        return node._replace(multiplier=placed_like(np.where(due, lower, multiplier), node.multiplier))

    def regroup(self, parents: np.ndarray) -> None:
        """Go on with what each member's parent had."""
        self._checks = picked(self._checks, parents)
        self._bases = [(picked(count, parents), picked(base, parents)) for count, base in self._bases]

    def watches(self) -> dict[str, Any]:
        """The column and which of its values are better, by which a resumed run knows its state again."""
        return self._watched.watches()

    def state(self) -> dict[str, Any]:
        """Best, count and cooldown, and the rates to reduce; the multiplier itself is in the optimizer's state."""
        return {"checks": self._checks._asdict(), "bases": self._bases}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        # The first version saved the checks alone.
        self._checks = PlateauState(**state.get("checks", state))
        self._bases = [(np.asarray(count), np.asarray(base)) for count, base in state.get("bases", ())]


def _ratio(a: Any, b: np.ndarray, otherwise: float) -> np.ndarray:
    return np.where(b > 0, a / np.where(b > 0, b, 1.0), otherwise)
