"""Inputs as apps give them: pictures of any layout, flexible shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitlet.errors import ShapeError
from vitlet.runtime import CoreMLExecutor
from vitlet.runtime.coreml.quiet import quiet_coremltools

with quiet_coremltools():
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

R = np.random.default_rng(2)


def picture_package(path: Path, layout: str, shape: Any = (1, 3, 4, 6), scale: float = 0.5) -> Path:
    channels = 1 if layout == "GRAYSCALE" else 3

    def build(x: Any) -> Any:
        return mb.identity(x=x, name="y")

    with quiet_coremltools():
        program = mb.program(
            input_specs=[mb.TensorSpec((1, channels, 4, 6))], opset_version=ct.target.iOS16
        )(build)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            inputs=[
                ct.ImageType(
                    name="x",
                    shape=shape,
                    scale=scale,
                    bias=[-1.0, -2.0, -3.0] if channels == 3 else -1.0,
                    color_layout=getattr(ct.colorlayout, layout),
                )
            ],
            skip_model_load=True,
        )
        model.save(str(path))
    return path


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_pictures_get_the_declared_layout_scale_and_bias(tmp_path: Path, layout: str) -> None:
    executor = CoreMLExecutor(picture_package(tmp_path / "m.mlpackage", layout))
    assert executor.inputs[0].spell() == f"x: a {layout} picture of uint8 (4, 6, 3)"
    pixels = R.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    planes = pixels.transpose(2, 0, 1) if layout == "RGB" else pixels[..., ::-1].transpose(2, 0, 1)
    expected = planes * 0.5 + np.array([-1, -2, -3]).reshape(3, 1, 1)
    for given in (pixels, pixels[None], Image.fromarray(pixels)):
        np.testing.assert_allclose(executor.run({"x": given})["y"][0], expected, rtol=1e-6)


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    path = picture_package(tmp_path / "m.mlpackage", "GRAYSCALE", (1, 1, 4, 6))
    executor = CoreMLExecutor(path)
    pixels = R.integers(0, 256, (4, 6)).astype(np.uint8)
    for given in (pixels, pixels[..., None], Image.fromarray(pixels)):
        np.testing.assert_allclose(executor.run({"x": given})["y"][0, 0], pixels * 0.5 - 1.0)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 6, 3), np.float32), np.zeros((6, 4, 3), np.uint8), "cat.jpg"]
)
def test_a_picture_of_another_size_or_type_is_refused(tmp_path: Path, wrong: Any) -> None:
    executor = CoreMLExecutor(picture_package(tmp_path / "m.mlpackage", "RGB"))
    with pytest.raises(ShapeError, match="expected x: a RGB picture of uint8"):
        executor.run({"x": wrong})


def flexible_package(path: Path, shape: Any) -> Path:
    import torch

    with quiet_coremltools():
        program = torch.jit.trace(torch.nn.ReLU(), torch.zeros(2, 3))
        model = ct.convert(
            program,
            convert_to="mlprogram",
            inputs=[ct.TensorType(name="x", shape=shape, dtype=np.float32)],
            outputs=[ct.TensorType(name="y")],
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        )
        model.save(str(path))
    return path


def test_ranges_of_shapes_are_checked(tmp_path: Path) -> None:
    shape = ct.Shape((ct.RangeDim(2, 4, default=2), 3))
    executor = CoreMLExecutor(flexible_package(tmp_path / "m.mlpackage", shape))
    assert executor.inputs[0].ranges == ((2, 4), (3, 3))
    for rows in (2, 4):
        assert executor.run({"x": -np.ones((rows, 3), np.float32)})["y"].shape == (rows, 3)
    with pytest.raises(ShapeError, match=r"x: float32 \(2 to 4, 3\); got float32 \(5, 3\)"):
        executor.run({"x": np.ones((5, 3), np.float32)})


def test_lists_of_shapes_are_checked(tmp_path: Path) -> None:
    shapes = ct.EnumeratedShapes([(2, 3), (4, 6)])
    executor = CoreMLExecutor(flexible_package(tmp_path / "m.mlpackage", shapes))
    for shape in ((2, 3), (4, 6)):
        assert executor.run({"x": np.ones(shape, np.float32)})["y"].shape == shape
    with pytest.raises(ShapeError, match=r"\(2, 3\) or \(4, 6\)"):
        executor.run({"x": np.ones((2, 6), np.float32)})
