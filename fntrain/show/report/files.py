"""Style and script, which are files of their own kind beside the code."""

import functools
from importlib import resources


@functools.cache
def text_of(name: str) -> str:
    """A file of this folder."""
    return resources.files(__name__.rpartition(".")[0]).joinpath(name).read_text(encoding="utf-8")
