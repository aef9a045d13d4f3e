"""A lock on a run directory: one process writes to it, and who comes second is told who was first."""

import contextlib
import datetime
import errno
import json
import os
import platform
import time
import warnings
import weakref
from pathlib import Path

from .._core.errors import CheckpointError, RunLockedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"


class RunLock:
    """The right to write to a directory, held from construction to `release`.

    It is an `flock` on `<directory>/.lock`, which the system frees when the process ends, however it ends; the
    file stays, and holds the process's number, host and time for others to read. A process forked by this one
    does not hold the lock. Where there is no `flock`, a warning says that nothing is protected.

    Args:
      directory: a directory that exists.
      name: the file that is locked.
      stays: whether the file stays after `release`; in a directory where only steps should stand, it does not.
      what: what is locked, for messages; None is the directory.

    Raises:
      RunLockedError: if another process, or another run of this one, holds it; says which and since when.
      CheckpointError: if the directory cannot be written to.

    Examples:
      >>> import tempfile
      >>> directory = tempfile.mkdtemp()
      >>> lock = RunLock(directory)
      >>> try:
      ...     RunLock(directory)
      ... except RunLockedError as error:
      ...     "is in use by process" in str(error)
      True
      >>> lock.release()
      >>> RunLock(directory).release()
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        name: str = NAME,
        *,
        stays: bool = True,
        what: str | None = None,
    ):
        self.path: Path = Path(directory, name)
        self.what: str = str(self.path.parent) if what is None else what
        self.stays: bool = stays
        self._file: int | None = None
        file = self._opened()
        while not self._is_there(file):  # who held it before has just removed it: what is locked is nobody's
            os.close(file)
            file = self._opened()
        self._file = file
        _held.add(self)

    def _opened(self) -> int:
        """The file, locked and signed."""
        try:
            # A link in its place would have us write to whatever it points at.
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.path.parent}: {error.strerror}") from error
        try:
            self._take(file)
            self._sign(file)
        except BaseException:
            os.close(file)
            raise
        return file

    def _is_there(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def _take(self, file: int) -> None:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no flock on this system")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLockedError(f"{self.what} is in use by {_holder(file)}") from None
        except OSError as error:
            warnings.warn(
                f"{self.what} cannot be locked ({error.strerror}): nothing keeps a second run out of it",
                RuntimeWarning,
                stacklevel=4,
            )

    def _sign(self, file: int) -> None:
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        text = json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since})
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, text.encode(), 0)
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.path.parent}: {error.strerror}") from error

    def release(self) -> None:
        """Free the directory; again does nothing."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, say: the name of a past holder does no harm
                os.ftruncate(self._file, 0)
                if not self.stays:
                    os.unlink(self.path)
            self._drop()

    def _drop(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
            _held.discard(self)


def is_held(directory: Path) -> bool:
    """Whether a run is going on in a directory; False where the system cannot say."""
    if fcntl is None:
        return False
    try:
        file = os.open(directory / NAME, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)  # which gives it back at once
    return False


_held: "weakref.WeakSet[RunLock]" = weakref.WeakSet()


def _forget() -> None:
    # Forked workers share the lock with their parent, and would keep it when the parent is killed.
    for lock in list(_held):
        lock._drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _holder(file: int) -> str:
    for _ in range(40):  # who has just taken it may not have signed yet
        try:
            who = json.loads(os.pread(file, 4096, 0))
            mine = who["pid"] == os.getpid() and who["host"] == platform.node()
            more = ", which is this one: another run or callback of it" if mine else ""
            return f"process {who['pid']} on {who['host']} since {who['since']}{more}"
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.025)
    return "another process"
