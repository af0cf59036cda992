"""Zoo models: torch -> Core ML -> executor against torch, at every weight precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import fill, images

import vitlet
from vitlet.export.coreml import export_coreml
from vitlet.export.trace import Graph, graphs
from vitlet.runtime import CoreMLExecutor
from vitlet.runtime.coreml.quiet import quiet_coremltools

# Compressed programs are off by the rounding of their weights: the limits of docs/export.md. That
# they are unpacked exactly is the last test.
LIMITS = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99, "palette8": 0.99}


def example(graph: Graph) -> torch.Tensor:
    if graph.inputs[0].dtype == "int64":
        return graph.example(1)[0]
    _, channels, size, _ = graph.inputs[0].shape
    return images("zoo", 1, int(size), int(channels))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def execute(path: Path, value: torch.Tensor, mode: str = "fp32") -> np.ndarray:
    executor = CoreMLExecutor(path, mode)
    feature = executor.inputs[0]
    (result,) = executor.run({feature.name: value.numpy().astype(feature.dtype)}).values()
    return np.asarray(result)


def check(name: str, precision: str, folder: Path) -> None:
    for graph in graphs(vitlet.reparameterize(fill(vitlet.create_model(name)))):
        value = example(graph)
        with torch.no_grad():
            expected = graph.module(value).numpy()
        path = folder / f"{graph.name}.mlpackage"
        export_coreml(graph, path, precision=precision, palette_mode="uniform")
        for mode in ("fp32", "declared"):
            assert cosine(execute(path, value, mode), expected) > LIMITS[precision], (name, mode)


@pytest.mark.parametrize("precision", LIMITS)
def test_a_small_model_computes_what_torch_does(precision: str, tmp_path: Path) -> None:
    check("vit_fashion", precision, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "palette8"])
@pytest.mark.parametrize("name", ["casvit_xs", "deit_tiny", "mobileclip_s0"])
def test_models_compute_what_torch_does(name: str, precision: str, tmp_path: Path) -> None:
    check(name, precision, tmp_path)


@pytest.mark.parametrize("precision", ["int8", "palette4", "palette6"])
def test_unpacked_weights_are_coremltools_own(precision: str, tmp_path: Path) -> None:
    (graph,) = graphs(fill(vitlet.create_model("vit_fashion")))
    export_coreml(graph, tmp_path / "m.mlpackage", precision=precision, palette_mode="uniform")
    with quiet_coremltools():
        import coremltools as ct
        from coremltools.optimize.coreml import decompress_weights

        model = ct.models.MLModel(str(tmp_path / "m.mlpackage"), skip_model_load=True)
        decompress_weights(model).save(str(tmp_path / "plain.mlpackage"))
    value = example(graph)
    packed = execute(tmp_path / "m.mlpackage", value, "declared")
    plain = execute(tmp_path / "plain.mlpackage", value, "declared")
    np.testing.assert_array_equal(packed, plain)
