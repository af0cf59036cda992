"""Sound artefacts pass, and every planted error is caught, in each target."""

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
from vitlet.export.onnx import export_onnx
from vitlet.export.result import Report
from vitlet.export.trace import Graph, graphs
from vitlet.export.verify import Truth, verify_artifacts
from vitlet.runtime.manifest import Artifact

SHAPE = (3, 32, 32)


def pictures(count: int, size: int = 32) -> np.ndarray:
    """Return smooth colourful uint8 (n, H, W, 3) pictures that differ as wholes."""
    random = np.random.default_rng(0)
    coarse = random.uniform(0, 255, (count, 4, 4, 3))
    whole = np.kron(coarse, np.ones((1, size // 4, size // 4, 1)))
    return (0.7 * whole + 0.3 * random.uniform(0, 255, whole.shape)).astype(np.uint8)


def truth_of(graph: Graph, spec: Preprocess, **more: Any) -> Truth:
    """Run the graph on pictures, noise and constants."""
    inputs = {f"real_{i}": picture[None] for i, picture in enumerate(pictures(4))}
    inputs["zeros"] = np.zeros((1, 1, 1, 1), np.uint8)
    inputs["ones"] = np.full((1, 1, 1, 1), 255, np.uint8)
    noise = np.random.default_rng(1).standard_normal((1, *SHAPE))
    inputs["random_0"] = noise.astype(np.float16)
    cases = []
    for name, stored in inputs.items():
        case = Case(graph.name, name, stored, np.zeros((1, 1), np.float32))
        with torch.no_grad():
            output = graph.module(torch.from_numpy(case.floats(spec))).numpy()
        cases.append(replace(case, output=output))
    return Truth("the source", write_cases(cases), spec, graphs=[graph], **more)


def check(folder: Path, artifact: Artifact, truth: Truth, **more: Any) -> Report:
    return verify_artifacts(folder, [artifact], truth, subject="test", **more)


def changed(model: nn.Module, change: Callable[[nn.Module], None]) -> Graph:
    """Return the graph of a copy with an error planted in it."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
    return graphs(other, SHAPE)[0]


Made = tuple[Path, Artifact]
Edits = dict[str, Callable[[np.ndarray], np.ndarray]]


def edited(made: Made, folder: Path, edits: Edits) -> Artifact:
    """Save a copy of an ONNX file with some of its weights replaced, and return its entry."""
    import onnx
    from onnx import numpy_helper

    path, artifact = made
    model = onnx.load(path)
    left = dict(edits)
    for tensor in model.graph.initializer:
        if tensor.name in left:
            old = numpy_helper.to_array(tensor)
            with np.errstate(over="ignore"):
                new = left.pop(tensor.name)(old.astype(np.float32)).astype(old.dtype)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new), tensor.name))
    assert not left, f"no such weights: {left}"
    onnx.save(model, folder / artifact.file)
    return artifact


def flip(place: int, bit: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that flips one bit of one float32."""

    def change(array: np.ndarray) -> np.ndarray:
        bits = array.copy().reshape(-1).view(np.uint32)
        bits[place] ^= np.uint32(1 << bit)
        return bits.view(np.float32).reshape(array.shape)

    return change


@pytest.fixture(scope="module")
def vit(small_vit: nn.Module) -> Graph:
    return graphs(small_vit, SHAPE)[0]


@pytest.fixture(scope="module")
def truth(vit: Graph, small_spec: Preprocess) -> Truth:
    return truth_of(vit, small_spec)


@pytest.fixture(scope="module")
def made(vit: Graph, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """The same graph in float32 and float16, for any batch."""
    folder = tmp_path_factory.mktemp("made")
    found = {}
    for precision in ("fp32", "fp16"):
        path = folder / f"{precision}.onnx"
        found[precision] = (path, export_onnx(vit, path, precision=precision, batch="dyn"))
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_sound_onnx_passes_at_batch_1_and_2(
    made: dict[str, Made], truth: Truth, precision: str
) -> None:
    path, artifact = made[precision]
    report = check(path.parent, artifact, truth)
    (row,) = report.artifacts
    assert report.passed, report.reasons
    assert row.figures["top1"] == 1.0 and row.method == "executed" and not row.warnings
    assert {case.batch for case in row.cases} == {1, 2}


@pytest.mark.parametrize(("precision", "batch"), [("fp32", 1), ("fp16", 3)])
def test_sound_onnx_with_preprocessing_inside_passes(
    vit: Graph, truth: Truth, small_spec: Preprocess, tmp_path: Path, precision: Any, batch: int
) -> None:
    artifact = export_onnx(
        vit, tmp_path / "m.onnx", precision=precision, batch=batch, preprocess=small_spec
    )
    report = check(tmp_path, artifact, truth)
    assert report.passed, report.reasons
    # Noise in floats cannot be fed to a graph that takes pixels.
    assert "random_0" not in {case.name for case in report.artifacts[0].cases}


def _swap_halves(array: np.ndarray) -> np.ndarray:
    return np.roll(array, len(array) // 2, axis=0)


PLANTED: dict[str, Edits] = {
    "a flipped exponent bit": {"patch.weight": flip(100, 30)},
    "a flipped low exponent bit": {"patch.weight": flip(100, 25)},
    "a flipped sign": {"blocks.1.fc1/MatMul.const": flip(7, 31)},
    "a wrong bias": {"blocks.0.attn.proj.bias": lambda w: w + np.float32(0.2) * (w > 0)},
    "swapped colours": {"patch.weight": lambda w: w[:, ::-1]},
    "swapped channels": {"patch.weight": _swap_halves, "patch.bias": _swap_halves},
    "a lost normalization": {"norm.weight": np.ones_like},
}
# One small weight of 20,000: less than what float16 does to all of them.
WITHIN_ROUNDING = ("a flipped sign", "a flipped low exponent bit")


@pytest.mark.parametrize(
    ("precision", "error"),
    [(p, e) for p in ("fp32", "fp16") for e in PLANTED if p == "fp32" or e not in WITHIN_ROUNDING],
)
def test_errors_planted_in_onnx_are_caught(
    made: dict[str, Made], truth: Truth, tmp_path: Path, precision: str, error: str
) -> None:
    report = check(tmp_path, edited(made[precision], tmp_path, PLANTED[error]), truth)
    assert not report.passed and report.reasons


@pytest.mark.parametrize(
    "wrong",
    [{"mean": (0.5, 0.5, 0.5)}, {"mean": (0.406, 0.456, 0.485), "std": (0.225, 0.224, 0.229)}],
    ids=["another mean", "blue before red"],
)
def test_wrong_normalization_in_the_onnx_graph_is_caught(
    vit: Graph, truth: Truth, small_spec: Preprocess, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    spec = replace(small_spec, **wrong)
    artifact = export_onnx(vit, tmp_path / "m.onnx", preprocess=spec)
    assert not check(tmp_path, artifact, truth).passed


def test_normalizing_twice_is_caught(made: dict[str, Made], truth: Truth, tmp_path: Path) -> None:
    # A patch convolution of x / 255 and not of x: what a second scaling comes down to.
    artifact = edited(made["fp32"], tmp_path, {"patch.weight": lambda w: w / 255})
    assert not check(tmp_path, artifact, truth).passed


def test_float16_overflow_is_named_as_such(
    small_vit: nn.Module, made: dict[str, Made], small_spec: Preprocess, tmp_path: Path
) -> None:
    def grow(model: nn.Module) -> None:
        # Between the two layers the values leave float16's range; float32 does not mind.
        model.blocks[1].fc1.weight[0].mul_(1e5)
        model.blocks[1].fc2.weight[:, 0].mul_(1e-5)

    source = changed(small_vit, grow)
    column = np.where(np.arange(64) == 0, 1e5, 1).astype(np.float32)
    edits: Edits = {
        "blocks.1.fc1/MatMul.const": lambda w: np.clip(w * column, -65504, 65504),
        "blocks.1.fc2/MatMul.const": lambda w: w / column[:, None],
    }
    report = check(tmp_path, edited(made["fp16"], tmp_path, edits), truth_of(source, small_spec))
    assert any("range of float16" in reason for reason in report.reasons), report.reasons


def test_a_damaged_file_is_a_failed_artefact(
    made: dict[str, Made], truth: Truth, tmp_path: Path
) -> None:
    path, artifact = made["fp32"]
    whole = path.read_bytes()
    (tmp_path / artifact.file).write_bytes(whole[: len(whole) // 2])
    report = check(tmp_path, artifact, truth)
    assert report.artifacts[0].status == "failed" and "ONNX" in report.reasons[0]


def test_an_output_of_another_width_is_a_failed_artefact(
    made: dict[str, Made], truth: Truth, small_spec: Preprocess, small_vit: nn.Module
) -> None:
    seven = changed(small_vit, lambda m: setattr(m, "head", nn.Linear(32, 7).eval()))
    path, artifact = made["fp32"]
    report = check(path.parent, artifact, truth_of(seven, small_spec))
    assert not report.passed and "shape" in report.reasons[0]


def test_a_source_that_ignores_its_input_is_called_a_weak_proof(
    small_vit: nn.Module, made: dict[str, Made], small_spec: Preprocess, tmp_path: Path
) -> None:
    source = changed(small_vit, lambda m: m.patch.weight.mul_(1e-6))
    artifact = edited(made["fp32"], tmp_path, {"patch.weight": lambda w: w * np.float32(1e-6)})
    (row,) = check(tmp_path, artifact, truth_of(source, small_spec)).artifacts
    assert row.figures["spread"] < 1e-3 and "weak proof" in row.warnings[0]


def test_an_artefact_deaf_to_its_input_fails_although_its_values_are_close(
    small_vit: nn.Module, made: dict[str, Made], small_spec: Preprocess, tmp_path: Path
) -> None:
    source = changed(small_vit, lambda m: m.patch.weight.mul_(1e-4))
    artifact = edited(made["fp32"], tmp_path, {"patch.weight": np.zeros_like})
    loose = {"rel": 1.0, "top1": 0.0}
    (row,) = check(tmp_path, artifact, truth_of(source, small_spec), tolerance=loose).artifacts
    assert row.figures["cosine"] > 0.99999 and row.status == "failed"
    assert "differences between outputs" in row.reasons[0]


def test_the_users_limits_replace_the_tables(made: dict[str, Made], truth: Truth) -> None:
    path, artifact = made["fp16"]
    assert not check(path.parent, artifact, truth, tolerance={"max": 1e-9}).passed
    assert not check(path.parent, artifact, truth, tolerance={"rel": 1e-7}).passed


def test_only_the_kinds_asked_for_are_run(made: dict[str, Made], truth: Truth) -> None:
    path, artifact = made["fp32"]
    (row,) = check(path.parent, artifact, truth, kinds=("worst",)).artifacts
    assert {case.name for case in row.cases if case.batch == 1} == {"zeros", "ones"}


def test_a_library_for_another_machine_is_not_run_and_does_not_pass(
    made: dict[str, Made], truth: Truth
) -> None:
    path, artifact = made["fp32"]
    artifact = replace(artifact, target="tvm", details={"triple": "riscv64-linux-gnu"})
    report = check(path.parent, artifact, truth)
    assert report.artifacts[0].status == "not run" and not report.passed
    assert "riscv64" in report.artifacts[0].reasons[0]


def _negate_some(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[: len(array) // 4] *= -1
    return array


LAYERS: dict[str, Edits] = {
    "patch": {"patch.weight": _negate_some},
    "blocks.0.attn.proj": {"blocks.0.attn.proj/MatMul.const": _negate_some},
    "blocks.0.attn.qkv": {"blocks.0.attn.qkv.k.weight": _negate_some},
    "blocks.1.fc2": {"blocks.1.fc2.bias": lambda b: b + (b > 0)},
    "blocks.1.norm2": {"blocks.1.norm2.weight": _negate_some},
    "head": {"head.bias": _negate_some},
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_first_wrong_layer_of_onnx_is_named(
    made: dict[str, Made], truth: Truth, tmp_path: Path, layer: str, precision: str
) -> None:
    artifact = edited(made[precision], tmp_path, LAYERS[layer])
    (row,) = check(tmp_path, artifact, truth, first_bad=True).artifacts
    assert row.first_bad is not None
    assert row.first_bad.module == layer, row.first_bad


def test_reports_survive_json_and_the_page_escapes_what_users_wrote(
    vit: Graph, made: dict[str, Made], small_spec: Preprocess, tmp_path: Path
) -> None:
    import json

    from vitlet.export.report import html, write_report

    nasty = [f'<script>alert("{i}")</script>' for i in range(10)]
    truth = truth_of(vit, small_spec, labels=nasty)
    path, artifact = made["fp32"]
    report = check(path.parent, artifact, truth, layers=True)
    text = json.dumps(report.to_json(), allow_nan=False)
    assert Report.from_json(json.loads(text)) == report
    page = html(report)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing comes from elsewhere
    assert page.count("data:image/png;base64,") == 4
    write_report(report, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == page
    write_report(report, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["passed"] is True
    assert report.worst is report.artifacts[0] and report.table()[0]["status"] == "passed"
