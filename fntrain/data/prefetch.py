"""Batches made and put on the device in the background, a few ahead of the step."""

import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import jax

from .._core import check

STOP_SECONDS = 5.0  # how long `close` waits for a batch that is being read


class Prefetcher:
    """Iterate over `put(item)` for each item, made by a thread of its own, at most `size` ahead.

    What comes is what `map(put, iterator)` would give, in that order; an exception of either comes after the items
    before it, once, with its own traceback. The iterator is used by that thread alone.

    What was made ahead and not handed out does not count: the number of items handed out is where a run
    stands, and `close` gives back the rest as they were read.

    Args:
      iterator: gives items, such as the `(batch, weight)` pairs of an epoch.
      put: from an item to what is handed out: places it on the device. It runs under the caller's default device and
        64-bit setting, of which a thread knows nothing otherwise.
      size: how many are made ahead, >= 1; that many more batches are on the device at once.

    Attributes:
      waited: seconds that `next` has waited for items in all.

    Raises:
      ConfigError: if `size` is no integer >= 1.

    Examples:
      >>> import jax, numpy as np
      >>> with Prefetcher(iter([np.arange(3), np.arange(4)]), jax.device_put) as batches:
      ...     [batch.sum().item() for batch in batches]
      [3, 6]
    """

    def __init__(self, iterator: Iterator[Any], put: Callable[[Any], Any], size: int = 2):
        size = check.integer("size", size, at_least=1)
        self.waited = 0.0
        self._shared = _Shared(size)
        config: Any = jax.config
        settings = config.jax_default_device, config.jax_enable_x64
        # The thread knows what is shared, and not this object: that can so be forgotten, which ends the thread.
        self._thread = threading.Thread(
            target=_fill,
            args=(self._shared, iter(iterator), put, settings),
            name="fntrain-prefetch",
            daemon=True,
        )
        self._stop = weakref.finalize(self, self._shared.stop)
        self._thread.start()

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> Any:
        shared = self._shared
        if not shared.ready:
            began = time.perf_counter()
            with shared.changed:
                shared.changed.wait_for(lambda: shared.ready or shared.ended)
            self.waited += time.perf_counter() - began
        with shared.changed:
            if shared.ready:
                _, placed = shared.ready.popleft()
                shared.changed.notify()
                return placed
            error, shared.error = shared.error, None
        if error is None:
            raise StopIteration
        try:
            raise error
        finally:
            del error  # its traceback holds this frame, which would hold it

    def close(self, wait: bool = True) -> list[Any]:
        """End the thread, and give back the items that it had read and nobody was handed, in order.

        An item that is being read is waited for; where that takes longer than a few seconds, a warning says so and
        the thread ends by itself when the item has come.

        Args:
          wait: False, where there is no time: what does not come at once is left behind without a word.
        """
        self._stop()
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_SECONDS if wait else 0.05)
        if wait and self._thread.is_alive():
            warnings.warn(
                f"the data iterator has not given its next item for {STOP_SECONDS:g} s; the thread that waits for it "
                f"is left behind",
                stacklevel=2,
            )
        left, self._shared.ready = [item for item, _ in self._shared.ready], deque()
        return left + self._shared.left

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class _Shared:
    """What thread and consumer share; `changed` guards it."""

    def __init__(self, size: int):
        self.size = size
        self.changed = threading.Condition()
        self.ready: deque[tuple[Any, Any]] = deque()  # items, and what `put` made of them
        self.left: list[Any] = []  # the item that was in the thread's hands when it was told to stop
        self.error: BaseException | None = None
        self.ended = self.stopped = False

    def stop(self) -> None:
        with self.changed:
            self.stopped = self.ended = True
            self.changed.notify_all()


def _fill(
    shared: _Shared, iterator: Iterator[Any], put: Callable[[Any], Any], settings: tuple[Any, ...]
) -> None:
    error: BaseException | None = None
    try:
        with ExitStack() as stack:
            stack.enter_context(jax.default_device(settings[0]))
            stack.enter_context(jax.enable_x64(settings[1]))
            while _room(shared):
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                if shared.stopped:
                    shared.left = [item]
                    break
                placed = put(item)
                with shared.changed:
                    shared.ready.append((item, placed))
                    shared.changed.notify()
                del item, placed  # not kept alive while the thread waits for room
    except BaseException as raised:  # whatever it is, it is the consumer's
        error = raised
    with shared.changed:
        shared.error, shared.ended = error, True
        shared.changed.notify_all()


def _room(shared: _Shared) -> bool:
    """Wait until there is room for one more; False if nobody wants any."""
    with shared.changed:
        shared.changed.wait_for(lambda: shared.stopped or len(shared.ready) < shared.size)
        return not shared.stopped
