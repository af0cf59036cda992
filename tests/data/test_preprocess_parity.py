"""Against outputs of the models' own pipelines (torchvision over Pillow 13)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vitlet.data.preprocess import preprocess
from vitlet.data.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess

EXPECTED = np.load(Path(__file__).parents[1] / "parity" / "preprocess.npz")
SPECS = {
    ("mobileclip", 256): Preprocess((256, 256), resize_to=256),
    ("mobileclip", 224): Preprocess((224, 224), resize_to=224),
    ("casvit", 224): Preprocess(
        (224, 224),
        resize_to=256,
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    ("casvit", 384): Preprocess(
        (384, 384), resize="squash", interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
}


def synthetic(width: int, height: int) -> NDArray[np.uint8]:
    """The source images that the recorded outputs were made from."""
    y, x = np.mgrid[:height, :width]
    red = x * 255 // (width - 1)
    green = y * 255 // (height - 1)
    blue = (x // 7 + y // 5) % 2 * 200 + x * y % 56
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


@pytest.mark.parametrize("name", sorted(EXPECTED.files))
def test_equals_the_upstream_pipeline(name: str) -> None:
    match = re.fullmatch(r"(\w+?)_(\d+)_(\d+)x(\d+)_sub16", name)
    assert match is not None
    family, size, width, height = match[1], *map(int, match.groups()[1:])
    got = preprocess(synthetic(width, height), SPECS[family, size])[0]
    np.testing.assert_array_equal(got[:, 5::16, 3::16], EXPECTED[name])
