"""Checkpoints: the whole run in one atomic commit, verified when it is read."""

import atexit
import contextlib
import functools
import json
import math
import os
import re
import shutil
import sys
import threading
import urllib.parse
import warnings
import weakref
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .. import _check, sharding, tree
from .._check import CheckpointCorruptError, CheckpointError, CheckpointMismatchError, ConfigError
from .._typing import Params, PyTree
from . import parts

FORMAT = 1
# A finished step is named by its number; `5.v2` is a second save of step 5, and replaces `5` by being there.
_STEP = re.compile(r"(0|[1-9]\d*)(?:\.v([1-9]\d*))?")
_LEFTOVER = re.compile(_STEP.pattern + r"\.(deleted|orbax-checkpoint-tmp)")
_META = Path("meta", "checkpoint.json")


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest, the best one and a periodic choice, together.

    Args:
      latest: how many of the highest steps stay, >= 1. The step saved last always does.
      best: `(name, mode)`, the entry of `metrics` to rank by and `"min"` or `"max"`; the best step stays, on
        a tie the earlier one. A step without the entry, or where it is NaN or infinite, is never the best.
        None ranks nothing.
      every: steps divisible by this stay for good; None for no such steps, 1 to delete nothing.

    Raises:
      ConfigError: if a number is no integer >= 1, or `best` no pair of a name and a mode.

    Examples:
      >>> losses = {10: 0.9, 20: 0.2, 30: 0.4, 40: 0.5, 50: float("nan")}
      >>> keep = Keep(latest=1, best=("loss", "min"), every=40)
      >>> sorted(keep.kept({step: {"loss": loss} for step, loss in losses.items()}))
      [20, 40, 50]
    """

    latest: int = 3
    best: tuple[str, Literal["min", "max"]] | None = ("val_loss", "min")
    every: int | None = None

    def __post_init__(self):
        _check.integer("latest", self.latest, at_least=1)
        if self.every is not None:
            _check.integer("every", self.every, at_least=1)
        if self.best is not None:
            pair = tuple(self.best) if isinstance(self.best, tuple | list) else ()
            if len(pair) != 2 or not isinstance(pair[0], str):
                raise ConfigError(
                    f'`best` must be a pair such as ("val_loss", "min") or None, got {self.best!r}'
                )
            _check.name("best", pair[0])
            _check.one_of("best", pair[1], ("min", "max"))
            object.__setattr__(self, "best", pair)

    def best_step(self, metrics: Mapping[int, Mapping[str, Any]]) -> int | None:
        """The step with the best finite value, the earlier one on a tie; None if there is none."""
        if self.best is None:
            return None
        name, mode = self.best
        values = {step: row[name] for step, row in metrics.items() if _is_finite(row.get(name))}
        sign = 1 if mode == "min" else -1
        return min(values, key=lambda step: (sign * values[step], step), default=None)

    def kept(self, metrics: Mapping[int, Mapping[str, Any]]) -> set[int]:
        """Which of the steps (the keys of `metrics`) stay."""
        kept = set(sorted(metrics)[-self.latest :]) | {self.best_step(metrics)}
        return {step for step in metrics if step in kept or (self.every and step % self.every == 0)}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class Checkpointer:
    r"""Saves whole runs to a directory in the background, and restores them by path, verified.

    One step is one directory, `<directory>/<step>`, committed by Orbax with a rename: it is there as a whole
    or not at all. It holds the leaves of the state under their paths as plain arrays, the arrays of `extra`,
    and one JSON document with everything else and a digest of every leaf. A half-written, half-deleted or
    foreign directory is not a step. Nothing on the way back runs code that a file names.

    Of several processes all have to save, into a directory that all of them see: each writes its own parts of
    what is split over them, and `save` returns when everything is written. In one process,
    `save` copies the state to the host and returns; the rest happens in a thread, one save at a time. If
    that fails, the next call of any method raises it; a new `save` then starts afresh. Use the checkpointer
    in a `with` block (or call `close`), so that the end of the block is the end of the last save.

    Args:
      directory: a local or mounted directory, made by the first `save`.
      keep: which steps stay; the others are deleted after each save.

    Raises:
      ConfigError: if `directory` is no path, a URL, or no file system could hold it, or `keep` is no `Keep`.
      CheckpointError: if `directory` is a file.

    Examples:
      >>> import tempfile, jax.numpy as jnp
      >>> directory = tempfile.mkdtemp()
      >>> with Checkpointer(directory, Keep(latest=2, best=("loss", "min"))) as checkpoints:
      ...     for step, loss in enumerate([0.5, 0.1, 0.3, 0.2]):
      ...         state = {"params": {"w": jnp.full(2, loss)}}
      ...         checkpoints.save(state, step=step, metrics={"loss": loss}, extra={"epoch": step})
      ...     checkpoints.steps(), checkpoints.best_step
      ([1, 2, 3], 1)
      >>> checkpoints.restore(state, step="best")["params"]["w"].tolist()
      [0.10000000149011612, 0.10000000149011612]
      >>> checkpoints.extra(step="best")
      {'epoch': 1}
      >>> sorted(restore_params(directory))
      ['w']
    """

    def __init__(self, directory: str | os.PathLike[str], keep: Keep | None = None):
        if not isinstance(keep, Keep | None):
            raise ConfigError(f"`keep` must be a Keep(latest=3, best=(name, mode), every=None), got {keep!r}")
        self.directory = _check.path("directory", directory).absolute()
        self.keep = Keep() if keep is None else keep
        self._bad: set[str] = set()  # names found damaged: not believed, not counted, not deleted
        self._verified: set[str] = set()
        self._metrics: dict[str, dict[str, Any]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future | None = None
        self._clean = False
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
        step = _check.integer("step", _step_of(state) if step is None else step, at_least=0)
        self.wait()
        if not overwrite and step in self._index():
            raise CheckpointError(
                f"step {step} exists in {self.directory}; pass overwrite=True to replace it"
            )
        arrays: dict[str, Any] = {}
        body = {
            "format": FORMAT,
            "versions": {name: _version(name) for name in ("fntrain", "jax", "orbax-checkpoint")},
            "step": step,
            "best": self.keep.best,
            "metrics": _pack(_as_numbers(metrics), "metrics", {}),
            "state": _pack(_as_arrays(state), "state", arrays),
            "extra": _pack(_as_extra(extra), "extra", arrays),
        }
        if not any(np.size(leaf) for path, leaf in arrays.items() if _in(path, "state")):
            raise ConfigError(f"`state` must hold at least one number, got {tree.describe(state)}")
        if jax.process_count() > 1:
            self._save_together(step, arrays, body)
            return
        self._prepare()
        host = _copy_to_host(arrays)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="fntrain-checkpoint")
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
        saved = _renamed({_below(p): p for p in body["arrays"] if _in(p, "state")}, rename or {})
        found = {path: (arrays[name], body["arrays"][name]) for path, name in saved.items()}
        return _fitted(like, found, f"step {step} in {self.directory}", partial, cast)

    def extra(self, step: int | Literal["best"] | None = None) -> dict[str, Any]:
        """What `save` was given as `extra` at this step; arrays come back as NumPy arrays.

        Args:
          step: as in `restore`; None means the same step there and here.

        Raises:
          CheckpointCorruptError: as in `restore`.
          CheckpointError: as in `restore`.
        """
        _, body, arrays = self._load(step, "extra")
        return _unpack(body["extra"], body["arrays"], arrays)

    def steps(self) -> list[int]:
        """The steps that are saved, in order; a save in the background is waited for."""
        self.wait()
        return sorted(self._index())

    @property
    def latest_step(self) -> int | None:
        """The highest step saved; None if there is none."""
        return max(self.steps(), default=None)

    @property
    def best_step(self) -> int | None:
        """The best step by `keep.best`; None if no step has a finite value for it."""
        self.wait()
        return self.keep.best_step(self._all_metrics())

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

    # The directory: names of finished steps, and what is done to them.

    def _names(self) -> Iterator[tuple[int, int, str]]:
        """(step, version, name) of every finished step, damaged ones too."""
        try:
            entries = list(os.scandir(self.directory))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            match = _STEP.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                path = Path(entry.path)
                if (path / _META).exists() or (path / "_CHECKPOINT_METADATA").exists():
                    yield int(match[1]), int(match[2] or 1), entry.name

    def _index(self) -> dict[int, str]:
        """The name of each step that is believed: its last version."""
        return {step: name for step, _, name in sorted(self._names()) if name not in self._bad}

    def _others(self) -> str:
        """What stands in the place of steps, and is none."""
        names = sorted(p.name for p in self.directory.iterdir()) if self.directory.is_dir() else []
        names = [name for name in names if _STEP.fullmatch(Path(name).stem) and name not in self._bad]
        return f"; not Orbax checkpoints, and never unpickled: {tree.some(names)}" if names else ""

    def _all_metrics(self) -> dict[int, dict[str, Any]]:
        return {step: self._metrics_of(name) for step, name in self._index().items()}

    def _metrics_of(self, name: str) -> dict[str, Any]:
        if name not in self._metrics:
            try:
                body = self._read_body(name)
            except CheckpointError:
                return {}  # never the best; restoring it says why
            self._metrics[name] = _unpack(body["metrics"], {}, {})
        return self._metrics[name]

    def _keep_of_newest(self) -> Keep:
        """What the newest readable step was ranked by, for who has not got its `Keep`."""
        for _, name in sorted(self._index().items(), reverse=True):
            with contextlib.suppress(CheckpointError):
                return Keep(best=self._read_body(name)["best"])
        return self.keep

    def _prepare(self) -> None:
        """Make the directory, and clear what a killed process left: before the first save, by the writer."""
        if self._clean:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clear()
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.directory}: {error.strerror}") from error
        _finish_at_exit(self)
        self._clean = True

    def _clear(self) -> None:
        for path in self.directory.iterdir():
            if _LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)

    def _delete(self, name: str) -> None:
        gone = self.directory / f"{name}.deleted"
        os.rename(self.directory / name, gone)  # first, so that no half of a step is ever taken for one
        shutil.rmtree(gone)
        self._metrics.pop(name, None)

    def _save_together(self, step: int, arrays: Mapping[str, Any], body: dict[str, Any]) -> None:
        """Of several processes, each writes its own parts, all at the same time; the first one does the rest."""
        first = jax.process_index() == 0
        if first:
            self._prepare()
        host = {path: parts.whole_or_split(x) for path, x in arrays.items()}
        split = parts.digests({path: x for path, x in host.items() if parts.is_split(x)}, _digest)
        body["arrays"] = {path: _info(path, x, arrays[path], split.get(path)) for path, x in host.items()}
        version = sharding.largest(self._version(step) if first else 0)
        self._commit(step, host, body, version)
        if first:
            self._let_go(step)
        sharding.meet()  # what is deleted is gone before anybody looks

    def _write(self, step: int, host: dict[str, np.ndarray], arrays: Mapping[str, Any], body: dict) -> None:
        """In the background: commit one step, then delete what `keep` lets go."""
        body["arrays"] = {path: _info(path, x, arrays[path]) for path, x in host.items()}
        self._commit(step, host, body)
        self._let_go(step)

    def _version(self, step: int) -> int:
        """The number of the step's next version: above those of foreign entries too."""
        taken = filter(None, map(_STEP.fullmatch, os.listdir(self.directory)))
        return 1 + max((int(match[2] or 1) for match in taken if int(match[1]) == step), default=0)

    def _commit(self, step: int, host: Mapping[str, Any], body: dict[str, Any], version: int = 0) -> None:
        name = ""
        try:
            version = version or self._version(step)
            name = str(step) if version == 1 else f"{step}.v{version}"
            text = _canonical(body)  # what JSON refuses fails here, before anything is written
            document = {"sha256": sha256(text.encode()).hexdigest(), **json.loads(text)}
            _orbax_save(self.directory / name, {_key(p): x for p, x in host.items() if x.size}, document)
        except Exception as error:
            shutil.rmtree(self.directory / f"{name}.orbax-checkpoint-tmp", ignore_errors=True)
            raise CheckpointError(
                f"step {step} was not saved to {self.directory}: {_reason(error)}"
            ) from error
        self._metrics[name] = _unpack(document["metrics"], {}, {})

    def _let_go(self, step: int) -> None:
        """Delete what `keep` does not keep, now that this step is saved."""
        try:
            index = self._index()
            kept = self.keep.kept(self._all_metrics()) | {step}
            for other, _, old in list(self._names()):
                stays = other not in index or (old == index[other] and other in kept)
                if (
                    not stays and (self.directory / old / _META).exists()
                ):  # what is not ours, we do not delete
                    self._delete(old)
        except OSError as error:
            raise CheckpointError(
                f"step {step} is saved, but old steps of {self.directory} were not deleted: {_reason(error)}"
            ) from error

    def _load(
        self, step: Any, part: str = "", alone: bool = False
    ) -> tuple[int, dict, dict[str, np.ndarray]]:
        """(step, document, arrays) of a verified step; `alone`: the part need be all that is verified."""
        self.wait()
        if isinstance(step, str):
            _check.one_of("step", step, ("best",))
            if self.keep.best is None:
                raise ConfigError("`step` cannot be 'best': `keep.best` is None, so nothing is ranked")
        elif step is not None:
            _check.integer("step", step)
        index = self._index()
        if not index:
            raise CheckpointError(f"no checkpoint in {self.directory}{self._others()}")
        if step == "best":
            step = self.best_step
            if step is None:
                raise CheckpointError(f"no step in {self.directory} has a finite metric {self.keep.best}")
        if step is not None:
            if step not in index:
                there = ", ".join(map(str, sorted(index)))
                raise CheckpointError(f"no step {step} in {self.directory}; there are {there}")
            return step, *self._read(index[step], part)
        damage = []
        for newest in sorted(index, reverse=True):
            name = index[newest]
            try:
                found = self._read(name, part if alone or name in self._verified else "")
            except CheckpointCorruptError as error:
                self._bad.add(name)
                damage.append(str(error))
                warnings.warn(f"passing over a damaged checkpoint: {error}", RuntimeWarning, stacklevel=3)
                continue
            if not alone:
                self._verified.add(name)
            return newest, *found
        raise CheckpointCorruptError(f"no intact checkpoint in {self.directory}:\n  " + "\n  ".join(damage))

    def _read_body(self, name: str) -> dict[str, Any]:
        path = self.directory / name / _META
        try:
            document = json.loads(path.read_text())
            digest = document.pop("sha256")
            intact = digest == sha256(_canonical(document).encode()).hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointCorruptError(f"{self.directory / name}: {_META} is missing") from None
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            intact = False
        if not intact:
            raise CheckpointCorruptError(f"{self.directory / name}: {_META} is damaged")
        if document["format"] > FORMAT:
            raise CheckpointError(
                f"{self.directory / name} has format {document['format']} of {document['versions']}; "
                f"this version reads up to {FORMAT}"
            )
        return document

    def _read(self, name: str, part: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The document of a step, and the arrays below `part`, verified."""
        body = self._read_body(name)
        infos = {path: info for path, info in body["arrays"].items() if not part or _in(path, part)}
        arrays, bad = {}, []
        for path, host in _read_arrays(self.directory / name, infos):
            arrays[path] = host
            if not _is_intact(path, host, infos[path]):
                bad.append(_below(path))
        if bad:
            raise CheckpointCorruptError(
                f"{self.directory / name}: the digest disagrees for {tree.some(bad)}"
            )
        return body, arrays


def restore_params(directory: str | os.PathLike[str], step: int | Literal["best"] | None = None) -> Params:
    """The saved parameters alone, for inference: nothing of the training code is needed.

    Args:
      directory: a `Checkpointer`'s directory.
      step: a step's number, `"best"` as ranked by the `Keep` it was saved with, or None for the newest
        intact one.

    Returns:
      `state.params` (or `state["params"]`) as saved: dicts, lists, tuples and None come back as such, other
      nodes as dicts of their fields; leaves are JAX arrays, or NumPy arrays of a dtype JAX has switched off.

    Raises:
      CheckpointCorruptError: if the step, or with None every step, is damaged.
      CheckpointError: if there is no such step, or its state has no `params`.
    """
    with Checkpointer(directory) as checkpoints:
        if step == "best":
            checkpoints.keep = checkpoints._keep_of_newest()
        _, body, arrays = checkpoints._load(step, "state/params", alone=True)
        state = body["state"]
        if not isinstance(state, dict) or "params" not in state:
            raise CheckpointError(f"the state saved in {checkpoints.directory} has no `params`")
        params = _unpack(state["params"], body["arrays"], arrays)
    return _on_device(params)


def _on_device(params: Params) -> Params:
    return jax.tree.map(lambda x: jax.device_put(x) if _fits_jax(x) else x, params)


# Trees as JSON. Dicts with text keys, lists, text, numbers and None stand for themselves; anything else is a
# dict with a single key that begins with "$". No type is ever named.


def _pack(value: Any, path: str, arrays: dict[str, Any]) -> Any:
    """JSON for a tree, its arrays put aside in `arrays` under their paths."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic):
        return _pack(value.item(), path, arrays)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, jax.Array | np.ndarray):
        _check_array(path, value)
        if path in arrays:
            raise ConfigError(
                f"two leaves have the path `{_below(path)}`: rename one, so that each can be found"
            )
        arrays[path] = value
        return {"$array": path}
    if type(value) in (list, tuple):
        items = [_pack(v, f"{path}/{i}", arrays) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if type(value) is dict:
        pairs = list(value.items())
        wrong = [k for k in value if type(k) not in (str, int)]
        if wrong:
            raise ConfigError(f"the keys of `{path}` must be text or integers, got {wrong[0]!r}")
    else:
        children = jax.tree_util.tree_leaves_with_path(value, is_leaf=lambda x: x is not value)
        if any(child is value for _, child in children):
            kind = type(value).__name__
            raise ConfigError(f"`{path}` must be an array, a plain value or a pytree of them, got a {kind}")
        pairs = [(tree.path_name(key), child) for key, child in children]
    items = [(k, _pack(v, f"{path}/{k}", arrays)) for k, v in pairs]
    if all(isinstance(k, str) and not k.startswith("$") for k, _ in items):
        return dict(items)
    return {"$dict": [list(item) for item in items]}


def _unpack(value: Any, infos: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    """The tree that `_pack` was given."""
    if isinstance(value, list):
        return [_unpack(v, infos, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    match next(iter(value.items()), None):
        case "$float", text:
            return float(text)
        case "$array", path:
            return _with_key(arrays[path], infos[path].get("key"))
        case "$tuple", items:
            return tuple(_unpack(v, infos, arrays) for v in items)
        case "$dict", items:
            return {k: _unpack(v, infos, arrays) for k, v in items}
    return {k: _unpack(v, infos, arrays) for k, v in value.items()}


def check_state(state: PyTree) -> None:
    """Check that a state can be saved, before anything is computed on it.

    Raises:
      ConfigError: naming a leaf that is no array of numbers, or two leaves of the same path.
    """
    _pack(_as_arrays(state), "state", {})


def _as_arrays(state: PyTree) -> PyTree:
    """The state with its Python numbers as arrays: in a state, every leaf is one."""

    def one(path: str, leaf: Any) -> Any:
        _kind(path, leaf)
        return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)

    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state)):
        return state  # as nearly always: paths cost time, while the loop waits
    return tree.map_with_path(one, state)


def _as_extra(extra: Any) -> Any:
    if not isinstance(extra, Mapping | None):
        raise ConfigError(f"`extra` must be a dict, got {type(extra).__name__}")
    return dict(extra or {})


def _as_numbers(metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in (metrics or {}).items():
        try:
            out[str(name)] = np.asarray(value, float).tolist()
        except (TypeError, ValueError):
            what = f"got {value!r}"
            raise ConfigError(f"`metrics[{name!r}]` must be a number or an array of them, {what}") from None
    return out


def _canonical(body: Mapping[str, Any]) -> str:
    # In the order given: the columns of a history are to come back in theirs.
    return json.dumps(body, separators=(",", ":"), allow_nan=False)


# Paths: `state/params/w` in the document, `state.params.w` as Orbax's key.


def _in(path: str, part: str) -> bool:
    return path == part or path.startswith(part + "/")


def _below(path: str) -> str:
    """A path without its first word, `state`."""
    return path.partition("/")[2]


def _key(path: str) -> str:
    """A path as one word of safe characters, different for different paths."""
    quoted = urllib.parse.quote(path, safe="", errors="surrogatepass")
    return quoted.replace(".", "%2E").replace("%2F", ".")


def _renamed(paths: Mapping[str, str], rename: Mapping[str, str]) -> dict[str, str]:
    """`{wanted path: stored path}`: the keys of `paths` renamed, each by the first rule it meets."""
    out: dict[str, str] = {}
    used: set[str] = set()
    exact = {old for old in rename if any(_in(path, old) for path in paths)}
    patterns = {old: tree.compiled(old, "rename") for old in rename if old not in exact}
    for path, stored in paths.items():
        new = path
        for old, replacement in rename.items():
            if old in exact:
                hits, new = _in(path, old), replacement + path[len(old) :] if _in(path, old) else path
            else:
                new, hits = patterns[old].subn(replacement, path)
            if hits:
                used.add(old)
                break
        if new in out:
            raise ConfigError(f"`rename` sends `{_below(out[new])}` and `{path}` both to `{new}`")
        out[new] = stored
    for old in rename:
        if old not in used:
            raise tree.unmatched(old, list(paths), "rename")
    return out


# Leaves.


def _kind(path: str, leaf: Any) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) of a leaf of a state, or an error that names it."""
    if isinstance(leaf, bool | int | float | complex):
        leaf = np.asarray(leaf)
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
        raise ConfigError(f"`state` leaf `{path}` must be an array or a number, got a {type(leaf).__name__}")
    return leaf.dtype.name, tuple(leaf.shape)


def _saved_kind(info: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    return info.get("key", info)["dtype"], tuple(info.get("key", info)["shape"])


def _is_key(x: Any) -> bool:
    return not isinstance(x.dtype, np.dtype) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _check_array(path: str, x: Any) -> None:
    if not (_is_key(x) or x.dtype.kind in "biufc" or jnp.issubdtype(x.dtype, np.number)):
        raise ConfigError(f"`{path}` must hold numbers, got an array of dtype {x.dtype}")
    if not _check.is_concrete(x):
        raise ConfigError(f"`{path}` is being traced: save outside jit")
    if isinstance(x, jax.Array) and x.is_deleted():
        raise _check.ConsumedStateError(
            f"`{path}` was donated to a later step: save the state that step returned"
        )


def _copy_to_host(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """NumPy copies that share no memory with the arrays; all transfers run at once."""
    device = {path: jax.random.key_data(x) if _is_key(x) else x for path, x in arrays.items()}
    out: dict[str, np.ndarray] = {}
    for path, host in jax.device_get(device).items():
        # On accelerators device_get has copied; on the CPU it may be a view of a buffer that is then donated.
        shared = not isinstance(device[path], jax.Array) or (
            _on_host(device[path]) and not host.flags.owndata
        )
        native = host.dtype.newbyteorder("=")
        out[path] = np.array(host, native, copy=True, order="C") if shared else host
    return out


def _on_host(x: jax.Array) -> bool:
    return x.sharding.memory_kind != "device" or any(d.platform == "cpu" for d in x.devices())


def _info(path: str, host: Any, leaf: Any, split: list | None = None) -> dict[str, Any]:
    """What is said of an array: its digest, or, of one that was split over processes, those of its parts."""
    digest = {"crc32": _digest(path, host)} if split is None else {"parts": split}
    info = {"dtype": host.dtype.name, "shape": list(host.shape), **digest}
    if _is_key(leaf):
        impl = str(jax.random.key_impl(leaf))
        info["key"] = {"dtype": leaf.dtype.name, "shape": list(leaf.shape), "impl": impl}
    return info


def _is_intact(path: str, host: np.ndarray, info: Mapping[str, Any]) -> bool:
    if "parts" not in info:
        return _digest(path, host) == info["crc32"]
    return all(_digest(path, parts.part_of(host, part)) == digest for part, digest in info["parts"])


def _digest(path: str, host: np.ndarray) -> int:
    head = f"{path} {host.dtype.name} {host.shape}".encode(errors="surrogatepass")
    return zlib.crc32(np.ascontiguousarray(host).reshape(-1).view(np.uint8).data, zlib.crc32(head))


def _with_key(host: np.ndarray, key: Mapping[str, Any] | None) -> Any:
    return host if key is None else jax.random.wrap_key_data(jnp.asarray(host), impl=key["impl"])


def _fits_jax(x: Any) -> bool:
    return isinstance(x, np.ndarray) and jax.dtypes.canonicalize_dtype(x.dtype) == x.dtype


def _can_cast(saved: str, wanted: str) -> bool:
    kinds = (np.floating, np.integer, np.complexfloating)
    try:
        a, b = jnp.dtype(saved), jnp.dtype(wanted)
    except TypeError:  # a key's dtype
        return False
    return any(jnp.issubdtype(a, kind) and jnp.issubdtype(b, kind) for kind in kinds)


def _cast(path: str, host: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == host.dtype.name or dtype.startswith("key<"):
        return host
    with np.errstate(over="ignore"):
        out = host.astype(jnp.dtype(dtype))
    if jnp.issubdtype(out.dtype, np.integer) and not np.array_equal(out.astype(host.dtype), host):
        raise CheckpointMismatchError(f"`{path}` holds {host.dtype} numbers that {dtype} cannot hold")
    return out


def _place(host: np.ndarray, key: Mapping[str, Any] | None, like: Any) -> Any:
    """An array as what stands at its place in `like`."""
    if isinstance(like, np.generic):
        return host[()]
    if isinstance(like, np.ndarray):
        return host
    if not hasattr(like, "dtype"):
        return type(like)(host.item())
    # Committed to a device only if `like` is, or the compiled step would compile again.
    where = like.sharding if getattr(like, "committed", True) else None
    if where is not None and not where.is_fully_addressable:
        return _copied(sharding.put(_with_key(host, key), where))
    array = jax.device_put(_with_key(host, key), where)
    # On the CPU that is an alias of NumPy's memory, which could not be donated: the second put copies.
    return jax.device_put(array, where, may_alias=False) if _on_host(array) else array


_copied = jax.jit(lambda x: jnp.copy(x))


# Differences between what is saved and what is wanted.


def _fitted(
    like: PyTree,
    found: Mapping[str, tuple[np.ndarray, Mapping[str, Any]]],
    what: str,
    partial: bool = False,
    cast: bool = False,
) -> PyTree:
    """The arrays found, by path, as the tree `like`; `what` says in a message where they were found."""
    wanted = dict(tree.items(like))
    if len(wanted) != len(jax.tree.leaves(like)):
        raise ConfigError("`like` must not have two leaves of the same path")
    kinds = {path: _kind(path, leaf) for path, leaf in wanted.items()}
    rows = _differences({p: _saved_kind(info) for p, (_, info) in found.items()}, kinds, partial, cast)
    if rows:
        raise CheckpointMismatchError(f"{what} does not fit `like`:\n" + _table(rows))
    leaves = []
    for path, leaf in wanted.items():
        if path in found:
            host, info = found[path]
            leaf = _place(_cast(path, host, kinds[path][0]), info.get("key"), leaf)
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _differences(
    saved: Mapping[str, tuple], wanted: Mapping[str, tuple], partial: bool, cast: bool
) -> list[tuple]:
    """Rows (path, saved, wanted, problem) for each leaf that does not fit."""
    rows = []
    for path in dict.fromkeys([*wanted, *saved]):
        if path not in saved or path not in wanted:
            problem = "missing from the checkpoint" if path in wanted else "unexpected, not in `like`"
        elif saved[path][1] != wanted[path][1]:
            problem = "shape"
        elif saved[path][0] != wanted[path][0] and not (cast and _can_cast(saved[path][0], wanted[path][0])):
            problem = "dtype"
        else:
            continue
        rows.append((path, _show(saved.get(path)), _show(wanted.get(path)), problem))
    if partial and any(path in saved for path in wanted):
        rows = [row for row in rows if row[3] in ("shape", "dtype")]
    return rows


def _show(kind: tuple | None) -> str:
    return "-" if kind is None else f"{kind[0]}{list(kind[1])}"


def _table(rows: list[tuple], most: int = 40) -> str:
    shown = [("path", "saved", "wanted", "problem"), *((_short(row[0]), *row[1:]) for row in rows[:most])]
    widths = [max(len(row[i]) for row in shown) for i in range(3)]
    lines = ["  " + "  ".join([*map(str.ljust, row, widths), row[3]]) for row in shown]
    if len(rows) > most:
        lines.append(f"  and {len(rows) - most} more")
    problems = {row[3].partition(" ")[0].rstrip(",") for row in rows}
    if {"missing", "unexpected"} <= problems:
        lines.append(
            "rename={saved: wanted} renames saved leaves; partial=True restores what both sides have"
        )
    elif problems & {"missing", "unexpected"}:
        lines.append("partial=True restores what both sides have")
    if any(row[3] == "dtype" for row in rows):
        lines.append("cast=True converts between floats and between integers")
    return "\n".join(lines)


def _short(path: str, most: int = 60) -> str:
    path = repr(path)[1:-1]
    return path if len(path) <= most else "…" + path[-most + 1 :]


# Orbax: one commit of a flat dict of arrays and a JSON document.


_orbax_lock = (
    threading.Lock()
)  # two saves at once, of two directories even, take each other's signals in Orbax


def _orbax_save(path: Path, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp

    handler = ocp.CompositeCheckpointHandler(
        arrays=ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False),
        meta=ocp.JsonCheckpointHandler(filename=_META.name),
    )
    # new each time: a failed save must not fail the next
    with _orbax_lock, ocp.Checkpointer(handler) as checkpointer:
        args = ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(document))
        checkpointer.save(path, args=args)


def _read_arrays(step: Path, infos: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    """Read arrays with TensorStore, as Orbax does; here each failure names its leaf, and no event loop is needed.

    All are read at once; each is handed out as it comes, so that the caller works on it meanwhile.
    """
    import tensorstore as ts

    def result(path: str, future: Any) -> Any:
        try:
            return future.result()
        except ValueError as error:
            raise CheckpointCorruptError(f"{step}: leaf `{_below(path)}`: {_reason(error)}") from error

    needed = sum(math.prod(info["shape"]) * jnp.dtype(info["dtype"]).itemsize for info in infos.values())
    if needed > _memory():
        raise CheckpointError(f"{step} needs {needed / 2**30:,.1f} GiB of memory, more than this machine has")
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{step / 'arrays'}/"}}
    context = ts.Context()
    opening = {
        path: ts.open(
            {"driver": "zarr", "kvstore": {**store, "path": f"{_key(path)}/"}}, open=True, context=context
        )
        for path, info in infos.items()
        if 0 not in info["shape"]
    }
    arrays = {path: result(path, future) for path, future in opening.items()}
    for path, array in arrays.items():  # before memory is asked for
        if array.shape != tuple(infos[path]["shape"]) or array.dtype.name != infos[path]["dtype"]:
            raise CheckpointCorruptError(
                f"{step}: leaf `{_below(path)}` is stored as {array.dtype}{array.shape}"
            )
    reading = {path: array.read() for path, array in arrays.items()}
    for path, info in infos.items():
        if path in reading:
            yield path, result(path, reading.pop(path))
        else:
            yield path, np.empty(info["shape"], jnp.dtype(info["dtype"]))


def _memory() -> float:
    """Bytes of memory of this machine, or infinity where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _reason(error: BaseException) -> str:
    """The first cause of an error, short."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _step_of(state: PyTree) -> int:
    step = getattr(state, "step", None)
    if step is None or np.ndim(step) != 0:
        raise ConfigError("`step` must be given: the state has no integer `.step`")
    return int(step)


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


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
