"""LearningRateScheduler: the learning rate as a function of the epoch."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .. import schedules
from .._core import check
from .._core.errors import ConfigError
from .._core.made import Made
from ..run.context import LoopContext
from ..transforms.hyperparams import set_multiplier
from .by_member import picked
from .rate_nodes import nodes
from .reduce_lr import ReduceLROnPlateau

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


class LearningRateScheduler(Made):
    """Set the learning rate at the beginning of each epoch to a function of it.

    The compiled step stays as it is: what changes is a number in the optimizer's state. Meant for an optimizer
    with a constant learning rate. Where that is a schedule, the function is what it counts from: the rate is
    the function's value times the schedule's, over what the schedule was at the run's beginning. Where groups
    of parameters have rates of their own, it is the rate of the first, and the others keep their ratio to it. In a
    population it is the rate of every member, whatever it was; what a controller makes of a rate later stays in it.

    By name it is one of `fntrain.schedules` over epochs, whose arguments are `options`, so that `steps` are epochs
    and the first has number 0; a tuple is what `schedules.get` takes, likewise. `"reduce_on_plateau"` makes a
    `ReduceLROnPlateau(**options)` instead.

    Args:
      function: from the epoch, counted from 1, to the learning rate, >= 0; or a name, or `(name, *numbers)`.
      scheduler: a name or tuple, in place of the function.
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
        function: Callable[[int], Any] | str | tuple[Any, ...] | None = None,
        *,
        scheduler: str | tuple[Any, ...] | None = None,
        **options: Any,
    ) -> Any:
        """Make the one that is named."""
        if "reduce_on_plateau" in (function, scheduler):
            return ReduceLROnPlateau(**options)
        return super().__new__(cls)

    def __init__(
        self,
        function: Callable[[int], Any] | str | tuple[Any, ...] | None = None,
        *,
        scheduler: str | tuple[Any, ...] | None = None,
        **options: Any,
    ):
        if (function is None) == (scheduler is None):
            raise ConfigError(
                f"give `function` or `scheduler`, one of the two (got function={function!r}, scheduler={scheduler!r})"
            )
        name = scheduler if function is None else function
        if isinstance(name, str | tuple):
            function = _named(name, options)
        elif options:
            raise ConfigError(f"`{next(iter(options))}` is for a scheduler by name, and `function` is given")
        check.function("function", function, "(epoch) -> learning rate")
        self.function: Any = function
        self._base: Any = None  # a number; of a population, `[N]`

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start anew."""
        nodes(ctx.state)
        self._base = None

    def on_epoch_begin(self, ctx: LoopContext) -> None:
        """Set the rate of the epoch."""
        if self._base is None:
            first = nodes(ctx.state)[0]
            if not np.all(first.learning_rate > 0):
                raise ConfigError(
                    "LearningRateScheduler multiplies the optimizer's learning rate, which is 0 at the beginning: "
                    "give the optimizer a constant rate > 0"
                )
            self._base = np.asarray(first.learning_rate / first.multiplier, np.float64)
        rate = jax.device_get(self.function(ctx.epoch))
        check.number(f"function({ctx.epoch})", rate, at_least=0)
        ctx.state = set_multiplier(ctx.state, float(rate) / self._base)

    def regroup(self, parents: np.ndarray) -> None:
        """Go on with what each member's parent had."""
        self._base = picked(self._base, parents)

    def state(self) -> dict[str, Any]:
        """The rate that the function's value is divided by."""
        return {"base": self._base}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self._base = state["base"]


def _named(name: str | tuple[Any, ...], options: dict[str, Any]) -> Callable[[int], Any]:
    try:
        if isinstance(name, tuple):
            schedule = schedules.get(name, **options)
        else:
            check.one_of("scheduler", name, ["reduce_on_plateau", *_NAMES])
            schedule = getattr(schedules, name)(**options)
    except TypeError as error:
        raise ConfigError(f"`scheduler` {name!r} of `fntrain.schedules`: {error}") from None

    def function(epoch: int) -> Any:
        with jax.transfer_guard("allow"):  # one number an epoch, of arithmetic on the host's side
            return schedule(epoch - 1)

    return function
