"""What may fail without ending anything: a log, a display, the removal of what is old."""

import contextlib
import logging
import warnings
from typing import Any

_LOG = logging.getLogger("fntrain")


def say(text: str, stacklevel: int = 2) -> None:
    """Warn of what does no harm: where warnings are errors, by the log, for a run is worth more than this."""
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=stacklevel + 1)
    except RuntimeWarning:
        _LOG.warning("%s", text)


class Lenient(contextlib.AbstractContextManager["Lenient"]):
    """A block, entered again and again, in which failing is said once, by a warning, and ends nothing.

    Args:
      what: what fails then, for the warning.
      errors: which exceptions do no harm.

    Attributes:
      failed: whether it has failed yet.

    Examples:
      >>> log = Lenient("log.csv")
      >>> with warnings.catch_warnings(record=True) as said:
      ...     warnings.simplefilter("always")
      ...     for _ in range(2):
      ...         with log:
      ...             raise OSError(28, "No space left on device")
      >>> len(said), str(said[0].message)
      (1, 'log.csv: OSError: [Errno 28] No space left on device; the run goes on')
    """

    def __init__(self, what: str, errors: tuple[type[Exception], ...] = (OSError,)):
        self.what = what
        self.errors = errors
        self.failed = False

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, self.errors):
            return False
        if not self.failed:
            self.failed = True
            say(f"{self.what}: {type(error).__name__}: {error}; the run goes on", 3)
        return True
