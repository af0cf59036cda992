"""Compiles sub-models and the fusion into bundles, and proves that they compute the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vitlet
from vitlet.data.spec import Preprocess
from vitlet.errors import VerificationError
from vitlet.export.bundle import write_bundle
from vitlet.export.onnx import export_onnx
from vitlet.export.targets import Batch
from vitlet.export.trace import Graph
from vitlet.runtime.bundle import Bundle, open_bundle
from vitlet.runtime.manifest import Artifact, Manifest, TensorSpec
from vitlet.runtime.ort import OrtEngine

TOLERANCE = 1e-3  # largest difference over the largest magnitude; fp32 on another engine
_CHECKED = 4  # random inputs that every artefact is compared on


@dataclass(frozen=True)
class _FusionGraph(Graph):
    def example(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random features, and a mask in which each slot is there or not."""
        random = torch.Generator().manual_seed(seed)
        features = torch.randn(batch, int(self.inputs[0].shape[1]), generator=random)
        present = torch.rand(batch, int(self.inputs[1].shape[1]), generator=random) < 0.7
        return features, present.float()


def features_graph(module: nn.Module, preprocess: Preprocess, features: int) -> Graph:
    """Return the graph of a sub-model: image (B, C, H, W) -> features (B, D)."""
    image = ("batch", preprocess.channels, *preprocess.size)
    return Graph(
        "features",
        module.eval(),
        (TensorSpec("image", "float32", image),),
        (TensorSpec("features", "float32", ("batch", features)),),
    )


def fusion_graph(module: nn.Module, features: int, slots: int, classes: int) -> Graph:
    """Return the graph of the fusion: features (B, F), present (B, slots) -> logits (B, C)."""
    return _FusionGraph(
        "fusion",
        module.eval(),
        (
            TensorSpec("features", "float32", ("batch", features)),
            TensorSpec("present", "float32", ("batch", slots)),
        ),
        (TensorSpec("logits", "float32", ("batch", classes)),),
    )


def export_graph(
    graph: Graph,
    out: str | os.PathLike[str],
    *,
    model: Mapping[str, Any],
    preprocess: Preprocess,
    labels: tuple[str, ...] | None = None,
    batch: Batch = "dyn",
    force: bool = False,
) -> Bundle:
    """Write a graph as a bundle with one ONNX file, and compare it with torch on random inputs.

    Args:
        graph: from `features_graph` or `fusion_graph`.
        out: the bundle's folder.
        model: facts for the manifest, at least "name".
        preprocess: how an image becomes the input of the sub-models.
        labels: class names.
        batch: as in `vitlet.export.onnx.export_onnx`.
        force: replace a bundle that is there already.

    Raises:
        VerificationError: ONNX Runtime computes something else; nothing is left behind.
        UnsupportedError: the module cannot be traced or has no translation.
        StorageError: the disk is full or cannot be written.
    """
    with write_bundle(out, force=force) as draft:
        artifact = export_onnx(graph, draft.folder / f"{graph.name}.onnx", batch=batch)
        checked = _verify(graph, draft.folder / artifact.file, artifact)
        manifest = Manifest(
            vitlet=vitlet.__version__,
            model=dict(model),
            preprocess=preprocess,
            artifacts=(checked,),
            files={},
            labels=labels,
        )
        return open_bundle(draft.finish(manifest), hashes=False)


def _verify(graph: Graph, path: Path, artifact: Artifact) -> Artifact:
    """Return the entry with the figures of a comparison on random inputs."""
    low = artifact.inputs[0].shape[0]
    given = graph.example(low if isinstance(low, int) else _CHECKED, seed=1)
    with torch.no_grad():
        wanted = graph.module(*given).numpy()
    feeds = {spec.name: t.numpy() for spec, t in zip(graph.inputs, given, strict=True)}
    got = OrtEngine(path, artifact).run(feeds)[graph.outputs[0].name]
    scale = float(np.abs(wanted).max()) or 1.0
    relative = float(np.abs(got - wanted).max()) / scale
    if not relative <= TOLERANCE:  # NaN too
        raise VerificationError(
            f"graph {graph.name!r} differs in ONNX Runtime: relative error {relative:.2g}, "
            f"expected at most {TOLERANCE:g}"
        )
    figures = {"status": "passed", "method": "executed", "relative": float(f"{relative:.4g}")}
    return replace(artifact, verification=figures)
