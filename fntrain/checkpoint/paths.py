"""Paths of leaves: `state/params/w` in the document, `state.params.w` as a key on disk."""

import urllib.parse
from collections.abc import Mapping

from .. import tree
from .._core.errors import (
    ConfigError,
)

# Paths: `state/params/w` in the document, `state.params.w` as Orbax's key.


def is_in(path: str, part: str) -> bool:
    """Whether a path is a part or lies below it."""
    return path == part or path.startswith(part + "/")


def below(path: str) -> str:
    """A path without its first word, `state`."""
    return path.partition("/")[2]


def key_of(path: str) -> str:
    """A path as one word of safe characters, different for different paths."""
    quoted = urllib.parse.quote(path, safe="", errors="surrogatepass")
    return quoted.replace(".", "%2E").replace("%2F", ".")


def renamed(paths: Mapping[str, str], rename: Mapping[str, str]) -> dict[str, str]:
    """`{wanted path: stored path}`: the keys of `paths` renamed, each by the first rule it meets."""
    out: dict[str, str] = {}
    used: set[str] = set()
    exact = {old for old in rename if any(is_in(path, old) for path in paths)}
    patterns = {old: tree.compiled(old, "rename") for old in rename if old not in exact}
    for path, stored in paths.items():
        new = path
        for old, replacement in rename.items():
            if old in exact:
                hits, new = is_in(path, old), replacement + path[len(old) :] if is_in(path, old) else path
            else:
                new, hits = patterns[old].subn(replacement, path)
            if hits:
                used.add(old)
                break
        if new in out:
            raise ConfigError(f"`rename` sends `{below(out[new])}` and `{path}` both to `{new}`")
        out[new] = stored
    for old in rename:
        if old not in used:
            raise tree.unmatched(old, list(paths), "rename")
    return out
