"""The demo's pictures, bundled with the package: 200 Fashion-MNIST test images (no torch, no PIL).

Fashion-MNIST (Xiao et al., 2017), Zalando SE, MIT licence. The images are the first 20 of each
class in the order of the test set; `scripts/train_demo.py --bundle-images` wrote the files.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
from numpy.typing import NDArray

from vitlet.data.photos import demo_photos
from vitlet.errors import CorruptInputError

_ASSETS = "vitlet.data"
_IMAGES = "assets/fashion_test.npz"
_LABELS = "assets/fashion_labels.txt"

__all__ = ["demo_images", "demo_photos"]


def demo_images() -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Return 200 real grey test images of clothes, 20 per class, with what they show.

    Returns:
        images: uint8 (200, 28, 28, 1), 0 is the background.
        labels: int64 (200,), class numbers.
        names: class names; ``names[labels[i]]`` is what image i shows.

    Raises:
        CorruptInputError: the package's files are damaged.
    """
    folder = resources.files(_ASSETS)
    names = tuple((folder / _LABELS).read_text(encoding="utf-8").splitlines())
    try:
        with (folder / _IMAGES).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"][..., None], arrays["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise CorruptInputError(
            f"the demo images in the vitlet package cannot be read ({error}): reinstall vitlet"
        ) from error
    return images, labels, names
