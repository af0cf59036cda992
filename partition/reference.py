"""The full model in the engine that its sub-models run in, compiled the same way."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from vitlet.data.spec import Preprocess
from vitlet.errors import UsageError
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import Graph
from vitlet.models.deit import DeiT
from vitlet.partition.submodels.features import feature, logits
from vitlet.runtime.manifest import TensorSpec
from vitlet.runtime.ort import OrtEngine


class FeatureModel(nn.Module):
    """A ViT that gives its feature: what a device computes."""

    def __init__(self, vit: DeiT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalized class token, (B, dim)."""
        return feature(self.vit, images)


class FullModel(nn.Module):
    """A ViT that gives its logits, without the work nobody reads: as thrifty as its sub-models."""

    def __init__(self, vit: DeiT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, classes)."""
        return logits(self.vit, images)


def compile_features(vit: DeiT, spec: Preprocess, path: Path) -> None:
    """Write what a device computes as an ONNX file, for any number of pictures at once."""
    output = TensorSpec("features", "float32", ("batch", int(vit.pos_embed.shape[-1])))
    _compile("features", FeatureModel(vit), spec, output, path)


@contextmanager
def full_engine(model: nn.Module, spec: Preprocess) -> Iterator[tuple[OrtEngine, int]]:
    """Compile the full model to ONNX for as long as it is needed; give the engine and its bytes.

    Raises:
        UsageError: not a plain ViT.
    """
    if not isinstance(model, DeiT):
        raise UsageError(f"expected the full plain ViT (DeiT layout), got {type(model).__name__}")
    output = TensorSpec("logits", "float32", ("batch", len(model.state_dict()["head.bias"])))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _compile("model", FullModel(model), spec, output, path)
        yield OrtEngine(path, threads=1), path.stat().st_size


def _compile(
    name: str, module: nn.Module, spec: Preprocess, output: TensorSpec, path: Path
) -> None:
    image = TensorSpec("image", "float32", ("batch", spec.channels, *spec.size))
    export_onnx(Graph(name, module.eval(), (image,), (output,)), path, batch="dyn")
