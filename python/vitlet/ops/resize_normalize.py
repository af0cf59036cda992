"""Antialiased resize, crop and normalization of 8-bit images, byte for byte as Pillow does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import ShapeError
from vitlet.ops.native import extension

Interpolation = Literal["bilinear", "bicubic"]

__all__ = ["Interpolation", "resize_crop", "resize_normalize"]


def resize_normalize(
    image: NDArray[np.uint8],
    resized: tuple[int, int],
    window: tuple[int, int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    interpolation: Interpolation = "bilinear",
) -> NDArray[np.float32]:
    """Resize, crop and normalize one image.

    Only the window is computed, so a crop of a large picture is cheap. The bytes before
    normalization are Pillow 13's, and the three operations ``(byte / 255 - mean) / std`` are
    rounded to float32 one by one, as torchvision does them.

    Args:
        image: uint8 (H, W, C) with C = 1, 3 or 4; any strides. Channels are independent: alpha is
            not premultiplied.
        resized: (height, width) of the whole resized picture, in pixels.
        window: (top, left, height, width) of the part to return, inside the resized picture.
        mean: C values, subtracted from values in [0, 1].
        std: C positive values, divided by.
        interpolation: "bilinear" (triangle) or "bicubic" (a = -0.5), widened when shrinking.

    Returns:
        float32 (C, height, width).

    Raises:
        ShapeError: the image, the sizes or the number of channels do not fit.
    """
    try:
        return extension.resize_normalize(
            _contiguous(image), resized, window, mean, std, filter=interpolation
        )
    except (TypeError, ValueError) as error:
        raise _shape_error("resize_normalize", error) from None


def resize_crop(
    image: NDArray[np.uint8],
    resized: tuple[int, int],
    window: tuple[int, int, int, int],
    *,
    interpolation: Interpolation = "bilinear",
) -> NDArray[np.uint8]:
    """Resize and crop one image; see `resize_normalize` for the arguments and errors.

    Returns:
        uint8 (height, width, C).
    """
    try:
        return extension.resize_crop(_contiguous(image), resized, window, filter=interpolation)
    except (TypeError, ValueError) as error:
        raise _shape_error("resize_crop", error) from None


def _contiguous(image: NDArray[Any]) -> NDArray[Any]:
    # An array of the wrong kind goes through as it is: the extension says what is wrong with it.
    return np.ascontiguousarray(image) if isinstance(image, np.ndarray) and image.ndim else image


def _shape_error(op: str, error: Exception) -> ShapeError:
    if isinstance(error, TypeError):  # pybind11's text lists C++ signatures over many lines
        return ShapeError(
            f"[{op}] expected a uint8 array (H, W, C), two (height, width) and "
            "(top, left, height, width) tuples of integers, and one mean and std per channel"
        )
    return ShapeError(str(error))
