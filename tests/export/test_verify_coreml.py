"""Core ML programs are compared with their source part by part; every planted error is caught."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vitlet.data.spec import Preprocess
from vitlet.export.cases import Case, write_cases
from vitlet.export.coreml import export_coreml
from vitlet.export.coreml_program import Weight
from vitlet.export.coreml_weights import Source, match_weights
from vitlet.export.result import EXECUTED, INSPECTED, ArtifactResult
from vitlet.export.trace import Graph, graphs
from vitlet.export.verify import Truth, verify_artifacts
from vitlet.runtime.manifest import Artifact

SHAPE = (3, 32, 32)
LABELS = tuple(f"class {i}" for i in range(10))


def truth_of(graph: Graph, spec: Preprocess) -> Truth:
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    case = Case(graph.name, "real_0", picture, np.zeros((1, 1), np.float32))
    with torch.no_grad():
        output = graph.module(torch.from_numpy(case.floats(spec))).numpy()
    return Truth("it", write_cases([replace(case, output=output)]), spec, graphs=[graph])


def look(folder: Path, artifact: Artifact, truth: Truth, **more: Any) -> ArtifactResult:
    return verify_artifacts(folder, [artifact], truth, subject="test", **more).artifacts[0]


def failures(result: ArtifactResult) -> set[str]:
    return {check.name for check in result.checks if not check.passed}


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("small_conv", {"precision": "fp16", "preprocess": True, "labels": LABELS}),
        ("small_conv", {"precision": "fp32"}),
        ("small_vit", {"precision": "int8"}),
        ("small_conv", {"precision": "int8", "ios": 18}),
        ("small_vit", {"precision": "palette4", "palette_mode": "uniform"}),
        ("small_vit", {"precision": "palette6", "palette_mode": "kmeans", "ios": 18}),
    ],
    ids=["image and labels", "fp32", "int8", "int8 iOS 18", "palette4", "palette6 iOS 18"],
)
def test_sound_programs_pass(
    request: pytest.FixtureRequest, small_spec: Preprocess, tmp_path: Path, network: str,
    options: dict[str, Any],
) -> None:  # fmt: skip
    graph = graphs(request.getfixturevalue(network), SHAPE)[0]
    if options.get("preprocess"):
        options = {**options, "preprocess": small_spec}
    artifact = export_coreml(graph, tmp_path / "m.mlpackage", **options)
    # One picture and made-up weights: the best class of 16 entries per tensor says nothing.
    loose = {"top1": 0.0} if options["precision"] == "palette4" else None
    result = look(tmp_path, artifact, truth_of(graph, small_spec), tolerance=loose)
    assert result.status == "passed", result.reasons
    assert result.method == EXECUTED and result.engine.startswith("coreml ")
    assert result.figures["cosine"] > 0.9 and result.checks
    assert ("cosine_fp32" in result.figures) == (options["precision"] != "fp32")


@pytest.fixture(scope="module")
def made(
    small_vit: nn.Module, small_spec: Preprocess, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Artifact]:
    folder = tmp_path_factory.mktemp("made")
    graph = graphs(small_vit, SHAPE)[0]
    return folder, export_coreml(graph, folder / "m.mlpackage", preprocess=small_spec)


SOURCES: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "one weight": (lambda m: m.blocks[0].fc1.weight[3, 5].add_(0.05), "weights"),
    "a bias": (lambda m: m.blocks[0].fc1.bias[3].add_(0.05), "weights"),
    "swapped colours": (lambda m: m.patch.weight.copy_(m.patch.weight.flip(1)), "weights"),
    "swapped channels": (lambda m: m.norm.weight.copy_(m.norm.weight.roll(1)), "weights"),
    "swapped blocks": (lambda m: setattr(m, "blocks", m.blocks[::-1]), "order"),
    "epsilon": (lambda m: setattr(m.blocks[1].norm1, "eps", 1e-3), "layers"),
    "stride": (lambda m: setattr(m.patch, "padding", (4, 4)), "layers"),
    "overflow": (lambda m: m.blocks[1].fc1.bias.mul_(1e6), "float16 activations"),
}


@pytest.mark.parametrize("error", SOURCES)
def test_a_program_of_another_source_is_caught(
    small_vit: nn.Module, small_spec: Preprocess, made: tuple[Path, Artifact], error: str
) -> None:
    change, where = SOURCES[error]
    other = copy.deepcopy(small_vit)
    with torch.no_grad():
        change(other)
    if error == "stride":  # keep the number of tokens: only the convolution's place differs
        forward = other.patch.forward
        other.patch.forward = lambda x: forward(x)[..., :4, :4]
    graph = graphs(other, SHAPE)[0]
    result = look(*made, truth_of(graph, small_spec))
    assert result.status == "failed" and where in failures(result), result.reasons


def test_a_program_of_another_architecture_lacks_weights(
    small_vit: nn.Module, small_spec: Preprocess, made: tuple[Path, Artifact]
) -> None:
    other = copy.deepcopy(small_vit)
    other.blocks.append(copy.deepcopy(other.blocks[0]))
    with torch.no_grad():
        other.blocks[2].fc1.weight.add_(1)  # all else is equal to what the program has
    result = look(*made, truth_of(graphs(other, SHAPE)[0], small_spec))
    assert "all weights used" in failures(result)
    assert any("blocks.2.fc1.weight" in reason for reason in result.reasons)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": (0.5, 0.456, 0.406)},
        {"std": (0.225, 0.224, 0.229)},
        {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    ],
)
def test_wrong_normalization_of_an_image_input_is_caught(
    small_vit: nn.Module, small_spec: Preprocess, made: tuple[Path, Artifact], wrong: dict[str, Any]
) -> None:
    truth = truth_of(graphs(small_vit, SHAPE)[0], replace(small_spec, **wrong))
    result = look(*made, truth)
    assert failures(result) == {"preprocessing"}


def test_normalizing_an_array_input_as_if_it_were_a_picture_is_caught(
    small_vit: nn.Module, small_spec: Preprocess, tmp_path: Path
) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_vit

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x * (1 / 255) - 0.45)

    graph = graphs(small_vit, SHAPE)[0]
    artifact = export_coreml(replace(graph, module=Twice().eval()), tmp_path / "m.mlpackage")
    assert "preprocessing" in failures(look(tmp_path, artifact, truth_of(graph, small_spec)))


def test_a_picture_with_blue_first_is_caught(
    small_vit: nn.Module, small_spec: Preprocess, made: tuple[Path, Artifact], tmp_path: Path
) -> None:
    import shutil

    from vitlet.runtime.coreml.quiet import quiet_coremltools

    folder, artifact = made
    shutil.copytree(folder / "m.mlpackage", tmp_path / "m.mlpackage")
    file = tmp_path / "m.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    with quiet_coremltools():
        from coremltools.proto import Model_pb2

        spec = Model_pb2.Model.FromString(file.read_bytes())
    spec.description.input[0].type.imageType.colorSpace = 30
    file.write_bytes(spec.SerializeToString())
    result = look(tmp_path, artifact, truth_of(graphs(small_vit, SHAPE)[0], small_spec))
    assert failures(result) == {"preprocessing"} and "BGR" in result.reasons[0]


@pytest.mark.parametrize("bit", [0x40, 0x80])
def test_a_bit_flipped_in_the_weights_file_is_caught(
    small_vit: nn.Module, small_spec: Preprocess, made: tuple[Path, Artifact], tmp_path: Path,
    bit: int,
) -> None:  # fmt: skip
    import shutil

    folder, artifact = made
    shutil.copytree(folder / "m.mlpackage", tmp_path / "m.mlpackage")
    file = tmp_path / "m.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(file.read_bytes())
    data[len(data) // 2 + 1 | 1] ^= bit  # the high byte of a float16: sign or exponent
    file.write_bytes(bytes(data))
    result = look(tmp_path, artifact, truth_of(graphs(small_vit, SHAPE)[0], small_spec))
    assert result.status == "failed", result.checks


def test_float16_overflow_names_the_tensor_and_the_input_and_float32_is_cleared(
    small_vit: nn.Module, small_spec: Preprocess, tmp_path: Path
) -> None:
    other = copy.deepcopy(small_vit)
    with torch.no_grad():
        # Between the two layers the values leave float16's range; float32 does not mind.
        other.blocks[1].fc1.weight[0].mul_(1e5)
        other.blocks[1].fc2.weight[:, 0].mul_(1e-5)
    graph = graphs(other, SHAPE)[0]
    artifact = export_coreml(graph, tmp_path / "m.mlpackage", preprocess=small_spec)
    result = look(tmp_path, artifact, truth_of(graph, small_spec))
    assert result.status == "failed" and result.figures["cosine_fp32"] > 0.999
    over = [reason for reason in result.reasons if "leaves the range of float16" in reason]
    assert len(over) == 1 and "(linear) leaves the range of float16 for real_0" in over[0], over
    assert result.figures["headroom"] < 1
    nonfinite = any("NaN or infinite" in reason for reason in result.reasons)
    assert nonfinite == any("in float32 the program is right" in r for r in result.reasons)


def test_a_program_that_cannot_run_here_is_read_and_says_why(
    small_vit: nn.Module, small_spec: Preprocess, made: tuple[Path, Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from vitlet.errors import UnsupportedError
    from vitlet.runtime.coreml import engine

    def refuse(*_: Any) -> None:
        raise UnsupportedError("strange_op at y (main block) is not known")

    monkeypatch.setattr(engine, "CoreMLExecutor", refuse)
    result = look(*made, truth_of(graphs(small_vit, SHAPE)[0], small_spec))
    assert result.status == "passed" and result.method == INSPECTED
    assert result.warnings[0] == "not executed: strange_op at y (main block) is not known"


def test_a_truncated_package_is_a_failed_artefact(
    small_vit: nn.Module, small_spec: Preprocess, made: tuple[Path, Artifact], tmp_path: Path
) -> None:
    import shutil

    folder, artifact = made
    shutil.copytree(folder / "m.mlpackage", tmp_path / "m.mlpackage")
    file = tmp_path / "m.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    file.write_bytes(file.read_bytes()[:500])
    result = look(tmp_path, artifact, truth_of(graphs(small_vit, SHAPE)[0], small_spec))
    assert result.status == "failed" and "Core ML package" in result.reasons[0]


def test_without_the_source_the_result_says_what_was_not_compared(
    small_vit: nn.Module, small_spec: Preprocess, made: tuple[Path, Artifact]
) -> None:
    truth = truth_of(graphs(small_vit, SHAPE)[0], small_spec)
    truth.graphs = {}
    result = look(*made, truth)
    assert result.status == "passed" and result.method == EXECUTED
    assert any("weights not compared" in warning for warning in result.warnings)


def test_text_towers_are_compared_too(
    small_clip: nn.Module, small_spec: Preprocess, tmp_path: Path
) -> None:
    _, text = graphs(small_clip, SHAPE)
    artifact = export_coreml(text, tmp_path / "t.mlpackage")
    (tokens,) = text.example(1)
    with torch.no_grad():
        output = text.module(tokens).numpy()
    cases = [Case("text", "real_0", tokens.numpy(), output)]
    truth = Truth("it", write_cases(cases), small_spec, graphs=[text])
    assert look(tmp_path, artifact, truth).status == "passed"


def _source(values: np.ndarray, name: str = "w") -> dict[str, Source]:
    return {name: Source(values.astype(np.float64), (name,))}


def test_transposed_and_reshaped_weights_match_and_mixed_up_ones_do_not() -> None:
    values = np.random.default_rng(0).standard_normal((6, 4, 3))
    sources = _source(values)

    def matches(stored: np.ndarray) -> bool:
        weight = Weight("x", stored.astype(np.float16).astype(np.float64), (0,))
        return not match_weights([weight], sources).strange

    assert matches(values) and matches(values.transpose(2, 0, 1)) and matches(values.reshape(24, 3))
    assert not matches(values[::-1]) and not matches(values[:, :, ::-1])
    assert not matches(values.transpose(2, 1, 0).reshape(6, 4, 3))


def test_a_scale_merged_into_a_weight_is_recognized_by_its_own_tensor_only() -> None:
    random = np.random.default_rng(0)
    weight, scale = random.standard_normal((8, 5)), random.uniform(0.1, 1, 8)
    sources = {**_source(weight, "w"), **_source(scale, "s")}
    merged = Weight("x", weight * scale[:, None], (0,))
    found = match_weights([merged], sources)
    assert found.pairs == {"x": ("w", "s")} and not found.unused
    wrong = Weight("x", weight * scale[::-1, None], (0,))
    assert match_weights([wrong], sources).strange


def test_a_palette_must_give_the_nearest_entry_and_be_of_some_use() -> None:
    random = np.random.default_rng(0)
    exact = random.standard_normal((16, 16))
    table = np.linspace(exact.min(), exact.max(), 16)
    nearest = table[np.abs(exact[..., None] - table).argmin(-1)]

    def strange(values: np.ndarray, palette: np.ndarray) -> bool:
        weight = Weight("x", values, (0,), palette=palette)
        return bool(match_weights([weight], _source(exact)).strange)

    assert not strange(nearest, table)
    worse = nearest.copy()
    worse[3, 4] = table[(np.abs(table - nearest[3, 4]).argmin() + 2) % 16]
    assert strange(worse, table)
    assert strange(np.zeros_like(exact) + table[0], np.full(16, table[0]))


def test_zeros_stand_for_no_tensor_of_the_source() -> None:
    sources = _source(np.random.default_rng(0).standard_normal(16))
    zeros = Weight("x", np.zeros(16), (0,))
    found = match_weights([zeros], sources, scalars=(1e-12,))
    assert not found.pairs and not found.strange and found.unused == ["w"]


def test_an_attention_mask_keeps_its_infinities_in_their_places() -> None:
    mask = np.triu(np.full((5, 5), -np.inf), 1)

    def strange(stored: np.ndarray, exact: np.ndarray = mask) -> bool:
        return bool(match_weights([Weight("x", stored, (0,), 0.0, 2**-11)], _source(exact)).strange)

    assert not strange(mask) and not strange(mask.T) and not strange(mask.reshape(1, 5, 5))
    assert strange(-mask) and strange(np.triu(np.full((5, 5), -np.inf), 2)) and strange(mask + 1)
    assert strange(np.where(np.isinf(mask), np.float64(-6e4), 0.0))  # finite where it must not be
    assert strange(np.where(np.isinf(mask), np.nan, 0.0))
