from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitlet.errors import ShapeError
from vitlet.ops import resize_crop, resize_normalize

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def test_shapes_and_dtypes() -> None:
    crop = resize_crop(IMAGE, (10, 15), (1, 2, 8, 9), interpolation="bicubic")
    assert crop.shape == (8, 9, 3)
    assert crop.dtype == np.uint8
    tensor = resize_normalize(IMAGE, (10, 15), (1, 2, 8, 9), ZERO, ONE, interpolation="bicubic")
    assert tensor.shape == (3, 8, 9)
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, crop.transpose(2, 0, 1).astype(np.float32) / 255)


def test_strided_views_are_copied() -> None:
    for view in (IMAGE[::-1], IMAGE[:, ::2], IMAGE[:, :, ::-1], IMAGE.transpose(1, 0, 2)):
        expected = resize_crop(view.copy(), (7, 7), (0, 0, 7, 7))
        np.testing.assert_array_equal(resize_crop(view, (7, 7), (0, 0, 7, 7)), expected)


@pytest.mark.parametrize(
    ("image", "resized", "window"),
    [
        (IMAGE.astype(np.int32), (7, 7), (0, 0, 7, 7)),
        (IMAGE[:, :, 0], (7, 7), (0, 0, 7, 7)),
        (IMAGE[:0], (7, 7), (0, 0, 7, 7)),
        (IMAGE, (7, 7), (0, 0, 8, 7)),
        (IMAGE, (7.5, 7), (0, 0, 7, 7)),
        (IMAGE, (7,), (0, 0, 7, 7)),
        (IMAGE, (10**30, 7), (0, 0, 7, 7)),
        ([[1, 2], [3, 4]], (7, 7), (0, 0, 7, 7)),
        (None, (7, 7), (0, 0, 7, 7)),
    ],
)
def test_wrong_arguments_are_shape_errors(image: Any, resized: Any, window: Any) -> None:
    with pytest.raises(ShapeError, match=r"\[resize_\w+\] expected"):
        resize_crop(image, resized, window)
    with pytest.raises(ShapeError, match=r"\[resize_\w+\] expected"):
        resize_normalize(image, resized, window, ZERO, ONE)


def test_mean_and_std_are_one_per_channel() -> None:
    with pytest.raises(ShapeError, match="expected 3 values of std, one per channel, got 2"):
        resize_normalize(IMAGE, (7, 7), (0, 0, 7, 7), ZERO, ONE[:2])
