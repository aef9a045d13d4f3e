"""A watchdog: a run that makes no step for too long ends, with tracebacks, instead of hanging for ever."""

import faulthandler
import os
import sys
import threading
import time
from typing import Any

from .._core import check
from .._core.made import Made
from ..run.context import LoopContext

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: to whoever started the process, "try again"


class Watchdog(Made):
    """A callback that ends the process when no event of the loop has come for so many seconds.

    In a run of several processes, one whose peer hangs waits in a collective for ever, and no exception reaches
    it. After `seconds` of silence the watchdog writes the tracebacks of all threads to stderr and ends the process
    with status 75; a supervisor starts it again, and `resume=True` goes on from the last checkpoint. Should the
    interpreter itself be stuck, status 1 follows a little later.

    Compiling, evaluating and waiting for data are silence too: give more than the longest of them.

    Args:
      seconds: silence to end the process after, > 0.

    Raises:
      ConfigError: if `seconds` is no finite number > 0.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": np.float32(0)})
      >>> data = np.ones(8, np.float32)
      >>> result = ft.fit(task, state, data, epochs=1, callbacks=[Watchdog(600)], progress=False)
    """

    adds_logs = False
    needs_every_step = False

    def __init__(self, seconds: float):
        check.number("seconds", seconds, above=0)
        self.seconds: float = float(seconds)
        self._heard = 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start watching."""
        del ctx
        self.close()
        self._heard = time.monotonic()
        self._over.clear()
        self._thread = threading.Thread(target=self._watch, name="fntrain-watchdog", daemon=True)
        self._thread.start()

    def _hear(self, ctx: LoopContext) -> None:
        del ctx
        self._heard = time.monotonic()

    on_epoch_begin = on_step_end = on_log = on_validation_end = on_epoch_end = _hear

    def on_fit_end(self, ctx: LoopContext) -> None:
        """Stop watching."""
        del ctx
        self.close()

    def close(self) -> None:
        """Stop watching."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        # A thread of Python's cannot run while a hanging extension keeps the interpreter's lock; this timer can.
        heard = -1.0  # nothing yet
        while True:
            if heard != self._heard:
                heard = self._heard
                faulthandler.dump_traceback_later(1.5 * self.seconds + 1, exit=True, file=_stderr())
            left = heard + self.seconds - time.monotonic()
            if left <= 0:
                break
            if self._over.wait(min(left, self.seconds / 4)):
                faulthandler.cancel_dump_traceback_later()
                return
        out = _stderr()
        os.write(out, f"Watchdog: no step for {self.seconds:g} s; the tracebacks follow\n".encode())
        faulthandler.dump_traceback(file=out, all_threads=True)
        os._exit(EXIT_CODE)


def _stderr() -> Any:
    # The process's own, not what a notebook or a test has put in its place.
    try:
        return sys.__stderr__.fileno()  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return 2
