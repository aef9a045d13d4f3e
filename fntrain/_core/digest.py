"""Digests of arrays and of text: one way each, so that what one part writes another can check."""

import hashlib
import zlib
from typing import Any

import numpy as np


def crc32(x: Any, start: int = 0) -> int:
    """The CRC-32 of an array's bytes in C order, going on from `start`; it is not told from one of another shape."""
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data, start)


def sha256(text: str) -> str:
    """The SHA-256 of a text, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
