"""Every instruction set against the reference, and both against Pillow: equal bits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vitlet import _C

ISAS = ["reference", *_C.supported_isas()]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # CMYK: four channels that Pillow does not premultiply

# (height, width) -> (height, width): up, down, mixed, primes, single pixels, one side unchanged.
SIZES = [
    ((1, 1), (1, 1)),
    ((1, 1), (7, 5)),
    ((1, 97), (3, 16)),
    ((97, 1), (16, 3)),
    ((2, 2), (33, 65)),
    ((13, 17), (13, 17)),
    ((13, 17), (13, 41)),
    ((13, 17), (41, 17)),
    ((28, 28), (56, 56)),
    ((31, 64), (16, 15)),
    ((64, 31), (15, 16)),
    ((101, 103), (50, 47)),
    ((480, 640), (256, 341)),
    ((199, 61), (7, 60)),
    ((61, 199), (60, 7)),
    ((300, 5), (1, 1)),
]


def made_up_image(height: int, width: int, channels: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise, with black and white in it so that bicubic overshoots are clipped."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    extremes = rng.integers(0, 2, image.shape, dtype=np.uint8) * 255
    return np.where(rng.random(image.shape) < 0.5, image, extremes).astype(np.uint8)


def by_pillow(image: NDArray[np.uint8], resized: tuple[int, int], name: str) -> NDArray[np.uint8]:
    """Pillow 13's resize, in any version: it goes down first if the height loses more."""
    height, width, channels = image.shape
    source = Image.frombytes(MODES[channels], (width, height), image.tobytes())
    lost_rows, lost_columns = height - resized[0], width - resized[1]
    vertical_first = lost_rows > 0 and lost_rows > 2 * lost_columns
    between = (width, resized[0]) if vertical_first else (resized[1], height)
    result = source.resize(between, FILTERS[name]).resize(resized[::-1], FILTERS[name])
    return np.asarray(result).reshape(*resized, channels)


def by_definition(
    data: NDArray[np.uint8], mean: list[float], std: list[float]
) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = data.astype(np.float32) / np.float32(255)
    scaled -= np.array(mean, np.float32)
    scaled /= np.array(std, np.float32)
    return np.moveaxis(scaled, 2, 0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bytes_equal_pillows(
    size: tuple[tuple[int, int], tuple[int, int]], name: str, channels: int, isa: str
) -> None:
    source, resized = size
    image = made_up_image(*source, channels)
    expected = by_pillow(image, resized, name)
    whole = (0, 0, *resized)
    np.testing.assert_array_equal(
        _C.resize_crop(image, resized, whole, filter=name, isa=isa), expected
    )
    mean, std = [0.5, 0.25, 0.1, 0.0][:channels], [0.2, 0.3, 1.0, 0.7][:channels]
    np.testing.assert_array_equal(
        _C.resize_normalize(image, resized, whole, mean, std, filter=name, isa=isa),
        by_definition(expected, mean, std),
    )


@pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="older Pillow never shrinks the height first"
)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bytes_equal_one_call_of_pillow_13(
    size: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    source, resized = size
    image = made_up_image(*source, 3)
    for name, kind in FILTERS.items():
        expected = np.asarray(Image.fromarray(image).resize(resized[::-1], kind))
        got = _C.resize_crop(image, resized, (0, 0, *resized), filter=name)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("source", "resized"), [((50, 40), (37, 29)), ((20, 30), (70, 41)), ((90, 31), (37, 29))]
)
def test_a_window_equals_that_part_of_the_whole(
    source: tuple[int, int], resized: tuple[int, int], channels: int, isa: str
) -> None:
    image = made_up_image(*source, channels)
    whole = by_pillow(image, resized, "bicubic")
    height, width = resized
    tops = [(0, 1), (0, height), (height - 1, 1), (height - 6, 6), (11, 13)]
    lefts = [(0, 1), (0, width), (width - 1, 1), (width - 5, 5), (7, 17)]
    for (top, rows), (left, columns) in itertools.product(tops, lefts):
        got = _C.resize_crop(image, resized, (top, left, rows, columns), filter="bicubic", isa=isa)
        np.testing.assert_array_equal(got, whole[top : top + rows, left : left + columns])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("offset", [1, 3, 63])
