"""Callbacks that set the learning rate: through the multiplier in the state of `scale_by_learning_rate`."""

from collections.abc import Callable
from typing import Any

import jax

from ... import _check, schedules
from ..._check import ConfigError
from ..._state import TrainState
from ...transforms._decay import ScaleByLearningRateState
from ...transforms._hyperparams import placed_like, replace_nodes, set_multiplier
from ...transforms._plateau import PlateauState, plateau
from ._monitor import check_column, check_name, read
from ._protocol import LoopContext

# The schedules that a scheduler may name; the others are made of schedules.
_NAMES = [
    "constant",
    "linear",
    "cosine",
    "exponential",
    "step_decay",
    "polynomial",
    "piecewise",
    "rsqrt",
    "one_cycle",
    "sgdr",
]


class LearningRateScheduler:
    """Set the learning rate at the beginning of each epoch to a function of it.

    The compiled step stays as it is: what changes is a number in the optimizer's state. Meant for an optimizer
    with a constant learning rate. Where that is a schedule, the function is what it counts from: the rate is
    the function's value times the schedule's, over what the schedule was at the run's beginning. Where groups
    of parameters have rates of their own, it is the rate of the first, and the others keep their ratio to it.

    By name it is one of `fntrain.schedules` over epochs, whose arguments are `options`, so that `steps` are epochs
    and the first has number 0; `"reduce_on_plateau"` makes a `ReduceLROnPlateau(**options)` instead.

    Args:
      function: from the epoch, counted from 1, to the learning rate, >= 0; or a name.
      scheduler: a name, in place of the function.
      **options: the arguments of what is named.

    Raises:
      ConfigError: if `function` is none, the name is unknown or `options` don't fit it; by `fit`, if the optimizer has
        no `scale_by_learning_rate`, its rate is 0 when the run begins, or the function returns anything but a
        number >= 0.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.5))
      >>> state = ft.init_state(task, {"w": np.float32(0)})
      >>> halving = ft.callbacks.LearningRateScheduler(lambda epoch: 0.5**epoch)
      >>> data = np.ones(4, np.float32)
      >>> ft.fit(task, state, data, epochs=3, callbacks=[halving], progress=False).history["learning_rate"]
      [0.5, 0.25, 0.125]
      >>> ft.callbacks.LearningRateScheduler(scheduler="reduce_on_plateau", factor=0.1, patience=5).factor
      0.1
    """

    adds_logs = False

    def __new__(
        cls,
        function: Callable[[int], Any] | str | None = None,
        *,
        scheduler: str | None = None,
        **options: Any,
    ) -> Any:
        """Make the one that is named."""
        if "reduce_on_plateau" in (function, scheduler):
            return ReduceLROnPlateau(**options)
        return super().__new__(cls)

    def __init__(
        self,
        function: Callable[[int], Any] | str | None = None,
        *,
        scheduler: str | None = None,
        **options: Any,
    ):
        if (function is None) == (scheduler is None):
            raise ConfigError(
                f"give `function` or `scheduler`, one of the two (got function={function!r}, scheduler={scheduler!r})"
            )
        name = scheduler if function is None else function
        if isinstance(name, str):
            function = _named(name, options)
        elif options:
            raise ConfigError(f"`{next(iter(options))}` is for a scheduler by name, and `function` is given")
        _check.function("function", function, "(epoch) -> learning rate")
        self.function: Any = function
        self._base: float | None = None

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start anew."""
        nodes(ctx.state)
        self._base = None

    def on_epoch_begin(self, ctx: LoopContext) -> None:
        """Set the rate of the epoch."""
        if self._base is None:
            first = nodes(ctx.state)[0]
            if not first.learning_rate > 0:
                raise ConfigError(
                    "LearningRateScheduler multiplies the optimizer's learning rate, which is 0 at the beginning: "
                    "give the optimizer a constant rate > 0"
                )
            self._base = float(first.learning_rate / first.multiplier)
        rate = jax.device_get(self.function(ctx.epoch))
        _check.number(f"function({ctx.epoch})", rate, at_least=0)
        ctx.state = set_multiplier(ctx.state, float(rate) / self._base)

    def state(self) -> dict[str, Any]:
        """The rate that the function's value is divided by."""
        return {"base": self._base}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self._base = state["base"]


