from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitlet.data.photos import demo_photos
from vitlet.data.preprocess import geometry, preprocess, resize_crop
from vitlet.data.spec import IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD, Preprocess
from vitlet.errors import ShapeError, UsageError

CLIP = Preprocess((256, 256), resize_to=256)
DEIT = Preprocess(
    (224, 224), resize_to=256, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD
)
SQUASH = Preprocess((64, 96), resize="squash", mean=OPENAI_MEAN, std=OPENAI_STD)
GREY = Preprocess((28, 28), resize_to=28, mean=(0.286,), std=(0.353,), mode="L")


def by_pillow(image: Image.Image, spec: Preprocess) -> Any:
    """torchvision's Resize, CenterCrop, ToTensor and Normalize, in Pillow and numpy."""
    image = image.convert(spec.mode)
    width, height = image.size
    rows, columns = spec.size
    if spec.resize == "squash":
        new = (columns, rows)
    elif width <= height:
        new = (spec.resize_to, int(spec.resize_to * height / width))
    else:
        new = (int(spec.resize_to * width / height), spec.resize_to)
    image = image.resize(new, Image.Resampling[spec.interpolation.upper()])
    top, left = round((new[1] - rows) / 2.0), round((new[0] - columns) / 2.0)
    image = image.crop((left, top, left + columns, top + rows))
    data = np.asarray(image).reshape(rows, columns, -1)
    scaled = data.astype(np.float32) / np.float32(255)
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    return data, ((scaled - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("spec", [CLIP, DEIT, SQUASH, GREY])
@pytest.mark.parametrize("name", sorted(demo_photos()))
def test_photographs_come_out_as_from_torchvision(name: str, spec: Preprocess) -> None:
    photo = demo_photos()[name]
    data, tensor = by_pillow(Image.fromarray(photo), spec)
    np.testing.assert_array_equal(resize_crop(photo, spec)[0], data)
    np.testing.assert_array_equal(preprocess(photo, spec)[0], tensor)


@pytest.mark.parametrize(
    ("height", "width", "resized", "window"),
    [
        (480, 640, (256, 341), (16, 58, 224, 224)),
        (640, 480, (341, 256), (58, 16, 224, 224)),
        (256, 256, (256, 256), (16, 16, 224, 224)),
        (333, 1001, (256, 769), (16, 272, 224, 224)),
        (1, 1000, (256, 256_000), (16, 127_888, 224, 224)),
    ],
)
def test_geometry_truncates_the_long_side_and_rounds_halves_to_even(
    height: int, width: int, resized: tuple[int, int], window: tuple[int, ...]
) -> None:
    assert geometry(height, width, DEIT) == (resized, window)


def test_images_of_any_kind_and_number_make_one_batch(tmp_path: Path) -> None:
    photo = demo_photos()["cat"]
    path = tmp_path / "cat.png"
    Image.fromarray(photo).save(path)
    one = preprocess(photo, CLIP)
    assert one.shape == (1, 3, 256, 256)
    assert one.dtype == np.float32
    batch = preprocess([photo, path, str(path), Image.open(path)], CLIP)
    assert batch.shape == (4, 3, 256, 256)
    assert (batch == one).all()
    assert (preprocess(np.stack([photo, photo]), CLIP) == one).all()
    assert (preprocess((path,), CLIP) == one).all()
    assert preprocess(photo[:, :, 0], GREY).shape == (1, 1, 28, 28)
    assert resize_crop([photo, path], CLIP).shape == (2, 256, 256, 3)


def test_views_need_not_be_contiguous() -> None:
    photo = demo_photos()["coffee"]
    for view in (photo[::-1], photo[:, ::-1], photo[::2, 1::3], photo.transpose(1, 0, 2)):
        np.testing.assert_array_equal(preprocess(view, CLIP), preprocess(view.copy(), CLIP))


@pytest.mark.parametrize("height,width", [(1, 1), (1, 400), (400, 1), (2, 3)])
def test_tiny_and_thin_pictures_work(height: int, width: int) -> None:
    image = np.full((height, width, 3), 51, np.uint8)
    assert np.allclose(preprocess(image, CLIP), 0.2)


def test_what_cannot_be_an_image_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one image"):
        preprocess([], CLIP)
    with pytest.raises(ShapeError, match="uint8"):
        preprocess(np.zeros((1, 8, 8, 3)), CLIP)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"\(H, W\)"):
        preprocess(np.zeros((2, 1, 8, 8, 3), np.uint8), CLIP)
    with pytest.raises(ShapeError, match="sides of 1 to 1048576"):
        preprocess(np.zeros((1, 2**20 + 1, 3), np.uint8), SQUASH)


def test_arrays_need_neither_pillow_nor_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "sys.modules['PIL'] = sys.modules['torch'] = None\n"
        "from vitlet.data.preprocess import preprocess\n"
        "from vitlet.data.spec import Preprocess\n"
        "image = np.zeros((9, 9, 3), np.uint8)\n"
        "print(preprocess(image, Preprocess((4, 4), resize_to=4)).shape)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "(1, 3, 4, 4)"
