from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from made_table import MIXERS_ONLY
from made_up import fill

import vitlet
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import Graph, graphs
from vitlet.models.casvit import CASViT
from vitlet.runtime.ort import OrtEngine

SHAPE = (3, 64, 64)


@pytest.fixture(scope="module")
def graph() -> Graph:
    model = fill(CASViT(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), num_classes=10))
    return graphs(vitlet.reparameterize(model), SHAPE)[0]


def expected(graph: Graph, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return graph.module(x).numpy()


@pytest.mark.parametrize("opset", [17, 18, 20, 21])
def test_a_file_with_functions_runs_by_standard_operators(
    graph: Graph, opset: int, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    artifact = export_onnx(
        graph, path, opset=opset, batch="dyn", accelerate="fp32", accelerate_table=MIXERS_ONLY
    )
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    counts = Counter(node.op_type for node in model.graph.node)
    assert artifact.custom_ops == ("AdditiveTokenMixer",)
    assert artifact.details["accelerate"] == "fp32"
    assert counts["AdditiveTokenMixer"] == 4
    assert [(f.domain, f.name) for f in model.functions] == [("ai.vitlet", "AdditiveTokenMixer")]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        (x,) = graph.example(batch)
        (got,) = session.run(None, {"image": x.numpy()})
        np.testing.assert_allclose(got, expected(graph, x), rtol=1e-4, atol=1e-5)


def test_weights_keep_their_names(graph: Graph, tmp_path: Path) -> None:
    export_onnx(graph, tmp_path / "m.onnx", accelerate="fp32", accelerate_table=MIXERS_ONLY)
    names = {tensor.name for tensor in onnx.load(str(tmp_path / "m.onnx")).graph.initializer}
    assert "network.0.0.attn.qkv.weight" in names


def test_two_exports_are_byte_equal(graph: Graph, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_onnx(graph, tmp_path / name, accelerate="bf16", accelerate_table=MIXERS_ONLY)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("bf16", 3e-2)])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernels_and_the_functions_agree(
    graph: Graph,
    precision: Literal["fp32", "bf16"],
    limit: float,
    threads: int,
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.onnx"
    artifact = export_onnx(graph, path, accelerate=precision, accelerate_table=MIXERS_ONLY)
    plain, fast = (OrtEngine(path, artifact, threads, accelerate=on) for on in (False, True))
    assert (plain.kernels, fast.kernels) == ("functions", "library")
    (x,) = graph.example(1)
    one, two = (engine.run({"image": x.numpy()})["logits"] for engine in (plain, fast))
    assert np.abs(one - two).max() < limit * np.abs(one).max()
    np.testing.assert_allclose(one, expected(graph, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accelerate", ["fp32", "int8"])
def test_export_proves_the_file_with_the_kernels_and_without(
    accelerate: str, tmp_path: Path
) -> None:
    reports = []
    bundle = vitlet.export(
        "casvit_fashion", ["onnx"], tmp_path / "m.vitlet",
        accelerate=accelerate, on_report=reports.append,
    )  # fmt: skip
    (artifact,) = bundle.manifest.artifacts
    assert "AdditiveTokenMixer" in artifact.custom_ops
    assert artifact.verification["status"] == "passed"
    assert reports[0].artifacts[0].engine.endswith("with vitlet's kernels")
    for on, kernels in ((True, "library"), (False, "functions")):
        assert vitlet.load(bundle.path, accelerate=on).info.kernels == kernels
