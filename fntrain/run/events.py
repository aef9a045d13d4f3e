"""The events of a run: what `fit` calls, and when."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.check import did_you_mean
from .._core.errors import ConfigError
from .._core.made import Made
from .._core.typing import PyTree
from ..protocols import Tracker
from .callback import EVENTS as EVENTS, events_of
from .context import LoopContext
from .tracking import Tracking

_KERAS = {"on_train_begin": "on_fit_begin", "on_train_end": "on_fit_end"}


class CallbackList(Made):
    """Several callbacks as one, called in order; lists nest.

    A callback whose state has to survive a resume has two more methods, `state() -> dict` of numbers, text and
    arrays, and `restore(state)`, which is called after `on_fit_begin`. At `on_fit_begin` a callback starts
    anew, so that one instance may serve several runs, one after another. `close()` is called if a run fails.
    What such a state is of, a third method says, `watches() -> dict` of text and numbers: a column, a directory. A
    resumed run finds the state of a callback by its class and by that; of a callback that watches something else
    now, the state is left, with a warning, and it starts anew.

    Methods in Keras's form do as well: `on_epoch_begin` and `on_epoch_end` whose first parameter is `epoch` get the
    epoch, counted from 0 as there, and the logs; `on_train_begin` and `on_train_end` get the logs.

    Args:
      callbacks: objects with methods named as `EVENTS`, each taking the LoopContext; or plain functions of the
        epoch's logs, called at the end of an epoch, whose returned dict, if any, is merged into them; or Trackers
        (`fntrain.protocols.Tracker`), which are given the rows.

    Raises:
      ConfigError: if one is neither, such as a class instead of its instance; if a method takes other arguments, or
        has a name that no event has; if it is a callback of Keras's own, which acts on a Keras model.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": np.float32(0)})
      >>> ctx = ft.callbacks.LoopContext(task, state)
      >>> callbacks = ft.callbacks.CallbackList([ft.callbacks.EarlyStopping("loss", patience=2)])
      >>> callbacks.on_fit_begin(ctx)
      >>> for ctx.epoch, loss in enumerate([0.5, 0.4, 0.6, 0.7, 0.1], 1):
      ...     ctx.logs = {"epoch": ctx.epoch, "loss": loss}
      ...     callbacks.on_epoch_end(ctx)
      ...     if ctx.stop_reason:
      ...         break
      >>> ctx.epoch, ctx.stop_reason
      (4, 'loss has not improved for 2 epochs: the best is 0.4, of epoch 2')
    """

    def __init__(self, callbacks: Iterable[Any] = ()):
        self.callbacks: list[Any] = []
        for callback in callbacks:
            self.callbacks += (
                callback.callbacks if isinstance(callback, CallbackList) else [_tracked(callback)]
            )
        # Looked up once: an event that nobody listens to costs nothing in the loop.
        self._listeners: dict[str, list[Callable[[LoopContext], Any]]] = {event: [] for event in EVENTS}
        for callback in self.callbacks:
            if isinstance(callback, type):
                raise ConfigError(f"`callbacks` must hold instances: write `{callback.__name__}()`")
            found = _listeners(callback)
            for event, listener in found:
                self._listeners[event].append(listener)
            if not found and callable(callback):
                self._listeners["on_epoch_end"].append(_on_epoch_logs(callback))
            elif not found:
                raise ConfigError(
                    f"`callbacks` must hold functions of the epoch's logs or objects with some of "
                    f"{', '.join(EVENTS)}, got {callback!r}"
                )

        # Whether any of them has to be called for every step, and not once for all that one dispatch takes.
        self.needs_every_step: bool = any(
            getattr(callback, "needs_every_step", "on_step_end" in events_of(callback))
            for callback in self.callbacks
        )
        # Whether any of them may go back to a saved state.
        self.rolls_back: bool = any(getattr(callback, "rolls_back", False) for callback in self.callbacks)
        # Whether any of them reads `ctx.last_batch`, which costs the memory of one batch.
        self.wants_batch: bool = any(getattr(callback, "wants_batch", False) for callback in self.callbacks)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.callbacks)

    def listens(self, event: str) -> bool:
        """Whether any callback has this event."""
        return bool(self._listeners[event])

    @property
    def adds_logs(self) -> bool:
        """Whether any callback may add to an epoch's logs: all that see them may, but those who say they don't."""
        late = {"on_validation_end", "on_epoch_end"}
        return any(
            getattr(callback, "adds_logs", bool(late & set(events)) or not events)
            for callback in self.callbacks
            for events in [events_of(callback)]
        )

    def call(self, event: str, ctx: LoopContext) -> None:
        """Call everyone who listens to an event; an error gets a note that says whose it is."""
        for listener in self._listeners[event]:
            try:
                listener(ctx)
            except Exception as error:
                owner = getattr(listener, "__self__", listener)
                error.add_note(f"raised by the callback {_name(owner)} in {event}, at step {ctx.step}")
                raise
            if event in ("on_validation_end", "on_epoch_end"):
                _as_numbers(ctx.logs)
        if (
            event == "on_epoch_end"
        ):  # whoever wanted them has had them: a batch is not kept over the next epoch
            ctx.last_batch, ctx.histograms, ctx.samples = None, {}, {}

    def state(self) -> list[dict[str, Any]]:
        """The state of each callback that has one, with its name and what it watches."""
        return [
            {"callback": _name(c), "watches": _watches(c), "state": c.state()}
            for c in self.callbacks
            if _has_state(c)
        ]

    def restore(self, saved: list[dict[str, Any]], others: bool = False) -> list[str]:
        """Give each callback the state it had: that of its class and of what it watches.

        One that watches another thing now starts anew, and a warning says so.

        Args:
          saved: what `state` returned.
          others: whether there may be other callbacks than those that `saved` is of; they start anew.

        Returns:
          What is not as it was, a line each.

        Raises:
          ConfigError: if there are others, and they may not be.
        """
        mine = [callback for callback in self.callbacks if _has_state(callback)]
        left = list(saved)
        anew = [callback for callback in mine if not _found(callback, left)]
        changes: list[str] = []
        for callback in list(anew):
            before = next((entry for entry in left if entry["callback"] == _name(callback)), None)
            if before is not None:
                left.remove(before)
                anew.remove(callback)
                now = _text(_name(callback), _watches(callback))
                changes.append(f"{now} starts anew: before the resume it was {_text_of(before)}")
        if (anew or left) and not others:
            was = ", ".join(entry["callback"] for entry in saved) or "none"
            now = ", ".join(map(_name, mine)) or "none"
            raise ConfigError(
                f"`callbacks` with a state must be those the run was saved with: saved {was}; now {now}. Give the same "
                f'ones, or go on all the same with `fit(..., override=("callbacks",))`, where those that are new start '
                f"anew"
            )
        for change in changes:
            warnings.warn(f"`callbacks`: {change}", RuntimeWarning, stacklevel=4)
        changes += [f"{_text(_name(c), _watches(c))} is new" for c in anew]
        return changes + [f"{_text_of(entry)} is gone" for entry in left]

    def close(self, error: BaseException | None = None) -> None:
        """Let go of what callbacks hold (a live display, a file), each of them, after an error.

        A callback that fails in this is noted on the error, so that it does not hide it.
        """
        failures: list[Exception] = []
        for callback in self.callbacks:
            close = getattr(callback, "close", None)
            if callable(close):
                try:
                    close()
                except Exception as failure:
                    failures.append(failure)
        for failure in failures:
            if error is None:
                raise failure
            error.add_note(f"besides, a callback could not close: {failure!r}")

    def __getattr__(self, name: str) -> Any:
        if name in EVENTS:  # a list is a callback itself
            return lambda ctx: self.call(name, ctx)
        raise AttributeError(name)


def _tracked(callback: Any) -> Any:
    """A Tracker as a callback; what is one already, as it is."""
    if isinstance(callback, type) or not isinstance(callback, Tracker) or events_of(callback):
        return callback
    return Tracking(callback)


def _listeners(callback: Any) -> list[tuple[str, Callable[[LoopContext], Any]]]:
    """The events that an object listens to, and how each is called."""
    if any(base.__module__.split(".")[0] == "keras" for base in type(callback).__mro__):
        raise ConfigError(
            f"`callbacks`: {type(callback).__name__} is a callback of Keras, and acts on a Keras model; take the one "
            f"of `fntrain.callbacks`, or write a class with `def on_epoch_end(self, ctx)`"
        )
    methods = [name for name in dir(callback) if name.startswith("on_") and callable(getattr(callback, name))]
    for name in methods:
        if name not in EVENTS and name not in _KERAS:
            raise ConfigError(
                f"`callbacks`: nothing calls `{name}` of {_name(callback)}; the events are {', '.join(EVENTS)}"
                + did_you_mean(name, EVENTS)
            )
    found = [(event, _listener(callback, event)) for event in events_of(callback)]
    return found + [(_KERAS[name], _with_logs(callback, name)) for name in methods if name in _KERAS]


def _listener(callback: Any, event: str) -> Callable[[LoopContext], Any]:
    method = getattr(callback, event)
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # such as a built-in: called as it is
        return method
    if next(iter(signature.parameters), None) == "epoch":
        return _with_epoch(callback, method, signature)
    try:
        signature.bind(None)
    except TypeError:
        raise ConfigError(
            f"`callbacks`: `{event}` of {_name(callback)} must take one argument, the LoopContext, as in "
            f"`def {event}(self, ctx)`, got `{event}{signature}`"
        ) from None
    return method


def _with_epoch(
    callback: Any, method: Callable[..., Any], signature: inspect.Signature
) -> Callable[[LoopContext], None]:
    takes_logs = len(signature.parameters) > 1

    def listener(ctx: LoopContext) -> None:
        method(ctx.epoch - 1, *([ctx.logs] if takes_logs else []))

    listener.__qualname__ = _name(callback)
    return listener


def _with_logs(callback: Any, name: str) -> Callable[[LoopContext], None]:
    def listener(ctx: LoopContext) -> None:
        getattr(callback, name)(ctx.logs)

    listener.__qualname__ = _name(callback)
    return listener


def _as_numbers(logs: dict[str, Any]) -> None:
    """Make Python's numbers of scalars that a callback has added as arrays: all who come after read them."""
    for name, x in logs.items():
        if isinstance(x, jax.Array | np.ndarray | np.generic) and x.shape == () and _is_numeric(x.dtype):
            logs[name] = jax.device_get(x).item()