def _named(name: str, options: dict[str, Any]) -> Callable[[int], Any]:
    _check.one_of("scheduler", name, ["reduce_on_plateau", *_NAMES])
    try:
        schedule = getattr(schedules, name)(**options)
    except TypeError as error:
        raise ConfigError(f"`scheduler` {name!r} of `fntrain.schedules`: {error}") from None

    def function(epoch: int) -> Any:
        with jax.transfer_guard("allow"):  # one number an epoch, of arithmetic on the host's side
            return schedule(epoch - 1)

    return function


class ReduceLROnPlateau:
    r"""Multiply the learning rate by `factor` when a column has not improved for `patience` epochs in a row.

    .. math:: \eta \leftarrow \max(f\, \eta,\ \eta_{\min})

    The compiled step stays as it is: what changes is a number in the optimizer's state. A schedule goes on
    below it, and may take the rate below `min_lr` itself. Don't combine it with `LearningRateScheduler`, which
    sets the rate.

    Args:
      monitor: a column of the epoch's logs.
      factor: > 0 and < 1.
      patience: the rate is reduced at this many epochs in a row without an improvement, >= 1; then the count
        begins anew.
      mode: `"min"` or `"max"`.
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
        mode: str = "min",
        min_delta: float = 0.0,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ):
        _check.number("min_delta", min_delta, at_least=0)  # by our name for it, not the rule's
        _check.number("min_lr", min_lr, at_least=0)
        self.monitor = check_name(monitor)
        self.rule = plateau(factor, patience, rtol=0.0, atol=min_delta, cooldown=cooldown, mode=mode)
        self.factor, self.min_lr = float(factor), float(min_lr)
        self._checks: PlateauState = self.rule.init()

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start anew."""
        nodes(ctx.state)
        check_column(ctx, self.monitor)
        self._checks = self.rule.init()

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Check."""
        before = self._checks.scale
        self._checks, scale = self.rule.update(self._checks, read(ctx, self.monitor))
        if scale < before:
            opt_state = replace_nodes(ctx.state.opt_state, ScaleByLearningRateState, self._reduced)
            ctx.state = ctx.state.replace(opt_state=opt_state)

    def _reduced(self, node: ScaleByLearningRateState) -> ScaleByLearningRateState:
        rate, multiplier = map(float, jax.device_get((node.learning_rate, node.multiplier)))
        factor = self.factor
        if self.min_lr > 0:
            factor = max(factor, min(1.0, self.min_lr / rate)) if rate > 0 else 1.0
        return node._replace(multiplier=placed_like(multiplier * factor, node.multiplier))

    def state(self) -> dict[str, Any]:
        """Best, count and cooldown; the rate itself is in the optimizer's state."""
        return self._checks._asdict()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self._checks = PlateauState(**state)


def nodes(state: TrainState) -> list[ScaleByLearningRateState]:
    """The states of all `scale_by_learning_rate` in the optimizer, on the host.

    Raises:
      ConfigError: if there is none.
    """
    found: list[ScaleByLearningRateState] = []
    replace_nodes(state.opt_state, ScaleByLearningRateState, found.append)
    if not found:
        raise ConfigError(
            "the optimizer has no learning rate that a callback can set: use one of `fntrain.optimizers`, or end the "
            "chain in `fntrain.transforms.scale_by_learning_rate(rate)`, which optax's transforms go with: "
            "`fntrain.chain(optax.scale_by_adam(), fntrain.transforms.scale_by_learning_rate(1e-3))`"
        )
    return jax.device_get(found)
