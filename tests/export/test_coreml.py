from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitlet.data.spec import Preprocess
from vitlet.errors import UnsupportedError, UsageError
from vitlet.export.coreml import export_coreml, image_scale_and_bias
from vitlet.export.coreml_compress import count_compressed
from vitlet.export.trace import graphs
from vitlet.runtime.coreml.quiet import quiet_coremltools

SHAPE = (3, 32, 32)
LABELS = [f"class {i}" for i in range(10)]


def specification(path: Path) -> Any:
    with quiet_coremltools():
        import coremltools

        return coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()


def operations(spec: Any) -> list[Any]:
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    return [operation for operation in block.operations if operation.type != "const"]


def tree(path: Path) -> dict[str, str]:
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize(("ios", "version"), [(16, 7), (17, 8), (18, 9)])
def test_deployment_targets_give_their_specification_version(
    small_vit: nn.Module, ios: int, version: int, tmp_path: Path
) -> None:
    (graph,) = graphs(small_vit, SHAPE)
    artifact = export_coreml(graph, tmp_path / "m.mlpackage", ios=ios)
    assert specification(tmp_path / "m.mlpackage").specificationVersion == version
    assert artifact.details["specification"] == version


@pytest.mark.parametrize(("precision", "code"), [("fp16", 10), ("fp32", 11)])
def test_precision_is_that_of_the_computation_and_the_interface_is_float32(
    small_vit: nn.Module, precision: str, code: int, tmp_path: Path
) -> None:
    (graph,) = graphs(small_vit, SHAPE)
    artifact = export_coreml(graph, tmp_path / "m.mlpackage", precision=precision)
    spec = specification(tmp_path / "m.mlpackage")
    kinds = {o.outputs[0].type.tensorType.dataType for o in operations(spec) if o.type == "linear"}
    assert kinds == {code}
    (given,), (result,) = spec.description.input, spec.description.output
    assert (given.name, list(given.type.multiArrayType.shape)) == ("image", [1, 3, 32, 32])
    assert (result.name, result.type.multiArrayType.dataType) == ("logits", 65568)
    assert artifact.inputs[0].shape == (1, 3, 32, 32)


def test_norm_of_an_embedding_is_never_taken_in_half_precision(
    small_clip: nn.Module, tmp_path: Path
) -> None:
    image, _ = graphs(small_clip, SHAPE)
    export_coreml(image, tmp_path / "m.mlpackage")
    last = operations(specification(tmp_path / "m.mlpackage"))[-3:]
    assert [o.type for o in last] == ["reduce_l2_norm", "maximum", "real_div"]
    assert {o.outputs[0].type.tensorType.dataType for o in last} == {11}


def test_tokens_are_int32(small_clip: nn.Module, tmp_path: Path) -> None:
    _, text = graphs(small_clip, SHAPE)
    artifact = export_coreml(text, tmp_path / "m.mlpackage", batch=(1, 4))
    (given,) = specification(tmp_path / "m.mlpackage").description.input
    assert (given.name, given.type.multiArrayType.dataType) == ("tokens", 131104)
    sizes = given.type.multiArrayType.shapeRange.sizeRanges
    assert [(s.lowerBound, s.upperBound) for s in sizes] == [(1, 4), (77, 77)]
    assert artifact.inputs[0].dtype == "int32"
    assert artifact.inputs[0].shape == ("batch", 77)


def test_picture_input_carries_the_normalization_once(
    small_vit: nn.Module, small_spec: Preprocess, tmp_path: Path
) -> None:
    (graph,) = graphs(small_vit, SHAPE)
    artifact = export_coreml(graph, tmp_path / "m.mlpackage", preprocess=small_spec)
    spec = specification(tmp_path / "m.mlpackage")
    (given,) = spec.description.input
    assert given.name == "image"
    picture = given.type.imageType
    assert (picture.width, picture.height, picture.colorSpace) == (32, 32, 20)
    # scale and bias for all channels, then each channel's own std: three operations, no more.
    kinds = [o.type for o in operations(spec) if o.type != "cast"]
    assert kinds[: kinds.index("conv")] == ["mul", "add", "mul"]
    assert artifact.preprocess == "image-type"
    assert artifact.inputs[0].shape == (1, 32, 32, 3)


def test_scale_and_bias_take_in_a_std_that_all_channels_share() -> None:
    spec = Preprocess(size=(8, 8), resize_to=8, mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.5))
    scale, bias = image_scale_and_bias(spec)
    pixel = 200
    for mean, shift in zip(spec.mean, bias, strict=True):
        assert pixel * scale + shift == pytest.approx((pixel / 255 - mean) / 0.5)


