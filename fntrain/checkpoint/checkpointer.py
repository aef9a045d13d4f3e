"""Checkpoints: the whole run in one atomic commit, verified when it is read."""

import atexit
import json
import os
import shutil
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from .. import sharding, tree
from .._core import check
from .._core.digest import sha256
from .._core.errors import (
    CheckpointCorruptError,
    CheckpointError,
    ConfigError,
)
from .._core.files import writable
from .._core.lenient import Lenient
from .._core.typing import PyTree
from . import parts
from .fitting import fitted
from .keep import Keep
from .leaves import crc_of, info_of, is_intact, set_aside
from .pack import as_arrays, as_extra, as_numbers, canonical, pack, unpack
from .paths import below, is_in, key_of, renamed
from .shelf import Shelf
from .store import FORMAT, META, orbax_save, read_arrays, reason, version_of


class Checkpointer:
    r"""Saves whole runs to a directory in the background, and restores them by path, verified.

    One step is one directory, `<directory>/<step>`, committed by Orbax with a rename: it is there as a whole
    or not at all. It holds the leaves of the state under their paths as plain arrays, the arrays of `extra`,
    and one JSON document with everything else and a digest of every leaf. A half-written, half-deleted or
    foreign directory is not a step. Nothing on the way back runs code that a file names.

    Of several processes all have to save, into a directory that all of them see: each writes its own parts of
    what is split over them, and `save` returns when everything is written. In one process,
    `save` copies the state (to the host; on an accelerator with room for it, there, so that the next steps need
    not wait) and returns; the rest happens in a thread, one save at a time. If that fails, the next call of any
    method raises it; a new `save` then starts afresh. Use the checkpointer in a `with` block (or call `close`), so
    that the end of the block is the end of the last save.

    Args:
      directory: a local or mounted directory, made by the first `save`.
      keep: which steps stay; the others are deleted after each save.

    Raises:
      ConfigError: if `directory` is no path, a URL, or no file system could hold it, or `keep` is no `Keep`.
      CheckpointError: if `directory` is a file.

    Examples:
      >>> import fntrain as ft, tempfile, jax.numpy as jnp
      >>> directory = tempfile.mkdtemp()
      >>> with ft.Checkpointer(directory, ft.Keep(latest=2, best=("loss", "min"))) as checkpoints:
      ...     for step, loss in enumerate([0.5, 0.1, 0.3, 0.2]):
      ...         state = {"params": {"w": jnp.full(2, loss)}}
      ...         checkpoints.save(state, step=step, metrics={"loss": loss}, extra={"epoch": step})
      ...     checkpoints.steps(), checkpoints.best_step
      ([1, 2, 3], 1)
      >>> checkpoints.restore(state, step="best")["params"]["w"].tolist()
      [0.10000000149011612, 0.10000000149011612]
      >>> checkpoints.extra(step="best")
      {'epoch': 1}
      >>> sorted(ft.restore_params(directory))
      ['w']
    """

    def __init__(self, directory: str | os.PathLike[str], keep: Keep | None = None):
        if not isinstance(keep, Keep | None):
            raise ConfigError(f"`keep` must be a Keep(latest=3, best=(name, mode), every=None), got {keep!r}")
        self.directory: Path = check.path("directory", directory)
        self.keep: Keep = Keep() if keep is None else keep
        self._shelf = Shelf(self.directory)
        self._verified: set[str] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[Any] | None = None
        self._clean = False
        self._said = ""  # which emptied steps were warned of
        self._lenient = Lenient(f"an old step of {self.directory} was not deleted, and stays")
        if self.directory.exists() and not self.directory.is_dir():
            raise CheckpointError(
                f"`directory` is not a directory, so no Orbax checkpoint: {self.directory}; no file is ever unpickled"
            )

    def save(
        self,
        state: PyTree,
        *,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Save a state in the background; when this returns, `state` may be donated or changed.

        Args:
          state: any pytree of arrays, typed keys and numbers.
          step: the step's number, >= 0; None takes `state.step`.
          metrics: what `keep.best` ranks by: names and numbers (or arrays of them).
          extra: what else belongs to the run: nested dicts, lists and tuples of numbers, text, None and
            arrays; other pytree nodes are stored as the dicts of their fields.
          overwrite: replace a step that exists; it stays until the new one is committed.

        Raises:
          ConfigError: if there is no step, `state` or `extra` holds something that cannot be stored or two
            leaves of the same path.
          ConsumedStateError: if a leaf was donated to a later step.
          CheckpointError: if the step exists, the directory cannot be made, the save before this one failed
            (this one is then not started), or, with several processes, this one failed.
        """
        step = check.integer("step", _step_of(state) if step is None else step, at_least=0)
        self.wait()
        if not overwrite and step in self._shelf.index():
            raise CheckpointError(
                f"step {step} exists in {self.directory}; pass overwrite=True to replace it"
            )
        arrays: dict[str, Any] = {}
        body = {
            "format": FORMAT,
            "versions": {name: version_of(name) for name in ("fntrain", "jax", "orbax-checkpoint")},
            "step": step,
            "best": self.keep.best,
            "metrics": pack(as_numbers(metrics), "metrics", {}),
            "state": pack(as_arrays(state), "state", arrays),
            "extra": pack(as_extra(extra), "extra", arrays),
        }
        if not any(np.size(leaf) for path, leaf in arrays.items() if is_in(path, "state")):
            raise ConfigError(f"`state` must hold at least one number, got {tree.describe(state)}")
        if jax.process_count() > 1:
            self._save_together(step, arrays, body)
            return
        self.prepare()
        host = set_aside(arrays)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="fntrain-checkpoint")
            _finish_at_exit(self)
        self._pending = self._pool.submit(self._write, step, host, arrays, body)

    def restore(
        self,
        like: PyTree,
        *,
        step: int | Literal["best"] | None = None,
        partial: bool = False,
        rename: Mapping[str, str] | None = None,
        cast: bool = False,
    ) -> PyTree:
        """The saved state, in the structure of `like` and on its devices.

        Leaves are matched by path (`params/layers/0/kernel`); every digest of the step is verified first.

        Args:
          like: a state whose values do not matter: structure, shapes and dtypes are compared, and each leaf
            comes back as what it is there, a JAX array with that sharding, a NumPy array or a number.
            `jax.eval_shape` gives one without memory.
          step: a step's number, `"best"`, or None for the newest intact one; a damaged newer one is passed
            over with a warning.
          partial: restore only the leaves that both sides have; the others stay as in `like`.
          rename: `{saved: wanted}`. A saved leaf's or subtree's path stands for itself; any other key is a
            regex, replaced wherever it is found in a saved path.
          cast: convert floats to the wanted float dtype, integers to the wanted integer dtype.

        Returns:
          A tree with the structure, shapes, dtypes and shardings of `like`.

        Raises:
          CheckpointMismatchError: with a table of the leaves that are missing, unexpected, or of another
            shape or dtype.
          CheckpointCorruptError: if the step asked for, or with None every step, is damaged.
          CheckpointError: if there is no such step, or it was written by a newer format.
          ConfigError: if `rename` matches no path or sends two to one, or `step` is something else.
        """
        step, body, arrays = self._load(step)
        saved = renamed({below(p): p for p in body["arrays"] if is_in(p, "state")}, rename or {})
        found = {path: (arrays[name], body["arrays"][name]) for path, name in saved.items()}
        return fitted(like, found, f"step {step} in {self.directory}", partial, cast)

    def extra(self, step: int | Literal["best"] | None = None) -> dict[str, Any]:
        """What `save` was given as `extra` at this step; arrays come back as NumPy arrays.

        Args:
          step: as in `restore`; None means the same step there and here.

        Raises:
          CheckpointCorruptError: as in `restore`.
          CheckpointError: as in `restore`.
        """
        _, body, arrays = self._load(step, "extra")
        return unpack(body["extra"], body["arrays"], arrays)

    def as_saved(self, step: int | Literal["best"] | None = None) -> Any:
        """The saved state as dicts, lists and tuples of arrays, for who has none like it.

        Args:
          step: as in `restore`.

        Raises:
          CheckpointCorruptError: as in `restore`.
          CheckpointError: as in `restore`.
        """
        _, body, arrays = self._load(step)
        return unpack(body["state"], body["arrays"], arrays)

    def discard(self, step: int) -> None:
        """Delete a step, all versions of it; one that is not there is none."""
        self.wait()
        for other, _, name in list(self._shelf.names()):
            if other == step:
                self._shelf.delete(name)

    def prepare(self) -> None:
        """Make the directory, and remove what a killed process left half-written or half-deleted.

        The first `save` does it too; whoever does it before knows before whether there is something to write to.

        Raises:
          CheckpointError: if the directory cannot be made or written to.
        """
        if self._clean:
            return
        writable(self.directory)
        self._shelf.clear()
        self._clean = True

    def steps(self) -> list[int]:
        """The steps that are saved, in order; a save in the background is waited for."""
        self.wait()
        return sorted(self._shelf.index())

    def path(self, step: int) -> Path:
        """The directory of a step, to be copied as a whole.

        Raises:
          CheckpointError: if there is no such step.
        """
        if step not in self.steps():
            raise CheckpointError(f"no step {step} in {self.directory}; there are {self.steps()}")
        return self.directory / self._shelf.index()[step]

    def emptied(self) -> list[int]:
        """The steps of which only directories are left, since somebody has deleted their files."""
        self.wait()
        self._said = ", ".join(
            map(str, self._shelf.emptied())
        )  # whoever asks is told, and need not be warned
        return self._shelf.emptied(bare=True)

    @property
    def latest_step(self) -> int | None:
        """The highest step saved; None if there is none."""
        return max(self.steps(), default=None)

    @property
    def best_step(self) -> int | None:
        """The best step by `keep.best`; None if no step has a finite value for it, and finite parameters."""
        self.wait()
        spoilt = self._shelf.spoilt()
        return self.keep.best_step(
            {step: row for step, row in self._shelf.all_metrics().items() if step not in spoilt}
        )

    def metrics(self, step: int) -> dict[str, Any]:
        """What `save` was given as `metrics` at a step; nothing, if that cannot be read."""
        self.wait()
        return dict(self._shelf.all_metrics().get(step, {}))

    def failed(self, wait: bool = False) -> bool:
        """Whether the save in the background has failed, which the next call raises; False while it still runs.

        Args:
          wait: wait for its end first.
        """
        if self._pending is None or not (wait or self._pending.done()):
            return False
        return self._pending.exception() is not None

    def check(self) -> None:
        """Raise the failure of a save in the background, if it has failed by now; waits for nothing."""
        if self.failed():
            self.wait()

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
          CheckpointError: if it failed; said once.
        """
        if self._pending is not None:
            error = self._pending.exception()  # an interrupt here leaves the save pending
            self._pending = None
            if error is not None:
                raise error

    def close(self) -> None:
        """Wait for the last save and end the thread; raises as `wait` does."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(f"besides, {failure}")

    def __repr__(self) -> str:
        return f"Checkpointer({str(self.directory)!r}, {self.keep})"

    def _save_together(self, step: int, arrays: Mapping[str, Any], body: dict[str, Any]) -> None:
        """Of several processes, each writes its own parts, all at the same time; the first one does the rest."""
        first = jax.process_index() == 0
        if first:
            self.prepare()
        host = {path: parts.whole_or_split(x) for path, x in arrays.items()}
        split = parts.digests({path: x for path, x in host.items() if parts.is_split(x)}, crc_of)
        body["arrays"] = {path: info_of(path, x, arrays[path], split.get(path)) for path, x in host.items()}
        body["finite"] = sharding.largest(not parts.are_finite(_params(host))) == 0
        version = sharding.largest(self._shelf.next_version(step) if first else 0)
        self._commit(step, host, body, version)
        if first:
            self._let_go(step)
        sharding.meet()  # what is deleted is gone before anybody looks

    def _write(
        self,
        step: int,
        copies: Callable[[], dict[str, np.ndarray]],
        arrays: Mapping[str, Any],
        body: dict[str, Any],
    ) -> None:
        """In the background: commit one step, then delete what `keep` lets go."""
        host = copies()
        body["arrays"] = {path: info_of(path, x, arrays[path]) for path, x in host.items()}
        body["finite"] = parts.are_finite(_params(host))
        self._commit(step, host, body)
        self._let_go(step)

    def _commit(self, step: int, host: Mapping[str, Any], body: dict[str, Any], version: int = 0) -> None:
        name = ""
        try:
            version = version or self._shelf.next_version(step)
            name = str(step) if version == 1 else f"{step}.v{version}"
            text = canonical(body)  # what JSON refuses fails here, before anything is written
            document = {"sha256": sha256(text), **json.loads(text)}
            orbax_save(self.directory / name, {key_of(p): x for p, x in host.items() if x.size}, document)
        except Exception as error:
            shutil.rmtree(self.directory / f"{name}.orbax-checkpoint-tmp", ignore_errors=True)
            raise CheckpointError(
                f"step {step} was not saved to {self.directory}: {reason(error)}"
            ) from error
        self._shelf.know(name, document)

    def _let_go(self, step: int) -> None:
        """Delete what `keep` does not keep, now that this step is saved; what cannot be deleted stays, and is said."""
        index = self._shelf.index()
        kept = self.keep.kept(self._shelf.all_metrics(), self._shelf.spoilt()) | {step}
        for other, _, old in list(self._shelf.names()):
            stays = other not in index or (old == index[other] and other in kept)
            if not stays and (self.directory / old / META).exists():  # what is not ours, we do not delete
                with self._lenient:
                    self._shelf.delete(old)

    def _load(
        self, step: Any, part: str = "", alone: bool = False
    ) -> tuple[int, dict[str, Any], dict[str, np.ndarray]]:
        """(step, document, arrays) of a verified step; `alone`: the part need be all that is verified."""
        self.wait()
        if isinstance(step, str):
            check.one_of("step", step, ("best",))
            if self.keep.best is None:
                raise ConfigError("`step` cannot be 'best': `keep.best` is None, so nothing is ranked")
        elif step is not None:
            check.integer("step", step)
        index = self._shelf.index()
        emptied = ", ".join(map(str, self._shelf.emptied()))
        if not index and emptied:
            raise CheckpointCorruptError(
                f"no checkpoint in {self.directory}: the files of step {emptied} are gone, and the directories are not"
            )
        if not index:
            raise CheckpointError(f"no checkpoint in {self.directory}{self._shelf.others()}")
        if step == "best":
            step = self.best_step
            if step is None:
                raise CheckpointError(f"no step in {self.directory} has a finite metric {self.keep.best}")
        if step is not None:
            if step not in index:
                there = ", ".join(map(str, sorted(index)))
                gone = f"; the files of {emptied} are gone" if emptied else ""
                raise CheckpointError(f"no step {step} in {self.directory}; there are {there}{gone}")
            return step, *self._read(index[step], part)
        if emptied and emptied != self._said:
            self._said = emptied
            warnings.warn(
                f"passing over checkpoints in {self.directory}: the files of step {emptied} are gone, and their "
                f"directories are not",
                RuntimeWarning,
                stacklevel=3,
            )
        damage = []
        for newest in sorted(index, reverse=True):
            name = index[newest]
            try:
                found = self._read(name, part if alone or name in self._verified else "")
            except CheckpointCorruptError as error:
                self._shelf.bad.add(name)
                damage.append(str(error))
                warnings.warn(f"passing over a damaged checkpoint: {error}", RuntimeWarning, stacklevel=3)
                continue
            if not alone:
                self._verified.add(name)
            return newest, *found
        raise CheckpointCorruptError(f"no intact checkpoint in {self.directory}:\n  " + "\n  ".join(damage))

    def _read(self, name: str, part: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The document of a step, and the arrays below `part`, verified."""
        body = self._shelf.read_document(name)
        infos = {path: info for path, info in body["arrays"].items() if not part or is_in(path, part)}
        arrays, bad = {}, []
        for path, host in read_arrays(self.directory / name, infos):
            arrays[path] = host
            if not is_intact(path, host, infos[path]):
                bad.append(below(path))
        if bad:
            raise CheckpointCorruptError(
                f"{self.directory / name}: the digest disagrees for {tree.some(bad)}"
            )
        return body, arrays


def _step_of(state: PyTree) -> int:
    step = getattr(state, "step", None)
    if step is None or np.ndim(step) != 0:
        raise ConfigError("`step` must be given: the state has no integer `.step`")
    return int(step)


def _params(arrays: Mapping[str, Any]) -> list[Any]:
    return [x for path, x in arrays.items() if is_in(path, "state/params")]


def _finish_at_exit(checkpointer: Checkpointer) -> None:
    """Finish a save that still runs when the interpreter exits outside a `with` block."""
    reference = weakref.ref(checkpointer)

    def finish() -> None:
        live = reference()
        if live is not None:
            try:
                live.close()
            except CheckpointError as error:
                print(error, file=sys.stderr)

    # Orbax starts threads, too late once the atexit functions run; this hook comes before.
    getattr(threading, "_register_atexit", atexit.register)(finish)
