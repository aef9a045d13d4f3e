"""SIGINT, SIGTERM and SIGHUP as flags that a loop polls, so that a run ends at a step's edge and loses nothing."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

PATIENCE = 0.5  # seconds that data which is waited for may still come, once a signal has


class Interrupted(KeyboardInterrupt):
    """A signal came while data was waited for, and the data did not."""


class Signals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP only sets `received`, and says so; a second ends the process.

    "Ends" is what the signal did before: the caller's own handler, or the end of the process. A second SIGINT
    is a KeyboardInterrupt where somebody sits at a prompt or in a notebook. A signal that was ignored
    (`nohup`, a shell's background) stays ignored. Outside the main thread, where Python delivers no signals,
    it does nothing. A handler of the caller's own is called for the first signal too, at the exit: when all is saved.

    Whoever waits for something that may never come does so in `with signals.waiting:`, out of which a signal raises
    `Interrupted`, half a second later: what comes by then is not lost.

    In a run of several processes (`jax.distributed`) SIGTERM belongs to JAX, which agrees with the other
    processes on a poll that all of them stop at, whichever was told; the others are passed on to it. `poll` then
    has to be called equally often everywhere, a wait is not broken, and a second signal ends nothing.

    Args:
      said: what happens after the first signal, for a line on the standard error; None says nothing.

    Attributes:
      received: the signal, or None.
      waiting: a context manager, for waits in the main thread.
    """

    def __init__(self, said: str | None = None):
        self.received: int | None = None
        self.waiting: contextlib.AbstractContextManager[None] = _Waiting(self)
        self._said = said
        self._previous: dict[int, Any] = {}
        self._agreed = False  # whether several processes have to stop together
        self._told: int | None = None
        self._polls = 0
        self._lock = threading.Lock()
        self._waits = False  # whether the main thread is in `waiting`
        self._breaks = False  # whether the next signal is the timer's
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Signals":
        self._agreed = jax.distributed.is_initialized()
        if threading.current_thread() is threading.main_thread():
            names = ["SIGINT", "SIGHUP"] if self._agreed else ["SIGINT", "SIGTERM", "SIGHUP"]
            for number in [getattr(signal, name) for name in names if hasattr(signal, name)]:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        own = self._previous.get(self.received) if self.received is not None else None
        self._previous = {}
        if callable(own) and own is not signal.default_int_handler:
            own(self.received, None)

    def poll(self) -> bool:
        """Whether the run is to stop, asked after every dispatch; of several processes all say so at the same one."""
        if self._agreed and self.received is None:
            # Not the step, which moves by chunks: JAX looks for the number after the highest it has seen.
            self._polls += 1
            if multihost_utils.reached_preemption_sync_point(self._polls):
                self.received = self._told or signal.SIGTERM
        return self.received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._agreed:
            if self._told is None:
                self._say(number)
            self._told = number
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.received is None:
            self.received = number
            if self._waits:
                self._lose_patience_later(number)
            else:
                self._stand_aside()
            self._say(number)
        elif self._breaks:  # our own timer's
            self._breaks = False
            if self._waits:
                raise Interrupted
        else:  # a second one, while the data may still come
            self._stand_aside()
            signal.raise_signal(number)

    def _stand_aside(self) -> None:
        """Let the next signal do what it did before."""
        # The system's default action needs no interpreter, which may be deep in a compilation.
        prompt = hasattr(sys, "ps1")
        for number, handler in self._previous.items():
            ends = handler is None or (handler is signal.default_int_handler and not prompt)
            signal.signal(number, signal.SIG_DFL if ends else handler)

    def _lose_patience_later(self, number: int) -> None:
        main = threading.current_thread().ident

        def lose_patience() -> None:
            with self._lock:
                if self._waits:
                    self._breaks = True
                    # Nothing but a signal reaches a thread that sleeps in the system.
                    signal.pthread_kill(main, number)  # type: ignore[arg-type]

        self._timer = threading.Timer(PATIENCE, lose_patience)
        self._timer.daemon = True
        self._timer.start()

    def _begin_wait(self) -> None:
        if self._agreed or not self._previous or threading.current_thread() is not threading.main_thread():
            return
        if self.received is not None:
            raise Interrupted
        self._waits = True

    def _end_wait(self) -> None:
        if not self._waits or threading.current_thread() is not threading.main_thread():
            return
        with self._lock:
            self._waits = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            while self._breaks:  # on its way here; it must not meet another handler than ours
                time.sleep(0.001)
            self._stand_aside()

    def _say(self, number: int) -> None:
        if self._said is None:
            return
        text = f"fntrain: {signal.Signals(number).name}: {self._said}\n"
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except Exception:  # closed, or in the middle of writing something else
            with contextlib.suppress(OSError):
                os.write(2, text.encode())


class _Waiting(contextlib.AbstractContextManager[None]):
    def __init__(self, signals: Signals):
        self._signals = signals

    def __enter__(self) -> None:
        self._signals._begin_wait()

    def __exit__(self, *exception: object) -> None:
        self._signals._end_wait()
