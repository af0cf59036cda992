"""Pictures in another size or sampled at computed places: against the documentation and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vitlet.runtime.coreml.quiet import quiet_coremltools

with quiet_coremltools():
    from coremltools.converters.mil import Builder as mb

R = np.random.default_rng(5)
X = R.standard_normal((2, 3, 4, 5)).astype(np.float32)


def check(actual: np.ndarray, expected: Any) -> None:
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def grid_of(mode: str, size: int, count: int) -> np.ndarray:
    """The sample places as coremltools' documentation of resize_bilinear gives them."""
    i = np.arange(count)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if count == 1:
            return np.array([(size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0])
        return i * (size - 1) / (count - 1)
    if mode == "DEFAULT":
        spacing = (size - size / count) / (count - 1) if count > 1 else 0
        return np.clip(i * spacing, 0, size - 1)
    if mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / count
        return np.clip(0.5 * delta + i * delta, 0, size - 1)
    return np.clip(i * size / count + 0.5 * size / count - 0.5, 0, size - 1)


@pytest.mark.parametrize(
    "mode",
    ["DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS"],
)
@pytest.mark.parametrize("size", [(7, 3), (1, 9)])
def test_bilinear_resizing_samples_where_the_documentation_says(
    run_mil: Any, mode: str, size: tuple[int, int]
) -> None:
    height, width = size

    def build(x: Any) -> Any:
        one = mb.resize_bilinear(
            x=x, target_size_height=height, target_size_width=width, sampling_mode=mode
        )
        two = mb.resize(x=x, shape=[height, width], resized_dims=np.uint32(2), sampling_mode=mode)
        return one, two

    expected = np.empty((2, 3, 4, width))
    for c in np.ndindex(2, 3, 4):
        expected[c] = np.interp(grid_of(mode, 5, width), np.arange(5), X[c])
    taller = np.empty((2, 3, height, width))
    for n, c in np.ndindex(2, 3):
        for column in range(width):
            line = expected[n, c, :, column]
            taller[n, c, :, column] = np.interp(grid_of(mode, 4, height), np.arange(4), line)
    for actual in run_mil(build, X):
        check(actual, taller)


def test_upsampling_is_torchs(run_mil: Any) -> None:
    def build(x: Any) -> Any:
        sizes = {"scale_factor_height": 2.5, "scale_factor_width": 3.0}
        return (
            mb.upsample_bilinear(x=x, **sizes, align_corners=True),
            mb.upsample_bilinear(x=x, **sizes, align_corners=False),
            mb.upsample_nearest_neighbor(x=x, **sizes),
            mb.resize_nearest_neighbor(x=x, target_size_height=7, target_size_width=2),
        )

    corners, centres, nearest, sized = run_mil(build, X)
    x = torch.from_numpy(X)
    check(corners, F.interpolate(x, (10, 15), mode="bilinear", align_corners=True))
    check(centres, F.interpolate(x, (10, 15), mode="bilinear", align_corners=False))
    check(nearest, F.interpolate(x, (10, 15), mode="nearest"))
    check(sized, F.interpolate(x, (7, 2), mode="nearest"))


# Where corners are not aligned torch reflects about the edge, as "symmetric" does.
@pytest.mark.parametrize(
    ("padding", "corners"),
    [
        ("constant", True),
        ("constant", False),
        ("border", True),
        ("border", False),
        ("reflection", True),
        ("symmetric", False),
    ],
)
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_resampling_is_torchs_grid_sample(
    run_mil: Any, padding: str, corners: bool, sampling: str
) -> None:
    grid = R.uniform(-1.6, 1.6, (2, 6, 7, 2)).astype(np.float32)

    def build(x: Any, g: Any) -> Any:
        return mb.resample(
            x=x,
            coordinates=g,
            sampling_mode=sampling,
            padding_mode=padding,
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=corners,
        )

    (actual,) = run_mil(build, X, grid)
    torchs = {"constant": "zeros", "symmetric": "reflection"}.get(padding, padding)
    check(
        actual,
        F.grid_sample(torch.from_numpy(X), torch.from_numpy(grid), sampling, torchs, corners),
    )


def test_affine_maps_are_torchs(run_mil: Any) -> None:
    maps = R.uniform(-1, 1, (2, 6)).astype(np.float32)

    def build(x: Any, m: Any) -> Any:
        return mb.affine(
            x=x,
            transform_matrix=m,
            output_height=6,
            output_width=7,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        )

    (actual,) = run_mil(build, X, maps)
    grid = F.affine_grid(torch.from_numpy(maps).reshape(2, 2, 3), [2, 3, 6, 7], True)
    check(actual, F.grid_sample(torch.from_numpy(X), grid, "bilinear", "zeros", True))


def test_boxes_are_cut_out_and_resized(run_mil: Any) -> None:
    boxes = np.array([[0, 1, 3, 4], [1, 0, 2, 2]], np.float32)

    def build(x: Any, b: Any) -> Any:
        return mb.crop_resize(
            x=x,
            boxes=b,
            box_indices=np.array([1, 0], np.int32),
            target_height=4,
            target_width=4,
            sampling_mode="ALIGN_CORNERS",
        )

    (actual,) = run_mil(build, X, boxes)
    check(actual[0], X[1, :, 0:4, 1:5])
    part = torch.from_numpy(X[:1, :, 1:3, 0:3])
    check(actual[1], F.interpolate(part, (4, 4), mode="bilinear", align_corners=True)[0])
