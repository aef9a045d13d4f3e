"""Logs above a live display: handlers that hold the terminal's streams would write into the midst of it."""

import logging
import sys
from typing import Any


class LogsAbove:
    """From `start` to `stop`, log handlers write to what stands in for the streams that they were made with.

    Rich puts something of its own in the place of `sys.stdout` and `sys.stderr` while it draws; what a handler was
    given before goes past that, and leaves torn lines.

    Args:
      streams: the standard output and error, before anything took their place.
    """

    def __init__(self, *streams: Any):
        self._streams = streams
        self._moved: list[tuple[logging.StreamHandler[Any], Any, Any]] = []

    def start(self) -> None:
        """Move the handlers to the streams of now."""
        loggers = [logging.root, *logging.root.manager.loggerDict.values()]
        now = dict(zip(map(id, self._streams), (sys.stdout, sys.stderr)))
        for handler in {h for logger in loggers for h in getattr(logger, "handlers", ())}:
            stream = getattr(handler, "stream", None)
            if isinstance(handler, logging.StreamHandler) and now.get(id(stream), stream) is not stream:
                handler.setStream(now[id(stream)])
                self._moved.append((handler, handler.stream, stream))

    def stop(self) -> None:
        """Give the handlers back what they had."""
        for handler, given, stream in self._moved:
            if handler.stream is given:
                handler.setStream(stream)
        self._moved = []
