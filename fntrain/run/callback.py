"""Callback: the events of a run, one method each, for who writes a callback of their own."""

from typing import Any

from .._core.made import Made
from .context import LoopContext

EVENTS = (
    "on_fit_begin",
    "on_epoch_begin",
    "on_step_end",
    "on_log",
    "on_validation_end",
    "on_epoch_end",
    "on_fit_end",
)
"""The events in their order; a callback is any object with some of these methods."""


class Callback(Made):
    """A callback to derive from: override the events that it is about; those that it leaves are not called.

    It prints as the call that made it, and so keeps what it was called with.

    Any object with some of these methods does as well. What more a callback may have, none of it needed:

    - `state() -> dict` of numbers, text and arrays, and `restore(state)`: what has to survive a resume. `watches()`
      says what such a state is of, so that a callback that watches something else starts anew.
    - `close()`: let go of files and displays, called if the run fails.
    - `adds_logs = False`: it adds no columns, so that monitors can be checked before anything runs.
    - `needs_every_step`: whether `on_step_end` is to be called for each step, and not for each dispatch; True unless
      it says otherwise.
    - `regroup(parents)`: what it remembers of each member of a population, it remembers of that member's parent from
      now on: a controller has replaced the members by `parents`, an array of their places before.
    - `wants_batch = True`: it reads `ctx.last_batch`. `rolls_back = True`: it may call `ctx.roll_back`.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> class StopAt(ft.callbacks.Callback):
      ...     adds_logs = False
      ...
      ...     def __init__(self, loss):
      ...         self.loss = loss
      ...
      ...     def on_epoch_end(self, ctx):
      ...         if ctx.logs["loss"] < self.loss:
      ...             ctx.stop(f"the loss is below {self.loss}")
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.25))
      >>> state = ft.init_state(task, {"w": np.float32(0)})
      >>> result = ft.fit(task, state, np.ones(4, np.float32), callbacks=[StopAt(0.1)], progress=False)
      >>> result.history["loss"], result.stop_reason
      ([1.0, 0.25, 0.0625], 'the loss is below 0.1')
    """

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Called once, before the first step: start anew, as one instance may serve several runs."""

    def on_epoch_begin(self, ctx: LoopContext) -> None:
        """Called before an epoch's first step, and before the first step of a run resumed inside it."""

    def on_step_end(self, ctx: LoopContext) -> None:
        """Called when a step has been sent to the device, which may still be at work on it: read nothing from there."""

    def on_log(self, ctx: LoopContext) -> None:
        """Called every `log_every` steps, one window late: `ctx.logs` are the means up to `ctx.logs["step"]`."""

    def on_validation_end(self, ctx: LoopContext) -> None:
        """Called when a validation is over: `ctx.logs` are its row, and inside an epoch `ctx.validated` its columns."""

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Called when an epoch is over: `ctx.logs` are its row, and what is added goes into the history."""

    def on_fit_end(self, ctx: LoopContext) -> None:
        """Called once, behind the last step and the last save, but not if the run has failed."""


def events_of(callback: Any) -> list[str]:
    """The events that an object listens to: of the base class's own methods, none."""
    return [event for event in EVENTS if _listens(callback, event)]


def _listens(callback: Any, event: str) -> bool:
    method = getattr(callback, event, None)
    return callable(method) and getattr(method, "__func__", None) is not vars(Callback)[event]
