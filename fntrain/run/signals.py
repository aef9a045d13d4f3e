"""SIGINT and SIGTERM as flags that a loop polls, so that a run ends at a step's edge and loses nothing."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Signals:
    """While entered, the first SIGINT or SIGTERM only sets `received`; a second one ends the process at once.

    "At once" is what the signal did before: the caller's own handler, or the end of the process. A second SIGINT
    is a KeyboardInterrupt where somebody sits at a prompt or in a notebook. A signal that was ignored
    (`nohup`, a shell's background) stays ignored. Outside the main thread, where Python delivers no signals,
    it does nothing.

    In a run of several processes (`jax.distributed`) SIGTERM belongs to JAX, which agrees with the other
    processes on a poll that all of them stop at, whichever was told; SIGINT is passed on to it. `poll` then
    has to be called equally often everywhere, and a second signal ends nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._agreed = False  # whether several processes have to stop together
        self._interrupted = False
        self._polls = 0

    def __enter__(self) -> "Signals":
        self._agreed = jax.distributed.is_initialized()
        if threading.current_thread() is threading.main_thread():
            for number in [signal.SIGINT] if self._agreed else [signal.SIGINT, signal.SIGTERM]:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def poll(self) -> bool:
        """Whether the run is to stop, asked after every dispatch; of several processes all say so at the same one."""
        if self._agreed and self.received is None:
            # Not the step, which moves by chunks: JAX looks for the number after the highest it has seen.
            self._polls += 1
            if multihost_utils.reached_preemption_sync_point(self._polls):
                self.received = signal.SIGINT if self._interrupted else signal.SIGTERM
        return self.received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._agreed:
            self._interrupted = True
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.received = number
        # The system's default action needs no interpreter, which may be deep in a compilation.
        prompt = hasattr(sys, "ps1")
        for other, handler in self._previous.items():
            ends = handler is None or (handler is signal.default_int_handler and not prompt)
            signal.signal(other, signal.SIG_DFL if ends else handler)