def _is_numeric(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)


def _has_state(callback: Any) -> bool:
    return callable(getattr(callback, "state", None)) and callable(getattr(callback, "restore", None))


def _watches(callback: Any) -> dict[str, Any]:
    """What a callback's state is of; nothing, if it does not say."""
    watches = getattr(callback, "watches", None)
    return dict(watches()) if callable(watches) else {}  # type: ignore[arg-type]


def _found(callback: Any, left: list[dict[str, Any]]) -> bool:
    """Restore a callback from the first entry that is its own, and take that out; False if there is none."""
    name, watched = _name(callback), _watches(callback)
    for entry in left:
        # The first version did not save what a state is of.
        if entry["callback"] == name and entry.get("watches", watched) == watched:
            left.remove(entry)
            callback.restore(entry["state"])
            return True
    return False


def _text(name: str, watches: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in watches.items())})" if watches else name


def _text_of(entry: dict[str, Any]) -> str:
    return _text(entry["callback"], entry.get("watches", {}))


def _name(callback: Any) -> str:
    callback = callback.tracker if isinstance(callback, Tracking) else callback
    return getattr(callback, "__qualname__", None) or type(callback).__name__


def _on_epoch_logs(function: Callable[[dict[str, Any]], Any]) -> Callable[[LoopContext], None]:
    def on_epoch_end(ctx: LoopContext) -> None:
        returned = function(ctx.logs)
        if returned is not None:
            if not isinstance(returned, dict):
                raise ConfigError(
                    f"callback `{getattr(function, '__name__', function)}` must return a dict of logs or None, "
                    f"got {type(returned).__name__}"
                )
            ctx.logs.update(returned)

    on_epoch_end.__qualname__ = _name(function)
    return on_epoch_end


@jax.jit
def last_of(stacked: PyTree) -> PyTree:
    """The last of stacked batches."""
    return jax.tree.map(lambda x: x[-1], stacked)
