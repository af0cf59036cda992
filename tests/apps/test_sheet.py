"""The contact sheet."""

from __future__ import annotations

import numpy as np
import pytest

from vitlet.apps.sheet import PER_PAGE, Tile, draw, thumbnail


def tile(**given):
    image = thumbnail(np.full((28, 28, 1), 200, np.uint8))
    return Tile(**{"image": image, "name": "a.png", "label": "a cat", "score": 0.9, **given})


@pytest.mark.parametrize("count", [1, 2, 7, PER_PAGE])
def test_every_image_has_its_place(count):
    (page,) = draw([tile() for _ in range(count)], "title")
    light = np.asarray(page.convert("L")) == 200
    side = thumbnail(np.zeros((28, 28, 1), np.uint8)).width
    assert abs(light.sum() - count * side * side) < 0.02 * count * side * side


def test_more_images_than_a_page_holds_make_pages():
    assert len(draw([tile() for _ in range(PER_PAGE + 1)], "title")) == 2


@pytest.mark.parametrize(
    "shape", [(1, 900, 3), (900, 1, 3), (1, 1, 1), (28, 28, 1), (3000, 2000, 3)]
)
def test_a_thumbnail_fits_its_tile_and_keeps_its_shape(shape):
    small = thumbnail(np.zeros(shape, np.uint8))
    assert max(small.size) == 168
    assert min(small.size) == max(1, round(168 * min(shape[:2]) / max(shape[:2])))


def colours(page):
    return {tuple(pixel) for pixel in np.asarray(page).reshape(-1, 3)}


def test_wrong_answers_are_red_and_right_ones_green():
    red, green = (196, 69, 60), (47, 143, 91)
    (wrong,) = draw([tile(truth="a dog")], "t")
    (right,) = draw([tile(truth="a cat")], "t")
    assert red in colours(wrong) and green not in colours(wrong)
    assert green in colours(right) and red not in colours(right)


def test_unreadable_files_and_endless_names_have_a_place_too():
    (page,) = draw([tile(image=None, label="cannot be read"), tile(label="x" * 500)], "t" * 500)
    assert page.width < 1000
