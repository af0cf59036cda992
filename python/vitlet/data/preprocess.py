"""From pictures to model input, with torchvision's geometry and Pillow's pixels, without either.

``Resize(n)`` makes the shorter side n and the longer one ``int(n * long / short)``; ``CenterCrop``
cuts at ``round((length - size) / 2)``, halves to even. The picture is made RGB before it is
resized.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vitlet.data.image import ImageLike, load_image
from vitlet.data.spec import Preprocess
from vitlet.errors import UsageError
from vitlet.ops.resize_normalize import resize_crop as resize_crop_one
from vitlet.ops.resize_normalize import resize_normalize

__all__ = ["geometry", "preprocess", "resize_crop"]


def preprocess(images: ImageLike | Sequence[ImageLike], spec: Preprocess) -> NDArray[np.float32]:
    """Return images as the model takes them.

    Args:
        images: one image or a sequence of them: paths, Pillow images or uint8 arrays (H, W, C).
            A uint8 array (B, H, W, C) is a sequence.
        spec: what the model expects.

    Returns:
        float32 (B, C, H, W).

    Raises:
        ImageError, UsageError, ShapeError, MissingDependencyError: as `load_image`.
    """
    batch = []
    for image in _as_sequence(images):
        pixels = load_image(image, spec.mode)
        resized, window = geometry(pixels.shape[0], pixels.shape[1], spec)
        batch.append(
            resize_normalize(
                pixels, resized, window, spec.mean, spec.std, interpolation=spec.interpolation
            )
        )
    return batch[0][None] if len(batch) == 1 else np.stack(batch)


def resize_crop(images: ImageLike | Sequence[ImageLike], spec: Preprocess) -> NDArray[np.uint8]:
    """Return images resized and cropped but not normalized, for models that do the rest.

    Args:
        images: as for `preprocess`.
        spec: what the model expects; its mean and std are not used.

    Returns:
        uint8 (B, H, W, C), the bytes that Pillow gives.

    Raises:
        ImageError, UsageError, ShapeError, MissingDependencyError: as `load_image`.
    """
    batch = []
    for image in _as_sequence(images):
        pixels = load_image(image, spec.mode)
        resized, window = geometry(pixels.shape[0], pixels.shape[1], spec)
        batch.append(resize_crop_one(pixels, resized, window, interpolation=spec.interpolation))
    return batch[0][None] if len(batch) == 1 else np.stack(batch)


def geometry(
    height: int, width: int, spec: Preprocess
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Return the size to resize to and the window to cut from it.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        spec: what the model expects.

    Returns:
        (height, width) of the resized picture and (top, left, height, width) of the window.
    """
    crop_height, crop_width = spec.size
    if spec.resize == "squash":
        return (crop_height, crop_width), (0, 0, crop_height, crop_width)
    long_side = int(spec.resize_to * max(height, width) / min(height, width))
    resized = (spec.resize_to, long_side) if height <= width else (long_side, spec.resize_to)
    top = round((resized[0] - crop_height) / 2)
    left = round((resized[1] - crop_width) / 2)
    return resized, (top, left, crop_height, crop_width)


def _as_sequence(images: ImageLike | Sequence[ImageLike]) -> Sequence[ImageLike]:
    single = isinstance(images, str | os.PathLike) or not hasattr(images, "__len__")
    if isinstance(images, np.ndarray):
        single = images.ndim != 4
    sequence = [cast("ImageLike", images)] if single else cast("Sequence[ImageLike]", images)
    if len(sequence) == 0:
        raise UsageError("expected at least one image, got an empty sequence")
    return sequence