def test_grey_pictures_are_grey(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
    (graph,) = graphs(model.eval().requires_grad_(False), (1, 8, 8))
    spec = Preprocess(size=(8, 8), resize_to=8, mean=(0.3,), std=(0.2,), mode="L")
    export_coreml(graph, tmp_path / "m.mlpackage", preprocess=spec)
    found = specification(tmp_path / "m.mlpackage")
    assert found.description.input[0].type.imageType.colorSpace == 10
    kinds = [o.type for o in operations(found) if o.type != "cast"]
    assert kinds[: kinds.index("conv")] == ["mul", "add"]


def test_labels_make_a_classifier_with_probabilities(small_vit: nn.Module, tmp_path: Path) -> None:
    (graph,) = graphs(small_vit, SHAPE)
    artifact = export_coreml(graph, tmp_path / "m.mlpackage", labels=LABELS)
    spec = specification(tmp_path / "m.mlpackage")
    assert spec.description.predictedFeatureName == "classLabel"
    assert spec.description.predictedProbabilitiesName == artifact.outputs[0].name
    kinds = [o.type for o in operations(spec) if o.type != "cast"]
    assert kinds[-2:] == ["softmax", "classify"]
    with pytest.raises(UsageError, match="10 classes, 9 labels"):
        export_coreml(graph, tmp_path / "x.mlpackage", labels=LABELS[:9])


def test_author_licence_version_and_own_fields_are_kept_and_the_date_is_not(
    small_vit: nn.Module, tmp_path: Path
) -> None:
    (graph,) = graphs(small_vit, SHAPE)
    facts = {"author": "A", "license": "MIT", "version": "2.1", "description": "d", "team": "t"}
    export_coreml(graph, tmp_path / "m.mlpackage", metadata=facts)
    stored = specification(tmp_path / "m.mlpackage").description.metadata
    assert (stored.author, stored.license, stored.versionString) == ("A", "MIT", "2.1")
    assert (stored.shortDescription, stored.userDefined["team"]) == ("d", "t")
    assert not [key for key in stored.userDefined if "date" in key]


@pytest.mark.parametrize(
    ("precision", "mode", "operation"),
    [
        ("int8", "kmeans", "constexpr_affine_dequantize"),
        ("palette4", "uniform", "constexpr_lut_to_dense"),
        ("palette6", "kmeans", "constexpr_lut_to_dense"),
        ("palette8", "uniform", "constexpr_lut_to_dense"),
    ],
)
def test_compressed_tensors_are_counted(
    small_vit: nn.Module, precision: str, mode: str, operation: str, tmp_path: Path
) -> None:
    (graph,) = graphs(small_vit, SHAPE)
    artifact = export_coreml(
        graph, tmp_path / "m.mlpackage", precision=precision, palette_mode=mode
    )
    spec = specification(tmp_path / "m.mlpackage")
    found = Counter(o.type for o in operations(spec))
    assert artifact.details["compressed_tensors"] == found[operation] >= 9
    assert count_compressed(spec)[0] == found[operation]
    plain = tmp_path / "plain.mlpackage"
    export_coreml(graph, plain)
    weights = "Data/com.apple.CoreML/weights/weight.bin"
    ratio = (tmp_path / "m.mlpackage" / weights).stat().st_size / (plain / weights).stat().st_size
    assert ratio < 0.8


def test_compressing_nothing_is_an_error(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.Flatten(), nn.Linear(4 * 64, 1))
    (graph,) = graphs(model.eval().requires_grad_(False), SHAPE)
    with pytest.raises(UnsupportedError, match="compressed none of the weights"):
        export_coreml(graph, tmp_path / "m.mlpackage", precision="palette4")


def test_the_same_export_gives_the_same_bytes(
    small_conv: nn.Module, small_spec: Preprocess, tmp_path: Path
) -> None:
    (graph,) = graphs(small_conv, SHAPE)
    for name in ("one", "two"):
        export_coreml(
            graph, tmp_path / name, preprocess=small_spec, labels=LABELS, metadata={"a": "b"}
        )
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert set(tree(tmp_path / "one")) == {
        "Manifest.json",
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
    }


def test_unknown_operators_are_named_with_their_module(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.airy_ai(x)

    model = nn.Sequential(nn.Flatten(), Odd(), nn.Linear(3 * 32 * 32, 4)).eval()
    (graph,) = graphs(model.requires_grad_(False), SHAPE)
    with pytest.raises(UnsupportedError, match=r"special_airy_ai.default \(in 1\)"):
        export_coreml(graph, tmp_path / "m.mlpackage")


def test_the_converter_says_nothing(
    small_vit: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (graph,) = graphs(small_vit, SHAPE)
    export_coreml(graph, tmp_path / "m.mlpackage", precision="palette8", palette_mode="uniform")
    assert capfd.readouterr() == ("", "")