def test_memory_need_not_be_aligned(offset: int, isa: str) -> None:
    image = made_up_image(33, 35, 3)
    room = np.empty(image.nbytes + 64, np.uint8)
    moved = room[offset : offset + image.nbytes].reshape(image.shape)
    moved[...] = image
    got = _C.resize_crop(moved, (16, 19), (0, 0, 16, 19), isa=isa)
    np.testing.assert_array_equal(got, by_pillow(image, (16, 19), "bilinear"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_constant_images_stay_constant(channels: int, isa: str) -> None:
    for value in (0, 1, 127, 254, 255):
        image = np.full((211, 97, channels), value, np.uint8)
        for resized in ((50, 30), (400, 301)):
            got = _C.resize_crop(image, resized, (0, 0, *resized), filter="bicubic", isa=isa)
            assert (got == value).all()


@given(
    source=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    resized=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    channels=st.sampled_from([1, 3, 4]),
    name=st.sampled_from(sorted(FILTERS)),
    window=st.tuples(*[st.floats(0, 1)] * 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_any_size_and_window_gives_the_same_bits_everywhere(
    source: tuple[int, int],
    resized: tuple[int, int],
    channels: int,
    name: str,
    window: tuple[float, ...],
    seed: int,
) -> None:
    image = made_up_image(*source, channels, seed)
    top, left = int(window[0] * (resized[0] - 1)), int(window[1] * (resized[1] - 1))
    rows = 1 + int(window[2] * (resized[0] - top - 1))
    columns = 1 + int(window[3] * (resized[1] - left - 1))
    expected = by_pillow(image, resized, name)[top : top + rows, left : left + columns]
    for isa in ISAS:
        got = _C.resize_crop(image, resized, (top, left, rows, columns), filter=name, isa=isa)
        np.testing.assert_array_equal(got, expected, err_msg=isa)


@pytest.mark.parametrize("isa", ISAS)
def test_shrinking_a_thousandfold_is_exact(isa: str) -> None:
    image = made_up_image(2, 30_000, 3)
    got = _C.resize_crop(image, (2, 7), (0, 0, 2, 7), isa=isa)
    np.testing.assert_array_equal(got, by_pillow(image, (2, 7), "bilinear"))


@pytest.mark.parametrize("isa", ISAS)
def test_a_window_of_a_gigantic_enlargement_needs_little_memory(isa: str) -> None:
    image = made_up_image(3, 5, 3)
    side = 2**31 - 1
    got = _C.resize_crop(image, (side, side), (side - 3, side - 3, 3, 3), isa=isa)
    assert (got == image[-1, -1]).all()


IMAGE = made_up_image(8, 9, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": IMAGE.astype(np.float32)}, "expected a uint8 image, got float32"),
        ({"image": IMAGE[0]}, r"\(H, W, 3\) or \(H, W, 4\), got \(9, 3\)"),
        ({"image": IMAGE[:, :, :2]}, r"got \(8, 9, 2\)"),
        ({"image": IMAGE[:0]}, r"expected sides of 1 to 1048576 pixels, got \(0, 9\)"),
        ({"image": np.broadcast_to(np.uint8(0), (2**21, 1, 3))}, "expected sides of 1 to 1048576"),
        ({"image": IMAGE[::2]}, "expected a C-contiguous image"),
        ({"image": IMAGE[:, ::-1]}, "expected a C-contiguous image"),
        ({"resized": (0, 4)}, r"expected resized sides of 1 to 2147483647, got \(0, 4\)"),
        ({"resized": (4, 2**40)}, "expected resized sides"),
        ({"window": (0, 0, 5, 4)}, r"inside the resized image \(4, 4\), got \(0, 0, 5, 4\)"),
        ({"window": (1, 1, 4, 3)}, "inside the resized image"),
        ({"window": (-1, 0, 2, 2)}, "inside the resized image"),
        ({"window": (0, 0, 0, 4)}, "inside the resized image"),
        ({"window": (2**62, 2**62, 2**62, 2**62)}, "inside the resized image"),
        ({"resized": (2**30, 2**30), "window": (0, 0, 2**30, 1)}, "1048576 pixels a side"),
        ({"resized": (2**30, 2**30), "window": (0, 0, 2**15, 2**14)}, "268435456 in all"),
        ({"filter": "nearest"}, 'filter "bilinear" or "bicubic", got "nearest"'),
        ({"mean": [0.0]}, "expected 3 values of mean, one per channel, got 1"),
        ({"std": [1.0] * 4}, "expected 3 values of std, one per channel, got 4"),
        ({"std": [1.0, 0.0, 1.0]}, "positive std"),
        ({"mean": [float("nan")] * 3}, "finite mean"),
        ({"isa": "sse9"}, 'got "sse9"'),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "image": IMAGE,
        "resized": (4, 4),
        "window": (0, 0, 4, 4),
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
    }
    with pytest.raises(ValueError, match=message):
        _C.resize_normalize(**(arguments | changes))
