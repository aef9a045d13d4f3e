"""restore_params: parameters alone, for inference."""

import contextlib
import os
from typing import Literal

from .._core import check
from .._core.errors import (
    CheckpointError,
)
from .._core.typing import Params
from .checkpointer import Checkpointer
from .keep import Keep
from .leaves import on_device
from .pack import unpack


def restore_params(directory: str | os.PathLike[str], step: int | Literal["best"] | None = None) -> Params:
    """The saved parameters alone, for inference: nothing of the training code is needed.

    Args:
      directory: a `Checkpointer`'s directory, or a run's, whose `checkpoints` they are in.
      step: a step's number, `"best"` as ranked by the `Keep` it was saved with, or None for the newest
        intact one.

    Returns:
      `state.params` (or `state["params"]`) as saved: dicts, lists, tuples and None come back as such, other
      nodes as dicts of their fields; leaves are JAX arrays, or NumPy arrays of a dtype JAX has switched off.

    Raises:
      CheckpointCorruptError: if the step, or with None every step, is damaged.
      CheckpointError: if there is no such step, or its state has no `params`.
    """
    path = check.path("directory", directory)
    # A run directory holds no steps itself.
    if (path / "checkpoints").is_dir() and Checkpointer(path).latest_step is None:
        path = path / "checkpoints"
    with Checkpointer(path) as checkpoints:
        if step == "best":
            checkpoints.keep = _keep_of_newest(checkpoints)
        _, body, arrays = checkpoints._load(step, "state/params", alone=True)
        state = body["state"]
        if not isinstance(state, dict) or "params" not in state:
            raise CheckpointError(f"the state saved in {checkpoints.directory} has no `params`")
        params = unpack(state["params"], body["arrays"], arrays)
    return on_device(params)


def _keep_of_newest(checkpointer: Checkpointer) -> Keep:
    """What the newest readable step was ranked by, for who has not got its `Keep`."""
    shelf = checkpointer._shelf
    for _, name in sorted(shelf.index().items(), reverse=True):
        with contextlib.suppress(CheckpointError):
            return Keep(best=shelf.read_document(name)["best"])
    return checkpointer.keep
