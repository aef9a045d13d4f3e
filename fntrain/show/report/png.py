"""Images as PNG, written by hand: the format is a header, rows and checksums."""

import struct
import zlib
from typing import Any

import numpy as np

from ..._core.errors import DataError

_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels: grey, grey and alpha, colours, colours and alpha


def png(image: Any) -> bytes:
    r"""An image as a PNG file.

    Args:
      image: `[H, W]` or `[H, W, C]` with 1 to 4 channels; uint8, or floats from 0 to 1, which are clipped.

    Raises:
      DataError: if it has another form or dtype.

    Examples:
      >>> png(np.zeros((2, 3)))[:8]
      b'\x89PNG\r\n\x1a\n'
    """
    pixels = as_pixels(image)
    height, width, channels = pixels.shape
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1
    )  # 0: no filter
    head = struct.pack(">IIBBBBB", width, height, 8, _KINDS[channels], 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def as_pixels(image: Any) -> np.ndarray:
    """An image as uint8 `[H, W, C]`.

    Raises:
      DataError: if it is none.
    """
    x = np.asarray(image)
    whole = x.dtype == np.uint8
    form = x.ndim == 2 or (x.ndim == 3 and x.shape[-1] in _KINDS)
    if not form or not x.size or not (whole or np.issubdtype(x.dtype, np.floating)):
        raise DataError(
            f"an image must be [H, W] or [H, W, C] with 1 to 4 channels, uint8 or floats from 0 to 1, got "
            f"{x.dtype}{list(x.shape)}"
        )
    if not whole:
        x = np.round(255 * np.clip(np.nan_to_num(x.astype(np.float64)), 0, 1)).astype(np.uint8)
    return x.reshape(*x.shape[:2], -1)
