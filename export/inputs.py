"""Makes the inputs of the cases: real pictures and sentences, noise, and the worst there can be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.data.spec import Preprocess

REAL_IMAGES = 4
PROMPTS = (
    "a photo of a dog",
    "a red bicycle leaning against a brick wall, shot at dusk",
    "2 cups of coffee & a croissant on a table",
)
_START, _END, _CONTEXT = 49406, 49407, 77


def real_pixels(preprocess: Preprocess, images: Any = None) -> NDArray[np.uint8]:
    """Return real pictures as uint8 (n, H, W, C) of the model's size."""
    from vitlet.data.preprocess import resize_crop

    if images is None:
        from vitlet.data.demo import demo_images, demo_photos

        if preprocess.mode == "L":
            images = list(demo_images()[0][:REAL_IMAGES])
        else:
            images = list(demo_photos().values())[:REAL_IMAGES]
    pixels: NDArray[np.uint8] = resize_crop(images, preprocess)
    return pixels


def image_inputs(
    shape: tuple[int, ...], preprocess: Preprocess | None, images: Any
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Give (case name, stored input) for an image of (C, H, W); see `vitlet.export.cases`."""
    channels, height, width = shape
    random = np.random.default_rng(0)
    noise = random.standard_normal((1, channels, height, width))
    if preprocess is not None:
        for index, picture in enumerate(real_pixels(preprocess, images)):
            yield f"real_{index}", picture[None]
        yield "random_0", random.integers(0, 256, (1, height, width, channels), dtype=np.uint8)
        yield "zeros", np.zeros((1, 1, 1, 1), np.uint8)
        yield "ones", np.full((1, 1, 1, 1), 255, np.uint8)
        board = (np.indices((height, width)).sum(axis=0) % 2 * 255).astype(np.uint8)
        yield "checkerboard", board[None, :, :, None]
        low = (-1 - np.asarray(preprocess.mean)) / np.asarray(preprocess.std)
        high = (2 - np.asarray(preprocess.mean)) / np.asarray(preprocess.std)
    else:
        low, high = np.full(channels, -4.0), np.full(channels, 4.0)
    yield "random_1", noise.astype(np.float16)
    # Pixels from -255 to 510: what a forgotten or doubled scaling feeds a model.
    spread = random.uniform(size=(1, channels, height, width))
    low, high = low.reshape(1, -1, 1, 1), high.reshape(1, -1, 1, 1)
    yield "out_of_range", (low + (high - low) * spread).astype(np.float16)


def token_inputs() -> Iterator[tuple[str, NDArray[Any]]]:
    """Give (case name, int64 (1, 77)) of sentences, of none, of too many words, and of noise."""
    from vitlet.data.tokenizer import tokenize

    for index, row in enumerate(tokenize(list(PROMPTS))):
        yield f"real_{index}", row[None].astype(np.int64)
    yield "empty", tokenize([""]).astype(np.int64)
    yield "full", tokenize(["cat " * 100]).astype(np.int64)
    random = np.random.default_rng(0)
    for index, length in enumerate((29, _CONTEXT)):
        row = np.zeros((1, _CONTEXT), np.int64)
        row[0, : length - 1] = random.integers(1, _START, length - 1)
        row[0, 0], row[0, length - 1] = _START, _END
        yield f"random_{index}", row
