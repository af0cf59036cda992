from __future__ import annotations

from importlib.resources import files

import numpy as np

from vitlet.data.demo import demo_photos


def test_photos_are_small_real_and_of_several_shapes() -> None:
    photos = demo_photos()
    assert 4 <= len(photos) <= 6
    for photo in photos.values():
        assert photo.dtype == np.uint8
        assert photo.shape[2] == 3
        assert max(photo.shape) == 320
        assert photo.std() > 20
    assert len({photo.shape for photo in photos.values()}) > 2


def test_every_photo_states_its_licence_and_they_are_small_together() -> None:
    folder = files("vitlet.data") / "assets" / "photos"
    licences = (folder / "LICENCES.md").read_text(encoding="utf-8")
    pictures = [file for file in folder.iterdir() if file.name.endswith(".jpg")]
    assert {file.name.removesuffix(".jpg") for file in pictures} == set(demo_photos())
    assert all(f"| {file.name} |" in licences for file in pictures)
    assert sum(len(file.read_bytes()) for file in pictures) <= 200_000
