"""Five small photographs for demonstrations and checks (licences beside the files)."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from vitlet.data.image import load_image

__all__ = ["demo_photos"]

_NAMES = ("astronaut", "cat", "coffee", "galaxies", "rocket")


def demo_photos() -> dict[str, NDArray[np.uint8]]:
    """Return the photographs by name, as uint8 (H, W, 3), longer side 320 pixels.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    photos = {}
    for name in _NAMES:
        with as_file(files("vitlet.data") / "assets" / "photos" / f"{name}.jpg") as path:
            photos[name] = load_image(path)
    return photos
