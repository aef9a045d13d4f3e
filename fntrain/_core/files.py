"""Files that are replaced as a whole or kept aside, and directories that can be written to."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import CheckpointError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends well, and is gone when it does not.

    Whoever reads the file, whenever, sees the old content or the new one; after a power cut too, since what was
    written is on the disk before the name changes hands. Directories above it are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    short = path.name.encode()[:128].decode(
        errors="ignore"
    )  # a name may be as long as the file system allows
    temporary = path.with_name(f".{short}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # what matters has been said
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a text file as a whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def keep_aside(path: Path) -> Path:
    """Rename a file to a name that is free, `metrics.csv.old-1`, and return that."""
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.old-{number}")):
        number += 1
    return path.rename(kept)


def writable(directory: Path) -> None:
    """Make a directory, if it is not there.

    Raises:
      CheckpointError: if that fails, or it cannot be written to; before there is anything to write.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise CheckpointError(f"cannot write to {directory}: {error.strerror}") from error
