"""Short films for what reads cameras."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_film(path: Path, frames: int) -> list[np.ndarray]:
    """Write grey-blue frames of 48 x 64, each lighter; return them as RGB, before compression."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    assert writer.isOpened()
    made = [np.full((48, 64, 3), (20 * n, 20 * n, 200), np.uint8) for n in range(frames)]
    for frame in made:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return made
