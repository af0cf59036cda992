"""Small pictures as data URIs, without an image library: a device may have none."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def data_uri(pixels: NDArray[np.uint8], *, smallest: int = 96, largest: int = 192) -> str:
    """Return a uint8 (H, W, C) picture, C 1 or 3, as a PNG data URI.

    Large ones are shrunk by averaging whole squares, small ones blown up by repeating pixels.
    """
    height, width, channels = pixels.shape
    shrink = -(-max(height, width) // largest)
    if shrink > 1:
        rows, columns = max(1, height // shrink), max(1, width // shrink)
        cut = pixels[: rows * shrink, : columns * shrink].astype(np.float32)
        squares = cut.reshape(rows, -1, columns, min(shrink, width), channels)
        pixels = squares.mean(axis=(1, 3)).round().astype(np.uint8)
    grow = smallest // max(pixels.shape[:2])
    if grow > 1:
        pixels = pixels.repeat(grow, axis=0).repeat(grow, axis=1)
    return "data:image/png;base64," + base64.b64encode(_png(pixels)).decode()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode (W3C PNG, third edition): no filter, one compressed block."""
    height, width, channels = pixels.shape
    colour = 2 if channels == 3 else 0
    lines = np.concatenate(
        [np.zeros((height, 1), np.uint8), pixels.reshape(height, width * channels)], axis=1
    )
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
