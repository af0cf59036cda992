"""A Core ML program as an engine: named arrays in, named arrays out, like ONNX Runtime and TVM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from vitlet.errors import UsageError
from vitlet.runtime.coreml.executor import CoreMLExecutor
from vitlet.runtime.coreml.features import Feature
from vitlet.runtime.engine import Arrays
from vitlet.runtime.manifest import Artifact, TensorSpec


class CoreMLEngine:
    """One program in vitlet's own executor, on this machine's processor.

    A classifier's probabilities come as an array (1, classes) in the order of the program's labels;
    its best class, a text, is left out.

    Args:
        path: the `.mlpackage` folder.
        artifact: its entry in the manifest, for messages; None for a bare file.
        mode: "fp32", "declared" or "stress", as `CoreMLExecutor` takes it.

    Raises:
        CorruptInputError: the package is damaged.
        UnsupportedError: it is no ML program, or has operations that are not known.
        MissingDependencyError: coremltools or torch is not installed.
    """

    name = "vitlet's Core ML executor"

    def __init__(
        self,
        path: str | os.PathLike[str],
        artifact: Artifact | None = None,
        mode: str = "declared",
    ) -> None:
        from vitlet import __version__

        self.version = __version__
        self.path = Path(path)
        self.artifact = artifact
        self.executor = CoreMLExecutor(path, mode)
        if self.executor.states:
            raise UsageError(f"{path} keeps a state: run it with vitlet.runtime.CoreMLExecutor")
        self.inputs = tuple(_spec(feature) for feature in self.executor.inputs)
        self.outputs = tuple(
            _spec(feature) for feature in self.executor.outputs if feature.kind != "label"
        )

    def run(self, feeds: Arrays) -> Arrays:
        """Compute every output.

        Args:
            feeds: input name -> array of the input's type; pictures as uint8 (1, H, W, C).

        Raises:
            ShapeError: a name, type or shape is not the one asked for.
            CorruptInputError: the program cannot be computed as it stands.
        """
        return self._arrays(self.executor.run(dict(feeds)))

    def _arrays(self, results: dict[str, Any]) -> Arrays:
        made: Arrays = {}
        for feature in self.executor.outputs:
            value = results[feature.name]
            if feature.kind == "scores":
                made[feature.name] = np.array([[*value.values()]], np.float32)
            elif feature.kind == "image":
                made[feature.name] = value[None] if value.ndim == 3 else value[None, :, :, None]
            elif feature.kind == "array":
                made[feature.name] = value
        return made


def _spec(feature: Feature) -> TensorSpec:
    """Return a feature as manifests write it; what may have several sizes gets a name."""
    if feature.kind == "scores":
        return TensorSpec(feature.name, "float32", (1, "classes"))
    if feature.kind == "image":
        shape = feature.shape if len(feature.shape) == 3 else (*feature.shape, 1)
        return TensorSpec(feature.name, feature.dtype, (1, *shape))
    sizes: list[int | str] = [*feature.shape]
    for axis, size in enumerate(feature.shape):
        choices = {choice[axis] for choice in feature.choices}
        low, high = feature.ranges[axis] if feature.ranges else (size, size)
        if low != high or len(choices) > 1:
            sizes[axis] = "batch" if axis == 0 else f"size_{axis}"
    return TensorSpec(feature.name, feature.dtype, tuple(sizes))
