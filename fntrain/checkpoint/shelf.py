"""A directory of steps: which are there, which are believed, what their documents say."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import tree
from .._core.digest import sha256
from .._core.errors import CheckpointCorruptError, CheckpointError
from .pack import canonical, unpack
from .store import FORMAT, META

# A finished step is named by its number; `5.v2` is a second save of step 5, and replaces `5` by being there.
_STEP = re.compile(r"(0|[1-9]\d*)(?:\.v([1-9]\d*))?")
_LEFTOVER = re.compile(_STEP.pattern + r"\.(deleted(-\d+)?|orbax-checkpoint-tmp)")


class Shelf:
    """The steps in one directory, by the names of their own directories.

    Attributes:
      directory: where they are.
      bad: names found damaged: not believed, not counted, not deleted.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.bad: set[str] = set()
        self._known: dict[
            str, tuple[dict[str, Any], bool]
        ] = {}  # what each is ranked by, and whether it may be

    def know(self, name: str, document: dict[str, Any]) -> None:
        """Remember what a step that has just been written is ranked by."""
        # The first version did not look whether the parameters are finite.
        self._known[name] = unpack(document["metrics"], {}, {}), document.get("finite", True)

    def names(self) -> Iterator[tuple[int, int, str]]:
        """(step, version, name) of every finished step, damaged ones too."""
        try:
            entries = list(os.scandir(self.directory))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            match = _STEP.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                path = Path(entry.path)
                if (path / META).exists() or (path / "_CHECKPOINT_METADATA").exists():
                    yield int(match[1]), int(match[2] or 1), entry.name

    def emptied(self, *, bare: bool = False) -> list[int]:
        """The steps whose directories are there, as we make them, and whose files are not.

        A step is committed whole, so something else took them.

        Args:
          bare: take a directory without any file for one as well, where nobody else would have made it.
        """
        if not self.directory.is_dir():
            return []
        found = {step for step, _, _ in self.names()}
        there = [(match, path) for path in self.directory.iterdir() if (match := _STEP.fullmatch(path.name))]
        gone = {int(match[1]) for match, path in there if not path.is_symlink() and _is_emptied(path, bare)}
        return sorted(gone - found)

    def index(self) -> dict[int, str]:
        """The name of each step that is believed: its last version."""
        return {step: name for step, _, name in sorted(self.names()) if name not in self.bad}

    def others(self) -> str:
        """What stands in the place of steps, and is none."""
        names = sorted(p.name for p in self.directory.iterdir()) if self.directory.is_dir() else []
        names = [name for name in names if _STEP.fullmatch(Path(name).stem) and name not in self.bad]
        return f"; not Orbax checkpoints, and never unpickled: {tree.some(names)}" if names else ""

    def all_metrics(self) -> dict[int, dict[str, Any]]:
        """What each step is ranked by."""
        return {step: self._of(name)[0] for step, name in self.index().items()}

    def spoilt(self) -> set[int]:
        """The steps whose parameters are not finite."""
        return {step for step, name in self.index().items() if not self._of(name)[1]}

    def _of(self, name: str) -> tuple[dict[str, Any], bool]:
        """What one is ranked by, and whether its parameters are finite; nothing, if it cannot be read."""
        if name not in self._known:
            try:
                self.know(name, self.read_document(name))
            except CheckpointError:
                return {}, True  # never the best; restoring it says why
        return self._known[name]

    def next_version(self, step: int) -> int:
        """The number of the step's next version: above those of foreign entries too."""
        taken = filter(None, map(_STEP.fullmatch, os.listdir(self.directory)))
        return 1 + max((int(match[2] or 1) for match in taken if int(match[1]) == step), default=0)

    def read_document(self, name: str) -> dict[str, Any]:
        """The document of one, verified.

        Raises:
          CheckpointCorruptError: if it is damaged or not there.
          CheckpointError: if it cannot be read, or was written by a newer format.
        """
        path = self.directory / name / META
        try:
            document = json.loads(path.read_text())
            digest = document.pop("sha256")
            intact = digest == sha256(canonical(document))
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointCorruptError(f"{self.directory / name}: {META} is missing") from None
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            intact = False
        if not intact:
            raise CheckpointCorruptError(f"{self.directory / name}: {META} is damaged")
        if document["format"] > FORMAT:
            raise CheckpointError(
                f"{self.directory / name} has format {document['format']} of {document['versions']}; "
                f"this version reads up to {FORMAT}"
            )
        return document

    def clear(self) -> None:
        """Remove what a killed process left half-written or half-deleted, as far as the system lets us."""
        for path in self.directory.iterdir():
            if _LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)

    def delete(self, name: str) -> None:
        """Remove one, all at once.

        Raises:
          OSError: if it is still there, whole; what is left of one that is not (`.nfs…`, of a file that somebody
            has open) goes when the next run begins.
        """
        number, gone = 1, self.directory / f"{name}.deleted"
        while gone.exists():  # such a rest, of an earlier version
            number, gone = number + 1, self.directory / f"{name}.deleted-{number}"
        os.rename(self.directory / name, gone)  # first, so that no half of a step is ever taken for one
        self._known.pop(name, None)
        shutil.rmtree(gone, ignore_errors=True)


def _is_emptied(path: Path, bare: bool) -> bool:
    return (path / META.parent).is_dir() or (
        bare and path.is_dir() and not any(x.is_file() for x in path.rglob("*"))
    )
