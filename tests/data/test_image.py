from __future__ import annotations

import os
import random
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vitlet.data import image as image_module
from vitlet.data.image import SAFE_FORMATS, decode_image, load_image
from vitlet.data.photos import demo_photos
from vitlet.errors import ImageError, MissingDependencyError, ShapeError, UsageError

RGB = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_a_file_gives_its_pixels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    np.testing.assert_array_equal(load_image(path), RGB)
    np.testing.assert_array_equal(load_image(str(path)), RGB)
    np.testing.assert_array_equal(load_image(Image.fromarray(RGB)), RGB)


def test_a_large_picture_is_read_in_bands(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (401, 503, 3), dtype=np.uint8)
    np.testing.assert_array_equal(load_image(Image.fromarray(pixels)), pixels)
    np.testing.assert_array_equal(
        load_image(Image.fromarray(pixels[:, :, 0]), "L"), pixels[:, :, :1]
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_what_convert_makes_of_it(mode: str) -> None:
    picture = Image.fromarray(RGB).convert("L" if mode == "PA" else "RGB").convert(mode)
    expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(load_image(picture), expected)
    grey = load_image(picture, "L")
    assert grey.shape == (12, 17, 1)
    np.testing.assert_array_equal(grey[:, :, 0], np.asarray(picture.convert("RGB").convert("L")))


def test_alpha_is_dropped_not_composited(tmp_path: Path) -> None:
    pixels = np.dstack([RGB, np.zeros((12, 17), np.uint8)])
    path = saved(tmp_path / "clear.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(load_image(path), RGB)
    np.testing.assert_array_equal(load_image(pixels), RGB)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    picture = Image.fromarray(RGB).quantize(16)
    path = saved(tmp_path / "p.png", picture, transparency=bytes(range(16)))
    np.testing.assert_array_equal(load_image(path), np.asarray(picture.convert("RGB")))


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path) -> None:
    deep = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    expected = np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    for name in ("deep.png", "deep.tif"):
        path = saved(tmp_path / name, Image.fromarray(deep))
        np.testing.assert_array_equal(load_image(path), expected)
        np.testing.assert_array_equal(load_image(path, "L"), expected[:, :, :1])


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "f.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(ImageError, match="floating-point"):
        load_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "turned.png", Image.fromarray(RGB), exif=exif)
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: RGB.transpose(1, 0, 2)[:, ::-1],
        7: RGB.transpose(1, 0, 2)[::-1, ::-1],
        8: RGB.transpose(1, 0, 2)[::-1],
    }
    np.testing.assert_array_equal(load_image(path), upright[orientation])


def test_damaged_exif_data_means_upright(tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.png", Image.fromarray(RGB), exif=b"Exif\x00\x00garbage")
    np.testing.assert_array_equal(load_image(path), RGB)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (9, 5), colour) for colour in ("red", "lime", "blue")]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (load_image(path) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("array", "mode", "expected"),
    [
        (RGB[:, :, 0], "RGB", np.repeat(RGB[:, :, :1], 3, axis=2)),
        (RGB[:, :, :1], "RGB", np.repeat(RGB[:, :, :1], 3, axis=2)),
        (RGB[:, :, 0], "L", RGB[:, :, :1]),
        (RGB, "L", np.asarray(Image.fromarray(RGB).convert("L"))[:, :, None]),
        (RGB[::-1, ::2], "RGB", RGB[::-1, ::2]),
    ],
)
def test_arrays_are_taken_as_pillow_would(array: Any, mode: Any, expected: Any) -> None:
    np.testing.assert_array_equal(load_image(array, mode), expected)


@pytest.mark.parametrize(
    "array",
    [
        RGB.astype(np.float32),
        RGB.astype(np.int64),
        RGB[:, :, :2],
        RGB[0, 0],
        RGB[None],
        RGB[:0],
        np.empty((3, 0, 3), np.uint8),
        np.array(7, np.uint8),
    ],
)
def test_other_arrays_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(ShapeError, match=r"uint8|\(H, W\)"):
        load_image(array)


@pytest.mark.parametrize("value", [None, 3, b"a.png", object()])
def test_other_objects_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="a path, a Pillow image or a uint8 array"):
        load_image(value)
    with pytest.raises(UsageError, match="mode"):
        load_image(RGB, "BGR")  # type: ignore[arg-type]


def test_paths_that_are_no_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such image file: .*gone\.png"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(UsageError, match="is a folder"):
        load_image(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UsageError, match="not a regular file"):
            load_image(tmp_path / "pipe")


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"a\.jpg is empty"):
        load_image(path)
    path.write_text("hello")
    with pytest.raises(ImageError, match=r"a\.jpg is not an image"):
        load_image(path)


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_a_truncated_file_is_refused(extension: str, tmp_path: Path) -> None:
    path = saved(tmp_path / f"a.{extension}", Image.fromarray(np.tile(RGB, (9, 9, 1))))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ImageError, match=rf"a\.{extension}"):
        load_image(path)


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "tga"])
def test_damage_anywhere_gives_pixels_or_one_clear_error(extension: str, tmp_path: Path) -> None:
    room = BytesIO()
    kind = {"jpg": "jpeg", "tif": "tiff"}.get(extension, extension)
    Image.fromarray(RGB).save(room, format=kind)
    rng = random.Random(0)
    path = tmp_path / f"a.{extension}"
    for _ in range(150):
        data = bytearray(room.getvalue())
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randint(1, len(data))] if rng.random() < 0.2 else data)
        try:
            pixels = load_image(path)
        except ImageError as error:
            assert str(path) in str(error)
        else:
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3


def test_pictures_too_large_to_be_safe_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "bomb.png", Image.new("1", (10_000, 9_000)))
    with pytest.raises(ImageError, match="more than 89,478,485 pixels"):
        load_image(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = Image.open(path)
    with opened, pytest.raises(ImageError, match="more than 89,478,485 pixels"):
        load_image(opened)
    huge = saved(tmp_path / "huge.png", Image.new("1", (20_000, 9_000)))
    with pytest.raises(ImageError, match="more than 89,478,485 pixels"):
        load_image(huge)
    monkeypatch.setattr(image_module, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="more than 100 pixels"):
        load_image(Image.fromarray(RGB))


@pytest.mark.parametrize("kind", SAFE_FORMATS)
def test_bytes_give_what_their_file_gives(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a", Image.fromarray(RGB), format=kind)
    for mode in ("RGB", "L"):
        np.testing.assert_array_equal(decode_image(path.read_bytes(), mode), load_image(path, mode))


@pytest.mark.parametrize("kind", ["tiff", "ppm", "tga", "eps", "pdf"])
def test_bytes_of_other_formats_are_not_decoded(kind: str) -> None:
    room = BytesIO()
    Image.fromarray(RGB).save(room, format=kind)
    with pytest.raises(ImageError, match="not an image that Pillow can read"):
        decode_image(room.getvalue())


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(9)])
def test_bytes_that_are_no_image_are_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match="what was sent"):
        decode_image(content)


def test_files_need_pillow_and_arrays_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    for name in [name for name in sys.modules if name.split(".")[0] == "PIL"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"vitlet\[runtime\]"):
        load_image(path)
    with pytest.raises(MissingDependencyError, match=r"vitlet\[runtime\]"):
        demo_photos()
    np.testing.assert_array_equal(load_image(RGB), RGB)
