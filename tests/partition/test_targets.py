"""A sub-model's bundle can hold TVM and Core ML artefacts beside ONNX, each compared with torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_plan import PREPROCESS
from torch import Tensor, nn

from vitlet.errors import VerificationError
from vitlet.export.trace import Graph
from vitlet.partition.bundles import export_graph, features_graph
from vitlet.partition.plan import check_graph
from vitlet.runtime.bundle import Bundle, open_bundle
from vitlet.runtime.manifest import Target


def made(target: Target, out: Path, graph: Graph) -> Bundle:
    pytest.importorskip({"tvm": "tvm", "coreml": "coremltools"}[target], exc_type=ImportError)
    return export_graph(
        graph, out, model={"name": "tiny"}, preprocess=PREPROCESS, targets=(target,)
    )


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.Flatten(), nn.Linear(16, 8), nn.GELU())
    return features_graph(module, PREPROCESS, 8)


@pytest.mark.parametrize("target", ["tvm", "coreml"])
def test_another_target_is_compiled_and_verified(
    target: Target, graph: Graph, tmp_path: Path
) -> None:
    made(target, tmp_path / "slot.vitlet", graph)
    manifest = open_bundle(tmp_path / "slot.vitlet").manifest
    assert [artifact.target for artifact in manifest.artifacts] == ["onnx", target]
    assert all(artifact.verification["status"] == "passed" for artifact in manifest.artifacts)
    check_graph(manifest, "features", graph.inputs, graph.outputs[0], "slot.vitlet")


class Forgetful(nn.Module):
    """Gives something else once it was traced."""

    def forward(self, image: Tensor) -> Tensor:
        wrong = 0.0 if torch.compiler.is_compiling() else 1.0
        return image.flatten(1) + wrong


def test_an_artefact_that_computes_something_else_leaves_nothing(tmp_path: Path) -> None:
    graph = features_graph(Forgetful().eval(), PREPROCESS, 64)
    with pytest.raises(VerificationError, match=r"features\.onnx differs from torch"):
        export_graph(graph, tmp_path / "slot.vitlet", model={"name": "x"}, preprocess=PREPROCESS)
    assert not list(tmp_path.iterdir())
