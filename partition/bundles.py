"""Compiles sub-models and the fusion into bundles, and proves that they compute the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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
from vitlet.export.execute import runs_here
from vitlet.export.onnx import export_onnx
from vitlet.export.targets import Batch
from vitlet.export.tolerance import tolerance_for
from vitlet.export.trace import Graph
from vitlet.runtime.bundle import Bundle, open_bundle
from vitlet.runtime.manifest import Artifact, Manifest, Target, TensorSpec
from vitlet.runtime.progress import Progress
from vitlet.runtime.select import ENGINES, open_engine

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
    targets: Sequence[Target] = (),
    triple: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Write a graph as a bundle with an ONNX file, and compare it with torch on random inputs.

    Args:
        graph: from `features_graph` or `fusion_graph`.
        out: the bundle's folder.
        model: facts for the manifest, at least "name".
        preprocess: how an image becomes the input of the sub-models.
        labels: class names.
        batch: as in `vitlet.export.onnx.export_onnx`.
        targets: what is compiled beside ONNX, for one image at a time: "tvm", and "coreml" for a
            graph of one input.
        triple: machine that TVM compiles for; None for this one.
        force: replace a bundle that is there already.
        progress: told of each step of TVM.

    Raises:
        VerificationError: an artefact computes something else; nothing is left behind.
        UnsupportedError: the module cannot be traced or has no translation.
        MissingDependencyError: a compiler is not installed.
        StorageError: the disk is full or cannot be written.
    """
    with write_bundle(out, force=force) as draft:
        made = [export_onnx(graph, draft.folder / f"{graph.name}.onnx", batch=batch)]
        made += _others(graph, draft.folder, targets, triple, progress)
        checked = [_verify(graph, draft.folder / artifact.file, artifact) for artifact in made]
        manifest = Manifest(
            vitlet=vitlet.__version__,
            model=dict(model),
            preprocess=preprocess,
            artifacts=tuple(checked),
            files={},
            labels=labels,
        )
        return open_bundle(draft.finish(manifest), hashes=False)


def _others(
    graph: Graph,
    folder: Path,
    targets: Sequence[Target],
    triple: str | None,
    progress: Progress | None,
) -> Iterator[Artifact]:
    for target in targets:
        if target == "tvm":
            from vitlet.export.tvm import export_tvm
            from vitlet.export.tvm_targets import find_machine

            name = f"{graph.name}.{find_machine(triple).name}.tvm.so"
            yield export_tvm(graph, folder / name, triple=triple, progress=progress)
        elif target == "coreml":
            from vitlet.export.coreml import export_coreml

            yield export_coreml(graph, folder / f"{graph.name}.mlpackage")


def _verify(graph: Graph, path: Path, artifact: Artifact) -> Artifact:
    """Return the entry with the figures of a comparison on random inputs."""
    if runs_here(artifact):  # the reason why not: for another machine
        return replace(artifact, verification={"status": "not run", "method": "not run"})
    low = artifact.inputs[0].shape[0]
    given = graph.example(low if isinstance(low, int) else _CHECKED, seed=1)
    with torch.no_grad():
        wanted = graph.module(*given).numpy()
    feeds = {spec.name: t.numpy() for spec, t in zip(graph.inputs, given, strict=True)}
    (engine,) = (name for name, found in ENGINES.items() if found[0] == artifact.target)
    got = open_engine(engine, path, artifact, threads=1).run(feeds)[graph.outputs[0].name]
    scale = float(np.abs(wanted).max()) or 1.0
    relative = float(np.abs(got - wanted).max()) / scale
    allowed = max(TOLERANCE, tolerance_for(artifact.target, artifact.precision).rel)
    if not relative <= allowed:  # NaN too
        raise VerificationError(
            f"{artifact.file} differs from torch in {engine}: relative error {relative:.2g}, "
            f"expected at most {allowed:g}"
        )
    figures = {"status": "passed", "method": "executed", "relative": float(f"{relative:.4g}")}
    return replace(artifact, verification=figures)
