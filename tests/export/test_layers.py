"""Layer by layer: what a table of a source and its artefacts shows, in each target."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vitlet.data.spec import Preprocess
from vitlet.export.cases import Case
from vitlet.export.coreml import export_coreml
from vitlet.export.layer_page import layer_section
from vitlet.export.layers import layer_rows
from vitlet.export.onnx import export_onnx
from vitlet.export.pairing import Step, movement, pair
from vitlet.export.result import ArtifactResult, LayerRow, Report
from vitlet.export.trace import Graph, graphs
from vitlet.export.truth import Truth
from vitlet.export.tvm import export_tvm
from vitlet.export.verify import verify_artifacts
from vitlet.runtime.manifest import Artifact

SHAPE = (3, 32, 32)


def truth_of(graph: Graph, spec: Preprocess) -> Truth:
    random = np.random.default_rng(0)
    cases = []
    for name in ("real_0", "random_0"):
        picture = random.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
        case = Case(graph.name, name, picture, np.zeros((1, 1), np.float32))
        with torch.no_grad():
            output = graph.module(torch.from_numpy(case.floats(spec))).numpy()
        cases.append(replace(case, output=output))
    return Truth("it", {}, spec, graphs=[graph], cases={graph.name: cases})


@pytest.fixture(scope="module")
def made(
    small_conv: nn.Module, small_spec: Preprocess, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Artifact]]:
    folder = tmp_path_factory.mktemp("layers")
    graph = graphs(small_conv, SHAPE)[0]
    return folder, {
        "onnx": export_onnx(graph, folder / "m.onnx"),
        "coreml": export_coreml(graph, folder / "m.mlpackage", preprocess=small_spec),
        "tvm": export_tvm(graph, folder / "m.tvm.so"),
    }


def look(folder: Path, artifact: Artifact, truth: Truth) -> ArtifactResult:
    report = verify_artifacts(folder, [artifact], truth, subject="test", layers=True)
    assert Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report
    return report.artifacts[0]


@pytest.mark.parametrize("target", ["onnx", "coreml", "tvm"])
def test_every_layer_of_a_sound_artefact_agrees(
    small_conv: nn.Module, small_spec: Preprocess, made: tuple[Path, dict[str, Artifact]],
    target: str,
) -> None:  # fmt: skip
    folder, artifacts = made
    result = look(folder, artifacts[target], truth_of(graphs(small_conv, SHAPE)[0], small_spec))
    assert result.status == "passed", result.reasons
    rows = {row.module: row for row in result.layers}
    assert {"mix", "qkv", "head"} <= set(rows)
    assert [*rows][-1] == "head" and rows["head"].tensor
    least = 40 if target == "coreml" else 100  # dB: float16 and float32
    for row in result.layers:
        if row.tensor:
            assert row.agrees and "first bad" not in row.mark and row.snr_db > least
            largest = max(abs(row.lowest), abs(row.highest))
            assert row.headroom == pytest.approx(65504 / largest)
    assert [row.mark for row in result.layers if row.mark] == ["most error"]
    assert result.layers_case in ("real_0", "random_0") and result.first_bad is None


@pytest.mark.parametrize("target", ["onnx", "coreml", "tvm"])
@pytest.mark.parametrize("layer", ["stem", "gate", "head"])
def test_the_first_bad_layer_is_marked_and_named(
    small_conv: nn.Module, small_spec: Preprocess, made: tuple[Path, dict[str, Artifact]],
    target: str, layer: str,
) -> None:  # fmt: skip
    folder, artifacts = made
    other = copy.deepcopy(small_conv)
    with torch.no_grad():
        other.get_submodule(layer).weight[:3].mul_(-1)
    result = look(folder, artifacts[target], truth_of(graphs(other, SHAPE)[0], small_spec))
    assert result.status == "failed" and result.first_bad is not None
    assert result.first_bad.module == layer, result.first_bad
    marked = [row for row in result.layers if row.mark.startswith("first bad")]
    page = layer_section(result)
    if marked:  # a layer that the compiler has merged with the next has no row of its own
        assert [row.module for row in marked] == [layer] and not marked[0].agrees
        assert "first bad" in page
    assert page.count("<circle") == sum(bool(row.tensor) for row in result.layers)


def test_the_layer_that_adds_most_noise_is_not_the_one_with_most_of_it() -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    steps = [
        Step("x", "", "", x, given=True),
        Step("a", "aten.conv2d.default", "first", x * 2, ("x",)),
        Step("b", "aten.conv2d.default", "second", x * 3, ("a",)),
        Step("c", "aten.conv2d.default", "third", x * 4, ("b",)),
    ]
    relative = [1e-4, 1e-2, 1.001e-2]  # the second layer adds, the third passes on
    inside = [
        Step(f"t{i}", "", "", s.value * (1 + r * noise))
        for i, (s, r) in enumerate(zip(steps[1:], relative, strict=True))
    ]
    rows = layer_rows(steps, inside, pair(steps, [(s.name, s.value) for s in inside], "int8"))
    assert [row.mark for row in rows] == ["", "most error", ""]
    power = float(((x * noise) ** 2).sum() / (x**2).sum())
    assert rows[1].added == pytest.approx((1e-4 - 1e-8) * power, rel=1e-3)
    assert rows[2].snr_db == pytest.approx(-10 * np.log10(1.001e-2**2 * power), abs=1e-3)


def test_a_value_that_hardly_moves_vouches_for_nothing_before_it() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 50)).astype(np.float32)

    def gate(values: np.ndarray) -> np.ndarray:
        return (1 / (1 + np.exp(-20 - 0.1 * values))).astype(np.float32)

    def run(values: np.ndarray) -> list[Step]:
        return [
            Step("x", "", "", values, given=True),
            Step("a", "aten.conv2d.default", "layer", values * 2, ("x",)),
            Step("b", "aten.sigmoid.default", "gate", gate(values * 2), ("a",)),
        ]

    held = [("t0", x * -3), ("t1", gate(x * -3))]  # the layer is wrong, its saturated gate agrees
    deaf = pair(run(x), held, "fp16", movement(run(x), run(y)))
    assert deaf.partner == {"b": 1} and deaf.sound == {"b"}
    assert pair(run(x), held, "fp16").sound == {"a", "b", "x"}


def test_the_plot_escapes_names_and_shows_nothing_without_layers() -> None:
    empty = ArtifactResult("onnx", "model", "m.onnx", "fp32", "passed", "executed")
    assert layer_section(empty) == ""
    nasty = LayerRow("<b>", "op", "y", "t", 1.0, 60.0, 0.1, -1.0, 1.0, 65504.0, mark="most error")
    page = layer_section(replace(empty, layers=(nasty,)))
    assert "<b>" not in page and "&lt;b&gt;" in page and "<svg" in page
